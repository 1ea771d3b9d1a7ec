from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...data.missing_actions import LabeledSteps
from ...data.window import Window
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.objectives.latent_objectives import LatentDynamics
from ...learn.objectives.representation import RepresentationLearning
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import SOME_ACTIONS
from ..registry import method


@method("Cui et al. 2024 (DynaMo), arXiv 2409.12192", rows=("014",),
        needs=(SOME_ACTIONS,),
        when="if many recordings have no actions (--prior).")
def dynamo(latent: int = 8, length: int = 5, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which was trained to predict observations by hidden actions of its own.

    The encoder learns from all episodes, also from those without actions.

    Args:
        latent: Width of the hidden action, about that of the true state.
        length: Number of observations in a row that the encoder learns from at a time.
    """
    policy = PolicyConfig(choose_head(features, Regression()), FeedForward())
    sequences = replace(policy, target="", window=Window(n_obs_steps=length))
    stage = Stage("encoder", Method(sequences, learner=RepresentationLearning((LatentDynamics(latent),))))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec.obs_transforms", "encoder"), train=())
    return Method(policy, learner=BehaviorCloning(steps=5000, batch_size=256), transforms=(LabeledSteps(),),
                  stages=(stage,), initialize_from=(frozen,))
