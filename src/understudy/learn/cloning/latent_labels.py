"""Adds latents of a trained module to the data as a column, which later stages learn from."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ...checkpoint import CheckpointModule, FromStage, check_trained
from ...core import AtLeast, Batch, Feature, part
from ...data.episode import Dataset, LabeledEpisodes
from ...data.operations import Operation
from ...data.window import Windows

SKILL = "observation.skill"  # the column of skills, unless another is named


class LatentEncoder(CheckpointModule):
    """Base class of modules that give each window of an episode a latent: a skill, a plan or a latent action."""

    latent: Feature

    @abstractmethod
    def windows(self, data: Dataset) -> Windows:
        """Returns the windows that the module reads. There is one for each step of the data."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Returns the most likely latent of each of `windows`, (B, *latent.shape). It is not random."""

    @torch.no_grad()
    def latents(self, data: Dataset) -> Tensor:
        """Returns the latents of all steps of the data, (N, *latent.shape)."""
        device = next(self.parameters()).device
        return torch.cat([self(batch.to(device)) for batch in self.windows(data).scan()])


@part
class LatentLabels(Operation):
    """Writes the latent of each step into a column, as a `LatentEncoder` gives it.

    The latent of step t is computed from the window at t, so that a policy can learn which skill to begin at any step.
    All latents are computed once. Columns of the data stay where they are stored.

    The column is not computed while acting. A policy that reads it gets it from a policy that plans it
    (`Hierarchical`, `SkillWrapper`), or from an `ObservationWrapper` with the latent of a demonstration to follow.

    Args:
        encoder: The module, or the stage that trained it.
        into: Name of the column, (T, *latent.shape).
        period: Number of steps in a row that share one latent, the latent of the first step. Counted from the start of
            each episode. 1 gives each step its own latent.

    Example:
        >>> skills = Stage("skills", Method(low, learner=SkillAutoencoder(length=10)))
        >>> method = Method(high, stages=(skills,), transforms=(LatentLabels(FromStage("skills", "posterior")),),
        ...                 wrapper=SkillWrapper(FromStage("skills"), period=10))
    """

    encoder: FromStage | LatentEncoder
    into: str = SKILL
    period: Annotated[int, AtLeast(1)] = 1

    def apply(self, data: Dataset) -> Dataset:
        encoder = check_trained(self.encoder, LatentEncoder, "LatentLabels.encoder")
        latents = encoder.latents(data).cpu().numpy().astype(encoder.latent.dtype)
        columns = [column[np.arange(len(column)) // self.period * self.period]
                   for column in np.split(latents, np.cumsum(data.lengths)[:-1])]
        labeled = LabeledEpisodes(data, {self.into: encoder.latent}, lambda i: {self.into: columns[i]})
        return Dataset(labeled, data.metadata)
