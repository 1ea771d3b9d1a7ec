"""Several policies, or methods of several training seeds each, on the same starts: who can be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy import stats as scipy_stats

from ..core import UserError
from ..files import replace_nonfinite
from .evaluation import MethodRuns, PairedComparison, _as_runs, _format_difference, aggregate_seeds, compare
from .multiple_comparisons import RankInterval, compact_letter_display, holm, rank_intervals
from .planning import paired_power
from .stats import LEVEL, Interval, seeds_caveat

TARGET_POWER = 0.8
MAX_EPISODES = 1_000_000  # rollouts that anybody would think of


@dataclass(frozen=True)
class PairwiseResult:
    """Numbers of two policies, first minus second."""

    a: int
    b: int
    comparison: PairedComparison
    adjusted_p_value: float  # p, for all pairs together (Holm)
    # episodes (of methods: training seeds) that would tell them apart; None where no number would
    episodes_needed: int | None

    @property
    def better(self) -> Literal["first", "second"] | None:
        """None: cannot tell. Interval, test and adjusted test must all say so."""
        return self.comparison.better if self.adjusted_p_value < 1 - self.comparison.level else None


@dataclass(frozen=True)
class Comparison:
    env: str
    metric: Literal["success", "return"]
    names: tuple[str, ...]
    estimates: tuple[Interval, ...]
    pairs: tuple[PairwiseResult, ...]
    episodes: int
    seeds: int  # training seeds of each: 1 for checkpoints
    level: float

    @property
    def is_different(self) -> np.ndarray:
        """(n, n) bool."""
        out = np.zeros((len(self.names), len(self.names)), bool)
        for p in self.pairs:
            out[p.a, p.b] = out[p.b, p.a] = p.better is not None
        return out

    @property
    def ranking(self) -> list[int]:
        """The policies' numbers, best first."""
        return sorted(range(len(self.names)), key=lambda i: -self.estimates[i].estimate)

    @property
    def letters(self) -> list[str]:
        """Two that share one cannot be told apart; "a" is the best's."""
        return compact_letter_display(self.is_different, self.ranking)

    @property
    def ranks(self) -> list[RankInterval]:
        return rank_intervals(self.is_different, [i.estimate for i in self.estimates])

    def to_json(self) -> dict[str, Any]:
        """The document of `understudy compare --json`. "success" holds returns where `of` says so."""
        shared = self.letters
        return replace_nonfinite(
            {
                "env": self.env,
                "episodes": self.episodes,
                "of": self.metric,
                "seeds": self.seeds,
                "level": self.level,
                "policies": [
                    {"name": name, "success": {"estimate": e.estimate, "low": e.low, "high": e.high}, "letters": s}
                    for name, e, s in zip(self.names, self.estimates, shared, strict=True)
                ],
                "pairs": [
                    {
                        "a": self.names[p.a],
                        "b": self.names[p.b],
                        "difference": p.comparison.difference,
                        "low": p.comparison.low,
                        "high": p.comparison.high,
                        "p": p.comparison.p_value,
                        "p_adjusted": p.adjusted_p_value,
                    }
                    for p in self.pairs
                ],
                "needed": [
                    {
                        "a": self.names[p.a],
                        "b": self.names[p.b],
                        "seeds" if self.seeds > 1 else "episodes": p.episodes_needed,
                    }
                    for p in self.pairs
                    if p.better is None
                ],
            }
        )

    def verdict_parts(self) -> tuple[str, str, str]:
        """Who is best, how sure that is, and what it is about."""
        best, *rest = self.ranking
        most = "succeeds most often" if self.metric == "success" else "has the highest return"
        told = [i for i in rest if self.is_different[best, i]]
        unclear = [self.names[i] for i in rest if i not in told]
        if not unclear:
            others = "every other" if len(rest) > 1 else self.names[rest[0]]
            head = f"{self.names[best]} {most}, and is better than {others}."
        elif any(p.better for p in self.pairs):
            head = f"Cannot tell which is best: {_join_and([self.names[best], *unclear])} cannot be told apart."
        else:
            head = f"Cannot tell {'which is best' if len(rest) > 1 else f'whether {_join_or(self.names)} is better'}."
        sure = f"{sum(p.better is not None for p in self.pairs)} of {len(self.pairs)} pairs can be told apart"
        sure += f", at {1 - self.level:.0%}" + (" for all pairs together (Holm)." if len(self.pairs) > 1 else ".")
        scope = ("This is about these checkpoints; to compare methods, train several seeds of each (--group)."
                 if self.seeds == 1 else
                 f"This is about the methods: {self.seeds} training seeds of each, over seeds and starts. "
                 f"{seeds_caveat(self.seeds)}")
        return head, sure, scope

    def next_steps(self) -> list[str]:
        """What it would take to tell the others apart, a line a pair."""
        unit, have = ("training seeds of each", self.seeds) if self.seeds > 1 else ("episodes", self.episodes)
        out = []
        for p in self.pairs:
            if p.better is None:
                who = f"{self.names[p.a]} and {self.names[p.b]}"
                out.append(
                    f"{who}: no number of {unit} would tell apart what does not differ"
                    if p.episodes_needed is None
                    else f"{who}: about {p.episodes_needed} {unit} if they differ as they do here "
                    f"({_format_difference(p.comparison.difference, self.metric)}), {p.episodes_needed - have} more"
                )
        return out


def compare_all(policies: Mapping[str, MethodRuns], *, level: float = LEVEL) -> Comparison:
    """Each a name and its evaluation (of a checkpoint), or its evaluations, one a training seed (of a method); all on
    the same starts. Every two are compared as by `judge.compare`; the p of all pairs are adjusted together (Holm
    1979), and two are told apart only where the adjusted p and the pair's own interval both say so.

    needed: what finds a difference as large as the one seen with probability 0.8, at the level of `1 - level` over the
    number of pairs; as vague as that difference is. Raises UserError for fewer than two, or unequal starts or seeds.
    """
    if len(policies) < 2:
        raise UserError(f"expected two policies or more, found {len(policies)}", where="compare",
                        hint="evaluate(...) judges one")
    names, runs = tuple(policies), list(policies.values())
    groups = [_as_runs(r) for r in runs]
    if len({len(g) for g in groups}) > 1:
        raise UserError("expected as many training seeds of each, found "
                        + ", ".join(f"{len(g)} of {n}" for n, g in zip(names, groups, strict=True)), where="compare",
                        hint="train the missing ones, or leave some out")
    of = "success" if all(r.success is not None for g in groups for r in g) else "return"
    several = len(groups[0]) > 1
    if of == "return" and len(groups[0][0].episodes) < 2:
        raise UserError("expected two episodes or more, whose returns differ by chance, found 1", where="compare",
                        hint="ask for more --episodes")
    means = [aggregate_seeds(g, level) if several else g[0] for g in groups]
    estimates = tuple(m.success if of == "success" and m.success is not None else m.returns for m in means)
    which = list(combinations(range(len(names)), 2))
    found = [compare(runs[i], runs[j], metric=of, level=level) for i, j in which]
    adjusted = holm([1.0 if math.isnan(p.p_value) else p.p_value for p in found])
    alpha = (1 - level) / len(which)
    pairs = tuple(PairwiseResult(i, j, p, float(q), _episodes_needed(groups[i], groups[j], p, alpha))
                  for (i, j), p, q in zip(which, found, adjusted, strict=True))
    return Comparison(groups[0][0].env, of, names, estimates, pairs, len(groups[0][0].episodes), len(groups[0]), level)


def _episodes_needed(a, b, p: PairedComparison, alpha: float) -> int | None:
    """Episodes, or of methods training seeds, at which a difference as large as this one would mostly be found: more
    than there are."""
    have = p.n_seeds if p.n_seeds > 1 else len(a[0].episodes)
    if not abs(p.difference) > 1e-9:
        return None
    x, y = (np.array([r.successes if p.metric == "success" else r.episode_returns for r in g], float) for g in (a, b))
    if p.metric == "success" and p.n_seeds == 1:
        spread = x[0].std() * y[0].std()
        alike = float(np.mean((x[0] - x[0].mean()) * (y[0] - y[0].mean())) / spread) if spread else 0.0
        return _smallest_sufficient(
            lambda n: paired_power(float(x.mean()), float(y.mean()), n, alike, alpha) >= TARGET_POWER, have
        )
    d = (x - y).mean(1) if p.n_seeds > 1 else (x - y)[0]
    reach = abs(p.difference) / d.std(ddof=1) if d.std(ddof=1) > 0 else math.inf
    if not reach > 0:
        return None

    def enough(n):  # Student's t, whose power is that of the noncentral t
        edge = scipy_stats.t.isf(alpha / 2, n - 1)
        return scipy_stats.nct.sf(edge, n - 1, min(reach * math.sqrt(n), 1e3)) >= TARGET_POWER
    flips = math.floor(math.log2(2 / alpha))  # fewer returns, of all changes of their signs, cannot give so small a p
    return _smallest_sufficient(enough, max(have, flips) if p.n_seeds == 1 else have)


def _smallest_sufficient(enough: Callable[[int], bool], low: int) -> int | None:
    """The smallest number above `low` that is, if more is never worse."""
    high = low + 1
    while not enough(high):
        low, high = high, 2 * high
        if high > MAX_EPISODES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _join_and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _join_or(names: Sequence[str]) -> str:
    return f"{names[0]} or {names[1]}"
