"""Environment wrappers with changed actions and observations, or learned rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..core import Batch, State, Unsupported, UserError, put, take
from ..execute.actor import LAST_REWARD
from ..execute.wrappers import ActionWrapper, wrapped_env_name
from ..learn.rewards.discriminator_reward import Discriminator
from ..learn.rewards.reward_models import RewardModel
from ..learn.targets import REWARD, TERMINATED
from .base import Env, EnvWrapper, Obs, StepResult


class WrappedEnv(EnvWrapper):
    """Environment that includes an `ActionWrapper`, in which its actor learns.

    One step is `wrapper.period` steps of `env`. The reward is their discounted sum, which ends with the episode. Time
    limits and steps per second are divided by the period. `WrappedActor(actor, wrapper)` gives the same episodes in
    `env`: bit for bit if the period is 1, and with the same outcomes if it is longer.

    Args:
        discount: Discount per step of `env`. The discount of a learner is per action: ``discount**period``.
    """

    def __init__(self, env: Env, wrapper: ActionWrapper, discount: float = 1.0):
        if wrapper.period < 1:
            raise UserError(f"the period is {wrapper.period}", where=type(wrapper).__name__,
                            hint="an action lasts at least 1 step")
        self.env, self.wrapper, self.discount, self.rows = env, wrapper, discount, env.rows
        self.features = dict(wrapper.features(env.features))
        metadata = {k: v for k, v in env.metadata.items() if k not in ("low", "high")}
        if metadata.get("fps"):
            metadata["fps"] /= wrapper.period
        if metadata.get("limit"):
            metadata["limit"] = math.ceil(metadata["limit"] / wrapper.period)
        if (limits := wrapper.action_limits()) is not None:
            metadata["low"], metadata["high"] = limits
        self.metadata = {**metadata, "env": wrapped_env_name(env.metadata["env"], wrapper)}
        self.state: State | None = None
        self.last_obs: Obs = {}  # what `env` showed; of a row that has ended, what it showed last
        self.shown: Obs = {}  # what the actor observes of it
        self.reward = torch.zeros(env.rows)

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        self.reward = self.reward.clone()
        self.reward[which] = 0
        if self.state is None:  # the other rows are reset before anyone reads them
            everyone = torch.zeros(self.rows, dtype=key.dtype)
            everyone[which] = key
            self.last_obs = dict(obs)
            self.shown, self.state = self._transform_obs(self.wrapper.start(self._wrapper_obs(), everyone))
            return self.shown
        self.last_obs = put(self.last_obs, which, take(obs, which))
        state = put(self.state, which, self.wrapper.start(take(self._wrapper_obs(), which), key))
        # All rows together, as in a step: products of matrices differ in their last bits with the number of rows.
        transformed, state = self._transform_obs(state)
        self.shown = put(self.shown, which, take(transformed, which))
        self.state = put(self.state, which, take(state, which))
        return self.shown

    def step(self, action):
        reward, going = torch.zeros(self.rows), torch.ones(self.rows, dtype=torch.bool)
        terminated = truncated = torch.zeros(self.rows, dtype=torch.bool)
        info: dict[str, Tensor] = {}
        assert self.state is not None  # since `reset`
        for i in range(self.wrapper.period):
            done, self.state = self.wrapper.transform_action(self._wrapper_obs(), action, self.state)
            out = self.env.step(done)
            reward = reward + going * (self.discount**i * out.reward)
            terminated, truncated = terminated | going & out.terminated, truncated | going & out.truncated
            info = _joined_info(info, out.info, going)
            self.last_obs = _where_rows(going, out.obs, self.last_obs)
            self.reward = torch.where(going, out.reward, self.reward)
            transformed, self.state = self._transform_obs(self.state)
            self.shown = _where_rows(going, transformed, self.shown)
            going = ~(terminated | truncated)  # what happens after the end of an episode does not count
            if not going.any():
                break
            if i + 1 < self.wrapper.period and (self.wrapper.is_terminated(self.state) & going).any():
                if self.rows == 1:
                    break
                raise Unsupported("an action ended before its period, and the other rows cannot wait for a new one",
                                  where=self.metadata["env"], hint="use one row, or WrappedActor")
        return StepResult(self.shown, reward, terminated, truncated, info)

    def _wrapper_obs(self) -> Obs:
        return {**self.last_obs, LAST_REWARD: self.reward}

    def _transform_obs(self, state: State) -> tuple[Obs, State]:
        transformed, state = self.wrapper.transform_obs(self._wrapper_obs(), state)
        return {k: v for k, v in transformed.items() if k != LAST_REWARD}, state


class LearnedRewardEnv(EnvWrapper):
    """Wraps an environment so that a reward model computes its rewards.

    Args:
        model: The reward model of a training: `load_modules(RUN)["reward"]`.

    Example:
        >>> env = LearnedRewardEnv(make("fork", 16), load_modules("runs/dac")["reward"])
    """

    def __init__(self, env: Env, model: RewardModel):
        super().__init__(env)
        if (n := model.about.window.n_obs_steps) > 1:
            raise Unsupported(f"the reward model reads {n} observations, and an environment shows one",
                              where="LearnedRewardEnv", hint="train the reward with a window of n_obs_steps=1")
        if model.annotations and not isinstance(model, Discriminator):  # only its loss reads annotations
            raise Unsupported(f"{type(model.about.config).__name__} gives rewards to episodes once they are over",
                              where="LearnedRewardEnv", hint="use a reward of steps, such as DiscriminatorReward")
        model.check_columns(env.features, str(env.metadata["env"]))
        self.model, self.obs = model.eval(), dict[str, Tensor]()

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        self.obs = put(self.obs, which, take(obs, which)) if self.obs else dict(obs)
        return obs

    def step(self, action):
        out = self.env.step(action)
        before, after = ({k: obs[k][:, None] for k in self.model.inputs} for obs in (self.obs, out.obs))
        batch = Batch(before, action[:, None].float(), torch.ones(self.rows, 1, dtype=torch.bool),
                      {REWARD: out.reward[:, None], TERMINATED: out.terminated[:, None]}, after)
        self.obs = dict(out.obs)
        with torch.no_grad():  # row by row, so that a reward does not depend on how many there are
            rows = [self.model.reward(batch.select_rows(slice(i, i + 1)), None)[0, 0] for i in range(self.rows)]
        return replace(out, reward=torch.stack(rows).float())


def _joined_info(before: Mapping[str, Tensor], new: Mapping[str, Tensor], going: Tensor) -> dict[str, Tensor]:
    """Joins infos of several steps: success counts at any step, and of everything else the last value."""
    joined = dict(before)
    for name, value in new.items():
        if name == "success":
            joined[name] = before.get(name, torch.zeros_like(value)) | going & value
        else:
            joined[name] = rows_where(going, value, before[name]) if name in before else value
    return joined


def _where_rows(rows: Tensor, new: Obs, old: Obs) -> Obs:
    return {k: rows_where(rows, v, old[k]) for k, v in new.items()}


def rows_where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Returns `new` in the rows where the mask, (B,) bool, is true, and `old` elsewhere."""
    return torch.where(rows.reshape(-1, *[1] * (new.dim() - 1)), new, old)
