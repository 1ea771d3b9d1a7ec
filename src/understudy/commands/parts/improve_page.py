"""Writes the page of understudy improve: what each round cost and gained, and what was corrected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...data.episode import Episode
    from ...evaluate.plots import Figure
    from ...evaluate.report import Content, Section, Table

    FigureParts = tuple[str, Figure, str]  # title, figure, caption

LONGEST = 10  # corrections on the page


@dataclass(frozen=True)
class Outcome:
    """What a policy reached after a number of rounds, as success or mean return, with its interval.

    Args:
        n_rounds: Number of rounds that it was trained on.
    """

    n_rounds: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class CorrectedSteps:
    """Consecutive steps at which the supervisor acted, a correction.

    Args:
        round: Number of the round, from 1.
        episode: Number of the episode in its round, from 0.
        first: The first of its steps.
        change: The component of the action that the supervisor changed most, and by how much on average. Empty if
            actions are classes.
    """

    round: int
    episode: int
    first: int
    steps: int
    change: str
    success: bool | None


def corrections_of(run: Path) -> list[CorrectedSteps]:
    """Returns the corrections in the collected episodes of a run, the longest first."""
    from ...data.formats import open_dataset
    from ...improve.collection import round_folders

    corrections = [correction for number, folder in enumerate(round_folders(run / "collection"))
                   for i, episode in enumerate(open_dataset(folder / "episodes.npz"))
                   for correction in _corrections_in(number + 1, i, episode)]
    return sorted(corrections, key=lambda c: -c.steps)


def _corrections_in(number: int, index: int, episode: Episode) -> Iterator[CorrectedSteps]:
    from ...improve.gates import INTERVENTION

    if INTERVENTION not in episode.steps:
        return
    acted = np.concatenate([[False], np.asarray(episode.steps[INTERVENTION])[:len(episode)], [False]]).astype(int)
    change = np.diff(acted)
    for first, end in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
        yield CorrectedSteps(number, index, int(first), int(end - first), _change(episode, slice(first, end)),
                         episode.metadata.get("success"))


def _change(episode: Episode, steps: slice) -> str:
    """Returns the component in which policy and supervisor differ most, relative to the supervisor's spread."""
    from ...improve.gates import POLICY_ACTION, SUPERVISOR_ACTION

    feature = episode.features()["action"]
    if feature.kind == "discrete" or not {POLICY_ACTION, SUPERVISOR_ACTION} <= set(episode.steps):
        return ""
    policy, supervisor = (np.asarray(episode.steps[name], float)[:len(episode)].reshape(len(episode), -1)
                          for name in (POLICY_ACTION, SUPERVISOR_ACTION))
    difference = (supervisor - policy)[steps].mean(0)
    i = int(np.argmax(np.abs(difference) / np.maximum(supervisor.std(0), 1e-6)))
    number = f"{difference[i]:+.3g}".replace("-", "\N{MINUS SIGN}")
    return f"{feature.names[i] if feature.names else f'action[{i}]'} {number}"


def _correction_sections(run: Path) -> list[Section]:
    """Builds the section on corrections. Empty if the supervisor never acted."""
    from ...evaluate.report import Details, Section, Table

    corrections = corrections_of(run)
    if not corrections:
        return []
    rows = tuple((c.round, c.episode, f"{c.first} to {c.first + c.steps - 1}", c.steps, c.change,
                  {True: "success", False: "failure"}.get(c.success, "")) for c in corrections)
    names = ("round", "episode", "at steps", "steps", "most changed, on average", "the episode ended in")
    contents: list[Content] = [Table(names, rows[:LONGEST])]
    if len(rows) > LONGEST:
        contents.append(Details(f"{len(rows) - LONGEST} shorter ones", (Table(names, rows[LONGEST:]),)))
    return [Section("What was corrected", tuple(contents), "Consecutive steps at which the supervisor acted, the "
                    "longest first. The change is the action of the supervisor minus that of the policy.")]


def write_improvement_page(path: Path, title: str, run: Path, rounds: Sequence[dict[str, Any]], table: Table,
                           figures: Sequence[FigureParts], verdict: Sequence[str]) -> None:
    """Writes the page of a run that was improved."""
    from ...evaluate import plots
    from ...evaluate.report import Figures, Section, write_page

    shares = [(f"round {row['round'] + 1}", 100 * row.get("round/acted", 0) / row["round/steps"], None)
              for row in rounds]
    if any(share for _, share, _ in shares):
        figures = [*figures, ("Steps at which the supervisor acted", plots.bars(shares, "percent"),
                              "Percent of all steps of the round. A policy that improves needs less of it.")]
    write_page(path, title, [Section("Rounds", (Figures(tuple(figures)), table)), *_correction_sections(run)],
               verdict=verdict)


def seconds_of(run: Path) -> list[tuple[float, float]]:
    """Returns how many seconds a person acted and watched in each round. 0 where no person took part."""
    from ...data.formats import open_dataset
    from ...improve.collection import round_folders

    episodes = [open_dataset(folder / "episodes.npz") for folder in round_folders(run / "collection")]
    return [(sum(e.metadata.get("seconds_acted", 0.0) for e in data),
             sum(e.metadata.get("seconds_watched", 0.0) for e in data)) for data in episodes]


def minutes_of(run: Path) -> list[tuple[str, str]]:
    """Returns how long a person acted and watched in each round, in minutes and seconds."""
    return [(_clock(acted), _clock(watched)) for acted, watched in seconds_of(run)]


def _clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def cost_figures(run: Path, rounds: Sequence[dict[str, Any]], outcomes: Mapping[str, Sequence[Outcome]], unit: str,
                 caption: str) -> list[FigureParts]:
    """Draws success or mean return against the steps of the supervisor, and against the minutes of a person.

    Args:
        outcomes: By the name of a curve.
        unit: What is measured, such as "success", which is shown in percent.
    """
    from ...evaluate import plots
    from ...improve.collection import COSTS

    scale, y = (100, plots.Axis("success (%)", 0, 100)) if unit == "success" else (1, plots.Axis(unit))
    figures: list[FigureParts] = []
    for title, name, costs in (
            ("steps of the supervisor", "steps acted, labeled or watched",
             [sum(row.get(f"round/{cost}", 0) for cost in COSTS) for row in rounds]),
            ("minutes of the person", "minutes acted or watched", [sum(times) / 60 for times in seconds_of(run)])):
        if not any(costs):
            continue
        series, bands = {}, {}
        for curve, points in outcomes.items():
            series[curve] = [sum(costs[:p.n_rounds]) for p in points], [scale * p.estimate for p in points]
            bands[curve] = [scale * p.low for p in points], [scale * p.high for p in points]
        figures.append((f"{unit.capitalize()} against {title}", plots.curves(
            series, plots.Axis(name), y, dots=True, bands=bands), caption))
    return figures
