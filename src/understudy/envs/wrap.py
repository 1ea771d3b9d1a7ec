"""A frozen actor turns one environment into another: a learner of any kind then does residuals or steering, and knows
nothing of either."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..core import Feature, UserError, put, take
from ..execute.actor import Actor
from ..policy import Planner
from .base import Env, Outcome

BASE = "observation.base"


class Residual(Env):
    """Actions are corrections, times `scale`, to what `base` would do, which is shown as observation.base (ResiP,
    Ankile et al. 2024; Policy Decorator, Yuan et al. 2024)."""

    def __init__(self, env: Env, base: Actor, scale: float = 0.1):
        self.env, self.base, self.scale, self.rows, self.state = env, base, scale, env.rows, None
        action = env.features["action"]
        if action.kind != "vector":
            raise UserError(f"expected actions that are numbers, found {action.kind}", where=env.facts["env"],
                            do="a choice has no small correction")
        self.features = {**env.features, BASE: replace(action)}
        self.facts = {**env.facts, "env": f"{env.facts['env']}+residual", "low": -1.0, "high": 1.0}

    def _show(self, obs):
        return {**obs, BASE: self.plan.clone()}

    def _act(self, obs, state):
        plan, state = self.base.act(obs, state)
        return plan, {k: v for k, v in state.items() if k != "record"}

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        if self.state is None:  # the others will be reset before anyone reads them
            everyone = torch.zeros(self.rows, dtype=key.dtype)
            everyone[which] = key
            self.plan, self.state = self._act(obs, self.base.start(obs, everyone))
            return self._show(obs)
        mine = take(obs, which)
        plan, state = self._act(mine, self.base.start(mine, key))
        self.plan, self.state = put(self.plan, which, plan), put(self.state, which, state)
        return self._show(obs)

    def step(self, action):
        out = self.env.step(self.plan + self.scale * action)
        self.plan, self.state = self._act(out.obs, self.state)
        return replace(out, obs=self._show(out.obs))

    def close(self):
        self.env.close()


class Steer(Env):
    """Actions are the noise of a frozen policy, one chunk a step, of which `execute` steps are carried out (DSRL,
    Wagenmaker et al. 2025). `bound`: noise is clipped to it, since farther out the policy has never been."""

    def __init__(self, env: Env, policy: Planner, execute: int, bound: float = 1.5):
        if policy.window.obs != 1 or policy.window.ahead != 0:
            raise UserError(f"expected a policy that sees 1 step and plans from now, found {policy.window}",
                            where="Steer", do="train it with Window(obs=1, ahead=0)")
        if not 1 <= execute <= policy.window.horizon:
            raise UserError(f"expected execute from 1 to {policy.window.horizon}, found {execute}", where="Steer",
                            do="fewer steps, or a policy of a longer horizon")
        self.env, self.policy, self.execute, self.bound, self.rows = env, policy, execute, bound, env.rows
        none = torch.zeros(1, dtype=torch.int64, device=policy.device)
        self.shape = tuple(policy.noise(none, none).shape[1:])
        self.features = {**env.features, "action": Feature("float32", (math.prod(self.shape),))}
        every = {k: env.facts[k] / execute for k in ("fps", "limit") if env.facts.get(k)}
        if "limit" in every:
            every["limit"] = math.ceil(every["limit"])
        self.facts = {**env.facts, **every, "env": f"{env.facts['env']}+steer", "low": -bound, "high": bound}

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
        for i in range(1, self.execute):
            out = self.env.step(plan[:, i])
            going = ~(terminated | truncated)  # what happens to a row after its end is not its
            reward = reward + going * out.reward
            terminated, truncated = terminated | going & out.terminated, truncated | going & out.truncated
            info = {k: info.get(k, torch.zeros_like(v)) | going & v if k == "success" else _where(going, v, info[k])
                    for k, v in out.info.items()}
            last = {k: _where(going, v, last[k]) for k, v in out.obs.items()}
        self.seen = last
        return Outcome(last, reward, terminated, truncated, info)

    def close(self):
        self.env.close()


def _where(rows, new, old):
    return torch.where(rows.reshape(-1, *[1] * (new.dim() - 1)), new, old)
