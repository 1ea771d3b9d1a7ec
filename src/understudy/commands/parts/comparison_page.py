"""Writes the page of understudy compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...envs.base import Env
from ...evaluate import plots, report
from ...evaluate.comparison import Comparison
from ...evaluate.evaluation import Evaluation

MAX_EPISODES = 20  # number of drawn episodes of each policy


def write_comparison_page(path: Path, c: Comparison, runs: Mapping[str, Evaluation], env: Env | None = None,
                          commands: Sequence[tuple[str, str]] = ()) -> None:
    """Writes a page about several policies on the same starts: how good each is, and which can be told apart.

    Args:
        runs: For each policy or method, an evaluation. Its first episodes are drawn.
        env: The environment, which has the map. Without it, only what cameras saw is drawn.
        commands: What to do next: pairs of a command and what it does.
    """
    success, shared, places = c.metric == "success", c.letters, c.ranks
    each = [(f"{c.names[i]}  ({shared[i]})", c.estimates[i], f"letters {shared[i]}") for i in c.ranking]
    rows = tuple((c.names[i], *((round(100 * v, 1) if success else v) for v in (
        c.estimates[i].estimate, c.estimates[i].low, c.estimates[i].high)), shared[i],
        f"{places[i].low}" if places[i].low == places[i].high else f"{places[i].low} to {places[i].high}")
        for i in c.ranking)
    table = report.Table(("", "success (%)" if success else "mean return", "low", "high", "letters", "rank"), rows)
    figures = [("Success rate of each", plots.success_bars(each), f"Fraction of {c.episodes} episodes; the line is the "
                f"{c.level:.0%} interval. Two that share a letter cannot be told apart: the data do not show "
                "which is better.")] if success else []
    verdicts = {"first": lambda p: f"{c.names[p.a]} is better", "second": lambda p: f"{c.names[p.b]} is better",
                None: lambda p: "cannot tell"}
    pairs = [(f"{c.names[p.a]} minus {c.names[p.b]}", p.comparison.difference, p.comparison.low, p.comparison.high,
              p.better is not None) for p in c.pairs]
    figures.append(("Two by two", plots.differences(pairs, percent=success),
                    f"{'Percentage points' if success else 'Return'}, {c.level:.0%} intervals. A full dot: told apart; "
                    "a ring: cannot tell."))
    scale = 100 if success else 1
    numbers = report.Table(("", "difference", "low", "high", "p", "adjusted p", ""), tuple(
        (name, scale * d, scale * low, scale * high, p.comparison.p_value, p.adjusted_p_value, verdicts[p.better](p))
        for (name, d, low, high, _), p in zip(pairs, c.pairs, strict=True)))
    sections = [report.Section("On the same starts", (report.Figures(tuple(figures)), table),
                               f"{c.episodes} episodes in {c.env}"
                               f"{f', {c.seeds} training seeds of each' if c.seeds > 1 else ''}."),
                *_episode_sections(c, runs, env),
                report.Section("Which differences are certain", (numbers,), "An interval is about its pair alone. With "
                               "many pairs, some differ by chance, so the p of each pair is raised to allow for all of "
                               "them: the adjusted p (Holm's method). Two are told apart where the interval leaves out "
                               f"0 and the adjusted p is below {1 - c.level:.2g}.")]
    if more := c.next_steps():
        sections.append(report.Section("What it would take to tell the others apart",
                                       tuple(map(report.Paragraph, more)),
                                       "So that the difference is found four times in five."))
    sections += report.next_step_section({}, commands)
    kind = "two-level intervals over training seeds and starts" if c.seeds > 1 else (
        "Clopper–Pearson intervals; differences: Tango's score interval and the exact McNemar p" if success else
        "bootstrap intervals and a sign-flip test")
    report.write_page(path, f"{len(c.names)} {'methods' if c.seeds > 1 else 'policies'} in {c.env}", sections,
                      verdict=c.verdict_parts(), footer=f"{c.metric.capitalize()}: {kind}; adjusted by Holm.")


def _episode_sections(c: Comparison, runs: Mapping[str, Evaluation], env: Env | None) -> list[report.Section]:
    """Builds the sections with the first episodes of each policy: trajectories on a map, and camera frames."""
    n = min(c.episodes, MAX_EPISODES)
    first = {name: replace(e, episodes=e.episodes[:n]) for name, e in runs.items()}
    seed = " of its first training seed" if c.seeds > 1 else ""
    drawn = f"The first {n} episodes of each{seed}" if n > 1 else f"The first episode of each{seed}"
    figures = report.trajectory_figures(first, env)
    maps = [report.Section("What they did", (report.Figures(tuple(figures)),), f"{drawn}. {report.LINES}")]
    return [*(maps if figures else ()), *report.camera_sections(first)]
