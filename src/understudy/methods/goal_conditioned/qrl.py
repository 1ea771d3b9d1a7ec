from __future__ import annotations

from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from ...core import Above, AtLeast, AtMost, Batch, ConfigError, Schema, part
from ...data.episode import Dataset
from ...learn.critics.goal_conditioned import (
    VALUE_GOAL,
    GoalValues,
    Representation,
    ScoreMaximizingLearner,
    goal_conditioned_method,
)
from ...learn.method import Method
from ...learn.targets import check_bounded
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method

FAR = 500.0  # steps: the loss hardly pushes observations farther apart


@part
class QRL(GoalValues):
    """Quasimetric reinforcement learning: the number of steps between observations, as a distance with a direction.

    Distances between random observations are made large, while those between consecutive ones stay at most 1. The
    quasimetric obeys the triangle inequality, so that the distance becomes that of the shortest way. A model of the
    next representation gives the gradient of the distance with respect to actions.

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

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> QRLLearner:
        return QRLLearner(self, policy, seed, steps)


class QRLLearner(ScoreMaximizingLearner):
    """Learner of `QRL`."""

    config: QRL

    def __init__(self, config: QRL, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        config.critic.check_one_network()
        self.alpha, hidden, size = config.alpha, config.critic.hidden, config.latent_dim
        self.phi = Representation.of(policy, config.critic, (self.goal.into,), size)
        self.distance = IntervalQuasimetric(config.component_dim)
        self.dynamics = feed_forward_layers((size + policy.codec.width, *hidden, size),
                                            layer_norm=config.critic.layer_norm)
        self.log_multiplier = nn.ParameterList([torch.zeros(())])
        self.register("policy", policy, config.optimizer)
        self.register("value", nn.ModuleList([self.phi, self.distance, self.dynamics, self.log_multiplier]),
                      config.optimizer)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.policy_loss, batch)
        self.minimize("value", self.value_loss, batch)
        metrics = self.end_update()
        check_bounded(metrics["value/distance"], FAR, self.n_updates, name="the distances to goals",
                      reason="no loss pushes them far beyond", hint="lower --learner.optimizer.lr, or normalize the "
                      "networks (--learner.critic.layer-norm True)")
        return metrics

    def represent(self, obs, column: str) -> Tensor:
        """Representations of the values of a column, (B, D)."""
        return self.phi(self.toward(obs, column))[0]

    def value_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, ...]:
        """Returns the losses of the distance, of the multiplier of its constraint, and of the dynamics, (B,) each.

        The constraint is that the squared excess of the distance of consecutive observations is at most `epsilon`.
        """
        assert batch.next is not None
        now, later = (self.represent(obs, self.goal.column) for obs in (batch.obs, batch.next))
        distance = self.distance(now, self.represent(batch.obs, VALUE_GOAL))
        self.log(distance=distance)
        closeness = 100 * softplus((FAR - distance) / 100)
        excess = (self.distance(now, later) - 1).relu().square()
        multiplier = self.log_multiplier[0].exp()
        constraint = multiplier * (self.config.epsilon - excess.detach())
        predicted = self.predict(now, self.policy.encode_batch(batch))
        dynamics = (self.distance(later, predicted) + self.distance(predicted, later)) / 2
        return closeness + multiplier.detach() * excess, constraint, dynamics

    def predict(self, now: Tensor, coded_action: Tensor) -> Tensor:
        """The representation of the next observation, (B, D)."""
        return now + self.dynamics(torch.cat([now, coded_action.flatten(1)], -1))

    def score(self, obs, coded_action):
        later = self.predict(self.represent(obs, self.goal.column), coded_action)
        return -self.distance(later, self.represent(obs, self.goal.into))


class IntervalQuasimetric(nn.Module):
    """Interval quasimetric embedding: lengths of unions of intervals from x to y, their mean mixed with their maximum.

    Args:
        size: Number of intervals in each group.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size, self.mix = size, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances from x to y, (B,), of vectors (B, D)."""
        lengths = union_length(x.unflatten(-1, (-1, self.size)), y.unflatten(-1, (-1, self.size)))
        share = self.mix.sigmoid()
        return share * lengths.mean(-1) + (1 - share) * lengths.amax(-1)


def union_length(x: Tensor, y: Tensor) -> Tensor:
    """Length of the union of the intervals from x to y, (...), of tensors (..., D). One with y <= x is empty."""
    ends, order = torch.cat([x, torch.maximum(x, y)], -1).sort(-1)
    n_open = torch.where(order < x.shape[-1], 1, -1).cumsum(-1)
    return ((n_open[..., :-1] > 0) * ends.diff(dim=-1)).sum(-1)


@method("Wang et al. 2023 (QRL), arXiv 2304.01203, with the losses of OGBench, arXiv 2410.20092",
        needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, actions have nearly certain effects, and goals are far.")
def qrl(column: str = "observation.state", alpha: float = 0.003, features: Schema | None = None) -> Method:
    """Quasimetric reinforcement learning: learns how many steps apart two observations are, and goes the shortest way.

    Args:
        column: The column whose later values are goals. The distances are between its values.
    """
    return goal_conditioned_method(QRL(alpha=alpha), column, features)
