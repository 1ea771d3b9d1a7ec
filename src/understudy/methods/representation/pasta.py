from dataclasses import replace
from typing import Literal

from ...checkpoint import FromStage
from ...data.column_changes import LastAction
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.representation import RepresentationLearning
from ...learn.token_prediction import MaskedTokenPrediction, NextTokenPrediction
from ...nets.component_tokens import ComponentTokenEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Boige et al. 2024 (PASTA), arXiv 2307.10936, whose numbers are classes, and which pretrains on several "
        "robots", rows=("024",), needs=(NUMBERS, "only observations that are numbers"),
        when="if observations are many single numbers; in a toy, one token for each vector was better than one for "
             "each number (claim component-tokens).")
def pasta(n_obs_steps: int = 4, width: int = 64, depth: int = 3, objective: Literal["masked", "next"] = "masked",
          adapt: Literal["all", "last_layer", "none"] = "all") -> Method:
    """Pretrained action-state transformer: one token per number, hidden numbers are predicted, then the actions.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        width: Width of the tokens.
        depth: Number of transformer blocks.
        objective: Predict hidden numbers ("masked"), or each from those before it ("next").
        adapt: What of the transformer learns with the policy: all, its last block, or nothing (probing).
    """
    encoder = ComponentTokenEncoder(width, depth, causal=objective == "next")
    policy = PolicyConfig(Regression(), FeedForward(), encoder, window=Window(n_obs_steps))
    loss = NextTokenPrediction() if objective == "next" else MaskedTokenPrediction()
    train = {"all": ("codec", "encoder"), "last_layer": (f"encoder.blocks.{depth - 1}", "encoder.norm"), "none": ()}
    adapted = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=train[adapt])
    first = Method(policy, RecedingHorizon(), RepresentationLearning((loss,)), (LastAction(),))
    return replace(first, learner=BehaviorCloning(steps=5000, batch_size=256), stages=(Stage("encoder", first),),
                   initialize_from=(adapted,))
