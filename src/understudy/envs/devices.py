"""Teleoperation devices: keyboard, gamepad and leader arm. The loop reads the current action from a device."""

from __future__ import annotations

import os
import re
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ..core import UserError
from .grid import MOVES

# s; a terminal tells of keys that go down, again and again while they are held, and never of their release
HOLD_SECONDS = 0.35


class TeleopDevice(Protocol):
    """A device that a person acts with: anything with `read`. It may keep a connection open."""

    def read(self) -> np.ndarray:
        """Returns the current action, (A,) float32, in the units of the action. It is called once per step and does not
        wait."""


class KeyInput(Protocol):
    """Keys, buttons or a page with which a person acts and gives commands."""

    def read(self) -> np.ndarray | None:
        """Returns the current action, (A,). None if the environment waits for the person."""

    def commands(self) -> list[str]:
        """Commands that were given since the last call, such as enter, discard, success, failure and quit."""


# -- keys -----------------------------------------------------------------------------------------------------------

_KEYS = {"w": (1, 1), "s": (1, -1), "d": (0, 1), "a": (0, -1),  # component, direction
         "\x1b[A": (1, 1), "\x1b[B": (1, -1), "\x1b[C": (0, 1), "\x1b[D": (0, -1),
         "\x1bOA": (1, 1), "\x1bOB": (1, -1), "\x1bOC": (0, 1), "\x1bOD": (0, -1)}
_KEY = re.compile(r"\x1b[\[O][\d;]*[@-~]|.", re.DOTALL)  # a character, or a sequence such as "\x1b[3~" (delete)
_PART_OF_KEY = re.compile(r"\x1b([\[O][\d;]*)?$")  # the rest of a sequence may be on its way, or it is escape
_REST_SECONDS = 0.02  # in which the rest of a sequence arrives
_COMMANDS = {"\r": "enter", "\n": "enter", "x": "discard", "y": "success", "n": "failure", "q": "quit"}


@dataclass
class Keyboard:
    """Keyboard on which keys move one or two components of the action at full speed while held. Space stops.

    WASD or the arrows move. Of opposite directions the last one counts. If the action has a single component, up and
    right increase it. Other keys are commands: enter, x (discard), y (success), n (failure), q (quit).

    Args:
        low: Lowest action, (A,).
        high: Highest action, (A,).
        handle: File descriptor of the terminal.
    """

    low: Sequence[float] = (-1, -1)
    high: Sequence[float] = (1, 1)
    handle: int = 0
    clock: Callable[[], float] = time.monotonic
    _until: dict[int, tuple[int, float]] = field(default_factory=dict)  # component: direction, until when
    _commands: list[str] = field(default_factory=list)

    def __post_init__(self):
        if len(self.low) not in (1, 2):
            raise UserError("the keyboard needs actions of one or two numbers with limits, "
                            f"but they have {len(self.low)}", where="keyboard",
                            hint="use a device with more axes, in a loop of your own (docs/recording.md)")
        if not np.isfinite([*self.low, *self.high]).all():
            raise UserError("the keyboard needs actions with limits, and these have none, as those that are classes",
                            where="keyboard", hint="act in another way, such as --actor scripted or --supervisor "
                            "scripted; a Gymnasium environment says its limits in its action space")

    @contextmanager
    def listening(self) -> Iterator[Keyboard]:
        """Reads keys one by one, without showing them, while its body runs. A context manager."""
        try:
            import termios
            import tty

            before = termios.tcgetattr(self.handle)
        except ImportError:
            raise UserError("the keyboard can be read only in a terminal of a Unix system", where="keyboard",
                            hint="record with a Recorder in a loop of your own (docs/recording.md)") from None
        except termios.error:
            raise UserError("there is no terminal to read keys from", where="standard input",
                            hint="run it in a terminal, without a pipe") from None
        try:
            tty.setcbreak(self.handle)
            yield self
        finally:
            termios.tcsetattr(self.handle, termios.TCSADRAIN, before)

    def read(self) -> np.ndarray | None:
        self._listen()
        now, action = self.clock(), np.zeros(len(self.low), np.float32)
        for part, (way, until) in self._until.items():
            if now < until and part < len(action):
                action[part] = self.high[part] if way > 0 else self.low[part]
        return action

    def commands(self) -> list[str]:
        """Returns the commands that were given by keys since the last call."""
        self._listen()
        commands, self._commands = self._commands, []
        return commands

    def _listen(self) -> None:
        text = ""
        while select.select([self.handle], [], [], _REST_SECONDS if _PART_OF_KEY.search(text) else 0)[0]:
            got = os.read(self.handle, 1024)
            if not got:
                self._commands.append("quit")  # the terminal is gone
                break
            text += got.decode(errors="replace")
        now = self.clock()
        for key in _KEY.findall(text):
            self._press(key, now)

    def _press(self, key: str, now: float) -> None:
        """Handles that one key went down."""
        if key in _KEYS:
            part, way = _KEYS[key]
            self._until[min(part, len(self.low) - 1)] = way, now + HOLD_SECONDS
        elif key == " ":
            self._until.clear()
        elif key.lower() in _COMMANDS:
            self._commands.append(_COMMANDS[key.lower()])


@dataclass
class DiscreteKeyboard(Keyboard):
    """The keys of `Keyboard` for an action that is one of `grid.MOVES`.

    Each step executes the last key that was pressed since the step before. If no key was pressed, there is no step.
    """

    def read(self) -> np.ndarray | None:
        """Returns the chosen class, (1,) int64, or None while no key was pressed."""
        self._listen()
        pressed, self._until = self._until, {}
        if not pressed:
            return None
        part, (way, _) = max(pressed.items(), key=lambda p: p[1][1])  # the last
        step = np.array([way, 0] if part == 0 else [0, way])
        return np.flatnonzero((step == MOVES).all(1))


@dataclass
class RecordingKeys(Keyboard):
    """Keyboard for commands (such as to end an episode) while another device moves the robot, with LeRobot's keys.

    The right arrow ends the episode (enter), the left arrow records it again (discard), and escape stops (quit).
    """

    def _press(self, key: str, now: float) -> None:
        if key == "\x1b":
            self._commands.append("quit")
        elif key in _KEYS and len(key) > 1:
            if key[-1] in "CD":
                self._commands.append("enter" if key[-1] == "C" else "discard")
        elif key not in _KEYS:
            super()._press(key, now)


@dataclass
class JointKeyboard(RecordingKeys):
    """Keys move one joint at a time: its number (or tab) selects it, up and down (w and s) move it while they are held.

    `RecordingKeys` has further keys, which work here too.
    """

    n_joints: int = 1
    selected: int = 0

    def _press(self, key: str, now: float) -> None:
        if key == "\t" or key.isdecimal() and 1 <= int(key) <= self.n_joints:
            self.selected = (self.selected + 1) % self.n_joints if key == "\t" else int(key) - 1
            self._until.clear()
        elif _KEYS.get(key, (0, 0))[0] == 1:
            Keyboard._press(self, key, now)
        else:
            super()._press(key, now)

    def read(self) -> np.ndarray:
        """Returns the velocity of each joint as a fraction of the largest, (A,)."""
        pressed = super().read()
        assert pressed is not None
        action = np.zeros(self.n_joints, np.float32)
        action[self.selected] = pressed[1]
        return action


# -- sticks and arms ------------------------------------------------------------------------------------------------

_EVENT = struct.Struct("<IhBB")  # ms, value, kind, number: Linux's joystick interface, Documentation/input/joydev
_AXIS, _BUTTON = 2, 1


@dataclass
class Gamepad:
    """A gamepad whose sticks give the action, read from Linux's joystick interface.

    Args:
        axes: Number of the axis of each action component.
        scale: Action at full deflection, for each component.
        dead: Fraction of an axis around its center that counts as 0.
        source: Stream of joystick events. None opens `path`.
    """

    axes: Sequence[int] = (0, 1)
    scale: Sequence[float] = (1.0, -1.0)  # a stick pushed away says -1
    dead: float = 0.1
    source: BinaryIO | None = None
    path: Path = Path("/dev/input/js0")
    buttons: set[int] = field(default_factory=set)
    _at: dict[int, float] = field(default_factory=dict)

    def __post_init__(self):
        self._open()

    def _open(self) -> BinaryIO:
        """Opens the stream of joystick events. It is opened again after the gamepad was unplugged."""
        if self.source is None:
            try:
                self.source = open(self.path, "rb", buffering=0)  # noqa: SIM115 as long as the gamepad is used
            except OSError as error:
                raise UserError(f"there is no gamepad ({error.strerror})", where=self.path,
                                hint="plug it in, and make sure that you may read it (group input)") from None
        return self.source

    def read(self) -> np.ndarray:
        source = self._open()
        while select.select([source], [], [], 0)[0]:
            try:
                event = source.read(_EVENT.size)
            except OSError:
                event = b""
            if not event or len(event) < _EVENT.size:
                self.source = None
                raise UserError("the gamepad is gone", where=self.path, hint="plug it in again")
            _, value, kind, number = _EVENT.unpack(event)
            if kind & _AXIS:
                self._at[number] = value / 32767
            elif kind & _BUTTON:
                (self.buttons.add if value else self.buttons.discard)(number)
        at = np.array([self._at.get(axis, 0.0) for axis in self.axes])
        moved = np.sign(at) * np.maximum(np.abs(at) - self.dead, 0) / (1 - self.dead)
        return (moved.clip(-1, 1) * np.asarray(self.scale)).astype(np.float32)


@dataclass(frozen=True)
class LeaderArm:
    """A second robot arm that a person moves to give actions, which are ``joints * scale + offset``."""

    joints: Callable[[], Sequence[float]]
    scale: Sequence[float] | float = 1.0
    offset: Sequence[float] | float = 0.0

    def read(self) -> np.ndarray:
        at = np.asarray(self.joints(), np.float64)
        if not np.isfinite(at).all():
            raise UserError(f"the joints are not finite: {at.tolist()}", where="leader",
                            hint="check its connection before the follower moves")
        return (at * self.scale + self.offset).astype(np.float32)
