"""OGBench's .npz files (Park et al. 2025): an episode of T steps has T+1 rows. The row whose `terminals` is 1 is the
observation after the last action; its action is no step. There are no rewards, and every episode was cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core import Feature, UserError
from .. import cache
from ..episode import Dataset
from . import side
from .arrays import Arrays
from .arrays import write as write_arrays
from .base import Episodes, rows_of
from .mapped import Mapped
from .names import are_flags, listed
from .npz import column_array, plain_array, storable
from .side import Holds, Place

MARK = "format"  # an array of this name, which ogbench leaves aside, says what a file is that has no simulator state
_OF_STEPS = {"actions": "action", "rewards": "next.reward", "masks": "masks"}
_ENDS = ("next.terminated", "next.truncated")
_TAKEN = {"observation.state", "observation.images.image", "observations", "terminals", "episode_ends", "timeouts",
          "next_observations", MARK, *_OF_STEPS}


def is_ogbench(keys) -> bool:
    """By the arrays of a file without episode_ends: OGBench's own hold the state of the simulator."""
    return {"observations", "actions", "terminals"} <= set(keys) and bool({"qpos", "button_states", MARK} & set(keys)) \
        and not {"timeouts", "next_observations", "episode_ends"} & set(keys)


def open_ogbench(path: Path) -> Dataset:
    source = OGBench(path)
    return Dataset(Episodes(source), source.facts)


class OGBench(Mapped):
    def __init__(self, path: Path):
        self.path, self._file = path, Arrays(path)
        self.key = cache.digest("ogbench", self._file.key)
        where = f"{path}, terminals"
        terminals = self._file.small("terminals")
        if terminals.ndim != 1 or not len(terminals) or not are_flags(terminals):
            raise UserError(f"expected 0 or 1 for each row, found {terminals.dtype} {terminals.shape}", where=where,
                            do="terminals is 1 at the last observation of each episode, and 0 elsewhere")
        ends = np.flatnonzero(terminals)
        if not len(ends) or ends[-1] != len(terminals) - 1:
            raise UserError(f"expected 1 in the last row, {len(terminals) - 1}, found 0", where=where,
                            do="the file is cut short, or not one of OGBench: take it from a copy")
        self._bounds = np.diff(ends, prepend=-1)
        self.lengths = (self._bounds - 1).astype(np.int64)
        if (self.lengths < 1).any():
            row = int(ends[np.argmax(self.lengths < 1)])
            raise UserError("expected at least one action before the last observation, found none",
                            where=f"{where}[{row}]", do="if terminals mark steps, save episode_ends (plain .npz)")
        self._place(len(terminals))

    def _place(self, rows):
        self.schema: dict[str, Feature] = {}
        self._from: dict[str, str] = {}
        warnings = []
        for key, (shape, dtype) in self._file.headers.items():
            if key in ("terminals", MARK):
                continue
            if not shape or shape[0] != rows or 0 in shape[1:]:
                if key in ("observations", "actions"):
                    raise UserError(f"expected {rows} rows, as many as terminals, found shape {shape}",
                                    where=f"{self.path}, {key}", do="take the file from a copy")
                warnings.append(f"{key} is left out: its shape {shape} is not one of {rows} rows")
                continue
            f = Feature.of(np.empty((0, *shape[1:]), np.dtype(dtype).newbyteorder("=")))
            name = _OF_STEPS.get(key) or (_observed(f) if key == "observations" else key)
            if name in self._from:
                raise UserError(f"expected one array for {name}, found {self._from[name]} and {key}",
                                where=f"{self.path}, {key}", do="keep one of them")
            self.schema[name], self._from[name] = f, key
        for name in _ENDS:
            if name in self.schema:
                raise UserError(f"expected no array {name}: terminals say it, found one", where=self.path,
                                do="leave it out")
            self.schema[name] = Feature("bool", ())
        self.longer = frozenset(n for n in self._from if n not in _OF_STEPS.values())
        self.facts = {"format": "ogbench", "version": "", "path": str(self.path), "fps": None, "robot_type": None,
                      "warnings": warnings}

    @property
    def numbers(self) -> list[str]:
        """Pictures too: they are stored as they are."""
        return [n for n, f in self.schema.items() if f.kind != "string"]

    def stream(self):
        keep = np.repeat(np.arange(len(self._bounds)), self._bounds)  # the episode of each row
        for name in self.numbers:
            if name in _ENDS:
                for e, n in enumerate(self.lengths):
                    at = int(self._first[name][e])
                    yield name, at, (np.arange(n) == n - 1) & (name == "next.truncated")
                continue
            for row, values in self._file.stream(self._from[name]):
                if name in self.longer:
                    yield name, row, values
                    continue
                at = np.arange(row, row + len(values))
                steps = at - (np.cumsum(self._bounds) - self._bounds)[keep[at]] < self.lengths[keep[at]]
                if steps.any():
                    yield name, row - int(keep[row]), values[steps]

    def text(self, name, episode):
        at, rows = int((self._bounds[:episode]).sum()), int(self.rows(name)[episode])
        return self._file.small(self._from[name])[at: at + rows]


def _observed(f: Feature) -> str:
    return "observation.images.image" if f.kind == "image" else "observation.state"


def holds(data: Dataset) -> Holds:
    features, lengths = data.features(), rows_of(data)
    seen = _seen(features, data.facts.get("path", "data set"))
    columns = {}
    for name, f in features.items():
        if not f.size:
            continue
        if name == seen:
            columns[name] = Place(_observed(f), f.dtype, f.shape, last=True, repeats=True)
        elif name in ("action", "next.reward"):
            columns[name] = Place(name, f.dtype, f.shape)
        elif name in _ENDS:
            if _cut_off(data, name):
                columns[name] = Place(name, "bool", ())
        elif name not in _TAKEN and storable(name) and f.kind != "string" and (rows_of(data, name) > lengths).all():
            columns[name] = Place(name, f.dtype, f.shape, last=True)
    stored = [place.name for name, place in columns.items() if name not in _ENDS]
    return Holds(columns, reads=(*stored, *_ENDS))


def _seen(features, where) -> str:
    cameras = [n for n, f in features.items() if f.kind == "image" and n.startswith("observation.")]
    state = features.get("observation.state")
    if state is not None and state.kind != "string" and state.size:
        seen: str | None = "observation.state"
    else:
        seen = cameras[0] if len(cameras) == 1 else None
    if seen is None or "action" not in features or not features["action"].size:
        raise UserError(f"expected observation.state (or one camera) and action, found {listed(features, 12)}",
                        where=where, do="OGBench files hold one observation and one action: choose another format")
    return seen


def _cut_off(data: Dataset, name: str) -> bool:
    """Whether the flags are those that are read again: no end but the last row's, and that one a time limit's."""
    def same(e):
        flags = np.asarray(e.steps[name])[: len(e)]
        return flags.dtype == bool and flags.ndim == 1 and np.array_equal(
            flags, (np.arange(len(e)) == len(e) - 1) & (name == "next.truncated"))
    return all(same(e) for e in data)


def write(data: Dataset, path: str | Path) -> None:
    """A new .npz file that ogbench.utils.load_dataset reads. What was seen last is needed; where it is not known, the
    last observation is written twice."""
    path, kept = Path(path), holds(data)
    lengths, seen = rows_of(data), _seen(data.features(), path)
    total, rows = int(lengths.sum()) + len(data), lengths + 1
    keys = {seen: "observations", "action": "actions", "next.reward": "rewards"}
    arrays = [column_array(data, name, keys.get(name, name), total, rows) for name in kept.columns
              if name not in _ENDS]
    terminals = np.zeros(total, bool)
    terminals[np.cumsum(rows) - 1] = True
    arrays += [plain_array("terminals", terminals), plain_array(MARK, np.asarray("ogbench"))]
    with cache.room_on_disk(path), side.with_file(path, data, kept) as part:
        write_arrays(part, arrays)
