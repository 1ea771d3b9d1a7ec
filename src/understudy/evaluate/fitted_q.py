"""Fitted Q evaluation: estimates the value of a policy from recorded episodes of other policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy
import torch

from ..core import DataError, Unsupported
from ..data.episode import Dataset
from ..execute.chunking import RecedingHorizon
from ..learn.critics.fitted_q import FittedQ, FittedQLearner, discounted_returns
from ..learn.fit import Callback, fit
from ..learn.method import TrainedRun, online_changes
from ..learn.targets import REWARD, TERMINATED, check_rewards
from ..nets.encoders import simplest_encoder
from .stats import LEVEL, Interval, bootstrap_mean

MIN_EPISODES = 6


@dataclass(frozen=True)
class PolicyValue:
    """An estimate of the mean discounted return of a policy, from the starts of recorded episodes.

    Attributes:
        value: The estimate. Its interval says how much other episodes of the same kind would change it. It does not
            cover errors of the critic.
        recorded: The mean discounted return of the episodes themselves.
        n_trained_on: Number of episodes that the policy was trained on, which make it look better than it is.
        last_change: Change of the estimate in the last tenth of the updates.
        n_cut: Number of episodes that were cut off where what follows counts at least 1 %. `value` has what would have
            followed, and `recorded` does not.
        remaining: Change that is still to come if the estimate approaches its limit at the rate of the target critics:
            the larger of what the last tenth of the updates and all of them since 0 say.
    """

    value: Interval
    recorded: Interval
    discount: float
    n_episodes: int
    n_trained_on: int
    last_change: float
    n_cut: int = 0
    remaining: float = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether the estimate has converged: its last and coming changes are smaller than its interval."""
        return max(abs(self.last_change), abs(self.remaining)) <= self.value.high - self.value.low

    def describe(self) -> str:
        """Describes the estimate in words."""
        v, r = self.value, self.recorded
        overlap = f", {self.n_trained_on} of which it was trained on" if self.n_trained_on else ""
        text = (f"Fitted Q evaluation on {self.n_episodes} episodes{overlap}: the discounted return of the policy is "
                f"about {v.estimate:.4g} ({v.level:.0%} interval over episodes {v.low:.4g} to {v.high:.4g}, discount "
                f"{self.discount:g}). The episodes themselves: {r.estimate:.4g} ({r.low:.4g} to {r.high:.4g}).")
        if self.n_cut:
            text += (f" {self.n_cut} of the episodes were cut off, as by a time limit. The first number counts what "
                     "would have followed and the second does not, so that they cannot be compared.")
        if self.is_settled:
            return text
        if self.discount == 1:
            return (f"{text} With a discount of 1 no number of updates surely settles the estimate: choose a lower "
                    "--discount, such as 0.99.")
        return (f"The estimate has not settled: it changed by {self.last_change:.3g} in the last tenth of the updates, "
                f"and {self.remaining:.3g} may be still to come. Make more: --updates. {text}")

    def to_json(self) -> dict[str, Any]:
        """Returns the estimate and its limits as JSON."""
        return {**asdict(self), "settled": self.is_settled, "note": NOTE}


NOTE = ("This value is not measured: no step of the policy was carried out. Where the policy takes actions that the "
        "episodes do not have, it is a guess, which can be far too high, and the interval does not show that. To "
        "measure the return, let the policy act: understudy eval RUN ENV.")


def evaluate_fitted_q(trained: TrainedRun, data: Dataset, config: FittedQ, seed: int = 0,
                      n_trained_on: int = 0, callbacks: Sequence[Callback] = ()) -> PolicyValue:
    """Estimates the mean discounted return of a policy from recorded episodes alone.

    Args:
        trained: The run, loaded with its transforms.
        data: Episodes as the policy learns from them (`training_data`), with rewards and ends.
        config: Its encoder and numbers of steps of a plan are replaced by values that suit the run.

    Raises:
        Unsupported: What the policy does next does not depend on its observations alone.
    """
    check(trained, data)
    executor, policy = trained.method.executor, trained.policy
    assert isinstance(executor, RecedingHorizon)
    encoder = simplest_encoder({name: policy.features[name] for name in policy.inputs})
    config = replace(config, skip=executor.skip, n_action_steps=executor.n_action_steps,
                     critic=replace(config.critic, encoder=encoder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # seed of the first weights
        learner = FittedQLearner(config, policy, seed, config.steps, data, trained.planner())
    sampler, tenth = learner.batch_sampler(data), config.steps - config.steps // 10
    fit(learner, lambda n: sampler.batch(config.batch_size, n, seed), tenth, callbacks=callbacks)
    before = learner.values(data)[0]
    fit(learner, lambda n: sampler.batch(config.batch_size, n, seed), config.steps, start=tenth, callbacks=callbacks)
    estimate, *resampled = learner.values(data)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(resampled) - 1) * np.std(resampled, ddof=1)
    value = Interval(float(estimate), float(estimate - half), float(estimate + half))
    recorded = bootstrap_mean(discounted_returns(data, config.discount))
    n_cut = sum(not np.any(e.steps[TERMINATED][:len(e)]) and config.discount ** len(e) >= 0.01 for e in data)
    # A tenth of the updates closes a fraction 1 - exp(-rate * tenth) of the distance to the limit.
    change, rate = float(estimate - before), (1 - config.target_decay) * (1 - config.discount**config.n_action_steps)
    remaining = max((moved / np.expm1(max(rate * steps, 1e-6)) for moved, steps in
                     ((change, config.steps // 10), (float(estimate), config.steps))), key=abs)
    return PolicyValue(value, recorded, config.discount, len(data), n_trained_on, change, n_cut, float(remaining))


def check(trained: TrainedRun, data: Dataset) -> None:
    """Raises UserError if the data allow no estimate, or if the policy acts by more than its observations."""
    path, columns = data.metadata.get("path", "data set"), data.features()
    if missing := [name for name in (REWARD, TERMINATED) if name not in columns]:
        raise DataError(f"there is no column {missing[0]!r}; the columns are {', '.join(columns)}", where=path,
                        hint="store the rewards as next.reward, and as next.terminated whether the environment ended "
                             "the episode; a column with another name: understudy view make DATA --out VIEW --rename "
                             f"NAME={missing[0]}")
    if len(data) < MIN_EPISODES:
        raise DataError(f"there are {len(data)} episodes, too few for an interval over episodes", where=path,
                        hint=f"give at least {MIN_EPISODES}")
    check_rewards(data)
    method, policy = trained.method, trained.policy
    reasons = {
        f"{type(method.executor).__name__} joins several plans": not isinstance(method.executor, RecedingHorizon),
        "its actions are carried out by a wrapper": method.wrapper is not None,
        "it reads goals, on which its value depends": bool(policy.window.goals),
        "it acts by a condition, such as a return, on which its value depends": any(
            change.open_condition for change in online_changes(method))}
    for reason in (text for text, holds in reasons.items() if holds):
        raise Unsupported(f"the policy has no value that depends on its observations alone: {reason}",
                          where="--fitted-q", hint="let it act: understudy eval RUN ENV")
