from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ...core import Above, AtLeast, AtMost, Context, Schema, UserError, part, uniform, unknown_name
from ...data.episode import Dataset
from ...data.operations import Operation
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...learn.sample_weights import ColumnWeights, FixedWeights, SampleWeights, UniformWeights, WeightFunction
from ...learn.validation import warn_of_made_steps
from ...policy import PolicyConfig
from ..needs import NUMBERS, PATHS
from ..registry import method

SYNTHESIZED = "made"


@part
class TrajectoryPerturbation(Operation):
    """Adds steps in which the car is beside the demonstrated path, and the path bends back to it.

    An action is a path: points (distance ahead, offset from the center of the lane). A smooth curve is added to the
    path, which is zero some steps ago and at the last point. Steps have the column "made", 1 where they were made.

    Args:
        steps: When each point of an action is reached, in steps from now.
        offset: Component of `column` that is the offset of the car.
        heading: Component that is its heading relative to the lane, rad.
        past: Components that are its offsets one, two, ... steps ago.
        max_offset: Offsets are drawn from -max_offset to max_offset, m.
        max_turn: Likewise turns, rad.
        max_curvature: Paths that bend more are left out, 1/m.
        n_before: How many steps ago the path begins to bend.

    References:
        Bansal et al. (2018), ChauffeurNet: Learning to Drive by Imitating the Best and Synthesizing the Worst,
        arXiv:1812.03079.
    """

    steps: Annotated[tuple[int, ...], AtLeast(1)]
    offset: Annotated[int, AtLeast(0)] = 0
    heading: Annotated[int, AtLeast(0)] = 1
    past: Annotated[tuple[int, ...], AtLeast(0)] = ()
    max_offset: Annotated[float, AtLeast(0)] = 0.5
    max_turn: Annotated[float, AtLeast(0)] = math.pi / 3
    max_curvature: Annotated[float, Above(0)] = 0.2
    n_before: Annotated[int, AtLeast(1)] = 15
    n_copies: Annotated[int, AtLeast(1)] = 5
    column: str = "observation.state"
    makes_episodes = True

    def apply(self, data: Dataset) -> Dataset:
        features = data.features()
        check_components(features, self.column, (self.offset, self.heading, *self.past), "TrajectoryPerturbation")
        if sorted(set(self.steps)) != list(self.steps):
            raise UserError(f"the steps {self.steps} do not increase", where="TrajectoryPerturbation.steps",
                            hint="name the points of an action from the nearest to the farthest")
        if (shape := features["action"].shape) != (needed := (2 * len(self.steps),)):
            raise UserError(f"the actions have the shape {shape}, but {len(self.steps)} points are {needed}",
                            where="TrajectoryPerturbation.steps", hint="name the step of each point of an action")
        rng, bent_episodes = np.random.default_rng(0), []
        for episode in data:
            for t in np.repeat(np.arange(len(episode)), self.n_copies):
                state, action = (np.array(episode.steps[k][t]) for k in (self.column, "action"))
                offset, turn = rng.uniform(-1, 1, 2) * (self.max_offset, self.max_turn)
                pace = max(action[-2] / self.steps[-1], 1e-6)  # m per step
                bend = Bend(offset, math.tan(turn) * pace, self.n_before, self.steps[-1])
                if bend.curvature() / pace**2 > self.max_curvature:
                    continue
                state[self.offset], state[self.heading] = state[self.offset] + offset, state[self.heading] + turn
                state[list(self.past)] += bend(-1 - np.arange(len(self.past)))
                columns = {k: v[t:t + 1] for k, v in episode.steps.items()}
                bent_episodes.append(episode.replace({
                    **columns, self.column: state[None], SYNTHESIZED: np.ones((1, 1), np.float32),
                    "action": self.label(action, bend)[None]}))
        warn_of_made_steps(data, self.column, len(bent_episodes), "all paths bend more than "
                           f"{self.max_curvature:g} (TrajectoryPerturbation.max_curvature, 1/m)")
        return Dataset([*(e.replace({SYNTHESIZED: np.zeros((len(e), 1), np.float32)}) for e in data), *bent_episodes],
                       data.metadata)

    def label(self, action: np.ndarray, bend: Bend) -> np.ndarray:
        """Returns the path along the bend, (A,)."""
        action[1::2] += bend(np.array(self.steps))
        return action


@dataclass(frozen=True)
class Bend:
    """A curve of two cubic polynomials that leaves a path before the current step, and returns to it after that.

    It has `offset` and `slope` (per step) now, and is zero and level at both of its ends.
    """

    offset: float
    slope: float
    n_before: int
    n_after: int

    def __call__(self, step: np.ndarray) -> np.ndarray:
        length = np.where(step < 0, -self.n_before, self.n_after)
        u = np.minimum(step / length, 1)
        return self.offset * (1 - u) ** 2 * (1 + 2 * u) + self.slope * length * u * (1 - u) ** 2

    def curvature(self) -> float:
        """Largest second derivative of the curve, per step squared.

        It is linear on each side, so it is at an end of one.
        """
        return max(abs(self.offset * c + self.slope * length * d) / length**2
                   for length in (-self.n_before, self.n_after) for c, d in ((-6, -4), (6, 2)))


def check_components(features: Schema, column: str, components: tuple[int, ...], where: str) -> None:
    """Raises UserError if a column is not there, or has fewer components than are named."""
    if column not in features:
        raise unknown_name("column", column, features, where)
    if len(features[column].shape) != 1 or features[column].size <= max(components):
        raise UserError(f"{column} has the shape {features[column].shape}, and no component {max(components)}",
                        where=where, hint="name components of a vector of numbers, which are counted from 0")


class PathLoss(AuxiliaryLoss):
    """Auxiliary loss that penalizes planned points that are nearer than `radius` to something.

    Subclasses are frozen dataclasses. The policy plans points (distance ahead, offset), by a head without noise.
    """

    captures = ("context", "context_mask")
    radius: float
    weight: float

    @abstractmethod
    def clearance(self, points: Tensor, obs: dict[str, Tensor]) -> Tensor:
        """Returns the distance of points, (B, N, 2), from what the loss avoids, (B, N). Below 0 they are inside."""

    def build(self, policy):
        def loss(policy, batch, rng, captured):
            plan = policy.sample(Context(captured["context"], captured["context_mask"]), rng)
            points = policy.codec.decode(plan, batch.obs).reshape(len(batch), -1, 2)
            return self.weight * (self.radius - self.clearance(points, batch.obs)).clamp(min=0).mean(1)
        return loss


@part
class CollisionLoss(PathLoss):
    """Auxiliary loss that penalizes planned points near a box. Its sides are parallel to the lane.

    Args:
        box: Components of `column` that are the distance to the middle of the box, and its offset.
        half: Half of its length and half of its width.
        radius: Of the car.
    """

    box: tuple[int, int]
    half: Annotated[tuple[float, float], Above(0)]
    radius: Annotated[float, AtLeast(0)] = 0.0
    weight: Annotated[float, AtLeast(0)] = 1.0
    column: str = "observation.state"

    def build(self, policy):
        check_components(policy.features, self.column, self.box, "CollisionLoss.box")
        return super().build(policy)

    def clearance(self, points, obs):
        middle = obs[self.column][:, -1:, list(self.box)]
        outside = (points - middle).abs() - torch.tensor(self.half, device=points.device)
        return outside.clamp(min=0).square().sum(-1).add(1e-12).sqrt() + outside.amax(-1).clamp(max=0)


@part
class LaneLoss(PathLoss):
    """Auxiliary loss that penalizes planned points near an edge of the lane, or beyond it."""

    half_width: Annotated[float, Above(0)]
    radius: Annotated[float, AtLeast(0)] = 0.0
    weight: Annotated[float, AtLeast(0)] = 1.0

    def clearance(self, points, obs):
        return self.half_width - points[..., 1].abs()


@part
class ImitationDropout(SampleWeights):
    """Sample weights that leave random windows out of the imitation loss, but not out of auxiliary losses.

    Args:
        p: Probability that a window is left out. The loss is a mean over the windows that stay.
        weights: Weights of the windows that stay.
    """

    p: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    weights: FixedWeights = field(default_factory=UniformWeights)

    @property
    def columns(self):
        return self.weights.columns

    def build(self, policy, data):
        return _ImitationDropoutWeights(self)


class _ImitationDropoutWeights(nn.Module, WeightFunction):
    n_updates: Tensor

    def __init__(self, config: ImitationDropout):
        super().__init__()
        self.config = config
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    def forward(self, batch, policy):
        weight, index = self.config.weights(batch, policy), batch.extra["index"][:, 0]
        kept = uniform(index, self.n_updates.expand(len(batch)), (1,)) >= self.config.p
        return weight.reshape(len(batch), -1) * kept.to(weight.device)

    def after_update(self, policy):
        self.n_updates += 1


@method("Bansal et al. 2018, arXiv 1812.03079, with numbers in place of images, hinge losses of distances, "
        "and no dropout of the past",
        rows=("333",), needs=(NUMBERS, PATHS),
        when="if actions are paths along a lane with one obstacle, and demonstrations never come near its edges.")
def chauffeurnet(point_steps: tuple[int, ...] = (3, 6, 9, 12), past: tuple[int, ...] = (),
                 box: tuple[int, int] = (2, 3), half: tuple[float, float] = (1.5, 0.6), half_width: float = 1.5,
                 radius: float = 0.4) -> Method:
    """Behavior cloning of paths, also from bent ones that return, with losses against collisions and leaving the lane.

    The first two components of the state are the offset of the car and its heading relative to the lane.

    Args:
        point_steps: When each point of an action is reached, in steps from now.
        past: Components of the state that are the offsets of the car one, two, ... steps ago.
        half: Half of the length and of the width of the obstacle, m.
        half_width: Half of the width of the lane, m.
        radius: Radius of the car, m.
    """
    weights = ImitationDropout(0.5, ColumnWeights(SYNTHESIZED, 0.1))
    losses = (CollisionLoss(box, half, radius), LaneLoss(half_width, radius))
    learner = BehaviorCloning(4000, sample_weights=weights, auxiliary_losses=losses)
    return Method(PolicyConfig(Regression()), learner=learner,
                  transforms=(TrajectoryPerturbation(point_steps, past=past),))
