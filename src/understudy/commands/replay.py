"""The command understudy replay."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .common import (
    EnvName,
    Output,
    PositiveCount,
    TrustedPackages,
    command_line,
    demonstrations_path,
    parse,
    progress_bar,
    trust_options,
)


@dataclass(frozen=True)
class ReplayOptions:
    """Repeat recorded actions in an environment: do they still succeed, and where do they first diverge?"""

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    env: EnvName
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory"""
    episode: Annotated[int | None, arg(metavar="I")] = None
    """replay only this episode, counted from 0"""
    state: bool = False
    """set the environment to every recorded state, and compare one step from each"""
    rows: PositiveCount = 16
    """environments side by side"""
    json: bool = False
    """one JSON document on standard output"""
    trust: TrustedPackages = ()
    """a package whose code may be loaded"""


def main(args: list[str]) -> None:
    o = parse(ReplayOptions, "replay", args)
    from ..data.formats import open_dataset
    from ..envs import make
    from ..evaluate.replay import replay
    from ..evaluate.simulator_versions import version_warning
    from ..learn.train import recorded_simulators

    with Output(o.json) as out:
        data = open_dataset(demonstrations_path(o.data))
        chosen = None if o.episode is None else [o.episode]
        env = make(o.env, min(o.rows, len(data) if chosen is None else 1), o.trust)
        if told := version_warning(recorded_simulators(data), env, "the data were recorded in"):
            print(f"warning: {told}", file=sys.stderr)
        try:
            with progress_bar("replaying", len(data) if chosen is None else 1) as progress:
                found = replay(data, env, chosen, o.state, watch=lambda track: progress())
        finally:
            env.close()
        out.print(found.describe())
        if not o.state and any(t.divergence for t in found.episodes):
            out.suggest(command_line("replay", o.data, o.env, "--state", *trust_options(o.trust, o.env)))
        out.print_json(found.to_json())
