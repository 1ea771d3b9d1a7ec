from __future__ import annotations

from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import AtLeast, Batch, part
from ...data.episode import Dataset
from ...learn.algorithm import Net, loss
from ...learn.critics.goal_conditioned import ImplicitValues, goal_of, toward
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method


@method("Park et al. 2025 (OGBench), arXiv 2410.20092", needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if a goal is given while acting, and ways to it must be put together from pieces of several episodes.")
@part
class GCIVL(ImplicitValues):
    """Goal-conditioned implicit V-learning: clones the steps that lead closer to a goal, as a value function sees it.

    Args:
        alpha: Inverse temperature of the weights of cloning. 0 clones all steps equally.
    """

    alpha: Annotated[float, AtLeast(0)] = 10.0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {**super().networks(policy, data), "value": Net(
            self.critic.build(policy, action=False), self.optimizer, target=self.target_decay)}

    def values(self, nets, network, obs, goal):
        return network.scores(toward(nets.policy, obs, goal))

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        assert batch.next is not None
        weights = self.advantage_weights(nets, batch.obs, batch.next, goal_of(nets.policy).into, self.alpha)
        return weights * nets.policy.loss(batch, rng)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.regression(nets, nets.value, nets.target.value, batch)
