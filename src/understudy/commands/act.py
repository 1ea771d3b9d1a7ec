"""The command understudy act."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..core import AtLeast, AtMost, keys
from ..hints import escape_control
from ..serve.address import served_address
from .calibrate import detector_source, load_detector
from .parts.arms import prepare_robot
from .parts.common import Output, acting_rate, command_line, parse
from .parts.groups import ActingOptions, DetectorOption, PositiveCount, Seconds, StepRate, command_options
from .parts.options import Advice
from .parts.policies import load_actor, refuse_unused_conditions, untrained_warning
from .parts.robot_options import LiveViewOptions, RobotOptions, command_keys, flush_input, live_view, show_line
from .parts.rollouts import record_doubt
from .parts.served import changed_checkpoint, served_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.recording.recorder import Recorder
    from ..evaluate.failure_detection import FailureDetector
    from ..execute.actor import Actor
    from ..robots.acting import ActedEpisode, StepCounts
    from ..robots.safety import SafeRobot


@command_options
class ActOptions(ActingOptions, DetectorOption, LiveViewOptions, RobotOptions):
    """Run a trained policy on a robot, within its safety limits.

    Before every episode you arrange the scene and press enter (q and enter stop). Any of these keys ends an episode:
    the right arrow or enter, y and n (it is a success or a failure), the left arrow or x (it is discarded and run
    again), and escape or q (it is discarded, and no other follows).

    Three kinds of steps are counted, shown, and stored with recorded episodes. Clipped: a safety limit changed the
    action by more than 1 % of a joint's range, other than in a slow start. Stale: there was no new plan, so the last
    action was repeated, or the robot held. Late: the step took longer than its time. The exit status is 3 if more than
    --max-bad-share of all steps were of these kinds.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run, a checkpoint, a file of understudy export, a run of LeRobot, or the address of understudy serve
    (ws://HOST:PORT)"""
    episodes: PositiveCount = 1
    """number of episodes"""
    episode_time_s: Seconds = 60.0
    """longest duration of an episode"""
    fps: StepRate = None
    """steps per second; by default those of the training data, or 30"""
    out: Annotated[Path | None, arg(metavar="DATA")] = None
    """record the episodes"""
    detect: bool = False
    """at the first alarm of the failure detector of the run (understudy calibrate), hold the robot and end the
    episode"""
    max_bad_share: Annotated[float, AtLeast(0), AtMost(1), arg(metavar="FRACTION"), Advice(
        "1 allows every step to be clipped, stale or late")] = 0.2
    """largest fraction of steps that may be clipped, stale or late; the exit status is 3 if there are more"""


def main(args: list[str]) -> None:
    o = parse(ActOptions, "act", args)
    from ..data.recording.recorder import Recorder
    from ..robots.env import RobotEnv

    out = Output()
    robot = prepare_robot(o.robot_config(), o.trust, o.yes)
    fps = acting_rate(o.fps, o.run)
    refuse_unused_conditions([o.run], o)
    detector = load_detector(o.run, o, o.detector) if o.detect or o.detector is not None else None
    actor, by = load_actor(o.run, RobotEnv(robot, fps), o, rows=None, tell=True)
    if detector is not None:
        actor = record_doubt(actor, o.run, o, detector_source(o.run, detector))
    if warning := untrained_warning(o.run, o.trust):
        print(escape_control(f"warning: {warning}"), file=sys.stderr)
    with ExitStack() as stack:
        show = stack.enter_context(live_view(o, robot, fps, show_line))
        stack.enter_context(robot)
        recorder = None
        if o.out is not None:
            metadata = {**robot.episode_metadata(), "by": by, "seed": o.seed, **({"task": o.task} if o.task else {})}
            recorder = stack.enter_context(Recorder(robot.schema, o.out, fps=fps, robot_type=robot.name,
                                                    metadata=metadata))
        total, n_counted = _run_episodes(o, robot, actor, detector, recorder, fps, show, out)
    if n_counted > 1:
        out.print(f"{n_counted} episodes: {total}")
    if o.out is not None:
        out.print(f"Episodes written to {o.out}")
        out.suggest(command_line("inspect", o.out))
    if total.bad_share > o.max_bad_share:
        print(f"{total.bad_share:.0%} of the steps were clipped, stale or late, and --max-bad-share allows "
              f"{o.max_bad_share:.0%}: this was not the policy alone", file=sys.stderr)
        raise SystemExit(3)


def _run_episodes(o: ActOptions, robot: SafeRobot, actor: Actor, detector: FailureDetector | None,
                  recorder: Recorder | None, fps: float, show: Callable[[str], None], out: Output
                  ) -> tuple[StepCounts, int]:
    """Runs episodes until the person stops. Returns the steps, and the number of episodes that were not discarded."""
    from ..robots.acting import StepCounts, act_on_robot

    total, n_counted = StepCounts(), 0
    number, first = 0, 0 if recorder is None else recorder.count
    while number < o.episodes:
        if sys.stdin.isatty() and not _may_begin(number):
            break
        with command_keys() as pressed:
            paused = robot.n_pauses
            done = act_on_robot(robot, actor, keys(o.seed, [first + number]), fps=fps, seconds=o.episode_time_s,
                                keys=pressed, recorder=recorder, show=show,
                                alarm_at=math.inf if detector is None else detector.threshold)
        is_discarded = done.ended in ("discard", "quit")
        if recorder is not None and is_discarded:
            recorder.discard()
        elif recorder is not None:
            recorder.end(success=done.success, obs=robot.observe(), execution=done.counts.metadata(),
                         **({"alarm": done.counts.steps} if done.ended == "alarm" else {}), **_checkpoints(o.run))
        out.print(f"episode {number}: {done.counts}{_circumstances(o, robot, done, robot.n_pauses - paused)}")
        if not is_discarded:
            total, n_counted = total + done.counts, n_counted + 1
        if done.ended == "quit":
            break
        number += done.ended != "discard"
    return total, n_counted


def _circumstances(o: ActOptions, robot: SafeRobot, done: ActedEpisode, n_pauses: int) -> str:
    """Describes in words how an episode ended and whether the robot paused."""
    text = f", ended by {done.ended}" if done.ended else ""
    if done.ended == "alarm":
        text += " of the failure detector, before its next action: the robot holds"
    if n_pauses:
        text += (f"; the robot paused {n_pauses} time{'s' * (n_pauses > 1)}, because no action came for "
                 f"{robot.limits.timeout:g} s")
    if checkpoint_change := changed_checkpoint(o.run):
        text += f"; {checkpoint_change}"
    return text


def _checkpoints(run: Path) -> dict[str, object]:
    """Returns a server's checkpoints as metadata of an episode. Empty if the server has not changed its checkpoint."""
    if changed_checkpoint(run) is None or (address := served_address(run)) is None:
        return {}
    return {"checkpoints": served_client(address).checkpoints}


def _may_begin(number: int) -> bool:
    """Asks the person whether an episode may begin. Only enter alone moves the robot."""
    while True:
        flush_input()
        try:
            reply = input(f"episode {number}: arrange the scene, and press enter (q: quit) ").strip().lower()
        except (EOFError, KeyboardInterrupt):  # Ctrl-C here stops as q does: no robot moves
            print()
            reply = "q"
        if reply in ("", "q", "quit"):
            return not reply
        print(f"  {reply!r} does not start it: press enter alone, or q and enter")
