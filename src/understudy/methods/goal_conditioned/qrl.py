from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from ...core import Above, AtLeast, AtMost, Batch, ConfigError, part
from ...data.episode import Dataset
from ...learn.algorithm import MetricBound, Net, loss
from ...learn.critics.goal_conditioned import (
    VALUE_GOAL,
    GoalValues,
    Observations,
    Representation,
    ScoreMaximizing,
    goal_of,
    toward,
)
from ...learn.targets import MeanBound
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method

FARTHEST_STEPS = 500.0  # steps: the loss hardly pushes observations farther apart


@method("Wang et al. 2023 (QRL), arXiv 2304.01203, with the losses of OGBench, arXiv 2410.20092",
        needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, actions have nearly certain effects, and goals are far.")
@part
class QRL(ScoreMaximizing, GoalValues):
    """Quasimetric reinforcement learning: learns how many steps apart two observations are, and goes the shortest way.

    Distances between random observations are made large, while the distance between consecutive observations stays at
    most 1. The quasimetric obeys the triangle inequality, so that the distance becomes the length of the shortest way.
    A model of the next representation gives the gradient of the distance with respect to actions.

    The distance is between values of the goal's column. Other observations are read by the policy alone.

    Args:
        component_dim: Number of intervals in each group of the quasimetric, a divisor of `latent_dim`.
        epsilon: Mean squared excess of the distance of consecutive observations over 1 that is allowed.
        alpha: Weight of the loss of the stored actions, relative to a score of mean absolute value 1.

    References:
        Wang et al. (2023), Optimal Goal-Reaching Reinforcement Learning via Quasimetric Learning, arXiv:2304.01203.
        Wang and Isola (2022), Improved Representation of Asymmetrical Distances with Interval Quasimetric Embeddings,
        arXiv:2211.15120.
    """

    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 1.0
    latent_dim: Annotated[int, AtLeast(1)] = 64
    component_dim: Annotated[int, AtLeast(1)] = 8
    epsilon: Annotated[float, Above(0)] = 0.05
    alpha: Annotated[float, AtLeast(0)] = 0.003

    def __post_init__(self):
        if self.latent_dim % self.component_dim:
            raise ConfigError(f"{self.latent_dim} components cannot be divided into groups of {self.component_dim}",
                              where="QRL.latent_dim", hint=f"such as {8 * self.component_dim}")

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared, size = super().networks(policy, data), self.latent_dim
        self.critic.check_one_network()
        phi = Representation.of(policy, self.critic, (goal_of(policy).into,), size)
        dynamics = feed_forward_layers((size + policy.codec.width, *self.critic.hidden, size),
                                       layer_norm=self.critic.layer_norm)
        log_multiplier = nn.ParameterList([torch.zeros(())])
        parts = nn.ModuleList([phi, IntervalQuasimetric(self.component_dim), dynamics, log_multiplier])
        return {**declared, "value": Net(parts, self.optimizer)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"value/distance": MeanBound(
            FARTHEST_STEPS, name="the distances to goals", reason="no loss pushes them far beyond",
            hint="lower --optimizer.lr, or normalize the networks (--critic.layer-norm True)")}

    def represent(self, nets: Any, obs: Observations, column: str) -> Tensor:
        """Returns representations of the values of a column, (B, D)."""
        return nets.value[0](toward(nets.policy, obs, column))[0]

    def predict(self, nets: Any, now: Tensor, coded_action: Tensor) -> Tensor:
        """Returns the representation of the next observation, (B, D)."""
        return now + nets.value[2](torch.cat([now, coded_action.flatten(1)], -1))

    def score(self, nets, obs, coded_action):
        goal = goal_of(nets.policy)
        later = self.predict(nets, self.represent(nets, obs, goal.column), coded_action)
        return -nets.value[1](later, self.represent(nets, obs, goal.into))

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator
                   ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Returns the losses of the distance, of the multiplier of its constraint, and of the dynamics, (B,) each.

        The constraint is that the squared excess of the distance of consecutive observations is at most `epsilon`.
        """
        assert batch.next is not None
        _, distance, _, log_multiplier = nets.value
        column = goal_of(nets.policy).column
        now, later = (self.represent(nets, obs, column) for obs in (batch.obs, batch.next))
        to_goal = distance(now, self.represent(nets, batch.obs, VALUE_GOAL))
        closeness = 100 * softplus((FARTHEST_STEPS - to_goal) / 100)
        excess = (distance(now, later) - 1).relu().square()
        multiplier = log_multiplier[0].exp()
        constraint = multiplier * (self.epsilon - excess.detach())
        predicted = self.predict(nets, now, nets.policy.encode_batch(batch))
        dynamics = (distance(later, predicted) + distance(predicted, later)) / 2
        return closeness + multiplier.detach() * excess, constraint, dynamics, {"distance": to_goal}


class IntervalQuasimetric(nn.Module):
    """Interval quasimetric embedding (IQE): a learned asymmetric distance, by lengths of unions of intervals.

    Args:
        size: Number of intervals in each group.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size, self.mix = size, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the distances from x to y, (B,), of vectors (B, D)."""
        lengths = union_length(x.unflatten(-1, (-1, self.size)), y.unflatten(-1, (-1, self.size)))
        share = self.mix.sigmoid()
        return share * lengths.mean(-1) + (1 - share) * lengths.amax(-1)


def union_length(x: Tensor, y: Tensor) -> Tensor:
    """Returns the length of the union of the intervals from x to y, (...), of tensors (..., D)."""
    ends, order = torch.cat([x, torch.maximum(x, y)], -1).sort(-1)
    n_open = torch.where(order < x.shape[-1], 1, -1).cumsum(-1)
    return ((n_open[..., :-1] > 0) * ends.diff(dim=-1)).sum(-1)
