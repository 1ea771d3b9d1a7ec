"""The parts of a claim: data, experiment, rules, negative control. All are values; only `measure` runs something."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from ..core import UserError
from ..data.episode import Dataset, Episode
from ..envs import make
from ..envs.base import Env, HasExpert
from ..evaluate.evaluation import recording_seed
from ..evaluate.rollout import rollout
from ..evaluate.stats import LEVEL, Interval, Kind, two_level_difference, two_level_rate
from ..execute.actor import Actor
from .effects import SMALLEST_EFFECTS
from .folder import NAME

TRUSTED = (NAME,)  # packages besides understudy that may define the environments of claims
PROBE_DEMONSTRATIONS = 50  # largest number of demonstrations in a probe
Verdict = Literal["holds", "fails", "undecided"]
Side = Literal["above", "below", "within"]
Unit = Literal["", "%", "points"]  # of a number on a page; a difference of rates is in points
Measurements = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]  # arm -> measure -> training seed -> values


class MissingRequirement(UserError):
    """The data or the simulator that a claim needs is not on this machine."""


@dataclass(frozen=True)
class Measure:
    """What the values of a measure are.

    Args:
        kind: For the interval: 0s and 1s, a number from 0 to 1, or any number.
        quantity: For the smallest effect: a key of `SMALLEST_EFFECTS`. A measure without one can be reported, but no
            rule can be about it.
    """

    kind: Kind
    quantity: str | None = None

    def __post_init__(self):
        if self.quantity is not None and self.quantity not in SMALLEST_EFFECTS:
            raise ValueError(f"{self.quantity!r} is not in the table of smallest effects")

    @property
    def is_rate(self) -> bool:
        """Whether its values are shown in percent."""
        return "rate" in (self.kind, self.quantity)


RATE, SCORE, REAL = Measure("rate", "rate"), Measure("bounded", "score"), Measure("real")
MeasureTable = Mapping[str, Measure]
# Of `measures.closed_loop`. The unit of a return differs between environments, so a claim about it declares its own.
MEASURES: MeasureTable = {"success": RATE, "return": REAL, "log_jerk": Measure("real", "log ratio")}


# -- where the demonstrations come from ---------------------------------------------------------------------------


class DemonstrationSource(ABC):
    """Where the demonstrations of a claim come from. Subclasses are frozen dataclasses.

    Attributes:
        probe_sizes: Values of fields with which a probe takes seconds. By default at most 50 `episodes`. What trains a
            method can have this attribute too.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    probe_sizes: ClassVar[Mapping[str, Any] | None] = None

    @abstractmethod
    def load(self, seed: int) -> Dataset:
        """The demonstrations that training seed `seed` learns from."""

    def for_probe(self) -> tuple[Any, list[float]]:
        """A smaller copy, and the full sizes."""
        sizes, episodes = self.probe_sizes, getattr(self, "episodes", None)
        if sizes is None:
            sizes = {} if episodes is None else {"episodes": min(episodes, PROBE_DEMONSTRATIONS)}
        return smaller(self, **sizes)


def smaller(part: Any, **sizes: Any) -> tuple[Any, list[float]]:
    """A copy of a source or method with these sizes, and its full sizes."""
    return replace(part, **sizes), [getattr(part, name) for name in sizes]


def expert_of(env: Env) -> Actor:
    """The environment's own expert."""
    assert isinstance(env, HasExpert), f"{env.metadata['env']} has no expert"
    return env.expert()


@dataclass(frozen=True)
class ExpertDemonstrations(DemonstrationSource):
    """Successful episodes of the environment's own expert.

    Args:
        env: Name of the environment, or "module:Class" of one that the claims define.
        filter: Tells which of the successful episodes to keep. By default all.
        resample: New demonstrations for each training seed. False gives all seeds the same ones, and the interval of a
            claim then lacks their variation.
    """

    env: str
    episodes: int
    filter: Callable[[Episode], bool] | None = None
    resample: bool = True
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, seed):
        env = make(self.env, rows=min(self.episodes, 16), trust=TRUSTED, **dict(self.options))
        episodes = rollout(expert_of(env), env, self.episodes, recording_seed(seed if self.resample else 0))
        successes = episodes.filter(lambda e: e.metadata["success"])
        return successes if self.filter is None else successes.filter(self.filter)


# -- the experiment -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Args:
        options: Tuning trials. One of them is chosen on the tuning seeds and judged on the other seeds.
    """

    name: str
    options: tuple[Any, ...]  # what `measure` trains: a `Method`, or a dataclass of the claim


@dataclass(frozen=True)
class Experiment:
    """Arms that are trained and measured on the same seeds and starts.

    Args:
        arms: Each with the same number of tuning trials.
        measure: Called with (experiment, method, data, seed, episodes, starts). Trains `method` with training seed
            `seed`, rolls it out on the starts of seed `starts` and returns {measure: values}, one value per episode or
            one per training run.
        tuned_by: The measure whose mean chooses among the options of an arm. More is better.
        seeds: Training seeds that judge, all on the same starts.
        tuning_seeds: Training seeds that tune, on other starts. Pilots use seeds below 100.
        episodes: Starts per training seed.
        tuning_episodes: The same for tuning.
        measures: Measures that `MEASURES` lacks, or that are something else here.
        starts_seed: The seed of the starts. A redesigned claim takes a new one.
        looks: Planned interim looks, (number of seeds, alpha) each, such as ((5, 0.01), (10, 0.015), (20, 0.025)). The
            run stops at the first look that decides. The alphas sum to at most 0.05, so that by the union bound all
            looks together err as rarely as one. Without looks, all seeds run and alpha is 0.05.
        sanity: (arm, measure, minimum) each. An arm whose mean is below its minimum does not work, and the part is
            then undecided.
    """

    source: DemonstrationSource
    env: str
    arms: tuple[Arm, ...]
    measure: Callable[[Experiment, Any, Dataset, int, int, int], dict[str, list[float]]]
    tuned_by: str = "success"
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    tuning_seeds: tuple[int, ...] = (900,)
    env_options: tuple[tuple[str, Any], ...] = ()
    episodes: int = 100
    tuning_episodes: int = 50
    measures: tuple[tuple[str, Measure], ...] = ()
    starts_seed: int = 100
    looks: tuple[tuple[int, float], ...] = ()
    sanity: tuple[tuple[str, str, float], ...] = ()

    def __post_init__(self):
        if min(*self.seeds, *self.tuning_seeds) < 100 or set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds that tune, or that pilots used, must not judge")
        if len({len(a.options) for a in self.arms}) != 1:
            raise ValueError("every arm has the same number of tuning trials")
        counts = [n for n, _ in self.looks]
        if self.looks and (counts != sorted(set(counts)) or counts[-1] != len(self.seeds) or counts[0] < 2):
            raise ValueError("looks are at growing numbers of seeds, the last at all of them")
        if sum(alpha for _, alpha in self.looks) > 0.05 + 1e-12 or any(alpha <= 0 for _, alpha in self.looks):
            raise ValueError("the alphas of the looks are positive and sum to at most 0.05")

    def level(self, n_seeds: int) -> float:
        """The confidence level of intervals when `n_seeds` training seeds have run."""
        return 1 - dict(self.looks).get(n_seeds, 0.05)

    def replace_arms(self, *arms: Arm) -> Experiment:
        """The experiment with these arms in place of those of the same names."""
        self._check_names(a.name for a in arms)
        new = {a.name: a for a in arms}
        return replace(self, arms=tuple(new.get(a.name, a) for a in self.arms))

    def change_options(self, change: Callable[[Any], Any], *names: str) -> Experiment:
        """The experiment with `change(option)` in place of each option of some arms.

        Args:
            names: Names of the arms. By default all.
        """
        self._check_names(names)
        return replace(self, arms=tuple(
            a if names and a.name not in names else replace(a, options=tuple(map(change, a.options)))
            for a in self.arms))

    def _check_names(self, names: Iterable[str]) -> None:
        if missing := set(names) - {a.name for a in self.arms}:
            raise ValueError(f"the experiment has no arm {', '.join(sorted(missing))}")


# -- the rule -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """One comparison of an interval with a bound.

    Args:
        side: On which side of `bound` it must be: "above", "below", or "within" (of 0).
        smallest_effect: The smallest difference that counts, where the bound is 0. A stated bound counts as it is.
    """

    label: str
    estimate: float
    low: float
    high: float
    side: Side
    bound: float
    smallest_effect: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The condition holds if the interval is on the wanted side and reaches the smallest effect.

        It fails if the interval lies below the smallest effect: the effect is absent or negligible.
        """
        if self.side == "within":
            inside = -self.bound < self.low and self.high < self.bound
            outside = self.low > self.bound or self.high < -self.bound
            return "holds" if inside else "fails" if outside else "undecided"
        low, high = self.distance
        return "fails" if high < self.smallest_effect else "holds" if low > 0 else "undecided"

    @property
    def distance(self) -> tuple[float, float]:
        """Interval of the distance from the bound. It is positive on the wanted side. It is not defined for "within".
        """
        if self.side == "above":
            return self.low - self.bound, self.high - self.bound
        return self.bound - self.high, self.bound - self.low

    @property
    def margin(self) -> float:
        """Distance from the bound to the nearest limit of the interval, in units of the interval's width."""
        least = self.bound - max(abs(self.low), abs(self.high)) if self.side == "within" else self.distance[0]
        return least / max(self.high - self.low, 1e-12)

    def describe(self, unit: Unit) -> str:
        """The interval and where it must be, such as "success: a - b = 12.5 points [3.1, 21.9], must be above 0".

        Args:
            unit: `Claim.unit_of` its label.
        """
        least = f" by at least {format_bound(self.smallest_effect, unit)}" if self.smallest_effect else ""
        return (f"{self.label} = {format_interval(self, unit)}, must be {self.side} "
                f"{format_bound(self.bound, unit)}{least}")


def format_interval(interval: Interval | Condition, unit: Unit) -> str:
    """Formats an estimate and its limits, such as 91 % [85, 94], 3.5 points [-1.0, 8.1] or 0.443 [0.379, 0.506]."""
    estimate, low, high = (format_number(v, unit) for v in (interval.estimate, interval.low, interval.high))
    return f"{_with_unit(estimate, unit)} [{low}, {high}]"


def format_number(value: float, unit: Unit) -> str:
    """Formats a number without its unit: whole percents, tenths of points, or three significant digits or more."""
    if not unit and abs(value) >= 100:
        return f"{value:,.0f}"
    if unit:
        return f"{100 * value:z.0f}" if unit == "%" else f"{100 * value:z.1f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:z.3f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


def format_bound(value: float, unit: Unit) -> str:
    """Formats a number of a rule with its unit."""
    return _with_unit(f"{100 * value if unit else value:.3g}", unit if value else "")


def _with_unit(number: str, unit: Unit) -> str:
    return f"{number}\N{NO-BREAK SPACE}{unit}" if unit else number


@dataclass(frozen=True)
class RuleResult:
    """The verdict of a rule, and the comparisons that lead to it."""

    verdict: Verdict
    conditions: tuple[Condition, ...]


class Rule(ABC):
    """A rule that judges measurements. Subclasses are frozen dataclasses."""

    arms: tuple[str, ...]

    @abstractmethod
    def judge(
        self, measurements: Measurements, measures: MeasureTable = MEASURES, level: float = LEVEL
    ) -> RuleResult:
        """Judges the measurements of an experiment.

        Args:
            measures: Measures that `MEASURES` lacks.
        """


def _compare(name: str, arms: tuple[str, ...], side: Side, bound: float, measurements, measures, level) -> RuleResult:
    """Compares a measure of an arm, or of the first arm minus the second, with a bound."""
    kind, values = measure_of(name, measures).kind, [measurements[arm][name] for arm in arms]
    d = difference(*values, kind, level) if len(values) > 1 else two_level_rate(*values, level, kind=kind)
    least = smallest_effect(name, measures)  # a rule is only about measures that have one
    condition = Condition(f"{name}: {' - '.join(arms)}", d.estimate, d.low, d.high, side, bound,
                          0.0 if bound or side == "within" else least)
    return RuleResult(condition.verdict, (condition,))


@dataclass(frozen=True)
class GreaterThan(Rule):
    """The mean of a measure under one arm is more than `margin` higher than under another.

    It is judged by the two-level interval of the difference (training seed, then episode; paired in both) and, where
    `margin` is 0, the smallest effect of the measure.

    Args:
        margin: Smallest difference, in units of the measure. A negative margin states that `higher` is not much worse.
    """

    measure: str
    higher: str
    lower: str
    margin: float = 0.0

    @property
    def arms(self):
        return self.higher, self.lower

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        return _compare(self.measure, self.arms, "above", self.margin, measurements, measures, level)


@dataclass(frozen=True)
class EquivalentTo(Rule):
    """The means of a measure under two arms differ by less than `margin`. It is judged by the same interval as
    `GreaterThan`.

    Args:
        margin: Largest difference, in units of the measure.
    """

    measure: str
    a: str
    b: str
    margin: float

    @property
    def arms(self):
        return self.a, self.b

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        return _compare(self.measure, self.arms, "within", self.margin, measurements, measures, level)


@dataclass(frozen=True)
class _Bound(Rule):
    measure: str
    arm: str
    bound: float
    side: ClassVar[Side]

    @property
    def arms(self):
        return (self.arm,)

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        return _compare(self.measure, self.arms, self.side, self.bound, measurements, measures, level)


class AboveBound(_Bound):
    """The mean of a measure under one arm is more than a bound, in units of the measure."""

    side = "above"


class BelowBound(_Bound):
    """The mean of a measure under one arm is less than a bound, in units of the measure."""

    side = "below"


@dataclass(frozen=True)
class AllOf(Rule):
    """A conjunction of rules. It fails if one rule fails, and holds if all hold."""

    rules: tuple[Rule, ...]

    @property
    def arms(self):
        return tuple(dict.fromkeys(a for r in self.rules for a in r.arms))

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        results = [r.judge(measurements, measures, level) for r in self.rules]
        return RuleResult(worst_verdict(f.verdict for f in results), tuple(c for f in results for c in f.conditions))


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a conjunction: "fails" if one fails, "holds" if all hold, otherwise "undecided"."""
    distinct = set(verdicts)
    return "fails" if "fails" in distinct else "undecided" if "undecided" in distinct else "holds"


@dataclass(frozen=True)
class ClaimPart:
    """One experiment with the rule that judges it.

    Args:
        is_decisive: Whether the verdict of the claim depends on this part. Other parts are only reported.
    """

    name: str
    experiment: Experiment
    rule: Rule
    is_decisive: bool = True


@dataclass(frozen=True)
class NegativeControl:
    """A change of an experiment that removes the mechanism and nothing else. The rule that decides must then fail.

    Args:
        removes: If the part's rule is a conjunction, those of its rules that must fail under the control.
        probed: Whether the claim's probe runs it. False for a control that trains scores again, which takes long, and
            changes only what they are applied to.
    """

    change: Callable[[Experiment], Experiment]
    part: str
    removes: tuple[Rule, ...] = ()
    probed: bool = True


@dataclass(frozen=True)
class Claim:
    """A published statement as an experiment that can fail. Its text is in the Markdown file beside its module.

    Args:
        mechanism_only: Why this experiment cannot test the paper's statement, in one sentence. The verdict is then
            undecided, whatever the parts show.
    """

    name: str
    rows: tuple[str, ...]
    parts: tuple[ClaimPart, ...]
    negative_control: NegativeControl
    needs: tuple[str, ...] = ()
    mechanism_only: str = ""

    def __post_init__(self):
        for part in self.parts:
            rules = part.rule.rules if isinstance(part.rule, AllOf) else ()
            if part.name == self.negative_control.part and rules:
                named = self.negative_control.removes
                if not named or not set(named) <= set(rules):
                    raise ValueError(f"{self.name}: the negative control names the rules of {part.name} to remove")

    @property
    def controlled_part(self) -> ClaimPart:
        """The part whose experiment the negative control changes."""
        return next(p for p in self.parts if p.name == self.negative_control.part)

    @property
    def removed_rules(self) -> tuple[Rule, ...]:
        """The rules that must fail under the negative control."""
        return self.negative_control.removes or (self.controlled_part.rule,)

    def is_rate(self, measure: str) -> bool:
        """Whether values of this measure are shown in percent. The success of a whole run is a rate of any kind."""
        measures = {**MEASURES, **dict(m for p in self.parts for m in p.experiment.measures)}
        return measure in measures and (measures[measure].is_rate or "success" in measure)

    def unit_of(self, label: str) -> Unit:
        """The unit of a comparison.

        Args:
            label: Such as "success: a - b".
        """
        measure, _, compared = label.partition(": ")
        if not self.is_rate(measure):
            return ""
        return "%" if any(compared == arm.name for p in self.parts for arm in p.experiment.arms) else "points"


def measure_of(name: str, measures: MeasureTable) -> Measure:
    """Looks up the properties of a measure.

    Args:
        measures: Measures that the experiment declares. They take precedence over `MEASURES`.
    """
    measure = measures.get(name, MEASURES.get(name))
    if measure is None:
        raise UserError(f"The measure {name!r} has no kind, so its interval is undefined.", where="claims",
                        hint=f"declare it: Experiment(..., measures=(({name!r}, SCORE),)), or RATE, or "
                             "Measure(\"real\", QUANTITY)")
    return measure


def smallest_effect(name: str, measures: MeasureTable) -> float:
    """The smallest effect of a measure, in its units."""
    quantity = measure_of(name, measures).quantity
    if quantity is None:
        raise UserError(f"The measure {name!r} has no smallest effect, so no rule can be about it.", where="claims",
                        hint=f"declare its quantity: one of {', '.join(SMALLEST_EFFECTS)}")
    return SMALLEST_EFFECTS[quantity]


def difference(first, second, kind: Kind = "rate", level: float = LEVEL) -> Interval:
    """Interval of the difference of two arms.

    Args:
        first: Values of one arm, (training seeds, episodes).
        second: Values of the other arm, with the same seeds and starts in the same places.
    """
    return two_level_difference(first, second, level, kind=kind)[0]


def summarize(measurements: Measurements, measures: MeasureTable = MEASURES) -> dict:
    """Mean and two-level interval of every measure of every arm.

    Returns:
        {arm: {measure: {"estimate", "low", "high", "level"}}}.
    """
    return {arm: {name: asdict(two_level_rate(values, kind=measure_of(name, measures).kind))
                  for name, values in by_measure.items()} for arm, by_measure in measurements.items()}
