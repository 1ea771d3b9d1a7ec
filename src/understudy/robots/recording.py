"""Teleoperation and recording on robots, and replay of recorded actions."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..core import DataWarning, Feature, UserError
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset
from ..data.formats.parts.file_kinds import is_lerobot
from ..data.recording.recorder import MIN_FREE_DISK, Recorder, free_disk_text, repair, warn_of_losses
from ..hints import unit_hint
from .base import Robot, RobotError, Teleoperator
from .pace import Pace

_MOVE_SECONDS = 20.0  # longest time in which a robot moves to a pose
_MOVE_TOLERANCE = 3.0  # largest remaining distance of a joint, in units of the action
_EPISODE_KEYS = "enter: end | x: again | y, n: success, failure | q: quit"


def _warn_of_calibration(data: Dataset, calibration: Mapping[str, str], path: Path) -> None:
    """Warns if the robot has another calibration than in the last episode that has one."""
    last = next(filter(None, (e.metadata.get("calibration") for e in reversed(data))), calibration)
    if changed := [n for n in calibration if calibration[n] != last.get(n)]:
        warnings.warn(f"{path}: the robot was calibrated again ({', '.join(changed)}), so the same pose may have other "
                      "numbers than in the episodes there. Record into another folder, or compare some poses",
                      DataWarning, stacklevel=3)


class CommandKeys(Protocol):
    """Interface of a source of commands, such as `RecordingKeys`."""

    def commands(self) -> list[str]:
        """Returns the commands since the last call: enter, discard, success, failure, quit."""


class NoKeys:
    """Source of commands without a person: no key is ever pressed."""

    def commands(self) -> list[str]:
        return []


@dataclass(frozen=True)
class RecordingTimes:
    """Settings of a recording: its times, in seconds.

    Args:
        warmup: Teleoperation before the first episode, which is not recorded.
        episode: Longest episode.
        reset: Teleoperation between two episodes, in which a person arranges the scene. It is not recorded.
    """

    warmup: float = 2.0
    episode: float = 60.0
    reset: float = 60.0


class RobotSession:
    """A session in which a person moves a connected robot with a connected teleoperator."""

    def __init__(self, robot: Robot, teleop: Teleoperator, keys: CommandKeys, fps: float,
                 show: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.perf_counter,
                 sleep: Callable[[float], None] = time.sleep):
        robot.check_rate(fps)
        self.robot, self.teleop, self.keys, self.show = robot, teleop, keys, show
        self.clock, self.pace = clock, Pace(fps, clock, sleep)

    def begin(self) -> None:
        """Begins teleoperation at the present pose of the robot."""
        self.teleop.start(self.robot.position(self.robot.observe()))
        self.pace.restart()

    def step(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Observes, and sends the action of the person. Returns the observation and the action that was sent.

        If the teleoperator is lost, the robot stops.
        """
        obs = self.robot.observe()
        try:
            action = self.teleop.read()
        except UserError:
            self.robot.stop()
            raise
        return obs, self.robot.send(action)

    def teleoperate(self, seconds: float, text: str = "", keys: str = "",
                    until: tuple[str, ...] = ("enter", "quit")) -> str | None:
        """Lets the person move the robot, without recording.

        Args:
            seconds: How long, at most.
            keys: What is shown of the keys, after the remaining time.
            until: Commands that end it.

        Returns:
            The command that ended it. None if the time is over.
        """
        ends = self.clock() + seconds
        while (remaining := ends - self.clock()) > 0:
            for command in self.keys.commands():
                if command in until:
                    return command
            self.step()
            self.show(f"{text}{'' if np.isinf(remaining) else f' ({remaining:.0f} s)'} | {keys}")
            self.pace.wait()
        return None

    def record(self, episodes: int, out: Path | str, *, task: str = "", times: RecordingTimes = RecordingTimes(),  # noqa: B008
               by: str = "teleoperation", images: Literal["video", "png"] = "video",
               on_saved: Callable[[int], None] = lambda n: None, release: Callable[[], None] = lambda: None) -> Dataset:
        """Records episodes of a person. An existing recording continues.

        The recorded action is what was sent, after the safety limits. If the connection is lost, the episode is kept up
        to its last step and marked as interrupted. If the encoder is too far behind for another episode, the reset goes
        on until it has caught up.

        Args:
            episodes: Total number of episodes. Interrupted ones do not count.
            by: Who acts, stored in every episode.
            on_saved: Called with the number of each episode that would survive a power cut.
            release: Called when the robot is no longer needed. After that the rest is encoded, which may take minutes.
        """
        out, fps = Path(out), 1 / self.pace.period
        if is_lerobot(out):
            warn_of_losses(out, repair(out))
            earlier = open_dataset(out)
            episodes += n_interrupted(earlier)
            _warn_of_calibration(earlier, self.robot.calibration, out)
        metadata = {**self.robot.episode_metadata(), "by": by, **({"task": task} if task else {})}
        schema: dict[str, Feature] = dict(self.robot.schema)
        with Recorder(schema, out, fps=fps, robot_type=self.robot.name, clock=self.clock, metadata=metadata,
                      images=images, on_saved=on_saved, show=self.show) as r, _stopped_at_end(self.robot, release):
            self.begin()
            ended = "quit"
            if r.count < episodes:
                ended = self.teleoperate(times.warmup, "warm-up", "enter: begin | q: quit")
            while ended != "quit" and r.count < episodes:
                ended = self._catch_up(r, times.episode)
                if ended != "quit":
                    ended = self._episode(r, times.episode)
                if ended == "saved":
                    ended = self._reset(r, times.reset, r.count >= episodes)
                elif ended == "again":
                    ended = self._prepare_again(r, times.reset)
        return open_dataset(out)

    def _catch_up(self, r: Recorder, seconds: float) -> str | None:
        """Waits while the encoder is so far behind that an episode could exceed the limit or fill the disk."""
        step = sum(f.size * np.dtype(f.dtype).itemsize for f in r.schema.values() if f.kind != "string")
        episode, is_told = step * seconds / self.pace.period, False
        while (backlog := r.backlog()).bytes and (
                (is_full := shutil.disk_usage(r.path).free < episode + MIN_FREE_DISK)
                or backlog.bytes + r.open_bytes + episode > r.max_backlog_bytes):
            r.check_encoder()
            disk = f"{free_disk_text(r.path)} | " * is_full
            if is_full and not is_told:
                is_told = True
                warnings.warn(f"{r.path}: {free_disk_text(r.path)}, and an episode may need {episode / 2**20:,.0f} MB "
                              f"beside the {MIN_FREE_DISK / 2**20:.0f} MB that stay free. The recording goes on once "
                              "the encoder has made room. What is recorded is kept; to go on sooner, make room",
                              DataWarning, stacklevel=2)
            if self.teleoperate(1.0, f"{disk}waiting for the encoder: {backlog}", "q: quit", ("quit",)) == "quit":
                return "quit"
        return None

    def _episode(self, r: Recorder, seconds: float) -> str:
        """Records one episode. Returns "saved", "again" or "quit"."""
        r.begin()
        mark, ends, late = None, self.clock() + seconds, self.pace.n_late
        self.pace.restart()
        while self.clock() < ends:
            for command in self.keys.commands():
                if command in ("discard", "quit"):
                    if r.steps:
                        r.discard()
                    return "again" if command == "discard" else "quit"
                if command in ("success", "failure"):
                    mark = command == "success"
                elif r.steps:
                    ends = -np.inf
            if ends < 0:
                break
            obs, sent = self.step()
            kept = r.step(obs, sent)
            status = "" if mark is None else ", a success" if mark else ", a failure"
            status += "" if self.pace.n_late == late else f", {self.pace.n_late - late} late"
            status += "" if kept else " (dropped: the disk is behind)"
            self.show(f"episode {r.count}, step {r.steps}{status}{_backlog_text(r)} | {_EPISODE_KEYS}")
            self.pace.wait()
        r.end(success=mark, obs=self.robot.observe())
        return "saved"

    def _reset(self, r: Recorder, seconds: float, was_last: bool) -> str | None:
        """Lets the person reset the scene between two episodes, and label or repeat the last one."""
        status, keys = "saved", f"enter: {'finish' if was_last else 'next'} | x: again | y, n: label | q: quit"
        ends = self.clock() + (min(seconds, 3.0) if was_last else seconds)
        while (remaining := ends - self.clock()) > 0:
            command = self.teleoperate(remaining, f"reset, episode {r.count - 1} {status}{_backlog_text(r)}", keys,
                                       ("enter", "discard", "success", "failure", "quit"))
            if command == "discard":
                r.discard()
                return self._prepare_again(r, seconds)
            if command in ("success", "failure"):
                r.label(success=command == "success")
                status = f"is a {command}"
            else:
                return command
        return None

    def _prepare_again(self, r: Recorder, seconds: float) -> str | None:
        """Lets the person reset the scene before an episode is recorded again."""
        return self.teleoperate(seconds, f"reset, episode {r.count} discarded", "enter: record it again | q: quit")


def n_interrupted(data: Dataset) -> int:
    """Returns the number of episodes that were interrupted, such as by a lost connection."""
    return sum(bool(episode.metadata.get("interrupted")) for episode in data)


@contextmanager
def _stopped_at_end(robot: Robot, release: Callable[[], None]) -> Iterator[None]:
    """Stops and releases the robot after its body, also after an interrupt. A context manager."""
    try:
        yield
    except BaseException:
        with suppress(RobotError):
            robot.stop()
        release()
        raise
    robot.stop()
    release()


def _backlog_text(r: Recorder) -> str:
    return f" | {backlog}" if (backlog := r.backlog()).bytes else ""


def move_to(robot: Robot, goal: np.ndarray, fps: float = 30) -> None:
    """Moves a robot to a pose (A,), as fast as its safety limits allow."""
    pace, ends = Pace(fps), time.perf_counter() + _MOVE_SECONDS
    while time.perf_counter() < ends:
        distances = np.abs(robot.position(robot.observe()) - goal)
        robot.send(goal)
        if (distances <= _MOVE_TOLERANCE).all():
            return
        pace.wait()
    robot.stop()
    names = robot.schema["action"].names or tuple(f"joint {i}" for i in range(len(goal)))
    worst = int(distances.argmax())
    raise RobotError(f"{names[worst]} is still {distances[worst]:.1f} from its goal after {_MOVE_SECONDS:g} s",
                     where=robot.name, hint="check that the pose is within the limits, and that nothing blocks the arm")


def replay_episode(robot: Robot, episode: Episode, fps: float, show: Callable[[str], None] = lambda text: None
                   ) -> np.ndarray:
    """Moves to the first recorded pose, and sends the recorded actions at their rate.

    Args:
        episode: The recorded episode, of the same kind of robot.

    Returns:
        The largest distance of each joint from its recorded position, (A,).
    """
    robot.check_rate(fps)
    if missing := [name for name in ("action", "observation.state") if name not in episode.steps]:
        raise UserError(f"the episode has no column {missing[0]!r}", where=robot.name,
                        hint="replay data that were recorded with a robot: understudy record --robot TYPE")
    actions, states = np.asarray(episode.steps["action"]), np.asarray(episode.steps["observation.state"])
    size = robot.schema["action"].size
    if actions.shape[1] != size:
        raise UserError(f"the recorded actions have {actions.shape[1]} components, but the robot has {size}",
                        where=robot.name, hint="replay the data on the robot that they were recorded with")
    recorded = episode.features()
    for name in ("action", "observation.state"):
        if name in robot.schema and (problem := recorded[name].disagreement(own := robot.schema[name])):
            raise UserError(f"{name} was recorded with {problem}", where=robot.name, hint=unit_hint(
                recorded[name].unit, own.unit, "replay the data on the robot that they were recorded with"))
    show("moving to the first pose")
    poses = [robot.position({"observation.state": state}) for state in states]
    move_to(robot, poses[0], fps)
    pace, worst = Pace(fps), np.zeros(size)
    for step, (action, pose) in enumerate(zip(actions, poses, strict=False), 1):
        show(f"step {step} of {len(actions)}")
        worst = np.maximum(worst, np.abs(robot.position(robot.observe()) - pose))
        robot.send(action)
        pace.wait()
    robot.stop()
    return worst
