from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...data.missing_actions import LabeledSteps
from ...execute.chunking import RecedingHorizon
from ...heads.categorical import Categorical
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.latent_objectives import LatentDynamics
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.representation import RepresentationLearning
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import SOME_ACTIONS
from ..registry import method


@method("Cui et al. 2024 (DynaMo), arXiv 2409.12192, with windows of two observations", rows=("014",),
        needs=(SOME_ACTIONS,),
        when="if many recordings have no actions (--prior), and few demonstrations have them; no claim has tested it "
             "here.")
def dynamo(latent: int = 8, lookahead: int = 1, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which was trained to predict observations by hidden actions of its own.

    The encoder learns from all episodes, also from those without actions.

    Args:
        latent: Width of the hidden action, about that of the true state.
        lookahead: Number of steps between two observations.
    """
    discrete = features is not None and "action" in features and features["action"].kind == "discrete"
    policy = PolicyConfig(Categorical() if discrete else Regression(), FeedForward())
    learner = RepresentationLearning((LatentDynamics(latent),), lookahead=lookahead)
    stage = Stage("encoder", Method(replace(policy, target=""), learner=learner))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec.obs_transforms", "encoder"), train=())
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=5000, batch_size=256), (LabeledSteps(),), (stage,),
                  (frozen,))
