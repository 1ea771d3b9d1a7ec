"""Resamples episodes to another number of steps per second."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..core import Feature, UserError, role
from .episode import ColumnSource
from .sources import WrapperSource, collect_frames, select_frames

_TIMESTAMP, _SUCCESS = "timestamp", "next.success"
_DROP_TIMES = ("Without the column, the rate of the data counts, if it is known: understudy view make DATA --drop "
               "timestamp --out VIEW")
LONG_STEP = 10  # between steps: times that are farther apart are hardly seconds
_MAX_STEPS_OF_STEP, _MAX_STEPS_OF_GAP = 10, 10_000  # new steps of a usual long step, and of the longest


class ResampledSource(WrapperSource):
    """Wraps a source so that it has another number of steps per second: see `Resample`.

    Args:
        old: Its steps per second. None if they are not known: it must then have the column `timestamp`.
        path: Where the data are, for error messages.
    """

    def __init__(self, inner: ColumnSource, old: float | None, fps: float, rule: str, path: str):
        dtypes = {n: dtype for n, f in inner.schema.items() if (dtype := _resampled_dtype(n, f)) != f.dtype}
        super().__init__(inner, old, fps, rule, *([dtypes] if dtypes else []),
                         *(["rotations"] if rule == "linear" else []))  # older versions mixed their numbers
        self.schema = {n: replace(f, dtype=dtypes[n], kind="vector", num_classes=None) if n in dtypes else f
                       for n, f in inner.schema.items()}
        self._old, self._fps, self._rule, self._path = old, fps, rule, path
        self._plans: dict[int, tuple] = {}
        if _TIMESTAMP in inner.schema:
            self.lengths = np.array([len(self._resample_plan(e)[0]) for e in range(len(inner.lengths))], np.int64)
        else:
            self.lengths = np.array([self._steps(n / old) for n in inner.lengths], np.int64)

    def _steps(self, seconds: float) -> int:
        return max(1, int(np.ceil(seconds * self._fps - 0.01)))  # float32 times of long episodes are 0.01 steps off

    def _step_times(self, episode) -> np.ndarray:
        """Returns the time of each step and of the end of the last step, (T + 1,), in s from the first step."""
        n = int(self.inner.lengths[episode])
        if _TIMESTAMP not in self.inner.schema:
            assert self._old is not None  # `Resample.apply` refuses data with neither
            return np.arange(n + 1) / self._old
        column, place = np.asarray(self.inner.column(_TIMESTAMP, episode)), f"{self._path}, episode {episode}"
        try:
            times = column.astype(np.float64).reshape(len(column))[:n]
        except ValueError:
            raise UserError(f"a timestamp must be one number of seconds, not {column[0].tolist()!r}",
                            where=f"{place}, step 0, timestamp", hint=_DROP_TIMES) from None
        gaps = np.diff(times)
        if not np.isfinite(times).all() or (gaps < 0).any():
            at = int(np.argmax(~(gaps >= 0))) + 1 if n > 1 else 0
            raise UserError(
                f"timestamps must be finite and not decrease, but {times[at]} comes after {times[max(at - 1, 0)]}",
                where=f"{place}, step {at}, timestamp",
                hint="understudy audit says what is wrong",
            )
        if n > 1:
            _check_gaps(times, gaps, column.dtype, self._fps, place)
        last = 1 / self._old if self._old else float(np.median(gaps)) if n > 1 else 0.0
        return np.append(times, times[-1] + last) - times[0]

    def _resample_plan(self, episode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, for each new step, the last old row before it and its time (s); and the times of the old rows."""
        if episode not in self._plans:
            times = self._step_times(episode)
            at = np.arange(self._steps(times[-1])) / self._fps
            last = np.searchsorted(times[:-1], at + 0.01 / self._fps, "right") - 1
            self._plans = {episode: (last, at, times)}  # columns of one episode are read together
        return self._plans[episode]

    def rows(self, name):
        return self.lengths + (self.inner.rows(name) > self.inner.lengths)

    def _source_rows(self, episode) -> np.ndarray:
        """Returns, for each new step, the row from which it takes its values."""
        last, at, times = self._resample_plan(episode)
        if self._rule != "nearest":
            return last
        after = np.minimum(last + 1, len(times) - 2)
        return np.where(times[after] - at < at - times[last] - 1e-9, after, last)

    def column(self, name, episode):
        if self.reads_frames(name):
            return collect_frames(self, name, episode)
        column = np.asarray(self.inner.column(name, episode))
        if self.schema[name] != self.inner.schema[name]:
            column = column.astype(self.schema[name].dtype)
        (last, at, times), n = self._resample_plan(episode), int(self.inner.lengths[episode])
        if name == _TIMESTAMP:
            resampled = at.reshape(-1, *(1,) * (column.ndim - 1)).astype(column.dtype)
        elif name == "next.reward" or (role(name) == "outcome" and column.dtype == bool):
            resampled = self._aggregate_rows(column[:n], last)
            if name == _SUCCESS:
                resampled |= column[last]
        elif self._rule == "linear" and role(name) in ("observation", "action") and column.dtype.kind == "f":
            resampled = _interpolate(column, last, at, times, find_rotations(name, self.schema[name], column))
        else:
            resampled = column[self._source_rows(episode)]
        ends = column[n:n + 1] if name != _TIMESTAMP else np.full_like(column[n:n + 1], len(at) / self._fps)
        return np.concatenate([resampled, ends]) if len(column) > n else resampled

    def _aggregate_rows(self, column, last):
        """Sums values (or combines flags by any) over the old rows of each new step."""
        into = np.searchsorted(last, np.arange(len(column)), "right") - 1
        out = np.zeros((len(last), *column.shape[1:]), np.float64 if column.dtype.kind == "f" else np.int64)
        np.add.at(out, into[into >= 0], column[into >= 0])
        return out > 0 if column.dtype == bool else out.astype(column.dtype)

    def frames(self, name, episode):
        n, total = int(self.inner.lengths[episode]), len(self._resample_plan(episode)[0])
        source_rows = self._source_rows(episode)

        def new_rows(rows):
            here = np.flatnonzero(np.isin(source_rows, rows))
            return np.append(here, total) if (rows == n).any() else here
        yield from select_frames(self.inner.frames(name, episode), new_rows, self.rows(name)[episode])


def _resampled_dtype(name: str, feature: Feature) -> str:
    """Returns the dtype of a column at another rate: new times are fractions, and sums need more bits."""
    if name == _TIMESTAMP and (feature.kind == "string" or np.dtype(feature.dtype).kind != "f"):
        return "float64"
    is_integer = feature.kind != "string" and np.dtype(feature.dtype).kind in "iu"
    return "int64" if name == "next.reward" and is_integer else feature.dtype


def _check_gaps(times: np.ndarray, gaps: np.ndarray, dtype: np.dtype, fps: float, where: str) -> None:
    """Raises an error if timestamps (s) of an episode are equal, or so far apart that one step would become many."""
    usual_gap, step = float(np.median(gaps)), int(np.argmax(gaps)) + 1
    if usual_gap == 0:
        spacing = float(np.spacing(np.array(times[-1], dtype))) if dtype.kind == "f" else 0.0
        rounding = f": near {times[-1]:.4g}, {dtype} has multiples of {spacing:.4g} only" if spacing > 1e-3 else ""
        raise UserError(f"most timestamps are equal{rounding}", where=f"{where}, timestamp",
                        hint=f"store seconds from the start of the episode, or as float64. {_DROP_TIMES}")
    if usual_gap >= LONG_STEP and usual_gap * fps >= _MAX_STEPS_OF_STEP:
        slow_rate = 0.9 * _MAX_STEPS_OF_STEP / usual_gap
        detour = f"If they are seconds, make a view with --fps {slow_rate:.2g} first, and resample that. "
        raise UserError(f"timestamps are read as seconds, and are {usual_gap:.4g} apart: each step would become "
                        f"{usual_gap * fps:,.0f} steps", where=f"{where}, timestamp",
                        hint="divide milliseconds by 1000 and nanoseconds by 1e9. "
                        f"{detour if slow_rate > 1e-3 else ''}{_DROP_TIMES}")
    if gaps[step - 1] * fps > _MAX_STEPS_OF_GAP:
        raise UserError(f"the step comes {gaps[step - 1]:.4g} s after the one before it, which would become "
                        f"{gaps[step - 1] * fps:,.0f} steps", where=f"{where}, step {step}, timestamp",
                        hint=f"correct the time, or leave the episode out. {_DROP_TIMES}")


def _interpolate(column, last, at, times, rotations: Rotations):
    after = np.minimum(last + 1, len(column) - 1)
    gap = times[after] - times[last]
    share = np.clip(np.divide(at - times[last], gap, out=np.zeros_like(at), where=gap > 0), 0, 1)
    mixed = interpolate_rows(column[last], column[after], share, rotations)
    share = share.reshape(-1, *(1,) * (column.ndim - 1))
    return np.where(share == 0, column[last], mixed)  # a NaN in the next row has no effect


# -- rotations ---------------------------------------------------------------------------------------------------------

_QUATERNION = re.compile(r"(.*?(?:^|[^a-z]))(q|quat|quaternion|orientation|rotation|rot|orn|ori)[^a-z0-9]*([wxyz])")
_NUMBERED_QUATERNION = re.compile(r"(.*)(quat|quaternion)[^a-z0-9]*([0-3])")
_ANGLES = {"yaw", "pitch", "roll", "heading", "theta", "phi", "psi", "azimuth", "bearing", "angle", "euler", "rpy",
           "rx", "ry", "rz"}
_NO_ANGLES = {"vel", "velocity", "velocities", "rate", "speed", "dot", "delta", "d", "sin", "cos", "acc", "omega",
              "torque", "effort"}
_TOLERANCE = 1e-3  # largest deviation of the norm of a quaternion from 1


@dataclass(frozen=True)
class Rotations:
    """Which components of a column are rotations, and of which kind.

    Attributes:
        quaternions: Components of each quaternion, which may lack axes about which nothing turns.
        angles: The full turn of each angle (2 pi, or 360), by its component.
        lowest: The smallest angle: 0, or half a turn below it.
    """

    quaternions: tuple[tuple[int, ...], ...] = ()
    angles: Mapping[int, float] = field(default_factory=dict)
    lowest: Mapping[int, float] = field(default_factory=dict)


def find_rotations(name: str, feature: Feature, values: np.ndarray) -> Rotations:
    """Finds quaternions and angles by their names, units and norms.

    Names such as "qx" or "orientation.w" belong to a quaternion, and so do any four neighboring components with norm 1
    at every row. Names such as "yaw", and the units deg and rad, belong to angles.

    Args:
        name: Name of the column.
        values: Rows of the column, (rows, *shape).
    """
    if len(feature.shape) > 1 or not len(values) or values.dtype.kind not in "fiu":
        return Rotations()
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    names = [n.lower() for n in feature.names or ()] or [""] * flat.shape[1]
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, text in enumerate(names):
        if match := _QUATERNION.fullmatch(text) or _NUMBERED_QUATERNION.fullmatch(text):
            groups.setdefault(match.groups()[:2], []).append(i)
    quaternions = [tuple(g) for g in groups.values() if 1 < len(g) <= 4 and any(names[i][-1] in "w3" for i in g)]
    taken = {i for g in quaternions for i in g}
    unit_norm = np.abs(np.sqrt(np.square(sliding_windows(flat)).sum(2)) - 1) < _TOLERANCE
    for i in np.flatnonzero(unit_norm.all(0)).tolist():
        some = flat[:, i:i + 4]
        if not taken & set(range(i, i + 4)) and not np.isin(some, (-1, 0, 1)).all():  # a class is not a rotation
            quaternions.append(tuple(range(i, i + 4)))
            taken |= set(range(i, i + 4))
    angles = {i: turn for i in range(flat.shape[1]) if i not in taken
              and (turn := _full_turn(f"{name} {names[i]}", names[i], feature.unit, flat[:, i])) is not None}
    return Rotations(tuple(quaternions), angles,
                     {i: -turn / 2 if (flat[:, i] < 0).any() else 0.0 for i, turn in angles.items()})


def sliding_windows(flat: np.ndarray) -> np.ndarray:
    """Returns windows of four neighboring components, (T, D) -> (T, D - 3, 4)."""
    if flat.shape[1] < 4:
        return np.zeros((len(flat), 0, 4))
    return np.lib.stride_tricks.sliding_window_view(flat, 4, axis=1)


def _full_turn(label: str, component: str, unit: str | None, values: np.ndarray) -> float | None:
    """Returns the full turn of an angle, in its unit. None if nothing says that it is an angle."""
    tokens = set(re.split(r"[^a-z]+", label.lower()))
    unit = (unit or "").lower()
    has_unit = unit.startswith(("deg", "rad")) and not (
        component and component.split(".")[0] in unit.partition(" (")[2])
    if tokens & _NO_ANGLES or not (has_unit or tokens & _ANGLES):
        return None
    largest = np.abs(values[np.isfinite(values)]).max(initial=0)
    turn = 360.0 if unit.startswith("deg") or largest > 2 * np.pi + 0.01 else 2 * np.pi
    return turn if largest <= turn * 1.001 else None  # a larger angle counts its turns


def interpolate_rows(low: np.ndarray, high: np.ndarray, share: np.ndarray, rotations: Rotations) -> np.ndarray:
    """Interpolates between rows: rotations on the shortest way, and all other components linearly.

    Args:
        low: Rows before, (T, *shape).
        high: Rows after, (T, *shape).
        share: From 0, the row before, to 1, the row after, (T,).
    """
    a, b = (np.asarray(rows, np.float64).reshape(len(rows), -1) for rows in (low, high))
    share = share[:, None]
    mixed = a * (1 - share) + b * share
    for components in rotations.quaternions:
        mixed[:, components] = _slerp(a[:, components], b[:, components], share)
    for i, turn in rotations.angles.items():
        gap = b[:, i] - a[:, i]
        wraps = np.abs(gap) > turn / 2
        angle = a[:, i] + share[:, 0] * (gap - turn * np.sign(gap))
        mixed[wraps, i] = (angle[wraps] - rotations.lowest[i]) % turn + rotations.lowest[i]
    return mixed.reshape(low.shape).astype(low.dtype)


def _slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolates between quaternions, (T, n), on the shortest way: q and -q are the same rotation."""
    b = np.where((a * b).sum(1, keepdims=True) < 0, -b, b)
    sizes = [np.linalg.norm(q, axis=1, keepdims=True) for q in (a, b)]
    has_size = np.minimum(*sizes) > 0
    unit_a, unit_b = (q / np.where(has_size, size, 1) for q, size in zip((a, b), sizes, strict=True))
    angle = np.arccos(np.clip((unit_a * unit_b).sum(1, keepdims=True), -1, 1))
    is_wide = angle > 1e-6
    sine = np.where(is_wide, np.sin(angle), 1)
    weights = [np.where(is_wide, np.sin(s * angle) / sine, s) for s in (1 - share, share)]
    direction = weights[0] * unit_a + weights[1] * unit_b
    return np.where(has_size, direction * ((1 - share) * sizes[0] + share * sizes[1]), a * (1 - share) + b * share)


def unnamed_turns(name: str, feature: Feature, values: np.ndarray) -> list[int]:
    """Returns the components that jump by almost a full turn like angles, although nothing says they are angles."""
    if len(feature.shape) != 1 or len(values) < 2:
        return []
    rotations, flat = find_rotations(name, feature, values), np.asarray(values, np.float64)
    jump, size = np.abs(np.diff(flat, axis=0)).max(0), np.abs(flat).max(0)
    is_turn = [(size <= largest * 1.001) & (jump > 0.8 * turn) & (jump <= turn * 1.001)
               for turn in (2 * np.pi, 360.0) for largest in (turn / 2, turn)]
    others = {i for g in rotations.quaternions for i in g} | set(rotations.angles)
    return [i for i in np.flatnonzero(np.any(is_turn, 0)).tolist() if i not in others]
