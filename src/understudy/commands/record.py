"""understudy record"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from .common import Count, Env, Out, Processes, Trust, bar, free, line, needed, parse, side_by_side

if TYPE_CHECKING:
    from ..data.episode import Dataset


@dataclass(frozen=True)
class Record:
    """Record demonstrations of an environment as a LeRobot v3 data set.

    Every episode is kept, whether it succeeded or not, and marked (next.success). `saved N` on standard error means
    that episode N, counted from 0, would survive a power cut. After Ctrl-C the same command goes on (after anything
    worse, too), and a larger --episodes adds to what there is.
    """

    env: Env
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory"""
    out: Annotated[Path, arg(metavar="DATA")]
    """the folder to write"""
    episodes: Count
    """how many there shall be in all"""
    by: Literal["scripted", "random", "keyboard"] = "scripted"
    """the environment's own expert, uniformly random actions, or you, in this terminal"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of the starts; never those that eval judges on"""
    images: Literal["video", "png"] = "video"
    """how camera frames are stored; png loses nothing"""
    rows: Count = 16
    """environments side by side; changes nothing but the time it takes"""
    workers: Processes = 1
    """processes that share the episodes, or `ray` for a cluster; changes nothing but the time it takes"""
    trust: Trust = ()
    """a package whose code may be loaded"""


def _saved(number: int) -> None:
    """Scripts wait for this line: the episode would survive a power cut."""
    print(f"saved {number}", file=sys.stderr, flush=True)


def main(args: list[str]) -> None:
    o = parse(Record, "record", args)
    from ..core import UserError
    from ..data.episode import Dataset
    from ..envs import make
    from ..evaluate.judge import recording
    from ..evaluate.record import record
    from ..evaluate.workers import Workers
    from ..recipes import recommended

    if o.by == "keyboard" and o.workers != 1:
        raise UserError(f"expected one worker, since you are one, found {o.workers}", where="--workers",
                        do="leave it out")
    out, rows = Out(), 1 if o.by == "keyboard" or o.workers != 1 else min(o.rows, o.episodes)
    env = make(o.env, rows, o.trust)
    try:
        if o.by == "keyboard":
            data = _by_hand(o, env)
        else:
            actor = _actor(o, env)
            there = len(Dataset.open(o.out)) if (o.out / "meta" / "info.json").exists() else 0
            with (bar("recording", o.episodes, there) as progress,
                  Workers(partial(_seat, o), o.workers, own=(actor, env)) as crew):
                data = record(env, actor, o.episodes, o.out, recording(o.seed), by=o.by, images=o.images,
                              watch=lambda number, episode: progress(number + 1), saved=_saved, crew=crew)
    finally:
        env.close()
    if not len(data):
        out.say(f"no episode was saved in {o.out}")
        return
    ended = [e.meta["success"] for e in data if "success" in e.meta]
    won = f"; {sum(ended)} of {len(ended)} succeeded" if ended else ""
    out.say(f"{len(data)} episodes, {data.steps} steps{won}. Written to {o.out}")
    out.next(line("inspect", o.out), line("train", recommended(data.features()), o.out, "--out", free("run")),
             line("replay", o.out, o.env, *needed(o.trust, o.env)))


def _actor(o: Record, env):
    from ..evaluate.record import Uniform, expert

    return expert(env) if o.by == "scripted" else Uniform(env)


def _seat(o: Record):
    """What each worker has."""
    from ..envs import make

    env = make(o.env, side_by_side(o.rows, o.episodes, o.workers), o.trust)
    return _actor(o, env), env


def _by_hand(o: Record, env) -> Dataset:
    """A person, at the keyboard, sees the environment as text."""
    import numpy as np

    from ..envs.devices import Keyboard
    from ..evaluate.judge import recording
    from ..evaluate.teleoperate import teleoperate

    size = env.features["action"].shape
    low, high = (np.broadcast_to(env.facts.get(k, np.nan), size).reshape(-1).tolist() for k in ("low", "high"))

    def show(text: str) -> None:
        print("\x1b[H" + text.replace("\n", "\x1b[K\n"), end="\x1b[J", flush=True)
    with Keyboard(low, high).listening() as keyboard:
        print("\x1b[2J", end="")
        data = teleoperate(env, keyboard, o.episodes, o.out, recording(o.seed), images=o.images, saved=_saved,
                           show=show, lines=max(8, min(24, shutil.get_terminal_size().lines - 4)))
        print("\x1b[2J\x1b[H", end="", flush=True)
    return data
