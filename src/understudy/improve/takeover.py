"""A person at the keyboard who watches a policy in a toy, takes over, and gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..core import UserError
from ..envs.base import Env, Renderable
from ..envs.devices import Keyboard
from ..evaluate.teleoperate import render_ansi
from ..execute.actor import Actor
from .gates import INTERVENTION
from .journal import MARK, EpisodeDiscarded

KEYS = "t: take over, give back | WASD or arrows move, space stops | y, n: success, failure | x: once more | q: quit"


@dataclass
class TakeoverKeyboard(Keyboard):
    """The keys of `Keyboard`, and t (takeover)."""

    def _press(self, key: str, now: float) -> None:
        if key.lower() == "t":
            self._commands.append("takeover")
        else:
            super()._press(key, now)


@dataclass(frozen=True)
class KeyboardSupervisor(Actor):
    """A person who watches one environment, in real time.

    Enter starts an episode. Taking over and giving back count from the next step on. `q` raises
    KeyboardInterrupt: the episodes that have ended are stored.

    Args:
        env: The environment in which the episodes run, with one row.
        show: Draws a text: the image of the environment and the keys.
        lines: Height of the image in lines.
        clock: Current time, in seconds.
        sleep: Sleeps for some seconds.
    """

    env: Env
    keyboard: Keyboard
    show: Callable[[str], None]
    lines: int = 24
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self):
        if not isinstance(self.env, Renderable):
            raise UserError("the environment cannot be rendered, so that nobody can watch it",
                            where=self.env.metadata["env"], hint="use another supervisor, such as scripted")

    @property
    def period(self) -> float:
        return 1 / float(self.env.metadata.get("fps") or 10)

    def start(self, obs, key):
        commands: list[str] = []
        while "enter" not in commands:
            self._draw("enter: begin the episode | q: quit")
            commands = self.keyboard.commands()
            if "quit" in commands:
                raise KeyboardInterrupt
            if "enter" not in commands:
                self.sleep(self.period)
        zero = torch.zeros_like(key)
        return {"control": zero.bool(), MARK: zero.to(torch.int8), "step": zero,
                "due": torch.full(key.shape, self.clock(), dtype=torch.float64)}

    def act(self, obs, state):
        control, mark = bool(state["control"][0]), int(state[MARK][0])
        for command in self.keyboard.commands():
            if command == "quit":
                raise KeyboardInterrupt
            if command == "discard":
                raise EpisodeDiscarded
            if command == "takeover":
                control = not control
            if command in ("success", "failure"):
                mark = 1 if command == "success" else -1
        marked = {0: "", 1: ", marked a success", -1: ", marked a failure"}[mark]
        self._draw(f"step {int(state['step'][0])}: {'you act' if control else 'the policy acts'}{marked}\n{KEYS}")
        now = self.clock()
        self.sleep(max(0.0, float(state["due"][0]) - now))
        record = {INTERVENTION: torch.full_like(state["control"], control), MARK: torch.full_like(state[MARK], mark)}
        action = torch.as_tensor(self.keyboard.read())[None].expand(len(record[MARK]), -1)
        return action, {"control": record[INTERVENTION], MARK: record[MARK], "step": state["step"] + 1,
                        "due": torch.full_like(state["due"], max(float(state["due"][0]), now) + self.period),
                        "record": record}

    def _draw(self, text: str) -> None:
        assert isinstance(self.env, Renderable)
        self.show(f"{render_ansi(self.env.frame(0), self.lines)}\n{text}")
