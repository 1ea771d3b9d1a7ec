from __future__ import annotations

from typing import Annotated

from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Below, Schema, part
from ...data.episode import Dataset
from ...learn.critics.goal_conditioned import GoalValues, ImplicitValueLearner, goal_conditioned_method
from ...learn.method import Method
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method


@part
class GCIVL(GoalValues):
    """Goal-conditioned implicit V-learning: a value function by expectile regression, and weighted cloning.

    Args:
        target_decay: Fraction of the target networks that each update keeps.
        expectile: Which expectile of the values of next states is learned. 0.5 is their mean.
        alpha: Inverse temperature of the weights of cloning.
    """

    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    expectile: Annotated[float, Above(0), Below(1)] = 0.9
    alpha: Annotated[float, AtLeast(0)] = 10.0

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> GCIVLLearner:
        return GCIVLLearner(self, policy, seed, steps)


class GCIVLLearner(ImplicitValueLearner):
    """Learner of `GCIVL`."""

    config: GCIVL

    def __init__(self, config: GCIVL, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        self.expectile = config.expectile
        self.register("policy", policy, config.optimizer)
        self.value = self.register("value", config.critic.build(policy, action=False), config.optimizer)
        self.target_value = self.target_network("value", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.policy_loss, batch)
        self.minimize("value", self.value_loss, batch)
        return self.end_update()

    def values(self, network, obs, goal):
        return network.scores(self.toward(obs, goal))

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the stored actions, (B, 1)."""
        assert batch.next is not None
        weights = self.advantage_weights(batch.obs, batch.next, self.goal.into, self.config.alpha)
        return weights * self.policy.loss(batch, rng)


@method("Park et al. 2025 (OGBench), arXiv 2410.20092", needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if a goal is given while acting, and ways to it must be put together from pieces of several episodes.")
def gcivl(column: str = "observation.state", alpha: float = 10.0, features: Schema | None = None) -> Method:
    """Goal-conditioned implicit V-learning: clones the steps that lead closer to a goal, as a value function sees it.

    Args:
        alpha: Inverse temperature of the weights of cloning. 0 clones all steps equally.
    """
    return goal_conditioned_method(GCIVL(alpha=alpha), column, features)
