"""A recording that was interrupted, or goes on: its LeRobot files, and the finished episodes still in its journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core import UserError
from ...files import read_json
from .. import cache, journal
from .base import Source
from .lerobot_read import LeRobot

PUBLISHING = "publishing.json"  # in the journal: the segments that are put into the files, and how many there are then


def opened(path: Path) -> Source:
    """What is at `path` now, also while a recorder moves episodes from the one place into the other."""
    folder = path / journal.FOLDER
    for _ in range(100):
        try:
            segments = [journal.read(file) for file in journal.segments(folder)]
        except FileNotFoundError:
            continue
        files = LeRobot(path)
        left = unpublished(segments, path, len(files.lengths))
        if [s.path for s in segments] == journal.segments(folder):
            return Interrupted(files, left) if left else files
    raise UserError("expected a recording, found one that is being put into its files all the time", where=path,
                    do="try again later")


def unpublished(segments: list[journal.Segment], path: Path, there: int) -> list[journal.Segment]:
    """Those whose episodes are not among the `there` that the files have: `publishing` says what was under way."""
    under_way = path / journal.FOLDER / PUBLISHING
    done = read_json(under_way) if under_way.exists() else {"segments": [], "total": 0}
    names = done["segments"] if there >= done["total"] else []
    return [s for s in segments if s.path.name not in names]


def live(path: Path) -> bool:
    """Is a recorder at work there? Where the system has no locks, nobody knows."""
    try:
        import fcntl

        with open(path / journal.FOLDER / ".recording") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


class Interrupted(Source):
    def __init__(self, files: LeRobot, segments: list[journal.Segment]):
        self.files, self._new = files, [e for s in segments for e in s.episodes]
        self._there = len(files.lengths)
        self.lengths = np.concatenate([files.lengths, [len(e) for e in self._new]]).astype(np.int64)
        self.schema = files.schema
        if not self._there and self._new:
            self.schema = {n: f for n, f in self._new[0].schema.items() if all(n in e.schema for e in self._new)}
        self.key = cache.digest(files.key, [(str(s.path), s.path.stat().st_size if s.path.exists() else 0)
                                            for s in segments])
        self.facts = {**files.facts, "warnings": [*files.facts["warnings"], self._warning(segments)]}

    def _warning(self, segments) -> str:
        path, new = self.files.path, f"{len(self._new)} episode{'s' * (len(self._new) != 1)}"
        if live(path):
            return f"it is being recorded: {new} not in the files yet"
        running = any(s.running is not None and len(s.running) for s in segments)
        return (f"the recording was interrupted: {new} in its journal{', and one that was not finished' * running}; "
                f"understudy repair {path} puts all into the files")

    def rows(self, name):
        old = self.files.rows(name) if name in self.files.schema else np.zeros(self._there, np.int64)
        new = [e.rows(name) if name in e.schema else len(e) for e in self._new]
        return np.concatenate([old, new]).astype(np.int64)

    def column(self, name, episode):
        if episode < self._there:
            return self.files.column(name, episode)
        taken, f = self._new[episode - self._there], self.schema[name]
        if name not in taken.schema:  # text that nobody spoke, outcomes that nobody told
            return np.full(len(taken), "") if f.kind == "string" else np.zeros((len(taken), *f.shape), f.dtype)
        return taken.column(name)

    def frames(self, name, episode):
        return self.files.frames(name, episode) if episode < self._there else super().frames(name, episode)

    def meta(self, episode):
        return self.files.meta(episode) if episode < self._there else self._new[episode - self._there].meta
