"""View files: JSON files that name data sets and the operations on them. The data sets themselves stay unchanged.

    {"understudy": "view", "version": 1, "episodes": 40, "steps": 2000,
     "parents": [{"path": "../demos", "file_stamp": "...", "content_hash": "...", "episodes": 50, "steps": 2500}],
     "operations": [{"do": "filter", "field": "success", "equals": [true]}],
     "made": {...}}

A parent is a data set or another view. Its path is relative to the folder of the view, so that both can be moved
together. If there are several parents, the first operation is `merge`. `made` records how the view was made (the
command, scores) for human readers. A parent that has changed is an error, because the episode numbers in the operations
would then mean other episodes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core import UserError
from ...files import read_json, replace_nonfinite
from .. import cache, operations
from ..corrections import Reorder, Scale, Shift, Swap
from ..episode import Dataset
from ..formats import remote
from ..formats.parts import sidecar
from ..formats.parts.file_kinds import file_kind
from ..operations import ConcatSource, Merge, Operation
from ..retargeting import MotionRetargeting
from ..segments import ColumnSegments, Cut, CutSegments, StoredSegments
from ..sources import camera_names

Open = Callable[[str | Path], Dataset]  # opens a parent, whatever format it is in
_KINDS: Mapping[str, Any] = {
    **{name.lower(): kind for name, kind in vars(operations).items()
       if isinstance(kind, type) and issubclass(kind, Operation) and kind is not Operation},
    **{kind.__name__.lower(): kind for kind in (
        Cut, CutSegments, Shift, Scale, Swap, Reorder, MotionRetargeting)}}
_PARTS: Mapping[str, Any] = {kind.__name__.lower(): kind for kind in (StoredSegments, ColumnSegments)}  # detectors
_IGNORED_FILES = {".DS_Store", "Thumbs.db", ".cache", ".git"}  # left in folders by systems and tools
_REMAKE_HINT = "make the view again from the data as they are now. What it was made from is not changed by that"


@dataclass(frozen=True)
class Parent:
    """A data set or view that a view is made from, and the state it had then.

    Args:
        path: Path relative to the folder of the view, or a URL.
        file_stamp: Digest of the names, sizes and times of its files. It is quick to check.
        content_hash: SHA-256 of its files. It decides if the stamp differs, as it does for a copy.
    """

    path: str
    file_stamp: str
    content_hash: str
    episodes: int
    steps: int


@dataclass(frozen=True)
class View:
    """The contents of a view file. `episodes` and `steps` count the episodes and steps of the result.

    Args:
        created_with: How the view was made, for human readers. Plain JSON values.
    """

    path: Path
    parents: tuple[Parent, ...]
    operations: tuple[Operation, ...]
    episodes: int
    steps: int
    created_with: Mapping[str, Any] = field(default_factory=dict)

    def parent_path(self, parent: Parent) -> Path:
        """Returns the path of a parent without `..`, relative to the working directory if it is below it."""
        if remote.url_of(parent.path):
            return Path(parent.path)
        path = Path(os.path.normpath(self.path.resolve().parent / parent.path))
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_view(path: str | Path) -> View:
    """Reads a view file, without looking at its parents."""
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
    except (KeyError, TypeError) as error:
        problem = f"the view has no key {error}" if isinstance(error, KeyError) else (
            f"a value in the view has the wrong type ({error})")
        raise UserError(problem, where=path, hint="the file is damaged: make the view again") from None
    check_operations(len(parents), what, path)
    return view


def open_view(path: str | Path, open_parent: Open) -> Dataset:
    """Opens the data that a view shows. They are as lazy as the parents. Their metadata "format" is "view"."""
    view = read_view(path)
    opened = []
    for parent in view.parents:
        place = view.parent_path(parent)
        state = parent_state(view, parent, open_parent)
        if state == "missing":
            raise UserError(f"{place}: the parent of this view is missing", where=path,
                            hint="move the view and its data together, or correct the path in it")
        if state == "changed":
            raise UserError(f"{place}: the parent of this view has changed since the view was made", where=path,
                            hint=_REMAKE_HINT)
        opened.append(open_parent(place))
    data = apply_operations(opened, view.operations, view.path)
    if (len(data), data.steps) != (view.episodes, view.steps):
        raise UserError(f"the view had {view.episodes} episodes and {view.steps} steps when it was made, but now has "
                        f"{len(data)} and {data.steps}", where=path, hint=_REMAKE_HINT)
    if camera_names(data.source.schema) and 2 * len(data) < len(data.source):
        # So that frames are decoded of these episodes only.
        data = Dataset(ConcatSource([(data.source, list(data.indices))]), data.metadata)
    return Dataset(data.source, {**data.metadata, "format": "view", "version": "1", "path": str(path)}, data.indices)


def parent_state(view: View, parent: Parent, open_parent: Open) -> Literal["as it was", "changed", "missing"]:
    """Returns whether a parent has changed since the view was made, and its present state."""
    place = view.parent_path(parent)
    if not remote.url_of(parent.path) and not place.exists():
        return "missing"
    if remote.url_of(parent.path):
        return "as it was" if file_fingerprint(parent.path, open_parent)[1] == parent.content_hash else "changed"
    same = parent.file_stamp == _file_stamp(place) or parent.content_hash == _content_hash(place)
    return "as it was" if same else "changed"


def is_view(path: Path) -> bool:
    """Returns whether a file starts like a view file."""
    return path.is_file() and file_kind(path) == "view"


def describe_operation(operation: Operation) -> str:
    """Describes an operation in one line, such as ``filter(field="success", equals=[true])``.

    Of a list with more than six items, only the number of items is given.
    """
    return _describe(_operation_to_json(operation))


def _describe(document: Mapping[str, Any]) -> str:
    arguments = []
    for key, value in document.items():
        if key != "do" and value is not None and (value is not False or key == "value"):
            many = isinstance(value, tuple) and len(value) > 6
            text = (f"{len(value)} of them" if many else _describe(value) if key == "detector" else
                    json.dumps(value, ensure_ascii=False))
            arguments.append(f"{key}={text}")
    return f"{document['do']}({', '.join(arguments)})"


# -- fingerprints ------------------------------------------------------------------------------------------------------


def file_fingerprint(path: str | Path, open_parent: Open) -> tuple[str, str]:
    """Returns stamp and content hash of files, as in `Parent`. Both are the key of the source if the path is a URL."""
    if remote.url_of(path):
        key = open_parent(path).source.key
        return key, key
    path = Path(path)
    return _file_stamp(path), _content_hash(path)


def _dataset_files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name in the data set, file) of the files of a data set, in order."""
    if not path.is_dir():
        yield from (("", path), *([(sidecar.SIDECAR_NAME, p)] if (p := sidecar.sidecar_path(path)).exists() else []))
        return
    for at, folders, files in os.walk(path):
        folders[:] = sorted(f for f in folders if f not in _IGNORED_FILES)
        yield from ((file.relative_to(path).as_posix(), file)
                    for file in (Path(at) / f for f in sorted(files) if f not in _IGNORED_FILES))


def _file_stamp(path: Path) -> str:
    """Returns a digest of names, sizes, mtime and ctime of files, which changes whenever a file is changed."""
    return cache.json_digest([[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, file in _dataset_files(path)
                              for s in [file.stat()]])


def _content_hash(path: Path) -> str:
    """Returns the SHA-256 of all files. The cache keeps it, so that unchanged files are read once."""
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
    """Returns the text of a view file, with one line for each parent and operation, so that a diff is readable."""
    def rows(values):
        return "[\n  " + ",\n  ".join(json.dumps(v, ensure_ascii=False) for v in values) + "\n ]" if values else "[]"
    created_with = json.dumps(replace_nonfinite(dict(view.created_with)), ensure_ascii=False, allow_nan=False)
    return (f'{{"understudy": "view", "version": 1, "episodes": {view.episodes}, "steps": {view.steps},\n'
            f' "parents": {rows([asdict(p) for p in view.parents])},\n'
            f' "operations": {rows([_operation_to_json(o) for o in view.operations])},\n "made": {created_with}}}\n')


def _operation_to_json(operation: Any) -> dict[str, Any]:
    values = {f.name: getattr(operation, f.name) for f in fields(operation)}
    return {"do": type(operation).__name__.lower(),
            **{k: _operation_to_json(v) if is_dataclass(v) else v for k, v in values.items() if v is not None}}


def _operation_from_json(document: Any, where: str, kinds: Mapping[str, Any] = _KINDS) -> Any:
    do = _check_type(document, "dict", where).get("do")
    if not isinstance(do, str) or do not in kinds:
        raise UserError(f"there is no operation {do!r}; there are {', '.join(sorted(kinds))}", where=f"{where}, do",
                        hint="a newer understudy may have written this: update")
    field_names = [f.name for f in fields(kinds[do])]
    for key in document:
        if key not in (*field_names, "do"):
            raise UserError(f"{do} has no field {key!r}; it has {', '.join(field_names)}", where=where,
                            hint="remove the key")
    values = {k: _operation_from_json(v, f"{where}, {k}", _PARTS) if k == "detector" else
              tuple(v) if isinstance(v, list) else v for k, v in document.items() if k != "do"}
    try:
        return kinds[do](**values)
    except UserError as error:
        raise UserError(error.problem, where=f"{where}: {error.where}", hint=error.hint) from None


def _check_type(value, kind: str, key: str):
    if type(value).__name__ != kind:
        raise TypeError(f"{key}: {value!r} is not of type {kind}")
    return value


# -- small things ------------------------------------------------------------------------------------------------------


def apply_operations(opened: Sequence[Dataset], what: Sequence[Operation], path: Path) -> Dataset:
    """Applies the operations of a view to its parents. With several parents, the first operation is `Merge`."""
    try:
        if len(opened) > 1:
            data, what = what[0].apply(*opened), what[1:]
        else:
            data = opened[0]
        for operation in what:
            data = operation.apply(data)
    except UserError as error:
        place = f"{path}: {error.where}" if error.where else path
        raise UserError(error.problem, where=place, hint=error.hint) from None
    return data


def check_operations(parents: int, what: Sequence[Operation], path: Path) -> None:
    """Checks that several parents are merged by the first operation, and only there, and that a view can name each."""
    for operation in what:
        named_class = _KINDS.get(type(operation).__name__.lower())
        parts = [v for f in fields(operation) if is_dataclass(v := getattr(operation, f.name))]
        if other := [o for o in (operation, *parts) if type(o) not in (named_class, *_PARTS.values())]:
            raise UserError(f"a view cannot hold {type(other[0]).__name__}, which is not an operation of "
                            "understudy.data.operations", where=path,
                            hint="apply it in Python, and write what it returns with write_dataset")
    merges = [i for i, o in enumerate(what) if isinstance(o, Merge)]
    if not parents or merges != ([0] if parents > 1 else []):
        raise UserError(
            "a view has several parents and merge as its first operation, or one parent and no merge. This one has "
            f"{parents} parents and {len(merges)} merge operations",
            where=path,
            hint="merge first, and make other views of that view",
        )


def relative_path(path: str | Path, folder: Path) -> str:
    """Returns a path relative to an absolute folder, with forward slashes. URLs stay as they are."""
    if remote.url_of(path):
        return str(path)
    try:
        return Path(os.path.relpath(Path(path).expanduser().resolve(), folder)).as_posix()
    except ValueError:  # another drive
        return Path(path).resolve().as_posix()
