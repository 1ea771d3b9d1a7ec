from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from ...core import Above, AtLeast, Batch, part
from ...data.episode import Dataset
from ...learn.algorithm import MetricBound, Net, loss
from ...learn.critics.goal_conditioned import GoalConditioned, Observations, Representation, goal_of
from ...learn.targets import MeanBound
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method


@method("Hejna et al. 2023 (DWSL), arXiv 2304.13774, with a Gaussian of fixed deviation", rows=("315",),
        needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if a goal is given while acting, some episodes wander, and nothing is bootstrapped.")
@part
class DWSL(GoalConditioned):
    """Distance weighted supervised learning: clones the steps that save steps on the way to a later observation.

    A classifier learns the distribution of the number of steps from an observation to a goal. Their soft minimum is the
    distance. Nothing is bootstrapped.

    Args:
        n_bins: Number of classes. Class k stands for k + 1 steps, the last one for all that are more. Distances are
            divided by it.
        temperature: Temperature of the soft minimum. A small one believes in the shortest ways, however rare.
        beta: Temperature of the weights of cloning, for distances from 0 to 1. Large values clone all steps equally.
        max_weight: Upper bound of a weight.

    References:
        Hejna et al. (2023), Distance Weighted Supervised Learning for Offline Interaction Data, arXiv:2304.13774.
    """

    n_bins: Annotated[int, AtLeast(2)] = 100
    temperature: Annotated[float, Above(0)] = 1.0
    beta: Annotated[float, Above(0)] = 0.05
    max_weight: Annotated[float, Above(0)] = 10.0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared = super().networks(policy, data)
        self.critic.check_one_network()
        distance = Representation.of(policy, self.critic, policy.inputs, self.n_bins)
        return {**declared, "distance": Net(distance, self.optimizer)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"distance/loss": MeanBound(
            math.log(self.n_bins), name="the losses of the distance", reason="guessing costs",
            hint="lower --optimizer.lr, or normalize the network (--critic.layer-norm True)")}

    def distance(self, nets: Any, obs: Observations) -> Tensor:
        """Returns the soft minimum of the number of steps to the goal, divided by the number of bins, (B,)."""
        log_probs = nets.distance(obs)[0].log_softmax(-1)
        bins = torch.arange(self.n_bins, device=log_probs.device) / self.n_bins
        return -self.temperature * (log_probs - bins / self.temperature).logsumexp(-1)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        assert batch.next is not None
        with torch.no_grad():
            advantage = self.distance(nets, batch.obs) - 1 / self.n_bins - self.distance(nets, batch.next)
        weights = (advantage / self.beta).exp().clamp(max=self.max_weight)
        return weights.unsqueeze(1) * nets.policy.loss(batch, rng)

    @loss("distance")
    def distance_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the cross-entropy of the number of steps to the goal, (B,). A goal that is reached has none."""
        steps = batch.extra[f"{goal_of(nets.policy).into}.steps"].squeeze(1)
        bins = (steps - 1).clamp(0, self.n_bins - 1).long()
        return cross_entropy(nets.distance(batch.obs)[0], bins, reduction="none") * (steps > 0)
