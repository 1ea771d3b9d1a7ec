"""The live part of the studio: a person shows a task, or watches a policy and takes over."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..core import UserError
from ..envs import make
from ..envs.base import Renderable
from ..envs.raster import Drawable, ShapeList
from ..evaluate.evaluation import recording_seed
from ..evaluate.teleoperate import Screen, teleoperate
from ..improve.gates import GatedActor, HumanGate
from ..improve.journal import EpisodeJournal
from ..improve.takeover import SupervisedEnv, Takeover, TakeoverSupervisor
from ..learn.method import load_actor
from .project import Project

STALE_SECONDS = 0.5  # without a message of the page, after which nothing moves
NEXT_SECONDS = 1.0  # after the end of an episode, in which a person can still say what it was
DIRECTIONS = {"ArrowUp": (1, 1), "ArrowDown": (1, -1), "ArrowRight": (0, 1), "ArrowLeft": (0, -1),
              "w": (1, 1), "s": (1, -1), "d": (0, 1), "a": (0, -1)}  # key of a browser: component, direction
COMMANDS = {"Enter": "enter", "x": "discard", "y": "success", "n": "failure", "u": "undo"}


@dataclass
class HeldKeys:
    """Keys that a page says are held, and the commands of the person: a `KeyInput`.

    An episode waits until the first direction is pressed. It waits, too, while the page is silent.

    Args:
        low: Lowest action, (A,) with one or two components.
        high: Highest action, (A,).
    """

    low: Sequence[float]
    high: Sequence[float]
    held: tuple[str, ...] = ()
    is_begun: bool = False
    ended_at: float | None = None  # when the episode ended that waits for the next one
    _received: float = float("-inf")
    _queue: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def receive(self, held: Sequence[str]) -> None:
        """Takes over what the page says is held. Called in another thread than the rest."""
        self.held, self._received = tuple(held), time.monotonic()

    def command(self, name: str) -> None:
        """Adds a command, such as "success". Called in another thread than the rest."""
        self._queue.put(name)

    @property
    def is_stale(self) -> bool:
        return time.monotonic() - self._received > STALE_SECONDS

    @property
    def moves(self) -> bool:
        return not self.is_stale and any(key in DIRECTIONS for key in self.held)

    def action(self) -> np.ndarray:
        """The action of the held keys, (A,) float32. Without a key it is 0."""
        action = np.zeros(len(self.low), np.float32)
        for component, direction in (DIRECTIONS[key] for key in self.held if key in DIRECTIONS):
            component = min(component, len(action) - 1)
            action[component] = self.high[component] if direction > 0 else self.low[component]
        return action

    def read(self):
        self.is_begun |= self.moves
        return None if self.is_stale or not self.is_begun else self.action()

    def commands(self):
        given = self._given()
        if self.ended_at is not None and not given and time.monotonic() - self.ended_at > NEXT_SECONDS:
            given = ["enter"]
        if {"enter", "discard"} & set(given):
            self.is_begun, self.ended_at = False, None
        return given

    def _given(self) -> list[str]:
        commands = []
        while not self._queue.empty():
            commands.append(self._queue.get())
        return commands


@dataclass
class TakeoverKeys(HeldKeys):
    """Keys with which a person takes over while a direction is held, and gives back by releasing it.

    While the page is silent, nobody acts.
    """

    takeover: Takeover = field(default_factory=Takeover)

    def read(self):
        return self.action()

    def commands(self):
        if self.is_stale != self.takeover.is_held:
            change = ["hold"]
        elif self.moves != self.takeover.is_person and not self.takeover.is_held:
            change = ["takeover"]
        else:
            change = []
        return [*([] if self.is_stale else ["enter"]), *change, *self._given()]


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

    def __init__(self, session: LiveSession):
        super().__init__(lambda text: None)
        self._session = session

    def draw(self, env, text, ended=False):
        keys = self._session.keys
        if ended and keys.ended_at is None:
            keys.ended_at = time.monotonic()
        self._session.show(env, text.splitlines()[0], isinstance(keys, TakeoverKeys) and keys.takeover.is_person)


Mode = Literal["idle", "show", "watch"]


class LiveSession:
    """Shows and watches in an environment, in a thread of its own.

    Attributes:
        mode: What happens now.
        picture: The latest picture. Pages compare its number.
        changes: Counts what has changed in the project, so that pages read it again.
        error: Why the last one ended. None if a person ended it.
        tally: Episodes that have succeeded while the present policy was watched, and all of them.

    Raises:
        UserError: The environment cannot be shown on a page, or its actions have no limits.
    """

    def __init__(self, project: Project):
        self.project, self.env = project, make(project.env, 1)
        if not isinstance(self.env, Drawable):
            raise UserError("the studio shows toys alone so far", where=project.env,
                            hint="record elsewhere with: understudy record")
        if "low" not in self.env.metadata or self.env.features["action"].shape not in ((1,), (2,)):
            raise UserError("keys move actions of one or two numbers with limits, and it has others", where=project.env,
                            hint="choose fork, particle, push or another toy of that kind")
        shape = self.env.features["action"].shape
        self._limits = [np.broadcast_to(self.env.metadata[k], shape).tolist() for k in ("low", "high")]
        self.keys = HeldKeys(*self._limits)
        self.mode: Mode = "idle"
        self.error: str | None = None
        self.changes, self.tally, self.watched = 0, [0, 0], ""
        self._thread: threading.Thread | None = None
        self.picture = Picture(0, [], "", False)
        self.show_start()

    # -- called by pages ------------------------------------------------------------------------------------------

    def start(self, mode: Mode, run: str = "") -> None:
        """Begins to record demonstrations, or to watch a run of the project.

        Raises:
            RuntimeError: It has begun something else.
        """
        if self.mode != "idle":
            raise RuntimeError("stop what runs first")
        self.keys = HeldKeys(*self._limits) if mode == "show" else TakeoverKeys(*self._limits)
        self.mode, self.error, self.watched, self.tally = mode, None, run, [0, 0]
        self._thread = threading.Thread(target=self._main, name="studio-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends what runs, without the running episode, and waits until its files are complete."""
        if self._thread is not None:
            self.keys.command("quit")
            self._thread.join()

    # -- in its thread --------------------------------------------------------------------------------------------

    def show(self, env: Renderable, text: str, is_person: bool) -> None:
        shapes = ShapeList(self.env.square)
        self.env.draw(shapes, 0)
        self.picture = Picture(self.picture.number + 1, shapes.shapes, text, is_person)

    def show_start(self) -> None:
        import torch

        from ..core import keys

        self.env.reset(torch.arange(1), keys(recording_seed(0), [0]))
        self.show(self.env, "", False)

    def _main(self) -> None:
        try:
            if self.mode == "show":
                self._record()
            else:
                self._watch()
        except KeyboardInterrupt:  # a person has stopped watching
            pass
        except Exception as error:  # the page says it; a thread has nobody else to tell
            self.error = str(error)
        finally:
            self.mode = "idle"
            self.changes += 1

    def _record(self) -> None:
        sitting = self.project.new_sitting()
        teleoperate(self.env, self.keys, 10**9, sitting, recording_seed(int(sitting.name)), screen=LiveScreen(self),
                    on_saved=lambda number: self._changed(), by="browser")

    def _changed(self) -> None:
        self.changes += 1

    def _watch(self) -> None:
        folder = self.project.corrections_folder(self.watched)
        folder.mkdir(parents=True, exist_ok=True)
        keys = self.keys
        assert isinstance(keys, TakeoverKeys)
        env = SupervisedEnv(self.env, keys, keys.takeover, LiveScreen(self))
        actor = load_actor(self.project.folder / self.watched, features=self.env.features)
        # as `improve` collects with a person
        acting = GatedActor(env.watched(actor), TakeoverSupervisor(keys.takeover, keys.read), HumanGate(), 0,
                            replans=False)
        journal, first = EpisodeJournal(folder), self.project.first_number(self.watched)
        while True:
            number = first + len(self.project.corrections(self.watched))
            episode = journal.rollout(acting, env, 1, recording_seed(0), first=number)[0]
            self.tally[0] += bool(episode.metadata.get("success"))
            self.tally[1] += 1
            self._changed()
