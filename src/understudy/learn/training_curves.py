"""Metrics of a training run, and the evaluations of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import find_checkpoint, is_lerobot_checkpoint
from ..config import current_name
from ..core import role
from ..execute.wrappers import SkillWrapper
from ..files import read_json
from .run import IS_SUCCESS, Run, comparable_scores

LOSS, HELD_OUT_ERROR, SCORE = "loss", "validation/energy", "score"  # keys of metrics.jsonl


@dataclass(frozen=True)
class Curve:
    """One metric over the updates of a training.

    Args:
        steps: Number of updates before each value.
        values: The measured values. Values that are not finite are left out.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def at(self, step: int | None) -> float | None:
        """Returns the value after `step` updates, or None if there is none."""
        return self.values[self.steps.index(step)] if step in self.steps else None

    def smoothed(self) -> Curve:
        """Returns the moving average over 4% of the values, at least 5 of them."""
        half = max(2, round(0.02 * len(self.values)))
        value = np.pad(np.asarray(self.values, float), half, mode="edge")
        kernel = np.full(2 * half + 1, 1 / (2 * half + 1))
        return Curve(self.steps, tuple(np.convolve(value, kernel, "valid").tolist()))


@dataclass(frozen=True)
class TrainingCurves:
    """The metrics of one training run.

    Args:
        curves: Measurements by their key in metrics.jsonl, such as "loss", "validation/energy" and "score".
        last: Step of the last checkpoint.
        best: Step of the best checkpoint, if one was chosen.
        seconds: Time that the training took so far.
        data: Which data and held-out episodes the run has. Held-out errors can be compared if this is equal.
        evaluations: Lines of RUN/eval/*.jsonl, oldest first. Each has the key "where" in addition.
        of_latents: Whether held-out errors are errors of latents, and not of actions (see `method.has_latent_actions`).
        target: The column that the policy predicts.
    """

    folder: Path
    curves: Mapping[str, Curve]
    last: int | None
    best: int | None
    seconds: float | None
    data: str
    evaluations: tuple[Mapping[str, Any], ...] = ()
    of_latents: bool = False
    target: str = "action"

    @classmethod
    def load(cls, folder: Path | str) -> TrainingCurves:
        """Reads the metrics of a run, also given by one of its checkpoints. It may still be training."""
        checkpoint = find_checkpoint(folder)
        run = Run(checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint)
        lines = comparable_scores(run.read_metrics())
        places = run.named_checkpoints()
        provenance = checkpoint / "provenance.json"
        method = _read_method(checkpoint / "method.json")
        origin = read_json(provenance) if provenance.exists() else {}
        data = json.dumps([origin.get("data", {}).get("fingerprint"), origin.get("held_out")])
        steps = {name: int(Path(place).name) for name, place in places.items() if Path(place).name.isdigit()}
        return cls(run.folder, read_curves(lines), steps.get("last"), steps.get("best"),
                   max((line["seconds"] for line in lines if line.get("seconds") is not None), default=None), data,
                   tuple(_evaluations(run.folder / "eval")), _has_latent_actions(method),
                   (method.get("policy") or {}).get("target", "action"))

    @property
    def held_out_name(self) -> str:
        """The name of the error on held-out episodes."""
        return held_out_name(self.of_latents)

    @property
    def error_of(self) -> str:
        """What the held-out error measures: latents, actions or another column."""
        return "latents" if self.of_latents else "actions" if role(self.target) == "action" else repr(self.target)

    @property
    def chosen_by(self) -> str | None:
        """The metric that chose the best checkpoint."""
        return next((key for key in (SCORE, HELD_OUT_ERROR) if key in self.curves), None)

    @property
    def has_rising_error(self) -> bool:
        """Whether the error on held-out episodes is higher at the end than it was before."""
        held_out = self.curves.get(HELD_OUT_ERROR)
        return held_out is not None and held_out.values[-1] > min(held_out.values)

    def checkpoint_json(self, step: int | None) -> dict[str, Any] | None:
        """Returns where a checkpoint is, its held-out error and its score, as JSON."""
        if step is None:
            return None
        run = Run(self.folder)
        return {"checkpoint": str(run.checkpoint_path(step)), "step": step,
                **{name: self.curves[key].at(step) if key in self.curves else None
                   for name, key in (("validation", HELD_OUT_ERROR), ("score", SCORE))}}

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of this run in `understudy plot --json`."""
        return {
            "run": str(self.folder), "seconds": self.seconds, "last": self.checkpoint_json(self.last),
            "best": self.checkpoint_json(self.best), "chosen_by": self.chosen_by,
            "curves": {key: {"steps": list(c.steps), "values": list(c.values)} for key, c in self.curves.items()},
            "evaluations": [dict(e) for e in self.evaluations],
        }


def describe_checkpoint(run: Path) -> str | None:
    """Returns which checkpoint RUN, RUN/last or RUN/best stands for, and why, in one line. None for a checkpoint."""
    checkpoint = find_checkpoint(run)
    if checkpoint == run:
        return None
    if is_lerobot_checkpoint(checkpoint):
        return f"{run}: {checkpoint.relative_to(run)}, the last checkpoint"
    curves = TrainingCurves.load(run)
    step = int(checkpoint.name)
    merit = "the highest score in rollouts" if curves.chosen_by == SCORE else f"the lowest {curves.held_out_name}"
    if step != curves.last:
        reason = f"with {merit}; the last one is {curves.folder / 'last'}"
    elif step == curves.best:
        reason = f"the last one, which also has {merit}"
    elif curves.best is None:
        reason = "the last one"
    else:
        reason = f"the last one; {curves.folder / 'best'} has {merit}"
    return f"{run}: checkpoint {checkpoint.name}, {reason}"


def held_out_name(of_latents: bool) -> str:
    """Returns what the error on held-out episodes is called, that of latents or that of actions."""
    return f"error {'of latents ' if of_latents else ''}on held-out episodes"


def _read_method(path: Path) -> dict[str, Any]:
    """Reads a method.json as a document, without loading code of the method."""
    return read_json(path) if path.exists() else {}


def _has_latent_actions(method: Mapping[str, Any]) -> bool:
    """Returns whether the policy of a method.json chooses skills."""
    wrapper = method.get("wrapper") or {}
    return current_name(wrapper.get("$", "")) == f"{SkillWrapper.__module__}:{SkillWrapper.__qualname__}"


def read_curves(lines: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Returns the curve of every key in lines of metrics.jsonl."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in ("step", "seconds", IS_SUCCESS) and isinstance(value, (int, float)):
                points.setdefault(key, []).append((int(line["step"]), float(value)))
    return {key: Curve(*zip(*curve_points, strict=True)) for key, curve_points in points.items()}


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of the files in RUN/eval, without incomplete ones."""
    lines = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append({"where": file.stem, **json.loads(line)})
            except json.JSONDecodeError:
                continue
    return sorted(lines, key=lambda e: str(e.get("date")))
