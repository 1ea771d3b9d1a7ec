"""Several ways of doing a thing: which way an episode went, and how many of them a policy knows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats as scipy_stats

from ...core import UserError, keys
from ...data.episode import Dataset, Episode
from ...envs.base import Env
from ...execute.actor import Actor
from .. import stats
from ..rollout import rollout
from ..stats import LEVEL, Interval
from .clusters import Clusters, clustered
from .view import View, resampled, thinned

POINTS = 16  # of a trajectory, for its shape
Way = Callable[[Episode], str | None]  # which way this episode went; None where it went none


def fork(episode: Episode) -> str | None:
    """The side of the pillar on which an episode of the fork passed it: "left" is above it on the map."""
    from ...envs.fork import PILLAR

    x, y = np.asarray(episode.steps["observation.state"], float).T
    past = np.flatnonzero(x >= PILLAR[0])
    return None if not len(past) else "left" if y[past[0]] > 0 else "right"


def told(episode: Episode) -> str | None:
    """What the environment says in its `info["mode"]` when the episode ends."""
    mode = episode.meta.get("mode")
    return None if mode is None or mode == -1 or mode == "" else str(mode)


WAYS: Mapping[str, tuple[Way, int]] = {"fork": (fork, 2)}  # of environments that tell of none, and how many there are


@dataclass(frozen=True)
class Shapes:
    """Ways as clusters of trajectories: their shapes from where each began, in the units of a view. What fewer than one
    in twenty do, or one alone, is no way of its own."""

    view: View
    clusters: Clusters
    axes: np.ndarray  # (F, d) principal ones

    @staticmethod
    def of(data: Dataset, view: View) -> Shapes:
        shapes = np.stack([_shape(e, view) for e in thinned(data)])
        _, _, axes = np.linalg.svd(shapes - shapes.mean(0), full_matrices=False)
        least = max(2, math.ceil(len(shapes) / 20))
        return Shapes(view, clustered(shapes @ axes[:12].T).larger(least), axes[:12].T)

    def __call__(self, episode: Episode) -> str:
        return f"way {self.clusters.nearest(_shape(episode, self.view)[None] @ self.axes)[0] + 1}"


def _shape(episode: Episode, view: View) -> np.ndarray:
    states = np.nan_to_num(view.states(episode))
    return (resampled(states, POINTS) - states[0]).reshape(-1)


def way_of(env: Env | None, episodes: Dataset, demonstrations: Dataset | None, view: View | None
           ) -> tuple[Way, int, str] | None:
    """Which way an episode went, how many ways there are, and who says so: the environment, or clusters of the
    demonstrations' trajectories, of the episodes' own where there are none. None where there is one way only, as far
    as can be told."""
    name = str(env.facts["env"]) if env is not None else str(episodes[0].meta.get("env"))
    if name in WAYS:
        return *WAYS[name], "the environment"
    if any(told(e) is not None for d in (episodes, demonstrations or ()) for e in d):
        known = {told(e) for d in (episodes, demonstrations or ()) for e in d} - {None}
        stated = env.facts.get("modes") if env is not None else None
        count = stated if isinstance(stated, int) else len(stated) if stated else len(known)
        return (told, max(count, len(known)), "the environment") if max(count, len(known)) > 1 else None
    if view is None or not view.width:
        return None
    whose = demonstrations if demonstrations is not None else succeeded(episodes)
    if len(whose) < 4:
        return None
    shapes = Shapes.of(whose, view)
    return (shapes, len(shapes.clusters), "clusters of the demonstrations' trajectories" if demonstrations is not None
            else "clusters of its own trajectories") if len(shapes.clusters) > 1 else None


def succeeded(episodes: Dataset) -> Dataset:
    """Those that did; all, where success is not defined."""
    return episodes.where(lambda e: bool(e.meta.get("success", True)))


def counts(episodes: Dataset, way: Way) -> Counter[str]:
    """How many of the successful episodes went which way."""
    return Counter(w for e in succeeded(episodes) if (w := way(e)) is not None)


def entropy(counted: Sequence[float], ways: int) -> float:
    """Behaviour entropy (Jia et al. 2024, D3IL): of how often each way was gone, in logarithms to the base of how many
    there are. So 0 is always the same one, and 1 all equally often; NaN where nothing was counted. Few counts find too
    little of it, see `fair`."""
    if ways < 2 or len(counted) > ways:
        raise ValueError(f"expected two ways or more, and no more counts than that, found {ways} and {len(counted)}")
    p = np.asarray([c for c in counted if c], float)
    if not len(p):
        return math.nan
    p /= p.sum()
    return float(-(p * np.log(p)).sum() / math.log(ways)) + 0.0


def fair(ways: int, repeats: int) -> float:
    """The entropy that `repeats` rollouts of a policy find on average which goes all ways equally often: with few of
    them it is less than 1."""
    k = np.arange(1, repeats + 1)
    p = scipy_stats.binom.pmf(k, repeats, 1 / ways)
    return float(-ways * (p * (k / repeats) * np.log(k / repeats)).sum() / math.log(ways)) + 0.0


def per_start(episodes: Dataset, way: Way, ways: int, level: float = LEVEL) -> Interval:
    """The mean over starts (the episodes' `meta["start"]`) of the entropy of what was done from each: conditional
    behaviour entropy (Jia et al. 2024). Failures are in no count, and a start where nothing succeeds is in no mean, as
    in their code for several boxes: how often it succeeds is another figure. The start is the unit of the interval."""
    groups: dict[int, list[Episode]] = {}
    for e in episodes:
        groups.setdefault(int(e.meta["start"]), []).append(e)
    found = [entropy(list(counts(Dataset(g), way).values()), ways) for g in groups.values()]
    return stats.mean([h for h in found if not math.isnan(h)], level)


def overlap(mine: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """What two counts of ways share: 1 where they go each as often, 0 where no way is common (1 less the distance in
    total variation). NaN where one of them is empty."""
    a, b = sum(mine.values()), sum(theirs.values())
    return sum(min(mine.get(w, 0) / a, theirs[w] / b) for w in theirs) if a and b else math.nan


# -- the same start again and again --------------------------------------------------------------------------------


class SameStarts(Env):
    """An environment whose episode n begins as episode n // repeats of `seed` does, and has its luck; the actor's own
    noise is that of number n, as ever. So what differs between episodes of one start is the actor's doing."""

    def __init__(self, env: Env, seed: int, starts: int, repeats: int):
        self.env, self.rows, self.features, self.facts = env, env.rows, env.features, env.facts
        count = max(starts * repeats, env.rows)  # a rollout starts every row, also those without an episode
        begin = keys(seed, [n // repeats for n in range(count)])
        self.begins = dict(zip(keys(seed, range(count)).tolist(), begin, strict=True))

    def reset(self, which, key):
        start = key.clone()
        for i, k in enumerate(key.tolist()):
            start[i] = self.begins[k]
        return self.env.reset(which, start)

    def step(self, action):
        return self.env.step(action)


def repeated(actor: Actor, env: Env, starts: int, repeats: int, seed: int = 0, *,
             watch: Callable[[int, Episode], None] = lambda n, e: None) -> Dataset:
    """Rolls each of the first `starts` episodes of `seed` out `repeats` times; which start it was is in
    `meta["start"]`. A policy that draws nothing does the same every time."""
    if starts < 1 or repeats < 2:
        raise UserError(f"expected a start and two rollouts of it at least, found {starts} and {repeats}",
                        where="repeated", do="such as repeated(actor, env, starts=16, repeats=8)")
    ran = rollout(actor, SameStarts(env, seed, starts, repeats), starts * repeats, seed, watch=watch)
    return Dataset([replace(e, meta={**e.meta, "start": int(e.meta["number"]) // repeats}) for e in ran], ran.facts)
