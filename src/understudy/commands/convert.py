"""understudy convert"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .common import (
    IgnoredCodes,
    MappingFile,
    Output,
    StepCount,
    command_line,
    demonstrations_path,
    parse,
    warn_unused_ignores,
)

Format = Literal["lerobot", "lerobot-v2.1", "robomimic", "zarr", "act", "rlds", "minari", "d4rl", "ogbench", "npz",
                 "csv"]


@dataclass(frozen=True)
class ConvertOptions:
    """Demonstrations in another format. SRC is never changed.

    What the format has no place for is listed first, and kept in a file beside it that other software does not look
    at (understudy.npz), so that understudy reads everything back.
    """

    src: Annotated[Path, Positional, arg(metavar="SRC")]
    """a file or folder of demonstrations, of any format that is read"""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """where to write; nothing may be there"""
    to: Format = "lerobot"
    """the format to write"""
    strict: bool = False
    """refuse, if the format cannot hold everything by itself"""
    images: Literal["png", "video"] = "png"
    """how LeRobot stores camera frames; png loses nothing, video is smaller"""
    map: MappingFile = None
    """of topics to columns, for MCAP and ROS bags: what `understudy inspect --json` proposes, corrected"""
    ignore: IgnoredCodes = ()
    """go on although an audit finds an error of this code"""
    max_episode_steps: StepCount = None
    """after how many steps episodes of a D4RL file were cut, where it does not say (no timeouts)"""


def main(args: list[str]) -> None:
    o = parse(ConvertOptions, "convert", args)
    from ..audit import check_usable
    from ..core import UserError
    from ..data.formats import conversion_losses, open_dataset, write_dataset

    out = Output()
    data = open_dataset(demonstrations_path(o.src), mapping=o.map, max_episode_steps=o.max_episode_steps)
    warn_unused_ignores(check_usable(data, data.metadata["path"], o.ignore))
    options = {"images": o.images} if o.to.startswith("lerobot") else {}
    lost = conversion_losses(data, o.to, **options)
    if lost and o.strict:
        raise UserError(f"{o.to} cannot hold all of it by itself:\n" + "\n".join(f"  {loss}" for loss in lost),
                        where=o.src, hint="leave --strict out to keep what can be kept in a file beside it")
    if lost:
        out.print(f"{o.to} has no place for, and a file beside it keeps:", *(f"  {loss}" for loss in lost))
    write_dataset(data, o.dst, o.to, **options)
    out.print(f"{len(data)} episodes, {data.steps} steps. Written to {o.dst}")
    out.suggest(command_line("inspect", o.dst))
