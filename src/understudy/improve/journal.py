"""Journal of a collection round: each episode is stored on the disk as soon as it has ended."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset, write_dataset
from ..envs.base import Env
from ..evaluate.rollout import as_dataset, rollout
from ..execute.actor import Actor
from ..files import whole_folder

MARK = "success_mark"  # column of an actor: 1 or -1 once a person has marked the episode a success or a failure


class EpisodeDiscarded(Exception):
    """Raised when a person discards the running episode, which starts again from the same start."""


class WatchedEnv(Env):
    """Base class of an environment in which a person watches the policy and judges or corrects whole episodes."""

    @abstractmethod
    def watched(self, actor: Actor, asks: bool = False) -> Actor:
        """Wraps the policy's actor so that a person can take over while it acts.

        Args:
            asks: Whether it asks for help, so that nobody has to watch.
        """

    @abstractmethod
    def ask(self) -> None:
        """Holds the environment because the policy asks for help, until the person says who acts."""

    @abstractmethod
    def annotate(self, episode: Episode) -> Episode:
        """Returns the episode that has just ended, with what the person said about it."""


@dataclass(frozen=True)
class EpisodeJournal:
    """Rolls episodes out, and stores each when it ends. Episodes that are stored are not run again.

    Args:
        folder: Where the episodes are, each in its own folder, which is complete or absent. None for memory.
    """

    folder: Path | None
    in_memory: dict[int, Episode] = field(default_factory=dict)

    def rollout(self, actor: Actor, env: Env, episodes: int, seed: int, *, first: int = 0) -> Dataset:
        """Returns the same episodes as the function `rollout`. Stored episodes are read, not run again."""
        def store(number: int, episode: Episode) -> None:
            self.store(number, env.annotate(episode) if isinstance(env, WatchedEnv) else episode)
        numbers = range(first, first + episodes)
        if self.folder is not None:
            for part in self.folder.glob(".*.part"):
                shutil.rmtree(part)
        while missing := [n for n in numbers if n not in self]:
            count = next((i for i, n in enumerate(missing) if n != missing[0] + i), len(missing))
            with suppress(EpisodeDiscarded):
                rollout(actor, env, count, seed, first=missing[0], watch=store)
        return as_dataset([self.episode(n) for n in numbers], env.metadata)

    def rollout_steps(self, actor: Actor, env: Env, n_steps: int, seed: int, *, first: int = 0) -> Dataset:
        """Returns the same episodes as the function `rollout_steps`, and runs no others, because supervising costs."""
        limit, episodes, steps = env.metadata.get("limit"), [], 0
        while steps < n_steps:
            count = 1 if limit is None else -(-(n_steps - steps) // limit)  # needed even if each reaches the limit
            data = self.rollout(actor, env, count, seed, first=first + len(episodes))
            episodes, steps = [*episodes, *data], steps + data.steps
        return as_dataset(episodes, env.metadata)

    def __contains__(self, number: int) -> bool:
        return number in self.in_memory if self.folder is None else (self.folder / str(number)).is_dir()

    def episode(self, number: int) -> Episode:
        if self.folder is None:
            return self.in_memory[number]
        return next(iter(open_dataset(self.folder / str(number) / "episodes.npz").iterate_once()))

    def store(self, number: int, episode: Episode) -> None:
        episode = _with_mark(episode)
        if self.folder is None:
            self.in_memory[number] = episode
            return
        with whole_folder(self.folder / str(number)) as part:
            write_dataset(Dataset([episode]), part / "episodes.npz", "npz")


def _with_mark(episode: Episode) -> Episode:
    """Sets the success of an episode to what a person said, if anything."""
    if MARK not in episode.steps:
        return episode
    marks = np.asarray(episode.steps[MARK])
    episode = episode.replace({MARK: None})
    marks = marks[marks != 0]
    return replace(episode, metadata={**episode.metadata, "success": bool(marks[-1] > 0)}) if marks.size else episode
