"""Where the data of a run are."""

from __future__ import annotations

import os
from pathlib import Path

from .common import recorded_data_of
from .policies import run_folder


def stored_path(run: Path) -> Path | None:
    """The data whose path a run stores, relative to its folder. None if it stores none."""
    from ...data.formats.remote import url_of

    path = recorded_data_of(run).get("path")
    if path is None:
        return None
    return Path(path if url_of(path) is not None else os.path.relpath(run_folder(run).resolve() / path))


def missing_data(path: Path | None) -> str:
    """Says that the data of a run, of `trained_on`, are not there, and where they were looked for."""
    if path is None:
        return "the data that it was trained on are not named: its data had no path"
    place = "" if path.is_absolute() else f" ({path.absolute()})"
    return f"the data that it was trained on are gone: {path}{place}"
