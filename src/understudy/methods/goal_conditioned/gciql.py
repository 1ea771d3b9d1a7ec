from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Below, part
from ...data.episode import Dataset
from ...learn.algorithm import Net, loss
from ...learn.critics.goal_conditioned import VALUE_GOAL, GoalValues, ScoreMaximizing, toward
from ...learn.targets import expectile_loss
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method


@method("Park et al. 2025 (OGBench), arXiv 2410.20092, with the policy loss of TD3+BC", needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, and the stored actions are worse than those that the policy can find.")
@part
class GCIQL(ScoreMaximizing, GoalValues):
    """Goal-conditioned implicit Q-learning: a critic of actions for each goal, which the policy maximizes.

    Args:
        target_decay: Fraction of the target networks that each update keeps.
        expectile: Which expectile of the critic's scores of stored actions the value learns. 0.5 is their mean.
        alpha: Weight of the loss of the stored actions, relative to a score of mean absolute value 1.

    References:
        Kostrikov et al. (2022), Offline Reinforcement Learning with Implicit Q-Learning, arXiv:2110.06169.
    """

    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    expectile: Annotated[float, Above(0), Below(1)] = 0.9
    alpha: Annotated[float, AtLeast(0)] = 0.3

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared = super().networks(policy, data)
        value = replace(self.critic, n_critics=1).build(policy, action=False)
        return {**declared, "critic": Net(self.critic.build(policy), self.optimizer, target=self.target_decay),
                "value": Net(value, self.optimizer)}

    def score(self, nets, obs, coded_action):
        return nets.critic(obs, nets.policy.decode(coded_action, obs))

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against the reward and the value that follows, summed over the networks, (B,)."""
        assert batch.next is not None
        reached = batch.extra[f"{VALUE_GOAL}.reached"].squeeze(1)
        with torch.no_grad():
            next_value = nets.value(toward(nets.policy, batch.next, VALUE_GOAL), batch.action)
        target = reached.float() - 1 + self.discount * ~reached * next_value
        scores = nets.critic.scores(toward(nets.policy, batch.obs, VALUE_GOAL), batch.action)
        return (scores - target).square().sum(0)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the expectile loss against the lowest score of the stored action, (B,)."""
        obs = toward(nets.policy, batch.obs, VALUE_GOAL)
        with torch.no_grad():
            target = nets.target.critic(obs, batch.action)
        score = nets.value(obs, batch.action)
        return expectile_loss(target - score, self.expectile), {"score": score}
