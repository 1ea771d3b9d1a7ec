from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from ...core import Above, AtLeast, Batch, Schema, part
from ...data.episode import Dataset
from ...learn.critics.goal_conditioned import (
    GoalConditioned,
    GoalConditionedLearner,
    Representation,
    goal_conditioned_method,
)
from ...learn.method import Method
from ...learn.targets import check_bounded
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method


@part
class DWSL(GoalConditioned):
    """Distance weighted supervised learning: cloning, weighted by how many steps a step saves on the way to its goal.

    A classifier learns the distribution of the number of steps from an observation to a goal. Their soft minimum is the
    distance. Nothing is bootstrapped.

    Args:
        n_bins: Number of classes. Class k stands for k + 1 steps, the last one for all that are more. Distances are
            divided by it.
        temperature: Temperature of the soft minimum. A small one believes in the shortest ways, however rare.
        beta: Temperature of the weights of cloning, for distances from 0 to 1.
        max_weight: Upper bound of a weight.

    References:
        Hejna et al. (2023), Distance Weighted Supervised Learning for Offline Interaction Data, arXiv:2304.13774.
    """

    n_bins: Annotated[int, AtLeast(2)] = 100
    temperature: Annotated[float, Above(0)] = 1.0
    beta: Annotated[float, Above(0)] = 0.05
    max_weight: Annotated[float, Above(0)] = 10.0

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> DWSLLearner:
        return DWSLLearner(self, policy, seed, steps)


class DWSLLearner(GoalConditionedLearner):
    """Learner of `DWSL`."""

    config: DWSL

    def __init__(self, config: DWSL, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        config.critic.check_one_network()
        self.register("policy", policy, config.optimizer)
        self.classifier = self.register("distance", Representation.of(
            policy, config.critic, policy.inputs, config.n_bins), config.optimizer)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.policy_loss, batch)
        self.minimize("distance", self.distance_loss, batch)
        metrics = self.end_update()
        check_bounded(metrics["distance/loss"], math.log(self.config.n_bins), self.n_updates,
                      name="the losses of the distance", reason="guessing costs", hint="lower --learner.optimizer.lr, "
                      "or normalize the network (--learner.critic.layer-norm True)")
        return metrics

    def distance_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the cross-entropy of the number of steps to the goal, (B,). A goal that is reached has none."""
        steps = batch.extra[f"{self.goal.into}.steps"].squeeze(1)
        bins = (steps - 1).clamp(0, self.config.n_bins - 1).long()
        return cross_entropy(self.classifier(batch.obs)[0], bins, reduction="none") * (steps > 0)

    def distance(self, obs) -> Tensor:
        """The soft minimum of the number of steps to the goal, divided by the number of bins, (B,)."""
        temperature, n_bins = self.config.temperature, self.config.n_bins
        bins = torch.arange(n_bins, device=self.device) / n_bins
        log_probs = self.classifier(obs)[0].log_softmax(-1)
        return -temperature * (log_probs - bins / temperature).logsumexp(-1)

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the stored actions, (B, 1)."""
        assert batch.next is not None
        with torch.no_grad():
            advantage = self.distance(batch.obs) - 1 / self.config.n_bins - self.distance(batch.next)
        weights = (advantage / self.config.beta).exp().clamp(max=self.config.max_weight)
        return weights.unsqueeze(1) * self.policy.loss(batch, rng)


@method("Hejna et al. 2023 (DWSL), arXiv 2304.13774, with a Gaussian of fixed deviation", rows=("315",),
        needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if a goal is given while acting, some episodes wander, and nothing is bootstrapped.")
def dwsl(column: str = "observation.state", n_bins: int = 100, beta: float = 0.05,
         features: Schema | None = None) -> Method:
    """Distance weighted supervised learning: clones the steps that save steps on the way to a later observation.

    Args:
        n_bins: Number of distances that are told apart, in steps.
        beta: Temperature of the weights. Large values clone all steps equally.
    """
    return goal_conditioned_method(DWSL(n_bins=n_bins, beta=beta), column, features)
