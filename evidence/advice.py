"""Sentences of advice: each states one comparison with the plainest rival, and is judged on new seeds in two worlds."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from understudy.core import UserError
from understudy.evaluate.multiple_comparisons import holm

from .tables import LEVEL, Comparison, Table, all_tables, format_figure

FILE = Path(__file__).parent / "advice.toml"
N_PLANNED = 16  # sentences, for which Holm's method corrects also while fewer are written
MADE = "<!-- made by python -m evidence pages: change the source, not this page -->"


@dataclass(frozen=True)
class Sentence:
    """One sentence of advice.

    Attributes:
        sentence: What to do, as a practitioner reads it.
        topics: By which commands look it up: see `understudy.advice.advice_about`.
        arm: The arm that follows the advice, the same in both worlds.
        rival: The plainest rival.
        worlds: Names of the two tables. The first is where the comparison was found.
        measure: The measure that is compared.
        margin: None: the arm must be better. A number: it must not be worse than the rival by more.
        tables: All tables by name.
    """

    name: str
    sentence: str
    arm: str
    rival: str
    worlds: tuple[str, str]
    measure: str = "success"
    margin: float | None = None
    topics: tuple[str, ...] = ()
    tables: Mapping[str, Table] | None = None

    @property
    def is_judged(self) -> bool:
        """Whether both worlds have figures."""
        return all((self.tables or {})[world].path.is_file() for world in self.worlds)

    def comparisons(self) -> list[Comparison]:
        """The comparison of each world."""
        return [(self.tables or {})[world].compare(self.arm, self.rival, self.measure) for world in self.worlds]

    def p_value(self) -> float:
        """The larger p-value of the two worlds, of paired t-tests over training seeds.

        With a margin, each is the larger of two one-sided tests.
        """
        return max(self._p_value((self.tables or {})[world]) for world in self.worlds)

    def _p_value(self, table: Table) -> float:
        d = np.subtract(table.figures(self.arm, self.measure), table.figures(self.rival, self.measure))
        d = -d if table.family.measure(self.measure).lower else d
        if self.margin is None:
            return paired_p_value(d)
        return max(paired_p_value(d + self.margin, one_sided=True), paired_p_value(self.margin - d, one_sided=True))


def paired_p_value(d: np.ndarray, *, one_sided: bool = False) -> float:
    """The p-value of a positive mean of paired differences. It is 1 if the mean is not positive."""
    if d.mean() <= 0:
        return 1.0
    error = d.std(ddof=1) / len(d) ** 0.5
    p = float(stats.t.sf(d.mean() / error, len(d) - 1)) if error else 0.0
    return p if one_sided else 2 * p


def sentences() -> dict[str, Sentence]:
    """All sentences by name.

    Raises:
        UserError: A sentence names no rival, or a world that is no table.
    """
    tables, by_name = all_tables(), {}
    for name, entry in tomllib.loads(FILE.read_text(encoding="utf-8")).items():
        if not entry.get("rival"):
            raise UserError(f"the sentence {name!r} has no rival", where=FILE, hint='name the arm: rival = "..."')
        if unknown := [world for world in entry["worlds"] if world not in tables]:
            raise UserError(f"the sentence {name!r} names no table: {', '.join(unknown)}", where=FILE,
                            hint="describe it in a family.toml of evidence/families")
        lists = {key: tuple(entry.get(key, ())) for key in ("worlds", "topics")}
        values: dict[str, Any] = {**entry, **lists}
        by_name[name] = Sentence(name, **values, tables=tables)
    return by_name


def judge() -> dict[str, bool]:
    """Whether each judged sentence survives: Holm's method over all sentences, judged or not, and at least 16."""
    every = sentences()
    p_values = [sentence.p_value() if sentence.is_judged else 1.0 for sentence in every.values()]
    adjusted = holm(np.array(p_values + [1.0] * max(N_PLANNED - len(p_values), 0)))
    return {name: bool(p < 1 - LEVEL) for (name, sentence), p in zip(every.items(), adjusted, strict=False)
            if sentence.is_judged}


def table() -> list[dict[str, Any]]:
    """The table as `python -m evidence advice --json` prints it."""
    survives = judge()
    return [{"sentence": sentence.sentence, "worlds": list(sentence.worlds),
             "differences": [[c.difference, c.low, c.high] for c in sentence.comparisons()] if name in survives else [],
             "survives": survives.get(name)} for name, sentence in sentences().items()]


def survivors() -> list[dict[str, Any]]:
    """What ships with the package: the sentences that survive, and their figures."""
    survives = judge()
    return [{"name": name, "topics": list(one.topics), "sentence": one.sentence, "figures": _figures(one)}
            for name, one in sentences().items() if survives.get(name)]


def _figures(sentence: Sentence) -> str:
    parts = []
    for world, c in zip(sentence.worlds, sentence.comparisons(), strict=True):
        table = (sentence.tables or {})[world]
        measure = table.family.measure(sentence.measure)
        own, other = (format_figure(float(np.mean(table.figures(arm, sentence.measure))), measure)
                      for arm in (sentence.arm, sentence.rival))
        low, high = (format_figure(v, measure) for v in (c.low, c.high))
        unit, points = (" %", " points") if measure.percent else ("", "")
        parts.append(f"{own}{unit} against {other}{unit} [difference {low} to {high}{points}, "
                     f"{len(table.record['seeds'])} seeds] in {table.title}")
    return "; ".join(parts)


def page() -> str:
    """The page of advice: what survived, what did not hold up, and what is not judged yet."""
    every, survives = sentences(), judge()
    parts = ["# Advice that was tested", MADE,
             f"Each of these {len(every)} sentences states one comparison with what a practitioner would try first. "
             "The sentence, its comparison and its seeds are fixed before the run. It is judged on new training seeds "
             "in a toy of the kind in which it was found, and in a second world that is drawn from public ones.",
             "A sentence survives if the comparison holds in both worlds. The larger p-value of both counts, and "
             f"Holm's method corrects for the {N_PLANNED} sentences that are planned."]
    groups = (("What held up", [n for n in every if survives.get(n)]),
              ("What did not hold up", [n for n in every if survives.get(n) is False]),
              ("Not judged yet", [n for n in every if n not in survives]))
    for title, names in groups:
        if names:
            parts += [f"## {title}", "\n".join(
                f"- **{every[n].sentence}**" + (f" {_figures(every[n])}." if n in survives else "") for n in names)]
    return "\n\n".join(parts) + "\n"
