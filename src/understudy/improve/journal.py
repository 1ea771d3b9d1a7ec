"""Journal of a collection round: each episode is stored as soon as it has ended, and each watched step as it happens.

A person's corrections cannot be collected again. Therefore the steps of a watched episode are written while it runs,
and what a killed process leaves is stored as an interrupted episode when the round continues.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Feature
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset, write_dataset
from ..data.journal import JournalWriter, describe_columns, pack_row, read_segment, segment_files
from ..envs.base import Env
from ..evaluate.rollout import as_dataset, rollout
from ..execute.actor import Actor
from ..files import whole_folder
from .gates import INTERVENTION

RUNNING = "running"  # folder of the steps of the episode that is being watched
StepWatcher = Callable[[Sequence[int], Mapping[str, np.ndarray]], None]  # see `rollout`
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

    @abstractmethod
    def annotate_step(self) -> Mapping[str, np.ndarray]:
        """Returns the columns of the last step that `annotate` would add or replace, as far as they are known now."""


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
            self.recover()
        while missing := [n for n in numbers if n not in self]:
            count = next((i for i, n in enumerate(missing) if n != missing[0] + i), len(missing))
            with suppress(EpisodeDiscarded), self._steps_written(env, seed) as watch_step:
                rollout(actor, env, count, seed, first=missing[0], watch=store, watch_step=watch_step)
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

    def recover(self) -> None:
        """Stores the episode that a killed process was running, if a person had acted in it.

        Its metadata say "interrupted". An episode of the policy alone is dropped, because it can be run again.
        """
        assert self.folder is not None
        for path in segment_files(self.folder / RUNNING):
            if (running := read_segment(path).unfinished) is not None and len(running):
                episode, number = running.episode(), running.metadata["number"]
                if number not in self and bool(np.any(episode.steps.get(INTERVENTION, False))):
                    truncated = np.arange(len(episode)) == len(episode) - 1
                    columns = {name: np.asarray(episode.steps[name]) for name in episode.steps}
                    self.store(number, replace(episode, steps={**columns, "next.truncated": truncated}, metadata={
                        **episode.metadata, "interrupted": True}))
        shutil.rmtree(self.folder / RUNNING, ignore_errors=True)

    @contextmanager
    def _steps_written(self, env: Env, seed: int) -> Iterator[StepWatcher]:
        """Gives the function that writes each step of a watched episode. It does nothing if nobody watches.

        What an error leaves can be recovered. What a person has discarded, or quit, cannot.
        """
        if self.folder is None or not isinstance(env, WatchedEnv):
            yield lambda numbers, columns: None
            return
        (self.folder / RUNNING).mkdir(parents=True, exist_ok=True)
        steps = _StepWriter(JournalWriter(self.folder / RUNNING, {}), env, {"seed": seed, "env": env.metadata["env"]})
        try:
            yield steps
        except (EpisodeDiscarded, KeyboardInterrupt):
            shutil.rmtree(self.folder / RUNNING)
            raise
        finally:
            steps.writer.rotate()
        shutil.rmtree(self.folder / RUNNING)


@dataclass
class _StepWriter:
    """Writes the steps of an environment with one row. Each episode begins a new segment."""

    writer: JournalWriter
    env: WatchedEnv
    metadata: Mapping[str, Any]
    number: int = -1

    def __call__(self, numbers: Sequence[int], columns: Mapping[str, np.ndarray]) -> None:
        row = {name: values[0] for name, values in columns.items()} | dict(self.env.annotate_step())
        schema = {name: self.env.features.get(name) or Feature(str(value.dtype), value.shape)
                  for name, value in row.items()}
        if numbers[0] != self.number:
            self.number = numbers[0]
            if (finished := self.writer.rotate()) is not None:  # the episode in it is stored
                finished.unlink()
            begin = {"columns": describe_columns(schema), "metadata": {**self.metadata, "number": self.number}}
            self.writer.append(b"B", json.dumps(begin).encode(), first_episode=self.number)
        self.writer.append(b"S", *pack_row(schema, row), first_episode=self.number)


def _with_mark(episode: Episode) -> Episode:
    """Sets the success of an episode to what a person said, if anything."""
    if MARK not in episode.steps:
        return episode
    marks = np.asarray(episode.steps[MARK])
    episode = episode.replace({MARK: None})
    marks = marks[marks != 0]
    return replace(episode, metadata={**episode.metadata, "success": bool(marks[-1] > 0)}) if marks.size else episode
