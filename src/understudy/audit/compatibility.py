"""Can data sets be merged? Each disagreement with the first data set is a finding.

An error means that a policy would learn from rows with different meanings. A warning means that something is lost, or
is only probable.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..core import Feature, role
from ..data.corrections import CONVERSIONS, Reorder, Scale, Swap, conversion_between
from ..data.episode import Dataset
from ..data.operations import Operation
from ..data.packed_columns import cast_exactly, common_dtype, may_change
from ..hints import command_line
from .base import Finding, Location, component_labels, view_options

_STEPS, _EPISODES, _WIDTH = 20_000, 200, 64  # for statistics: rows, evenly spaced episodes, components
_APART = 10.0  # ratio of standard deviations that needs another unit as explanation: degrees, millimeters, bytes
_UNITS = {"degrees and radians": 57.3, "millimeters and meters": 1000.0, "bytes and fractions": 255.0}
_CONVERSIONS = {180 / np.pi: ("deg2rad", "rad2deg"), 1000.0: ("mm2m", "m2mm"), 255.0: ("", "")}  # by the ratio
_FITS, _FAILS = 0.5, 0.3  # fractions of variance
_REVERSED = -1.0  # explained fraction of the variance. A model with the wrong sign explains about -3
_EXACT = 0.2  # largest deviation of what an action does from one component with another sign or gain
_DELTA = re.compile(r"(^|[._/\s-])(d|delta|diff|rel|relative|vel|velocity)([._/\s-]|$)|^d(x|y|z|r|rx|ry|rz|roll|pitch|"
                    r"yaw|theta|q\d*)$", re.IGNORECASE)
_FRAMES = {"world": "world", "base": "base", "eef": "end effector", "ee": "end effector", "tcp": "end effector",
           "tool": "end effector", "camera": "camera", "body": "body"}


def find_disagreements(sets: Mapping[str, Dataset]) -> list[Finding]:
    """Finds where data sets differ from the first one, so that they cannot be merged. Reads at most 20,000 rows each.

    Errors: `columns-differ` (observations and actions), `shape-differs`, `kind-differs`, `names-differ`,
    `unit-differs`, `fps-differs`, `normalization-differs` (a warning if all values are within 1.5), `scale-differs`,
    `action-convention-differs`, `action-frame-differs`, `action-effect-differs`. Warnings: `columns-differ` (all other
    columns), `dtype-differs`, `fps-unknown`, `robot-differs`, `ranges-apart`. Notes: `unit-unknown`, `names-unknown`.
    """
    (first, data), *others = sets.items()
    first_sample = _DatasetSample(data)
    return [f for name, other in others for f in _compare_datasets(first, first_sample, name, _DatasetSample(other))]


def unmergeable_columns(sets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Returns columns that have no common form and must be left out of a merge."""
    schemas = [d.features() for d in sets.values()]
    return tuple(n for n in dict.fromkeys(n for s in schemas for n in s) if n != "task" and any(
        n not in s for s in schemas) or len({(s[n].shape, s[n].kind == "string") for s in schemas if n in s}) > 1)


def check_exact(sets: Mapping[str, Dataset], leave_out: Collection[str] = ()) -> None:
    """Raises DataError for the first integer that the type of its column in a merge does not hold.

    Only columns that have integers of 64 bits in one data set, and another type in another one, are read.
    """
    schemas = [d.features() for d in sets.values()]
    for name in (n for n, f in schemas[0].items() if n not in leave_out and f.kind != "string"):
        dtype = common_dtype(s[name].dtype for s in schemas)
        for (path, data), schema in zip(sets.items(), schemas, strict=True):
            for e, episode in enumerate(data if may_change(schema[name].dtype, dtype) else ()):
                cast_exactly(np.asarray(episode.steps[name]), dtype, f"{path}, episode {e}, column {name!r}")


def unit_of_ratio(ratio: float, tolerance: float = 4 / 3) -> str | None:
    """Returns two units with this ratio of values, such as degrees and radians, within a factor of `tolerance`."""
    size = max(abs(ratio), 1 / max(abs(ratio), 1e-12))
    return next((unit for unit, factor in _UNITS.items() if 1 / tolerance < size / factor < tolerance), None)


def unit_factor(ratio: float) -> float:
    """Returns the factor between the units that have about this ratio, or the ratio itself."""
    unit = unit_of_ratio(ratio)
    if unit is None:
        return abs(ratio)
    return 1 / _UNITS[unit] if abs(ratio) < 1 else _UNITS[unit]


class _DatasetSample:
    """The steps of a data set that are compared with another data set. They are read once, when they are needed."""

    def __init__(self, data: Dataset):
        self.data, self.features, self._rows = data, data.features(), {}
        self.corrections: list[Operation] = []

    def rows(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values of a column at some steps and at the steps after them, (N, D) float64 each."""
        if name not in self._rows:
            episodes = np.linspace(0, len(self.data) - 1, min(len(self.data), _EPISODES)).astype(int)
            now, then = [], []
            for e in episodes:
                column = np.asarray(self.data[int(e)].steps[name], np.float64)
                column = column.reshape(len(column), -1)
                at = np.arange(len(self.data[int(e)]) - 1)  # actions have no row after the last
                every = max(1, len(at) * len(episodes) // _STEPS)
                now.append(column[at[::every]])
                then.append(column[at[::every] + 1])
            self._rows[name] = np.concatenate(now), np.concatenate(then)
        return self._rows[name]

    def correct(self) -> None:
        """Applies the corrections that were found, so that the same fault is not found twice."""
        for operation in self.corrections:
            self.data = operation.apply(self.data)
        if self.corrections:
            self.features, self._rows, self.corrections = self.data.features(), {}, []


def _scale_correction(name: str, feature: Feature, moving: np.ndarray, ratio: np.ndarray) -> list[Operation]:
    """Returns the change of units that makes the spreads of a column equal in two data sets. Empty if none fits."""
    for size, (larger, smaller) in _CONVERSIONS.items():
        for conversion, expected in ((larger, size), (smaller, 1 / size)):
            is_scaled = (ratio > expected / 2) & (ratio < expected * 2)
            alike = (ratio > 1 / _APART) & (ratio < _APART)
            if not is_scaled.any() or not (is_scaled | alike).all():
                continue
            before = CONVERSIONS[conversion][0] if conversion else None
            is_factor = before is None or feature.unit and not feature.unit.startswith(before)
            by = 1 / expected if is_factor else conversion
            return [Scale(name, by, component_labels(feature, moving[is_scaled]) if alike.any() else None)]
    return []


def _compare_datasets(a: str, one: _DatasetSample, b: str, other: _DatasetSample) -> Iterator[Finding]:
    def finding(code, severity, what, do, feature=None, *corrections: Operation):
        options = view_options(corrections)
        if options:  # what is compared next is compared after the correction
            do = f"{command_line('view', 'make', b, *options, '--out')} VIEW"
            other.corrections += corrections
        return Finding(code, severity, f"{what[0]} in {a}, {what[1]} in {b}", do, Location(b, feature=feature),
                       correction=options)
    yield from _compare_schemas(one.features, other.features, finding)
    yield from _compare_metadata(one.data, other.data, finding)
    alike = [n for n, f in one.features.items() if f.kind == "vector" and role(n) in ("observation", "action")
             and n in other.features and (other.features[n].kind, other.features[n].shape) == ("vector", f.shape)]
    other.correct()
    for name in alike:
        yield from _compare_values(name, one.rows(name)[0], other.rows(name)[0], other.features[name], finding)
    other.correct()
    if "action" in alike:
        yield from _compare_actions(one, other, [n for n in alike if role(n) == "observation"], finding)


def _compare_schemas(one: Mapping[str, Feature], other: Mapping[str, Feature], finding) -> Iterator[Finding]:
    for name in dict.fromkeys([*one, *other]):
        f, g = one.get(name), other.get(name)
        if f is None or g is None:
            hard = role(name) in ("observation", "action")
            otherwise = {"task": "the metadata of the others say it, or it is empty",
                         "action": "it is left out (methods for data without actions, such as vpt, take the others by "
                                   "--prior)",
                         "next.success": "only the metadata say which episodes succeeded"}.get(name, "it is left out")
            yield finding("columns-differ", "error" if hard else "warning",
                          (name if f else f"no {name}", name if g else f"no {name}"),
                          f"rename or drop it in a view of each (understudy view make); otherwise {otherwise}", name)
            continue
        if f.shape != g.shape:
            yield finding("shape-differs", "error", (f"{name} has shape {f.shape}", str(g.shape)),
                          "drop it in a view of each, or merge data of one robot; otherwise it is left out", name)
            continue
        if (f.kind, np.dtype(f.dtype).kind if f.kind != "string" else "U") != (
                g.kind, np.dtype(g.dtype).kind if g.kind != "string" else "U"):
            otherwise = "it is left out" if "string" in (f.kind, g.kind) else f"it is read as {_describe_joined(f, g)}"
            yield finding("kind-differs", "error", (f"{name} holds {f.dtype} ({f.kind})", f"{g.dtype} ({g.kind})"),
                          f"store it as one kind; otherwise {otherwise}", name)
        elif f.dtype != g.dtype:
            yield finding("dtype-differs", "warning", (f"{name} is {f.dtype}", g.dtype),
                          f"it is read as {_describe_joined(f, g)}", name)
        if f.names and g.names and f.names != g.names:
            order = " (the same in another order)" if sorted(f.names) == sorted(g.names) else ""
            yield finding("names-differ", "error", (f"{name} holds {', '.join(f.names)}", ", ".join(g.names) + order),
                          "give the same components in one order", name,
                          *([Reorder(name, f.names)] if order and len(set(f.names)) == len(f.names) else []))
        elif bool(f.names) != bool(g.names):
            yield finding("names-unknown", "note", tuple(f"components of {name} {'named' if x.names else 'not named'}"
                                                         for x in (f, g)), "make sure that they are the same", name)
        if f.has_other_unit(g):
            conversion = conversion_between(g.unit, f.unit)
            yield finding("unit-differs", "error", (f"{name} is in {f.unit}", g.unit), "convert one of them", name,
                          *([Scale(name, conversion)] if conversion else []))
        elif bool(f.unit) != bool(g.unit):
            yield finding("unit-unknown", "note", tuple(f"{name} is in {x.unit or 'an unknown unit'}" for x in (f, g)),
                          "make sure that it is the same", name)


def _describe_joined(f: Feature, g: Feature) -> str:
    dtype = common_dtype((f.dtype, g.dtype)).name
    return dtype if f.kind == g.kind else f"{dtype} (vector)"


def _compare_metadata(one: Dataset, other: Dataset, finding) -> Iterator[Finding]:
    if one.fps is not None and other.fps is not None and abs(one.fps - other.fps) > 1e-3 * one.fps:
        yield finding("fps-differs", "error", (f"{one.fps:g} steps a second", f"{other.fps:g}"),
                      f"understudy view make DATA --fps {one.fps:g} --out VIEW shows the second at the first's rate")
    elif (one.fps is None) != (other.fps is None):
        rates = tuple("an unknown rate" if d.fps is None else f"{d.fps:g} steps a second" for d in (one, other))
        yield finding("fps-unknown", "warning", rates, "the rate of both is unknown afterwards")
    robots = [d.metadata.get("robot_type") for d in (one, other)]
    if all(robots) and robots[0] != robots[1]:
        yield finding("robot-differs", "warning", tuple(f"robot {r}" for r in robots), "make sure that they act alike")


def _compare_values(name, x, y, feature: Feature, finding) -> Iterator[Finding]:
    x, y = (v[np.isfinite(v).all(1)] for v in (x, y))
    if min(len(x), len(y)) < 10:
        return
    guesses = [_normalization_guess(v) for v in (x, y)]
    if guesses[0] != guesses[1]:
        other = y if guesses[0] else x  # within these bounds, one robot may just have moved less far
        hard = all(guesses) or np.abs(other).max() > 1.5
        yield finding("normalization-differs", "error" if hard else "warning",
                      tuple(f"{name} is {s or 'as measured'}" for s in guesses),
                      "merge the data before they are normalized: policies normalize for themselves", name)
        if hard:
            return
    moving = (x.std(0) > 1e-6) & (y.std(0) > 1e-6)
    if not moving.any():
        return
    ratio = y.std(0)[moving] / x.std(0)[moving]
    middle = float(np.median(ratio))
    if not 1 / _APART < middle < _APART:
        like = f", as {unit}" if (unit := unit_of_ratio(middle, 2)) else ""
        spreads = [f"{np.median(values.std(0)[moving]):.3g}" for values in (x, y)]
        yield finding("scale-differs", "error", (f"{name} has a spread of {spreads[0]}", f"{spreads[1]}{like}"),
                      "convert one of them", name, *_scale_correction(name, feature, np.flatnonzero(moving), ratio))
        return
    apart = np.flatnonzero((x.min(0) > y.max(0)) | (y.min(0) > x.max(0)))
    if len(apart):
        i = int(apart[0])
        yield finding("ranges-apart", "warning",
                      (f"component {i} of {name} is from {x[:, i].min():.3g} to {x[:, i].max():.3g}",
                       f"from {y[:, i].min():.3g} to {y[:, i].max():.3g}"), "look whether it means the same", name)


def _normalization_guess(x: np.ndarray) -> str:
    """Returns the normalization that the values suggest, if all components have equal ranges or standard deviations."""
    low, high, moving = x.min(0), x.max(0), x.std(0) > 1e-6
    low, high, mean, std = low[moving], high[moving], x.mean(0)[moving], x.std(0)[moving]
    if len(low) < 2:  # a single component may look like this by chance
        return ""
    for bottom, text in ((-1.0, "normalized to [-1, 1]"), (0.0, "normalized to [0, 1]")):
        if (np.abs(low - bottom) < 0.02).all() and (np.abs(high - 1) < 0.02).all():
            return text
    return "normalized to mean 0 and spread 1" if (np.abs(mean) < 0.1).all() and (np.abs(std - 1) < 0.1).all() else ""


def _compare_actions(one: _DatasetSample, other: _DatasetSample, observations: list[str], finding) -> Iterator[Finding]:
    frames = [_reference_frame(k) for k in (one, other)]
    if all(frames) and frames[0] != frames[1]:
        yield finding("action-frame-differs", "error", tuple(f"actions in the frame of the {f}" for f in frames),
                      "turn one of them into the other's frame", "action")
    conventions = [action_convention(k.data, k) for k in (one, other)]
    if all(conventions) and conventions[0] != conventions[1]:
        yield finding("action-convention-differs", "error", tuple(f"{s} actions" for s in conventions),
                      "make both absolute or both differences", "action")
        return
    name = "observation.state" if "observation.state" in observations else observations[0] if observations else None
    if name and (effects := _ActionEffects.compare(one, other, name, conventions[0] == "absolute")) is not None:
        own, cross = effects.shares
        yield finding("action-effect-differs", "error",
                      (f"one linear model of what actions do to {name} explains {own:.0%} of its changes",
                       f"{cross:.0%}"),
                      "look for another frame, sign, order or gain of the actions", "action",
                      *effects.corrections(other.features["action"]))


def action_convention(data: Dataset, sample: _DatasetSample | None = None) -> str:
    """The convention of the actions: "absolute" (a target position), "delta" (a displacement or a velocity), or "" if
    unclear.

    The names of the components decide if they say it. Otherwise the actions are correlated with the next state and with
    the change of the state. A mean correlation over components of at least 90 % or 70 %, and a lead of 10 %, are clear.

    Args:
        sample: Rows of the same data set that were already read.
    """
    sample = sample or _DatasetSample(data)
    f = sample.features.get("action")
    if f is None or f.kind != "vector":
        return ""
    names = f.names or ()
    if names and all(_DELTA.search(n) or "grip" in n.lower() for n in names) and any(map(_DELTA.search, names)):
        return "delta"
    observations = [n for n, g in sample.features.items() if role(n) == "observation" and g.kind == "vector"
                    and g.size <= _WIDTH]
    if not observations:
        return ""
    action = sample.rows("action")[0]
    now, then = (np.concatenate([sample.rows(n)[i] for n in observations], 1) for i in (0, 1))
    is_finite = np.isfinite(np.concatenate([action, now, then], 1)).all(1)
    if is_finite.sum() < 50:
        return ""
    absolute = _max_correlation(action[is_finite], then[is_finite]).mean()
    delta = _max_correlation(action[is_finite], (then - now)[is_finite]).mean()
    if absolute > 0.9 and absolute > delta + 0.1:
        return "absolute"
    return "delta" if delta > 0.7 and delta > absolute + 0.1 else ""


def _max_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the largest absolute correlation of each moving component of x with any component of y."""
    x, y = (v[:, v.std(0) > 1e-9] for v in (x, y))
    if not x.shape[1] or not y.shape[1]:
        return np.zeros(1)
    x, y = ((v - v.mean(0)) / v.std(0) for v in (x, y))
    return np.abs(x.T @ y / len(x)).max(1)


@dataclass(frozen=True)
class _ActionEffects:
    """Linear models of what actions do in two data sets. The model of one data set fails in the other data set.

    Attributes:
        models: For each data set, what a component of the action does to a component of the state, (A, D).
        shares: Fractions of the changes that a model explains, in its own data set and in the data set of the other
            model.
        moved: Components of the state that actions move.
    """

    models: tuple[np.ndarray, np.ndarray]
    second: tuple[np.ndarray, np.ndarray]  # actions and changes of the second data set
    shares: tuple[float, float]
    moved: np.ndarray

    @staticmethod
    def compare(one: _DatasetSample, other: _DatasetSample, name: str, is_absolute: bool) -> _ActionEffects | None:
        """Compares the two models. Returns None if they agree, or if there is too little to compare."""
        pairs = []
        for k in (one, other):
            (action, _), (now, then) = k.rows("action"), k.rows(name)
            is_finite = np.isfinite(np.concatenate([action, now, then], 1)).all(1)
            if is_finite.sum() < max(50, 5 * action.shape[1]):
                return None
            effect = then if is_absolute else then - now
            pairs.append([v - v.mean(0) for v in (action[is_finite], effect[is_finite])])
        models = [np.linalg.lstsq(a, d, rcond=1e-6)[0] for a, d in pairs]
        own = [_explained_shares(m, *p) for m, p in zip(models, pairs, strict=True)]
        moved = np.flatnonzero(np.all([(o > _FITS) & (o < 1.0 + 1e-9) & (np.square(p[1]).sum(0) > 1e-12)
                                       for o, p in zip(own, pairs, strict=True)], axis=0))
        if not len(moved):
            return None
        each = [_explained_shares(m, *p)[moved] for m, p in zip(models, pairs[::-1], strict=True)]
        cross = [float(e.mean()) for e in each]
        worst = int(np.argmin(cross))
        if cross[worst] >= _FAILS and min(e.min() for e in each) > _REVERSED:
            return None
        shares = float(own[worst][moved].mean()), max(cross[worst], 0.0)
        return _ActionEffects((models[0], models[1]), (pairs[1][0], pairs[1][1]),
                              shares if worst == 0 else shares[::-1], moved)

    def corrections(self, feature: Feature) -> list[Operation]:
        """Returns the changes of sign, scale and order after which the actions of the second data set fit the first.

        The first model `a` and the second model `b` satisfy ``b = p @ a`` with a matrix p (A, A), which says what each
        component of the second does in terms of the first: a sign, a gain or another component.
        """
        a, b = (model[:, self.moved] for model in self.models)
        if np.linalg.matrix_rank(a, 1e-3 * np.abs(a).max()) < len(a):
            return []
        p = b @ np.linalg.pinv(a)
        target = np.abs(p).argmax(1)  # the component of the first that each of the second is
        gain = p[np.arange(len(p)), target]
        if sorted(target) != list(range(len(p))):
            return []
        exact = np.zeros_like(p)
        exact[np.arange(len(p)), target] = gain = np.where(np.abs(np.abs(gain) - 1) < _EXACT, np.sign(gain), gain)
        action, effect = self.second
        if (np.abs(p - exact).max(1) > _EXACT * np.abs(gain)).any() or (
                _explained_shares(self.models[0], action @ exact, effect)[self.moved] < _FITS).any():
            return []
        flipped = np.flatnonzero(gain == -1)
        labels = component_labels(feature, range(len(p)))
        operations: list[Operation] = []
        if len(flipped):
            components = None if len(flipped) == len(p) else component_labels(feature, flipped)
            operations.append(Scale("action", -1.0, components))
        operations += [Scale("action", float(f"{gain[i]:.3g}"), (labels[i],))
                       for i in np.flatnonzero(np.abs(gain) != 1)]
        order = target.argsort()  # which component of the second becomes each of the first
        for i in range(len(order)):
            if order[i] != i:
                operations.append(Swap("action", (labels[i], labels[order[i]])))
                order[order == i] = order[i]
        return operations


def _explained_shares(model: np.ndarray, action: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Returns the fraction of the variance of each effect component that a linear model of actions explains, (D,)."""
    total = np.square(effect).sum(0)
    return 1 - np.square(effect - action @ model).sum(0) / np.where(total > 1e-12, total, np.inf)


def _reference_frame(sample: _DatasetSample) -> str:
    """Returns the reference frame of the actions, if the names of their components or the metadata tell it."""
    first = sample.data[0].metadata if len(sample.data) else {}
    stated_frame = sample.data.metadata.get("action_frame") or first.get("action_frame")
    words = [str(stated_frame)] if stated_frame else list(sample.features["action"].names or ())
    frames = {_FRAMES[w] for n in words for w in re.split(r"[._/\s-]+", n.lower()) if w in _FRAMES}
    return frames.pop() if len(frames) == 1 else ""
