"""Finds which frame of a video file belongs to which row of a LeRobot data set.

LeRobot looks frames up by their times. In files that other programs wrote, times are rounded, drift from episode to
episode, or begin with an offset. A frame that is looked up by a time that is off by a step belongs to another row, and
nothing shows it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...core import UserError
from ...hints import command_line, repair_hint
from .. import video
from . import remote

_TOLERANCE = 1 / 3  # fraction of a step by which a time may differ


class VideoColumns:
    """The columns of a LeRobot data set that are stored as video files.

    Args:
        path: The data set.
        videos: For each camera, the file of each episode and the time in it at which the episode begins, (E,), in s.
        fps: Nominal steps per second.
        row_times: Returns the time of each row of an episode since the episode began, (T,), in s.
    """

    def __init__(self, path: Path, videos: Mapping[str, tuple[tuple[str, ...], np.ndarray]], fps: float,
                 row_times: Callable[[int], np.ndarray]):
        self._path, self._videos, self._fps, self._row_times = path, videos, fps, row_times
        self._readers: dict[str, video.VideoReader] = {}  # by camera: of the file that was read last
        self._matched: dict[tuple[str, str], dict[int, EpisodeFrames]] = {}  # by camera and file: by episode

    def frames(self, camera: str, episode: int, shape: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the row number and the image, uint8 (H, W, C), of rows of an episode.

        Raises:
            UserError: Rows have no frame. It is raised after all frames that there are.
        """
        file, location = self._path / self._videos[camera][0][episode], f"episode {episode}"
        matched = self.match(camera, episode)
        reader = self._readers.pop(camera, None)  # a second caller must not use it meanwhile
        if reader is None or reader.path != remote.fetch_file(file):
            reader = video.VideoReader(remote.fetch_file(file), location)
        rows = np.flatnonzero(matched.has_frame)
        try:
            for which, image in reader.frames(matched.times[rows], shape, location):
                yield rows[which], image
        except UserError as error:  # a video alone does not say of which data set it is a part
            raise UserError(error.problem, where=error.where, hint=repair_hint(self._path)) from None
        finally:  # also if the caller needs no more frames
            self._readers[camera] = reader
        if len(rows) < len(matched.times):
            row = int(np.argmin(matched.has_frame))
            raise UserError(f"there is no frame at {matched.expected[row]:.4f} s: "
                            f"{matched.problem or 'the video ends early, or has another frame rate'}",
                            where=f"{file}, {location}, frame {row}",
                            hint="take the file from a copy, or leave out the rows without a frame: "
                                 + command_line("repair", self._path, "--out", "DST"))

    def match(self, camera: str, episode: int) -> EpisodeFrames:
        """Returns which video frames belong to the rows of an episode."""
        files, begins = self._videos[camera]
        file = files[episode]
        if (camera, file) not in self._matched:
            episodes = self._episodes[camera][file]
            times = video.frame_times(remote.fetch_file(self._path / file))
            matched = match_frames(times, [begins[e] + self._row_times(e) for e in episodes], self._fps)
            self._matched[camera, file] = dict(zip(episodes, matched, strict=True))
        return self._matched[camera, file][episode]

    @cached_property
    def _episodes(self) -> dict[str, dict[str, list[int]]]:
        """The numbers of the episodes in each video file, by camera and file."""
        out: dict[str, dict[str, list[int]]] = {camera: {} for camera in self._videos}
        for camera, (files, _) in self._videos.items():
            for episode, file in enumerate(files):
                out[camera].setdefault(file, []).append(episode)
        return out


@dataclass(frozen=True)
class EpisodeFrames:
    """Which frames of a video file belong to the rows of one episode.

    Args:
        times: Time in the file of the frame of each row, (T,), in s. NaN if there is none.
        expected: The time that the metadata say, (T,), in s.
        problem: Why no row has a frame, if the times of the whole file cannot be trusted.
    """

    times: np.ndarray
    expected: np.ndarray
    problem: str = ""

    @property
    def has_frame(self) -> np.ndarray:
        """Whether each row has a frame, (T,) bool."""
        return np.isfinite(self.times)


def match_frames(times: np.ndarray, episodes: Sequence[np.ndarray], fps: float) -> list[EpisodeFrames]:
    """Finds the frame of each row of the episodes in a video file.

    If there are as many frames as rows, with the same intervals, the frames belong to the rows in order, whatever the
    offset. Otherwise frames are missing or left over, and the times must agree: the frame of a row is the nearest one
    within a third of a step. Small differences may add up within an episode.

    Args:
        times: Time of each frame in the file, (F,), in s, increasing.
        episodes: The time of each row by the metadata, (T,), in s, for each episode.
        fps: Nominal steps per second.
    """
    order = sorted(range(len(episodes)), key=lambda i: episodes[i][0])
    expected = np.concatenate([episodes[i] for i in order])
    starts = np.cumsum([len(episodes[i]) for i in order])[:-1]
    is_boundary = np.zeros(max(len(expected) - 1, 0), bool)
    is_boundary[starts - 1] = True
    intervals = np.diff(expected)
    step = min(1 / fps, float(np.median(intervals[~is_boundary])) if (~is_boundary).any() else np.inf)
    tolerance = _TOLERANCE * step
    # A clip that is too short or too long moves the next episode by whole steps, and drift by less.
    allowed = np.where(is_boundary, step - tolerance, tolerance)
    if len(times) == len(expected) and (np.abs(np.diff(times) - intervals) <= allowed).all():
        matched, problem = np.split(times, starts), ""
    elif problem := _contradiction(times, expected, starts, step):
        matched = [np.full(len(episodes[i]), np.nan) for i in order]
    else:
        ends = [*(episodes[i][0] - tolerance for i in order[1:]), np.inf]  # a frame belongs to one episode
        matched = [_nearest_frames(times[times < end], episodes[i], tolerance)
                   for i, end in zip(order, ends, strict=True)]
    by_episode = dict(zip(order, matched, strict=True))
    return [EpisodeFrames(by_episode[i], rows, problem) for i, rows in enumerate(episodes)]


def _contradiction(times: np.ndarray, expected: np.ndarray, starts: np.ndarray, step: float) -> str:
    """Explains why frame times do not tell to which rows the frames belong. Empty if they do.

    Args:
        expected: The time of each row of all episodes by the metadata, (N,), in s.
        starts: The first row of each episode but the first, (E - 1,).
        step: Interval between rows, in s.
    """
    count = f"the video has {len(times)} frames for {len(expected)} rows"
    if not len(times):
        return count
    tolerance, doubt = _TOLERANCE * step, "so that it is not certain to which rows its frames belong"
    if times[0] > expected[0] + tolerance:
        return f"{count}, and begins at {times[0]:.4f} s instead of {expected[0]:.4f} s, {doubt}"
    between = expected[starts] - expected[starts - 1]
    is_regular = len(times) == len(expected) and (np.abs(np.diff(times) - step) <= tolerance).all()
    is_late, is_early = (between > 2 * step - tolerance).any(), (between < step - tolerance).any()
    if is_early and times[-1] > expected[-1] + tolerance or is_regular and is_late:
        return f"{count}, and the metadata say that its episodes {'overlap' if is_early else 'have gaps'}, {doubt}"
    begins = expected[starts][expected[starts] <= times[-1]]
    after = np.searchsorted(times, begins)  # at least 1
    distance = np.minimum(times[after] - begins, begins - times[after - 1])
    if ((distance > tolerance) & (distance < step - tolerance)).any():
        return f"{count}, and the metadata say that episodes begin between two of them, {doubt}"
    return ""


def _nearest_frames(times: np.ndarray, rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns the time of the video frame of each row of one episode.

    The time of a row is the time of the frame before it plus the interval of the rows.
    """
    matched, late, last, candidates = np.full(len(rows), np.nan), 0.0, -1, times.tolist()
    for row, time in enumerate(rows.tolist() if candidates else ()):
        after = min(bisect_left(candidates, time + late), len(candidates) - 1)
        frame = min((max(after - 1, 0), after), key=lambda i: abs(candidates[i] - time - late))
        if frame > last and abs(candidates[frame] - time - late) <= tolerance:
            matched[row], last, late = candidates[frame], frame, candidates[frame] - time
    return matched
