"""How a method plans with its modules, as data: guidance, best of several plans, a hierarchy of policies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint import CheckpointModule, FromStage, Scorer
from ..core import ConfigError, UserError, check_range
from ..policy import Guide, Planner, Policy
from .bidirectional import BidirectionalDecoding
from .planners import (
    BestOfN,
    Guided,
    Hierarchical,
    InverseDynamicsPlanner,
    IteratedPlanner,
    KernelDensity,
    MaskedGoalPlanner,
    SampleSelector,
    SetScorer,
)
from .self_guidance import SelfGuided
from .steering import ComposedPolicies, ScorerGuided, Steered, check_steering


class PlannerConfig(ABC):
    """A frozen dataclass that builds a planner on top of a planner.

    `Method.inference` is a tuple of them, applied in order to the policy.
    """

    @abstractmethod
    def build(self, planner: Planner, modules: Mapping[str, CheckpointModule]) -> Planner:
        """Builds the planner.

        Args:
            planner: The policy, or what the configs before this one made of it.
            modules: The modules of the checkpoint by name, "policy" among them. References to stages are resolved.
        """


@dataclass(frozen=True)
class GuidanceConfig(PlannerConfig):
    """Guides that act on every plan.

    Args:
        guides: Guides that are data, such as `ClassifierFreeGuidance(("observation.goal",), scale=2.0)`.
    """

    guides: tuple[Guide, ...]

    def build(self, planner, modules):
        return Guided(planner, self.guides)


@dataclass(frozen=True)
class BestOfNConfig(PlannerConfig):
    """Plans several times and takes the plan that a scorer puts first.

    Args:
        scorer: The scorer: a module of the same checkpoint by its name, or one that a stage trained.
        n: Number of plans.
    """

    scorer: str | FromStage | Scorer = "critic"
    n: int = 16

    def __post_init__(self):
        check_range(self, "n", at_least=1)
        _check_module(self.scorer, Scorer, "BestOfNConfig.scorer")

    def build(self, planner, modules):
        return BestOfN(planner, _module(self.scorer, Scorer, modules, "BestOfNConfig.scorer"), self.n)


@dataclass(frozen=True)
class SampleSelectorConfig(PlannerConfig):
    """Plans several times and takes the plan that scores highest in comparison with the others.

    Args:
        scorer: Scores all plans together, such as `KernelDensity` or `BackwardCoherence`.
        n: Number of plans.
    """

    scorer: SetScorer = KernelDensity()
    n: int = 16

    def __post_init__(self):
        check_range(self, "n", at_least=1)

    def build(self, planner, modules):
        return SampleSelector(planner, self.scorer, self.n)


@dataclass(frozen=True)
class BidirectionalDecodingConfig(PlannerConfig):
    """Plans several times and takes a plan that continues the last chunk and contrasts with a weaker policy.

    Args:
        weak: The weaker policy: one that a stage trained, or a module of the same checkpoint by its name. None to
            leave its part out.
        n: Number of plans drawn from each policy.
        n_kept: Number of plans that stay candidates after they are compared with the last chunk.
        decay: Factor by which the weight of coherence decreases from each step to the next.
    """

    weak: str | FromStage | CheckpointModule | None = None
    n: int = 15
    n_kept: int = 5
    decay: float = 0.5

    def __post_init__(self):
        check_range(self, "n", "n_kept", at_least=2)
        check_range(self, "decay", at_least=0)
        if self.weak is not None:
            _check_module(self.weak, Planner, "BidirectionalDecodingConfig.weak")

    def build(self, planner, modules):
        weak = None if self.weak is None else _module(self.weak, Planner, modules, "BidirectionalDecodingConfig.weak")
        return BidirectionalDecoding(planner, weak, self.n, self.n_kept, self.decay)


@dataclass(frozen=True)
class SelfGuidanceConfig(PlannerConfig):
    """Guides the policy by its own prediction for an earlier observation.

    Args:
        scale: Scale of the guidance. 0 is the plain policy.
        lag: Number of steps between the two observations.
    """

    scale: float = 1.0
    lag: int = 1

    def __post_init__(self):
        check_range(self, "scale")
        check_range(self, "lag", at_least=1)

    def build(self, planner, modules):
        return SelfGuided(planner, self.scale, self.lag)


@dataclass(frozen=True)
class CompositionConfig(PlannerConfig):
    """Samples from the policy and others together: see `ComposedPolicies`.

    Args:
        others: The other policies: ones that stages trained, or modules of the same checkpoint by their names.
        weights: Weight of each policy, that of the method's own policy first. They sum to 1.
    """

    others: tuple[str | FromStage | CheckpointModule, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        for other in self.others:
            _check_module(other, Policy, "CompositionConfig.others")

    def build(self, planner, modules):
        others = tuple(_module(other, Policy, modules, "CompositionConfig.others") for other in self.others)
        return ComposedPolicies(planner, others, self.weights)


@dataclass(frozen=True)
class SteeringConfig(PlannerConfig):
    """Draws plans towards points that a person gives: see `Steered`.

    Args:
        points: The points in world units: one for a click, several for a drawn path.
        column: The observed column with the position of what moves.
        components: Which components of the column are the position, and which of the action move it.
        step: Change of the position in one step for an action of 1. None for actions that are positions themselves.
        scale: Strength of the guidance, at least 0. It saturates: large scales do not lead past the points.
    """

    points: tuple[tuple[float, ...], ...]
    column: str = "observation.state"
    components: tuple[int, ...] = (0, 1)
    step: float | None = None
    scale: float = 1.0

    def __post_init__(self):
        check_steering(self)

    def build(self, planner, modules):
        return Steered(planner, self.points, self.column, self.components, self.step, self.scale)


@dataclass(frozen=True)
class ScorerGuidanceConfig(PlannerConfig):
    """Guides plans towards a higher score of a classifier, a critic or another scorer: see `ScorerGuided`.

    Args:
        scorer: The scorer: a module of the same checkpoint by its name, or one that a stage trained.
        scale: Factor of the score.
    """

    scorer: str | FromStage | Scorer = "critic"
    scale: float = 1.0

    def __post_init__(self):
        check_range(self, "scale", above=-math.inf, below=math.inf)
        _check_module(self.scorer, Scorer, "ScorerGuidanceConfig.scorer")

    def build(self, planner, modules):
        return ScorerGuided(planner, _module(self.scorer, Scorer, modules, "ScorerGuidanceConfig.scorer"), self.scale)


@dataclass(frozen=True)
class HierarchyConfig(PlannerConfig):
    """A high-level policy plans a column that the policy reads, such as a subgoal.

    Args:
        high: The high-level policy: one that a stage trained, or a module of the same checkpoint by its name.
        column: The column that it plans, which is an input of the policy.
        inference: How the high-level policy plans, such as the best of several subgoals by a value.
    """

    high: str | FromStage | CheckpointModule
    column: str = "observation.subgoal"
    inference: tuple[PlannerConfig, ...] = ()

    def __post_init__(self):
        _check_module(self.high, Planner, "HierarchyConfig.high")

    def build(self, planner, modules):
        high = _module(self.high, Planner, modules, "HierarchyConfig.high")
        for part in self.inference:
            high = part.build(high, modules)
        return Hierarchical(high, planner, self.column)


@dataclass(frozen=True)
class IterationConfig(PlannerConfig):
    """Repeats the policy until its answer no longer changes: see `IteratedPlanner`.

    Args:
        column: The column that the policy reads and predicts.
        n_steps: Largest number of steps.
    """

    column: str
    n_steps: int = 100

    def __post_init__(self):
        check_range(self, "n_steps", at_least=1)

    def build(self, planner, modules):
        return IteratedPlanner(planner, self.column, self.n_steps)


@dataclass(frozen=True)
class InverseDynamicsConfig(PlannerConfig):
    """A high-level policy plans states, and the policy plans the actions that lead to them.

    Args:
        high: The high-level policy: one that a stage trained, or a module of the same checkpoint by its name.
        column: The column of states that it plans.
        as_key: The column in which the policy reads the next state.
        inference: How the high-level policy plans, such as with classifier-free guidance.
    """

    high: str | FromStage | CheckpointModule
    column: str = "observation.state"
    as_key: str = "observation.next"
    inference: tuple[PlannerConfig, ...] = ()

    def __post_init__(self):
        _check_module(self.high, Planner, "InverseDynamicsConfig.high")

    def build(self, planner, modules):
        high = _module(self.high, Planner, modules, "InverseDynamicsConfig.high")
        for part in self.inference:
            high = part.build(high, modules)
        return InverseDynamicsPlanner(high, planner, self.column, self.as_key)


@dataclass(frozen=True)
class MaskedGoalConfig(PlannerConfig):
    """A policy that completes masked trajectories acts towards a goal: see `MaskedGoalPlanner`.

    Args:
        column: The state.
        action: The action.
        goal: Column of the goal.
        time_left: Column of the number of steps in which the goal shall be reached.
    """

    column: str = "observation.state"
    action: str = "action"
    goal: str = "observation.goal"
    time_left: str = "observation.time_left"

    def build(self, planner, modules):
        return MaskedGoalPlanner(planner, self.column, self.action, self.goal, self.time_left)


def _check_module(given, kind: type, where: str) -> None:
    """Checks that a field names a module, refers to one of a stage, or holds one of a kind."""
    if not isinstance(given, (str, FromStage)):
        _check_kind(given, kind, "None" if given is None else type(given).__name__, where)


def _module(given, kind: type, modules: Mapping[str, CheckpointModule], where: str):
    """The module that a field names or holds, checked to be of a kind."""
    if isinstance(given, str) and given not in modules:
        raise UserError(f"the checkpoint has no module {given!r}; it has {', '.join(modules)}", where=where,
                        hint="name one of these, or train one with a learner that has it")
    found = modules[given] if isinstance(given, str) else given
    _check_kind(found, kind, str(given), where)
    return found


def _check_kind(module, kind: type, name: str, where: str) -> None:
    if not isinstance(module, kind):
        raise ConfigError(f"{name} is no {kind.__name__}", where=where,
                          hint=f"name a {kind.__name__} that a learner has trained, or give FromStage(STAGE, MODULE)")
