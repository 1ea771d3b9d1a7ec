"""Findings of an audit, with their location and remedy, and scores of episodes and steps."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core import Feature, UserError
from ..data.corrections import Component, Reorder, Scale, Shift, Swap
from ..data.episode import Dataset
from ..data.formats.parts.column_names import format_list
from ..data.operations import Operation
from ..hints import command_line, pluralize


@dataclass(frozen=True)
class Location:
    """The location of a finding, as precisely as it is known.

    Attributes:
        file: Path of the file, relative to the data set.
        feature: Name of the column, or of the array in the file.
    """

    file: str | None = None
    episode: int | None = None
    step: int | None = None
    feature: str | None = None

    def __str__(self) -> str:
        parts = [self.file, None if self.episode is None else f"episode {self.episode}",
                 None if self.step is None else f"step {self.step}", self.feature]
        return ", ".join(p for p in parts if p is not None)


@dataclass(frozen=True)
class Finding:
    """One result of an audit.

    Attributes:
        code: Kind of the finding in kebab-case, such as "not-finite".
        severity: "error": the files contradict themselves, or a reader would return values that were never recorded.
            "warning" and "note": judgments of quality.
        where: Where it was found; the first place if there are several.
        episodes: All episodes with this problem, if there are several.
        correction: Options of `understudy view make` that correct it, such as ("--shift", "action=-3").
    """

    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    remedy: str
    where: Location = field(default_factory=Location)
    episodes: tuple[int, ...] = ()
    correction: tuple[str, ...] = ()


def finding_of_episodes(code: str, severity: Literal["error", "warning", "note"], episodes: Iterable[int], text: str,
                        remedy: str, feature: str | None = None) -> Finding:
    """Builds one finding about several episodes. Its message counts and lists the episodes."""
    numbers = tuple(map(int, episodes))
    return Finding(code, severity, f"{pluralize(len(numbers), 'episode')} {text}: {format_list(numbers)}", remedy,
                   Location(episode=numbers[0], feature=feature), numbers)


def finding_from_error(
    error: UserError, path: Path, columns: Iterable[str] = (), code: str = "cannot-be-read"
) -> Finding:
    """Turns the error of a reader into a finding, with the file, episode, step and column that the error names.

    Args:
        path: The data set. The finding names files relative to it.
        columns: Columns of the data set. The longest one that the error names is the feature of the finding.
    """
    place = str(error.where or "")
    file = place.split(", ")[0]
    try:
        file = Path(file).relative_to(path).as_posix()
    except ValueError:
        file = Path(file).name if file else None
    episode, step = (re.search(rf"\b(?:{words}) (\d+)", place) for words in ("episode", "step|frame|row"))
    column = max((c for c in columns if c in place), key=len, default=None)
    return Finding(code, "error", error.problem, error.hint or "restore it from a copy",
                   Location(path.name if file in (None, ".") else file, int(episode[1]) if episode else None,
                            int(step[1]) if step else None, column))


def is_numeric(feature: Feature) -> bool:
    """Returns whether the components are quantities, and not the cells of a map (H, W, C).

    Many cells of a map never change, many are equal, and they have no unit.
    """
    return feature.kind == "vector" and len(feature.shape) < 3


def view_options(operations: Iterable[Operation]) -> tuple[str, ...]:
    """Returns the options of `understudy view make` that do the same as these operations, such as shift or scale."""
    options: list[str] = []
    for one in operations:
        if isinstance(one, Shift):
            options += ["--shift", f"{one.column}={one.steps}"]
        elif isinstance(one, Reorder):
            options += ["--reorder", f"{one.column}={','.join(map(str, one.components))}"]
        elif isinstance(one, (Scale, Swap)):
            part = one.column + (f"[{','.join(map(str, one.components))}]" if one.components else "")
            by = "" if isinstance(one, Swap) else one.by if isinstance(one.by, str) else f"{one.by:.17g}"
            options += ["--swap", part] if not by else ["--sign", part] if by == "-1" else ["--scale", f"{part}={by}"]
    return tuple(options)


def correction_command(data: Dataset, correction: Sequence[str]) -> str:
    """Returns the command that makes a view of the data set with these options."""
    return f"{command_line('view', 'make', data.metadata.get('path', 'DATA'), *correction, '--out')} VIEW"


def component_labels(feature: Feature, numbers: Iterable[int]) -> tuple[Component, ...]:
    """Returns the names of components as operations use them, or their numbers if names are missing or repeat."""
    is_named = len(set(feature.names or ())) == feature.size
    return tuple(component_names(feature)[i] if is_named else int(i) for i in numbers)


def component_names(feature: Feature) -> list[str]:
    """Returns the names of the components of a column, or their numbers if they have no names."""
    return [str(name) for name in feature.names or range(feature.size)]


class Score(ABC):
    """A frozen dataclass that rates episodes. Higher is better. Each subclass names its source (paper, year)."""

    @abstractmethod
    def __call__(self, data: Dataset) -> np.ndarray:
        """Rates episodes: one number per episode, (E,). NaN if the score is not defined for the episode."""


class StepScore(Score):
    """A score that also rates each step. The score of an episode is the mean over its steps."""

    @abstractmethod
    def score_steps(self, data: Dataset) -> Sequence[np.ndarray]:
        """Rates steps: one array (T,) per episode."""

    def __call__(self, data: Dataset) -> np.ndarray:
        return self.of_episodes(self.score_steps(data))

    def of_episodes(self, step_scores: Sequence[np.ndarray]) -> np.ndarray:
        """The score of each episode, (E,), computed from the scores of its steps."""
        return np.array([np.nanmean(s) if np.isfinite(s).any() else np.nan for s in step_scores])


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        findings: All findings, errors first.
        scores: Values of each score by its name, one per episode, (E,).
        lowest_steps: The step of each episode at which a score is lowest, (E,), for scores of steps. -1 for none.
        n_episodes: Number of episodes. None if not all of them can be read.
    """
    findings: tuple[Finding, ...]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    lowest_steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    n_episodes: int | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return not any(f.severity == "error" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as `understudy audit --json` prints it."""
        return {"ok": self.ok, "findings": [asdict(f) for f in self.findings],
                "scores": {name: np.asarray(v, float).tolist() for name, v in self.scores.items()}}
