"""understudy convert"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .common import Despite, Mapped, Out, Steps, demonstrations, line, parse, unused

Format = Literal["lerobot", "lerobot-v2.1", "robomimic", "zarr", "act", "rlds", "minari", "d4rl", "ogbench", "npz",
                 "csv"]


@dataclass(frozen=True)
class Convert:
    """Demonstrations in another format. SRC is never changed.

    What the format has no place for is listed first, and kept in a file beside it that other software does not look
    at (understudy.npz), so that understudy reads everything back.
    """

    src: Annotated[Path, Positional, arg(metavar="SRC")]
    """a file or folder of demonstrations, of any format that is read"""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """where to write; nothing may be there"""
    to: Format | None = None
    """the format to write; by the suffix of DST unless given, and LeRobot where it has none"""
    strict: bool = False
    """refuse, if the format cannot hold everything by itself"""
    images: Literal["png", "video"] = "png"
    """how LeRobot stores camera frames; png loses nothing, video is smaller"""
    map: Mapped = None
    """of topics to columns, for MCAP and ROS bags: what `understudy inspect --json` proposes, corrected"""
    despite: Despite = ()
    """go on although an audit finds an error of this code"""
    max_episode_steps: Steps = None
    """after how many steps episodes of a D4RL file were cut, where it does not say (no timeouts)"""


def main(args: list[str]) -> None:
    o = parse(Convert, "convert", args)
    from ..audit import guard
    from ..core import UserError
    from ..data.episode import Dataset
    from ..data.formats import formats_of, losses, write_dataset

    out = Out()
    to, *others = (o.to,) if o.to is not None else formats_of(o.dst)
    data = Dataset.open(demonstrations(o.src), mapping=o.map, max_episode_steps=o.max_episode_steps)
    unused(guard(data, data.facts["path"], o.despite))
    if o.to is None and o.dst.suffix:
        *some, last = others or [""]
        another = f"; --to {', '.join(some) + ' or ' * bool(some)}{last} writes another" if others else ""
        out.say(f"Format by the suffix of {o.dst.name}: {to}{another}")
    options = {"images": o.images} if to.startswith("lerobot") else {}
    lost = losses(data, to, **options)
    if lost and o.strict:
        raise UserError(f"{to} cannot hold all of it by itself:\n" + "\n".join(f"  {loss}" for loss in lost),
                        where=o.src, do="leave --strict out to keep what can be kept in a file beside it")
    if lost:
        out.say(f"{to} has no place for, and a file beside it keeps:", *(f"  {loss}" for loss in lost))
    write_dataset(data, o.dst, to, **options)
    out.say(f"{len(data)} episodes, {data.steps} steps. Written to {o.dst}")
    out.next(line("inspect", o.dst))
