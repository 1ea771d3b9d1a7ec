"""Generates demonstrations from a few recorded ones, with moved objects or by symmetries of the world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
import torch

from ..core import AtLeast, UserError, part, role
from ..data.episode import Dataset, Episode
from ..data.operations import Operation
from ..envs import make
from ..envs.base import Restorable

ROWS, MAX_DRAWS, TOLERANCE = 200, 500, 1e-3  # segments that are executed together, and how often; m


@part
class MovableObject:
    """An object that `DemoGeneration` moves in a demonstration, and the columns that move with it.

    Args:
        components: Components of the observation that are its position.
        steps: Numbers of the steps whose actions are places at the object.
        reach: Largest shift of each component, to either side.
    """

    components: tuple[int, ...]
    steps: Annotated[tuple[int, ...], AtLeast(0)]
    reach: Annotated[tuple[float, ...], AtLeast(0)]


@part
class DemoGeneration(Operation):
    """Generates copies of demonstrations in which objects lie elsewhere and the actions near them are shifted.

    Actions are places (see `WaypointWrapper`): one or more points with as many components as a position. Nothing is
    played back, so that a copy may be impossible. Objects are taken to lie where they were at the beginning.

    Args:
        objects: What moves. The shifts of objects are independent.

    References:
        Zhou et al. (2025), You Only Teach Once: Learn One-Shot Bimanual Robotic Manipulation from Video
        Demonstrations, arXiv:2501.14208.
    """

    objects: tuple[MovableObject, ...]
    n_copies: int = 100
    column: str = "observation.state"
    seed: int = 0
    makes_episodes = True

    def apply(self, data: Dataset) -> Dataset:
        rng = np.random.default_rng(self.seed)
        return Dataset([self._copy(episode, rng) for episode in data for _ in range(self.n_copies)], data.metadata)

    def _copy(self, episode: Episode, rng: np.random.Generator) -> Episode:
        obs, action = (np.array(episode.steps[name]) for name in (self.column, "action"))
        for thing in self.objects:
            shift = rng.uniform(-1, 1, len(thing.reach)) * thing.reach
            obs[:, list(thing.components)] += shift
            points = action.reshape(len(action), -1, len(shift))  # a view
            points[list(thing.steps)] += shift
        return episode.replace({self.column: obs, "action": action})


class SegmentRule(ABC):
    """Base class of rules for which generated segments are worth learning from. Subclasses are frozen dataclasses."""

    @abstractmethod
    def accepts(self, segment: Episode) -> bool:
        """Returns whether a generated segment is kept, given how the environment continued it."""


@part
class SymmetryAugmentation(Operation):
    """Generates segments of episodes elsewhere in the plane (shifted, turned, mirrored), executed in the environment.

    Each segment is executed in the environment, from the moved position. A segment is left out if the environment takes
    it elsewhere than the symmetry does, such as at a wall, or if `rule` refuses it. The episodes have the environment's
    rewards. Other observations, such as a goal, are restored as they were recorded.

    Args:
        env: Name of the environment, which must be able to restore a state.
        length: Steps of a segment, at most. A segment that ends the episode is shorter.
        low: Lowest coordinate of a first position, which is drawn uniformly.
        high: Highest coordinate of a first position.
        rule: Which segments to keep. None keeps all.
        column: The column that is a position in the plane. Actions are vectors in the plane.
        trust: Packages besides understudy that may define the environment.

    References:
        Corrado et al. (2024), Guided Data Augmentation for Offline Reinforcement Learning and Imitation Learning,
        arXiv:2310.18247.
    """

    env: str
    n_segments: Annotated[int, AtLeast(1)] = 2000
    length: Annotated[int, AtLeast(1)] = 10
    low: float = 0.0
    high: float = 1.0
    rule: SegmentRule | None = None
    column: str = "observation.state"
    seed: int = 0
    trust: tuple[str, ...] = ()
    makes_episodes = True

    def apply(self, data: Dataset) -> Dataset:
        env, rng, kept = make(self.env, rows=ROWS, trust=self.trust), np.random.default_rng(self.seed), []
        assert isinstance(env, Restorable)
        long = [episode for episode in data if len(episode) >= self.length]
        for _ in range(MAX_DRAWS if long else 0):
            moved = [self._moved(long[int(rng.integers(len(long)))], rng) for _ in range(ROWS)]
            for plan, segment in zip(moved, _execute(env, moved), strict=True):
                offset = np.abs(segment.steps[self.column] - plan.steps[self.column][: len(segment) + 1])
                if offset.max() < TOLERANCE and (self.rule is None or self.rule.accepts(segment)):
                    kept.append(segment)
            if len(kept) >= self.n_segments:
                return Dataset(kept[: self.n_segments], data.metadata)
        raise UserError(f"only {len(kept)} of {MAX_DRAWS * ROWS} segments are kept", where="SymmetryAugmentation",
                        hint="use shorter segments, other corners, or a rule that accepts more")

    def _moved(self, episode: Episode, rng: np.random.Generator) -> Episode:
        """Returns a random segment of an episode, moved, turned and maybe mirrored to a random place."""
        steps, first = episode.steps, int(rng.integers(len(episode) - self.length + 1))
        turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), int(rng.integers(4)))
        turn = (turn * rng.choice([1, -1], (2, 1))).T.astype(np.float32)  # also mirrored
        place = rng.uniform(self.low, self.high, 2).astype(np.float32)
        columns = {k: np.array(v[first:first + self.length + 1]) for k, v in steps.items() if role(k) == "observation"}
        columns[self.column] = place + (columns[self.column] - columns[self.column][0]) @ turn
        return Episode({**columns, "action": np.array(steps["action"][first:first + self.length]) @ turn})


def _execute(env: Restorable, plans: list[Episode]) -> list[Episode]:
    """Executes the actions of each plan from its first state, and returns the resulting episodes."""
    names, T = [k for k in env.features if k != "action"], len(plans[0])
    first = {k: torch.from_numpy(np.stack([plan.steps[k][0] for plan in plans])) for k in names}
    actions = torch.from_numpy(np.stack([plan.steps["action"] for plan in plans], 1))
    rows = torch.arange(len(plans))
    observed, results = [env.restore(rows, first)], []
    for action in actions:
        results.append(env.step(action))
        observed.append(results[-1].obs)
    ended = torch.stack([r.terminated for r in results])
    lengths = torch.where(ended.any(0), ended.int().argmax(0) + 1, T).tolist()
    columns = {"action": actions, "next.reward": torch.stack([r.reward for r in results]), "next.terminated": ended,
               **{k: torch.stack([obs[k] for obs in observed]) for k in names}}
    return [Episode({k: v[: n + (k in names), i].numpy() for k, v in columns.items()}) for i, n in enumerate(lengths)]
