from ...checkpoint import FromStage
from ...data.missing_actions import LabeledSteps
from ...data.window import Window
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.pseudo_labels import PseudoLabel
from ...learn.critics.td3 import TD3
from ...learn.method import Method, Stage
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..needs import SOME_NUMBERS
from ..registry import method


@method("Zheng et al. 2023 (SS-ORL), arXiv 2210.06518, with a deterministic inverse dynamics model", rows=("157",),
        needs=(SOME_NUMBERS, "rewards, and prior data (--prior) whose actions are ignored"),
        when="if most episodes have rewards but no actions, and few have both; whether it is as good as with all "
             "actions is undecided here.")
def ss_orl(bc_weight: float = 0.4, n_past: int = 1) -> Method:
    """TD3+BC on all episodes, of which most get their actions from an inverse dynamics model of the few that have them.

    Args:
        bc_weight: Weight of the distance to stored actions. 0 is TD3.
        n_past: Number of past observations that the inverse dynamics model reads, besides the present and the next.
    """
    inverse = Method(PolicyConfig(Regression(), MLP(256, 2), window=Window(n_past + 2, obs_offset=1)),
                     learner=BehaviorCloning(steps=2000), transforms=(LabeledSteps(followed=True),))
    return Method(PolicyConfig(Regression(), MLP(256, 2)), learner=TD3(bc_weight=bc_weight),
                  transforms=(PseudoLabel(FromStage("inverse")),),
                  stages=(Stage("inverse", inverse, dataset="task"),))
