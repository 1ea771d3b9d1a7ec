"""Modes of behavior (ways of doing a task): which one an episode shows, and how many a policy uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from ...core import UserError, keys
from ...data.episode import Dataset, Episode
from ...envs.base import Env, EnvWrapper
from ...execute.actor import Actor
from .. import stats
from ..rollout import rollout
from ..stats import LEVEL, Interval
from .clusters import Clusters, find_clusters
from .scaling import TrajectoryScaling, evenly_spaced, resample_rows

TRAJECTORY_POINTS = 16  # number of points of a trajectory that stand for its shape
ModeFunction = Callable[[Episode], str | None]  # the mode of an episode; None if it has none


def fork_mode(episode: Episode) -> str | None:
    """Returns the side of the pillar on which an episode of the toy "fork" passed it, "left" or "right"."""
    from ...envs.toys.fork import PILLAR

    x, y = np.asarray(episode.steps["observation.state"], float).T
    past = np.flatnonzero(x >= PILLAR[0])
    return None if not len(past) else "left" if y[past[0]] > 0 else "right"


def reported_mode(episode: Episode) -> str | None:
    """Returns the mode that the environment reports in `info["mode"]` at the end of the episode."""
    mode = episode.metadata.get("mode")
    return None if mode is None or mode == -1 or mode == "" else str(mode)


# of environments that report no modes: a function and the number of modes
MODE_FUNCTIONS: Mapping[str, tuple[ModeFunction, int]] = {"fork": (fork_mode, 2)}


@dataclass(frozen=True)
class TrajectoryClusters:
    """Modes as clusters of trajectories, of their shapes relative to their starts. Clusters with fewer than 5% of the
    episodes, or with one, are dropped."""

    scaling: TrajectoryScaling
    clusters: Clusters
    axes: np.ndarray  # (F, d) principal ones

    @staticmethod
    def from_data(data: Dataset, view: TrajectoryScaling) -> TrajectoryClusters:
        shapes = np.stack([_trajectory_vector(e, view) for e in evenly_spaced(data)])
        _, _, axes = np.linalg.svd(shapes - shapes.mean(0), full_matrices=False)
        least = max(2, math.ceil(len(shapes) / 20))
        return TrajectoryClusters(view, find_clusters(shapes @ axes[:12].T).without_small(least), axes[:12].T)

    def __call__(self, episode: Episode) -> str:
        return f"way {self.clusters.assign(_trajectory_vector(episode, self.scaling)[None] @ self.axes)[0] + 1}"


def _trajectory_vector(episode: Episode, view: TrajectoryScaling) -> np.ndarray:
    states = np.nan_to_num(view.states(episode))
    return (resample_rows(states, TRAJECTORY_POINTS) - states[0]).reshape(-1)


def find_mode_function(
    env: Env | None, episodes: Dataset, demonstrations: Dataset | None, scaling: TrajectoryScaling | None
) -> tuple[ModeFunction, int, str] | None:
    """Finds a function that returns the mode of an episode.

    Args:
        env: The environment, which may report modes.
        demonstrations: Demonstrations. Their trajectories are clustered if the environment reports no modes. None
            clusters the trajectories of the episodes.

    Returns:
        The function, the number of modes, and in words where they come from. None if only one mode is detected.
    """
    name = str(env.metadata["env"]) if env is not None else str(episodes[0].metadata.get("env"))
    if name in MODE_FUNCTIONS:
        return *MODE_FUNCTIONS[name], "the environment"
    reported = {reported_mode(e) for d in (episodes, demonstrations or ()) for e in d} - {None}
    detected = (_reported_modes(env, len(reported)) if reported
                else _clustered_modes(episodes, demonstrations, scaling))
    return detected if detected is not None and detected[1] > 1 else None


def _reported_modes(env: Env | None, n_reported: int) -> tuple[ModeFunction, int, str]:
    stated = env.metadata.get("modes") if env is not None else None
    n_stated = stated if isinstance(stated, int) else len(stated or ())
    return reported_mode, max(n_stated, n_reported), "the environment"


def _clustered_modes(episodes: Dataset, demonstrations: Dataset | None,
                     scaling: TrajectoryScaling | None) -> tuple[ModeFunction, int, str] | None:
    if scaling is None or not scaling.n_components:
        return None
    data = demonstrations if demonstrations is not None else successful_episodes(episodes)
    if len(data) < 4:
        return None
    clusters = TrajectoryClusters.from_data(data, scaling)
    owner = "demonstrations'" if demonstrations is not None else "policy's"
    return clusters, len(clusters.clusters), f"clusters of the {owner} trajectories"


def successful_episodes(episodes: Dataset) -> Dataset:
    """Returns the episodes that succeeded. These are all episodes if success is undefined."""
    return episodes.filter(lambda e: bool(e.metadata.get("success", True)))


def mode_counts(episodes: Dataset, mode_of: ModeFunction) -> Counter[str]:
    """Returns the number of successful episodes in each mode."""
    return Counter(w for e in successful_episodes(episodes) if (w := mode_of(e)) is not None)


def mode_entropy(counts: Sequence[float], n_modes: int) -> float:
    """Computes behavior entropy: the entropy of mode frequencies, in logarithms to the base of the number of modes.

    Few counts underestimate it: see `expected_entropy`.

    Returns:
        0 if the mode is always the same, 1 if all are equally frequent. NaN if nothing was counted.

    References:
        Jia et al. (2024), Towards Diverse Behaviors: A Benchmark for Imitation Learning with Human Demonstrations
        (D3IL).
    """
    if n_modes < 2 or len(counts) > n_modes:
        raise ValueError(f"there must be 2 modes or more, and at most one count for each, not {n_modes} modes and "
                         f"{len(counts)} counts")
    p = np.asarray([c for c in counts if c], float)
    if not len(p):
        return math.nan
    p /= p.sum()
    return float(-(p * np.log(p)).sum() / math.log(n_modes)) + 0.0


def expected_entropy(n_modes: int, repeats: int) -> float:
    """Computes the mean behavior entropy that few rollouts show of a policy that uses all modes equally often."""
    k = np.arange(1, repeats + 1)
    p = scipy.stats.binom.pmf(k, repeats, 1 / n_modes)
    return float(-n_modes * (p * (k / repeats) * np.log(k / repeats)).sum() / math.log(n_modes)) + 0.0


def conditional_entropy(episodes: Dataset, mode_of: ModeFunction, n_modes: int, level: float = LEVEL) -> Interval:
    """Computes conditional behavior entropy: the mean over starts of the entropy of the modes from each start.

    Failures are in no count, and a start from which nothing succeeds is in no mean, as in the paper's code for several
    boxes. The success rate is a separate figure. The start is the unit of the interval.

    Args:
        episodes: Rollouts of `rollout_repeated_starts`, with `metadata["start"]`.

    References:
        Jia et al. (2024), Towards Diverse Behaviors: A Benchmark for Imitation Learning with Human Demonstrations
        (D3IL).
    """
    groups: dict[int, list[Episode]] = {}
    for e in episodes:
        groups.setdefault(int(e.metadata["start"]), []).append(e)
    entropies = [mode_entropy(list(mode_counts(Dataset(g), mode_of).values()), n_modes) for g in groups.values()]
    return stats.bootstrap_mean([h for h in entropies if not math.isnan(h)], level)


def mode_overlap(counts: Mapping[str, float], other_counts: Mapping[str, float]) -> float:
    """Computes the overlap of two distributions of modes: 1 minus their total variation distance.

    Returns:
        1 if all modes have equal frequencies in both, 0 if no mode is common. NaN if one of them is empty.
    """
    a, b = sum(counts.values()), sum(other_counts.values())
    return sum(min(counts.get(w, 0) / a, other_counts[w] / b) for w in other_counts) if a and b else math.nan


# -- repeated starts -----------------------------------------------------------------------------------------------


class RepeatedStartsEnv(EnvWrapper):
    """Episode n has the start and environment noise of episode n // repeats of `seed`. The actor's noise differs, so
    differences between episodes of one start come from the actor."""

    def __init__(self, env: Env, seed: int, starts: int, repeats: int):
        self.env, self.rows, self.features, self.metadata = env, env.rows, env.features, env.metadata
        count = max(starts * repeats, env.rows)  # a rollout starts every row, also rows without an episode
        begin = keys(seed, [n // repeats for n in range(count)])
        self.start_keys = dict(zip(keys(seed, range(count)).tolist(), begin, strict=True))

    def reset(self, which, key):
        start = key.clone()
        for i, k in enumerate(key.tolist()):
            start[i] = self.start_keys[k]
        return self.env.reset(which, start)


def rollout_repeated_starts(actor: Actor, env: Env, starts: int, repeats: int, seed: int = 0, *,
                            watch: Callable[[int, Episode], None] = lambda n, e: None) -> Dataset:
    """Rolls each of the first episodes of a seed out several times.

    A policy without randomness does the same every time.

    Returns:
        The episodes. `metadata["start"]` is the number of the start.
    """
    if starts < 1 or repeats < 2:
        raise UserError(f"needs at least 1 start and 2 rollouts of it, but has {starts} and {repeats}",
                        where="rollout_repeated_starts",
                        hint="such as rollout_repeated_starts(actor, env, starts=16, repeats=8)")
    episodes = rollout(actor, RepeatedStartsEnv(env, seed, starts, repeats), starts * repeats, seed, watch=watch)
    with_starts = [replace(e, metadata={**e.metadata, "start": int(e.metadata["number"]) // repeats}) for e in episodes]
    return Dataset(with_starts, episodes.metadata)
