from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema, role
from ...data.augment import ConditionDropout
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.objectives.representation import RepresentationLearning
from ...learn.objectives.representation_objectives import SoftInfoNCE
from ...nets.encoders import TokenEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import CAMERAS, NUMBERS
from ..registry import method


def hidden_beside_images(features: Schema | None) -> tuple[ConditionDropout, ...]:
    """Builds augmentations that hide every observation but the images."""
    return tuple(ConditionDropout(name, 1.0) for name, f in (features or {}).items()
                 if role(name) == "observation" and f.kind != "image")


@method("Lee et al. 2025 (CLASS), arXiv 2508.01600, who train the encoder at a tenth of the rate afterwards",
        rows=("257",), needs=(NUMBERS, CAMERAS),
        when="if cameras differ between episodes and actions are positions.")
def class_contrastive(horizon: int = 16, quantile: float = 0.025, crop: int = 4, features: Schema | None = None
                      ) -> Method:
    """Behavior cloning with an encoder that first learned from images which of them precede similar actions.

    Args:
        horizon: Number of actions that are compared, and predicted. Half are executed before the next plan.
        quantile: Fraction of the pairs of a batch whose actions are similar.
        crop: Pixels that are cut off each side of an image, at a random place in training.
    """
    policy = PolicyConfig(Regression(), FeedForward(), TokenEncoder(crop=crop), window=Window(horizon=horizon))
    images = replace(policy, augmentations=hidden_beside_images(features))
    stage = Stage("encoder", Method(images, learner=RepresentationLearning((SoftInfoNCE(quantile),))))
    return Method(policy, RecedingHorizon(max(horizon // 2, 1)), BehaviorCloning(steps=5000, batch_size=256),
                  stages=(stage,), initialize_from=(InitializeFrom(FromStage("encoder"), ("codec", "encoder")),))
