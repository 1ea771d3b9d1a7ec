"""Findings of a diagnosis, in the order in which they should be looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..audit.base import Location
from ..evaluate.stats import clopper_pearson
from ..files import replace_nonfinite

Level = Literal["fault", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note")

# A finding that explains other findings comes first: a policy that reads a wrong unit also leaves its data.
ORDER = (
    "no-held-out", "missing-column", "camera-size", "image-never-changes", "cameras-swapped", "color-order",
    "camera-differs", "observation-units", "action-units", "constant-sensor", "wrong-statistics",
    "relative-statistics", "tiny-spread", "treated-as-constant", "action-shift", "rate-differs", "limits-bind",
    "observation-noise", "sign-flip", "action-convention", "latency", "component-order", "action-scale",
    "calibration-drift",
    "wrong-checkpoint", "serving-skew", "averaged-ways", "chunk-too-long", "underfit", "overfit", "start-states",
    "decided-at-the-start", "novel-states", "success-drop", "last-action", "trials")


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
class Outcome:
    """How often a policy succeeds.

    Attributes:
        place: The environment of the evaluation that says so. None for the rollouts of the diagnosis.
        recorded: Successes and number of the recorded episodes that say whether they succeeded. None for none.
    """

    successes: int
    episodes: int
    place: str | None = None
    recorded: tuple[int, int] | None = None

    @property
    def is_below_data(self) -> bool:
        """Whether the policy surely succeeds less often than the demonstrations."""
        return self.recorded is not None and (
            clopper_pearson(self.successes, self.episodes).high < clopper_pearson(*self.recorded).low)

    @property
    def is_low(self) -> bool:
        """Whether the policy succeeds in less than half of the episodes, or surely less often than the demonstrations.
        """
        return 2 * self.successes < self.episodes or self.is_below_data

    def __str__(self) -> str:
        place = "" if self.place is None else f" of an evaluation in {self.place}"
        text = f"the policy succeeds in {self.successes} of {self.episodes} episodes{place}"
        return text + (", and {} of {} demonstrations succeeded".format(*self.recorded) if self.recorded else "")


@dataclass(frozen=True)
class NextStep:
    """What to try where no fault explains the failures. For the command see `RunFinding`."""

    text: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class RunDiagnosis:
    """The result of a diagnosis.

    Attributes:
        findings: The most important first.
        unchecked: What could not, each with the reason.
        outcome: How often the policy succeeds. None if nothing says so.
    """

    findings: tuple[RunFinding, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    outcome: Outcome | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no fault, and the policy does not fail."""
        return all(f.level != "fault" for f in self.findings) and not (self.outcome and self.outcome.is_low)

    @property
    def headline(self) -> str:
        """The result in a few sentences."""
        faults = [f for f in self.findings if f.level == "fault"]
        if faults:
            others = f", and {len(faults) - 1} more that may follow from it" if len(faults) > 1 else ""
            return f"Most important: {faults[0].code}{others}. Fix it first, and diagnose again."
        warnings = [f.code for f in self.findings if f.level == "warning"]
        read = f" Read the warning{'s' * (len(warnings) > 1)}: {', '.join(warnings)}." if warnings else ""
        if self.outcome is not None and self.outcome.is_low:
            text = str(self.outcome)
            return (f"{text[0].upper()}{text[1:]}, and no check explains it.{read} Nothing unusual was found in: "
                    f"{', '.join(self.checked)}.")
        if self.outcome is None:
            return f"No fault was found by these checks.{read} Whether the policy succeeds is not known."
        return f"No fault was found, and {self.outcome}.{read}"

    @property
    def next_steps(self) -> tuple[NextStep, ...]:
        """What to try where the policy fails and no fault explains it, the cheapest first."""
        if self.outcome is None or not self.outcome.is_low or any(f.level == "fault" for f in self.findings):
            return ()
        look = ("diagnose", "RUN", "--env", "ENV") if self.outcome.place is not None else (
            "eval", "RUN", "ENV", "--html", "report.html")
        return (NextStep("let the policy act, and compare what it observes and does with the data"
                         if self.outcome.place is not None else "look at its failures, and where they begin", look),
                NextStep("try other methods on the same data", ("choose", "DATA", "--env", "ENV", "--out", "trials")),
                NextStep("record more demonstrations, and train on all",
                         ("record", "ENV", "--out", "more", "--episodes", "50")))

    def to_json(self) -> dict[str, Any]:
        """The document of `understudy diagnose --json`."""
        outcome = None if self.outcome is None else asdict(self.outcome)
        return {"ok": self.ok, "headline": self.headline, "outcome": outcome,
                "findings": [f.to_json() for f in self.findings], "checked": list(self.checked),
                "unchecked": list(self.unchecked)}


def correct_data(option: str, value: str) -> tuple[str, ...]:
    """Builds the command that makes a corrected view of the data."""
    return ("view", "make", "DATA", option, value, "--out", "VIEW")


def correct_order(column: str, names: Sequence[str], order: Mapping[int, int]) -> tuple[str, ...]:
    """Builds the command that makes a view in which component i of a column is the recorded one order[i]."""
    if len(order) == 2:
        return correct_data("--swap", f"{column}[{','.join(names[i] for i in sorted(order))}]")
    return correct_data("--reorder", f"{column}=" + ",".join(str(order.get(k, k)) for k in range(len(names))))


def sort_findings(findings: Iterable[RunFinding]) -> tuple[RunFinding, ...]:
    """Sorts findings: faults first, and within a level in the order of `ORDER`."""
    return tuple(sorted(findings, key=lambda f: (LEVELS.index(f.level), ORDER.index(f.code))))
