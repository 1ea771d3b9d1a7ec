"""Trajectories of the imitation library: a folder of Arrow files (Hugging Face datasets), or its old .npz files.

Layout: HumanCompatibleAI/imitation src/imitation/data/serialize.py and huggingface_utils.py. A trajectory of T actions
has T+1 observations and one flag `terminal`: false means that it was cut off. `infos` are jsonpickle text and are kept
as text, never decoded as such; in .npz files they are a pickle and are left where they are.
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
from . import arrow
from .base import SourceEpisodes, episode_starts
from .chunked_source import ChunkedSource, stored_feature
from .npz_arrays import NpzArrays

_MISSING_COLUMNS = "this is no data set of imitation: obs, acts and terminal, a row for each trajectory"
_NAMES = {"obs": "observation.state", "acts": "action", "rews": "next.reward"}


def open_imitation(path: Path) -> Dataset:
    source = ArrowFolderSource(path) if path.is_dir() else NpzFileSource(path)
    facts = {"format": "imitation", "version": "datasets" if path.is_dir() else "npz", "path": str(path), "fps": None,
             "robot_type": None, "warnings": source.warnings}
    return Dataset(SourceEpisodes(source), facts)


class _ImitationSource(ChunkedSource):
    terminal: np.ndarray  # (E,) bool
    warnings: list[str]

    def _has(self, features: dict[str, Feature]):
        """The schema, of features by their keys."""
        self.schema, self._keys, self.row_counts = {}, {}, {}
        for key, f in features.items():
            name = "observation.images.image" if key == "obs" and f.kind == "image" else _NAMES.get(key, key)
            self.schema[name], self._keys[name] = f, key
            self.row_counts[name] = self.lengths + (key == "obs")
        for name in ("next.terminated", "next.truncated"):
            self.schema[name], self._keys[name] = Feature("bool", ()), "terminal"
            self.row_counts[name] = self.lengths

    def location(self, name, episode):
        return f"{self.path}, {self._keys[name]}, trajectory {episode}"

    def _ends(self, name, episode) -> np.ndarray:
        flags = np.zeros(int(self.lengths[episode]), bool)
        flags[-1] = self.terminal[episode] == (name == "next.terminated")
        return flags


class ArrowFolderSource(_ImitationSource):
    def __init__(self, path: Path):
        self.path, self.warnings = path, []
        state = read_json(path / "state.json")
        entries = state.get("_data_files") if isinstance(state, dict) else None
        names = [f.get("filename") if isinstance(f, dict) else None for f in entries] if isinstance(entries, list) \
            else []
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names) \
                or len(set(names)) < len(names):
            raise UserError(f"expected different names of files in this folder, found {str(entries)[:80]}",
                            where=f"{path / 'state.json'}, _data_files", hint="take the folder from a copy")
        self._files = [path / n for n in names]
        if gone := next((f for f in self._files if not f.is_file()), None):
            raise UserError("expected a file, found none", where=gone, hint="take it from a copy")
        self.key = cache.json_digest("imitation", *([str(f.resolve()), s.st_mtime_ns, s.st_ctime_ns, s.st_size]
                                               for f in self._files for s in [f.stat()]))
        with self.open_files() as table:
            arrow.validate_table(table, path)
            lack = [k for k in ("obs", "acts", "terminal") if k not in table.column_names]
            if lack:
                raise UserError(f"expected columns obs, acts and terminal, found {', '.join(table.column_names)}",
                                where=path, hint=_MISSING_COLUMNS)
            if not table.num_rows:
                raise UserError("expected at least one trajectory, found none", where=path,
                                hint="take the folder from a copy, or record anew")
            for key in ("obs", "acts", "infos", "rews"):
                if key in table.column_names and not pa.types.is_list(table.schema.field(key).type):
                    raise UserError(f"expected a list for each trajectory, found {table.schema.field(key).type}",
                                    where=f"{path}, {key}", hint=_MISSING_COLUMNS)
            self.terminal = arrow.to_numpy(table.column("terminal"), f"{path}, terminal").astype(bool)
            self.lengths = _counts(table, "acts", path)
            self._check(table)
            features = {}
            for key in ("obs", "acts", "rews", "infos"):
                if key in table.column_names:
                    first = arrow.to_numpy(table.column(key)[0].values, f"{path}, {key}, trajectory 0")
                    features[key] = Feature("string", first.shape[1:], "string") if first.dtype.kind == "O" else \
                        stored_feature(_NAMES[key], first.shape[1:], first.dtype)
            self._has(features)

    def _check(self, table):
        for key, more in (("obs", 1), ("rews", 0), ("infos", 0)):
            if key not in table.column_names:
                continue
            wrong = np.flatnonzero(_counts(table, key, self.path) != self.lengths + more)
            if len(wrong):
                e = int(wrong[0])
                raise UserError(f"expected {self.lengths[e] + more} rows for {self.lengths[e]} actions, found "
                                f"{_counts(table, key, self.path)[e]}", where=f"{self.path}, {key}, trajectory {e}",
                                hint="leave the trajectory out, or take the folder from a copy")
        if (self.lengths < 1).any():
            raise UserError("expected at least one action, found none",
                            where=f"{self.path}, acts, trajectory {int(np.argmax(self.lengths < 1))}",
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
        if self._keys[name] == "terminal":
            return self._ends(name, episode)[first:stop]
        where = self.location(name, episode)
        with arrow.arrow_errors(where):
            return arrow.to_numpy(files.column(self._keys[name])[episode].values[first:stop], where)


def _counts(table, key, path) -> np.ndarray:
    with arrow.arrow_errors(f"{path}, {key}"):
        counts = [c.value_lengths().to_numpy(zero_copy_only=False) for c in table.column(key).chunks]
        counts = np.concatenate(counts) if counts else np.zeros(0)
    if not np.isfinite(counts).all():
        raise UserError("expected a list, found nothing", where=f"{path}, {key}, trajectory "
                        f"{int(np.argmin(np.isfinite(counts)))}", hint="leave the trajectory out")
    return counts.astype(np.int64)


class NpzFileSource(_ImitationSource):
    """obs (steps + trajectories, ...), acts and rews (steps, ...), terminal (trajectories,), indices: where each
    trajectory but the first begins, in steps."""

    def __init__(self, path: Path):
        self.path = path
        self._file = NpzArrays(path, without=("infos",))
        self.key, have = cache.json_digest(self._file.key, "imitation"), self._file.headers
        for key in ("obs", "acts", "terminal", "indices"):
            if key not in have or not have[key][0] or np.dtype(have[key][1]).kind not in "biuf":
                raise UserError(f"expected an array {key} of numbers, found {', '.join(have)}", where=path,
                                hint="take the file from a copy")
        steps, self.terminal = have["acts"][0][0], self._file.read_array("terminal").reshape(-1).astype(bool)
        indices = self._file.read_array("indices")
        if indices.ndim != 1 or indices.dtype.kind not in "iu" and len(indices) or len(indices) != len(
                self.terminal) - 1:
            raise UserError(f"expected {len(self.terminal) - 1} integers, one less than terminal has, found "
                            f"{indices.dtype} {indices.shape}", where=f"{path}, indices", hint="take it from a copy")
        self.lengths = np.diff(np.concatenate([[0], indices.astype(np.int64), [steps]]))
        if (self.lengths < 1).any():
            e = int(np.argmax(self.lengths < 1))
            raise UserError(f"expected places that grow up to {steps}, the rows of acts, found "
                            f"{indices.tolist()[:e + 1][-3:]}",
                            where=f"{path}, indices[{min(e, len(indices) - 1)}]", hint="take the file from a copy")
        for key, rows in (("obs", steps + len(self.lengths)), ("rews", steps)):
            if key in have and have[key][0][:1] != (rows,):
                raise UserError(f"expected {rows} rows, found {have[key][0][:1]}", where=f"{path}, {key}",
                                hint="take the file from a copy")
        self._has({k: stored_feature(_NAMES[k], have[k][0][1:], np.dtype(have[k][1]))
                   for k in ("obs", "acts", "rews") if k in have})
        others = [k for k in have if k not in ("obs", "acts", "rews", "terminal", "indices")]
        self.warnings = [f"{', '.join(others)}: left out"] if others else []
        if "infos" in self._file.without:
            self.warnings.append("infos: a pickle, which could run any code, is left out")

    def _build(self, part):
        for name in self._numbers:
            f, key = self.schema[name], self._keys[name]
            out = cache.create_array(part, name, (int(self.row_counts[name].sum()), *f.shape), np.dtype(f.dtype))
            if key == "terminal":
                out[:] = False
                out[episode_starts(self.lengths) + self.lengths - 1] = self.terminal == (name == "next.terminated")
            else:  # trajectories lie end to end there, too
                for row, values in self._file.iter_rows(key):
                    out[row: row + len(values)] = values.reshape(len(values), *f.shape)
            out.flush()

    def column(self, name, episode):
        """Through the maps: an archive cannot be read from its middle."""
        if name in self._numbers:
            first = self._first[name][episode]
            return self._maps[name][first: first + int(self.row_counts[name][episode])]
        return self.read_rows(None, name, episode, 0, int(self.row_counts[name][episode]))

    def read_rows(self, files, name, episode, first, stop):
        begin, parts = int(episode_starts(self.row_counts[name])[episode]), []
        for row, values in self._file.iter_rows(self._keys[name]):
            parts.append(values[max(begin + first - row, 0): max(begin + stop - row, 0)])
        return np.concatenate(parts)
