from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, AtMost, Batch, UserError, part
from ...data.episode import Dataset
from ...learn.algorithm import Net, first, loss, prepare
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.critics.off_policy_actor_critic import policy_is_due
from ...learn.critics.td3 import TD3
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.rewards.reward_models import RewardModelConfig
from ...learn.rewards.transport_reward import OptimalTransportReward
from ...policy import Policy
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil

CLONE_WEIGHT = "clone_weight"


@method("Haldar et al. 2022 (ROT), arXiv 2206.15469, without its encoder of pictures",
        rows=("302",), needs=(NUMBERS, ENDS, "an environment"),
        when="if there are a few demonstrations and an environment, and practice begins from a cloned policy.")
@part
class ROT(TD3):
    """TD3 from a cloned policy, with rewards of optimal transport and as much cloning as the critic finds better.

    It clones the demonstrations with the weight `bc_weight` times w. The critic's score has the weight 1 - w. w is the
    fraction of the policy's own observations at which the critic scores the action of the clone higher than the action
    of the policy (soft Q-filter). Without a clone, w is `fixed_weight`.

    Args:
        clone: The policy that a stage cloned.
        fixed_weight: w without a clone. 0 learns from the reward alone.

    References:
        Haldar et al. (2022), Watch and Match: Supercharging Imitation with Regularized Optimal Transport,
        arXiv:2206.15469.
    """

    bc_weight: Annotated[float, AtLeast(0)] = 1.5
    reward: RewardModelConfig | FromStage | None = OptimalTransportReward()
    clone: FromStage | None = FromStage("clone")
    fixed_weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.0

    def method(self, n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1) -> Method:
        base = pwil(n_rounds, n_episodes, noise)
        return replace(base, learner=self, stages=(Stage("clone", Method(base.policy, learner=BehaviorCloning(5000))),),
                       initialize_from=(InitializeFrom(FromStage("clone")),))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not self.compares:
            raise UserError("cloning needs demonstrations beside each batch", where="ROT.reward",
                            hint="use a reward that compares with them, such as OptimalTransportReward()")
        return super().networks(policy, data)

    @first
    @prepare
    def filtered(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Batch, dict[str, Tensor]]:
        """Adds w as the column `CLONE_WEIGHT`, (B,)."""
        weight, scores = torch.tensor(self.fixed_weight, device=rng.device), []
        if isinstance(self.clone, Policy):
            for policy in (self.clone, nets.policy):
                coded = nets.policy.clip(policy.sample(policy.context(batch.obs), rng))
                scores.append(nets.critic(batch.obs, policy.decode(coded, batch.obs)))
            weight = (scores[0] > scores[1]).float().mean()
        batch = batch.replace(extra={**batch.extra, CLONE_WEIGHT: weight.expand(len(batch))})
        return batch, {CLONE_WEIGHT: weight}

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy for each row, (B,), with distances in coded units."""
        policy, weight = nets.policy, batch.extra[CLONE_WEIGHT]
        coded = policy.sample(policy.context(batch.obs), rng)
        inside = policy.clip(coded)
        score = nets.critic(batch.obs, policy.decode(inside, batch.obs))
        expert = batch.others["expert"]
        cloned = policy.sample(policy.context(expert.obs), rng)
        error = (cloned - policy.encode_batch(expert)) * expert.mask.unsqueeze(-1)
        distance = error.square().sum((1, 2))
        beyond = (coded - inside).square().mean((1, 2))
        return self.bc_weight * weight * distance - (1 - weight) * score + beyond
