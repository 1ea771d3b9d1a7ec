"""What a data set holds. What about it deserves a second look is said by audit/checks.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...core import UserError, role
from ..episode import Dataset


def describe(data: Dataset) -> dict[str, Any]:
    """`understudy inspect --json`: {"format", "version", "episodes", "steps", "fps", "features": {name: {"dtype",
    "shape", "names"}}, "tasks", "warnings"}, of which these are the warnings of its reader."""
    features = data.features() if len(data) else {}
    return {
        "format": data.facts.get("format", "memory"), "version": data.facts.get("version", ""),
        "episodes": len(data), "steps": data.steps, "fps": data.fps,
        "features": {name: {"dtype": f.dtype, "shape": list(f.shape), "names": list(f.names) if f.names else None}
                     for name, f in features.items()},
        "tasks": list(dict.fromkeys(t for e in data for t in _tasks(e))),
        "warnings": list(data.facts.get("warnings", ())),
        **{key: data.facts[key] for key in ("mapping", "topics") if key in data.facts},
    }


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
