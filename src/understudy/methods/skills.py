"""Latent skills: an autoencoder learns them from pieces of episodes, and a high-level policy chooses among them."""

from __future__ import annotations

from ..checkpoint import FromStage
from ..core import Schema
from ..data.codec import Normalizer
from ..data.operations import ShiftedStarts
from ..data.relabel import SHOWN_TASK, ConstantColumn, LastAction, TaskText
from ..data.window import Goal, Window
from ..execute.chunking import RecedingHorizon
from ..execute.wrappers import SkillWrapper
from ..heads.categorical import Categorical
from ..heads.gaussian import Gaussian
from ..heads.gmm import GMM
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.instructed_autoencoder import InstructedAutoencoder
from ..learn.latent_labels import SKILL, LatentLabels
from ..learn.method import InitializeFrom, Method, Stage
from ..learn.skill_autoencoder import SkillAutoencoder, inputs_without_words
from ..nets.quantization import FSQ
from ..policy import PolicyConfig


def opal(period: int = 10, latent_dim: int = 8, beta: float = 0.1) -> Method:
    """An autoencoder learns skills, and a policy learns which skill to begin.

    Args:
        period: Number of steps of a skill.
        latent_dim: Number of components of a skill.
        beta: Weight of the KL divergence of the autoencoder.
    """
    low = PolicyConfig(Gaussian(), codec=Normalizer(unscaled=(SKILL,)))
    skills = Method(low, learner=SkillAutoencoder(period, beta),
                    transforms=(ConstantColumn(SKILL, (0.0,) * latent_dim),))
    return Method(PolicyConfig(GMM()), RecedingHorizon(), BehaviorCloning(), (
        LatentLabels(FromStage("skills", "posterior")),), (Stage("skills", skills),),
        wrapper=SkillWrapper(FromStage("skills"), period))


def play_lmp(column: str = "observation.state", period: int = 30, latent_dim: int = 32, beta: float = 0.01) -> Method:
    """Latent plans from play: a prior draws a plan for the goal, and a policy carries it out step by step.

    Args:
        column: The column whose later values are goals.
        period: Number of steps of a plan.
        latent_dim: Number of components of a plan.
        beta: Weight of the KL divergence of the autoencoder.
    """
    window = Window(goals=(Goal(column, max_steps=period),))
    low = PolicyConfig(GMM(10, temperature=1.0), codec=Normalizer(unscaled=(SKILL,)), window=window)
    prior = PolicyConfig(Gaussian(temperature=1.0), codec=Normalizer(target="identity"), window=window)
    plans = Method(low, learner=SkillAutoencoder(period, beta, prior),
                   transforms=(ConstantColumn(SKILL, (0.0,) * latent_dim),))
    return Method(prior, RecedingHorizon(), BehaviorCloning(steps=1),  # the prior is trained in the stage
                  (LatentLabels(FromStage("plans", "posterior")),), (Stage("plans", plans),),
                  (InitializeFrom(FromStage("plans", "prior"), train=()),),
                  wrapper=SkillWrapper(FromStage("plans"), period))


def groot_2(period: int = 100, latent_dim: int = 16, beta: float = 0.1, alignment: float = 0.1, max_bytes: int = 64,
            features: Schema | None = None) -> Method:
    """An autoencoder learns latents of all episodes, and from those with words, which may be few, what words mean.

    Args:
        period: Number of steps of a piece, and while acting of a latent.
        latent_dim: Number of components of a latent.
        beta: Weight of the KL divergence of the autoencoder.
        alignment: Weight of the likelihood of a piece's latent, given its words.
        max_bytes: Number of bytes of the words.
        features: The columns of the data. None: the words are the column "instruction", which no environment shows.
    """
    words = TaskText(max_bytes, "instruction" if features is None else SHOWN_TASK, optional=True)
    low = PolicyConfig(GMM(10, temperature=1.0), codec=Normalizer(unscaled=(SKILL,)),
                       inputs=inputs_without_words(features))
    high = PolicyConfig(Gaussian(), codec=Normalizer(target="identity"), inputs=(words.into,))
    latents = Method(low, learner=InstructedAutoencoder(period, beta, instruction=high, alignment=alignment),
                     transforms=(words, ConstantColumn(SKILL, (0.0,) * latent_dim)))
    return Method(high, RecedingHorizon(), BehaviorCloning(steps=1),  # it is trained in the stage
                  (LatentLabels(FromStage("latents", "posterior")), words), (Stage("latents", latents),),
                  (InitializeFrom(FromStage("latents", "instruction"), train=()),),
                  wrapper=SkillWrapper(FromStage("latents"), period))


def omnijarvis(period: int = 20, levels: tuple[int, ...] = (8, 8, 8, 6, 5), memory: int = 8, max_bytes: int = 64,
               features: Schema | None = None) -> Method:
    """Behavior becomes codes of a few symbols, and a policy predicts the next code from words and the codes before.

    Args:
        period: Number of steps of a code.
        levels: Number of levels of each symbol of a code.
        memory: Number of periods whose observations and codes the high-level policy reads.
        max_bytes: Number of bytes of the words.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete, quantizer = features is not None and features["action"].kind == "discrete", FSQ(levels)
    low = PolicyConfig(Categorical(temperature=1.0) if discrete else Gaussian(), codec=Normalizer(unscaled=(SKILL,)),
                       inputs=inputs_without_words(features))
    codes = Method(low, learner=SkillAutoencoder(period, quantizer=quantizer),
                   transforms=(ConstantColumn(SKILL, (0.0,) * len(levels)),))
    high = PolicyConfig(Categorical(autoregressive=True), window=Window(n_obs_steps=memory))
    return Method(high, RecedingHorizon(), BehaviorCloning(), (
        LatentLabels(FromStage("codes", "posterior")), ShiftedStarts(period), TaskText(max_bytes), LastAction()),
        (Stage("codes", codes),),
        wrapper=SkillWrapper(FromStage("codes"), period, quantizer=quantizer))
