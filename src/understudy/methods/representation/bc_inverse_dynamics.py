from ...checkpoint import FromStage
from ...core import Schema
from ...data.window import Window
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.objectives.representation import RepresentationLearning
from ...learn.objectives.representation_objectives import InverseDynamics
from ...learn.optimizer import OptimizerConfig
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Brandfonbrener et al. 2023, arXiv 2305.16985, who train the encoder on other episodes with hidden goals: "
        "--stage encoder=RUN", rows=("019",), needs=(NUMBERS_OR_CLASSES,),
        when="if there are many episodes of other tasks to train the encoder on, and few of this one.")
def bc_inverse_dynamics(n_obs_steps: int = 1, lookahead: int = 1, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which was trained to tell the action between two observations.

    Args:
        lookahead: Number of steps between the two observations.
    """
    head = choose_head(features, Regression())
    policy = PolicyConfig(head, trunk=FeedForward(), window=Window(n_obs_steps))
    learner = RepresentationLearning((InverseDynamics(head),), lookahead=lookahead,
                                     optimizer=OptimizerConfig(lr=1e-3))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=())
    return Method(policy, learner=BehaviorCloning(steps=5000, batch_size=256),
                  stages=(Stage("encoder", Method(policy, learner=learner)),), initialize_from=(frozen,))
