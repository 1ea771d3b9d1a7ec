"""Trajectories of the imitation library: a folder of Arrow files (Hugging Face datasets), or an .npz file of old
versions.

Layout: HumanCompatibleAI/imitation src/imitation/data/serialize.py and huggingface_utils.py. A trajectory of T actions
has T+1 observations and one flag `terminal`: false means that it was cut off. `infos` are jsonpickle text in Arrow
files. They stay text and are never decoded. In .npz files they are a pickle, which is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...core import Feature, UserError
from ...files import read_json
from .. import cache
from ..episode import Dataset
from ..sources import ChunkedSource, MemmapSource
from .parts import arrow
from .parts.key_map import END_COLUMNS, KeyMap, end_flags, metadata, stored_feature
from .parts.npz_arrays import NpzArchiveSource, NpzArrays
from .parts.read_errors import damaged, first_true

KEYS = KeyMap({"acts": "action", "rews": "next.reward"}, observation="obs")
_MISSING_COLUMNS = "this is not a data set of imitation: obs, acts and terminal, a row for each trajectory"


def open_imitation(path: Path) -> Dataset:
    """Opens a folder of Arrow files or an .npz file of old versions."""
    return Dataset(ArrowFolderSource(path) if path.is_dir() else NpzFileSource(path))


class _ImitationSource(MemmapSource):
    terminal: np.ndarray  # (E,) bool

    def _has(self, features: dict[str, Feature]):
        """Sets the schema from features by their keys and from how each trajectory ended."""
        self.schema, self.keys = KEYS.schema(features, self.path)
        self.schema |= {name: Feature("bool", ()) for name in END_COLUMNS}
        self.row_counts = {name: self.lengths + (self.keys.get(name) == "obs") for name in self.schema}
        self.computed = end_flags(self.lengths, self.terminal)

    def location(self, name, episode):
        return f"{self.path}, {self.keys.get(name, 'terminal')}, trajectory {episode}"


class ArrowFolderSource(_ImitationSource, ChunkedSource):
    """Reader of a folder of Arrow files with trajectories of the imitation library."""

    def __init__(self, path: Path):
        self.path, self.metadata = path, metadata("imitation", path, [], "datasets")
        state = read_json(path / "state.json")
        entries = state.get("_data_files") if isinstance(state, dict) else None
        files = entries if isinstance(entries, list) else []
        names = [f["filename"] for f in files if isinstance(f, dict) and isinstance(f.get("filename"), str)]
        if not files or not all(Path(n).name == n for n in names) or len(set(names)) < len(files):
            raise damaged(f"these are not different names of files in this folder: {str(entries)[:80]}",
                          f"{path / 'state.json'}, _data_files")
        self._files = [path / name for name in names]
        if missing_file := next((f for f in self._files if not f.is_file()), None):
            raise damaged("the file is missing", missing_file)
        self.key = cache.files_digest(self._files, "imitation")
        with self.open_files() as table:
            arrow.validate_table(table, path)
            missing_keys = [k for k in ("obs", "acts", "terminal") if k not in table.column_names]
            if missing_keys:
                raise UserError(f"there is no column {missing_keys[0]}; there are {', '.join(table.column_names)}",
                                where=path, hint=_MISSING_COLUMNS)
            if not table.num_rows:
                raise damaged("there are no trajectories", path)
            for key in ("obs", "acts", "infos", "rews"):
                if key in table.column_names and not pa.types.is_list(table.schema.field(key).type):
                    raise UserError(f"each trajectory must have a list, but has {table.schema.field(key).type}",
                                    where=f"{path}, {key}", hint=_MISSING_COLUMNS)
            self.terminal = arrow.to_numpy(table.column("terminal"), f"{path}, terminal").astype(bool)
            self.lengths = _counts(table, "acts", path)
            self._check(table)
            features = {}
            for key in ("obs", "acts", "rews", "infos"):
                if key in table.column_names:
                    first = arrow.to_numpy(table.column(key)[0].values, f"{path}, {key}, trajectory 0")
                    features[key] = Feature("string", first.shape[1:], "string") if first.dtype.kind == "O" else \
                        stored_feature(KEYS.column(key), first.shape[1:], first.dtype)
            self._has(features)

    def _check(self, table):
        for key, more in (("obs", 1), ("rews", 0), ("infos", 0)):
            if key not in table.column_names:
                continue
            counts = _counts(table, key, self.path)
            if (e := first_true(counts != self.lengths + more)) is not None:
                raise UserError(f"it has {counts[e]} rows instead of {self.lengths[e] + more}, "
                                f"for {self.lengths[e]} actions", where=f"{self.path}, {key}, trajectory {e}",
                                hint="leave the trajectory out, or take the folder from a copy")
        if (e := first_true(self.lengths < 1)) is not None:
            raise UserError("the trajectory has no actions", where=f"{self.path}, acts, trajectory {e}",
                            hint="leave the trajectory out")

    @contextmanager
    def open_files(self) -> Iterator[pa.Table]:
        parts = []
        for file in self._files:
            with arrow.arrow_errors(file):
                parts.append(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())
        with arrow.arrow_errors(self.path):
            table = pa.concat_tables(parts)
        yield table

    def read_rows(self, files, name, episode, first, stop):
        if name in self.computed:
            begin = int(self._first[name][episode])
            return self.computed[name][begin + first: begin + stop]
        location = self.location(name, episode)
        with arrow.arrow_errors(location):
            return arrow.to_numpy(files.column(self.keys[name])[episode].values[first:stop], location)


def _counts(table, key, path) -> np.ndarray:
    with arrow.arrow_errors(f"{path}, {key}"):
        counts = [c.value_lengths().to_numpy(zero_copy_only=False) for c in table.column(key).chunks]
        counts = np.concatenate(counts) if counts else np.zeros(0)
    if (e := first_true(~np.isfinite(counts))) is not None:
        raise UserError("the list is missing", where=f"{path}, {key}, trajectory {e}", hint="leave the trajectory out")
    return counts.astype(np.int64)


class NpzFileSource(NpzArchiveSource, _ImitationSource):
    """Reader of an .npz file with trajectories of old versions of the imitation library.

    It has obs (steps + trajectories, ...), acts and rews (steps, ...), terminal (trajectories,), and indices: the first
    step of each trajectory but the first.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = NpzArrays(path, without=("infos",))
        self.key, headers = cache.json_digest(self._file.key, "imitation"), self._file.headers
        for key in ("obs", "acts", "terminal", "indices"):
            if key not in headers or not headers[key][0] or np.dtype(headers[key][1]).kind not in "biuf":
                raise damaged(f"there is no array {key} of numbers; there are {', '.join(headers)}", path)
        steps, self.terminal = headers["acts"][0][0], self._file.read_array("terminal").reshape(-1).astype(bool)
        indices = self._file.read_array("indices")
        if indices.ndim != 1 or indices.dtype.kind not in "iu" and len(indices) or len(indices) != len(
                self.terminal) - 1:
            raise damaged(f"it must be {len(self.terminal) - 1} integers, one less than terminal has, but is "
                          f"{indices.dtype} {indices.shape}", f"{path}, indices")
        self.lengths = np.diff(np.concatenate([[0], indices.astype(np.int64), [steps]]))
        if (e := first_true(self.lengths < 1)) is not None:
            raise damaged(f"the indices must increase up to {steps}, the rows of acts: "
                          f"{indices.tolist()[:e + 1][-3:]}", f"{path}, indices[{min(e, len(indices) - 1)}]")
        for key, rows in (("obs", steps + len(self.lengths)), ("rews", steps)):
            if key in headers and headers[key][0][:1] != (rows,):
                raise damaged(f"the shape {headers[key][0]} does not have {rows} rows", f"{path}, {key}")
        self._has({k: stored_feature(KEYS.column(k), headers[k][0][1:], np.dtype(headers[k][1]))
                   for k in ("obs", "acts", "rews") if k in headers})
        others = [k for k in headers if k not in ("obs", "acts", "rews", "terminal", "indices")]
        warnings = [f"{', '.join(others)}: left out"] if others else []
        if "infos" in self._file.without:
            warnings.append("infos: a pickle, which could run any code, is left out")
        self.metadata = metadata("imitation", path, warnings, "npz")
