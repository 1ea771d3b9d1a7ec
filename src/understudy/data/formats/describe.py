"""What a data set holds, and what about it deserves a second look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ...core import Feature, UserError, role
from ...files import read_json
from .. import video
from ..episode import Dataset

_STATS_MAY_DIFFER = 0.02  # of the standard deviation; float32 sums over a large set stay well below


def describe(data: Dataset) -> dict[str, Any]:
    """`understudy inspect --json`: {"format", "version", "episodes", "steps", "fps", "features": {name: {"dtype",
    "shape", "names"}}, "tasks", "warnings"}. Reads every number once, and no frames."""
    features = columns(data)
    return {
        "format": data.facts.get("format", "memory"), "version": data.facts.get("version", ""),
        "episodes": len(data), "steps": data.steps, "fps": data.fps,
        "features": {name: {"dtype": f.dtype, "shape": list(f.shape), "names": list(f.names) if f.names else None}
                     for name, f in features.items()},
        "tasks": list(dict.fromkeys(t for e in data for t in _tasks(e))),
        "warnings": [*data.facts.get("warnings", ()), *_warnings(data, features)],
    }


def columns(data: Dataset) -> dict[str, Feature]:
    """Its features; those of a recording without any episode are what it was to have."""
    from .base import Episodes

    empty = not len(data) and isinstance(data._episodes, Episodes)
    return dict(data._episodes.source.schema) if empty else data.features()


def ranges(data: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(lowest, mean, highest) of each component of the observations and actions that are numbers, by column, over
    the finite values."""
    found = {}
    for name, f in data.features().items():
        if f.kind in ("vector", "choice") and role(name) in ("observation", "action"):
            low, high = np.full(f.shape, np.inf), np.full(f.shape, -np.inf)
            total, count = np.zeros(f.shape), np.zeros(f.shape)
            for episode in data:
                values = np.asarray(episode.steps[name], np.float64)
                there = np.isfinite(values)
                low = np.minimum(low, np.where(there, values, np.inf).min(0, initial=np.inf))
                high = np.maximum(high, np.where(there, values, -np.inf).max(0, initial=-np.inf))
                total, count = total + np.where(there, values, 0.0).sum(0), count + there.sum(0)
            mean = np.divide(total, count, out=np.full(f.shape, np.nan), where=count > 0)
            found[name] = tuple(x.reshape(-1) for x in (low, mean, high))
    return found


def check_finite(data: Dataset, columns: Iterable[str] = ("action",)) -> None:
    """Raises UserError naming the file, episode, step and component of the first NaN or infinity."""
    for name in columns:
        for e, episode in enumerate(data):
            values = episode.steps[name]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                at = np.argwhere(~np.isfinite(values))[0]
                raise UserError(
                    f"expected finite numbers, found {values[tuple(at)]}",
                    where=f"{data.facts.get('path', 'data set')}, episode {e}, step {at[0]}, {_component(name, at)}",
                    do="correct the value, or leave the episode out")


def _component(name, at) -> str:
    return name + "".join(f"[{i}]" for i in at[1:])


def _tasks(episode) -> list[str]:
    if "task" not in episode.steps:
        return []
    column = episode.steps["task"]
    return [str(column[0])] if column.strides == (0,) else list(dict.fromkeys(map(str, column)))


def _warnings(data: Dataset, features: dict[str, Feature]) -> Iterator[str]:
    if not len(data):
        yield "no episodes"
        return
    lengths = np.array([len(e) for e in data])
    short = np.flatnonzero(lengths < 2)
    if len(short):
        yield f"{_count(len(short), 'episode')} of a single step: {_list(short)}"
    observed = [n for n in features if role(n) == "observation"]
    if observed and not any(len(data[0].steps[n]) > len(data[0]) for n in observed if features[n].kind != "image"):
        yield "no observation after the last action: what needs the next observation leaves out each last step"
    if data.fps is None:
        yield "the frame rate is not known"
    for name, f in features.items():
        if f.kind == "string" and role(name) == "action":
            yield f"{name}: text, which cannot be learned as an action; store numbers"
        if f.kind in ("vector", "choice") and name != "timestamp":
            yield from _numbers(data, name, f)
    if "timestamp" in features and data.fps is not None:
        yield from _times(data)
    source = lerobot_of(data)
    if source is not None:
        yield from short_videos(source)
        yield from _stored_stats(data, features, source)


def lerobot_of(data):
    """The LeRobot source that this is all of, if it is one."""
    from .base import Episodes
    from .lerobot_read import LeRobot

    found = data._episodes.source if isinstance(data._episodes, Episodes) else None
    return found if isinstance(found, LeRobot) and len(data) == len(found.lengths) else None


def short_videos(source) -> Iterator[str]:
    """A video cut short would otherwise show only when its frames are decoded."""
    for files, _ in source.index.videos.values():
        for file in dict.fromkeys(files):
            wanted = sum(int(n) for n, f in zip(source.lengths, files, strict=True) if f == file)
            if (found := video.count(source.path / file)) < wanted:
                yield f"{file}: expected {wanted} frames, found {found}: it is damaged, and cannot be trained on"


def _numbers(data, name, f) -> Iterator[str]:
    low, high, bad, first = np.full(f.shape, np.inf), np.full(f.shape, -np.inf), 0, ""
    for e, episode in enumerate(data):
        values = episode.steps[name]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            wrong = ~np.isfinite(values)
            at = np.argwhere(wrong)[0]
            first = first or f"{_component(name, at)} of episode {e}, step {at[0]}"
            bad += int(wrong.sum())
            values = np.where(wrong, np.nan, values)
        low, high = np.fmin(low, np.fmin.reduce(values, 0)), np.fmax(high, np.fmax.reduce(values, 0))
    if bad:
        yield f"{name}: {_count(bad, 'value')} not finite, the first is {first}"
    if role(name) in ("observation", "action") and data.steps > 1:
        still = np.flatnonzero((low == high).reshape(-1))
        if len(still):
            labels = [f.names[i] for i in still] if f.names else still
            change = "component of {} never changes" if len(still) == 1 else "components of {} never change"
            yield f"{name}: {len(still)} {change.format(f.size)}: {_list(labels)}"


def _times(data) -> Iterator[str]:
    steps, uneven = [], []
    for e, episode in enumerate(data):
        time = episode.steps["timestamp"].astype(np.float64)
        regular = np.arange(len(time)) / data.fps
        near = video.TOLERANCE + 2 * np.spacing(np.abs(time).astype(np.float32))
        off = np.flatnonzero(np.abs(time - regular) > near)
        steps.extend(np.diff(time))
        if len(off):
            uneven.append((e, int(off[0])))
    if not uneven:
        return
    typical = float(np.median(steps)) if steps else 0.0
    if typical > 0 and abs(typical * data.fps - 1) > 0.01:
        yield f"timestamps are {typical:.4g} s apart ({1 / typical:.4g} a second), fps says {data.fps:g}"
    else:
        e, step = uneven[0]
        yield f"timestamps of {_count(len(uneven), 'episode')} are uneven, the first at episode {e}, step {step}"


def _stored_stats(data, features, source) -> Iterator[str]:
    """meta/stats.json against the data."""
    file = source.path / "meta" / "stats.json"
    if not file.exists():
        return
    stored = read_json(file)
    for name, f in features.items():
        if f.kind != "vector" or name not in stored or not {"mean", "std"} <= set(stored[name]):
            continue
        total, squares, count = np.zeros(f.shape), np.zeros(f.shape), data.steps
        shift = data[0].steps[name][0].astype(np.float64)
        for episode in data:
            values = episode.steps[name][: len(episode)].astype(np.float64) - shift
            total, squares = total + values.sum(0), squares + np.square(values).sum(0)
        mean, std = total / count + shift, np.sqrt(np.maximum(squares / count - np.square(total / count), 0))
        said = {k: np.asarray(stored[name][k], np.float64).reshape(f.shape) for k in ("mean", "std")
                if np.size(stored[name][k]) == f.size}
        near = _STATS_MAY_DIFFER * std + 1e-5 * np.abs(mean) + 1e-8
        if len(said) < 2 or (np.isfinite(mean).all() and (
                (np.abs(said["mean"] - mean) > near).any() or (np.abs(said["std"] - std) > near).any())):
            yield f"{name}: meta/stats.json disagrees with the data; understudy does not use it"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _list(items) -> str:
    items = [str(i) for i in items]
    return ", ".join(items[:8]) + (", ..." if len(items) > 8 else "")
