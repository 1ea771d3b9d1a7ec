"""understudy replay"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .common import Count, Env, Out, Trust, bar, demonstrations, line, needed, parse


@dataclass(frozen=True)
class Replay:
    """Take recorded actions again in an environment: do they still succeed, and where do they first diverge?"""

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    env: Env
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory"""
    episode: Annotated[int | None, arg(metavar="I")] = None
    """only this one, counted from 0"""
    state: bool = False
    """put the environment into every recorded step, and compare one step each"""
    rows: Count = 16
    """environments side by side"""
    json: bool = False
    """one JSON document on standard output"""
    trust: Trust = ()
    """a package whose code may be loaded"""


def main(args: list[str]) -> None:
    o = parse(Replay, "replay", args)
    from ..data.episode import Dataset
    from ..envs import make
    from ..evaluate.replay import replay
    from ..evaluate.simulators import otherwise
    from ..learn.train import simulators

    with Out(o.json) as out:
        data = Dataset.open(demonstrations(o.data))
        chosen = None if o.episode is None else [o.episode]
        env = make(o.env, min(o.rows, len(data) if chosen is None else 1), o.trust)
        if told := otherwise(simulators(data), env, "the data were recorded in"):
            print(f"warning: {told}", file=sys.stderr)
        try:
            with bar("replaying", len(data) if chosen is None else 1) as progress:
                found = replay(data, env, chosen, o.state, watch=lambda track: progress())
        finally:
            env.close()
        out.say(found.words())
        if not o.state and any(t.diverges for t in found.tracks):
            out.next(line("replay", o.data, o.env, "--state", *needed(o.trust, o.env)))
        out.answer(found.json())
