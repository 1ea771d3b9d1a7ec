"""Writes view files, lists them, and traces them back to the data that they show. `view_file` reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...core import UserError
from ...files import whole_file
from ..formats import open_dataset, remote
from ..operations import Operation
from . import view_file
from .view_file import (
    Parent,
    View,
    apply_operations,
    check_operations,
    describe_operation,
    file_fingerprint,
    is_view,
    read_view,
    relative_path,
)


def parent_state(view: View, parent: Parent) -> str:
    """Returns the state of a parent of a view: "as it was", "changed" or "missing"."""
    return view_file.parent_state(view, parent, open_dataset)


def write_view(path: str | Path, parents: str | Path | Sequence[str | Path], *operations: Operation,
               created_with: Mapping[str, Any] | None = None, location: Path | None = None) -> View:
    """Writes a new view file.

    Nothing is written if the file exists or would be inside a parent, if an operation does not fit, or if no episode is
    left.

    Args:
        *operations: What is done to them, in order. If there are several parents, the first one is `Merge`.
        created_with: How the view was made, for human readers. Plain JSON values.
        location: Where the file will be in the end, if it is moved there later together with other files.

    Example:
        >>> view = write_view("good.json", "demos", Filter("success", equals=(True,)))
    """
    path, parents = Path(path), [parents] if isinstance(parents, (str, Path)) else list(parents)
    final = (location or path).resolve()
    check_operations(len(parents), operations, path)
    for parent in parents:
        if not remote.url_of(parent) and Path(parent).is_dir() and final.is_relative_to(Path(parent).resolve()):
            raise UserError(f"the view would be written into {parent}, but a data set stays as it is", where=path,
                            hint="write the view next to it")
    opened = [open_dataset(p) for p in parents]
    data = apply_operations(opened, operations, path)
    if not len(data):
        raise UserError("the view has no episodes", where=", ".join(map(str, parents)),
                        hint="leave out less; understudy inspect shows what there is")
    listed = tuple(Parent(relative_path(p, final.parent), *file_fingerprint(p, open_dataset), len(d), d.steps)
                   for p, d in zip(parents, opened, strict=True))
    view = View(path, listed, tuple(operations), len(data), data.steps,
                {"understudy": __version__, **(created_with or {})})
    with whole_file(path) as part:
        part.write_text(view_file.format_view(view), encoding="utf-8")
    return view


def lineage(path: str | Path) -> dict[str, Any]:
    """Traces a view back to the data sets that it is made from.

    Returns:
        A dict of plain JSON values: "path", "state" (see `parent_state`), "episodes", "steps", "operations" (one line
        each), "made", and "parents", a list with such a dict for each parent. A parent that is not a view has only
        "path", "state", "episodes" and "steps".
    """
    view = read_view(path)
    parents = []
    for parent in view.parents:
        place, state = view.parent_path(parent), parent_state(view, parent)
        if state != "missing" and not remote.url_of(parent.path) and is_view(place):
            parents.append({**lineage(place), "state": state})
        else:
            parents.append({"path": str(place), "state": state, "episodes": parent.episodes, "steps": parent.steps})
    return {
        "path": str(path),
        "state": "as it was",
        "episodes": view.episodes,
        "steps": view.steps,
        "operations": [describe_operation(o) for o in view.operations],
        "made": dict(view.created_with),
        "parents": parents,
    }


def list_views(folder: str | Path) -> list[Path]:
    """Lists the view files in a folder and in the folders below it, sorted by path."""
    paths = []
    for at, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        paths += [p for name in files if name.endswith(".json") and is_view(p := Path(at) / name)]
    return sorted(paths)
