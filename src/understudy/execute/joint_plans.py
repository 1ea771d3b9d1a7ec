"""Planner that acts by a policy whose plans are actions and later observations together."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from ..core import Unsupported, UserError, part
from ..heads.denoising.joint_diffusion import JointDiffusion
from ..policy import Planner, Policy, sampling_guides
from .planners import PlannerWrapper, Unresolved


@part
class JointPlanner(PlannerWrapper):
    """Planner that keeps the actions of a policy that predicts actions and later observations (`JointDiffusion`).

    Args:
        planner: The policy. The first components of its target are the action.
        mode: The mode of its head while acting. ``"policy"`` samples the actions alone, and ``"joint"`` samples them
            together with the observations that they lead to. The mode in the config of the head is that of validation.

    References:
        Guo et al. (2024), Prediction with Action (PAD), arXiv:2411.18179.
        Zhu et al. (2025), Unified World Models, arXiv:2504.02792.
    """

    planner: Planner | Unresolved = None
    mode: Literal["policy", "joint"] = "policy"

    def check_modules(self):
        head = self.planner.config.head if isinstance(self.planner, Policy) else self.planner
        if not isinstance(head, JointDiffusion):
            raise UserError(f"it needs a policy with the head JointDiffusion, and not {type(head).__name__}",
                            where="JointPlanner", hint="train the policy with JointDiffusion, and make JointPlanner "
                                                       "the first of Method.inference")
        replace(head, mode=self.mode)  # raises an error if the head was trained for another mode

    @property
    def _head(self) -> JointDiffusion:
        return cast(JointDiffusion, replace(cast(Policy, self.planner).config.head, mode=self.mode))

    @property
    def action_dim(self):
        return self._head.action_size

    @property
    def action_scale(self):
        return self.planner.action_scale[:self.action_dim]

    encode, decode = Planner.encode, Planner.decode  # actions without observations have no code

    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            raise Unsupported("guides of actions cannot change a plan of actions and observations",
                              where="JointPlanner", hint="use an executor without guides, such as RecedingHorizon")
        policy = cast(Policy, self.planner)
        return policy.decode(self._head.sample(policy.net, policy.context(obs), noise), obs)[..., :self.action_dim]
