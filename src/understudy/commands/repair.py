"""The command understudy repair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from ..files import check_absent
from ..hints import escape_control, pluralize
from .parts.common import Output, command_line, demonstrations_path, parse
from .parts.groups import MapOption, StepsOption, command_options


@command_options
class RepairOptions(MapOption, StepsOption):
    """Finish a recording that was interrupted, or save the readable part of a damaged data set.

    A recording of understudy is finished in place, by adding files. Anything else is not changed: what can be read goes
    to --out. What is lost is listed on standard error.
    """

    path: Annotated[Path, Positional, arg(metavar="PATH")]
    """a recording, or a damaged file or folder of demonstrations"""
    out: Annotated[Path | None, arg(metavar="DST")] = None
    """where to save what can be read; nothing may be there"""


def main(args: list[str]) -> None:
    o = parse(RepairOptions, "repair", args)
    from ..data import journal
    from ..data.formats import lerobot, open_dataset
    from ..data.formats.parts.file_kinds import is_lerobot
    from ..data.formats.remote import url_of
    from ..data.recording.recorder import repair
    from ..data.recording.recovery import check_readable, recover

    out = Output()
    demonstrations_path(o.path)
    ours = (o.path / journal.JOURNAL_FOLDER.parent).is_dir() and is_lerobot(o.path)
    if ours and o.out is None:
        try:
            done = repair(o.path)
            _print_problems(done.problems)
            data = open_dataset(o.path)
            check_readable(data)
        except UserError as error:
            raise UserError(error.problem, where=error.where, hint="its files are damaged; what can be read of them: "
                            + command_line("repair", o.path, "--out", "DST")) from None
        finished = f"{pluralize(done.episodes, 'episode')} put into the files" if done.episodes else (
            "Nothing was left to be done")
        out.print(f"{finished}. {o.path} has {pluralize(len(data), 'episode')}, {data.steps} steps.")
        out.suggest(*([command_line("inspect", o.path)] if len(data) else []))
        return
    if not o.path.exists() and not url_of(o.path):
        raise UserError("there is no recording or data set here", where=o.path, hint="check the path")
    if o.out is None:
        raise UserError("needs --out DST: the recording stays as it is, and what can be read of it is written to a new "
                        "place", where=o.path, hint=command_line("repair", o.path, "--out", "DST"))
    check_absent(o.out)
    with recover(o.path, mapping=o.map, max_episode_steps=o.max_episode_steps) as recovered:
        _print_problems(recovered.problems)
        lerobot.write(recovered.data, o.out, images="png")
        out.print(f"{pluralize(len(recovered.data), 'episode')}, {recovered.data.steps} steps "
                f"{'could be read' if recovered.problems else 'can be read: nothing is lost'}. Written to {o.out}")
    out.suggest(command_line("inspect", o.out))


def _print_problems(losses) -> None:
    for loss in losses:
        print(escape_control(f"lost: {loss}"), file=sys.stderr)
