"""Mixtures of data sets, in which each has a fixed fraction of every batch, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..core import UserError
from .episode import Dataset, Episode

DATASET_INDEX = "dataset_index"  # metadata of an episode: the index of its data set
DATASET_NAME = "dataset"  # metadata of an episode: the name of its data set
ROUND = "collection_round"  # metadata of an episode that was collected while training: the number of its round
EXPERT = "expert"  # metadata of an episode: False if it is not a demonstration


@dataclass(frozen=True)
class MixtureWeights:
    """Sampling weights that give each data set of a mixture its fraction of the batches.

    Args:
        weights: Relative frequency of a window at each step, for each data set.
    """

    weights: tuple[float, ...]

    def __call__(self, episode: Episode) -> np.ndarray:
        return np.full(len(episode), self.weights[episode.metadata[DATASET_INDEX]])


def mix(*parts: tuple[Dataset, float], **named_parts: tuple[Dataset, float]) -> tuple[Dataset, MixtureWeights]:
    """Joins datasets into a mixture in which each has a fixed fraction of the training windows, whatever its size.

    Within a dataset all steps are equally likely.

    Args:
        *parts: A dataset, which has steps, and its weight, which is not negative. Weights need not add up to 1.
        **named_parts: A dataset and its weight, with a name to which `Stage.dataset` can refer.

    Returns:
        The episodes of all datasets in order, and the sampling weights: `policy.windows(data,
        sampling_weights=weights)`.

    Example:
        >>> data, weights = mix(demos=(demos, 0.5), play=(play, 0.5))
    """
    names = (*[None] * len(parts), *named_parts)
    parts = (*parts, *named_parts.values())
    weights = np.array([float(weight) for _, weight in parts])
    steps = np.array([data.steps for data, _ in parts])
    if not (len(weights) and np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError(f"weights must not be negative or all 0, unlike {weights.tolist()}", where="mix",
                        hint="give each part its fraction of the batches, such as 0.7 and 0.3")
    for i, (data, _) in enumerate(parts):
        if not steps[i]:
            raise UserError("the data set has no steps", where=f"mix, part {i}",
                            hint=f"leave out {data.metadata.get('path', 'the data set')}")
    rates = {data.fps for data, _ in parts}
    notes = [f"the parts of this mixture run at different rates: {sorted(map(str, rates))} per second"] * (
        len(rates) > 1)
    part_warnings = [w for d, _ in parts for w in d.metadata.get("warnings", ())]
    metadata = {**parts[0][0].metadata, "warnings": part_warnings + notes}
    share = weights / weights.sum()
    metadata["path"] = " + ".join(dict.fromkeys(str(d.metadata["path"]) for d, _ in parts if d.metadata.get("path")))
    metadata["mix"] = [{"path": str(data.metadata.get("path", "")), "share": float(s),
                        **({} if name is None else {"name": name})}
                       for (data, _), s, name in zip(parts, share, names, strict=True)]
    marks = [{DATASET_INDEX: i, **({} if name is None else {DATASET_NAME: name})} for i, name in enumerate(names)]
    episodes = [replace(e, metadata={**e.metadata, **mark}) for (data, _), mark in zip(parts, marks, strict=True)
                for e in data]
    return Dataset(episodes, metadata), MixtureWeights(tuple((share / steps).tolist()))


def expert_episodes(data: Dataset) -> list[int]:
    """Returns the numbers of the episodes that are demonstrations of an expert.

    They were not collected by a training, and `EXPERT` in their metadata is not False. If there is a part "prior", they
    are not in it.
    """
    return [i for i, metadata in enumerate(episode.metadata for episode in data)
            if ROUND not in metadata and metadata.get(DATASET_NAME) != "prior" and metadata.get(EXPERT, True)]
