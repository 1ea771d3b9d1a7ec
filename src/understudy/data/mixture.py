"""Several data sets as one, each with its share of every batch whatever its size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..core import UserError
from .episode import Dataset, Episode

DATASET_INDEX = "dataset_index"  # the fact of an episode that says which data set it came from


@dataclass(frozen=True)
class MixtureWeights:
    """A `window.Draw`: how often each step of a mixture starts a window, by the part its episode is of."""

    weights: tuple[float, ...]

    def __call__(self, episode: Episode) -> np.ndarray:
        return np.full(len(episode), self.weights[episode.metadata[DATASET_INDEX]])


@dataclass(frozen=True)
class _SetDatasetIndex:
    dataset_index: int

    def __call__(self, episode: Episode) -> Episode:
        return replace(episode, metadata={**episode.metadata, DATASET_INDEX: self.dataset_index})


def mix(*parts: tuple[Dataset, float]) -> tuple[Dataset, MixtureWeights]:
    """The episodes of all parts in order, and how to draw from them: `policy.windows(data, sampling_weights=weights)`.

    Weights need not add up to 1. Within a part all steps are as likely. Raises UserError for parts without steps and
    weights that are negative or all zero.
    """
    weights = np.array([float(weight) for _, weight in parts])
    steps = np.array([data.steps for data, _ in parts])
    if not (len(weights) and np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError(f"expected weights that are not negative and not all 0, found {weights.tolist()}", where="mix",
                        hint="give each part its share of the batches, such as 0.7 and 0.3")
    for i, (data, _) in enumerate(parts):
        if not steps[i]:
            raise UserError("expected at least one step, found none", where=f"mix, part {i}",
                            hint=f"leave out {data.metadata.get('path', 'the data set')}")
    rates = {data.fps for data, _ in parts}
    notes = [f"the parts of this mixture run at different rates: {sorted(map(str, rates))} per second"] * (
        len(rates) > 1)
    facts = {**parts[0][0].metadata, "warnings": [w for d, _ in parts for w in d.metadata.get("warnings", ())] + notes}
    share = weights / weights.sum()
    facts["path"] = " + ".join(dict.fromkeys(str(d.metadata["path"]) for d, _ in parts if d.metadata.get("path")))
    facts["mix"] = [{"path": str(data.metadata.get("path", "")), "share": float(s)}
                    for (data, _), s in zip(parts, share, strict=True)]
    episodes = [e for i, (data, _) in enumerate(parts) for e in data.map(_SetDatasetIndex(i))]
    return Dataset(episodes, facts), MixtureWeights(tuple((share / steps).tolist()))
