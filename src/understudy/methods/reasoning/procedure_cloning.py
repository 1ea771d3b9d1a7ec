from ...checkpoint import FromStage
from ...core import Schema
from ...data.procedure import PROCEDURE, GridSearch, ProcedureEpisodes, ProcedureResult
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...execute.planners import Hierarchical, IteratedPlanner
from ...heads.categorical import Categorical
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...nets.feed_forward import FeedForward
from ...nets.grid import GridEncoder, PerToken
from ...policy import PolicyConfig
from ..needs import CELLS, NUMBERS_OR_CLASSES
from ..registry import method


@method("Yang et al. 2022, arXiv 2205.10816, whose search ends at the agent, with 128 to 256 channels and 500,000 "
        "updates", rows=("068",), needs=(NUMBERS_OR_CLASSES, CELLS),
        when="if the expert plans on a map of cells and new maps must be solved.")
def procedure_cloning(grid: str = "observation.grid", cell: str = "observation.cell", n_steps: int = 100,
                      channels: int = 64, n_layers: int = 5, steps: int = 20_000, features: Schema | None = None
                      ) -> Method:
    """Procedure cloning: predict each step of the expert's search over a grid, and read the action from the last.

    Args:
        grid: Column with the class of each cell: 0 free, 1 wall, 2 goal.
        cell: Column with the cell of the agent.
        n_steps: Largest number of steps of the search while acting.
        channels: Channels of each convolution of the network that predicts a step of the search from the one before.
        n_layers: Number of convolutions.
        steps: Number of updates of that network.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete, search = features is not None and features["action"].kind == "discrete", GridSearch(grid)
    step = PolicyConfig(Categorical(), PerToken(FeedForward(())), GridEncoder((channels,) * n_layers),
                        inputs=(grid, PROCEDURE), target=PROCEDURE, window=Window(action_offset=1))
    stage = Stage("procedure", Method(step, learner=BehaviorCloning(steps, 32),
                                      transforms=(ProcedureEpisodes(search),)))
    action = PolicyConfig(Categorical() if discrete else Regression(), FeedForward((64,)), GridEncoder((), cell),
                          inputs=(PROCEDURE, cell))
    return Method(action, RecedingHorizon(), BehaviorCloning(1000, 32), (ProcedureResult(search),), (stage,),
                  inference=(Hierarchical(IteratedPlanner(FromStage("procedure"), PROCEDURE, n_steps),
                                          as_key=PROCEDURE),))
