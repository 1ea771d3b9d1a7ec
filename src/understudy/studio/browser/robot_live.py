"""The live part of the studio for a robot that a person moves with a leader arm."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...data.sources import camera_names
from ...envs.base import Env
from ...evaluate.evaluation import recording_seed
from ...evaluate.interactive import TrialLog
from ...execute.actor import Actor
from ...improve.gates import GatedActor, HumanGate
from ...improve.journal import EpisodeJournal
from ...improve.robot_takeover import RobotPerson, RobotTakeoverEnv
from ...improve.takeover import TakeoverSupervisor
from ...robots.base import RobotError, Teleoperator
from ...robots.env import RobotEnv
from ...robots.handover import Handover
from ...robots.recording import RecordingTimes, RobotSession
from ...robots.safety import SafeRobot
from .live import LiveSession, Picture
from .pictures import camera_shapes, joint_shapes
from .plans import DoubtLoader, PlanWatch, load_doubt
from .project import Project, ShownEpisode
from .robot_commands import PageCommands, TakeoverCommands, TrialCommands
from .robot_trials import BlindTrials, PreparedTrials

STATE = "observation.state"
PAGE_TEXTS = {"waits": "{}. Enter begins.", "lost": "{}. Enter connects it again.",
              "held": "{}. P continues, T takes over."}  # by phase: what the page adds to the text of a terminal
LIVE, RECORDED, SMALL = 480, 320, 80  # px, longer side of a camera's picture; all of a recorded episode are kept


class PolicyLoader(DoubtLoader, Protocol):
    """Interface of what loads policies as the commands of the terminal do."""

    def rate(self, *runs: Path) -> float:
        """The steps per second at which policies act."""

    def load(self, run: Path, env: Env) -> Actor:
        """Loads the actor of a run."""

    def trials(self, words: list[str], folder: Path, env: Env) -> PreparedTrials:
        """Loads both policies of blind trials, which a command describes."""


class RobotLiveSession(LiveSession):
    """A session on a robot. It is connected while a person shows the task, and released after it.

    Args:
        robot: The robot, not connected.
        teleop: What moves it, not connected.
        fps: Steps per second.
        by: Who acts, as the recording says.
        policies: Loads policies.

    Attributes:
        rivals: The two policies of blind trials.
    """

    label = ("What the cameras see, or the joints. Enter begins and ends a demonstration, Y is success, N is failure, "
             "X records it again. T takes over from a policy and gives back, P holds it.")
    help = ("Move the robot with the leader arm. **Enter** begins and ends a demonstration, **Y** and **N** say "
            "whether it was a success, and **X** records it again. Between two, arrange the scene: the next one begins "
            "with **Enter**, or when the time that is shown is over.")

    def __init__(self, project: Project, robot: SafeRobot, teleop: Teleoperator, fps: float, by: str,
                 policies: PolicyLoader, task: str = "", times: RecordingTimes = RecordingTimes()):  # noqa: B008
        super().__init__(project, PageCommands())
        self.robot, self.teleop, self.fps, self.by, self.task, self.times = robot, teleop, fps, by, task, times
        self.policies, self.rivals = policies, ("", "")
        self.features = dict(robot.schema)
        self._acting: RobotTakeoverEnv | BlindTrials | None = None
        self._cameras = [n for n in camera_names(self.features) if self.features[n].kind == "image"]
        self._text, self._number = "", 0
        self._obs: Mapping[str, np.ndarray] = {}
        self._shown_obs = self._obs
        self._latest, self._lock = Picture(0, [], "", False), threading.Lock()
        self._film: tuple[Any, list[list[dict[str, Any]]]] = (None, [])  # of one episode
        self._thumbnails: dict[Any, list[dict[str, Any]]] = {}

    def new_person(self, mode):
        return {"watch": TakeoverCommands, "judge": TrialCommands}.get(mode, PageCommands)()

    @property
    def phase(self) -> str:
        """What happens while a policy is watched or judged: see the phases of both. Empty otherwise."""
        acting = self._acting
        return acting.phase if acting is not None else ""

    # -- pictures, made by pages and not by the control loop --------------------------------------------------------

    def picture(self):
        with self._lock:
            if self._latest.number != self._number:
                text = PAGE_TEXTS.get(self.phase, "{}").format(self._text.partition(" | ")[0])
                text = text[:1].upper() + text[1:] if self._acting is not None else text
                # An episode has another number on the page, because a project has several sittings.
                line = re.sub(r"(^|, )episode \d+(, | )", lambda m: m[1] if m[2] == ", " else f"{m[1]}it ", text)
                is_person = text.startswith("episode") or self.phase == "person"
                self._latest = Picture(self._number, self._draw(self._obs, LIVE), line, is_person)
            return self._latest

    def _draw(self, obs: Mapping[str, np.ndarray], largest: int) -> list[dict[str, Any]]:
        if not obs:
            return []
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
        self._number += 1

    def _show_and_look(self, text: str) -> None:
        """Shows a text. While the robot holds, nothing else reads its cameras."""
        if self._obs is self._shown_obs:
            with suppress(RobotError):  # the next command to the robot raises it
                self._obs = self.robot.observe()
        self._shown_obs = self._obs
        self._show(text)

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
        run, folder = self.project.folder / self.watched, self.project.corrections_folder(self.watched)
        person, fps = self.person, self.policies.rate(run)
        assert isinstance(person, TakeoverCommands)
        hand = RobotPerson(Handover(self.teleop, self.robot.limits), person, self._show_and_look)
        env = RobotTakeoverEnv(self.robot, hand, fps, max(round(self.times.episode * fps), 1))
        person.takeover, person.is_lost = env.takeover, lambda: env.phase == "lost"
        limits = np.array(self.robot.limits.low), np.array(self.robot.limits.high)
        plans = self.plans = PlanWatch(self.policies.load(run, env), env.features, limits, 1 / fps,
                                       load_doubt(self.policies, run))
        folder.mkdir(parents=True, exist_ok=True)
        journal, first = EpisodeJournal(folder), self.project.first_number(self.watched)
        with self._connected(env, self.teleop) as devices:
            devices.callback(env.close)
            # as `improve` collects with a person
            acting = GatedActor(env.watched(plans.actor), TakeoverSupervisor(env.takeover, env.read), HumanGate(), 0,
                                replans=False)
            devices.callback(journal.recover)
            while True:
                number = first + len(self.project.corrections(self.watched))
                episode = journal.rollout(acting, env, 1, recording_seed(0), first=number)[0]
                if not episode.metadata.get("interrupted"):  # nobody has said how that one ended
                    self.tally = [self.tally[0] + bool(episode.metadata["success"]), self.tally[1] + 1]
                self.changed()

    def judge(self) -> None:
        words, path = self.project.trials_command(*self.rivals)
        folder, person = self.project.folder, self.person
        assert isinstance(person, TrialCommands)
        env = RobotEnv(self.robot, self.policies.rate(*(folder / run for run in self.rivals)))
        prepared = self.policies.trials(words, folder, env)
        with TrialLog.open(folder / path, prepared.about) as journal:
            trials = BlindTrials(prepared, journal, self.robot, person, env.metadata["fps"], self.times.episode,
                                 self._show_and_look, self.changed)
            with self._connected(trials):
                trials.run()

    @contextmanager
    def _connected(self, acting: RobotTakeoverEnv | BlindTrials, *devices: Teleoperator) -> Iterator[ExitStack]:
        """Context in which the robot and other devices are connected, and shown."""
        self.robot.on_step, self._acting = self._note, acting
        try:
            with ExitStack() as stack:
                for device in (*devices, self.robot):  # the robot is released first
                    stack.enter_context(device)
                yield stack
        finally:
            self.robot.on_step = self._acting = None


def _identity(demonstration: ShownEpisode) -> tuple[Any, ...]:
    """What tells an episode from another one that was recorded in its place."""
    actions = np.asarray(demonstration.episode.steps["action"])
    return demonstration.number, actions.shape, actions.tobytes()
