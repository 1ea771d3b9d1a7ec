"""Environment wrappers that change how episodes begin and end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..core import Feature, UserError, keys, put, role, take, uniform
from ..data.episode import Dataset, Episode
from ..data.episode_concat import NEW_TRIAL
from .base import Env, EnvWrapper, Obs, Restorable, StepResult
from .wrappers import rows_where

DEMONSTRATED_START = "demonstrated_start"  # metadata of an episode


class DemoStateReset(EnvWrapper):
    """Wraps an environment so that episodes start from demonstrated states.

    The key of an episode decides whether it does, and the demonstration and the step that it starts from. All steps are
    equally likely. The metadata `demonstrated_start` tells whether it did.

    Args:
        data: Demonstrations that were recorded in `env`.
        fraction: Fraction of the episodes that start from a demonstrated state. The remaining episodes start as in
            `env`.

    References:
        Salimans and Chen (2018), Learning Montezuma's Revenge from a Single Demonstration, arXiv:1812.03381.
        Swamy et al. (2023), Inverse Reinforcement Learning without Reinforcement Learning, arXiv:2303.14623.
    """

    def __init__(self, env: Env, data: Dataset, fraction: float = 1.0):
        if not isinstance(env, Restorable):
            raise UserError(f"{env.metadata['env']} cannot be put into a recorded state", where="DemoStateReset",
                            hint="use an environment that can, such as the toys and those of MuJoCo")
        if not 0 <= fraction <= 1:
            raise UserError(f"fraction is {fraction:g}, which is not between 0 and 1", where="DemoStateReset",
                            hint="0.5 starts half of the episodes from demonstrated states")
        super().__init__(env)
        self.data, self.fraction, self._restore = data, fraction, env.restore
        self.is_demonstrated = torch.zeros(self.rows, dtype=torch.bool)
        self.ends = np.cumsum([len(episode) for episode in data])
        if not len(self.ends) or not self.ends[-1]:
            raise UserError("the data has no steps to start from", where="DemoStateReset.data",
                            hint="record some: rollout(env.expert(), env, 20)")

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        drawn = uniform(key, torch.zeros_like(key), (2,), stream=10).numpy()
        chosen = np.flatnonzero(drawn[:, 0] < self.fraction)
        self.is_demonstrated = self.is_demonstrated.clone()
        self.is_demonstrated[which] = torch.from_numpy(drawn[:, 0] < self.fraction)
        if not len(chosen):
            return obs
        steps = (drawn[chosen, 1] * self.ends[-1]).astype(np.int64)
        rows = [self._recorded_step(step) for step in steps]
        columns = {k: torch.from_numpy(np.stack([row[k] for row in rows])) for k in rows[0]}
        return self._restore(which[chosen], columns, key[chosen])

    def step(self, action):
        out = self.env.step(action)
        return replace(out, info={**out.info, DEMONSTRATED_START: self.is_demonstrated})

    def _recorded_step(self, step: int) -> dict[str, np.ndarray]:
        number = int(np.searchsorted(self.ends, step, side="right"))
        episode: Episode = self.data[number]
        t = step - (self.ends[number] - len(episode))
        names = [k for k, f in episode.features().items()
                 if role(k) not in ("action", "outcome") and f.kind not in ("image", "string")]
        return {k: np.array(episode.steps[k][t]) for k in names}


class RepeatedStarts(EnvWrapper):
    """Wraps an environment so that several episodes in turn have the same start, to compare their returns.

    What the environment draws later is the same, too, if it draws from the key of the episode.

    Args:
        n_repeats: Number of episodes from each start.
    """

    def __init__(self, env: Env, n_repeats: int):
        super().__init__(env)
        self.n_repeats, self.keys_of_starts = n_repeats, torch.zeros(0, dtype=torch.int64)

    def reset(self, which, key):
        n = len(self.keys_of_starts)
        all_keys = torch.cat([self.keys_of_starts, key])
        self.keys_of_starts = all_keys[torch.arange(len(all_keys)) // self.n_repeats * self.n_repeats]
        return self.env.reset(which, self.keys_of_starts[n:])


class FixedHorizonEnv(EnvWrapper):
    """Wraps an environment so that all episodes last until the limit, and their length tells nothing about success.

    After the end of an episode of `env`, its last observation is shown until the limit, and the reward is 0.

    Args:
        limit: Number of steps of every episode. None: the time limit of `env`.

    References:
        Gleave et al. (2020), seals: Suite of Environments for Algorithms that Learn Specifications.
    """

    def __init__(self, env: Env, limit: int | None = None):
        super().__init__(env)
        time_limit = limit or env.metadata.get("limit")
        if not time_limit:
            raise UserError(f"{env.metadata['env']} has no time limit", where="FixedHorizonEnv",
                            hint="give the number of steps: FixedHorizonEnv(env, limit=100)")
        self.limit = int(time_limit)
        self.metadata = {**self.metadata, "limit": self.limit}
        self.clock = torch.zeros(self.rows, dtype=torch.int64)
        self.is_over = torch.zeros(self.rows, dtype=torch.bool)
        self.last: StepResult | None = None  # of each row; once its episode has ended, the last result of the episode

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        self.clock, self.is_over = self.clock.clone(), self.is_over.clone()
        self.clock[which], self.is_over[which] = 0, False
        if self.last is None:
            return obs
        last_obs = put(self.last.obs, which, take(obs, which))
        self.last = replace(self.last, obs=last_obs)
        return last_obs

    def step(self, action):
        out, over = self.env.step(action), self.is_over
        if self.last is not None:
            out = replace(out, obs={k: rows_where(over, self.last.obs[k], v) for k, v in out.obs.items()}, info={
                k: rows_where(over, self.last.info[k], v) if k in self.last.info else v for k, v in out.info.items()})
        self.clock, self.is_over = self.clock + 1, over | out.terminated | out.truncated
        self.last = replace(out, reward=torch.where(over, 0.0, out.reward), terminated=torch.zeros_like(over),
                            truncated=self.clock >= self.limit)
        return self.last


class MultiTrialEnv(EnvWrapper):
    """Wraps an environment so that one episode is several trials, and a policy with memory can learn between them.

    The column `observation.new_trial` (1) is 1 at the first step of each trial. The observation after the last step of
    a trial is not shown, since the first observation of the next trial takes its place. The episode succeeds if its
    last trial does. The metadata `trial_1_success`, `trial_2_success`, ... tell whether there was success at any step
    of each trial, and `successful_trials` counts the successful ones.

    Args:
        redraw: Whether each trial has another start. False: every trial starts as the first trial did.

    References:
        Duan et al. (2016), RL²: Fast Reinforcement Learning via Slow Reinforcement Learning, arXiv:1611.02779.
    """

    def __init__(self, env: Env, n_trials: int, redraw: bool = True):
        if n_trials < 1:
            raise UserError(f"n_trials is {n_trials}", where="MultiTrialEnv", hint="an episode has at least 1 trial")
        super().__init__(env)
        self.n_trials, self.redraw = n_trials, redraw
        self.features = {**env.features, NEW_TRIAL: Feature("float32", (1,))}
        limit, success = env.metadata.get("limit"), env.metadata.get("success")
        self.metadata = {**self.metadata, "limit": limit and limit * n_trials,
                         "success": success and f"{success}, in the last trial"}
        self.key = torch.zeros(self.rows, dtype=torch.int64)
        self.trial, self.successes = torch.zeros_like(self.key), torch.zeros(self.rows, n_trials, dtype=torch.bool)
        self.is_new = torch.zeros(self.rows, dtype=torch.bool)

    def reset(self, which, key):
        self.key, self.trial, self.successes = self.key.clone(), self.trial.clone(), self.successes.clone()
        self.key[which], self.trial[which], self.successes[which] = key, 0, False
        self.is_new = self.is_new.clone()
        self.is_new[which] = True
        return self._show(self._start_trial(which))

    def step(self, action):
        out = self.env.step(action)
        ended, is_last = out.terminated | out.truncated, self.trial + 1 >= self.n_trials
        info, obs = dict(out.info), out.obs
        if "success" in info:
            self.successes = self.successes.clone()
            self.successes[torch.arange(self.rows), self.trial] |= info["success"]
            info |= {"success": info["success"] & is_last, "successful_trials": self.successes.sum(1)}
            info |= {trial_success_key(i): self.successes[:, i] for i in range(self.n_trials)}
        self.is_new = ended & ~is_last
        self.trial = self.trial + self.is_new
        if len(which := self.is_new.nonzero().flatten()):
            obs = self._start_trial(which)
        return replace(out, obs=self._show(obs), terminated=out.terminated & is_last,
                       truncated=out.truncated & is_last, info=info)

    def _start_trial(self, which: Tensor) -> Obs:
        """Starts a new trial in some rows, drawn with the key of the episode and the number of the trial."""
        numbers = zip(self.key[which].tolist(), self.trial[which].tolist(), strict=True)
        drawn = [keys(key, [trial]) if trial and self.redraw else torch.tensor([key]) for key, trial in numbers]
        return self.env.reset(which, torch.cat(drawn))

    def _show(self, obs: Obs) -> Obs:
        return {**obs, NEW_TRIAL: self.is_new[:, None].float()}


def trial_success_key(trial: int) -> str:
    """Returns the metadata key of an episode that tells whether a trial succeeded.

    Args:
        trial: Number of the trial, from 0 on.
    """
    return f"trial_{trial + 1}_success"
