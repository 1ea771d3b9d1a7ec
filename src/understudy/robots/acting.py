"""A policy on a robot, in real time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.recorder import Recorder
from ..execute.actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from ..execute.asynchronous import AsynchronousRunner
from ..execute.chunking import ChunkedExecutor
from .base import Robot
from .env import Pace
from .recording import CommandKeys, NoKeys

_KEYS = "enter: end | y, n: end as success, failure | x: discard | q: quit"


@dataclass(frozen=True)
class ActedEpisode:
    """What happened in an episode.

    Args:
        steps: Number of steps.
        late: Number of steps that took longer than a period.
        ended: The command that ended it: enter, discard, success, failure or quit. None if the time was over.
    """

    steps: int
    late: int
    ended: str | None

    @property
    def success(self) -> bool | None:
        """Whether the person called it a success. None if the person did not say."""
        return {"success": True, "failure": False}.get(self.ended or "")


@torch.no_grad()
def act_on_robot(robot: Robot, actor: Actor, key: Tensor, *, fps: float, seconds: float,
                 keys: CommandKeys = NoKeys(), recorder: Recorder | None = None,  # noqa: B008
                 show: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.perf_counter,
                 sleep: Callable[[float], None] = time.sleep) -> ActedEpisode:
    """Runs one episode of a policy on a connected robot, and stops the robot at its end.

    Plans of a policy that executes chunks are computed in another thread (`AsynchronousRunner`), so that the robot
    keeps moving meanwhile. Other policies compute each action in the loop.

    Args:
        robot: The robot, with safety limits.
        actor: The policy.
        key: Source of the randomness of the episode, (1,) int64.
        fps: Steps per second.
        seconds: Longest duration.
        keys: Commands of a person. Each of them ends the episode.
        recorder: Records the observations, and the actions that were sent.
        show: Shows one line of text.
        clock: Current time (s).
        sleep: Sleeps for some seconds.
    """
    robot.check_rate(fps)

    def observe():
        obs = robot.observe()
        return obs, {name: torch.as_tensor(value)[None] for name, value in obs.items()}

    ended, steps = None, 0
    with ExitStack() as stack:
        obs, rows = observe()
        actor = _planning_in_background(actor, stack)
        stack.callback(robot.stop)  # before the thread is waited for
        state = actor.start(rows, key)
        keys.commands()  # what was pressed before
        pace, ends = Pace(fps, clock, sleep), clock() + seconds
        obs, rows = observe()
        stack.push(lambda kind, error, trace: _note_steps(error, steps))
        while ended is None and clock() < ends:
            action, state = actor.act(rows, {k: v for k, v in state.items() if k != "record"})
            sent = robot.send(action[0].double().cpu().numpy())
            if recorder is not None:
                recorder.step(obs, sent)
            steps += 1
            show(f"step {steps} ({max(ends - clock(), 0):.0f} s) | {_KEYS}")
            pace.wait()
            obs, rows = observe()
            ended = next(iter(keys.commands()), None)
    return ActedEpisode(steps, pace.n_late, ended)


def _note_steps(error: BaseException | None, steps: int) -> None:
    """Tells an error how far the episode had come."""
    if isinstance(error, Exception):
        error.add_note(f"{steps} steps of the episode were done")


def _planning_in_background(actor: Actor, stack: ExitStack) -> Actor:
    """The actor, whose plans are computed in another thread if it executes chunks. `stack` ends the thread."""
    if isinstance(actor, (ObservationWrapper, TransformedActor)):
        return replace(actor, actor=_planning_in_background(actor.actor, stack))
    if isinstance(actor, PolicyActor) and isinstance(actor.executor, ChunkedExecutor):
        return _BackgroundActor(stack.enter_context(AsynchronousRunner(actor)))
    return actor


class _BackgroundActor(Actor):
    """An `AsynchronousRunner` as an actor of one robot. The runner keeps the state."""

    def __init__(self, runner: AsynchronousRunner):
        self.runner = runner

    def start(self, obs, key):
        self.runner.start(obs, key)
        return {}

    def act(self, obs, state):
        return self.runner.act(obs), state
