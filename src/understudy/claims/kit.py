"""The kit of family experiments: one table of arms, from which each row of the ledger takes those that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
    Rule,
)
from .measures import closed_loop
from .text import read_texts


@dataclass(frozen=True)
class Ablation:
    """What replaces an arm in a negative control: the arm without its mechanism."""

    of: str
    option: Any


def ablation(of: str, option: Any) -> Ablation:
    """An entry of a table that replaces the arm `of`, and removes its mechanism alone."""
    return Ablation(of, option)


@dataclass(frozen=True)
class Table:
    """The arms of a family experiment and their ablations.

    Args:
        experiment: All arms, on the same demonstrations, seeds and starts.
        ablations: (name, ablation) each.
    """

    experiment: Experiment
    ablations: tuple[tuple[str, Ablation], ...]

    def restrict(self, names: Sequence[str]) -> Experiment:
        """The experiment with these arms alone, in the order of the table. Their sanity levels stay."""
        arms = tuple(arm for arm in self.experiment.arms if arm.name in names)
        if unknown := sorted(set(names) - {arm.name for arm in arms}):
            raise ValueError(f"the table has no arm {', '.join(unknown)}")
        sanity = tuple(level for level in self.experiment.sanity if level[0] in names)
        return replace(self.experiment, arms=arms, sanity=sanity)


def experiment(source: DemonstrationSource, arms: Mapping[str, Any], *, first_seed: int, measure=closed_loop,
               sanity: Mapping[str, float] = MappingProxyType({}), n_seeds: int = 5, episodes: int = 500,
               measures: Mapping[str, Measure] = MappingProxyType({}), **more: Any) -> Table:
    """A table of arms that are not tuned.

    Args:
        arms: What is trained, by the names of arms, and ablations by their own names.
        first_seed: The first training seed that judges, and the seed of the starts.
        sanity: Least success by the name of an arm.
        episodes: Starts per training seed.
        measures: Measures that `MEASURES` lacks.
        more: Other fields of `Experiment`. `env` is that of `source`, if it has one.
    """
    trained = tuple(Arm(name, (option,)) for name, option in arms.items() if not isinstance(option, Ablation))
    whole = Experiment(
        source, more.pop("env", None) or vars(source)["env"], trained, measure,
        seeds=tuple(range(first_seed, first_seed + n_seeds)), episodes=episodes, measures=tuple(measures.items()),
        starts_seed=first_seed, sanity=tuple((arm, "success", least) for arm, least in sanity.items()), **more)
    return Table(whole, tuple((name, option) for name, option in arms.items() if isinstance(option, Ablation)))


def higher(first: str, second: str, margin: float = 0.0, measure: str = "success") -> GreaterThan:
    """The mean of `measure` under the arm `first` is more than `margin` higher than under `second`."""
    return GreaterThan(measure, first, second, margin)


@dataclass(frozen=True)
class Row:
    """A row of the ledger in a family experiment.

    Args:
        rule: The rule that decides. Of several rules all must hold.
        control: Name of the ablation that is its negative control, or of several that replace arms together.
        removes: The rules that must fail under the control. Empty: all that decide.
        reported: Arms that no rule names, which are reported.
    """

    name: str
    rule: Rule | tuple[Rule, ...]
    control: str | tuple[str, ...]
    removes: tuple[Rule, ...] = ()
    reported: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplaceArms:
    """The change of a negative control: arms in place of those of the same names."""

    arms: tuple[Arm, ...]

    def __call__(self, experiment: Experiment) -> Experiment:
        return experiment.replace_arms(*self.arms)


def family(file: str, table: Table, rows: Mapping[str, Row]) -> tuple[Claim, ...]:
    """The claims of a family experiment. Each has the arms of its rules, the reported ones, and their sanity levels.

    Args:
        file: `__file__` of the module. The texts are in the Markdown file beside it.
        rows: By their ids in the ledger. A comparison of several systems has their ids, with spaces between them.

    Raises:
        ValueError: A row names an arm or an ablation that the table lacks, or has no text.
    """
    texts = read_texts(Path(file).with_suffix(".md"))
    if without := [row.name for row in rows.values() if row.name not in texts]:
        raise ValueError(f"the Markdown file has no text of {', '.join(without)}")
    return tuple(_claim(table, number, row) for number, row in rows.items())


def _claim(table: Table, number: str, row: Row) -> Claim:
    rules = row.rule if isinstance(row.rule, tuple) else (row.rule,)
    rule = AllOf(rules) if len(rules) > 1 else rules[0]
    names = (row.control,) if isinstance(row.control, str) else row.control
    ablations = dict(table.ablations)
    if unknown := [name for name in names if name not in ablations]:
        raise ValueError(f"{row.name}: the table has no ablation {', '.join(unknown)}")
    change = ReplaceArms(tuple(Arm(ablations[name].of, (ablations[name].option,)) for name in names))
    part = ClaimPart(table.experiment.env, table.restrict((*rule.arms, *row.reported)), rule)
    removes = row.removes or (rules if len(rules) > 1 else ())
    return Claim(row.name, tuple(number.split()), (part,), NegativeControl(change, part.name, removes))
