"""The options of understudy eval, which several modules read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from tyro.conf import Positional, arg

from .common import ColumnTexts, DeviceName, PositiveCount, StepCount, TrustedPackages, WorkerCount


@dataclass(frozen=True)
class EvalOptions:
    """How good is a trained policy, and how sure is that?

    In an environment: success (or return) over numbered episodes, with an interval; --against rolls a second policy
    out on the same starts and compares. With --sequential only as many episodes as it takes to settle which of two is
    better, or whether one succeeds in more or less --threshold a rate. With --interactive you judge trials of a real
    robot.
    On recorded episodes, where there is no simulator: how well it predicts the recorded actions, which is not a success
    rate.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a file of understudy export"""
    target: Annotated[str | None, Positional, arg(metavar="ENV|DATA")] = None
    """where to act, or a file or folder of recorded episodes; with --interactive module:actor_loop, or nothing"""
    episodes: StepCount = None
    """how many, each decided by its number and the seed: 100; with --sequential at most so many: 1000"""
    against: Annotated[Path | None, arg(metavar="RUN2")] = None
    """a second policy, on the same starts"""
    sequential: bool = False
    """look after every episode, and stop as soon as the question is settled, or would hardly be"""
    interactive: bool = False
    """ask you after every trial of a real robot how it went, in an order that hides whose it was; stops likewise"""
    threshold: Annotated[float | None, arg(metavar="RATE")] = None
    """with these two: does the policy succeed in more or in less than this share?"""
    labels: Annotated[tuple[str, ...], arg(metavar="LABEL")] = ("failure", "partial", "success")
    """what --interactive lets you say of a trial, worst first; only the last is a success"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of the starts; training and recording never use them"""
    device: DeviceName = "auto"
    """where to compute"""
    rows: PositiveCount = 16
    """environments side by side; changes nothing but the time it takes"""
    workers: WorkerCount = 1
    """processes that share the episodes, or `ray` for a cluster; changes nothing but the time it takes"""
    task: Annotated[str | None, arg(metavar="WORDS")] = None
    """what to do, told to a policy that was trained with --language"""
    columns: ColumnTexts = ()
    """which columns of recorded episodes are what, for data with other names: state=q1,q2 action=u1,u2; episode=NAME
    for the column that numbers the episodes of a single CSV table"""
    save: Annotated[Path | None, arg(metavar="EPISODES")] = None
    """write the rollouts as a data set; then an interrupted evaluation continues where it stopped. With --interactive:
    the file of the answers (trials.jsonl)"""
    demonstrations: Annotated[Path | None, arg(metavar="DATA")] = None
    """what its behavior is compared with; by default what it learned from, if that is available and has no camera.
    Their standard deviations are also the units of smoothness and jerk, so that these figures change with the data"""
    repeats: PositiveCount = 0
    """roll each of the first 16 starts out so often: how many ways does it know from one start?"""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """write a report"""
    json: bool = False
    """one JSON document on standard output"""
    trust: TrustedPackages = ()
    """a package whose code may be loaded"""


class RolloutOptions(Protocol):
    """What rolling out reads of a command's options."""

    @property
    def episodes(self) -> int | None: ...

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> DeviceName: ...

    @property
    def task(self) -> str | None: ...

    @property
    def trust(self) -> tuple[str, ...]: ...
