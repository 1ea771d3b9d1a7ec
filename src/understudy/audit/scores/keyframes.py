"""Marks keyframes: steps in which the action cannot be predicted from the actions before it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch

from ...core import Above, AtLeast, Below, Feature, UserError, part
from ...data.episode import Dataset, LabeledEpisodes
from ...data.operations import Operation
from ...data.packed_columns import PackedColumns
from .network_scores import fit_regression
from .step_table import action_columns, action_numbers, episode_and_step, standardized

KEYFRAME = "keyframe"  # the column of `MarkKeyframes`, unless another is named


@part
class MarkKeyframes(Operation):
    """Marks keyframes, steps in which earlier actions do not predict the action, in a column of ones and zeros.

    In many demonstrations an action is nearly the one before it. A policy that reads a history can then copy its last
    action and have a small loss, and it misses the moments at which the demonstrator does something else. A small
    network learns to predict each action from the `n_past` actions before it, without any observation. The steps at
    which its error is largest are the keyframes. ``BehaviorCloning(sample_weights=ColumnWeights("keyframe", 5.0))``
    lets them count more.

    Args:
        fraction: Fraction of all steps that are keyframes.
        n_past: Number of earlier actions. Before the first step of an episode they are the mean action.
        into: Name of the column, (T, 1).

    References:
        Wen et al. (2021), Keyframe-Focused Visual Imitation Learning, arXiv:2106.06452.

    Example:
        >>> data = MarkKeyframes().apply(open_dataset("demos"))
        >>> [np.flatnonzero(episode.steps["keyframe"]) for episode in data[:3]]
    """

    fraction: Annotated[float, Above(0), Below(1)] = 0.1
    n_past: Annotated[int, AtLeast(1)] = 3
    n_updates: int = 1000
    seed: int = 0
    into: str = KEYFRAME

    def apply(self, data: Dataset) -> Dataset:
        error = np.concatenate(self.errors(data))
        n_marked = max(round(self.fraction * len(error)), 1)
        marked = np.zeros((len(error), 1), np.float32)
        marked[np.argsort(-error, kind="stable")[:n_marked]] = 1.0
        columns = np.split(marked, np.cumsum(data.lengths)[:-1])
        labeled = LabeledEpisodes(data, {self.into: Feature("float32", (1,))}, lambda i: {self.into: columns[i]})
        return Dataset(labeled, data.metadata)

    def errors(self, data: Dataset) -> list[np.ndarray]:
        """Returns the squared error of the prediction at each step, (T,) for each episode.

        Errors are means over the components of the action, in units of their variance.
        """
        features, place = data.features(), str(data.metadata.get("path", "data set"))
        names = action_columns(features, place)
        pack = PackedColumns.from_episodes(data, names)
        action = action_numbers(pack, names, features)
        if not np.isfinite(action).all():
            raise UserError("there are actions that are not finite", where=place,
                            hint="understudy audit names the steps")
        action = standardized(action).astype(np.float32)
        _, step = episode_and_step(pack.lengths)
        past = np.concatenate([np.where((step >= back)[:, None], np.roll(action, back, 0), 0)
                               for back in range(1, self.n_past + 1)], 1).astype(np.float32)
        net = fit_regression(past, action, 1, self.n_updates, self.seed)
        with torch.no_grad():
            predicted = net(torch.from_numpy(past))[0].numpy()
        error = np.square(predicted - action).mean(1)
        return np.split(error, np.cumsum(pack.lengths)[:-1])
