"""The command understudy convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..core import DataError, UserError, role
from .parts.common import Output, command_line, demonstrations_path, parse, warn_unused_ignores
from .parts.groups import IgnoredCodes, JsonOption, ReadingOptions, command_options
from .parts.options import refuse_given

if TYPE_CHECKING:
    from ..data.episode import Dataset

Format = Literal["lerobot", "lerobot-v2.1", "robomimic", "zarr", "act", "rlds", "minari", "d4rl", "ogbench", "npz",
                 "csv"]
_IMAGE_LAYOUT = "image-layout"  # code of the finding of an audit


@command_options
class ConvertOptions(ReadingOptions, JsonOption):
    """Write demonstrations in another format. SRC is not changed.

    What the format has no place for is listed first. It is kept in a sidecar file (understudy.npz), which other
    software ignores, so that understudy reads everything back.
    """

    src: Annotated[Path, Positional, arg(metavar="SRC")]
    """a file or folder of demonstrations, in any format that understudy reads"""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """where to write; nothing may be there"""
    to: Format | None = None
    """the format to write; by default that of the suffix of DST, and LeRobot if DST has none"""
    strict: bool = False
    """refuse if the format cannot hold everything without a sidecar file"""
    images: Literal["png", "video"] = "png"
    """how LeRobot stores camera frames; png is lossless, video is smaller"""
    ignore: IgnoredCodes = ()
    """convert although the audit finds an error with this code"""


def main(args: list[str]) -> None:
    o = parse(ConvertOptions, "convert", args)
    with Output(o.json) as out:
        _convert(o, out)


def _convert(o: ConvertOptions, out: Output) -> None:
    from ..audit import check_usable
    from ..data.formats import conversion_losses, formats_for_suffix, write_dataset
    from ..data.opening.column_selection import open_columns, parse_columns

    to, *others = (o.to,) if o.to is not None else formats_for_suffix(o.dst)
    options = {"images": o.images} if to.startswith("lerobot") else {}
    if not options:
        refuse_given(o, ("images",), f"is for LeRobot, and {to} is written")
    data = open_columns(demonstrations_path(o.src), parse_columns(o.columns), mapping=o.map,
                        max_episode_steps=o.max_episode_steps)
    unused = check_usable(data, data.metadata["path"], o.ignore)
    has_layout_problem = _check_image_layouts(data, o)
    warn_unused_ignores([code for code in unused if code != _IMAGE_LAYOUT or not has_layout_problem])
    if o.to is None and o.dst.suffix:
        out.print(f"{o.dst.name} is written as {to}." + (
            f" --to writes another format with this suffix: {', '.join(others)}." if others else ""))
    losses = conversion_losses(data, to, **options)
    if losses and o.strict:
        raise UserError(f"{to} cannot hold everything in these data:\n" + "\n".join(f"  {loss}" for loss in losses),
                        where=o.src, hint="without --strict, a sidecar file keeps the rest")
    if losses:
        out.print(f"{to} has no place for the following; a sidecar file keeps it:", *(f"  {loss}" for loss in losses))
    if data.fps is None and to.startswith("lerobot"):
        from ..data.formats.lerobot_write import SAFE_FPS

        cure = (f"The column timestamp does not tell it: {command_line('audit', o.dst)} says why."
                if "timestamp" in data.features() else
                "If a column has the seconds, name it: --columns timestamp=COLUMN")
        out.print("The rate of these data is not known, and LeRobot needs one: "
                  f"{SAFE_FPS} steps per second is written. {cure}")
    for warning in data.metadata.get("warnings", ()):  # DST no longer says what of SRC was left out or corrected
        print(f"{o.src}: {warning}", file=sys.stderr)
    write_dataset(data, o.dst, to, **options)
    out.print(f"{len(data)} episodes, {data.steps} steps. Written to {o.dst}")
    out.suggest(command_line("inspect", o.dst))
    out.print_json({"path": str(o.dst), "format": to, "episodes": len(data), "steps": data.steps,
                    "in_sidecar": [str(loss) for loss in losses]})


def _check_image_layouts(data: Dataset, o: ConvertOptions) -> bool:
    """Refuses what training refuses, since most formats would write such images as numbers. False if there is none."""
    from ..data.image_layout import image_layout_problem

    for name, feature in data.features().items() if len(data) else ():
        if role(name) == "observation" and (problem := image_layout_problem(name, feature)) is not None:
            if _IMAGE_LAYOUT not in o.ignore:
                raise DataError(problem[0], where=o.src,
                                hint=f"{problem[1]}. To write it as it is: --ignore {_IMAGE_LAYOUT}")
            return True
    return False
