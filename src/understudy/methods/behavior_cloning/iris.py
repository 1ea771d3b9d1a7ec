from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from ...checkpoint import FromStage
from ...core import Schema, part
from ...execute.planners import BestOfN, Hierarchical, Unresolved
from ...learn.critic import ValueFunction
from ...learn.method import Method, Stage
from ...policy import Planner
from ..needs import NUMBERS, STEP_REWARDS
from ..offline_rl.iql import IQL
from ..registry import method
from .hbc import hbc


@part
class BestSubgoal(BestOfN):
    """Planner that draws `n` subgoals and takes the one from which the highest return is expected.

    Args:
        planner: Predicts the observation that a subgoal is.
        scorer: The value of an observation of `column` alone.
        column: The column that a subgoal is a value of.
    """

    planner: Planner | Unresolved = None
    scorer: ValueFunction | Unresolved = "value"
    column: str = "observation.state"

    module_types = MappingProxyType({"scorer": ValueFunction})

    def scores(self, obs, plans):
        subgoals = plans.flatten(0, 1).unflatten(-1, self.scorer.features[self.column].shape)
        return self.scorer({self.column: subgoals}).unflatten(0, plans.shape[:2])


@method("Mandlekar et al. 2020 (IRIS), arXiv 1911.05321, with the values of implicit Q-learning",
        needs=(NUMBERS, STEP_REWARDS),
        when="if demonstrations go to several places, and some are worth more.")
def iris(column: str = "observation.state", subgoal_steps: int = 10, n_action_steps: int = 10, n: int = 100,
         features: Schema | None = None) -> Method:
    """Hierarchical behavior cloning that draws several subgoals and goes to the one with the highest value.

    Args:
        column: The column whose later values are subgoals, and from which alone values are told.
        subgoal_steps: Number of steps to a subgoal, and of the actions of a plan. An episode should have several times
            as many.
        n_action_steps: Number of actions executed before the next subgoal is drawn.
        n: Number of subgoals that are drawn, to take the best. 1 is hbc.
    """
    cloning, values = hbc(column, subgoal_steps, n_action_steps), IQL().method(features)
    values = replace(values, policy=replace(values.policy, inputs=(column,)))
    return replace(cloning, stages=(*cloning.stages, Stage("values", values)), inference=(
        Hierarchical(BestSubgoal(FromStage("subgoals"), FromStage("values", "value"), n, column)),))
