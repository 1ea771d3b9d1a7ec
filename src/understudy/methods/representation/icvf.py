from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...data.missing_actions import LabeledSteps
from ...data.window import Goal, Window
from ...execute.chunking import RecedingHorizon
from ...heads.categorical import choose_head
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.representation import RepresentationLearning
from ...learn.value_objectives import INTENT, OUTCOME, IntentionValue
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import SOME_ACTIONS
from ..registry import method


@method("Ghosh et al. 2023 (ICVF), arXiv 2304.04782, who train the encoder on recordings of others: --prior",
        rows=("098",), needs=(SOME_ACTIONS,),
        when="if many recordings to different goals have no actions (--prior); a plain value of goals did as well "
             "(claim intentions-of-walks).")
def icvf(column: str = "observation.state", discount: float = 0.99, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which was trained on values of all outcomes for all intents.

    The encoder learns from all episodes, also from those without actions.

    Args:
        column: The only column that is read. Its later values are outcomes and intents.
    """
    policy = PolicyConfig(choose_head(features, Regression()), FeedForward(), inputs=(column,))
    outcome = Goal(column, OUTCOME, p_curgoal=0.2, p_randomgoal=0.3)
    passive = replace(policy, target="", window=Window(goals=(outcome, replace(outcome, into=INTENT))))
    learner = RepresentationLearning((IntentionValue(discount=discount),))
    stage = Stage("encoder", Method(passive, learner=learner))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec.obs_transforms", "encoder"), train=())
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=5000, batch_size=256), (LabeledSteps(),), (stage,),
                  (frozen,))
