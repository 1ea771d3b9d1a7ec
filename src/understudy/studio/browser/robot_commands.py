"""What a person says on the page of a robot, while the hands are at a leader arm or arrange the scene."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from ...improve.takeover import Takeover

STALE_SECONDS = 1.0  # without a message of the page, after which a policy does not move the robot
LOST_SECONDS = 20.0  # without a message, after which an episode ends as interrupted


@dataclass
class PageCommands:
    """The commands that a person gives on the page, while the hands are at the leader arm: `CommandKeys`."""

    names: ClassVar[tuple[str, ...]] = ("enter", "discard", "success", "failure", "quit")

    _queue: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _received: float = field(default_factory=time.monotonic)

    def receive(self, keys: Sequence[str], axes: tuple[float, float]) -> None:
        """Ignores what is held: the leader arm moves the robot."""
        self._received = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the last message of the page."""
        return time.monotonic() - self._received

    def command(self, name: str) -> None:
        if name in self.names:
            self._queue.put(name)

    def commands(self) -> list[str]:
        commands = []
        while not self._queue.empty():
            commands.append(self._queue.get())
        return commands


@dataclass
class TakeoverCommands(PageCommands):
    """The commands of a person who watches a policy. While the page is silent, the robot holds until the person says
    that the policy continues.

    Attributes:
        takeover: That of the environment.
        is_lost: Tells whether a device does not answer.
    """

    names = (*PageCommands.names, "pause", "takeover", "undo")

    takeover: Takeover = field(default_factory=Takeover)
    is_lost: Callable[[], bool] = lambda: False
    _quits: bool = False

    def commands(self):
        commands = super().commands()
        self._quits |= "quit" in commands  # also if it comes while commands are ignored
        commands = ["hold" if command == "pause" else command for command in commands if command != "quit"]
        if self.silence > STALE_SECONDS and not self.takeover.is_held:
            commands = ["hold"]
        if self.takeover.n_steps and (self.silence > LOST_SECONDS or self._quits and self.is_lost()):
            commands.append("interrupt")  # what was done before a cable came loose is kept
        elif self._quits:
            commands.append("quit")
        return commands


@dataclass
class TrialCommands(PageCommands):
    """The commands of a person who judges trials. A trial during which the page is silent ends, and is repeated."""

    names = (*PageCommands.names, "end")

    _quits: bool = False
    _acts: bool = False

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Context in which a policy acts."""
        self._acts = True
        try:
            yield
        finally:
            self._acts = False

    def commands(self):
        commands = super().commands()
        self._quits |= "quit" in commands
        if self._quits:
            return ["quit"]
        return ["discard"] if self._acts and self.silence > STALE_SECONDS else commands
