from ...checkpoint import FromStage
from ...data.augment import ConditionDropout
from ...data.column_changes import ReturnToGo
from ...data.missing_actions import LabeledSteps
from ...data.relabel import NextObservation
from ...data.window import Window
from ...execute.planners import Guided, InverseDynamicsPlanner
from ...heads.denoising.diffusion import Diffusion
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward
from ...nets.mlp import MLP
from ...policy import ClassifierFreeGuidance, PolicyConfig
from ..needs import NUMBERS, NUMERIC_STATES, REWARDS
from ..registry import method


@method("Ajay et al. 2023, arXiv 2211.15657, with a U-Net that predicts the noise in 200 steps, plans of 100 states "
        "whose first one is fixed, joint training and less noise in sampling", rows=("222",),
        needs=(NUMBERS, REWARDS, NUMERIC_STATES, "while acting: a desired return"),
        when="if states tell what is wanted and several conditions are asked for together, each known from other "
             "episodes.")
def decision_diffuser(target_return: float | None = None, scale: float = 1.2, horizon: int = 16,
                      discount: float = 0.99, column: str = "observation.state") -> Method:
    """Decision Diffuser: diffusion plans states for a desired return, and inverse dynamics tell the actions.

    Args:
        target_return: Desired return while acting. None: --condition return_to_go=NUMBER gives it.
        scale: Scale of the guidance towards the return. 1 is the plain plan, 0 a plan without a return.
        horizon: Number of planned states.
        discount: Discount of the return to go.
        column: The column of states. Two states in a row must tell the action between them.
    """
    asked = ReturnToGo(discount, target=target_return, subtract_rewards=False)
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=100)
    high = PolicyConfig(Diffusion(prediction="sample"), MLP(512, 3), window=Window(1, horizon, action_offset=1),
                        target=column, augmentations=(ConditionDropout(asked.into, 0.25),))
    following = NextObservation(column)
    low = PolicyConfig(Regression(), FeedForward((256, 256)), ConcatEncoder(), inputs=(column, following.into))
    guided = Guided(FromStage("states"), (ClassifierFreeGuidance((asked.into,), scale),))
    states = Method(high, learner=BehaviorCloning(4000, optimizer=optimizer), transforms=(asked,))
    return Method(low, learner=BehaviorCloning(2000, optimizer=optimizer),
                  transforms=(LabeledSteps(followed=True), following, asked), stages=(Stage("states", states),),
                  inference=(InverseDynamicsPlanner(guided, column=column, as_key=following.into),))
