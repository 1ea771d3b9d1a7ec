"""The command understudy pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ...core import UserError
from ...hints import command_line
from ...hub import PREFIX, WORDS, Repository, is_hub_name, kinds_of, pull
from ..parts.common import Output, parse, recorded_env_of
from ..parts.groups import JsonOption, command_options


@command_options
class PullOptions(JsonOption):
    """Download a data set or a policy from the Hugging Face hub into a folder.

    Says what it downloads and how large it is, and compares every file with the checksum that the hub states. After an
    interrupt, the same command continues with the files that are missing.
    """

    name: Annotated[str, Positional, arg(metavar="NAME")]
    """OWNER/NAME, or OWNER/NAME@REVISION with a branch, a tag or a commit; datasets/OWNER/NAME or models/OWNER/NAME if
    there are both"""
    to: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """where to write; nothing may be there. By default the last part of the name"""


def main(args: list[str]) -> None:
    o = parse(PullOptions, "pull", args)
    with Output(o.json) as out:
        repository = _find(o.name)
        to = o.to or Path(repository.name.partition("/")[2])
        size = pull(repository, to)
        out.print(f"{to}: the {WORDS[repository.kind]} {repository.name}, {size / 1e6:,.1f} MB.")
        if repository.kind == "dataset":
            out.suggest(command_line("inspect", to), command_line("train", "METHOD", to, "--out", "RUN"))
        else:
            out.suggest(command_line("eval", to, recorded_env_of(to) or "ENV", "--episodes", 100))
        out.print_json({"path": str(to), "kind": repository.kind, "name": repository.name, "bytes": size})


def _find(text: str) -> Repository:
    """Returns the repository that the user means."""
    name = text.removeprefix(PREFIX) if is_hub_name(text) else text
    for folder, kind in (("datasets/", "dataset"), ("models/", "model")):
        if name.startswith(folder) and name.count("/") == 2:
            return Repository.parse(kind, name.removeprefix(folder))
    kinds = kinds_of(name)
    if len(kinds) > 1:
        raise UserError("there are a data set and a policy of this name", where=name,
                        hint=f"{command_line('pull', f'datasets/{name}')} or {command_line('pull', f'models/{name}')}")
    return Repository.parse(kinds[0] if kinds else "dataset", name)
