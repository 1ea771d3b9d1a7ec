from ...core import Schema
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Pomerleau 1988 (ALVINN); as the baseline of Mandlekar et al. 2021, arXiv 2108.03298", rows=("047",),
        needs=(NUMBERS_OR_CLASSES,),
        when="if there is one way to act, or as the small and fast baseline for everything else.")
def bc(horizon: int = 1, features: Schema | None = None) -> Method:
    """Behavior cloning: regression to the mean of the demonstrations, or a distribution over discrete actions.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
    """
    head = choose_head(features, Regression())
    return Method(PolicyConfig(head, window=Window(1, horizon)), RecedingHorizon(horizon), BehaviorCloning(steps=5000))
