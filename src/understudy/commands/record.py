"""understudy record"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from .common import Count, Env, Out, Trust, bar, free, line, needed, parse


@dataclass(frozen=True)
class Record:
    """Record demonstrations of an environment as a LeRobot v3 data set.

    Every episode is kept, whether it succeeded or not, and marked (next.success). Episodes are written in groups as
    they end: after Ctrl-C the same command goes on, and a larger --episodes adds to what there is.
    """

    env: Env
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory"""
    out: Annotated[Path, arg(metavar="DATA")]
    """the folder to write"""
    episodes: Count
    """how many there shall be in all"""
    by: Literal["scripted", "random"] = "scripted"
    """the environment's own expert, or uniformly random actions"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of the starts; never those that eval judges on"""
    images: Literal["video", "png"] = "video"
    """how camera frames are stored; png loses nothing"""
    rows: Count = 16
    """environments side by side; changes nothing but the time it takes"""
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
    from ..evaluate.record import Uniform, expert, record
    from ..recipes import recommended

    if o.episodes < 1:
        raise UserError(f"expected at least one episode, found {o.episodes}", where="--episodes")
    out, env = Out(), make(o.env, min(o.rows, o.episodes), o.trust)
    try:
        actor = expert(env) if o.by == "scripted" else Uniform(env)
        there = len(Dataset.open(o.out)) if (o.out / "meta" / "info.json").exists() else 0
        with bar("recording", o.episodes, there) as progress:
            data = record(env, actor, o.episodes, o.out, recording(o.seed), by=o.by, images=o.images,
                          watch=lambda number, episode: progress(number + 1), saved=_saved)
    finally:
        env.close()
    ended = [e.meta["success"] for e in data if "success" in e.meta]
    won = f"; {sum(ended)} of {len(ended)} succeeded" if ended else ""
    out.say(f"{len(data)} episodes, {data.steps} steps{won}. Written to {o.out}")
    out.next(line("inspect", o.out), line("train", recommended(data.features()), o.out, "--out", free("run")),
             line("replay", o.out, o.env, *needed(o.trust, o.env)))
