from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.regression import Regression
from ...learn.median_of_means import MedianOfMeans
from ...learn.method import Method
from ...policy import PolicyConfig
from ..registry import method


@method("Liu et al. 2022 (RBC), arXiv 2201.12594", rows=("268",),
        when="if an unknown part of the recorded actions is wrong; on clean data it only trains longer than `bc`.")
def robust_bc(horizon: int = 1, n_blocks: int = 32) -> Method:
    """Behavior cloning that survives wrong actions in the data: the median of many small blocks trains.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        n_blocks: Number of blocks of a batch. More blocks survive a larger fraction of wrong actions.
    """
    learner = MedianOfMeans(n_blocks, steps=8000)
    return Method(PolicyConfig(Regression(), window=Window(1, horizon)), RecedingHorizon(horizon), learner)
