"""Full runs of randomly drawn claims, to measure the rate of records that no longer agree with the code.

Probes do not see effects of long training only. A spot check does, and its rate of disagreement is published.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..core import UserError
from ..evaluate.stats import Interval, clopper_pearson
from ..files import read_json, write_json
from .base import Claim, MissingRequirement
from .records import CLAIMS_FOLDER, figures_path, find_claim, missing_requirements, provenance, record_path
from .runner import judge_figures, run_figures

SPOT_CHECKS = CLAIMS_FOLDER / "spot_checks.json"
LogFunction = Callable[[str], None]


@dataclass(frozen=True)
class SpotCheck:
    """One claim that was run again in full.

    Attributes:
        name: The claim.
        date: Of this run.
        commit: Of the code.
        recorded: The verdict of the record.
        found: The verdict of this run.
        largest_difference: Between a figure of this run and the stored one, relative to the largest stored figure of
            its measure. Infinite if their number differs.
        seconds: CPU seconds that the run took.
    """

    name: str
    date: str
    commit: str | None
    recorded: str
    found: str
    largest_difference: float
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the verdict is the recorded one."""
        return self.recorded == self.found


def draw_claims(entries: Sequence[Mapping], budget: float, rng: np.random.Generator) -> list[str]:
    """Draw claims at random that together fit the budget by their recorded seconds.

    Args:
        entries: Of `records.list_claims`.
        budget: Seconds.
        rng: Source of the draw.

    Returns:
        Names in the order drawn. A claim that does not fit what is left is passed over.
    """
    recorded, drawn, left = [e for e in entries if e["verdict"] != "not run"], [], budget
    for i in rng.permutation(len(recorded)):
        if recorded[i]["seconds"] <= left:
            drawn.append(recorded[i]["name"])
            left -= recorded[i]["seconds"]
    return drawn


def check_record(claim: Claim, log: LogFunction = lambda text: None) -> SpotCheck:
    """Run a claim in full, without anything kept from earlier runs, and compare with its record."""
    began, origin = time.process_time(), provenance()
    with tempfile.TemporaryDirectory() as folder:
        figures, _ = run_figures(claim, Path(folder), log)
    stored, record = read_json(figures_path(claim.name)), read_json(record_path(claim.name))
    return SpotCheck(claim.name, origin["date"], origin["commit"], record["verdict"],
                     judge_figures(claim, figures)["verdict"], largest_difference(stored, figures),
                     round(time.process_time() - began, 1))


def check_records(
    names: Iterable[str], budget: float, log: LogFunction = lambda text: None
) -> Iterator[SpotCheck]:
    """Check records one after the other; none starts after the budget is spent."""
    began = time.monotonic()
    for name in names:
        claim = find_claim(name)
        if time.monotonic() - began >= budget:
            log(f"{name}: not checked, the budget is spent")
        elif lacks := missing_requirements(claim):
            log(f"{name}: cannot run here, needs {', '.join(lacks)}")
        else:
            try:
                yield check_record(claim, log)
            except MissingRequirement as error:
                log(f"{name}: cannot run here: {error}")


def largest_difference(stored: Mapping, now: Mapping) -> float:
    """The largest difference of two sets of figures, relative to the largest stored value of each measure."""
    found = [0.0]
    for part, arms in stored.items():
        for arm, measures in arms.items():
            for measure, values in measures.items():
                x, y = np.asarray(values, float), np.asarray(now[part][arm][measure], float)
                if x.shape != y.shape:
                    return float("inf")
                found.append(float(np.abs(x - y).max()) / max(float(np.abs(x).max()), 1e-12))
    return max(found)


def save(checks: Sequence[SpotCheck], path: Path = SPOT_CHECKS) -> None:
    """Add checks to those that are published."""
    write_json(path, [*_stored(path), *map(asdict, checks)])


def published(path: Path = SPOT_CHECKS) -> list[SpotCheck]:
    """All checks so far."""
    return [SpotCheck(**c) for c in _stored(path)]


def _stored(path: Path) -> list[dict]:
    try:
        return read_json(path)
    except (UserError, OSError):
        return []


def disagreement(checks: Sequence[SpotCheck]) -> Interval:
    """The rate of verdicts that a full run did not confirm, with its Clopper-Pearson interval."""
    return clopper_pearson(sum(not c.agrees for c in checks), len(checks))
