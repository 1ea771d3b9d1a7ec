"""Restarts: an attempt that is likely to fail is stopped early, and another one is started.

Whether this saves time follows in closed form from the accuracy of the failure predictor (Watson and Correll 2023,
arXiv:2301.10846).
"""

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
# observations (B, ...) -> (B,): the higher, the more likely the attempt fails
FailurePredictor = Callable[[Mapping[str, Tensor]], Tensor]


def label_attempt(episode: Episode) -> Episode:
    """Adds the columns from which a failure predictor learns to a rollout.

    `observation.clock` (T + 1, 1) is the number of steps so far. `fails` (T, 1) is 1 at every step of an attempt that
    did not succeed, otherwise 0. A policy with `target="fails"` predicts the probability of failure.
    """
    n = len(episode)
    return episode.replace({CLOCK: np.arange(n + 1, dtype=np.float32)[:, None],
                            FAILS: np.full((n, 1), float(not episode.metadata["success"]), np.float32)})


def elapsed_steps(obs: Mapping[str, Tensor]) -> Tensor:
    """A failure predictor that returns the number of steps so far, (B,), so that attempts restart at a fixed step.

    References:
        Luby et al. (1993), Optimal Speedup of Las Vegas Algorithms.
    """
    return obs[CLOCK][:, 0]


@dataclass(frozen=True)
class FailureProbability:
    """A failure predictor that asks a policy trained with `target="fails"`.

    Args:
        policy: The policy. It must observe one step.
    """

    policy: Planner

    def __post_init__(self):
        if self.policy.window.n_obs_steps != 1:
            raise UserError(
                f"the policy sees {self.policy.window.n_obs_steps} steps, but must see 1",
                where="FailureProbability",
                hint="train it with Window(n_obs_steps=1): an attempt begins without a past",
            )

    @torch.no_grad()
    def __call__(self, obs):
        p = self.policy
        windows = {k: obs[k].unsqueeze(1).to(p.device) for k in p.inputs}
        none = torch.zeros(len(next(iter(windows.values()))), dtype=torch.int64, device=p.device)
        return p.plan(windows, p.noise(none, none))[:, 0, 0].cpu()


class Attempts(Env):
    """An environment in which a fixed actor tries until it succeeds. The action decides whether to stop an attempt.

    The action has one number. Above 0, this step is the last one of the attempt. After an attempt that was stopped, or
    that ended without success, a new attempt begins from a new start, `restart_cost` steps later.

    `observation.clock` (1), the number of steps of this attempt, is added to the observations of `env`. The reward is
    minus the time, so that the return is minus the makespan: the steps and restart costs until success. An episode
    succeeds when an attempt does. info["attempts"] is the number of attempts.

    Args:
        restart_cost: Steps that a restart costs.
        limit: Number of steps after which an episode is truncated.
    """

    def __init__(self, env: Env, actor: Actor, restart_cost: float = 0.0, limit: int = 10_000):
        if restart_cost < 0 or limit < 1:
            raise UserError(f"restart_cost must be at least 0 and limit at least 1, but restart_cost={restart_cost} "
                            f"and limit={limit}", where="Attempts", hint="such as restart_cost=0, limit=10000")
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
        self.last_obs: Any = None
        self.state: Any = None
        self.reward = torch.zeros(self.rows)  # of the attempt's last step

    def reset(self, which, key):
        everyone = torch.arange(self.rows)
        if self.state is None and len(which) < self.rows:  # further rows are reset before anyone reads them
            self._start_attempt(everyone)
        self.key[which], self.count[which], self.total[which] = key, 0, 0
        self._start_attempt(which)
        return self._observation()

    def step(self, action):
        self.check_actions(action)
        plan, state = self.actor.act({**self.last_obs, LAST_REWARD: self.reward}, self.state)
        self.state = {k: v for k, v in state.items() if k != "record"}
        out = self.env.step(plan)
        if "success" not in out.info:
            raise UserError("the environment does not report success",
                            where=self.metadata["env"], hint="only then is there anything to try until it is done")
        self.last_obs, self.clock, self.total = dict(out.obs), self.clock + 1, self.total + 1
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
        """Starts an attempt in some rows of the environment, with a start that depends on key and attempt number."""
        key = torch.cat([keys(k, [n]) for k, n in zip(self.key[which].tolist(), self.count[which].tolist(),
                                                      strict=True)])
        self.last_obs = self.env.reset(which, key)
        self.reward = put(self.reward, which, torch.zeros(len(which)))
        new = self.actor.start(take({**self.last_obs, LAST_REWARD: self.reward}, which), key)
        self.state = new if self.state is None else put(self.state, which, new)
        self.clock[which] = 0

    def _observation(self):
        return {**self.last_obs, CLOCK: self.clock.unsqueeze(1).float()}


@dataclass(frozen=True)
class RestartingActor(Actor):
    """An actor for `Attempts` that stops an attempt if its predicted failure exceeds a threshold.

    Args:
        predictor: Rates the observations of each row, (B,). Higher means that failure is more likely.
        threshold: Attempts above it are stopped. With infinity, none is.
    """

    predictor: FailurePredictor
    threshold: float

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        return torch.where(self.predictor(obs) > self.threshold, 1.0, -1.0).unsqueeze(1), state


# -- when it pays -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RestartForecast:
    """The forecast for a failure predictor with a threshold: its confusion matrix, and the cost of attempts.

    Attributes:
        success: Fraction of attempts that succeed if none is stopped.
        false_alarms: Fraction of successful attempts that are stopped (false positives).
        detected: Fraction of failing attempts that are stopped (true positives).
        steps_to_success: Mean number of steps of successful attempts that are not stopped.
        steps_to_failure: Mean number of steps of failing attempts that are not stopped.
        steps_to_false_alarm: Mean number of steps until a successful attempt is stopped.
        steps_to_detection: Mean number of steps until a failing attempt is stopped.
    """

    success: float
    false_alarms: float
    detected: float
    steps_to_success: float
    steps_to_failure: float
    steps_to_false_alarm: float
    steps_to_detection: float

    def makespan(self, restart_cost: float = 0.0) -> float:
        """Returns the expected steps and restart costs until the first success. Infinite if no attempt succeeds.

        It is the expected cost of one attempt, divided by the probability that the attempt is the last one.
        """
        fails, keeps = 1 - self.success, 1 - self.false_alarms
        last = self.success * keeps
        if last <= 0:
            return math.inf
        each = (self.success * (keeps * self.steps_to_success + self.false_alarms * self.steps_to_false_alarm)
                + fails * ((1 - self.detected) * self.steps_to_failure + self.detected * self.steps_to_detection))
        return (each + (1 - last) * restart_cost) / last


def choose_threshold(
    attempts: Sequence[Episode], judge: FailurePredictor, restart_cost: float = 0.0, count: int = 20
) -> tuple[float, float]:
    """Chooses the threshold with the lowest expected makespan.

    The candidates are quantiles of the predictions, and infinity. So no attempt is stopped unless this saves time.

    Args:
        attempts: Attempts that ran to their end, from `label_attempt`.
        restart_cost: Steps that a restart costs.
        count: Number of quantiles.

    Returns:
        The threshold and the expected makespan, in steps.
    """
    if not len(attempts):
        raise UserError("there are no attempts that ran to their end", where="choose_threshold",
                        hint="roll the actor out in the environment itself, and .map(label_attempt)")
    predictions, success = _predictions(attempts, judge), np.array([e.metadata["success"] for e in attempts], bool)
    bounds = [math.inf, *np.unique(np.quantile(np.concatenate(predictions), np.linspace(0, 1, count, endpoint=False)))]
    spans = [_forecast_at(predictions, success, b).makespan(restart_cost) for b in bounds]
    best = int(np.argmin(spans))  # the first of equals, which is never to stop
    return float(bounds[best]), float(spans[best])


def _predictions(attempts, judge) -> list[np.ndarray]:
    """Returns the predictions of the failure predictor at each step of each attempt."""
    columns = [k for k in attempts[0].steps if k.startswith("observation.")]
    obs = {k: torch.from_numpy(np.concatenate([np.asarray(e.steps[k])[: len(e)] for e in attempts])) for k in columns}
    return np.split(judge(obs).double().numpy(), np.cumsum([len(e) for e in attempts])[:-1])


def _forecast_at(predictions, success, above) -> RestartForecast:
    # An attempt's own last step cannot be given up any more: it has ended then.
    first = np.array([int((s[:-1] > above).argmax()) + 1 if (s[:-1] > above).any() else 0 for s in predictions])
    length, given_up = np.array([len(s) for s in predictions]), first > 0

    def mean(values, of):
        return float(values[of].mean()) if of.any() else 0.0
    return RestartForecast(float(success.mean()), mean(given_up, success), mean(given_up, ~success),
                           mean(length, success & ~given_up), mean(length, ~success & ~given_up),
                           mean(first, success & given_up), mean(first, ~success & given_up))
