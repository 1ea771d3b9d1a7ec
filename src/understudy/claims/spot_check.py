"""Full runs of randomly drawn claims, to measure the rate of records that no longer agree with the code.

Probes do not see effects that only long training shows. A spot check does, and its rate of disagreement is published.
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
from .folder import claims_folder
from .records import figures_path, find_claim, missing_requirements, provenance, record_path
from .runner import Cells, judge_figures, run_figures

LogFunction = Callable[[str], None]


@dataclass(frozen=True)
class SpotCheck:
    """One claim that was run again in full.

    Attributes:
        largest_difference: Largest difference of a value of this run from the stored one, relative to the largest
            stored value of its measure. Infinite if their number differs.
        seconds: CPU seconds that the run took.
    """

    name: str
    date: str
    commit: str | None
    recorded_verdict: str
    new_verdict: str
    largest_difference: float
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the verdict is the recorded one."""
        return self.recorded_verdict == self.new_verdict


def draw_claims(entries: Sequence[Mapping], budget: float, rng: np.random.Generator) -> list[str]:
    """Draws claims at random that together fit the budget by their recorded seconds.

    Args:
        entries: Entries of `records.list_claims`.

    Returns:
        Names in the order drawn. A claim that does not fit the remaining budget is skipped.
    """
    recorded, drawn, remaining_budget = [e for e in entries if e["verdict"] != "not run"], [], budget
    for i in rng.permutation(len(recorded)):
        if recorded[i]["seconds"] <= remaining_budget:
            drawn.append(recorded[i]["name"])
            remaining_budget -= recorded[i]["seconds"]
    return drawn


def check_record(claim: Claim, log: LogFunction = lambda text: None) -> SpotCheck:
    """Runs a claim in full, without cells of earlier runs, and compares the result with its record."""
    began, origin = time.process_time(), provenance()
    with tempfile.TemporaryDirectory() as folder:
        figures, _ = run_figures(claim, Cells(Path(folder)), log)
    stored, record = read_json(figures_path(claim.name)), read_json(record_path(claim.name))
    return SpotCheck(claim.name, origin["date"], origin["commit"], record["verdict"],
                     judge_figures(claim, figures)["verdict"], largest_difference(stored, figures),
                     round(time.process_time() - began, 1))


def check_records(
    names: Iterable[str], budget: float, log: LogFunction = lambda text: None
) -> Iterator[SpotCheck]:
    """Checks records one after the other. None starts after the budget is spent.

    Args:
        log: Called with a line per cell, and per claim that is not checked.

    Yields:
        The checks. Claims that cannot run on this machine have none.
    """
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
    """The largest difference between two sets of measurements, relative to the largest stored value of each measure.

    Args:
        stored: Measurements of each part, as the record stores them.
        now: Measurements of another run of the same claim, perhaps without a control.

    Returns:
        The relative difference. Infinite if the number of values differs.
    """
    differences = [0.0]
    for part, arms in stored.items():
        if part not in now:  # a control whose rule does not hold
            continue
        for arm, measures in arms.items():
            for measure, values in measures.items():
                x, y = np.asarray(values, float), np.asarray(now[part][arm][measure], float)
                if x.shape != y.shape:
                    return float("inf")
                differences.append(float(np.abs(x - y).max()) / max(float(np.abs(x).max()), 1e-12))
    return max(differences)


def save(checks: Sequence[SpotCheck], path: Path | None = None) -> None:
    """Adds checks to the published ones.

    Args:
        path: None: spot_checks.json in the folder of the claims.
    """
    path = path or claims_folder() / "spot_checks.json"
    write_json(path, [asdict(c) for c in (*published(path), *checks)])


def published(path: Path | None = None) -> list[SpotCheck]:
    """All published checks, of `path` or of the folder of the claims."""
    try:
        return [SpotCheck(**check) for check in read_json(path or claims_folder() / "spot_checks.json")]
    except (UserError, OSError):
        return []


def disagreement(checks: Sequence[SpotCheck]) -> Interval:
    """Rate of verdicts that a full run did not confirm, with its Clopper-Pearson interval."""
    return clopper_pearson(sum(not c.agrees for c in checks), len(checks))
