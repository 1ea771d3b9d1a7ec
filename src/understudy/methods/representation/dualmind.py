from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...data.text_columns import TaskText
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.categorical import Categorical
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...learn.representation import RepresentationLearning
from ...learn.representation_objectives import ForwardDynamics, InverseDynamics, MaskedPrediction
from ...nets.feed_forward import FeedForward
from ...nets.prompted_encoder import PromptedEncoder
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Wei et al. 2023, arXiv 2307.07909, with a history of six images, prompts from CLIP, and more and more hidden "
        "actions. The first phase takes any episodes, also without tasks: --stage trunk=RUN", rows=("169",),
        needs=(NUMBERS_OR_CLASSES, "a task in words, or another column that says what to do (--method.prompt)",
               "while acting: what to do, in words or as a column"),
        when="if one network shall serve many named tasks; its first phase is better than a random trunk, but the "
             "whole could not be told from cloning (claim dual-phase).")
def dualmind(prompt: str = "observation.task", horizon: int = 4, depth: int = 2,
             features: Schema | None = None) -> Method:
    """DualMind: a trunk learns the dynamics without tasks. Frozen, it is steered by a prompt through new layers.

    Args:
        prompt: Column that says what to do. By default the words of the task.
        horizon: Number of actions in a chunk. The trunk compares observations that are as many steps apart.
        depth: Number of blocks of the trunk.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical() if discrete else Regression()
    words = (TaskText(),) if prompt == "observation.task" and features is not None and prompt not in features else ()
    policy = PolicyConfig(head, FeedForward(), PromptedEncoder(prompt, depth=depth), window=Window(1, horizon))
    bare = replace(policy, encoder=PromptedEncoder(prompt, prompted=False, depth=depth))
    learner = RepresentationLearning((ForwardDynamics(), InverseDynamics(head), MaskedPrediction()),
                                     optimizer=OptimizerConfig(lr=1e-3))
    frozen = InitializeFrom(FromStage("trunk"), load=("codec", "encoder.trunk"), train=())
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(steps=5000, batch_size=256), words,
                  (Stage("trunk", Method(bare, learner=learner, transforms=words)),), (frozen,))
