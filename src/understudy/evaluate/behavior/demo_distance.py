"""Distances of a policy's episodes from demonstrations, and a test of whether the two can be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

from ...data.episode import Dataset, Episode
from ..stats import LEVEL, Interval, clopper_pearson
from .motion import motion_features
from .scaling import TrajectoryScaling, evenly_spaced, evenly_spaced_indices

MAX_STEPS = 20_000  # steps of the demonstrations in the index, evenly spaced
MAX_COMPONENTS = 12  # more components than that are seen through as many principal ones: neighbors mean little in more
MIN_EPISODES, MAX_EPISODES = 10, 100  # smallest and largest number of episodes of each kind for the classifier


@dataclass(frozen=True)
class DemonstrationIndex:
    """Nearest-neighbor index of demonstrated states.

    A distance is the root mean square over the components that vary, in their standard deviations. 0 is a demonstrated
    state, and about 1.4 is the distance of two random states.
    """

    scaling: TrajectoryScaling
    tree: scipy.spatial.cKDTree
    axes: np.ndarray  # (S, d)
    actions: np.ndarray | None  # (N, A)
    episode: np.ndarray  # (N,)
    n_state_components: int = 0  # components that vary

    @staticmethod
    def from_data(data: Dataset, view: TrajectoryScaling) -> DemonstrationIndex | None:
        """Builds the index from a data set.

        Returns:
            The index. None if no numeric column can be compared.
        """
        if not view.n_components:
            return None
        states, actions, episode_of = [], [], []
        for i, e in enumerate(evenly_spaced(data)):
            s = view.states(e)[:len(e)]
            a = view.actions(e)
            n = len(s) if a is None else min(len(s), len(a))
            good = np.isfinite(s[:n]).all(1) & (True if a is None else np.isfinite(a[:n]).all(1))
            states.append(s[:n][good])
            episode_of.append(np.full(int(good.sum()), i))
            if a is not None:
                actions.append(a[:n][good])
        states, episode_of = np.concatenate(states), np.concatenate(episode_of)
        if not len(states):
            return None
        selected = evenly_spaced_indices(len(states), MAX_STEPS)
        states, axes = states[selected], np.eye(states.shape[1])
        if view.n_components > MAX_COMPONENTS:
            axes = np.linalg.eigh(states.T @ states)[1][:, ::-1][:, :MAX_COMPONENTS]
        return DemonstrationIndex(view, scipy.spatial.cKDTree(states @ axes), axes,
                                  np.concatenate(actions)[selected] if actions else None, episode_of[selected],
                                  min(view.n_components, axes.shape[1]))

    def distances(self, episode: Episode, count: int = 10, exclude: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distances of every step of an episode from the demonstrations.

        Args:
            episode: The episode, T steps.
            count: Number of nearest states. Each action is compared with the actions in all of them, so that one of
                several demonstrated ways is near.
            exclude: Number of a demonstration to leave out, for distances between demonstrations.

        Returns:
            Distance of each state from the nearest demonstrated state, (T,), and of each action from the nearest of the
            `count` actions, (T,). NaN where a value is NaN.
        """
        states = self.scaling.states(episode)[:len(episode)] @ self.axes
        actions = self.scaling.actions(episode) if self.actions is not None else None
        state_distances, action_distances = np.full(len(states), np.nan), np.full(len(states), np.nan)
        good = np.flatnonzero(np.isfinite(states).all(1))
        is_allowed = self.episode != (-1 if exclude is None else exclude)
        if not len(good) or not is_allowed.any():
            return state_distances, action_distances
        ask = min(count + int((~is_allowed).sum()), len(self.episode))
        neighbor_distances, neighbors = self.tree.query(states[good], np.arange(1, ask + 1))
        is_other = is_allowed[neighbors]
        kept = is_other & (np.cumsum(is_other, 1) <= count)
        state_distances[good] = np.where(kept, neighbor_distances, np.inf).min(1) / math.sqrt(self.n_state_components)
        if actions is not None and self.actions is not None:
            assert self.scaling.action_scale is not None
            gap = self.actions[neighbors] - actions[good][:, None]
            squared_distances = np.where(kept, np.square(gap).sum(2), np.inf).min(1)
            live = max(int(np.isfinite(self.scaling.action_scale).sum()), 1)
            action_distances[good] = np.sqrt(squared_distances / live)
        return state_distances, action_distances


@dataclass(frozen=True)
class DistributionDistance:
    """The earth mover's distances (Wasserstein 1) between two sets of episodes, of each component, mean in standard
    deviations.

    There is one for the states, and one for the changes of actions from step to step. 0 means equal distributions. The
    usual distance is the distance between two halves of the demonstrations, with even and with odd numbers.
    """

    states: float
    state_changes: float
    between_demonstrations: tuple[float, float]

    def to_json(self) -> dict[str, float]:
        return {
            "states": self.states,
            "state_changes": self.state_changes,
            "demonstrations_states": self.between_demonstrations[0],
            "demonstrations_state_changes": self.between_demonstrations[1],
        }


def distribution_distance(
    episodes: Dataset, demonstrations: Dataset, scaling: TrajectoryScaling
) -> DistributionDistance | None:
    """Computes the distance between the distributions of episodes and of demonstrations. It ignores time.

    For demonstrations by people it is a statistic of human-likeness.

    Returns:
        The distances. None for fewer than four demonstrations.

    References:
        Pearce and Zhu (2022), Counter-Strike Deathmatch with Large-Scale Behavioural Cloning, for places in a game and
        turns of the view.
    """
    demonstrated = evenly_spaced(demonstrations)
    if len(demonstrated) < 4:
        return None
    policy_points = _states_and_changes(evenly_spaced(episodes), scaling)
    demonstration_points = _states_and_changes(demonstrated, scaling)
    halves = _states_and_changes(demonstrated[::2], scaling), _states_and_changes(demonstrated[1::2], scaling)
    states, turns = (_wasserstein(a, b) for a, b in zip(policy_points, demonstration_points, strict=True))
    one, two = (_wasserstein(a, b) for a, b in zip(*halves, strict=True))
    return DistributionDistance(states, turns, (one, two))


def _states_and_changes(episodes: list[Episode], view: TrajectoryScaling) -> tuple[np.ndarray, np.ndarray]:
    states = np.concatenate([view.states(e) for e in episodes])[:, np.isfinite(view.scale)]
    if view.action_scale is None:
        return states, np.zeros((0, 0))
    turns = np.concatenate([np.diff(actions, axis=0) for e in episodes if (actions := view.actions(e)) is not None])
    return states, turns[:, np.isfinite(view.action_scale)]


def _wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x[np.isfinite(x).all(1)] for x in (a, b))
    if not len(a) or not len(b) or not a.shape[1]:
        return math.nan
    return float(np.mean([scipy.stats.wasserstein_distance(x, y) for x, y in zip(a.T, b.T, strict=True)]))


def discriminator_accuracy(episodes: Dataset, demonstrations: Dataset, scaling: TrajectoryScaling, fps: float,
                           level: float = LEVEL) -> Interval | None:
    """Trains a classifier to tell episodes from demonstrations by how they move, and returns its accuracy.

    Each of an equal number of both, at most 100, gets the class of its nearest neighbor. 0.5 means that they cannot be
    told apart, and 1 that they always can. The Clopper-Pearson interval treats the answers as independent, which is
    only approximately true for neighbors.

    Returns:
        The accuracy. None for fewer than ten of either.

    References:
        Lopez-Paz and Oquab (2017), Revisiting Classifier Two-Sample Tests; Devlin et al. (2021), Navigation Turing
        Test. It replaces the trained judge of that test.
    """
    count = min(len(episodes), len(demonstrations), MAX_EPISODES)
    if count < MIN_EPISODES:
        return None
    both = [*evenly_spaced(episodes, count), *evenly_spaced(demonstrations, count)]
    x = np.stack([motion_features(e, scaling, fps) for e in both])
    kind = np.arange(len(both)) >= len(both) // 2
    spread = x.std(0)
    x = (x - x.mean(0)) / np.where(spread > 1e-9, spread, np.inf)
    apart = scipy.spatial.distance.cdist(x, x)
    np.fill_diagonal(apart, np.inf)
    # Equally near neighbors share the vote: two equal ones of both kinds say nothing.
    nearest = apart <= apart.min(1, keepdims=True) * (1 + 1e-9)
    same = (nearest & (kind[:, None] == kind)).sum(1) / nearest.sum(1)
    return clopper_pearson(float(same.sum()), len(both), level)
