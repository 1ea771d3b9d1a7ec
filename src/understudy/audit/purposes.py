"""Ranks the episodes that are worth a look for one purpose, such as outliers, with the evidence for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..hints import command_line
from .base import AuditReport

OUTLIER = 3.5  # robust deviations from the median, as Iglewicz and Hoaglin (1993) recommend
MAX_FRACTION = 0.2  # fraction of the episodes; a larger group is not called unusual
MIN_EPISODES = 8  # with fewer episodes, none is called unusual
# Codes of findings that are corrected without leaving an episode out.
_LABEL_CODES = ("end-missing", "label-unclear", "names-repeat", "resets", "sign-flips", "success-disagrees",
                "success-reward", "task-missing", "task-unknown")


@dataclass(frozen=True)
class Purpose:
    """A reason to look at episodes, such as outliers, and a score that is lowest in these episodes.

    Args:
        meaning: What it means that an episode is listed, and what to do.
        also: Scores that are named as further evidence. They do not change the order.
        min_change: Smallest distance from the median that counts, relative to the median.
    """

    name: str
    score: str
    meaning: str
    also: tuple[str, ...] = ()
    min_change: float = 0.0


FAULTY = "remove as faulty"
FAULTY_MEANING = "Checks found a defect in these episodes. Repair it as the finding says, or leave them out."
PURPOSES = (
    Purpose("unlike the others", "typicality", "No other episode has such states and actions. That is a mistake, or "
            "the only demonstration of something rare: look at them before you leave any out.",
            ("state-similarity", "action-consistency")),
    Purpose("acts differently", "action-consistency", "Other episodes act differently where these "
            "were. That is a mistake, or another way of doing the task, which some methods can represent.",
            ("typicality",)),
    Purpose("jerky", "smoothness", "Their actions change more abruptly than those of the others."),
    Purpose("slow", "brevity", "They take at least 1.5 times as many steps as usual.", ("motion",), min_change=0.5),
    Purpose("low return", "return", "Their rewards are lower than those of the others."),
)


@dataclass(frozen=True)
class Evidence:
    """The evidence for which an episode is ranked: a score or finding, and its value.

    Attributes:
        source: Name of the score, or code of the finding.
        usual: Median of the score over all episodes.
        deviations: Distance from the median in robust standard deviations. Negative below it.
        step: The step at which the score is lowest, or that the finding names.
    """

    source: str
    text: str
    value: float | None = None
    usual: float | None = None
    deviations: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class RankedEpisode:
    """An episode, and why it is listed."""

    episode: int
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Ranking:
    """Episodes that are listed for one purpose, the clearest first.

    Attributes:
        meaning: What it means, and what to do.
        command: Leaves exactly these episodes out. None if no command can.
    """

    name: str
    meaning: str
    episodes: tuple[RankedEpisode, ...]
    command: str | None

    def to_json(self) -> dict[str, Any]:
        """The ranking as `understudy audit --json` prints it."""
        return asdict(self)


def rank_episodes(report: AuditReport, path: Path | str, has_commands: bool = True) -> tuple[Ranking, ...]:
    """Ranks episodes for each purpose that any episode is listed for.

    An episode is listed for a score if its score is more than `OUTLIER` robust deviations below the median.

    Args:
        has_commands: Whether a command can open the data with no other options.
    """
    out, n_episodes = [], report.n_episodes if has_commands else None
    if faulty := _faulty_episodes(report):
        numbers = [e.episode for e in faulty]
        out.append(Ranking(FAULTY, FAULTY_MEANING, faulty, _deletion(path, FAULTY, numbers, n_episodes)))
    for purpose in PURPOSES:
        values = np.asarray(report.scores.get(purpose.score, ()), float)
        deviations = robust_deviations(values)
        low = [int(e) for e in np.argsort(deviations, kind="stable") if deviations[e] < -OUTLIER]
        usual = np.nanmedian(values) if low else 0.0
        low = [e for e in low if usual - values[e] >= purpose.min_change * abs(usual)]
        if not 0 < len(low) <= MAX_FRACTION * len(values):
            continue
        episodes = tuple(RankedEpisode(
            e, tuple(_score_evidence(report, name, e) for name in _sources(report, purpose, e))) for e in low)
        out.append(Ranking(purpose.name, purpose.meaning, episodes, _curation(path, purpose, values, low, n_episodes)))
    return tuple(out)


def typical_episodes(scores: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Returns the most typical episodes, to compare other episodes with. Empty if typicality is not known."""
    values = np.asarray(scores.get("typicality", ()), float)
    return [int(e) for e in np.argsort(-values, kind="stable")[:count] if np.isfinite(values[e])]


def robust_deviations(values: np.ndarray) -> np.ndarray:
    """Returns distances from the median, in units of the median absolute deviation of a normal distribution.

    Args:
        values: One number per episode, (E,).

    Returns:
        (E,), NaN where the value is NaN. Zeros if there are fewer than `MIN_EPISODES` values, or if they are all equal.

    References:
        Iglewicz and Hoaglin (1993), How to Detect and Handle Outliers.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < MIN_EPISODES:
        return np.where(np.isfinite(values), 0.0, np.nan)
    gap = values - np.median(finite)
    spread = 1.4826 * np.median(np.abs(gap[np.isfinite(gap)]))
    if not spread:  # more than half of the values are equal
        spread = 1.2533 * np.mean(np.abs(gap[np.isfinite(gap)]))
    return gap / spread if spread else gap


def _faulty_episodes(report: AuditReport) -> tuple[RankedEpisode, ...]:
    """Returns the episodes in which findings name a defect. Episodes with errors come first."""
    evidence_by_episode: dict[int, list[Evidence]] = {}
    for f in report.findings:  # errors first
        if f.severity == "note" or f.code in _LABEL_CODES:
            continue
        first = f.where.episode
        for e in f.episodes or (() if first is None else (first,)):
            step = f.where.step if e == first else None
            evidence_by_episode.setdefault(e, []).append(Evidence(f.code, f.message, step=step))
    return tuple(RankedEpisode(e, tuple(evidence)) for e, evidence in evidence_by_episode.items())


def _sources(report: AuditReport, purpose: Purpose, episode: int) -> list[str]:
    """Returns the score that ranks a purpose, and all further scores that are unusually low in the episode."""
    return [purpose.score, *(name for name in purpose.also if name in report.scores and robust_deviations(
        np.asarray(report.scores[name], float))[episode] < -OUTLIER)]


def _score_evidence(report: AuditReport, name: str, episode: int) -> Evidence:
    values = np.asarray(report.scores[name], float)
    value, usual = float(values[episode]), float(np.nanmedian(values))
    deviations = float(robust_deviations(values)[episode])
    step = int(report.lowest_steps[name][episode]) if name in report.lowest_steps else -1
    step_text = f", lowest at step {step}" if step >= 0 else ""
    return Evidence(name, f"{name} {value:.3g}, usually {usual:.3g} ({-deviations:.1f} deviations lower){step_text}",
                    value, usual, deviations, None if step < 0 else step)


def _curation(path: Path | str, purpose: Purpose, values: np.ndarray, low: list[int],
              n_episodes: int | None) -> str | None:
    """Returns the command that leaves out exactly these episodes, by score or by number."""
    keep = f"{(len(values) - len(low)) / len(values):.6g}"
    is_exact = np.isfinite(values).all() and int(float(keep) * len(values) + 0.5) == len(values) - len(low)
    if n_episodes is None or not is_exact:
        return _deletion(path, purpose.name, low, n_episodes)
    return command_line("curate", path, "--score", purpose.score, "--keep", keep, "--out", _view_name(purpose.name))


def _deletion(path: Path | str, name: str, numbers: list[int], n_episodes: int | None) -> str | None:
    if n_episodes is None or len(numbers) >= n_episodes:
        return None
    return command_line("view", "make", path, "--out", _view_name(name), "--delete", *sorted(numbers))


def _view_name(purpose: str) -> str:
    return f"without-{purpose.removeprefix('remove as ').replace(' ', '-')}.json"
