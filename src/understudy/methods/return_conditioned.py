"""Policies that are told which return to reach, and learn from episodes of any quality."""

from __future__ import annotations

from ..checkpoint import FromStage
from ..core import Schema
from ..data.augment import ConditionDropout
from ..data.codec import Normalizer
from ..data.relabel import ConstantColumn, LastAction, NextObservation, ReturnToGo, TaskText, TimeLeft
from ..data.scored_return import ScoredReturn
from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..execute.planner_config import BestOfNConfig, GuidanceConfig, HierarchyConfig, InverseDynamicsConfig
from ..heads.categorical import Categorical
from ..heads.diffusion import Diffusion
from ..heads.gaussian import Gaussian
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.dichotomy_of_control import FUTURE, DichotomyOfControl
from ..learn.method import Method, Stage
from ..learn.optimizer import OptimizerConfig
from ..learn.task_scorer import TASK, ScorerCalibration, TaskContrast
from ..nets.encoders import ConcatEncoder, TokenEncoder
from ..nets.feed_forward import FeedForward
from ..nets.mlp import MLP
from ..nets.transformer import Transformer
from ..policy import ClassifierFreeGuidance, PolicyConfig


def udrl(target_return: float | None = None, target_length: int | None = None, temperature: float = 1.0,
         features: Schema | None = None) -> Method:
    """Upside-down reinforcement learning: clone every action, given the return and the time that were left.

    Args:
        target_return: Desired return while acting. None: --condition return_to_go=NUMBER gives it.
        target_length: Number of steps in which it shall be reached. None: --condition time_left=NUMBER gives it.
        temperature: 1 samples actions, as the authors do, and 0 takes the most likely ones.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical(temperature) if discrete else Gaussian(temperature=temperature)
    policy = PolicyConfig(head, FeedForward((128, 128)), ConcatEncoder(), window=Window(1, 1))
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=5000),
                  (ReturnToGo(target=target_return), TimeLeft(length=target_length)))


def decision_transformer(n_obs_steps: int = 20, target_return: float | None = None, discount: float = 1.0,
                         features: Schema | None = None) -> Method:
    """Decision Transformer: a causal transformer over returns to go, observations and actions predicts each action.

    Args:
        n_obs_steps: Number of steps of the history.
        target_return: Desired return while acting. None: --condition return_to_go=NUMBER gives it.
        discount: Discount of the return to go.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head, past = Categorical(temperature=1.0) if discrete else Regression(), n_obs_steps - 1
    trunk = Transformer(128, 1, 1, "block_causal", encoder_depth=3, dropout=0.1)
    window = Window(n_obs_steps, n_obs_steps, action_offset=-past, obs_pad_mask=True)  # a loss at every step
    learner = BehaviorCloning(10_000, 64, optimizer=OptimizerConfig(
        lr=1e-4, weight_decay=1e-4, warmup_steps=1000, lr_schedule="constant", grad_clip_norm=0.25))
    return Method(PolicyConfig(head, trunk, TokenEncoder(128), window=window), RecedingHorizon(1, skip=past), learner,
                  (LastAction(), ReturnToGo(discount, target=target_return)))


def arp(n_obs_steps: int = 4, target_return: float | None = None, quantile: float = 0.9,
        features: Schema | None = None) -> Method:
    """Adaptive return-conditioned policy: clone actions, given a return of how well observations fit the task's words.

    Args:
        n_obs_steps: Number of steps of the history.
        target_return: Desired return while acting. None: the quantile of the demonstrations.
        quantile: Quantile of the returns of the demonstrations. 1 is the highest.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head, past = Categorical(temperature=1.0) if discrete else Regression(), n_obs_steps - 1
    words = () if features is not None and TASK in features else (TaskText(),)
    trunk = Transformer(128, 1, 1, "block_causal", encoder_depth=3, dropout=0.1)
    window = Window(n_obs_steps, n_obs_steps, action_offset=-past, obs_pad_mask=True)  # a loss at every step
    scene, reward = PolicyConfig(head), ScorerCalibration(FromStage("scorer", "scorer"), quantile)
    stages = (Stage("scorer", Method(scene, learner=TaskContrast(), transforms=words)),
              Stage("reward", Method(scene, learner=reward, transforms=words)))
    transforms = (*words, LastAction(), ScoredReturn(FromStage("reward", "reward"), target=target_return))
    learner = BehaviorCloning(10_000, 64, optimizer=OptimizerConfig(lr=5e-4, weight_decay=5e-5, warmup_steps=500))
    policy = PolicyConfig(head, trunk, TokenEncoder(128), window=window)
    return Method(policy, RecedingHorizon(1, skip=past), learner, transforms, stages)


def dichotomy_of_control(lookahead: int = 1, latent_dim: int = 4, information_weight: float = 1.0, n: int = 100,
                         features: Schema | None = None) -> Method:
    """Dichotomy of Control: a latent of the future without what chance decides, and the latent of the highest value.

    Args:
        lookahead: Number of steps that the latent describes.
        latent_dim: Number of components of the latent.
        information_weight: Weight of what the latent says about rewards and transitions. 0 removes the constraint.
        n: Number of latents that are compared while acting.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical(temperature=1.0) if discrete else Gaussian(temperature=1.0)
    policy = PolicyConfig(head, FeedForward((128, 128)), ConcatEncoder(), Normalizer(unscaled=(FUTURE,)))
    return Method(policy, RecedingHorizon(), DichotomyOfControl(lookahead, information_weight),
                  (ConstantColumn(FUTURE, (0.0,) * latent_dim),),
                  inference=(HierarchyConfig("prior", FUTURE, (BestOfNConfig("value", n),)),))


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
    guidance = GuidanceConfig((ClassifierFreeGuidance((asked.into,), scale),))
    states = Method(high, learner=BehaviorCloning(4000, optimizer=optimizer), transforms=(asked,))
    return Method(low, RecedingHorizon(), BehaviorCloning(2000, optimizer=optimizer), (following, asked),
                  (Stage("states", states),),
                  inference=(InverseDynamicsConfig(FromStage("states"), column, following.into, (guidance,)),))
