"""Implicit Q-learning: values of the better actions in the data, and cloning weighted by advantages."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Below, part
from ...data.episode import Dataset
from ...policy import Policy
from ..gradient_learner import GradientLearner
from ..targets import expectile_loss, td_terms
from .critic_learning import CriticLearningConfig, check_plans_begin_now


@part
class IQL(CriticLearningConfig):
    """Implicit Q-learning: offline reinforcement learning that never scores an action that is not in the data.

    A value network learns an expectile of the critic's scores of the stored actions, which is close to that of the best
    of them. The critic learns rewards plus the value of what follows. The policy clones actions, weighted by
    ``exp(beta * advantage)``. Its learning rate is constant, where the paper's falls to 0 as a cosine, and the standard
    deviation of `Gaussian` depends on the observation, where the paper's does not.

    Args:
        expectile: 0.5 learns the value of the behavior in the data, and values towards 1 that of its best actions.
        beta: Inverse temperature of the weights, in units of 1 / return. 0 is cloning.
        max_weight: Upper bound of a weight.

    References:
        Kostrikov et al. (2022), Offline Reinforcement Learning with Implicit Q-Learning, arXiv:2110.06169.
    """

    expectile: Annotated[float, Above(0), Below(1)] = 0.7
    beta: Annotated[float, AtLeast(0)] = 3.0
    max_weight: Annotated[float, Above(0)] = 100.0

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> IQLLearner:
        return IQLLearner(self, policy, seed, steps, data)


class IQLLearner(GradientLearner):
    """Learner of `IQL`."""

    config: IQL

    def __init__(self, config: IQL, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        check_plans_begin_now(policy, type(config).__name__)
        config.critic.check_no_subset()
        single = replace(config.critic, n_critics=1)
        self.value = self.register("value", single.build(policy, action=False), config.optimizer)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.bound = self.score_bound(data, config.discount)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = self.scored(batch.to(self.device))
        self.minimize("value", self.value_loss, batch)
        self.minimize("critic", self.critic_loss, batch)
        with self.evaluation():
            weights = (self.config.beta * self.advantage(batch)).exp().clamp(max=self.config.max_weight)
        self.minimize("policy", self.policy_loss, batch, weights, normalize="rows")
        metrics = self.end_update(weight=weights.mean().item())
        self.check(metrics["critic/score"], batch)
        return metrics

    def check(self, score: float, batch: Batch) -> None:
        """Raises UserError if the mean score of the critic is beyond what a return can be."""
        self.bound.check(score, batch, self.n_updates)

    def scored(self, batch: Batch) -> Batch:
        """Returns the batch with the target critic's score of the stored actions, (B,), as the column "score"."""
        with torch.no_grad():
            return batch.replace(extra={**batch.extra, "score": self.target_critic(batch.obs, batch.action)})

    def advantage(self, batch: Batch) -> Tensor:
        """Returns the score of the stored actions minus the value of their observation, (B,)."""
        return batch.extra["score"] - self.value(batch.obs)

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the expectile loss of the value of each observation, (B,)."""
        return expectile_loss(self.advantage(batch), self.config.expectile)

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy at each step, (B, H), which `advantage` weights."""
        return self.policy.loss(batch, rng)

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against `target`, summed over the networks, (B,)."""
        with torch.no_grad():
            target = self.target(batch)
        scores = self.critic.scores(batch.obs, batch.action)
        self.log(score=scores.mean(0))
        return (scores - target).square().sum(0)

    def target(self, batch: Batch) -> Tensor:
        """Returns the rewards and the value that follows, which the critic learns, (B,)."""
        reward, bootstrap = td_terms(batch, self.config.discount)
        return reward + bootstrap * self.value(batch.next)
