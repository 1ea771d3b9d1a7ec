"""Views: a small JSON file says which data, and what is done to them; the data themselves stay untouched.

    {"understudy": "view", "version": 1, "episodes": 40, "steps": 2000,
     "parents": [{"path": "../demos", "stamp": "...", "content": "...", "episodes": 50, "steps": 2500}],
     "operations": [{"do": "filter", "field": "success", "equals": [true]}],
     "made": {...}}

A parent is a data set or another view; its path counts from the view's own folder, so that both can move together.
Of several parents the first operation is `merge`. `made` says how it came about (the command, scores), for people.
A parent that is not what it was is an error, since numbers of episodes would mean others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core import UserError
from ..files import read_json, replace_nonfinite
from . import cache, operations
from .episode import Dataset
from .formats import sidecar
from .formats.detection import VIEW_PATTERN
from .operations import ConcatSource, Merge, Operation
from .sources import camera_names

Open = Callable[[str | Path], Dataset]  # opens a parent, whatever format it is in
_KINDS = {name.lower(): kind for name, kind in vars(operations).items()
          if isinstance(kind, type) and issubclass(kind, Operation) and kind is not Operation}
_IGNORED_FILES = {".DS_Store", "Thumbs.db", ".cache", ".git"}  # what systems and tools leave in folders
_REMAKE_HINT = "make the view again from the data as they are now. What it was made from is not changed by that"


@dataclass(frozen=True)
class Parent:
    """stamp: of names, sizes and times of its files, which is quick to check. content: of their bytes (SHA-256), which
    decides where the stamp differs, as it does for a copy."""

    path: str
    file_stamp: str
    content_hash: str
    episodes: int
    steps: int


@dataclass(frozen=True)
class View:
    path: Path
    parents: tuple[Parent, ...]
    operations: tuple[Operation, ...]
    episodes: int
    steps: int
    created_with: Mapping[str, Any] = field(default_factory=dict)

    def parent_path(self, parent: Parent) -> Path:
        return Path(parent.path) if is_remote(parent.path) else _display_path(self.path.resolve().parent / parent.path)


def read_view(path: str | Path) -> View:
    """Of the file alone: parents are not looked at. Raises UserError that names the key that is wrong."""
    path = Path(path)
    if path.is_file() and not is_view(path):
        raise UserError("the file is not a view", where=path,
                        hint="a view is made by understudy view make; understudy convert writes data in another format")
    try:
        document = None if path.is_dir() else read_json(path)
    except RecursionError:
        document = None
    if not isinstance(document, dict) or document.get("understudy") != "view":
        raise UserError(f"{'a folder' if path.is_dir() else 'this JSON file'} is not a view", where=path,
                        hint='a view starts with "understudy": "view"; understudy view list finds them')
    if document.get("version") != 1:
        raise UserError(f"the view has version {document.get('version')!r}, but this understudy reads version 1",
                        where=path,
                        hint="a newer understudy wrote this: update")
    try:
        parents = tuple(Parent(**{k: _check_type(_check_type(p, "dict", "parents")[k], t, k)
                                  for k, t in Parent.__annotations__.items()})
                        for p in _check_type(document["parents"], "list", "parents"))
        what = tuple(_operation_from_json(d, f"{path}, operations[{i}]")
                     for i, d in enumerate(_check_type(document["operations"], "list", "operations")))
        episodes, steps = (_check_type(document[key], "int", key) for key in ("episodes", "steps"))
        view = View(path, parents, what, episodes, steps, _check_type(document.get("made", {}), "dict", "made"))
    except KeyError as error:
        raise UserError(f"the view has no key {error}", where=path,
                        hint="the file is damaged: make the view again") from None
    except TypeError as error:
        raise UserError(f"a value in the view has the wrong type ({error})", where=path,
                        hint="the file is damaged: make the view again") from None
    check_operations(len(parents), what, path)
    return view


def open_view(path: str | Path, open_parent: Open) -> Dataset:
    """The data that the view shows, as lazy as its parents are. Raises UserError naming a parent that is missing, or
    that has changed since."""
    view = read_view(path)
    opened = []
    for parent in view.parents:
        place = view.parent_path(parent)
        if (found := parent_state(view, parent, open_parent)) != "as it was":
            what = {"missing": "the parent of this view is missing",
                    "changed": "the parent of this view has changed since the view was made"}[found]
            raise UserError(f"{place}: {what}", where=path,
                            hint="move the view and its data together, or correct the path in it" if found == "missing"
                            else _REMAKE_HINT)
        opened.append(open_parent(place))
    data = apply_operations(opened, view.operations, view.path)
    found = len(data), data.steps
    if found != (view.episodes, view.steps):
        raise UserError(
            f"the view had {view.episodes} episodes and {view.steps} steps when it was made, but now has "
            f"{found[0]} and {found[1]}",
            where=path, hint=_REMAKE_HINT)
    if camera_names(data.source.schema) and 2 * len(data) < len(data.source):
        data = Dataset(ConcatSource([(data.source, list(data.indices))]), data.metadata)  # frames of so many others
    return Dataset(data.source, {**data.metadata, "format": "view",
        "version": "1",
        "path": str(path)}, data.indices)


def parent_state(view: View, parent: Parent, open_parent: Open) -> Literal["as it was", "changed", "missing"]:
    place = view.parent_path(parent)
    if not is_remote(parent.path) and not place.exists():
        return "missing"
    if is_remote(parent.path):
        return "as it was" if file_fingerprint(parent.path, open_parent)[1] == parent.content_hash else "changed"
    same = parent.file_stamp == _file_stamp(place) or parent.content_hash == _content_hash(place)
    return "as it was" if same else "changed"


def is_view(path: Path) -> bool:
    """Whether the file says so in its beginning, as `write` puts it."""
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return VIEW_PATTERN.match(handle.read(64)) is not None


def describe_operation(operation: Operation) -> str:
    """In a line: filter(field='success', equals=(True,)); long lists by how many they hold."""
    said = []
    for key, value in _operation_to_json(operation).items():
        if key != "do" and value is not None and value is not False:
            many = isinstance(value, tuple) and len(value) > 6
            said.append(f"{key}={len(value)} of them" if many else f"{key}={json.dumps(value, ensure_ascii=False)}")
    return f"{_operation_to_json(operation)['do']}({', '.join(said)})"


# -- fingerprints ------------------------------------------------------------------------------------------------------


def file_fingerprint(path: str | Path, open_parent: Open) -> tuple[str, str]:
    """(stamp, content) of a data set's files."""
    if is_remote(path):
        key = open_parent(path).source.key
        return key, key
    path = Path(path)
    return _file_stamp(path), _content_hash(path)


def _dataset_files(path: Path) -> Iterator[tuple[str, Path]]:
    """(name within it, file), in order. A file's side file belongs to it."""
    if not path.is_dir():
        yield from (("", path), *([(sidecar.SIDECAR_NAME, p)] if (p := sidecar.sidecar_path(path)).exists() else []))
        return
    for at, folders, files in os.walk(path):
        folders[:] = sorted(f for f in folders if f not in _IGNORED_FILES)
        yield from ((file.relative_to(path).as_posix(), file)
                    for file in (Path(at) / f for f in sorted(files) if f not in _IGNORED_FILES))


def _file_stamp(path: Path) -> str:
    """Includes ctime, which a program that sets mtime back cannot set. Moving a folder changes neither."""
    return cache.json_digest([[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, file in _dataset_files(path)
                         for s in [file.stat()]])


def _content_hash(path: Path) -> str:
    """Read once for each state of the files: the cache remembers it."""
    def build(part):
        digest = hashlib.sha256()
        for name, file in _dataset_files(path):
            with open(file, "rb") as handle:
                digest.update(f"{name}\0{file.stat().st_size}\0".encode())
                while piece := handle.read(1 << 22):
                    digest.update(piece)
        cache.create_array(part, "sha256", (32,), np.uint8)[:] = np.frombuffer(digest.digest(), np.uint8)
    key = cache.json_digest("content", str(path.resolve()), _file_stamp(path))
    return cache.memmap_arrays(key, 32, build, str(path))["sha256"].tobytes().hex()


# -- as JSON -----------------------------------------------------------------------------------------------------------


def format_view(view: View) -> str:
    """One operation and one parent a line: short, and what differs between two views shows."""
    def rows(values):
        return "[\n  " + ",\n  ".join(json.dumps(v, ensure_ascii=False) for v in values) + "\n ]" if values else "[]"
    made = json.dumps(replace_nonfinite(dict(view.created_with)), ensure_ascii=False, allow_nan=False)
    return (f'{{"understudy": "view", "version": 1, "episodes": {view.episodes}, "steps": {view.steps},\n'
            f' "parents": {rows([asdict(p) for p in view.parents])},\n'
            f' "operations": {rows([_operation_to_json(o) for o in view.operations])},\n "made": {made}}}\n')


def _operation_to_json(operation: Operation) -> dict[str, Any]:
    return {"do": type(operation).__name__.lower(), **{k: v for k, v in asdict(operation).items() if v is not None}}


def _operation_from_json(document: Any, where: str) -> Operation:
    do = _check_type(document, "dict", where).get("do")
    if not isinstance(do, str) or do not in _KINDS:
        raise UserError(f"there is no operation {do!r}; there are {', '.join(sorted(_KINDS))}", where=f"{where}, do",
                        hint="a newer understudy may have written this: update")
    known = [f.name for f in fields(_KINDS[do])]
    for key in document:
        if key not in (*known, "do"):
            raise UserError(f"{do} has no field {key!r}; it has {', '.join(known)}", where=where, hint="remove the key")
    try:
        return _KINDS[do](**{k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k != "do"})
    except UserError as error:
        raise UserError(error.problem, where=f"{where}: {error.where}", hint=error.hint) from None


def _check_type(value, kind: str, key: str):
    if type(value).__name__ != kind:
        raise TypeError(f"{key}: {value!r} is no {kind}")
    return value


# -- small things ------------------------------------------------------------------------------------------------------


def apply_operations(opened: Sequence[Dataset], what: Sequence[Operation], path: Path) -> Dataset:
    try:
        if len(opened) > 1:
            data, what = what[0].apply(*opened), what[1:]
        else:
            data = opened[0]
        for operation in what:
            data = operation.apply(data)
    except UserError as error:
        raise UserError(
            error.problem, where=f"{path}: {error.where}" if error.where else path, hint=error.hint
        ) from None
    return data


def check_operations(parents: int, what: Sequence[Operation], path: Path) -> None:
    merges = [i for i, o in enumerate(what) if isinstance(o, Merge)]
    if not parents or merges != ([0] if parents > 1 else []):
        raise UserError(
            "a view has several parents and merge as its first operation, or one parent and no merge. This one has "
            f"{parents} parents and {len(merges)} merge operations",
            where=path,
            hint="merge first, and make other views of that view",
        )


def is_remote(path: str | Path) -> bool:
    return re.match(r"[a-z0-9]{2,}:/", str(path)) is not None  # not C:/, a drive


def relative_path(path: str | Path, folder: Path) -> str:
    if is_remote(path):
        return str(path)
    try:
        return Path(os.path.relpath(Path(path).expanduser().resolve(), folder)).as_posix()
    except ValueError:  # another drive
        return Path(path).resolve().as_posix()


def _display_path(path: Path) -> Path:
    """Without `..`, and from here where it lies here: what people read."""
    path = Path(os.path.normpath(path))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
