"""Retrieves those steps of prior data that are like the demonstrations of a task, to train on them too."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch

from ...checkpoint import FromStage, check_trained
from ...core import Above, AtLeast, AtMost, DataError, Feature, part
from ...data.episode import Dataset, LabeledEpisodes
from ...data.mixture import DATASET_NAME
from ...data.operations import Operation
from .latent_labels import LatentEncoder

SAMPLING_WEIGHT = "sampling_weight"  # the column of `Retrieve`, unless another is named
BLOCK = 1024  # windows that are compared with the task at a time


@part
class Retrieve(Operation):
    """Adds a column of sampling weights: steps of the task, and the steps of prior data most like them, are drawn.

    The data are a mixture in which one part is called `task`, such as ``mix(task=(demos, 0.5), prior=(play, 0.5))``.
    The distance of a prior window is the distance from its latent to the nearest latent of the task. The nearest
    windows are retrieved. All retrieved windows are equally likely, and so are all windows of the task. The remaining
    prior windows are never drawn. ``BehaviorCloning(sampling_column="sampling_weight")`` draws its batches in this way.

    Args:
        encoder: The module that gives latents, or the stage that trained it.
        task: Name of the part with the demonstrations of the task.
        fraction: Fraction of the prior windows to retrieve.
        threshold: Retrieve the windows whose similarity is at least this, in place of a fraction. The similarity is 1
            at the smallest and 0 at the largest distance of a prior window.
        task_fraction: Fraction of the drawn windows that belong to the task.
        into: Name of the column, (T, 1).

    References:
        Du et al. (2023), Behavior Retrieval: Few-Shot Imitation Learning by Querying Unlabeled Datasets,
        arXiv:2304.08742, with a threshold.
        Nasiriany et al. (2022), Learning and Retrieval from Prior Data for Skill-based Imitation Learning (SAILOR),
        arXiv:2210.11435, with a fraction of 0.1.

    Example:
        >>> embedding = Stage("embedding", Method(policy, learner=StateActionVAE()), dataset="prior")
        >>> method = Method(policy, learner=BehaviorCloning(sampling_column="sampling_weight"), stages=(embedding,),
        ...                 transforms=(Retrieve(FromStage("embedding", "embedding")),))
        >>> data, weights = mix(task=(demos, 0.5), prior=(play, 0.5))
        >>> result = fit_method(method, data, seed=0)
    """

    encoder: FromStage | LatentEncoder
    task: str = "task"
    fraction: Annotated[float, Above(0), AtMost(1)] = 0.25
    threshold: float | None = None
    task_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    into: str = SAMPLING_WEIGHT

    def apply(self, data: Dataset) -> Dataset:
        check_trained(self.encoder, LatentEncoder, "Retrieve.encoder")
        names = [episode.metadata.get(DATASET_NAME) for episode in data]
        if all(name is None for name in names):
            raise DataError("the episodes do not say to which part of a mixture they belong", where="Retrieve",
                            hint=f"understudy train ... --prior PRIOR, or mix({self.task}=(demos, 0.5), "
                                 "prior=(others, 0.5)) in Python")
        lengths = np.asarray(data.lengths)
        is_task = np.repeat([name == self.task for name in names], lengths)
        weights = np.zeros(len(is_task))
        if is_task.any():  # held-out episodes alone may have none
            weights[is_task] = self.task_fraction / is_task.sum()
            if not is_task.all():
                retrieved = np.flatnonzero(~is_task)[self._retrieved(self.distances(data, is_task))]
                weights[retrieved] = (1 - self.task_fraction) / max(len(retrieved), 1)
        columns = np.split(weights[:, None], np.cumsum(lengths)[:-1])
        labeled = LabeledEpisodes(data, {self.into: Feature("float64", (1,))}, lambda i: {self.into: columns[i]})
        return Dataset(labeled, data.metadata)

    def distances(self, data: Dataset, is_task: np.ndarray) -> np.ndarray:
        """Returns the distance of each prior window to the nearest one of the task, (n,). `is_task` is (N,)."""
        latents = check_trained(self.encoder, LatentEncoder, "Retrieve.encoder").latents(data).flatten(1)
        task, prior = latents[torch.from_numpy(is_task)], latents[torch.from_numpy(~is_task)]
        return torch.cat([torch.cdist(block, task).amin(1) for block in prior.split(BLOCK)]).cpu().numpy()

    def _retrieved(self, distances: np.ndarray) -> np.ndarray:
        """Returns the numbers of the prior windows to retrieve. Of equally distant ones, the first are taken."""
        if self.threshold is None:
            return np.argsort(distances, kind="stable")[: max(round(self.fraction * len(distances)), 1)]
        low, high = distances.min(), distances.max()
        return np.flatnonzero((high - distances) / max(high - low, 1e-12) >= self.threshold)
