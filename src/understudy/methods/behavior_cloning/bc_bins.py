from typing import Literal

from ...data.window import Window
from ...heads.likelihood.bins import Bins
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...policy import PolicyConfig
from ..registry import method


@method("Metz et al. 2017, arXiv 1705.05035, which learns values; Brohan et al. 2022 (RT-1), arXiv 2212.06817, with "
        "256 independent intervals (n_bins=256, autoregressive=False), images, words and a transformer",
        when="if demonstrations act in several ways, no shape of their distribution is known, and motions need little "
             "precision.")
def bc_bins(n_bins: int = 32, edges: Literal["uniform", "quantile"] = "uniform", autoregressive: bool = True,
            n_obs_steps: int = 2) -> Method:
    """Behavior cloning with each number of an action as one of 32 intervals, drawn one after the other.

    Args:
        n_bins: Number of intervals of each component.
        edges: Intervals of equal width ("uniform"), or with equally many demonstrated values ("quantile").
        autoregressive: True predicts each component from those before it. False treats them as independent.
    """
    head = Bins(n_bins, edges, autoregressive)
    return Method(PolicyConfig(head, window=Window(n_obs_steps)), learner=BehaviorCloning(steps=5000))
