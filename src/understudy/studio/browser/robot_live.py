"""The live part of the studio for a robot that a person moves with a leader arm."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...data.sources import camera_names
from ...robots.base import Teleoperator
from ...robots.recording import RecordingTimes, RobotSession
from ...robots.safety import SafeRobot
from .live import LiveSession, Picture
from .pictures import camera_shapes, joint_shapes
from .project import Project, ShownEpisode

COMMANDS = ("enter", "discard", "success", "failure", "quit")  # of a recording on a robot
STATE = "observation.state"
LIVE, RECORDED, SMALL = 480, 320, 80  # px, longer side of a camera's picture; all of a recorded episode are kept


@dataclass
class PageCommands:
    """The commands that a person gives on the page, while the hands are at the leader arm: `CommandKeys`."""

    _queue: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def receive(self, keys: Sequence[str], axes: tuple[float, float]) -> None:
        """Ignores what is held: the leader arm moves the robot."""

    def command(self, name: str) -> None:
        if name in COMMANDS:
            self._queue.put(name)

    def commands(self) -> list[str]:
        commands = []
        while not self._queue.empty():
            commands.append(self._queue.get())
        return commands


class RobotLiveSession(LiveSession):
    """A session on a robot. It is connected while a person shows the task, and released after it.

    Args:
        robot: The robot, not connected.
        teleop: What moves it, not connected.
        fps: Steps per second.
        by: Who acts, as the recording says.
    """

    can_watch = False
    label = ("What the cameras see, or the joints. Enter begins and ends a demonstration, Y is success, N is failure, "
             "X records it again.")
    help = ("Move the robot with the leader arm. **Enter** begins and ends a demonstration, **Y** and **N** say "
            "whether it was a success, and **X** records it again. Between two, arrange the scene: the next one begins "
            "with **Enter**, or when the time that is shown is over.")

    def __init__(self, project: Project, robot: SafeRobot, teleop: Teleoperator, fps: float, by: str,
                 task: str = "", times: RecordingTimes = RecordingTimes()):  # noqa: B008
        super().__init__(project, PageCommands())
        self.robot, self.teleop, self.fps, self.by, self.task, self.times = robot, teleop, fps, by, task, times
        self.features = dict(robot.schema)
        self._cameras = [n for n in camera_names(self.features) if self.features[n].kind == "image"]
        self._text, self._number = "", 0
        self._obs: Mapping[str, np.ndarray] = {}
        self._latest, self._lock = Picture(0, [], "", False), threading.Lock()
        self._film: tuple[Any, list[list[dict[str, Any]]]] = (None, [])  # of one episode
        self._thumbnails: dict[Any, list[dict[str, Any]]] = {}

    def new_person(self, mode):
        return PageCommands()

    # -- pictures, made by pages and not by the control loop --------------------------------------------------------

    def picture(self):
        with self._lock:
            if self._latest.number != self._number:
                text = self._text.partition(" | ")[0]
                # An episode has another number on the page, because a project has several sittings.
                line = re.sub(r"(^|, )episode \d+(, | )", lambda m: m[1] if m[2] == ", " else f"{m[1]}it ", text)
                self._latest = Picture(self._number, self._draw(self._obs, LIVE), line, text.startswith("episode"))
            return self._latest

    def _draw(self, obs: Mapping[str, np.ndarray], largest: int) -> list[dict[str, Any]]:
        if self._cameras:
            return camera_shapes([np.asarray(obs[name]) for name in self._cameras], largest)
        limits = self.robot.limits
        return joint_shapes(self.robot.position(obs), np.array(limits.low), np.array(limits.high))

    def recorded(self, demonstration, step):
        with self._lock:
            key = _identity(demonstration)
            if self._film[0] != key:  # a video is decoded once from its beginning
                self._film = key, [self._draw(obs, RECORDED) for obs in self._rows(demonstration)]
            return self._film[1][step]

    def thumbnail(self, demonstration):
        with self._lock:
            key = _identity(demonstration)
            if key not in self._thumbnails:
                self._thumbnails[key] = self._draw(next(self._rows(demonstration)), SMALL)
            return self._thumbnails[key]

    def _rows(self, demonstration: ShownEpisode):
        """The observations of an episode that are drawn, in order."""
        data, index, count = demonstration.data, demonstration.index, len(demonstration.episode)
        if not self._cameras:
            return ({STATE: row} for row in np.asarray(demonstration.episode.steps[STATE])[:count])
        films = ((frame for _, frame in data.frames(name, index)) for name in self._cameras)
        return (dict(zip(self._cameras, frames, strict=True)) for frames in islice(zip(*films, strict=False), count))

    # -- in its thread ----------------------------------------------------------------------------------------------

    def _note(self, obs: Mapping[str, np.ndarray], command: np.ndarray, sent: np.ndarray) -> None:
        self._obs = obs

    def _show(self, text: str) -> None:
        self._text = text
        if self._obs:
            self._number += 1

    def record(self, sitting: Path) -> None:
        person = self.person
        assert isinstance(person, PageCommands)
        self.robot.on_step = self._note
        try:
            with ExitStack() as devices:
                devices.enter_context(self.teleop)
                devices.enter_context(self.robot)  # released first
                RobotSession(self.robot, self.teleop, person, self.fps, self._show).record(
                    10**9, sitting, task=self.task, times=self.times, by=self.by,
                    on_saved=lambda number: self.changed(), release=devices.close)
        finally:
            self.robot.on_step = None

    def watch(self) -> None:
        raise RuntimeError("a policy acts on a robot in a terminal so far: understudy act")


def _identity(demonstration: ShownEpisode) -> tuple[Any, ...]:
    """What tells an episode from another one that was recorded in its place."""
    actions = np.asarray(demonstration.episode.steps["action"])
    return demonstration.number, actions.shape, actions.tobytes()
