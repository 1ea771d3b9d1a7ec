from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.objectives.frame_objectives import ActionPrediction, DynamicsAlignment, OrderedContrastive
from ...learn.objectives.representation import RepresentationLearning
from ..needs import CAMERAS, NUMBERS, NUMERIC_STATES
from ..registry import method
from .class_contrastive import class_contrastive


@method("Jiang et al. 2025 (MCR), arXiv 2410.22325, who train the encoder on recordings of other robots: --stage "
        "encoder=RUN", rows=("357",), needs=(NUMBERS, NUMERIC_STATES, CAMERAS),
        when="if recordings of other tasks have cameras (--prior).")
def mcr(column: str = "observation.state", crop: int = 4, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which learned from images their order, the dynamics and the actions.

    Args:
        column: The states that images are aligned with.
        crop: Pixels that are cut off each side of an image, at a random place in training.
    """
    base = class_contrastive(1, crop=crop, features=features)
    around = replace(base.stages[0].method.policy, window=Window(horizon=3, action_offset=-1))
    objectives = OrderedContrastive(), DynamicsAlignment(column), ActionPrediction()
    learner = RepresentationLearning(objectives, batch_size=320)
    stage = Stage("encoder", Method(around, RecedingHorizon(skip=1), learner))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=())
    return replace(base, stages=(stage,), initialize_from=(frozen,))
