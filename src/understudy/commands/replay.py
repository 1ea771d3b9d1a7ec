"""The command understudy replay."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..core import ConfigError, UserError
from ..hints import escape_control
from .parts.arms import prepare_robot
from .parts.common import Output, command_line, demonstrations_path, parse, progress_bar, trust_options
from .parts.groups import JsonOption, PositiveCount, TrustOption, command_options
from .parts.options import refuse_given
from .parts.robot_options import RobotOptions, show_line


@command_options
class ReplayOptions(JsonOption, TrustOption, RobotOptions):
    """Repeat recorded actions in an environment: do they still succeed, and where do they first diverge?

    With --robot, one episode is repeated on a robot, which moves to the first recorded pose before.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    env: Annotated[str | None, Positional, arg(metavar="ENV")] = None
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory; nothing with --robot"""
    episode: Annotated[int | None, arg(metavar="I")] = None
    """replay only this episode, counted from 0"""
    state: bool = False
    """set the environment to every recorded state, and compare one step from each"""
    rows: PositiveCount = 16
    """environments side by side"""


def main(args: list[str]) -> None:
    o = parse(ReplayOptions, "replay", args)

    o.refuse_without_robot("understudy replay --help names the robots")
    if (o.env is None) == (o.robot is None):
        raise ConfigError("name an environment or a robot" + (", not both" if o.env else ""),
                          where="understudy replay", hint="understudy replay DATA ENV, or understudy replay DATA "
                          "--episode 0 --robot TYPE --robot.port PORT")
    if o.robot is not None:
        refuse_given(o, ("rows",), "has no effect on a robot, which repeats one episode")
        refuse_given(o, ("state",), "a robot cannot be set to a recorded state",
                     "leave it out; in an environment, it compares one step from each state")
        _replay_on_robot(o)
        return
    assert o.env is not None
    from ..data.formats import open_dataset
    from ..envs import make
    from ..evaluate.replay import replay
    from ..evaluate.simulator_versions import version_warning
    from ..learn.train import recorded_simulators

    with Output(o.json) as out:
        data = open_dataset(demonstrations_path(o.data))
        chosen = None if o.episode is None else [o.episode]
        with closing(make(o.env, min(o.rows, len(data) if chosen is None else 1), o.trust)) as env:
            if warning := version_warning(recorded_simulators(data), env, "the data were recorded in"):
                print(escape_control(f"warning: {warning}"), file=sys.stderr)
            with progress_bar("replaying", len(data) if chosen is None else 1) as progress:
                replayed = replay(data, env, chosen, o.state, watch=lambda track: progress())
        out.print(replayed.describe())
        if not o.state and any(t.divergence for t in replayed.episodes):
            out.suggest(command_line("replay", o.data, o.env, "--state", *trust_options(o.trust, o.env)))
        out.print_json(replayed.to_json())


def _replay_on_robot(o: ReplayOptions) -> None:
    from ..data.formats import open_dataset
    from ..robots.recording import replay_episode

    with Output(o.json) as out:
        data, number = open_dataset(demonstrations_path(o.data)), o.episode or 0
        if not 0 <= number < len(data):
            raise UserError(f"there is no episode {number}; the last one is {len(data) - 1}", where=o.data,
                            hint="episodes are counted from 0")
        robot = prepare_robot(o.robot_config(), o.trust, o.yes)
        if not data.fps:
            print(f"note: {o.data} does not say at which rate it was recorded. It is replayed at 30 steps per second",
                  file=sys.stderr)
        try:
            with robot:
                worst = replay_episode(robot, data[number], float(data.fps or 30), show_line)
        finally:
            show_line("")
        names = robot.schema["action"].names or tuple(f"joint {i}" for i in range(len(worst)))
        out.print(f"Episode {number}, {len(data[number])} steps. The largest distances from the recorded positions:",
                  ", ".join(f"{n} {v:.1f}" for n, v in zip(names, worst, strict=True)))
        out.print_json({"episode": number, "max_differences": dict(zip(names, worst.tolist(), strict=True))})
