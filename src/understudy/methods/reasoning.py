"""Policies that first predict how the expert decides, and then the action."""

from __future__ import annotations

from ..checkpoint import FromStage
from ..core import Schema
from ..data.procedure import PROCEDURE, GridSearch, ProcedureEpisodes, ProcedureResult
from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..execute.planner_config import HierarchyConfig, IterationConfig
from ..heads.categorical import Categorical
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method, Stage
from ..nets.feed_forward import FeedForward
from ..nets.grid import GridEncoder, PerToken
from ..policy import PolicyConfig


def procedure_cloning(grid: str = "observation.grid", cell: str = "observation.cell", n_steps: int = 100,
                      channels: tuple[int, ...] = (64, 64, 64, 64, 64), features: Schema | None = None) -> Method:
    """Procedure cloning: predict each step of the expert's search over a grid, and read the action from the last one.

    Args:
        grid: Column with the class of each cell: 0 free, 1 wall, 2 goal.
        cell: Column with the cell of the agent.
        n_steps: Largest number of steps of the search while acting.
        channels: Channels of the convolutions that predict a step of the search from the step before.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete, search = features is not None and features["action"].kind == "discrete", GridSearch(grid)
    step = PolicyConfig(Categorical(), PerToken(FeedForward(())), GridEncoder(channels), inputs=(grid, PROCEDURE),
                        target=PROCEDURE, window=Window(action_offset=1))
    stage = Stage("procedure", Method(step, learner=BehaviorCloning(20_000, 32),
                                      transforms=(ProcedureEpisodes(search),)))
    action = PolicyConfig(Categorical() if discrete else Regression(), FeedForward((64,)), GridEncoder((), cell),
                          inputs=(PROCEDURE, cell))
    return Method(action, RecedingHorizon(), BehaviorCloning(1000, 32), (ProcedureResult(search),), (stage,),
                  inference=(HierarchyConfig(FromStage("procedure"), PROCEDURE,
                                             (IterationConfig(PROCEDURE, n_steps),)),))
