"""A frozen actor turns one environment into another: a learner of any kind then does residuals or steering, and knows
nothing of either."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..core import Feature, Unsupported, UserError, put, take
from ..execute.actor import Actor
from ..policy import Planner
from .base import Env, StepResult

BASE_ACTION = "observation.base"


class ResidualWrapper(Env):
    """Actions are corrections, times `scale`, to what `base` would do, which is shown as observation.base (ResiP,
    Ankile et al. 2024; Policy Decorator, Yuan et al. 2024)."""

    def __init__(self, env: Env, base: Actor, scale: float = 0.1):
        self.env, self.base, self.scale, self.rows, self.state = env, base, scale, env.rows, None
        action = env.features["action"]
        if action.kind != "vector":
            raise UserError(f"expected actions that are numbers, found {action.kind}", where=env.metadata["env"],
                            hint="a choice has no small correction")
        self.features = {**env.features, BASE_ACTION: replace(action)}
        self.metadata = {**env.metadata, "env": f"{env.metadata['env']}+residual", "low": -1.0, "high": 1.0}

    def _add_base_action(self, obs):
        return {**obs, BASE_ACTION: self.plan.clone()}

    def _base_action(self, obs, state):
        plan, state = self.base.act(obs, state)
        return plan, {k: v for k, v in state.items() if k != "record"}

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        if self.state is None:  # the others will be reset before anyone reads them
            everyone = torch.zeros(self.rows, dtype=key.dtype)
            everyone[which] = key
            self.plan, self.state = self._base_action(obs, self.base.start(obs, everyone))
            return self._add_base_action(obs)
        mine = take(obs, which)
        plan, state = self._base_action(mine, self.base.start(mine, key))
        self.plan, self.state = put(self.plan, which, plan), put(self.state, which, state)
        return self._add_base_action(obs)

    def step(self, action):
        out = self.env.step(self.plan + self.scale * action)
        self.plan, self.state = self._base_action(out.obs, self.state)
        return replace(out, obs=self._add_base_action(out.obs))

    def close(self):
        self.env.close()


class NoiseSteeringWrapper(Env):
    """Actions are the noise of a frozen policy, one chunk a step, of which `execute` steps are carried out (DSRL,
    Wagenmaker et al. 2025). `bound`: noise is clipped to it, since farther out the policy has never been."""

    def __init__(self, env: Env, planner: Planner, n_action_steps: int, bound: float = 1.5):
        if planner.window.n_obs_steps != 1 or planner.window.action_offset != 0:
            raise UserError(f"expected a policy that sees 1 step and plans from now, found {planner.window}",
                            where="Steer", hint="train it with Window(n_obs_steps=1, action_offset=0)")
        if not 1 <= n_action_steps <= planner.window.horizon:
            raise UserError(
                f"expected execute from 1 to {planner.window.horizon}, found {n_action_steps}",
                where="Steer",
                hint="fewer steps, or a policy of a longer horizon",
            )
        self.env, self.policy, self.n_action_steps, self.bound, self.rows = (
            env,
            planner,
            n_action_steps,
            bound,
            env.rows,
        )
        none = torch.zeros(1, dtype=torch.int64, device=planner.device)
        noise = planner.noise(none, none)
        if not isinstance(noise, torch.Tensor):
            raise Unsupported(f"{type(planner).__name__} draws the noise of several planners.",
                              where="NoiseSteeringWrapper",
                              hint="Steer a single policy.")
        self.shape = tuple(noise.shape[1:])
        self.features = {**env.features, "action": Feature("float32", (math.prod(self.shape),))}
        every = {k: env.metadata[k] / n_action_steps for k in ("fps", "limit") if env.metadata.get(k)}
        if "limit" in every:
            every["limit"] = math.ceil(every["limit"])
        self.metadata = {**env.metadata, **every, "env": f"{env.metadata['env']}+steer", "low": -bound, "high": bound}

    def reset(self, which, key):
        self.seen = self.env.reset(which, key)
        return self.seen

    @torch.no_grad()
    def step(self, action):
        device = self.policy.device
        window = {k: self.seen[k].unsqueeze(1).to(device) for k in self.policy.inputs}
        noise = action.clamp(-self.bound, self.bound).unflatten(1, self.shape).to(device)
        plan = self.policy.plan(window, noise).cpu()
        out = self.env.step(plan[:, 0])
        reward, terminated, truncated, info = out.reward, out.terminated, out.truncated, dict(out.info)
        last = dict(out.obs)
        for i in range(1, self.n_action_steps):
            out = self.env.step(plan[:, i])
            going = ~(terminated | truncated)  # what happens to a row after its end is not its
            reward = reward + going * out.reward
            terminated, truncated = terminated | going & out.terminated, truncated | going & out.truncated
            info = {
                k: info.get(k, torch.zeros_like(v)) | going & v if k == "success" else _where_rows(going, v, info[k])
                for k, v in out.info.items()
            }
            last = {k: _where_rows(going, v, last[k]) for k, v in out.obs.items()}
        self.seen = last
        return StepResult(last, reward, terminated, truncated, info)

    def close(self):
        self.env.close()


def _where_rows(rows, new, old):
    return torch.where(rows.reshape(-1, *[1] * (new.dim() - 1)), new, old)
