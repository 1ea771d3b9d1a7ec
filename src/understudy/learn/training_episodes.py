"""Divides the episodes of a data set into training and held-out ones, and transforms them for a method."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core import DataWarning, UserError
from ..data.episode import Dataset, interrupted_episodes
from ..data.missing_actions import NoActions
from .method import Method, training_data, without_made_episodes


@dataclass(frozen=True)
class EpisodeSplit:
    """The episodes of a data set that are not trained on, by their indices in order.

    Attributes:
        held_out: Episodes on which checkpoints are validated.
        left_out: Episodes whose recording was interrupted.
    """

    held_out: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()

    @property
    def excluded(self) -> set[int]:
        """The indices of all episodes that are not trained on."""
        return {*self.held_out, *self.left_out}

    def learned(self, data: Dataset) -> Dataset:
        """Returns the episodes that are trained on."""
        excluded = self.excluded
        return data.select(i for i in range(len(data)) if i not in excluded)


def split_episodes(data: Dataset, val_fraction: float | Sequence[int], include_interrupted: bool = False
                   ) -> EpisodeSplit:
    """Chooses the episodes that are held out, and those that are left out because their recording was interrupted.

    Args:
        val_fraction: As for `validation_episodes`. A fraction is relative to the episodes that are not left out.
        include_interrupted: Whether interrupted episodes are trained on, too.
    """
    left_out = [] if include_interrupted else interrupted_episodes(data)
    complete = sorted(set(range(len(data))) - set(left_out))
    if left_out and not complete:
        raise UserError("every episode was interrupted while it was recorded, so none is left to train on",
                        where=data.metadata.get("path", "data set"),
                        hint="record more, or train on them all the same: --include-interrupted "
                           "(include_interrupted=True in Python)")
    if isinstance(val_fraction, (int, float)):
        return EpisodeSplit(tuple(complete[i] for i in validation_episodes(len(complete), val_fraction)),
                            tuple(left_out))
    held_out = validation_episodes(len(data), val_fraction)
    if not set(complete) - set(held_out):
        raise UserError(f"no episode is left to train on: {len(held_out)} are held out and {len(left_out)} were "
                        "interrupted", where="val_fraction",
                        hint="hold out fewer, or include those that were interrupted")
    return EpisodeSplit(tuple(held_out), tuple(left_out))


def validation_episodes(episodes: int, val_fraction: float | Sequence[int]) -> list[int]:
    """Returns the indices of the episodes that are held out for validation, in order.

    A fraction, at least 0 and below 1, holds out at least one of 5 or more episodes if it is above 0, and none of
    fewer. The choice does not depend on the seed of the training. The indices can also be given.
    """
    if not isinstance(val_fraction, (int, float)):
        if invalid_indices := [i for i in val_fraction if not 0 <= i < episodes]:
            raise UserError(f"there is no episode {invalid_indices[0]} to hold out; the last one is "
                            f"{episodes - 1}", where="val_fraction",
                            hint="episodes are counted from 0")
        count, order = len(set(val_fraction)), sorted(set(val_fraction))
    else:
        if not 0 <= val_fraction < 1:
            raise UserError(f"the fraction must be at least 0 and below 1, not {val_fraction}", where="val_fraction",
                            hint="such as 0.1, a tenth; 0 holds out none")
        count = max(round(val_fraction * episodes), 1) if val_fraction and episodes >= 5 else 0
        order = np.random.default_rng(0).permutation(episodes).tolist()
    if count >= episodes:
        raise UserError(f"all {episodes} episodes are held out, so none is left to train on", where="val_fraction",
                        hint="hold out fewer, or train on more")
    return sorted(order[:count])


@dataclass(frozen=True)
class TrainingEpisodes:
    """The training episodes of a data set, after a method's transforms.

    Attributes:
        complete: All episodes, including the ones that are held out or left out.
        learned: The episodes that are trained on.
    """

    complete: Dataset
    learned: Dataset


def training_episodes(data: Dataset, method: Method, split: EpisodeSplit) -> TrainingEpisodes:
    """Applies a method's transforms to the training episodes of a data set, with its warnings.
    """
    learned = training_data(split.learned(data), method)
    return TrainingEpisodes(_quiet_training_data(data, method), learned)


@dataclass(frozen=True)
class ValidationEpisodes:
    """The held-out episodes by which checkpoints are judged, after a method's transforms.

    Attributes:
        held_out: The episodes on which errors are measured. Empty if they have no actions.
        scale: The training episodes that were recorded, and not made. Their spread is the unit of errors.
    """

    held_out: Dataset
    scale: Dataset


def validation_data(data: Dataset, method: Method, split: EpisodeSplit, learned: Dataset) -> ValidationEpisodes:
    """Applies a method's transforms, whose references are resolved, to recorded episodes.

    Args:
        learned: The episodes that are trained on: see `TrainingEpisodes`.
    """
    recording, held_out = without_made_episodes(method), data.select([])
    if split.held_out:  # some operations take no empty data
        with contextlib.suppress(NoActions):  # perhaps the training episodes have actions
            held_out = _quiet_training_data(data.select(split.held_out), recording)
    return ValidationEpisodes(held_out, learned if recording is method else
                              training_data(split.learned(data), recording))


def _quiet_training_data(data: Dataset, method: Method) -> Dataset:
    """Transforms episodes as a method trains on them, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return training_data(data, method)
