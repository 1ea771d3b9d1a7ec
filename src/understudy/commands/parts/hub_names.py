"""Options that name a data set or a policy on the hub, as hf:OWNER/NAME does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ...core import UserError
from ...hints import command_line
from ...hub import PREFIX, Repository, download, is_hub_name
from .options import Option, options_of

T = TypeVar("T")
_DATA = ("DATA", "SRC", "ENV|DATA", "A B ...", "[DATA|DIR|VIEW]")


def download_named(options: T, command: str) -> T:
    """Returns options in which every hf:OWNER/NAME is the folder into which it was downloaded."""
    values = {option.name: (getattr(options, option.name), option) for option in options_of(type(options))}
    changes = {name: local for name, (value, option) in values.items()
               if (local := _local(value, option, command)) != value}
    return replace(options, **changes) if changes else options  # ty: ignore[invalid-argument-type]


def _local(value: Any, option: Option, command: str) -> Any:
    """Returns a value of an option, or the folder that it names on the hub."""
    if isinstance(value, tuple):
        return tuple(_local(part, option, command) for part in value)
    is_run, is_data = re.fullmatch(r"(NAME )?RUN( \.\.\.|\d)?", option.metavar), option.metavar in _DATA
    if not (is_run or is_data) or not isinstance(value, (str, Path)) or not is_hub_name(value):
        return value
    name = str(value).removeprefix(PREFIX)
    if option.name == "out":
        raise UserError("a command writes to a folder of this machine, not to the hub", where=value,
                        hint=f"name a folder, and then: {command_line('push', 'FOLDER', name)}")
    if command == "calibrate" and option.name == "run":
        raise UserError("the failure detector is written into the run, which is on the hub", where=value,
                        hint=f"download it first: {command_line('pull', name)}")
    return type(value)(download(Repository.parse("model" if is_run else "dataset", name)))
