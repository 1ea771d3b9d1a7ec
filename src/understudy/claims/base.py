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
from ..envs import make
from ..evaluate.judge import recording
from ..evaluate.rollout import rollout
from ..evaluate.stats import Interval, Kind, two_level, two_level_difference
from ..learn.method import Method

Verdict = Literal["holds", "fails", "undecided"]
Kinds = Mapping[str, Kind]  # measure -> what its values are
KINDS: Kinds = {"success": "rate", "return": "real", "log_jerk": "real"}  # of `measures.closed_loop`
Figures = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]  # arm -> measure -> training seed -> values


class NotHere(UserError):
    """What the claim needs (data, a simulator) is not on this machine."""


# -- where the demonstrations come from ---------------------------------------------------------------------------


class Source(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def load(self, seed: int) -> Dataset:
        """The demonstrations that training seed `seed` learns from."""


@dataclass(frozen=True)
class Shown(Source):
    """By the environment's own expert, those episodes that succeed and that `keep` keeps; the same for every training
    seed."""

    env: str
    episodes: int
    keep: Callable[[Episode], bool] | None = None

    def load(self, seed):
        env = make(self.env, rows=min(self.episodes, 16))
        shown = rollout(env.expert(), env, self.episodes, recording(0)).where(lambda e: e.meta["success"])
        return shown if self.keep is None else shown.where(self.keep)


@dataclass(frozen=True)
class Recorded(Source):
    """A file under the folder of recorded data (UNDERSTUDY_DATA). Of its episodes each training seed draws `episodes`
    anew, so that methods without a random training have a spread over seeds too. values: the data's `fingerprint`,
    which stands for the file and for what reads it."""

    path: str
    values: str
    episodes: int | None = None

    def load(self, seed):
        folder = os.environ.get("UNDERSTUDY_DATA")
        file = Path(folder or "", self.path)
        if not folder or not file.exists():
            raise NotHere("expected recorded demonstrations, found none", where=file,
                          do="set UNDERSTUDY_DATA to the folder that holds them")
        data = Dataset.open(file)
        if (found := data.fingerprint()) != self.values:
            raise UserError(f"expected the data that the claim was made for ({self.values}), found others ({found})",
                            where=file, do="take the file from its source again; if it was read wrongly before, state "
                            "the new fingerprint in the claim and run it anew")
        if self.episodes is None:
            return data
        return data.pick(sorted(np.random.default_rng(seed).choice(len(data), self.episodes, replace=False)))


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

    source: Source
    env: str
    arms: tuple[Arm, ...]
    measure: Callable[[Experiment, Method, Dataset, int, int, int], dict[str, list[float]]]
    tuned_by: str = "success"
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)  # of the trainings that judge, all on the same starts
    tuning: tuple[int, ...] = (900,)  # of those that tune, on other starts; pilots have the seeds below 100
    options: tuple[tuple[str, float], ...] = ()  # of the environment
    episodes: int = 100
    tuning_episodes: int = 50
    kinds: tuple[tuple[str, Kind], ...] = ()  # of the measures that KINDS does not have, or that are others here

    def __post_init__(self):
        if min(*self.seeds, *self.tuning) < 100 or set(self.seeds) & set(self.tuning):
            raise ValueError("seeds that tune, or that pilots used, must not judge")
        if len({len(a.options) for a in self.arms}) != 1:
            raise ValueError("every arm has the same number of tuning trials")


# -- the rule -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    text: str
    low: float
    high: float


class Rule(ABC):
    """A frozen dataclass. `arms` are the names of those it looks at."""

    arms: tuple[str, ...]

    @abstractmethod
    def judge(self, figures: Figures, kinds: Kinds = KINDS) -> Finding:
        """Judges the figures of an experiment; `kinds` of the measures that KINDS does not have."""


@dataclass(frozen=True)
class Above(Rule):
    """The mean of `measure` is more than `by` higher under `better` than under `worse`: by the 95 % two-level interval
    of the difference (training seed, then episode; paired in both)."""

    measure: str
    better: str
    worse: str
    by: float = 0.0

    @property
    def arms(self):
        return self.better, self.worse

    def judge(self, figures, kinds=KINDS):
        d = difference(figures[self.better][self.measure], figures[self.worse][self.measure],
                       kind_of(self.measure, kinds))
        verdict = "holds" if d.low > self.by else "fails" if d.high < self.by else "undecided"
        return Finding(verdict, f"{self.measure}: {self.better} - {self.worse} = {d.estimate:.3f} "
                                f"[{d.low:.3f}, {d.high:.3f}], wanted above {self.by:g}", d.low, d.high)


@dataclass(frozen=True)
class Near(Rule):
    """The mean of `measure` under `a` and `b` differs by less than `within`: by the same interval."""

    measure: str
    a: str
    b: str
    within: float

    @property
    def arms(self):
        return self.a, self.b

    def judge(self, figures, kinds=KINDS):
        d = difference(figures[self.a][self.measure], figures[self.b][self.measure], kind_of(self.measure, kinds))
        inside = -self.within < d.low and d.high < self.within
        outside = d.low > self.within or d.high < -self.within
        verdict = "holds" if inside else "fails" if outside else "undecided"
        return Finding(verdict, f"{self.measure}: {self.a} - {self.b} = {d.estimate:.3f} "
                                f"[{d.low:.3f}, {d.high:.3f}], wanted within {self.within:g}", d.low, d.high)


@dataclass(frozen=True)
class Exceeds(Rule):
    """The mean of `measure` under one arm is more than `bound`."""

    measure: str
    arm: str
    bound: float

    @property
    def arms(self):
        return (self.arm,)

    def judge(self, figures, kinds=KINDS):
        d = two_level(figures[self.arm][self.measure], kind=kind_of(self.measure, kinds))
        verdict = "holds" if d.low > self.bound else "fails" if d.high < self.bound else "undecided"
        return Finding(verdict, f"{self.measure}: {self.arm} = {d.estimate:.3f} [{d.low:.3f}, {d.high:.3f}], wanted "
                                f"above {self.bound:g}", d.low, d.high)


@dataclass(frozen=True)
class Below(Rule):
    """The mean of `measure` under one arm is less than `bound`."""

    measure: str
    arm: str
    bound: float

    @property
    def arms(self):
        return (self.arm,)

    def judge(self, figures, kinds=KINDS):
        d = two_level(figures[self.arm][self.measure], kind=kind_of(self.measure, kinds))
        verdict = "holds" if d.high < self.bound else "fails" if d.low > self.bound else "undecided"
        return Finding(verdict, f"{self.measure}: {self.arm} = {d.estimate:.3g} [{d.low:.3g}, {d.high:.3g}], wanted "
                                f"below {self.bound:g}", d.low, d.high)


@dataclass(frozen=True)
class Every(Rule):
    """All of them: fails when one fails, holds when all hold."""

    rules: tuple[Rule, ...]

    @property
    def arms(self):
        return tuple(dict.fromkeys(a for r in self.rules for a in r.arms))

    def judge(self, figures, kinds=KINDS):
        found = [r.judge(figures, kinds) for r in self.rules]
        verdicts = {f.verdict for f in found}
        verdict = "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"
        return Finding(verdict, "; ".join(f.text for f in found), min(f.low for f in found), max(f.high for f in found))


@dataclass(frozen=True)
class Part:
    """One experiment with the rule that judges it. A part that does not decide is reported beside the verdict."""

    name: str
    experiment: Experiment
    rule: Rule
    decides: bool = True


@dataclass(frozen=True)
class Sabotage:
    """One change after which the statement must no longer be found to hold."""

    says: str
    change: Callable[[Experiment], Experiment]
    part: str  # the part that it changes


@dataclass(frozen=True)
class Claim:
    name: str
    rows: tuple[str, ...]  # of the ledger
    paper: str
    statement: str  # the paper's own sentence
    here: str  # the task and scale on which it is tested
    parts: tuple[Part, ...]
    sabotage: Sabotage
    needs: tuple[str, ...] = ()  # of the extras and data


def kind_of(measure: str, kinds: Kinds) -> Kind:
    """What the values of a measure are: declared by the experiment, or one of KINDS."""
    found = kinds.get(measure, KINDS.get(measure))
    if found is None:
        raise UserError(f"The measure {measure!r} has no kind, so its interval is undefined.", where="claims",
                        do=f'declare it: Experiment(..., kinds=(({measure!r}, "real"),)), or "rate" or "bounded"')
    return found


def difference(first, second, kind: Kind = "rate") -> Interval:
    """Of two arms, from values (training seeds, episodes): the same seeds and starts in the same places."""
    return two_level_difference(first, second, kind=kind)[0]


def summary(figures: Figures, kinds: Kinds = KINDS) -> dict:
    """{arm: {measure: {"estimate", "low", "high", "level"}}}, two-level."""
    return {arm: {name: asdict(two_level(v, kind=kind_of(name, kinds))) for name, v in measures.items()}
            for arm, measures in figures.items()}
