"""Pretraining: an encoder is trained first, then a policy learns on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ..checkpoint import FromStage
from ..core import Schema
from ..data.augment import camera_jitter
from ..data.codec import Normalizer
from ..data.motion_prompt import AddMotionPrompts, MotionPrompt
from ..data.relabel import LastAction, TaskText
from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.bins import Bins
from ..heads.categorical import Categorical
from ..heads.neighbors import Neighbors
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import InitializeFrom, Method, Stage
from ..learn.optimizer import OptimizerConfig
from ..learn.representation import RepresentationLearning
from ..learn.representation_objectives import BYOL, ForwardDynamics, InverseDynamics, MaskedPrediction
from ..learn.token_prediction import MaskedTokenPrediction, NextTokenPrediction
from ..nets.component_tokens import ComponentTokenEncoder
from ..nets.encoders import TokenEncoder
from ..nets.feed_forward import FeedForward
from ..nets.in_context import InContextTransformer
from ..nets.multimodal_prompt import MultimodalPromptEncoder
from ..nets.prompted_encoder import PromptedEncoder
from ..policy import PolicyConfig


def bc_inverse_dynamics(n_obs_steps: int = 1, lookahead: int = 1, features: Schema | None = None) -> Method:
    """Behavior cloning on a frozen encoder, which was trained to tell the action between two observations.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        lookahead: Number of steps between the two observations.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical() if discrete else Regression()
    policy = PolicyConfig(head, trunk=FeedForward(), window=Window(n_obs_steps))
    learner = RepresentationLearning((InverseDynamics(head),), lookahead=lookahead,
                                     optimizer=OptimizerConfig(lr=1e-3))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=())
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=5000, batch_size=256),
                  stages=(Stage("encoder", Method(policy, learner=learner)),), initialize_from=(frozen,))


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


def midas(objects: str = "observation.objects", words: str = "observation.prompt.words",
          prompt_objects: str = "observation.prompt.objects", follow: int = 1, n_frames: int = 3, width: int = 128,
          depth: int = 3, steps: int = 10_000, keep_motions: bool = False, features: Schema | None = None) -> Method:
    """MIDAS: inverse dynamics as "follow this motion", then prompts of words and objects, with the same policy.

    Args:
        objects: Column with the objects of the scene, of shape (objects, features).
        words: Column with the class of the word at each position of the prompt. 0 for no word.
        prompt_objects: Column with the object at each position of the prompt, of shape (positions, features).
        follow: The word before the frames of a motion.
        n_frames: Number of frames of a motion.
        width: Width of all tokens.
        depth: Number of blocks of the transformer that acts.
        steps: Number of updates of each of the two stages.
        keep_motions: In the second stage, train each episode also with the motion as its prompt. Without it, following
            motions is unlearned.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical(autoregressive=True) if discrete else Bins(50, temperature=0)
    encoder = MultimodalPromptEncoder(objects, words, prompt_objects, width=width)
    policy = PolicyConfig(head, InContextTransformer(width, depth, causal=False), encoder, inputs=encoder.columns,
                          codec=Normalizer(unscaled=(objects, prompt_objects)))
    learner = BehaviorCloning(steps, 64, OptimizerConfig(lr=1e-3, warmup_steps=100))
    motion = MotionPrompt(objects, words, prompt_objects, follow, n_frames)
    first = Method(policy, RecedingHorizon(), learner, (motion,))
    added = (AddMotionPrompts(motion),) if keep_motions else ()
    return replace(first, transforms=added, stages=(Stage("inverse_dynamics", first),),
                   initialize_from=(InitializeFrom(FromStage("inverse_dynamics")),))


def pasta(n_obs_steps: int = 4, width: int = 64, depth: int = 3, objective: Literal["masked", "next"] = "masked",
          adapt: Literal["all", "last_layer", "none"] = "all") -> Method:
    """A transformer over single numbers, which learns to predict hidden ones, and then the actions.

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


def vinn_byol(n_neighbors: int = 5, crop: int = 4, features: Schema | None = None) -> Method:
    """Visual imitation by nearest neighbors, in the features of an encoder that learns from the images alone.

    Args:
        n_neighbors: Number of situations. Nearer ones count more.
        crop: Pixels that are cut off each side of an image, at a random place in training.
        features: The columns of the data. The colors of each camera are changed in training.
    """
    policy = PolicyConfig(Neighbors(n_neighbors), encoder=TokenEncoder(crop=crop),
                          augmentations=camera_jitter(features))
    return Method(policy, RecedingHorizon(), RepresentationLearning((BYOL(),)))
