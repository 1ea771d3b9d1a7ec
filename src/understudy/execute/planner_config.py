"""How a method plans with its modules, as data: guidance, best of several plans, a hierarchy of policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint import CheckpointModule, FromStage, Scorer
from ..core import UserError
from ..policy import Guide, Planner
from .planners import BestOfN, Guided, Hierarchical, KernelDensity, SampleSelector, SetScorer


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

    def build(self, planner, modules):
        return SampleSelector(planner, self.scorer, self.n)


@dataclass(frozen=True)
class HierarchyConfig(PlannerConfig):
    """A high-level policy plans a column that the policy reads, such as a subgoal.

    Args:
        high: The high-level policy: one that a stage trained, or a module of the same checkpoint by its name.
        column: The column that it plans, which is an input of the policy.
    """

    high: str | FromStage | CheckpointModule
    column: str = "observation.subgoal"

    def build(self, planner, modules):
        return Hierarchical(_module(self.high, Planner, modules, "HierarchyConfig.high"), planner, self.column)


def _module(given, kind: type, modules: Mapping[str, CheckpointModule], where: str):
    """The module that a field names or holds, checked to be of a kind."""
    if isinstance(given, str) and given not in modules:
        raise UserError(f"the checkpoint has no module {given!r}; it has {', '.join(modules)}", where=where,
                        hint="name one of these, or train one with a learner that has it")
    found = modules[given] if isinstance(given, str) else given
    if not isinstance(found, kind):
        raise UserError(f"{given if isinstance(given, str) else type(given).__name__} is no {kind.__name__}",
                        where=where, hint=f"name a {kind.__name__} that a learner or a stage has trained")
    return found
