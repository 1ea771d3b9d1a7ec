"""Trial and error: an attempt that is going to fail may be given up early and started again (Watson and Correll 2023,
arXiv 2301.10846). When that saves time follows in closed form from the accuracy of the failure predictor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, UserError, keys, put, take
from ..data.episode import Episode
from ..envs.base import Env
from ..execute.actor import LAST_REWARD, Actor
from ..policy import Planner

CLOCK, FAILS = "observation.clock", "fails"
# observations (B, ...) -> (B,): the higher, the sooner given up
FailurePredictor = Callable[[Mapping[str, Tensor]], Tensor]


def label_attempt(episode: Episode) -> Episode:
    """A rollout as an attempt to learn from: adds observation.clock (T+1, 1), the steps made, and fails (T, 1), 1 at
    every step of an attempt that did not succeed. A policy with `target="fails"` predicts how likely that is."""
    n = len(episode)
    return episode.replace({CLOCK: np.arange(n + 1, dtype=np.float32)[:, None],
                        FAILS: np.full((n, 1), float(not episode.metadata["success"]), np.float32)})


def elapsed_steps(obs: Mapping[str, Tensor]) -> Tensor:
    """The judge who gives up after so many steps, whatever is seen: restarts at a fixed cutoff (Luby et al. 1993)."""
    return obs[CLOCK][:, 0]


@dataclass(frozen=True)
class FailureProbability:
    """The judge who asks a policy that was trained with `target="fails"`."""

    policy: Planner

    def __post_init__(self):
        if self.policy.window.n_obs_steps != 1:
            raise UserError(
                f"the policy sees {self.policy.window.n_obs_steps} steps, but must see 1",
                where="Likely",
                hint="train it with Window(n_obs_steps=1): an attempt begins without a past",
            )

    @torch.no_grad()
    def __call__(self, obs):
        p = self.policy
        seen = {k: obs[k].unsqueeze(1).to(p.device) for k in p.inputs}
        none = torch.zeros(len(next(iter(seen.values()))), dtype=torch.int64, device=p.device)
        return p.plan(seen, p.noise(none, none))[:, 0, 0].cpu()


class Attempts(Env):
    """A frozen actor tries until it succeeds. action (1): above 0, this step is the attempt's last. An attempt that was
    given up, or that ended without success, is followed by another from a new start, `pause` steps later.

    Shows what `env` shows and observation.clock (1), the steps of this attempt. reward: minus the time, so that the
    return is minus the makespan, the steps and pauses until success. Succeeds when an attempt does; truncated after
    `limit` steps. info["attempts"]: how many there were.
    """

    def __init__(self, env: Env, actor: Actor, restart_cost: float = 0.0, limit: int = 10_000):
        if restart_cost < 0 or limit < 1:
            raise UserError(f"the pause must be at least 0 and the limit at least 1, but pause={restart_cost} and "
                            f"limit={limit}", where="Attempts", hint="such as pause=0, limit=10000")
        self.env, self.actor, self.restart_cost, self.limit, self.rows = env, actor, restart_cost, limit, env.rows
        self.features = {**env.features, CLOCK: Feature("float32", (1,)),
                         "action": Feature("float32", (1,), names=("give up",))}
        self.metadata = {
            **env.metadata,
            "env": f"{env.metadata['env']}+attempts",
            "limit": limit,
            "low": -1.0,
            "high": 1.0,
        }
        self.key = torch.zeros(self.rows, dtype=torch.int64)
        self.count, self.clock, self.total = (torch.zeros_like(self.key) for _ in range(3))
        # Set by the first reset.
        self.seen: Any = None
        self.state: Any = None
        self.reward = torch.zeros(self.rows)  # of the attempt's last step

    def reset(self, which, key):
        everyone = torch.arange(self.rows)
        if self.state is None and len(which) < self.rows:  # the others will be reset before anyone reads them
            self._start_attempt(everyone)
        self.key[which], self.count[which], self.total[which] = key, 0, 0
        self._start_attempt(which)
        return self._observation()

    def step(self, action):
        if tuple(action.shape) != (self.rows, 1):
            raise UserError(f"the actions have shape {tuple(action.shape)}, but must have shape ({self.rows}, 1)",
                            where=self.metadata["env"], hint="one number for each row: to continue, or to start again")
        plan, state = self.actor.act({**self.seen, LAST_REWARD: self.reward}, self.state)
        self.state = {k: v for k, v in state.items() if k != "record"}
        out = self.env.step(plan)
        if "success" not in out.info:
            raise UserError("the environment does not report success",
                            where=self.metadata["env"], hint="only then is there anything to try until it is done")
        self.seen, self.clock, self.total = dict(out.obs), self.clock + 1, self.total + 1
        self.reward = out.reward
        success = out.info["success"].clone()
        over = ~success & (out.terminated | out.truncated | (action[:, 0] > 0))
        late = ~success & (self.total >= self.limit)
        attempts = self.count + 1
        if (which := (over & ~late).nonzero().flatten()).numel():
            self.count = self.count + (over & ~late)
            self._start_attempt(which)
        reward = -1.0 - self.restart_cost * (over & ~late)
        return replace(out, obs=self._observation(), reward=reward.float(), terminated=success, truncated=late,
                       info={"success": success, "attempts": attempts})

    def close(self):
        self.env.close()

    def _start_attempt(self, which):
        """A new attempt in these rows, decided by the row's key and the number of the attempt."""
        key = torch.cat([keys(k, [n]) for k, n in zip(self.key[which].tolist(), self.count[which].tolist(),
                                                      strict=True)])
        self.seen = self.env.reset(which, key)
        self.reward = put(self.reward, which, torch.zeros(len(which)))
        new = self.actor.start(take({**self.seen, LAST_REWARD: self.reward}, which), key)
        self.state = new if self.state is None else put(self.state, which, new)
        self.clock[which] = 0

    def _observation(self):
        return {**self.seen, CLOCK: self.clock.unsqueeze(1).float()}


@dataclass(frozen=True)
class RestartingActor(Actor):
    """In `Attempts`: gives up where `judge` says more than `above`; never, where that is infinite."""

    predictor: FailurePredictor
    threshold: float

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        return torch.where(self.predictor(obs) > self.threshold, 1.0, -1.0).unsqueeze(1), state


# -- when it pays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RestartForecast:
    """The confusion matrix of giving up, and what attempts cost.

    success: the fraction of attempts that succeed if none is given up. lost: the fraction of those that are given up
    all the same (false positives). caught: the fraction of the others that are given up (true positives). The mean
    steps of attempts that run to their success or failure, and of those that would have run there but are given up.
    """

    success: float
    false_alarms: float
    detected: float
    steps_to_success: float
    steps_to_failure: float
    steps_to_false_alarm: float
    steps_to_detection: float

    def makespan(self, restart_cost: float = 0.0) -> float:
        """The expected steps and pauses until the first success: of one attempt, over the probability that it is the
        last. Infinite where none succeeds."""
        fails, keeps = 1 - self.success, 1 - self.false_alarms
        last = self.success * keeps
        if last <= 0:
            return math.inf
        each = (self.success * (keeps * self.steps_to_success + self.false_alarms * self.steps_to_false_alarm)
                + fails * ((1 - self.detected) * self.steps_to_failure + self.detected * self.steps_to_detection))
        return (each + (1 - last) * restart_cost) / last


def forecast(attempts: Sequence[Episode], judge: FailurePredictor, above: float) -> RestartForecast:
    """From attempts that ran to their end (see `attempt`): who would have been given up, and when."""
    return _forecast_at(_predictions(attempts, judge), np.array([e.metadata["success"] for e in attempts], bool), above)


def choose_threshold(
    attempts: Sequence[Episode], judge: FailurePredictor, restart_cost: float = 0.0, count: int = 20
) -> tuple[float, float]:
    """(above, makespan): of `count` quantiles of what `judge` says, and of never giving up, the bound with the lowest
    expected makespan: so nothing is given up unless that saves time."""
    if not len(attempts):
        raise UserError("there are no attempts that ran to their end", where="choose",
                        hint="roll the actor out in the environment itself, and .map(attempt)")
    said, success = _predictions(attempts, judge), np.array([e.metadata["success"] for e in attempts], bool)
    bounds = [math.inf, *np.unique(np.quantile(np.concatenate(said), np.linspace(0, 1, count, endpoint=False)))]
    spans = [_forecast_at(said, success, b).makespan(restart_cost) for b in bounds]
    best = int(np.argmin(spans))  # of equals the first: never
    return float(bounds[best]), float(spans[best])


def _predictions(attempts, judge) -> list[np.ndarray]:
    """What the judge says at each step of each attempt."""
    columns = [k for k in attempts[0].steps if k.startswith("observation.")]
    obs = {k: torch.from_numpy(np.concatenate([np.asarray(e.steps[k])[: len(e)] for e in attempts])) for k in columns}
    return np.split(judge(obs).double().numpy(), np.cumsum([len(e) for e in attempts])[:-1])


def _forecast_at(said, success, above) -> RestartForecast:
    # An attempt's own last step cannot be given up any more: it has ended then.
    first = np.array([int((s[:-1] > above).argmax()) + 1 if (s[:-1] > above).any() else 0 for s in said])
    length, given_up = np.array([len(s) for s in said]), first > 0

    def mean(values, of):
        return float(values[of].mean()) if of.any() else 0.0
    return RestartForecast(float(success.mean()), mean(given_up, success), mean(given_up, ~success),
                    mean(length, success & ~given_up), mean(length, ~success & ~given_up),
                    mean(first, success & given_up), mean(first, ~success & given_up))
