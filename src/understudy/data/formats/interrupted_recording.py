"""Reads recordings that were interrupted or are running: the LeRobot files and the finished episodes in the journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core import UserError
from ...files import read_json
from ...hints import command_line
from .. import cache, journal
from ..episode import ColumnSource
from .lerobot_read import LeRobotSource

# file in the journal: the segments that are being moved into the files, and the number of episodes afterwards
PUBLISHING_FILE = "publishing.json"


def open_recording(path: Path) -> ColumnSource:
    """Opens the episodes of a recording, even while a recorder moves them from its journal into the files."""
    folder = path / journal.JOURNAL_FOLDER
    for _ in range(100):
        try:
            segments = [journal.read_segment(file) for file in journal.segment_files(folder)]
        except FileNotFoundError:
            continue
        files = LeRobotSource(path)
        unpublished = unpublished_segments(segments, path, len(files.lengths))
        if [s.path for s in segments] == journal.segment_files(folder):
            return InterruptedRecordingSource(files, unpublished) if unpublished else files
    raise UserError("the recorder is changing the recording all the time, so it cannot be read", where=path,
                    hint="try again later")


def unpublished_segments(segments: list[journal.JournalSegment], path: Path, n_published: int
                         ) -> list[journal.JournalSegment]:
    """Returns the journal segments of episodes that are not among the `n_published` episodes of the LeRobot files."""
    under_way = path / journal.JOURNAL_FOLDER / PUBLISHING_FILE
    done = read_json(under_way) if under_way.exists() else None
    published = done["segments"] if done and n_published >= done["total"] else ()
    return [s for s in segments if s.path.name not in published]


def is_recording(path: Path) -> bool:
    """Returns whether a recorder is writing a data set now. False on systems without file locks."""
    try:
        import fcntl

        with open(path / journal.JOURNAL_FOLDER / ".recording") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


class InterruptedRecordingSource(ColumnSource):
    """Source of the episodes in the LeRobot files, followed by the journal's episodes that are not in them."""

    def __init__(self, files: LeRobotSource, segments: list[journal.JournalSegment]):
        self.files, self._journal_episodes = files, [e for s in segments for e in s.episodes]
        self._n_published = len(files.lengths)
        self.lengths = np.concatenate([files.lengths, [len(e) for e in self._journal_episodes]]).astype(np.int64)
        self.schema = files.schema
        if not self._n_published and self._journal_episodes:
            first, *others = self._journal_episodes
            self.schema = {n: f for n, f in first.schema.items() if all(n in e.schema for e in others)}
        # Another recording may have segments of the same names and sizes, and a running recorder appends to them.
        self.key = cache.files_digest([s.path for s in segments if s.path.exists()], files.key, self.lengths.tolist())
        self.metadata = {**files.metadata, "warnings": [*files.metadata["warnings"], self._warning(segments)]}

    def _warning(self, segments) -> str:
        path, new = self.files.path, f"{len(self._journal_episodes)} episode{'s' * (len(self._journal_episodes) != 1)}"
        if is_recording(path):
            return f"it is being recorded: {new} not in the files yet"
        running = any(s.unfinished is not None and len(s.unfinished) for s in segments)
        return (f"the recording was interrupted: {new} in its journal{', and one that was not finished' * running}; "
                f"{command_line('repair', path)} puts all into the files")

    def rows(self, name):
        old = self.files.rows(name) if name in self.files.schema else np.zeros(self._n_published, np.int64)
        new = [e.rows(name) if name in e.schema else len(e) for e in self._journal_episodes]
        return np.concatenate([old, new]).astype(np.int64)

    def column(self, name, episode):
        if episode < self._n_published:
            return self.files.column(name, episode)
        taken, f = self._journal_episodes[episode - self._n_published], self.schema[name]
        if name not in taken.schema:  # a column that was not recorded: empty text, zeros
            return np.full(len(taken), "") if f.kind == "string" else np.zeros((len(taken), *f.shape), f.dtype)
        return taken.column(name)

    def frames(self, name, episode):
        if episode < self._n_published:
            return self.files.frames(name, episode)
        taken = self._journal_episodes[episode - self._n_published]
        if name not in taken.schema:
            return super().frames(name, episode)
        return enumerate(journal.JournalFrames(taken, name))  # a minute of one camera has 1.7 GB

    def episode_metadata(self, episode):
        if episode < self._n_published:
            return self.files.episode_metadata(episode)
        return self._journal_episodes[episode - self._n_published].metadata
