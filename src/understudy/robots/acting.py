"""Runs a policy on a robot, in real time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from ..data.recording.recorder import Recorder
from ..execute.actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from ..execute.asynchronous import AsynchronousRunner
from ..execute.chunking import ChunkedExecutor
from ..execute.doubt import DOUBT
from ..execute.followed import FollowedActor
from .base import Robot, RobotError
from .pace import Pace
from .recording import CommandKeys, NoKeys

_KEYS = "enter: end | y, n: end as success, failure | x: discard | q: quit"


@dataclass(frozen=True)
class StepCounts:
    """How many steps of a policy on a robot did not go as planned.

    Args:
        clipped: Actions that safety limits changed. See `SafeRobot.n_clipped`.
        repeated: Actions that repeated the last one of a chunk, because no new plan had come.
        late: Steps that took longer than a period.
        missed: Further periods that late steps took. Meanwhile the robot held its last goal.
        bad: Steps that were clipped, repeated, late or missed. A step of two kinds counts once.
        retries: Requests to the devices of the robot that were repeated.
    """

    steps: int = 0
    clipped: int = 0
    repeated: int = 0
    late: int = 0
    missed: int = 0
    bad: int = 0
    retries: int = 0

    @property
    def stale(self) -> int:
        """Number of periods without a new plan, in which the last action was repeated or the robot held."""
        return self.repeated + self.missed

    @property
    def bad_share(self) -> float:
        """Fraction of the periods that were clipped, stale or late."""
        return self.bad / max(self.steps + self.missed, 1)

    def __add__(self, other: StepCounts) -> StepCounts:
        return StepCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        kinds = {name: getattr(self, name) for name in ("clipped", "stale", "late", "retries")}
        return ", ".join([f"{self.steps} steps", *(f"{n} {name}" for name, n in kinds.items() if n)])

    def metadata(self) -> dict[str, int]:
        """Returns the counts that are stored with a recorded episode."""
        return {name: getattr(self, name) for name in ("steps", "clipped", "stale", "late", "retries")}


@dataclass(frozen=True)
class ActedEpisode:
    """The result of one episode on a robot.

    Args:
        ended: The command that ended it: enter, discard, success, failure or quit, or "alarm" of the failure detector.
            None if the time was over.
    """

    counts: StepCounts
    ended: str | None

    @property
    def success(self) -> bool | None:
        """Whether the person called it a success. None if the person did not say."""
        return {"success": True, "failure": False}.get(self.ended or "")


class _StepCounter:
    def __init__(self, robot: Robot, pace: Pace, runners: Sequence[AsynchronousRunner]):
        self.robot, self.pace, self.runners = robot, pace, runners
        self.counts, self._before = StepCounts(), self._read()

    def _read(self) -> tuple[int, ...]:
        return (self.robot.n_clipped, sum(r.n_stale for r in self.runners), self.pace.n_late, self.pace.n_missed,
                self.robot.n_retries)

    def step(self) -> None:
        """Counts what happened since the last call as one step."""
        now = self._read()
        clipped, repeated, late, missed, retries = (n - before for n, before in zip(now, self._before, strict=True))
        bad = missed + bool(clipped or repeated or late)
        self.counts, self._before = self.counts + StepCounts(1, clipped, repeated, late, missed, bad, retries), now


@torch.no_grad()
def act_on_robot(robot: Robot, actor: Actor, key: Tensor, *, fps: float, seconds: float,
                 keys: CommandKeys = NoKeys(), recorder: Recorder | None = None,  # noqa: B008
                 alarm_at: float = math.inf,
                 show: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.perf_counter,
                 sleep: Callable[[float], None] = time.sleep) -> ActedEpisode:
    """Runs one episode of a policy on a connected robot, and stops the robot at its end.

    Plans of a policy that executes chunks are computed in another thread (`AsynchronousRunner`), so that the robot
    keeps moving meanwhile. Other policies compute each action in the loop.

    Args:
        robot: The robot, with safety limits.
        key: Source of the randomness of the episode, (1,) int64.
        seconds: Longest duration.
        keys: Commands of a person. Each of them ends the episode.
        recorder: Records the observations, and the actions that were sent.
        alarm_at: Doubt of a `DoubtActor` that ends the episode before the action of its step is sent.
    """
    robot.check_rate(fps)

    def observe():
        obs = robot.observe()
        return obs, {name: torch.as_tensor(value)[None] for name, value in obs.items()}

    ended, runners = None, []
    with ExitStack() as stack:
        obs, rows = observe()
        actor = plan_in_background(actor, stack, runners, patience=0.5 / fps)
        stack.push(partial(_stop_robot, robot))  # before the thread is waited for
        state = actor.start(rows, key)
        keys.commands()  # what was pressed before
        pace, ends = Pace(fps, clock, sleep), clock() + seconds
        obs, rows = observe()
        counter = _StepCounter(robot, pace, runners)
        stack.push(lambda kind, error, trace: _note_steps(error, counter.counts.steps))
        while ended is None and clock() < ends:
            action, state = actor.act(rows, {k: v for k, v in state.items() if k != "record"})
            if alarm_at < math.inf and float(state["record"][DOUBT][0]) >= alarm_at:
                ended = "alarm"
                break
            if not counter.counts.steps:  # the first plan is waited for, while the robot rests
                pace.restart()
            sent = robot.send(action[0].double().cpu().numpy())
            if recorder is not None:
                recorder.step(obs, sent)
            pace.wait()
            counter.step()
            show(f"{counter.counts} ({max(ends - clock(), 0):.0f} s) | {_KEYS}")
            obs, rows = observe()
            ended = next(iter(keys.commands()), None)
    return ActedEpisode(counter.counts, ended)


def _stop_robot(robot: Robot, kind: type | None, error: BaseException | None, trace: object) -> None:
    """Stops the robot at the end of an episode. If it was lost before, the error says so, not that it is closed."""
    with suppress(RobotError) if isinstance(error, RobotError) else nullcontext():
        robot.stop()


def _note_steps(error: BaseException | None, steps: int) -> None:
    """Adds a note to an error: how many steps of the episode were done."""
    if isinstance(error, Exception):
        error.add_note(f"{steps} steps of the episode were done")


def plan_in_background(actor: Actor, stack: ExitStack, runners: list[AsynchronousRunner],
                            patience: float) -> Actor:
    """Returns the actor with its chunks planned in another thread until `stack` ends.

    Its runner is added to `runners`.
    """
    if isinstance(actor, (ObservationWrapper, TransformedActor, FollowedActor)):
        return replace(actor, actor=plan_in_background(actor.actor, stack, runners, patience))
    if isinstance(actor, PolicyActor) and isinstance(actor.executor, ChunkedExecutor):
        runners.append(stack.enter_context(AsynchronousRunner(actor, patience=patience)))
        return _BackgroundActor(runners[-1])
    return actor


class _BackgroundActor(Actor):
    """Makes an `AsynchronousRunner` an actor of one robot. The runner keeps the state."""

    def __init__(self, runner: AsynchronousRunner):
        self.runner = runner

    def start(self, obs, key):
        self.runner.start(obs, key)
        return {"seen": self.runner.windows}

    def act(self, obs, state):
        return self.runner.act(obs), {"seen": self.runner.windows}
