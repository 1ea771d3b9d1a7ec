from ...checkpoint import FromStage
from ...core import Schema
from ...data.missing_actions import LabeledSteps
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.pseudo_labels import PseudoLabel
from ...learn.method import Method, Stage
from ...policy import PolicyConfig
from ..needs import SOME_ACTIONS
from ..registry import method


@method("Baker et al. 2022 (VPT), arXiv 2206.11795, whose model reads 128 frames, and whose policy is then improved by "
        "reinforcement learning", rows=("039",),
        needs=(SOME_ACTIONS,),
        when="if few episodes have actions and many have none, and the next observation shows what was done.")
def vpt(horizon: int = 1, n_future: int = 1, n_past: int = 0, features: Schema | None = None) -> Method:
    """Behavior cloning, where an inverse dynamics model of the few steps with actions tells the other actions.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        n_future: Number of later observations that the inverse dynamics model reads.
        n_past: Number of earlier observations that it reads.
    """
    head = choose_head(features, Regression())
    inverse = PolicyConfig(head, window=Window(n_past + 1 + n_future, obs_offset=n_future))
    labeling = Method(inverse, learner=BehaviorCloning(steps=2000), transforms=(LabeledSteps(followed=n_future > 0),))
    return Method(PolicyConfig(head, window=Window(1, horizon)), RecedingHorizon(horizon), BehaviorCloning(steps=5000),
                  (PseudoLabel(FromStage("inverse"), None, only_missing=True),), (Stage("inverse", labeling),))
