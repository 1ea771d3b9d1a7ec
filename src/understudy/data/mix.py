"""Several data sets as one, each with its share of every batch whatever its size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..core import UserError
from .episode import Dataset, Episode

PART = "mix.part"  # the fact of an episode that says which data set it came from


@dataclass(frozen=True)
class Shares:
    """A `window.Draw`: how often each step of a mixture starts a window, by the part its episode is of."""

    odds: tuple[float, ...]

    def __call__(self, episode: Episode) -> np.ndarray:
        return np.full(len(episode), self.odds[episode.meta[PART]])


@dataclass(frozen=True)
class _Of:
    part: int

    def __call__(self, episode: Episode) -> Episode:
        return replace(episode, meta={**episode.meta, PART: self.part})


def mix(*parts: tuple[Dataset, float]) -> tuple[Dataset, Shares]:
    """The episodes of all parts in order, and how to draw from them: `policy.windows(data, draw=shares)`.

    Weights need not add up to 1. Within a part all steps are as likely. Raises UserError for parts without steps and
    weights that are negative or all zero.
    """
    weights = np.array([float(weight) for _, weight in parts])
    steps = np.array([data.steps for data, _ in parts])
    if not (len(weights) and np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError(f"expected weights that are not negative and not all 0, found {weights.tolist()}", where="mix",
                        do="give each part its share of the batches, such as 0.7 and 0.3")
    for i, (data, _) in enumerate(parts):
        if not steps[i]:
            raise UserError("expected at least one step, found none", where=f"mix, part {i}",
                            do=f"leave out {data.facts.get('path', 'the data set')}")
    rates = {data.fps for data, _ in parts}
    notes = [f"the parts of this mixture run at different rates: {sorted(map(str, rates))} per second"] * (
        len(rates) > 1)
    facts = {**parts[0][0].facts, "warnings": [w for d, _ in parts for w in d.facts.get("warnings", ())] + notes}
    share = weights / weights.sum()
    facts["path"] = " + ".join(dict.fromkeys(str(d.facts["path"]) for d, _ in parts if d.facts.get("path")))
    facts["mix"] = [{"path": str(data.facts.get("path", "")), "share": float(s)}
                    for (data, _), s in zip(parts, share, strict=True)]
    episodes = [e for i, (data, _) in enumerate(parts) for e in data.map(_Of(i))]
    return Dataset(episodes, facts), Shares(tuple((share / steps).tolist()))
