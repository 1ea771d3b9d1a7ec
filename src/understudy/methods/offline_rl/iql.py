from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Below, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import Net, loss, prepare
from ...learn.critics.critic_learning import CriticLearning, critic_method
from ...learn.method import Method
from ...learn.targets import expectile_loss
from ...policy import Policy
from ..needs import NUMBERS_OR_CLASSES, STEP_REWARDS
from ..registry import method


@method("Kostrikov et al. 2022 (IQL), arXiv 2110.06169", needs=(NUMBERS_OR_CLASSES, STEP_REWARDS),
        when="if there are rewards, some episodes are better than others, and no environment is at hand.")
@part
class IQL(CriticLearning):
    """Implicit Q-learning: clones the stored actions that are better than others, by values learned from rewards.

    A value network learns an expectile of the critic's scores of the stored actions, which is close to the score of the
    best stored action. The critic learns rewards plus the value of what follows. The policy clones actions, weighted by
    ``exp(beta * advantage)``. The learning rate of the policy is constant; in the paper it falls to 0 as a cosine. The
    standard deviation of `Gaussian` depends on the observation; in the paper it does not.

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

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(choose_head(features, Gaussian()), self, features)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        self.critic.check_no_subset()
        value = replace(self.critic, n_critics=1).build(policy, action=False)
        return {"value": Net(value, self.optimizer), **super().networks(policy, data)}

    @prepare
    def scored(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Adds the target critic's score of the stored actions, (B,), as the column "score"."""
        return batch.replace(extra={**batch.extra, "score": nets.target.critic(batch.obs, batch.action)})

    def advantage(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the score of the stored actions minus the value of their observation, (B,)."""
        return batch.extra["score"] - nets.value(batch.obs)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return expectile_loss(self.advantage(nets, batch), self.expectile)

    def target(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the rewards and the value that follows, which the critic learns, (B,)."""
        return self.bootstrapped(batch, nets.value(batch.next))

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target = self.target(nets, batch)
        scores = nets.critic.scores(batch.obs, batch.action)
        return (scores - target).square().sum(0), {"score": scores.mean(0)}

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return (self.beta * self.advantage(nets, batch)).exp().clamp(max=self.max_weight)

    @loss("policy", weights="weight", normalize="rows")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)
