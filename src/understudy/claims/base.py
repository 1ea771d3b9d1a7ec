"""What a claim is made of. All of it is data but for `measure`, which runs one cell."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..core import UserError
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset
from ..envs import make
from ..evaluate.evaluation import recording_seed
from ..evaluate.rollout import rollout
from ..evaluate.stats import Interval, Kind, two_level_difference, two_level_rate
from ..learn.method import Method

Verdict = Literal["holds", "fails", "undecided"]
Kinds = Mapping[str, Kind]  # measure -> what its values are
KINDS: Kinds = {"success": "rate", "return": "real", "log_jerk": "real"}  # of `measures.closed_loop`
Measurements = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]  # arm -> measure -> training seed -> values


class MissingRequirement(UserError):
    """What the claim needs (data, a simulator) is not on this machine."""


# -- where the demonstrations come from ---------------------------------------------------------------------------


class DemonstrationSource(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def load(self, seed: int) -> Dataset:
        """The demonstrations that training seed `seed` learns from."""


@dataclass(frozen=True)
class ExpertDemonstrations(DemonstrationSource):
    """By the environment's own expert, those episodes that succeed and that `keep` keeps; the same for every training
    seed."""

    env: str
    episodes: int
    filter: Callable[[Episode], bool] | None = None

    def load(self, seed):
        env = make(self.env, rows=min(self.episodes, 16))
        shown = rollout(env.expert(), env, self.episodes, recording_seed(0)).filter(lambda e: e.metadata["success"])
        return shown if self.filter is None else shown.filter(self.filter)


@dataclass(frozen=True)
class RecordedDemonstrations(DemonstrationSource):
    """A file under the folder of recorded data (UNDERSTUDY_DATA). Of its episodes each training seed draws `episodes`
    anew, so that methods without a random training have a spread over seeds too. values: the data's `fingerprint`,
    which stands for the file and for what reads it."""

    path: str
    fingerprint: str
    episodes: int | None = None

    def load(self, seed):
        folder = os.environ.get("UNDERSTUDY_DATA")
        file = Path(folder or "", self.path)
        if not folder or not file.exists():
            raise MissingRequirement("expected recorded demonstrations, found none", where=file,
                          hint="set UNDERSTUDY_DATA to the folder that holds them")
        data = open_dataset(file)
        if (found := data.fingerprint()) != self.fingerprint:
            raise UserError(
                f"expected the data that the claim was made for ({self.fingerprint}), found others ({found})",
                where=file,
                hint="take the file from its source again; if it was read wrongly before, state "
                "the new fingerprint in the claim and run it anew",
            )
        if self.episodes is None:
            return data
        return data.select(sorted(np.random.default_rng(seed).choice(len(data), self.episodes, replace=False)))


# -- the experiment -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """`options` are its trials of tuning: one of them is chosen on the tuning seeds and judged on the others."""

    name: str
    options: tuple[Method, ...]


@dataclass(frozen=True)
class Experiment:
    """measure(experiment, method, data, seed, episodes, starts) runs one cell: it trains `method` with training seed
    `seed`, rolls it out on the starts of seed `starts` and gives {measure: values}, one value an episode or one a
    training run. `tuned_by` is the measure whose mean chooses among an arm's options (more is better)."""

    source: DemonstrationSource
    env: str
    arms: tuple[Arm, ...]
    measure: Callable[[Experiment, Method, Dataset, int, int, int], dict[str, list[float]]]
    tuned_by: str = "success"
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)  # of the trainings that judge, all on the same starts
    tuning_seeds: tuple[int, ...] = (900,)  # of those that tune, on other starts; pilots have the seeds below 100
    env_options: tuple[tuple[str, float], ...] = ()  # of the environment
    episodes: int = 100
    tuning_episodes: int = 50
    kinds: tuple[tuple[str, Kind], ...] = ()  # of the measures that KINDS does not have, or that are others here

    def __post_init__(self):
        if min(*self.seeds, *self.tuning_seeds) < 100 or set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds that tune, or that pilots used, must not judge")
        if len({len(a.options) for a in self.arms}) != 1:
            raise ValueError("every arm has the same number of tuning trials")


# -- the rule -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuleResult:
    verdict: Verdict
    text: str
    low: float
    high: float


class Rule(ABC):
    """A frozen dataclass. `arms` are the names of those it looks at."""

    arms: tuple[str, ...]

    @abstractmethod
    def judge(self, measurements: Measurements, kinds: Kinds = KINDS) -> RuleResult:
        """Judges the figures of an experiment; `kinds` of the measures that KINDS does not have."""


@dataclass(frozen=True)
class GreaterThan(Rule):
    """The mean of `measure` is more than `by` higher under `better` than under `worse`: by the 95 % two-level interval
    of the difference (training seed, then episode; paired in both)."""

    measure: str
    higher: str
    lower: str
    margin: float = 0.0

    @property
    def arms(self):
        return self.higher, self.lower

    def judge(self, measurements, kinds=KINDS):
        d = difference(measurements[self.higher][self.measure], measurements[self.lower][self.measure],
                       kind_of(self.measure, kinds))
        verdict = "holds" if d.low > self.margin else "fails" if d.high < self.margin else "undecided"
        return RuleResult(verdict, f"{self.measure}: {self.higher} - {self.lower} = {d.estimate:.3f} "
                                f"[{d.low:.3f}, {d.high:.3f}], wanted above {self.margin:g}", d.low, d.high)


@dataclass(frozen=True)
class EquivalentTo(Rule):
    """The mean of `measure` under `a` and `b` differs by less than `within`: by the same interval."""

    measure: str
    a: str
    b: str
    margin: float

    @property
    def arms(self):
        return self.a, self.b

    def judge(self, measurements, kinds=KINDS):
        d = difference(
            measurements[self.a][self.measure], measurements[self.b][self.measure], kind_of(self.measure, kinds)
        )
        inside = -self.margin < d.low and d.high < self.margin
        outside = d.low > self.margin or d.high < -self.margin
        verdict = "holds" if inside else "fails" if outside else "undecided"
        return RuleResult(verdict, f"{self.measure}: {self.a} - {self.b} = {d.estimate:.3f} "
                                f"[{d.low:.3f}, {d.high:.3f}], wanted within {self.margin:g}", d.low, d.high)


@dataclass(frozen=True)
class AboveBound(Rule):
    """The mean of `measure` under one arm is more than `bound`."""

    measure: str
    arm: str
    bound: float

    @property
    def arms(self):
        return (self.arm,)

    def judge(self, measurements, kinds=KINDS):
        d = two_level_rate(measurements[self.arm][self.measure], kind=kind_of(self.measure, kinds))
        verdict = "holds" if d.low > self.bound else "fails" if d.high < self.bound else "undecided"
        return RuleResult(verdict, f"{self.measure}: {self.arm} = {d.estimate:.3f} [{d.low:.3f}, {d.high:.3f}], wanted "
                                f"above {self.bound:g}", d.low, d.high)


@dataclass(frozen=True)
class BelowBound(Rule):
    """The mean of `measure` under one arm is less than `bound`."""

    measure: str
    arm: str
    bound: float

    @property
    def arms(self):
        return (self.arm,)

    def judge(self, measurements, kinds=KINDS):
        d = two_level_rate(measurements[self.arm][self.measure], kind=kind_of(self.measure, kinds))
        verdict = "holds" if d.high < self.bound else "fails" if d.low > self.bound else "undecided"
        return RuleResult(verdict, f"{self.measure}: {self.arm} = {d.estimate:.3g} [{d.low:.3g}, {d.high:.3g}], wanted "
                                f"below {self.bound:g}", d.low, d.high)


@dataclass(frozen=True)
class AllOf(Rule):
    """All of them: fails when one fails, holds when all hold."""

    rules: tuple[Rule, ...]

    @property
    def arms(self):
        return tuple(dict.fromkeys(a for r in self.rules for a in r.arms))

    def judge(self, measurements, kinds=KINDS):
        found = [r.judge(measurements, kinds) for r in self.rules]
        verdicts = {f.verdict for f in found}
        verdict = "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"
        return RuleResult(
            verdict, "; ".join(f.text for f in found), min(f.low for f in found), max(f.high for f in found)
        )


@dataclass(frozen=True)
class ClaimPart:
    """One experiment with the rule that judges it. A part that does not decide is reported beside the verdict."""

    name: str
    experiment: Experiment
    rule: Rule
    is_decisive: bool = True


@dataclass(frozen=True)
class NegativeControl:
    """One change after which the statement must no longer be found to hold."""

    description: str
    change: Callable[[Experiment], Experiment]
    part: str  # the part that it changes


@dataclass(frozen=True)
class Claim:
    name: str
    rows: tuple[str, ...]  # of the ledger
    paper: str
    statement: str  # the paper's own sentence
    setup: str  # the task and scale on which it is tested
    parts: tuple[ClaimPart, ...]
    negative_control: NegativeControl
    needs: tuple[str, ...] = ()  # of the extras and data


def kind_of(measure: str, kinds: Kinds) -> Kind:
    """What the values of a measure are: declared by the experiment, or one of KINDS."""
    found = kinds.get(measure, KINDS.get(measure))
    if found is None:
        raise UserError(f"The measure {measure!r} has no kind, so its interval is undefined.", where="claims",
                        hint=f'declare it: Experiment(..., kinds=(({measure!r}, "real"),)), or "rate" or "bounded"')
    return found


def difference(first, second, kind: Kind = "rate") -> Interval:
    """Of two arms, from values (training seeds, episodes): the same seeds and starts in the same places."""
    return two_level_difference(first, second, kind=kind)[0]


def summarize(measurements: Measurements, kinds: Kinds = KINDS) -> dict:
    """{arm: {measure: {"estimate", "low", "high", "level"}}}, two-level."""
    return {arm: {name: asdict(two_level_rate(v, kind=kind_of(name, kinds))) for name, v in measures.items()}
            for arm, measures in measurements.items()}
