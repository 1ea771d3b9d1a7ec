"""Reader and writer of the .npz files of OGBench (Park et al. 2025).

An episode of T steps has T+1 rows. The row with `terminals` 1 is the observation after the last action, and its action
is not a step. There are no rewards, and every episode was cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...core import Feature, UserError
from .. import cache
from ..episode import Dataset
from .parts import sidecar
from .parts.column_names import FLAG_COLUMNS, are_flags, format_list
from .parts.key_map import END_COLUMNS, KeyMap, end_flags, metadata, stored_feature
from .parts.npz_arrays import NpzArchiveSource, NpzArrays, column_array, is_storable_key, whole_array, write_npz
from .parts.read_errors import damaged, first_true
from .parts.sidecar import ColumnEncoding, FormatCapability

FORMAT_KEY = "format"
KEYS = KeyMap({"actions": "action", "rewards": "next.reward", "masks": "masks"}, observation="observations",
              separator="")
_OF_STEPS = tuple(KEYS.columns.values())  # all further columns have a row after the last action
_RESERVED_KEYS = {"observation.state", "observation.images.image", "observations", "terminals", "episode_ends",
                  "timeouts", "next_observations", FORMAT_KEY, *KEYS.columns}


def is_ogbench(keys: Iterable[str]) -> bool:
    """Returns whether an .npz file without episode_ends is from OGBench: its arrays include the simulator's state."""
    names = set(keys)
    return ({"observations", "actions", "terminals"} <= names and bool({"qpos", "button_states", FORMAT_KEY} & names)
            and not {"timeouts", "next_observations", "episode_ends"} & names)


class OGBenchSource(NpzArchiveSource):
    """Reader of an OGBench file."""

    flags = frozenset(FLAG_COLUMNS)

    def __init__(self, path: Path):
        self.path, self._file = path, NpzArrays(path)
        self.key = cache.json_digest("ogbench", self._file.key)
        location = f"{path}, terminals"
        terminals = self._file.read_array("terminals")
        if terminals.ndim != 1 or not len(terminals) or not are_flags(terminals):
            raise UserError(f"each row must have 0 or 1, but it is {terminals.dtype} {terminals.shape}", where=location,
                            hint="terminals is 1 at the last observation of each episode, and 0 elsewhere")
        ends = np.flatnonzero(terminals)
        if not len(ends) or ends[-1] != len(terminals) - 1:
            raise UserError(f"the last row, {len(terminals) - 1}, must be 1, but is 0", where=location,
                            hint="the file is cut short, or not an OGBench file: take it from a copy")
        self._ends = ends
        self.lengths = (np.diff(ends, prepend=-1) - 1).astype(np.int64)
        if (e := first_true(self.lengths < 1)) is not None:
            raise UserError("there is no action before the last observation", where=f"{location}[{ends[e]}]",
                            hint="if terminals mark steps, save episode_ends (plain .npz)")
        self._assign_arrays(len(terminals))

    def _assign_arrays(self, rows):
        features: dict[str, Feature] = {}
        warnings = []
        for key, (shape, dtype) in self._file.headers.items():
            if key in ("terminals", FORMAT_KEY):
                continue
            if not shape or shape[0] != rows or 0 in shape[1:]:
                if key in ("observations", "actions"):
                    raise damaged(f"the shape {shape} does not have {rows} rows, as terminals has",
                                  f"{self.path}, {key}")
                warnings.append(f"{key} is left out: its shape {shape} is not one of {rows} rows")
                continue
            if key in END_COLUMNS:
                raise UserError(f"the array {key} repeats what terminals says", where=self.path, hint="leave it out")
            features[key] = stored_feature("", shape[1:], dtype, has_text=True)
        if "masks" in features and (n_ends := int(np.sum(self._file.read_array("masks") == 0))):
            warnings.append(f"masks is 0 in {n_ends} rows: OGBench's agents count no reward after them, and the "
                            "learners here do, since the episodes continue")
        self.schema, self.keys = KEYS.schema(features, self.path)
        self.schema |= {name: Feature("bool", ()) for name in END_COLUMNS}
        self.computed = end_flags(self.lengths, np.zeros(len(self.lengths), bool))
        self.row_counts = {n: self.lengths + (n not in (*_OF_STEPS, *END_COLUMNS)) for n in self.schema}
        self.metadata = metadata("ogbench", self.path, warnings)

    def place_rows(self, name, row, values):
        if name not in _OF_STEPS:
            return row, values
        first, stop = np.searchsorted(self._ends, (row, row + len(values)))  # last observations before them, and to
        return row - int(first), np.delete(values, self._ends[first:stop] - row, axis=0)


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    features, lengths = data.features(), data.lengths
    observation = _observation_column(features, data.metadata.get("path", "data set"))
    columns = {}
    for name, f in features.items():
        if not f.size:
            continue
        if name == observation:
            columns[name] = ColumnEncoding(KEYS.column("observations", f), f.dtype, f.shape, has_last_row=True,
                                           repeats_last_row=True)
        elif name in ("action", "next.reward"):
            columns[name] = ColumnEncoding(name, f.dtype, f.shape)
        elif name in END_COLUMNS:
            if _is_time_limit_only(data, name):
                columns[name] = ColumnEncoding(name, "bool", ())
        elif (
            name not in _RESERVED_KEYS
            and is_storable_key(name)
            and f.kind != "string"
            and (data.rows(name) > lengths).all()
        ):
            columns[name] = ColumnEncoding(name, f.dtype, f.shape, has_last_row=True)
    stored = [place.name for name, place in columns.items() if name not in END_COLUMNS]
    return FormatCapability(columns, read_columns=(*stored, *END_COLUMNS))


def _observation_column(features, where) -> str:
    cameras = [n for n, f in features.items() if f.kind == "image" and n.startswith("observation.")]
    state = features.get("observation.state")
    if state is not None and state.kind != "string" and state.size:
        observation: str | None = "observation.state"
    else:
        observation = cameras[0] if len(cameras) == 1 else None
    if observation is None or "action" not in features or not features["action"].size:
        raise UserError("OGBench needs observation.state (or one camera) and action; there are "
                        f"{format_list(features, 12)}", where=where,
                        hint="OGBench files hold one observation and one action: choose another format")
    return observation


def _is_time_limit_only(data: Dataset, name: str) -> bool:
    """Returns whether a flag column is only what OGBench restores: a time limit at the last row, or no flags."""
    def same(e):
        flags = np.asarray(e.steps[name])[: len(e)]
        return flags.dtype == bool and flags.ndim == 1 and np.array_equal(
            flags, (np.arange(len(e)) == len(e) - 1) & (name == "next.truncated"))
    return all(same(e) for e in data)


def write(data: Dataset, path: str | Path) -> None:
    """Writes an .npz file that ogbench.utils.load_dataset reads.

    The format has a row after the last action. If an episode has none, its last observation is written twice.
    """
    path, kept = Path(path), capability(data)
    rows, observation = data.lengths + 1, _observation_column(data.features(), path)
    arrays = [column_array(data, name, "observations" if name == observation else KEYS.key(name), rows)
              for name in kept.columns if name not in END_COLUMNS]
    terminals = np.zeros(int(rows.sum()), bool)
    terminals[np.cumsum(rows) - 1] = True
    arrays += [whole_array("terminals", terminals), whole_array(FORMAT_KEY, np.asarray("ogbench"))]
    with sidecar.new_file_with_sidecar(path, data, kept) as part:
        write_npz(part, arrays)
