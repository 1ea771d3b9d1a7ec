"""Splits a damaged source into parts that can be read alone, so that a damaged episode does not affect other episodes.

Parts are the files of a folder (ACT, plain .npz and .csv, bags) or the groups of an HDF5 file (robomimic, Minari). If
readable parts have different columns, the largest group of parts with equal columns is kept.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...core import UserError
from ..episode import Dataset
from ..formats import folder as plain
from ..formats import preview_dataset
from ..formats.parts import file_kinds, hdf5, sidecar
from ..formats.parts.column_names import sort_numbered
from ..formats.parts.links import make_link

_GROUPS = {"data": "demo_", "": "episode_"}  # group above the episodes: their prefix (robomimic, Minari)


class SourceParts(ABC):
    """A source that can be split into parts, such as files."""

    path: Path
    names: Sequence[str]

    @abstractmethod
    def copy_parts(self, names: Sequence[str], where: Path) -> Path:
        """Writes a data set of some parts into the empty folder `where`. Returns its file or folder."""


class FileParts(SourceParts):
    """Source parts of a folder: its files."""

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path, self.names = path, [p.name for p in files]
        self._stems = {p.stem: p.name for p in files}

    def copy_parts(self, names, where):
        keep = set(names)
        for p in self.path.iterdir():
            part = p.name if p.name in self.names else self._stems.get(p.stem)  # a video or folder next to its table
            if p.name in (plain.DATASET_JSON, sidecar.SIDECAR_NAME) or part is not None and part not in keep:
                continue
            make_link(where / p.name, p)
        if (self.path / plain.DATASET_JSON).exists():
            about = json.loads((self.path / plain.DATASET_JSON).read_text(encoding="utf-8"))
            if isinstance(about, dict) and "episodes" in about:
                about["episodes"] = len(names)
            (where / plain.DATASET_JSON).write_text(json.dumps(about), encoding="utf-8")
        return where


class GroupParts(SourceParts):
    """Source parts of an HDF5 file: its groups.

    Args:
        path: The source: the file, or the folder that it is in.
        above: Name of the group with the parts. Empty for the root.
    """

    def __init__(self, path: Path, file: Path, above: str, names: Sequence[str]):
        self.path, self.names, self._file, self._parent_group = path, names, file, above

    def copy_parts(self, names, where):
        import h5py

        out = where / self._file.name
        if self.path != self._file:
            for p in self.path.iterdir():
                if p.name not in (self._file.name, sidecar.SIDECAR_NAME):
                    make_link(where / p.name, p)
        with hdf5.open_file(self._file) as source, h5py.File(out, "w") as target:
            target.attrs.update(source.attrs)
            parent = target.require_group(self._parent_group) if self._parent_group else target
            if self._parent_group:
                parent.attrs.update({k: v for k, v in source[self._parent_group].attrs.items() if k != "total"})
            for name in names:
                source.copy(f"{self._parent_group}/{name}", parent, name)
            for key in source.get("mask", ()) if self._parent_group else ():
                kept = [n for n in source["mask"][key][:] if n.decode() in names]
                target[f"mask/{key}"] = np.array(kept, "S")
        return out if self.path == self._file else where


def find_parts(path: Path) -> SourceParts | None:
    """Finds the parts of a source. Returns None if its episodes cannot be told apart without reading them."""
    if path.is_dir():
        data = file_kinds.minari_folder(path)
        if data is not None and (data / "main_data.hdf5").exists():
            return _group_parts(data, data / "main_data.hdf5")
        if file_kinds.folder_kind(path):
            return None
        files = file_kinds.recording_paths(path) or max(
            (file_kinds.episode_files(path, kind) for kind in file_kinds.SUFFIXES), key=len)
        return FileParts(path, files) if files else None
    return _group_parts(path, path) if file_kinds.file_kind(path) == "hdf5" else None


def _group_parts(path: Path, file: Path) -> SourceParts | None:
    import h5py

    try:
        with hdf5.open_file(file) as source:
            for above, prefix in _GROUPS.items():
                group = source.get(above) if above else source
                if isinstance(group, h5py.Group) and (names := sort_numbered(list(group), prefix)):
                    return GroupParts(path, file, above, names)
    except (OSError, RuntimeError, KeyError, ValueError):
        pass
    return None


def recover_parts(
    parts: SourceParts,
    folder: Path,
    report_loss: Callable[[str], None],
    find_error: Callable[[Dataset, int], str | None],
    options: dict,
    metadata_path: Path,
) -> Dataset | None:
    """Opens the readable parts of a damaged source as one dataset. None if no part can be read.

    Args:
        folder: Folder for temporary copies.
        find_error: Returns why an episode of a dataset cannot be read. None if it can be read.
        options: Options of `preview_dataset`.
        metadata_path: Path of the source, next to which its sidecar file is.
    """
    columns_by_part: dict[str, tuple] = {}
    for name in parts.names:
        try:
            with tempfile.TemporaryDirectory(dir=folder) as alone:
                data = preview_dataset(parts.copy_parts([name], Path(alone)), **options)
                why = "it holds no episode" if not len(data) else next(
                    (w for e in range(len(data)) if (w := find_error(data, e))), None)
                columns_by_part[name] = _column_signature(data) if why is None else ()
        except UserError as error:
            why = str(error).splitlines()[0]
        except Exception as error:  # libraries may raise anything for a damaged file
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            columns_by_part.pop(name, None)
            report_loss(f"{parts.path}, {name}: {why.replace(f'{alone}/', '').replace(alone, name)}")
    if not columns_by_part:
        return None
    try:
        return _open_joined(parts, list(columns_by_part), folder, options, metadata_path)
    except UserError:
        commonest = Counter(columns_by_part.values()).most_common(1)[0][0]
        for name, columns in columns_by_part.items():
            if columns != commonest:
                differing_columns = sorted({n for n, *_ in set(columns) ^ set(commonest)})
                report_loss(f"{parts.path}, {name}: {', '.join(differing_columns)} is not as in the others")
        alike = [name for name, columns in columns_by_part.items() if columns == commonest]
        return _open_joined(parts, alike, folder, options, metadata_path)


def _open_joined(parts, names, folder, options, metadata_path) -> Dataset:
    out = parts.copy_parts(names, Path(tempfile.mkdtemp(dir=folder)))
    if sidecar.sidecar_path(metadata_path).exists():
        with suppress(UserError):  # damaged, or about more episodes: `recover` reports it
            sidecar.copy_selected(metadata_path, np.isin(parts.names, names), out)
    return preview_dataset(out, **options)


def _column_signature(data: Dataset) -> tuple:
    table = data.metadata.get("format") == "csv"  # a column may be integer in one file and float in another
    return tuple(sorted((n, f.shape, f.kind == "string" if table else f.dtype) for n, f in data.features().items()))
