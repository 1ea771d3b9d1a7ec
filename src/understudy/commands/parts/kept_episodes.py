"""Stores finished episodes of an evaluation until it ends, so that an interrupted one can continue."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import Feature
from ...data import cache
from ...data.episode import Episode
from ...files import try_lock, whole_file
from ...user_code import user_code_digest

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...envs.base import Env
    from ...evaluate.workers import WorkerPool

WRITE_EVERY = 5.0  # s of rollouts, of which at most as much is lost if the process is killed
_METADATA = "metadata.json"  # the metadata and the schema of an episode in a file


class KeptEpisodes:
    """Episodes that an interrupted call of the same evaluation has finished. A context manager.

    They are in the cache of understudy, in a folder per policy, environment and seed, and are removed when the context
    ends without an error.

    The name of the folder is a digest of what decides an episode: the weights and options of the policy, the name,
    versions and limits of the environment, the seed, and the files of the user's code that were imported. Episodes of
    another policy or environment are therefore never used. The number of episodes is not part of it.

    Example:
        >>> with KeptEpisodes() as kept, WorkerPool(setup, 4) as crew:
        ...     episodes = kept.rollout(crew, env, 5000, 0, {"by": "policy 0123456789abcdef"})
    """

    def __init__(self):
        self._folders: dict[Path, int] = {}  # each with the handle of its lock
        self._pending: dict[Path, dict[int, Episode]] = {}
        self._stored: dict[Path, dict[int, Episode]] = {}  # episodes of an interrupted call, until they are returned
        self._written = time.monotonic()

    def __enter__(self) -> KeptEpisodes:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is not None:
            self._write()
        for folder, handle in self._folders.items():
            if kind is None:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def rollout(self, crew: WorkerPool, env: Env, episodes: int, seed: int, policy: Mapping[str, Any],
                watch: Callable[[int, Episode], None] = lambda n, e: None, numbers: range | None = None) -> Dataset:
        """Rolls out the episodes that are not kept yet, and returns all of them, as `WorkerPool.rollout` does.

        Args:
            episodes: Largest number of episodes of the evaluation.
            policy: What the actions depend on, as JSON values.
            watch: Called as `watch(number, episode)` when an episode ends, and for each kept episode.
            numbers: The numbers of the episodes that are needed now. None for all of them.
        """
        from ...evaluate.rollout import as_dataset

        numbers = range(episodes) if numbers is None else numbers
        world = {k: env.metadata.get(k) for k in ("env", "version", "simulator", "limit", "low", "high", "fps")}
        key = cache.json_digest(version("understudy"), repr(world), seed, policy, user_code_digest())
        folder = cache.folder() / f"eval-{key}"
        if not self._lock(folder):  # another process evaluates the same
            return crew.rollout(len(numbers), seed, first=numbers.start, watch=watch)
        if folder not in self._stored:
            stored = self._stored[folder] = {n: e for n, e in _read(folder).items() if n < episodes}
            if stored:
                print(f"{len(stored)} of {episodes} episodes were finished by an interrupted call with the same "
                      f"policy, environment and seed, and are not run again: they are in {folder}", file=sys.stderr)
        stored = self._stored[folder]
        finished = {n: stored.pop(n) for n in numbers if n in stored}
        for number, episode in finished.items():
            watch(number, episode)

        def keep(number: int, episode: Episode) -> None:
            self._pending.setdefault(folder, {})[number] = finished[number] = episode
            if time.monotonic() - self._written >= WRITE_EVERY:
                self._write()
            watch(number, episode)
        missing = [n for n in numbers if n not in finished]
        metadata = env.metadata
        while missing:
            count = next((i for i, n in enumerate(missing) if n != missing[0] + i), len(missing))
            crew.rollout(count, seed, first=missing[0], watch=keep)
            missing, metadata = missing[count:], crew.metadata
        return as_dataset([finished[n] for n in numbers], metadata)

    def _lock(self, folder: Path) -> bool:
        if folder in self._folders:
            return True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        except OSError:  # no place for a cache
            return False
        if not try_lock(handle):
            os.close(handle)
            return False
        self._folders[folder] = handle
        return True

    def _write(self) -> None:
        """Writes the episodes that have finished since the last time. Each file is there completely or not at all."""
        for folder, episodes in self._pending.items():
            arrays = {f"{number}/{name}": value for number, episode in episodes.items()
                      for name, value in _arrays(episode).items()}
            try:
                if arrays:
                    with whole_file(folder / f"{min(episodes)}-{len(episodes)}.npz") as part:
                        np.savez(part, **arrays)  # ty: ignore[invalid-argument-type]
            except OSError as error:  # the evaluation itself needs no disk
                print(f"finished episodes could not be kept in {folder}: {error.strerror}", file=sys.stderr)
        self._pending, self._written = {}, time.monotonic()


def _arrays(episode: Episode) -> dict[str, np.ndarray]:
    document = {"metadata": episode.metadata, "schema": {n: asdict(f) for n, f in episode.schema.items()}}
    return {**episode.steps, _METADATA: np.frombuffer(json.dumps(document).encode(), np.uint8)}


def _read(folder: Path) -> dict[int, Episode]:
    """Reads the episodes in the files of a folder, by their numbers."""
    steps: dict[int, dict[str, np.ndarray]] = {}
    for file in folder.glob("*.npz"):
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, name = key.split("/", 1)
                steps.setdefault(int(number), {})[name] = arrays[key]
    episodes = {}
    for number, columns in sorted(steps.items()):
        document = json.loads(columns.pop(_METADATA).tobytes())
        episodes[number] = Episode(columns, document["metadata"], schema={
            name: Feature.from_json(f) for name, f in document["schema"].items()})
    return episodes
