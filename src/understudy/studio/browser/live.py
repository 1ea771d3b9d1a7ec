"""The live part of the studio: a person shows a task, or watches a policy and takes over."""

from __future__ import annotations

import queue
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...core import Schema, UserError, keys
from ...envs import make
from ...envs.base import Renderable
from ...envs.raster import Drawable, ShapeList
from ...envs.toy import Toy
from ...evaluate.evaluation import recording_seed
from ...evaluate.teleoperate import Screen, teleoperate
from ...improve.gates import GatedActor, HumanGate
from ...improve.journal import EpisodeJournal
from ...improve.takeover import SupervisedEnv, Takeover, TakeoverSupervisor
from ...learn.method import load_actor
from .pictures import RecordedPictures
from .plans import DoubtLoader, Foresight, PlanWatch, load_doubt
from .project import Project, ShownEpisode

STALE_SECONDS = 0.5  # without a message of the page, after which nothing moves
LOST_SECONDS = 20.0  # without a message, after which a watched episode ends as interrupted
NEXT_SECONDS = 1.0  # after the end of an episode, in which a person can still say what it was
DIRECTIONS = {"ArrowUp": (1, 1), "ArrowDown": (1, -1), "ArrowRight": (0, 1), "ArrowLeft": (0, -1),
              "w": (1, 1), "s": (1, -1), "d": (0, 1), "a": (0, -1)}  # key of a browser: component, direction
COMMANDS = {"Enter": "enter", "x": "discard", "y": "success", "n": "failure", "u": "undo", "p": "pause", ".": "step",
            "t": "takeover"}


class AdjustableClock:
    """A clock that can run faster or slower than real time."""

    def __init__(self):
        self.speed, self._time, self._since = 1.0, 0.0, time.monotonic()

    def __call__(self) -> float:
        return self._time + (time.monotonic() - self._since) * self.speed

    def set_speed(self, speed: float) -> None:
        self._time, self._since, self.speed = self(), time.monotonic(), speed

    def sleep(self, seconds: float) -> None:
        time.sleep(max(seconds, 0.0) / self.speed)


class PersonInput(Protocol):
    """Interface of what a page says that a person does."""

    def receive(self, keys: Sequence[str], axes: tuple[float, float]) -> None:
        """Takes over what the page says is held. Called in another thread than the rest."""

    def command(self, name: str) -> None:
        """Adds a command, such as "success". Called in another thread than the rest."""


@dataclass
class PageInput:
    """What a page says is held, by keys, pointer or gamepad, and the commands of the person: a `KeyInput`.

    An episode waits until the person first moves. It waits, too, while the page is silent.

    Args:
        low: Lowest action, (A,) with one or two components.
        high: Highest action, (A,).
    """

    low: np.ndarray
    high: np.ndarray
    directions: tuple[str, ...] = ()
    axes: tuple[float, float] = (0.0, 0.0)  # of pointer or gamepad: right and up, -1 to 1
    is_begun: bool = False
    ended_at: float | None = None  # when the episode ended that waits for the next one
    _before: set[str] = field(default_factory=set)  # what was held as the episode was reset, and does not begin it
    _received: float = field(default_factory=time.monotonic)
    _queue: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def receive(self, keys: Sequence[str], axes: tuple[float, float]) -> None:
        """Takes over what the page says is held. Called in another thread than the rest."""
        self.directions, self.axes = tuple(key for key in keys if key in DIRECTIONS), axes
        self._received = time.monotonic()
        self._before &= self._holding()

    def _holding(self) -> set[str]:
        return {*self.directions, *(["axes"] if any(self.axes) else [])}

    def command(self, name: str) -> None:
        """Adds a command, such as "success". Called in another thread than the rest."""
        self._queue.put(name)

    @property
    def silence(self) -> float:
        """Seconds since the last message of the page."""
        return time.monotonic() - self._received

    @property
    def is_stale(self) -> bool:
        return self.silence > STALE_SECONDS

    @property
    def moves(self) -> bool:
        return not self.is_stale and bool(self._holding())

    def action(self) -> np.ndarray:
        """The action of what is held, (A,) float32. Without anything it is 0."""
        level = np.array(self.axes, np.float32)
        for component, direction in (DIRECTIONS[key] for key in self.directions):
            level[component] = direction
        if len(self.low) == 1:
            level = level[np.abs(level).argmax()][None]
        return np.where(level < 0, -level * self.low, level * self.high).astype(np.float32)

    def read(self):
        self.is_begun |= self.moves and bool(self._holding() - self._before)
        return None if self.is_stale or not self.is_begun else self.action()

    def commands(self):
        commands = self._new_commands()
        if self.ended_at is not None and not commands and time.monotonic() - self.ended_at > NEXT_SECONDS:
            commands = ["enter"]
        if {"enter", "discard"} & set(commands):
            self.is_begun, self._before, self.ended_at = False, self._holding(), None
        return commands

    def _new_commands(self) -> list[str]:
        commands = []
        while not self._queue.empty():
            commands.append(self._queue.get())
        return commands


@dataclass
class TakeoverInput(PageInput):
    """Input with which a person takes over while holding a direction, and gives back by releasing it.

    Nobody acts while the person has paused the episode, or while the page is silent.
    """

    takeover: Takeover = field(default_factory=Takeover)
    is_paused: bool = False
    _single_steps: int = 0

    def command(self, name):
        if name != "takeover":  # here a direction that is held takes over
            super().command(name)

    def read(self):
        return self.action()

    def commands(self):
        commands = self._new_commands()
        self.is_paused ^= commands.count("pause") % 2 == 1
        self._single_steps += commands.count("step")
        holds = self.is_stale or self.is_paused and not self._single_steps
        self._single_steps = max(self._single_steps - 1, 0)
        if holds != self.takeover.is_held:
            change = ["hold"]
        elif self.moves != self.takeover.is_person and not self.takeover.is_held:
            change = ["takeover"]
        else:
            change = []
        interruption = ["interrupt"] if self.silence > LOST_SECONDS else []
        return [*([] if self.is_stale else ["enter"]), *change, *commands, *interruption]


@dataclass(frozen=True)
class Picture:
    """What pages show of a moment.

    Attributes:
        shapes: What `ShapeList` says of the environment.
        text: What happens, and what the person can do.
        is_person: Whether the person acts, so that the page marks the picture.
    """

    number: int
    shapes: list[dict[str, Any]]
    text: str
    is_person: bool


class LiveScreen(Screen):
    """A screen that keeps the latest picture, for all pages."""

    def __init__(self, session: ToySession):
        super().__init__(lambda text: None, clock=session.clock, sleep=session.clock.sleep)
        self._session = session

    def draw(self, env, text, ended=False):
        person = self._session.person
        if ended and person.ended_at is None:
            person.ended_at = time.monotonic()
        # An episode has another number on the page, because a project has several sittings.
        line = re.sub(r"^episode \d+(,| (?=was|is))", lambda m: "" if m[1] == "," else "It ", text.splitlines()[0])
        self._session.show(env, line.strip(), isinstance(person, TakeoverInput) and person.takeover.is_person)


def playable_env(name: str) -> Drawable:
    """Makes an environment that the studio can show, and that two keys per direction can move.

    Raises:
        UserError: There is none of this name, or it is not of this kind.
    """
    env = make(name, 1)
    if not (isinstance(env, Toy) and isinstance(env, Drawable)):
        raise UserError("the studio shows toys and robots, and this is neither", where=name,
                        hint="record it with: understudy record; understudy studio --robot TYPE shows a robot")
    low, high = env.metadata.get("low", 0), env.metadata.get("high", 0)
    if env.features["action"].shape not in ((1,), (2,)) or not low < 0 < high:
        raise UserError("keys move actions of one or two numbers that can be negative, and it has others", where=name,
                        hint="choose fork, push or another toy of that kind")
    return env


Mode = Literal["idle", "show", "watch", "judge"]


class LiveSession(ABC):
    """Records a person or watches a policy, in its own thread.

    Attributes:
        features: The columns of an observation and an action.
        help: What a person does to show the task, as Markdown.
        label: What the picture shows and which keys it takes, for a screen reader.
        has_picture: Whether there is anything to see.
        mode: What happens now.
        person: What the person does.
        clock: The time in which steps happen. Its speed can be changed while a policy is watched.
        changes: Counts what has changed in the project, so that pages read it again.
        plans: What the policy that is watched plans. None before it is loaded, and if nothing is watched.
        error: Why the last one ended. None if a person ended it.
        tally: Episodes that have succeeded while the present policy was watched, and all of them.
    """

    features: Schema
    help: str
    label: str
    has_picture = True

    def __init__(self, project: Project, person: PersonInput):
        self.project, self.person, self.clock = project, person, AdjustableClock()
        self.mode: Mode = "idle"
        self.error: str | None = None
        self.changes, self.tally, self.watched = 0, [0, 0], ""
        self.plans: PlanWatch | None = None
        self._thread: threading.Thread | None = None

    # -- called by pages ------------------------------------------------------------------------------------------

    def start(self, mode: Mode, run: str = "") -> None:
        """Begins to record demonstrations, or to watch a run of the project or judge two.

        Raises:
            RuntimeError: It has begun something else.
        """
        if self.mode != "idle":
            raise RuntimeError("stop what runs first")
        self.clock = AdjustableClock()
        self.person = self.new_person(mode)
        self.mode, self.error, self.watched, self.tally, self.plans = mode, None, run, [0, 0], None
        self._thread = threading.Thread(target=self._main, name="studio-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends what runs, without the running episode, and waits until its files are complete."""
        if self._thread is not None:
            self.person.command("quit")
            self._thread.join()

    @abstractmethod
    def picture(self) -> Picture:
        """Returns what happens now, or how it looks before anything has happened."""

    def foresight(self) -> Foresight | None:
        """Returns what the policy that is watched plans. None if there is none. It may take as long as a step."""
        plans = self.plans
        return None if plans is None else plans.latest()

    @abstractmethod
    def recorded(self, demonstration: ShownEpisode, step: int) -> list[dict[str, Any]]:
        """Returns the picture of a recorded step, as `ShapeList` does. It may take seconds."""

    @abstractmethod
    def thumbnail(self, demonstration: ShownEpisode) -> list[dict[str, Any]]:
        """Returns a picture by which a person knows a demonstration, as `ShapeList` does."""

    @abstractmethod
    def new_person(self, mode: Mode) -> PersonInput:
        """Returns the input for a session that begins."""

    # -- in its thread --------------------------------------------------------------------------------------------

    @abstractmethod
    def record(self, sitting: Path) -> None:
        """Records the person until the person stops."""

    @abstractmethod
    def watch(self) -> None:
        """Lets the policy `watched` act until the person stops."""

    def judge(self) -> None:
        """Lets the person judge policies, where no environment says what succeeds."""
        raise NotImplementedError

    def _main(self) -> None:
        try:
            if self.mode == "show":
                self.record(self.project.new_sitting())
            elif self.mode == "watch":
                self.watch()
            else:
                self.judge()
        except KeyboardInterrupt:  # a person has stopped watching
            pass
        except Exception as error:  # the page says it; a thread has nobody else to tell
            self.error = str(error)
        finally:
            self.mode, self.plans = "idle", None
            self.changed()

    def changed(self) -> None:
        self.changes += 1


class ToySession(LiveSession):
    """A session in a toy, which the person moves on the page.

    Args:
        doubts: Loads the failure detectors of policies.

    Raises:
        UserError: The environment cannot be shown on a page, or its actions have no limits.
    """

    label = ("Live picture. Arrow keys move. Y is success, N is failure, Enter ends the episode, X discards it, P "
             "pauses a policy.")
    help = ("Move with the **arrow keys**, by dragging in the picture, or with a gamepad. The first movement begins a "
            "demonstration. **Enter** ends it early, **Y** and **N** say whether it was a success, and **X** discards "
            "it. The next one begins by itself.")
    person: PageInput

    def __init__(self, project: Project, doubts: DoubtLoader):
        self.env = playable_env(project.env)
        self.features = self.env.features
        shape = self.features["action"].shape
        self._low, self._high = (np.broadcast_to(self.env.metadata[k], shape) for k in ("low", "high"))
        super().__init__(project, PageInput(self._low, self._high))
        self.pictures, self.doubts = RecordedPictures(project.env), doubts
        self.latest = Picture(0, [], "", False)
        self.env.reset(torch.arange(1), keys(recording_seed(0), [0]))
        self.show(self.env, "", False)

    def picture(self):
        return self.latest

    def recorded(self, demonstration, step):
        return self.pictures.shapes(demonstration.episode, step)

    def thumbnail(self, demonstration):
        return self.recorded(demonstration, demonstration.stop - 1)

    def new_person(self, mode):
        if mode == "show":
            return PageInput(self._low, self._high)
        return TakeoverInput(self._low, self._high, takeover=Takeover(self.clock))

    def show(self, env: Renderable, text: str, is_person: bool) -> None:
        shapes = ShapeList(self.env.square)
        self.env.draw(shapes, 0)
        self.latest = Picture(self.latest.number + 1, shapes.shapes, text, is_person)

    def record(self, sitting):
        teleoperate(self.env, self.person, 10**9, sitting, recording_seed(int(sitting.name)), screen=LiveScreen(self),
                    on_saved=lambda number: self.changed(), by="browser")

    def watch(self):
        folder = self.project.corrections_folder(self.watched)
        folder.mkdir(parents=True, exist_ok=True)
        person = self.person
        assert isinstance(person, TakeoverInput)
        env = SupervisedEnv(self.env, person, person.takeover, LiveScreen(self))
        run = self.project.folder / self.watched
        actor, limits = load_actor(run, features=self.features), (self._low, self._high)
        plans = self.plans = PlanWatch(actor, self.features, limits, env.period, load_doubt(self.doubts, run), self.env)
        # as `improve` collects with a person
        acting = GatedActor(env.watched(plans.actor), TakeoverSupervisor(person.takeover, person.read), HumanGate(), 0,
                            replans=False)
        journal, first = EpisodeJournal(folder), self.project.first_number(self.watched)
        while True:
            number = first + len(self.project.corrections(self.watched))
            episode = journal.rollout(acting, env, 1, recording_seed(0), first=number)[0]
            self.tally[0] += bool(episode.metadata.get("success"))
            self.tally[1] += 1
            self.changed()
