"""Families of tables: their description, their figures per seed, and comparisons of two arms."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from understudy.core import UserError, unknown_name
from understudy.files import read_json

from .experiment import Experiment

FAMILIES = Path(__file__).parent / "families"
LEVEL = 0.95
Word = Literal["better", "worse", "equal", "open"]
COMMIT = re.compile(r"[0-9a-f]{7,40}(\+changes)?")


@dataclass(frozen=True)
class Measure:
    """How figures of a measure are read.

    Args:
        margin: Two arms are equal if the interval of their difference lies within this margin. None: never.
        percent: Whether figures are shown in percent.
        lower: Whether lower figures are better.
    """

    margin: float | None = None
    percent: bool = False
    lower: bool = False


SUCCESS = Measure(0.05, percent=True)


@dataclass(frozen=True)
class Comparison:
    """The difference of two arms, paired by training seed.

    Attributes:
        low: Lower limit of the 95 % interval of Student's t over training seeds.
        high: Upper limit.
    """

    arm: str
    rival: str
    measure: str
    difference: float
    low: float
    high: float
    word: Word


def compare(first: Sequence[float], second: Sequence[float], measure: Measure) -> tuple[float, float, float, Word]:
    """Compares the figures per seed of two arms.

    Returns:
        The mean difference, the limits of its interval, and a word. "better" or "worse": the interval excludes 0.
        "equal": it lies within the margin. "open": neither.
    """
    d = np.asarray(first, float) - np.asarray(second, float)
    half = stats.t.ppf((1 + LEVEL) / 2, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    mean, low, high = float(d.mean()), float(d.mean() - half), float(d.mean() + half)
    if low > 0 or high < 0:
        return mean, low, high, "better" if (mean > 0) != measure.lower else "worse"
    inside = measure.margin is not None and max(-low, high) < measure.margin
    return mean, low, high, "equal" if inside else "open"


@dataclass(frozen=True)
class Table:
    """One experiment of a family, as its `family.toml` describes it.

    Attributes:
        title: What is compared, in one line.
        text: World, data, budget, and what each arm is told that others are not.
        rival: The plainest rival, an arm.
        experiment: Where its code is, "module:NAME" in the folder of the family. None: it is exploratory, and its code
            is in the commits that the figures name.
        was: Module of the code in these commits, where `experiment` is None.
        measures: Measures that are shown.
        ablations: The arms that lack the mechanism of another arm, and that arm.
        also: Further pairs of arms that are compared.
        shows_nothing: Why no comparison can be read, such as a level that was not reached.
    """

    family: Family
    name: str
    title: str
    text: str
    rival: str
    experiment: str | None = None
    was: str = ""
    measures: tuple[str, ...] = ("success",)
    ablations: Mapping[str, str] | None = None
    also: tuple[tuple[str, str], ...] = ()
    shows_nothing: str = ""

    @property
    def path(self) -> Path:
        """The file of its figures."""
        return self.family.folder / "figures" / f"{self.name}.json"

    @cached_property
    def record(self) -> dict[str, Any]:
        """Figures per seed, and the commits, seeds and versions that they were made with.

        Raises:
            UserError: There are no figures, they name no commit, or their seeds do not match their arms.
        """
        if not self.path.is_file():
            raise UserError("the table has no figures", where=self.path, hint=f"python -m evidence run {self.name}")
        record = read_json(self.path)
        if not record.get("commits") or not all(COMMIT.fullmatch(commit) for commit in record["commits"]):
            raise UserError("the figures do not name the commits that made them", where=self.path,
                            hint=f"make them again: python -m evidence run {self.name}")
        for measure, arms in record["figures"].items():
            for arm, figures in arms.items():
                if len(figures) != len(record["seeds"]):
                    raise UserError(f"the arm {arm!r} has {len(figures)} figures of {measure!r} for "
                                    f"{len(record['seeds'])} seeds", where=self.path,
                                    hint=f"make them again: python -m evidence run {self.name}")
        return record

    @property
    def arms(self) -> list[str]:
        """Names of the arms: the plainest rival, the others, and ablations last."""
        arms = dict.fromkeys(arm for figures in self.record["figures"].values() for arm in figures)
        return sorted(arms, key=lambda arm: (arm in (self.ablations or {}), arm != self.rival))

    def figures(self, arm: str, measure: str = "success") -> list[float]:
        """The figure of each training seed."""
        by_arm = self.record["figures"].get(measure)
        if by_arm is None:
            raise unknown_name("measure", measure, self.record["figures"], self.path, hint="")
        if arm not in by_arm:
            raise unknown_name("arm", arm, by_arm, self.path, hint="")
        return by_arm[arm]

    def compare(self, arm: str, rival: str, measure: str = "success") -> Comparison:
        """The paired difference of two arms."""
        return Comparison(arm, rival, measure, *compare(self.figures(arm, measure), self.figures(rival, measure),
                                                        self.family.measure(measure)))

    def comparisons(self, measure: str) -> list[Comparison]:
        """Each arm against the plainest rival, each ablation against what it lacks, and further pairs."""
        have = self.record["figures"].get(measure, {})
        ablations = self.ablations or {}
        pairs = [(arm, self.rival) for arm in self.arms if arm != self.rival and arm not in ablations]
        pairs += [(arm, rival) for arm, rival in (*self.also, *((of, without) for without, of in ablations.items()))]
        return [self.compare(*pair, measure) for pair in dict.fromkeys(pairs) if set(pair) <= set(have)]

    def load_experiment(self) -> Experiment:
        """The experiment in the module of the family.

        Raises:
            UserError: The table is exploratory and its code is in its commits alone.
        """
        if self.experiment is None:
            raise UserError(f"{self.name} is exploratory: its code is no longer here", where=self.path,
                            hint=f"git show {self.record['commits'][0]}:{self.was}")
        module, _, name = self.experiment.partition(":")
        return getattr(importlib.import_module(f"{FAMILIES.parent.name}.families.{self.family.name}.{module}"), name)


@dataclass(frozen=True)
class Family:
    """One question of a practitioner, and the tables that answer it.

    Attributes:
        text: At most 120 words: worlds, and what each arm is told.
        measures: Measures besides success.
    """

    name: str
    question: str
    text: str
    measures: Mapping[str, Measure]
    folder: Path

    def measure(self, name: str) -> Measure:
        """How a measure is read."""
        if name == "success":
            return self.measures.get(name, SUCCESS)
        if name not in self.measures:
            raise unknown_name("measure", name, self.measures, self.folder / "family.toml", hint="")
        return self.measures[name]

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Tables by name, in the order of `family.toml`."""
        names = {field.name for field in fields(Table)} - {"family", "name"}
        tables = {}
        for name, entry in _document(self.folder)["tables"].items():
            if unknown := sorted(set(entry) - names):
                raise unknown_name("entry", unknown[0], names, f"{self.folder / 'family.toml'}, {name}", hint="")
            if not entry.get("rival"):
                raise UserError(f"{name} has no plainest rival", where=self.folder / "family.toml",
                                hint='name the arm: rival = "..."')
            values: dict[str, Any] = {key: _frozen(value) for key, value in entry.items()}
            tables[name] = Table(self, name, **{**values, "text": values["text"].strip()})
        return tables


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _document(folder: Path) -> dict[str, Any]:
    return _parsed((folder / "family.toml").read_text(encoding="utf-8"))


@cache
def _parsed(text: str) -> dict[str, Any]:
    """Pages look tables up thousands of times, and a document does not change while its text is the same."""
    return tomllib.loads(text)


def families() -> dict[str, Family]:
    """All families by name."""
    by_name = {}
    for file in sorted(FAMILIES.glob("*/family.toml")):
        document = _document(file.parent)
        measures = {name: Measure(**values) for name, values in document.get("measures", {}).items()}
        by_name[file.parent.name] = Family(file.parent.name, document["question"], document["text"].strip(), measures,
                                         file.parent)
    return by_name


def all_tables() -> dict[str, Table]:
    """The tables of all families by name."""
    return {name: table for family in families().values() for name, table in family.tables.items()}


def find_table(name: str) -> Table:
    """The table of this name."""
    tables = all_tables()
    if name not in tables:
        raise unknown_name("table", name, tables, "evidence/families", hint="")
    return tables[name]


def format_figure(value: float, measure: Measure, *, signed: bool = False, digits: int = 0) -> str:
    """A figure as text: percent with this many digits, or three digits in all."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}z.{digits}f}" if measure.percent else f"{value:{sign}.3g}"
