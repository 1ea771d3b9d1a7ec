"""Teleoperation in simulation: a person acts in a toy in real time, and is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..core import Feature, UserError, keys
from ..data.episode import Dataset
from ..data.formats import open_dataset
from ..data.recording.recorder import Recorder
from ..data.tasks import SHOWN_TASK, decode_text
from ..data.video import resize
from ..envs.base import Env, Renderable
from ..envs.devices import KeyInput
from .recording import n_recorded

RUNNING_HELP = "WASD or arrows move, space stops | enter: save now | x: once more | y, n: success, failure | q: quit"
ENDED_HELP = "enter: next | x: record it again | y, n: it was a success, a failure | q: quit"


@dataclass
class Screen:
    """What a person sees, and the time in which the person sees it. This one is text.

    Args:
        show: Draws a text: the image of the environment and the keys.
        lines: Height of the image in lines.
    """

    show: Callable[[str], None]
    lines: int = 24
    clock: Callable[[], float] = field(default=time.perf_counter)
    sleep: Callable[[float], None] = field(default=time.sleep)

    def draw(self, env: Renderable, text: str, ended: bool = False) -> None:
        """Shows the environment and a text.

        Args:
            ended: Whether the episode has ended, and the person says what it was.
        """
        self.show(f"{render_ansi(env.frame(0), self.lines)}\n{text}")


def teleoperate(env: Env, keyboard: KeyInput, episodes: int, out: Path | str, seed: int, *,
                images: Literal["video", "png"] = "video", on_saved: Callable[[int], None] = lambda n: None,
                screen: Screen, by: str = "keyboard") -> Dataset:
    """Records at most `episodes` episodes of a person at the keyboard.

    Episode n starts like in `record_episodes`, from the key of `seed` and n, so that it can be replayed. Steps happen
    at the rate of the environment, and each is written immediately with its simulation time. Episodes that the person
    saved with `enter` before the environment ended them have the metadata "stopped".

    Args:
        on_saved: Called with the number of each saved episode.
        by: Who acts, as the recording says.
    """
    if not isinstance(env, Renderable):
        raise UserError("the environment cannot be rendered", where=env.metadata["env"],
                        hint="all toys except arms can be played with the keyboard")
    out, rate = Path(out), float(env.metadata.get("fps") or 10)
    n_recorded(out, env, seed, by)
    schema = {**env.features, "next.reward": Feature("float32", ()), "next.terminated": Feature("bool", ()),
              "next.truncated": Feature("bool", ()),
              **({"next.success": Feature("bool", ())} if env.metadata.get("success") else {})}
    metadata = {"seed": seed, "env": env.metadata["env"], "by": by}
    with Recorder(
        schema, out, fps=env.metadata.get("fps"), clock=None, images=images, metadata=metadata, on_saved=on_saved
    ) as r:
        scene = _TeleoperationSession(env, keyboard, r, seed, 1 / rate, screen)
        while r.count < episodes:
            ended = scene.run_episode()
            if ended == "quit" or ended != "again" and scene.ask_outcome(ended) == "quit":
                break
    return open_dataset(out)


@dataclass(frozen=True)
class _TeleoperationSession:
    env: Renderable
    keyboard: KeyInput
    recorder: Recorder
    seed: int
    period: float  # s
    screen: Screen

    def run_episode(self) -> str:
        """Runs one episode. Returns "again", "quit", or how it ended, in words."""
        env, r, mark, won = self.env, self.recorder, None, False
        obs = env.reset(torch.arange(env.rows), keys(self.seed, [r.count] * env.rows))
        r.begin(number=r.count)
        due = self.screen.clock()
        while True:
            for command in self.keyboard.commands():
                if command in ("discard", "quit"):
                    if r.steps:
                        r.discard()
                    return "again" if command == "discard" else "quit"
                if command == "enter" and r.steps:
                    r.end(success=won if mark is None else mark, obs=_first_row(obs), stopped=True)
                    return "stopped by you"
                if command in ("success", "failure"):
                    mark = command == "success"
            if (action := self.keyboard.read()) is None:  # it waits for a key
                self.screen.draw(env, f"episode {r.count}, step {r.steps}{_task_text(obs)}\n{RUNNING_HELP}")
                self.screen.sleep(self.period)
                continue
            done = env.step(torch.as_tensor(action)[None].expand(env.rows, -1))
            outcome = {"next.reward": done.reward, "next.terminated": done.terminated,
                       "next.truncated": done.truncated & ~done.terminated}
            if "next.success" in r.schema:
                outcome["next.success"] = done.info["success"]
                won |= bool(done.info["success"][0])
            kept = r.step(_first_row(obs), action, _first_row(outcome))
            obs = done.obs
            marked = "" if mark is None else f", marked a {'success' if mark else 'failure'}"
            behind = "" if kept else " (dropped: the disk is behind)"
            self.screen.draw(env, f"episode {r.count}, step {r.steps}{_task_text(obs)}{marked}{behind}\n{RUNNING_HELP}")
            if bool(done.terminated[0] | done.truncated[0]):
                r.end(success=won if mark is None else mark, obs=_first_row(obs))
                return "a success" if won else "no success"
            due = max(due + self.period, self.screen.clock())
            self.screen.sleep(max(0.0, due - self.screen.clock()))

    def ask_outcome(self, ended: str) -> str:
        """Asks the person what to do after an episode. Returns "next", "again" or "quit"."""
        r, message = self.recorder, f"episode {self.recorder.count - 1} was {ended}."
        while True:
            self.screen.draw(self.env, f"{message}\n{ENDED_HELP}", ended=True)
            for command in self.keyboard.commands():
                if command in ("enter", "quit"):
                    return "next" if command == "enter" else "quit"
                if command == "discard":
                    r.discard()
                    return "again"
                r.label(success=command == "success")
                message = f"episode {r.count - 1} is labeled a {command}."
            self.screen.sleep(self.period)


def _first_row(columns) -> dict[str, np.ndarray]:
    return {name: value[0].numpy() for name, value in columns.items()}


def _task_text(obs) -> str:
    """Returns the task in words, if the environment shows it."""
    task = decode_text(obs[SHOWN_TASK][0].numpy()) if SHOWN_TASK in obs else ""
    return f": {task}" if task else ""


def render_ansi(frame: np.ndarray, lines: int) -> str:
    """Converts an image to text: two pixels per character, upper and lower, in 216 terminal colors.

    Args:
        frame: The image, (H, W, 3) uint8.
    """
    wide = round(2 * lines * frame.shape[1] / frame.shape[0])
    small = resize(frame, (2 * lines, wide)).astype(int)

    def color(kind: int, pixel) -> str:
        r, g, b = (pixel * 5 + 127) // 255
        return f"\x1b[{kind};5;{16 + 36 * r + 6 * g + b}m"
    text = []
    for above, below in zip(small[::2], small[1::2], strict=True):
        text.append("".join(f"{color(38, a)}{color(48, b)}▀" for a, b in zip(above, below, strict=True)) + "\x1b[0m")
    return "\n".join(text)
