"""The options of understudy eval, which several modules read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ...core import Above, AtLeast, Below, role
from .groups import (
    ActingOptions,
    ColumnTexts,
    DetectorOption,
    PositiveCount,
    RolloutOptions,
    Seconds,
    StepCount,
    StepRate,
    command_options,
)
from .options import Advice
from .robot_options import RobotOptions

if TYPE_CHECKING:
    from ...envs.base import Env
    from ...policy import Planner


@command_options
class EvalOptions(RolloutOptions, DetectorOption, RobotOptions):
    """Evaluate a trained policy, with the uncertainty of the result.

    In an environment: the success rate (or return) over numbered episodes, with an interval. --against rolls out a
    second policy on the same starts and compares. With --sequential, only as many episodes run as it takes to decide
    which of two policies is better, or whether the success rate of one is above or below --threshold.

    With --interactive you judge trials of a real robot, which --robot or your own loop moves. On recorded episodes, if
    there is no simulator: the prediction error of the recorded actions. This is not a success rate.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, a file of understudy export, the address of understudy
    serve (ws://HOST:PORT), a run or checkpoint of LeRobot (ACT or Diffusion Policy), or with --lerobot-python
    lerobot:PATH for any policy of LeRobot"""
    target: Annotated[str | None, Positional, arg(metavar="ENV|DATA")] = None
    """environment in which to act, or a file or folder of recorded episodes; with --interactive module:actor_loop, or
    nothing"""
    episodes: StepCount = None
    """number of episodes, by default 100; with --sequential the largest number, by default 1000"""
    against: Annotated[Path | None, arg(metavar="RUN2")] = None
    """a second policy to compare with, on the same starts"""
    train_env: Annotated[str | None, arg(metavar="ENV")] = None
    """also act in the environment, or the levels, of the training data, and report the generalization gap: how much
    better the policy is there than in ENV"""
    sequential: bool = False
    """test after every episode and stop as soon as the result is significant or futile"""
    interactive: bool = False
    """ask for your judgment after every trial of a real robot, in an order that hides the policy; stops as --sequential
    does"""
    threshold: Annotated[float | None, Above(0), Below(1), Advice("such as 0.7"), arg(metavar="RATE")] = None
    """with --sequential or --interactive: test whether the success rate is above or below this rate"""
    labels: Annotated[tuple[str, ...], arg(metavar="LABEL")] = ("failure", "partial", "success")
    """with --interactive: your possible judgments of a trial, worst first; only the last one is a success"""
    rename: Annotated[tuple[str, ...], arg(metavar="NAME=COLUMN")] = ()
    """columns that the environment shows under other names: observation.joints=observation.state"""
    columns: ColumnTexts = ()
    """the columns of recorded episodes with other names, as for `understudy train`; by default those of the run"""
    fitted_q: bool = False
    """on recorded episodes with rewards: also estimate the discounted return of the policy from them alone, by fitted
    Q evaluation. This is no measurement: the effect of actions that are not in the episodes stays unknown"""
    discount: Annotated[float | None, arg(metavar="FACTOR")] = None
    """with --fitted-q: discount per step, by default that of the run, or 0.99"""
    updates: PositiveCount = 10_000
    """with --fitted-q: number of updates"""
    save: Annotated[Path | None, arg(metavar="EPISODES")] = None
    """write the rollouts as a data set. With --interactive: the file of the answers (trials.jsonl)"""
    details: bool = False
    """also print behavior metrics, all groups of failures and the ways that the policy takes, as with --repeats and
    --demonstrations; --html and --json always have them"""
    demonstrations: Annotated[Path | None, arg(metavar="DATA")] = None
    """demonstrations with which behavior is compared; by default the training data, if they are available and have no
    camera. Their standard deviations are also the units of smoothness and jerk, so these numbers change with the
    data"""
    detect: bool = False
    """raise alarms by the failure detector of the run (understudy calibrate), and report failures that it missed and
    false alarms"""
    repeats: Annotated[int, AtLeast(0), Advice("such as --repeats 8"), arg(metavar="N")] = 0
    """roll out each of the first 16 starts this many times, to count the different ways that the policy takes from one
    start"""
    fps: StepRate = None
    """with --interactive and --robot: steps per second; by default those of the training data, or 30"""
    episode_time_s: Seconds = 60.0
    """with --interactive and --robot: longest duration of a trial"""


def rename_hint(planner: Planner, env: Env, o: ActingOptions) -> str:
    """Returns advice to rename columns of an environment to those that a policy lacks, if only one fits each."""
    spare = {name: f for name, f in env.features.items() if name not in planner.inputs and role(name) == "observation"}
    pairs = [(name, [old for old, f in spare.items() if (f.kind, f.shape) == (feature.kind, feature.shape)])
             for name in planner.inputs if name not in env.features for feature in [planner.features[name]]]
    if not isinstance(o, EvalOptions) or not pairs or any(len(old) != 1 for _, old in pairs):
        return ""
    return f"if they are the same, add {' '.join(f'--rename {old[0]}={name}' for name, old in pairs)}"
