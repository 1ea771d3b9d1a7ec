"""The options of understudy eval, which several modules read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from tyro.conf import Positional, arg

from .common import (
    ColumnTexts,
    ConditionTexts,
    DeviceName,
    PositiveCount,
    SchemeName,
    StepCount,
    TrustedPackages,
    WorkerCount,
)
from .robot_options import RobotOptions


@dataclass(frozen=True)
class _EvalOptions:
    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, a file of understudy export, the address of understudy
    serve (ws://HOST:PORT), or a run or checkpoint of LeRobot (ACT or Diffusion Policy)"""
    target: Annotated[str | None, Positional, arg(metavar="ENV|DATA")] = None
    """environment in which to act, or a file or folder of recorded episodes; with --interactive module:actor_loop, or
    nothing"""
    episodes: StepCount = None
    """number of episodes, by default 100; with --sequential the largest number, by default 1000"""
    against: Annotated[Path | None, arg(metavar="RUN2")] = None
    """a second policy to compare with, on the same starts"""
    sequential: bool = False
    """test after every episode and stop as soon as the result is significant or futile"""
    interactive: bool = False
    """ask for your judgment after every trial of a real robot, in an order that hides the policy; stops as --sequential
    does"""
    threshold: Annotated[float | None, arg(metavar="RATE")] = None
    """with --sequential or --interactive: test whether the success rate is above or below this rate"""
    labels: Annotated[tuple[str, ...], arg(metavar="LABEL")] = ("failure", "partial", "success")
    """with --interactive: your possible judgments of a trial, worst first; only the last one is a success"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """seed of the starts; training and recording never use them"""
    device: DeviceName = "auto"
    """where to compute"""
    rows: PositiveCount = 16
    """environments side by side; results do not depend on it"""
    workers: WorkerCount = 1
    """processes that share the episodes, or `ray` for a cluster; results do not depend on it"""
    task: Annotated[str | None, arg(metavar="WORDS")] = None
    """the task in words, for a policy that was trained with --language"""
    condition: ConditionTexts = ()
    """what the policy reads and the environment does not show: return_to_go=100 for the
    desired return, time_left=200 for the number of steps, goal=0.2,0.5 for a goal,
    demonstration=DATA:3 for what episode 3 of DATA shows"""
    executor: SchemeName = None
    """act with another execution scheme than the policy was trained with: real-time-chunking, temporal-ensemble, ...
    (understudy methods lists them), or an executor module:Class; --executor.FIELD VALUE sets one of its fields;
    `server` executes the chunks of a served policy on the server"""
    columns: ColumnTexts = ()
    """the columns of recorded episodes with other names, as for `understudy train`; by default those of the run"""
    save: Annotated[Path | None, arg(metavar="EPISODES")] = None
    """write the rollouts as a data set; an interrupted evaluation then continues where it stopped. With --interactive:
    the file of the answers (trials.jsonl)"""
    demonstrations: Annotated[Path | None, arg(metavar="DATA")] = None
    """demonstrations with which behavior is compared; by default the training data, if they are available and have no
    camera. Their standard deviations are also the units of smoothness and jerk, so these numbers change with the
    data"""
    repeats: PositiveCount = 0
    """roll out each of the first 16 starts this many times, to count the policy's ways from one start"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """write a report"""
    json: bool = False
    """one JSON document on standard output"""
    trust: TrustedPackages = ()
    """a package whose code may be loaded"""
    fps: Annotated[float | None, arg(metavar="N")] = None
    """with --interactive and --robot: steps per second; by default those of the training data, or 30"""
    episode_time_s: Annotated[float, arg(metavar="SECONDS")] = 60.0
    """with --interactive and --robot: longest trial"""


@dataclass(frozen=True)
class EvalOptions(RobotOptions, _EvalOptions):
    """Evaluate a trained policy, with the uncertainty of the result.

    In an environment: the success rate (or return) over numbered episodes, with an interval. --against rolls out a
    second policy on the same starts and compares. With --sequential, only as many episodes run as it takes to decide
    which of two policies is better, or whether the success rate of one is above or below --threshold.

    With --interactive you judge trials of a real robot, which --robot or your own loop moves. On recorded episodes, if
    there is no simulator: the prediction error of the recorded actions. This is not a success rate.
    """


class RolloutOptions(Protocol):
    """The options of a command that rollouts read."""

    @property
    def episodes(self) -> int | None: ...

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> DeviceName: ...

    @property
    def task(self) -> str | None: ...

    @property
    def condition(self) -> tuple[str, ...]: ...

    @property
    def executor(self) -> str | None: ...

    @property
    def trust(self) -> tuple[str, ...]: ...
