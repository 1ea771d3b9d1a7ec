from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Below, Schema, part
from ...data.episode import Dataset
from ...learn.critics.goal_conditioned import VALUE_GOAL, GoalValues, ScoreMaximizingLearner, goal_conditioned_method
from ...learn.method import Method
from ...learn.targets import expectile_loss
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method


@part
class GCIQL(GoalValues):
    """Goal-conditioned implicit Q-learning, whose policy follows the gradient of the critic.

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

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> GCIQLLearner:
        return GCIQLLearner(self, policy, seed, steps)


class GCIQLLearner(ScoreMaximizingLearner):
    """Learner of `GCIQL`."""

    config: GCIQL

    def __init__(self, config: GCIQL, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        self.alpha = config.alpha
        value = replace(config.critic, n_critics=1).build(policy, action=False)
        self.register("policy", policy, config.optimizer)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.value = self.register("value", value, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.policy_loss, batch)
        self.minimize("critic", self.critic_loss, batch)
        self.minimize("value", self.value_loss, batch)
        return self.end_update()

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against the reward and the value that follows, summed over the networks, (B,)."""
        assert batch.next is not None
        reached = batch.extra[f"{VALUE_GOAL}.reached"].squeeze(1)
        with torch.no_grad():
            next_value = self.value(self.toward(batch.next, VALUE_GOAL), batch.action)
        target = reached.float() - 1 + self.config.discount * ~reached * next_value
        return (self.critic.scores(self.toward(batch.obs, VALUE_GOAL), batch.action) - target).square().sum(0)

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the expectile loss against the lowest score of the stored action, (B,)."""
        obs = self.toward(batch.obs, VALUE_GOAL)
        with torch.no_grad():
            target = self.target_critic(obs, batch.action)
        score = self.value(obs, batch.action)
        self.log(score=score)
        return expectile_loss(target - score, self.config.expectile)

    def score(self, obs, coded_action):
        return self.critic(obs, self.policy.decode(coded_action, obs))


@method("Park et al. 2025 (OGBench), arXiv 2410.20092, with the policy loss of TD3+BC", needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, and the stored actions are worse than those that the policy can find.")
def gciql(column: str = "observation.state", alpha: float = 0.3, features: Schema | None = None) -> Method:
    """Goal-conditioned implicit Q-learning: a critic of actions for each goal, which the policy maximizes."""
    return goal_conditioned_method(GCIQL(alpha=alpha), column, features)
