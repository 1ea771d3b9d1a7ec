"""The command understudy record."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..core import ConfigError, UserError
from ..methods import recommend
from .parts.arms import prepare_session
from .parts.common import (
    Output,
    batch_rows,
    command_line,
    draw_screen,
    given_options,
    parse,
    progress_bar,
    trust_options,
    unused_path,
)
from .parts.groups import PositiveCount, Seed, TrustOption, WorkerCount, command_options
from .parts.options import refuse_given
from .parts.robot_options import (
    RECORDING_OPTIONS,
    LiveViewOptions,
    RobotOptions,
    RobotRecordingOptions,
    TeleopOptions,
    command_keys,
    live_view,
    show_line,
    show_session,
)

if TYPE_CHECKING:
    from ..data.episode import Dataset


@command_options
class RecordOptions(TrustOption, LiveViewOptions, RobotRecordingOptions, TeleopOptions, RobotOptions):
    """Record demonstrations as a LeRobot v3 data set, in an environment or on a robot that a person moves.

    Every episode is kept. Episodes of an environment are labeled with their success (next.success). `saved N` on
    standard error means that episode N, counted from 0, would survive a power cut. After Ctrl-C or a crash the same
    command continues. A larger --episodes adds episodes.

    On a robot (--robot and --teleop), the right arrow or enter ends an episode or a reset, the left arrow or x records
    the episode again, y and n mark it as a success or a failure, and escape or q stops. Video is encoded during the
    recording. If that falls behind, at most 32 GB of finished episodes wait on the disk, and then the reset continues.
    """

    out: Annotated[Path, arg(metavar="DATA")]
    """the folder to write"""
    episodes: PositiveCount
    """total number of episodes"""
    env: Annotated[str | None, Positional, arg(metavar="ENV")] = None
    """a toy's name, a Gymnasium id, metaworld/NAME, or module:factory; nothing with --robot"""
    actor: Literal["scripted", "random", "keyboard"] = "scripted"
    """the environment's own expert, uniformly random actions, or you, in this terminal"""
    seed: Seed = 0
    """seed of the starts, which differ from those of eval"""
    images: Literal["video", "png"] = "video"
    """how camera frames are stored; png is lossless"""
    rows: PositiveCount = 16
    """environments side by side; results do not depend on it"""
    workers: WorkerCount = 1
    """processes that share the episodes, or `ray` for a cluster; results do not depend on it"""


_ENVIRONMENT_OPTIONS = ("actor", "seed", "rows", "workers")
_ROBOT_OPTIONS = (*RECORDING_OPTIONS, "view", "view_address", "rerun")


class _SavedEpisodes:
    """Prints the line that scripts wait for: the episode would survive a power cut. Counts these episodes."""

    def __init__(self):
        self.count = 0

    def __call__(self, number: int) -> None:
        self.count += 1
        print(f"saved {number}", file=sys.stderr, flush=True)


def main(args: list[str]) -> None:
    o = parse(RecordOptions, "record", args)
    o.refuse_without_robot("understudy record --help names the robots; in an environment, --actor keyboard is you")
    if (o.env is None) == (o.robot is None):
        raise ConfigError("name an environment or a robot" + (", not both" if o.env else ""),
                          where="understudy record", hint="understudy record ENV, or understudy record --robot TYPE "
                          "--robot.port PORT --teleop TYPE --teleop.port PORT")
    ignored = _ENVIRONMENT_OPTIONS if o.robot is not None else _ROBOT_OPTIONS
    refuse_given(o, ignored, "has no effect " + ("on a robot" if o.robot is not None else "in an environment"))
    if o.robot is not None:
        _record_robot(o)
        return
    if o.actor == "keyboard" and o.workers != 1:
        raise UserError(f"one person cannot play for {o.workers} workers", where="--workers",
                        hint="leave it out")
    assert o.env is not None
    _record_environment(o, o.env)


def _record_environment(o: RecordOptions, name: str) -> None:
    from ..envs import make

    out, saved = Output(), _SavedEpisodes()
    rows = 1 if o.actor == "keyboard" or o.workers != 1 else min(o.rows, o.episodes)
    with closing(make(name, rows, o.trust)) as env:
        data = _record_keyboard(o, env, saved) if o.actor == "keyboard" else _record_actor(o, env, saved)
    if not len(data):
        out.print(f"no episode was saved in {o.out}")
        return
    successes = [e.metadata["success"] for e in data if "success" in e.metadata]
    out.print(_result(o, data, saved, f"; {sum(successes)} of {len(successes)} succeeded" if successes else ""))
    out.suggest(
        command_line("inspect", o.out),
        command_line("train", recommend(data.features()), o.out, "--out", unused_path("run")),
        command_line("replay", o.out, name, *trust_options(o.trust, name)))


def _record_actor(o: RecordOptions, env, saved: _SavedEpisodes) -> Dataset:
    """Records episodes of the environment's expert, or of random actions."""
    from ..data.formats import open_dataset
    from ..data.formats.parts.file_kinds import is_lerobot
    from ..evaluate.env_checks import warn_unless_repeatable
    from ..evaluate.evaluation import recording_seed
    from ..evaluate.recording import record_episodes
    from ..evaluate.workers import WorkerPool

    actor = _make_actor(o, env)
    warn_unless_repeatable(actor, env, recording_seed(o.seed))
    n_before = len(open_dataset(o.out)) if is_lerobot(o.out) else 0
    with (progress_bar("recording", o.episodes, n_before) as progress,
          WorkerPool(partial(_worker_setup, o), o.workers, local=(actor, env)) as crew):
        return record_episodes(
            env,
            actor,
            o.episodes,
            o.out,
            recording_seed(o.seed),
            actor_name=o.actor,
            images=o.images,
            watch=lambda number, episode: progress(number + 1),
            on_saved=saved,
            workers=crew)


def _result(o: RecordOptions, data: Dataset, saved: _SavedEpisodes, succeeded: str = "") -> str:
    """Describes the data set, and whether anything was added to it."""
    from ..hints import pluralize
    from ..robots.recording import n_interrupted

    counts = f"{pluralize(len(data), 'episode')}, {pluralize(data.steps, 'step')}{succeeded}"
    if interrupted := n_interrupted(data):
        counts += f"; {interrupted} of them interrupted, which --episodes does not count"
    if saved.count or len(data) - interrupted < o.episodes:
        return f"{counts}. Written to {o.out}"
    return (f"{o.out} already has {counts}. Nothing was recorded, because --episodes {o.episodes} is the total number. "
            f"Pass a larger one, such as --episodes {len(data) + o.episodes}, to add episodes, or choose another --out")


def _record_robot(o: RecordOptions) -> None:
    from ..robots.recording import RobotSession

    config = o.robot_config()
    robot, teleop, keyboard = prepare_session(config, o.teleop_config(config.use_degrees), o.trust, o.yes)
    saved = _SavedEpisodes()

    def tell(number: int) -> None:
        show_line("")
        saved(number)
    with (command_keys(keyboard) as keys, live_view(o, robot, o.fps, show_session(robot, keyboard)) as show,
          ExitStack() as devices):
        devices.enter_context(teleop)
        devices.enter_context(robot)  # released first
        data = RobotSession(robot, teleop, keys, o.fps, show).record(
            o.episodes, o.out, task=o.task, by=o.teleop or "", images=o.images, on_saved=tell, release=devices.close,
            times=o.times())
    out = Output()
    if not len(data):
        out.print(f"no episode was saved in {o.out}")
        return
    out.print(_result(o, data, saved))
    trust = given_options(o, "trust")
    out.suggest(
        command_line("inspect", o.out),
        command_line("replay", o.out, "--episode", 0, *o.robot_arguments(), *trust),
        command_line("train", recommend(data.features()), o.out, "--out", run := unused_path("run")),
        command_line("act", run, *o.robot_arguments(), *trust))


def _make_actor(o: RecordOptions, env):
    from ..evaluate.recording import UniformRandomActor, expert_actor

    return expert_actor(env) if o.actor == "scripted" else UniformRandomActor(env)


def _worker_setup(o: RecordOptions):
    from ..envs import make

    assert o.env is not None
    env = make(o.env, batch_rows(o.rows, o.episodes, o.workers), o.trust)
    return _make_actor(o, env), env


def _record_keyboard(o: RecordOptions, env, saved: _SavedEpisodes) -> Dataset:
    """Records episodes in which a person acts at the keyboard. The environment is shown as text."""
    import numpy as np

    from ..envs.devices import DiscreteKeyboard, Keyboard
    from ..envs.toys.words import Words
    from ..evaluate.evaluation import recording_seed
    from ..evaluate.teleoperate import Screen, teleoperate

    size = env.features["action"].shape
    low, high = (np.broadcast_to(env.metadata.get(k, np.nan), size).reshape(-1).tolist() for k in ("low", "high"))
    with (DiscreteKeyboard() if isinstance(env, Words) else Keyboard(low, high)).listening() as keyboard:
        data = teleoperate(
            env,
            keyboard,
            o.episodes,
            o.out,
            recording_seed(o.seed),
            images=o.images,
            on_saved=saved,
            screen=Screen(draw_screen, max(8, min(24, shutil.get_terminal_size().lines - 4))))
        draw_screen("")
    return data
