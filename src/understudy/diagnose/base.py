"""Findings of a diagnosis, in the order in which they should be looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..audit.base import Location
from ..files import replace_nonfinite

Level = Literal["fault", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note")

# What explains the others comes first: a policy that reads a wrong unit also leaves its data.
ORDER = (
    "no-held-out", "missing-column", "camera-size", "cameras-swapped", "color-order", "camera-differs",
    "observation-units", "constant-sensor", "wrong-statistics", "relative-statistics", "tiny-spread", "action-shift",
    "rate-differs", "action-units", "limits-bind", "sign-flip", "action-convention", "latency", "component-order",
    "action-scale", "calibration-drift", "wrong-checkpoint", "serving-skew", "underfit", "overfit", "start-states",
    "novel-states", "success-drop", "last-action", "trials")


@dataclass(frozen=True)
class RunFinding:
    """One result of a diagnosis.

    Attributes:
        level: "fault": explains failures. "warning": may explain some. "note": good to know.
        healthy: Lowest and highest value of healthy runs. None for no bound.
        command: The arguments of the command to run, in which RUN, DATA and ENV stand for what is diagnosed.
    """

    code: str
    level: Level
    message: str
    value: float
    healthy: tuple[float | None, float | None]
    remedy: str
    command: tuple[str, ...] = ()
    where: Location = field(default_factory=Location)

    def describe_range(self) -> str:
        """The value and its healthy range."""
        low, high = self.healthy
        text = (f"at most {high:.3g}" if low is None else f"at least {low:.3g}" if high is None
                else f"{low:.3g} to {high:.3g}")
        return f"{self.value:.3g}, healthy: {text}"

    def to_json(self) -> dict[str, Any]:
        """An element of `findings` of `understudy diagnose --json`."""
        return replace_nonfinite(asdict(self))


@dataclass(frozen=True)
class RunDiagnosis:
    """The result of a diagnosis.

    Attributes:
        findings: The most important first.
        unchecked: What could not, each with the reason.
    """

    findings: tuple[RunFinding, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return all(f.level != "fault" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The document of `understudy diagnose --json`."""
        return {"ok": self.ok, "findings": [f.to_json() for f in self.findings], "checked": list(self.checked),
                "unchecked": list(self.unchecked)}


def sort_findings(findings: Iterable[RunFinding]) -> tuple[RunFinding, ...]:
    """Faults first, and within a level in the order of `ORDER`."""
    return tuple(sorted(findings, key=lambda f: (LEVELS.index(f.level), ORDER.index(f.code))))
