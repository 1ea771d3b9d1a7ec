"""Groups of options that several commands share, from which the options of a command inherit."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from tyro.conf import UseAppendAction, arg

from ...core import Above, AtLeast, Below
from .options import Advice

T = TypeVar("T")

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PositiveCount = Annotated[int, AtLeast(1), arg(metavar="N")]
StepCount = Annotated[int | None, AtLeast(1), arg(metavar="N")]
Seconds = Annotated[float, Above(0), arg(metavar="SECONDS")]
StepRate = Annotated[float | None, Above(0), Advice("such as --fps 30"), arg(metavar="N")]
Seed = Annotated[int, AtLeast(0), Below(2**63), Advice("negative seeds are understudy's own, so that nothing shares a "
                                                       "start with what judges it"), arg(metavar="S")]
WorkerCount = Annotated[int | Literal["ray"], AtLeast(1), arg(metavar="N|ray")]
MappingFile = Annotated[Path | None, arg(metavar="FILE")]
HtmlFile = Annotated[Path | None, arg(metavar="FILE")]
SchemeName = Annotated[str | None, arg(metavar="SCHEME")]
TaskWords = Annotated[str | None, arg(metavar="WORDS")]
ColumnTexts = Annotated[tuple[str, ...], arg(metavar="NAME=COLUMN,...")]
ConditionTexts = Annotated[tuple[str, ...], arg(metavar="NAME=NUMBER,...")]
IgnoredCodes = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="CODE")]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def command_options(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass of the options of a command. Its own options come before the options of its groups."""
    options: Any = dataclass(frozen=True, kw_only=True)(cls)
    names = dict.fromkeys(name for c in cls.__mro__ for name in inspect.get_annotations(c))
    declared = options.__dataclass_fields__
    options.__dataclass_fields__ = {name: declared[name] for name in names}  # the order of `fields`
    return options


@dataclass(frozen=True, kw_only=True)
class JsonOption:
    json: bool = False
    """one JSON document on standard output"""


@dataclass(frozen=True, kw_only=True)
class TrustOption:
    trust: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PACKAGE")] = ()
    """a package whose code may be loaded"""


@dataclass(frozen=True, kw_only=True)
class DeviceOption:
    device: DeviceName = "auto"
    """where to compute; auto takes a GPU if there is one"""


@dataclass(frozen=True, kw_only=True)
class HtmlOption:
    html: HtmlFile = None
    """write a report"""


@dataclass(frozen=True, kw_only=True)
class ColumnsOption:
    columns: ColumnTexts = ()
    """the columns of data with other names: state=q1,q2 action=u1,u2; episode=NAME for the column that numbers the
    episodes, episode_lengths=NAME for an array of their lengths; action=u:classes where whole numbers are classes"""


@dataclass(frozen=True, kw_only=True)
class MapOption:
    map: MappingFile = None
    """a file that says which topics of MCAP and ROS bags become which columns; by default what `understudy inspect
    --json` proposes"""


@dataclass(frozen=True, kw_only=True)
class StepsOption:
    max_episode_steps: StepCount = None
    """length at which episodes of a D4RL file without timeouts were cut"""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(MapOption, ColumnsOption, StepsOption):
    """Options for how demonstrations are read."""


@dataclass(frozen=True, kw_only=True)
class LeRobotOption(DeviceOption):
    lerobot_python: Annotated[Path | None, arg(metavar="PATH")] = None
    """the Python of an environment with LeRobot, which then runs policies that are named as lerobot:PATH or
    lerobot:OWNER/NAME"""


@dataclass(frozen=True, kw_only=True)
class ActingOptions(LeRobotOption, TrustOption):
    """Options for how a policy is loaded and acts."""

    seed: Seed = 0
    """seed of the policy's randomness"""
    task: TaskWords = None
    """the task in words, for a policy that was trained with --language"""
    condition: ConditionTexts = ()
    """what the policy reads and the environment does not show: return_to_go=100 for the desired return, time_left=200
    for the number of steps, goal=0.2,0.5 for a goal, demonstration=DATA:3 for what episode 3 of DATA shows"""
    executor: SchemeName = None
    """act with another execution scheme than the policy was trained with: real-time-chunking, temporal-ensemble, ...
    (understudy methods lists them), or an executor module:Class; --executor.FIELD VALUE sets one of its fields;
    `server` executes the chunks of a served policy on the server"""


@dataclass(frozen=True, kw_only=True)
class DetectorOption:
    detector: Annotated[Path | None, arg(metavar="FILE")] = None
    """the file of the failure detector; by default detector.json in the folder of the run. A policy of LeRobot needs
    one, since its folder is not changed"""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(ActingOptions, HtmlOption, JsonOption):
    """Options for how policies are rolled out in an environment."""

    episodes: StepCount = None
    """number of episodes"""
    seed: Seed = 0
    """seed of the starts; training and recording never use them"""
    rows: PositiveCount = 16
    """environments side by side; results do not depend on it"""
    workers: WorkerCount = 1
    """processes that share the episodes, or `ray` for a cluster; results do not depend on it"""
