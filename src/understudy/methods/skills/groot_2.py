from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import Above, AtLeast, Batch, Below, ConfigError, Schema, part
from ...data.batch_sampler import BatchSampler
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn, Rename
from ...data.episode import Dataset, Episode
from ...data.tasks import SHOWN_TASK
from ...data.text_columns import TaskText
from ...data.window import SamplingWeights
from ...execute.wrappers import SkillWrapper
from ...heads.likelihood.gaussian import Gaussian
from ...heads.likelihood.gmm import GMM
from ...learn.algorithm import Net, loss
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.latent_labels import SKILL, LatentLabels
from ...learn.cloning.skill_autoencoder import SkillAutoencoder, inputs_without_words
from ...learn.method import InitializeFrom, Method, Stage
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@part
class InstructedAutoencoder(SkillAutoencoder):
    """Learns skills from all episodes, and from a few labeled ones which skill an instruction means.

    To the loss of a `SkillAutoencoder` labeled pieces add two terms. The policy must also repeat the actions of the
    piece with a skill that is drawn from the distribution of the instruction, and the skills of the posterior must be
    likely under this distribution. Both train all modules.

    A piece is labeled where ``"<name>?"`` is True at its first step, for all columns of the instruction. Columns
    without it are always there.

    A checkpoint also has the module "instruction": a policy whose action is the skill. Behind ``SkillWrapper`` it is a
    high-level policy that follows instructions.

    Args:
        instruction: The distribution of the skill, given the instruction: a `Gaussian` that reads these inputs. The
            codec must leave skills as they are.
        alignment: Weight of the negative log-likelihood of the posterior's skill, given the instruction. A weight near
            1 can pull all skills together, which makes them likely, too.
        labeled_fraction: Fraction of labeled pieces in the batches. None draws all pieces equally often.

    References:
        Cai et al. (2024), GROOT-2: Weakly Supervised Multi-Modal Instruction Following Agents, arXiv:2412.10410
        (beta and alignment 0.1). The form of the alignment is not published in code.
    """

    instruction: PolicyConfig = field(default_factory=lambda: PolicyConfig(
        Gaussian(), codec=Normalizer(target="identity"), inputs=("observation.task",)))
    alignment: Annotated[float, AtLeast(0)] = 0.1
    labeled_fraction: Annotated[float | None, Above(0), Below(1)] = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.instruction.head, Gaussian) or not self.instruction.inputs:
            raise ConfigError("skills are drawn from a Gaussian that reads named columns",
                              where="InstructedAutoencoder.instruction",
                              hint='use PolicyConfig(Gaussian(), inputs=("observation.task",), ...)')
        if self.quantizer is not None:
            raise ConfigError("an instruction is a distribution of skills that are not quantized",
                              where="InstructedAutoencoder.quantizer", hint="leave it out")
        if self.instruction.window != self.prior.window:
            raise ConfigError(f"the window of the instruction is {self.instruction.window}, and that of the prior "
                              f"{self.prior.window}", where="InstructedAutoencoder.instruction",
                              hint="give both the same window")

    @property
    def extra(self):
        return self.instruction.inputs

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets, features = super().networks(policy, data), data.features()
        words = {k: features[k] for k in self.instruction.inputs}
        instruction = Policy(self.instruction, {**words, "action": policy.features[self.column]})
        nets["policy"].module["instruction"] = instruction.fit_statistics(data.map(Rename(self.column, "action")))
        return nets

    def extra_columns(self, data: Dataset) -> tuple[str, ...]:
        return tuple(k for name in self.instruction.inputs for k in (name, name + "?") if k in data.features())

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        if weights is None and self.labeled_fraction is not None:
            weights = _LabeledFraction.of(self, data)
        return super().sampler(policy, data, weights)

    @loss("policy")
    def skill_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of each piece, (B,), which has the columns of the instruction in `Batch.extra`."""
        (total, logged), names = super().skill_loss(nets, batch, rng), self.instruction.inputs
        absent = [~batch.extra[name + "?"][:, 0] for name in names if name + "?" in batch.extra]
        labeled = (~torch.stack([torch.zeros_like(batch.mask[:, 0]), *absent]).any(0)).nonzero()[:, 0]
        if not len(labeled):
            return total, logged
        # An instruction does not change within an episode, so the first step's instruction holds for its history, too.
        history = nets.policy.window.n_obs_steps
        words = {k: batch.extra[k][labeled, :1].repeat_interleave(history, 1) for k in names}
        piece = Batch({k: v[labeled] for k, v in batch.obs.items()}, batch.action[labeled], batch.mask[labeled])
        followed, alignment = self.instruction_losses(nets, piece, words, rng)
        return total.index_add(0, labeled, followed + self.alignment * alignment), logged

    def instruction_losses(self, nets: Any, piece: Batch, words: dict[str, Tensor], rng: Generator
                           ) -> tuple[Tensor, Tensor]:
        """Returns the two further losses of labeled pieces, (B,) each.

        Args:
            piece: The pieces, without the instructions.

        Returns:
            Loss of the policy with skills of the instruction, summed over the steps, and negative log-likelihood of
            the posterior's skills, given the instruction.
        """
        instruction, mask = nets.instruction, torch.ones_like(piece.mask[:, :1])
        mean, std = nets.posterior.distribution(piece)
        skill = mean + std * torch.randn(mean.shape, generator=rng, device=mean.device)
        alignment = instruction.loss(Batch(words, skill.unsqueeze(1), mask), rng).sum(1)
        noise = torch.randn(mean.shape, generator=rng, device=mean.device).unsqueeze(1)
        drawing = replace(self.instruction.head, temperature=1.0)
        instructed = drawing.sample(instruction.net, instruction.training_context(words, rng), noise).squeeze(1)
        return self.reconstruction(nets, piece, instructed, rng), alignment


@dataclass(frozen=True)
class _LabeledFraction:
    """Sampling weights with which a fixed fraction of all windows has labeled steps."""

    inputs: tuple[str, ...]
    labeled: float
    unlabeled: float

    @staticmethod
    def of(config: InstructedAutoencoder, data: Dataset) -> _LabeledFraction:
        even = _LabeledFraction(config.instruction.inputs, 1.0, 0.0)
        labeled = sum(even(episode).sum() for episode in data)
        unlabeled = sum(data.lengths) - labeled
        fraction = config.labeled_fraction if labeled and unlabeled else 0.5
        assert fraction is not None
        return _LabeledFraction(even.inputs, fraction / max(labeled, 1), (1 - fraction) / max(unlabeled, 1))

    def __call__(self, episode: Episode) -> np.ndarray:
        labeled = np.ones(len(episode), bool)
        for name in self.inputs:
            if name + "?" in episode.steps:
                labeled &= np.asarray(episode.steps[name + "?"][: len(episode)], bool)
        return np.where(labeled, self.labeled, self.unlabeled)


@method("Cai et al. 2024 (GROOT-2), arXiv 2412.10410, with transformers and images; the form of the alignment is not "
        "published in code", rows=("309",), needs=(NUMBERS, "a task in words for some episodes"),
        when="if few of many episodes are described in words.")
def groot_2(period: int = 100, latent_dim: int = 16, beta: float = 0.1, alignment: float = 0.1, max_bytes: int = 64,
            features: Schema | None = None) -> Method:
    """Follows instructions that few episodes have, by a space of latents that all episodes train (GROOT-2).

    Args:
        period: Number of steps of a piece, and while acting of a latent.
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
    return Method(high, learner=BehaviorCloning(steps=1),  # the stage trains the policy
                  transforms=(LatentLabels(FromStage("latents", "posterior")), words),
                  stages=(Stage("latents", latents),),
                  initialize_from=(InitializeFrom(FromStage("latents", "instruction"), train=()),),
                  wrapper=SkillWrapper(FromStage("latents"), period))
