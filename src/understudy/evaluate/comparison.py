"""Compare several policies, or methods with several training seeds, on the same starts, or one policy in two
environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import scipy

from ..core import UserError
from ..files import replace_nonfinite
from ..hints import join_and
from .evaluation import (
    Evaluation,
    MethodRuns,
    PairedComparison,
    _as_runs,
    _format_difference,
    _format_interval,
    _success_counts,
    aggregate_seeds,
    compare,
    compare_outcomes,
    format_p_value,
    with_common_success,
)
from .multiple_comparisons import RankInterval, compact_letter_display, holm, rank_intervals
from .planning import paired_power
from .stats import LEVEL, Interval, seeds_caveat

TARGET_POWER = 0.8
MAX_EPISODES = 1_000_000  # upper bound for proposed numbers of rollouts


@dataclass(frozen=True)
class PairwiseResult:
    """The result of comparing two policies. Differences are first minus second."""

    a: int
    b: int
    comparison: PairedComparison
    adjusted_p_value: float  # adjusted for all pairs (Holm)
    # episodes (for methods: training seeds) that would tell them apart; None if no count would
    episodes_needed: int | None

    @property
    def better(self) -> Literal["first", "second"] | None:
        """The better policy, or None for "cannot tell": the interval and both tests do not all show a difference."""
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
    note: str = ""  # what the verdict says of the policies besides

    @property
    def is_different(self) -> np.ndarray:
        """Which pairs of policies can be told apart, (n, n) bool."""
        out = np.zeros((len(self.names), len(self.names)), bool)
        for p in self.pairs:
            out[p.a, p.b] = out[p.b, p.a] = p.better is not None
        return out

    @property
    def ranking(self) -> list[int]:
        """Indices of the policies, from the best to the worst."""
        return sorted(range(len(self.names)), key=lambda i: -self.estimates[i].estimate)

    @property
    def letters(self) -> list[str]:
        """Compact letter display: two policies that share a letter cannot be told apart; "a" belongs to the best.
        """
        return compact_letter_display(self.is_different, self.ranking)

    @property
    def ranks(self) -> list[RankInterval]:
        return rank_intervals(self.is_different, [i.estimate for i in self.estimates])

    def to_json(self) -> dict[str, Any]:
        """Returns the document of `understudy compare --json`. "success" has returns if `of` says so."""
        def names(p: PairwiseResult) -> dict[str, str]:
            return {"a": self.names[p.a], "b": self.names[p.b]}
        policies = [{"name": name, "success": estimate.to_json(), "letters": letters}
                    for name, estimate, letters in zip(self.names, self.estimates, self.letters, strict=True)]
        pairs = [{**names(p), **p.comparison.to_json(), "p_adjusted": p.adjusted_p_value} for p in self.pairs]
        unit = "seeds" if self.seeds > 1 else "episodes"
        needed = [{**names(p), unit: p.episodes_needed} for p in self.pairs if p.better is None]
        return replace_nonfinite({"env": self.env, "episodes": self.episodes, "of": self.metric, "seeds": self.seeds,
                                  "level": self.level, "policies": policies, "pairs": pairs, "needed": needed,
                                  "verdict": " ".join(self.verdict_parts())})

    def verdict_parts(self) -> tuple[str, str, str]:
        """Returns sentences: which policy is best, how certain that is, and what the statement is about."""
        best, *other_policies = self.ranking
        most = "succeeds most often" if self.metric == "success" else "has the highest return"
        worse = [i for i in other_policies if self.is_different[best, i]]
        unclear = [self.names[i] for i in other_policies if i not in worse]
        if not unclear:
            others = "every other" if len(other_policies) > 1 else self.names[other_policies[0]]
            head = f"{self.names[best]} {most}, and is better than {others}."
        elif any(p.better for p in self.pairs):
            head = f"Cannot tell which is best: {join_and([self.names[best], *unclear])} cannot be told apart."
        else:
            question = "which is best" if len(other_policies) > 1 else f"whether {' or '.join(self.names)} is better"
            head = f"Cannot tell {question}."
        sure = f"{sum(p.better is not None for p in self.pairs)} of {len(self.pairs)} pairs can be told apart"
        sure += f", at {1 - self.level:.0%}" + (" for all pairs together (Holm)." if len(self.pairs) > 1 else ".")
        scope = ("This is about these checkpoints; to compare methods, train several seeds of each (--group)."
                 if self.seeds == 1 else
                 f"This is about the methods: {self.seeds} training seeds of each, over seeds and starts. "
                 f"{seeds_caveat(self.seeds)}")
        return head, sure, f"{scope} {self.note}".strip()

    def next_steps(self) -> list[str]:
        """Says what is needed to tell apart each pair of policies that is not told apart yet, one line per pair."""
        unit, have = ("training seeds of each", self.seeds) if self.seeds > 1 else ("episodes", self.episodes)
        out = []
        for p in self.pairs:
            if p.better is None:
                who = f"{self.names[p.a]} and {self.names[p.b]}"
                out.append(
                    f"{who}: no difference was measured, so no number of {unit} would show one"
                    if p.episodes_needed is None
                    else f"{who}: about {p.episodes_needed} {unit} if they differ as they do here "
                    f"({_format_difference(p.comparison.difference, self.metric)}), {p.episodes_needed - have} more"
                )
        return out


def compare_all(policies: Mapping[str, MethodRuns], *, level: float = LEVEL) -> Comparison:
    """Compares each pair of several policies or methods on the same starts.

    Each pair is compared as by `evaluation.compare`. The p-values of all pairs are adjusted together (Holm 1979). Two
    policies count as different only if the adjusted p-value and the interval of the pair agree.

    Args:
        policies: Evaluations by name: one per checkpoint, or several per method, one for each training seed.

    Returns:
        The comparison. `episodes_needed` is the number of episodes (or seeds) that would detect a difference as large
        as the observed one with probability 0.8, at level (1 - level) / pairs. It is as uncertain as that difference.
    """
    if len(policies) < 2:
        raise UserError(f"a comparison needs at least two policies, not {len(policies)}", where="compare",
                        hint="evaluate(...) evaluates a single policy")
    names = tuple(policies)
    groups = with_common_success([_as_runs(r) for r in policies.values()])
    if len({len(g) for g in groups}) > 1:
        raise UserError("all methods need the same number of training seeds, but there are "
                        + ", ".join(f"{len(g)} of {n}" for n, g in zip(names, groups, strict=True)), where="compare",
                        hint="train the missing ones, or leave some out")
    of = "success" if all(r.success is not None for g in groups for r in g) else "return"
    several = len(groups[0]) > 1
    if of == "return" and len(groups[0][0].episodes) < 2:
        raise UserError("one episode is not enough to compare returns", where="compare",
                        hint="ask for more --episodes")
    means = [aggregate_seeds(g, level) if several else g[0] for g in groups]
    estimates = tuple(m.success if of == "success" and m.success is not None else m.returns for m in means)
    index_pairs = list(combinations(range(len(names)), 2))
    comparisons = [compare(groups[i], groups[j], metric=of, level=level) for i, j in index_pairs]
    adjusted = holm([1.0 if math.isnan(p.p_value) else p.p_value for p in comparisons])
    alpha = (1 - level) / len(index_pairs)
    pairs = tuple(PairwiseResult(i, j, p, float(q), _episodes_needed(groups[i], groups[j], p, alpha))
                  for (i, j), p, q in zip(index_pairs, comparisons, adjusted, strict=True))
    return Comparison(groups[0][0].env, of, names, estimates, pairs, len(groups[0][0].episodes), len(groups[0]), level)


def generalization_gap(training: Evaluation, new: Evaluation, level: float = LEVEL) -> PairedComparison:
    """Computes how much better a policy is where it was trained than in a new environment.

    Episodes of the same number and seed draw the same random numbers, so they are pairs. If the two environments make
    nothing common of these, such as mazes of other walls, the outcomes of a pair are unrelated. The interval is then as
    wide as an interval for two independent samples.

    Args:
        training: Rollouts in the environment, or the levels, of the training data.
        new: As many rollouts with the same seed in another environment, or in other levels.

    References:
        Mediratta et al. (2023), The Generalization Gap in Offline Reinforcement Learning, arXiv 2312.05742.
    """
    ((training,), (new,)) = with_common_success([[training], [new]])
    if (training.seed, len(training.episodes)) != (new.seed, len(new.episodes)):
        raise UserError(f"the rollouts are not pairs: {len(training.episodes)} of seed {training.seed} in "
                        f"{training.env}, and {len(new.episodes)} of seed {new.seed} in {new.env}",
                        where="generalization_gap", hint="evaluate both with the same seed and number of episodes")
    if training.successes is not None and new.successes is not None:
        return compare_outcomes(training.successes, new.successes, "success", level)
    return compare_outcomes(training.episode_returns, new.episode_returns, "return", level)


def describe_generalization_gap(training: Evaluation, gap: PairedComparison, names: tuple[str, str]) -> str:
    """Describes the generalization gap in words.

    Args:
        names: Of the training environment, and of the new one.
    """
    return (f"In the training environment {names[0]}: {_success_counts([training], gap.metric)}. Generalization gap, "
            f"{names[0]} minus {names[1]}: {_format_difference(gap.difference, gap.metric)}, "
            f"{_format_interval(gap, lambda v: _format_difference(v, gap.metric))}, {format_p_value(gap.p_value)}.")


def _episodes_needed(a, b, p: PairedComparison, alpha: float) -> int | None:
    """Estimates the number of episodes (for methods: training seeds) that would detect a difference like this one."""
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

    def enough(n):  # the power of Student's t follows from the noncentral t distribution
        edge = scipy.stats.t.isf(alpha / 2, n - 1)
        return scipy.stats.nct.sf(edge, n - 1, min(reach * math.sqrt(n), 1e3)) >= TARGET_POWER
    flips = math.floor(math.log2(2 / alpha))  # with fewer returns, no combination of signs gives such a small p
    return _smallest_sufficient(enough, max(have, flips) if p.n_seeds == 1 else have)


def _smallest_sufficient(enough: Callable[[int], bool], low: int) -> int | None:
    """Returns the smallest sufficient number above `low`, if every larger number is sufficient, too."""
    high = low + 1
    while not enough(high):
        low, high = high, 2 * high
        if high > MAX_EPISODES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
