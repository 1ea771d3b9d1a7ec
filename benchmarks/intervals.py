"""How often intervals hold the truth and tests call chance a difference: python benchmarks/intervals.py

Where all outcomes can be enumerated, the figure is exact; elsewhere it is simulated, with its simulation error (one
standard error). Writes results/coverage.json after every line, goes on where it was stopped, and puts the tables into
docs/tables/statistics.md (`--page`: only that). Everything is seeded; needs about ten CPU-minutes.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import other_statistics
from scipy import stats as scipy_stats

from understudy.evaluate import independent, multiple_comparisons, stats
from understudy.evaluate.noninferiority import equivalence_p_value, noninferiority_p_value
from understudy.evaluate.returns import aggregate_over_tasks, bootstrap, interquartile_mean, performance_profile
from understudy.evaluate.sequential import PRIOR_WEIGHT, SequentialDifferenceTest, SequentialRateTest

HERE = Path(__file__).parent
FILE, PAGE = HERE / "results" / "coverage.json", HERE.parent / "docs" / "tables" / "statistics.md"
GRID = np.linspace(0.005, 0.995, 199)  # of true rates


# -- exactly ------------------------------------------------------------------------------------------------------


def one_rate(interval):
    """199 rates from 0.5 to 99.5 %, each at 5, 10, 20, 50, 100 and 500 trials."""
    for n in (5, 10, 20, 50, 100, 500):
        limits = [interval(k, n) for k in range(n + 1)]
        low, high = np.array([i.low for i in limits]), np.array([i.high for i in limits])
        mass = scipy_stats.binom.pmf(np.arange(n + 1), n, GRID[:, None])
        yield from (mass * ((low <= GRID[:, None]) & (GRID[:, None] <= high))).sum(1)


def two_rates(interval):
    """Two rates from 5 to 95 %, 10, 20 and 40 trials of each."""
    for n in (10, 20, 40):
        k = np.arange(n + 1)
        limits = [[interval(a, n, b, n) for b in k] for a in k]
        low, high = (np.array([[getattr(i, end) for i in row] for row in limits]) for end in ("low", "high"))
        rates = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
        mass = scipy_stats.binom.pmf(k, n, rates[:, None])
        for p, first in zip(rates, mass, strict=True):
            for q, second in zip(rates, mass, strict=True):
                yield float(first @ ((low <= p - q + 1e-12) & (p - q - 1e-12 <= high)) @ second)


PAIRS = [(a, b, r) for a, b in ((0.5, 0.5), (0.7, 0.8), (0.9, 0.95), (0.95, 0.95), (0.5, 0.9), (0.2, 0.3), (0.98, 0.98))
         for r in (0.0, 0.3, 0.6)]


def cells(p: float, q: float, r: float) -> tuple[float, float, float, float] | None:
    """(both, only first, only second, neither) of rates p and q correlated r, where there are such."""
    both = p * q + r * math.sqrt(p * (1 - p) * q * (1 - q))
    table_rates = (both, p - both, q - both, 1 - p - q + both)
    return table_rates if min(table_rates) >= 0 else None


def paired(interval, sizes=(10, 20, 40)):
    """Rates from 50 and 50 to 98 and 98 % with correlations 0 to 0.6, at 10, 20 and 40 pairs.

    The interval is of counts: both, only first, only second, neither."""
    for n in sizes:
        tables = np.array([(a, b, c, n - a - b - c) for b in range(n + 1) for c in range(n + 1 - b)
                           for a in range(n + 1 - b - c)])
        limits = [interval(*map(int, t)) for t in tables]
        low, high = np.array([i.low for i in limits]), np.array([i.high for i in limits])
        for p, q, r in PAIRS:
            if at := cells(p, q, r):
                mass = scipy_stats.multinomial.pmf(tables, n, np.array(at) / sum(at))
                yield float(mass @ ((low <= p - q + 1e-12) & (p - q - 1e-12 <= high)))


tango, mcnemars = cache(stats.tango), cache(stats.mcnemar)


def ever(stops, p: float, most: int) -> float:
    """The probability that any of `most` looks at rollouts of rate p is among the counts that stop."""
    alive, stopped = np.array([1.0]), 0.0
    for n in range(1, most + 1):
        alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        out = stops(n)
        stopped += alive[out].sum()
        alive[out] = 0
    return float(stopped)


def sequence_of_a_rate():
    """Bounds of 10 to 95 % and rates of 2 to 99 %, after every one of 1,000 rollouts at once."""
    for than in (0.1, 0.5, 0.7, 0.95):
        rate = SequentialRateTest(than)
        for p in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99):
            yield 1 - ever(lambda n, p=p, rate=rate: rate._log_e_value(np.arange(n + 1), n, p) >= math.log(20), p, 1000)


def verdicts_of_a_rate():
    """Rates equal to bounds of 5 to 95 %, looked at after every one of 2,000 rollouts."""
    for than in (0.05, 0.3, 0.5, 0.7, 0.9, 0.95):
        low, high = SequentialRateTest(than).decision_bounds(np.arange(2001))

        def stops(n, low=low, high=high):
            k = np.arange(n + 1)
            return (k <= low[n]) | (k >= high[n])
        yield ever(stops, than, 2000)


def verdicts_of_two():
    """Equally good policies, looked at after each of 2,000 pairs that differ."""
    needed = SequentialDifferenceTest().wins_needed(2000)
    yield ever(lambda n: np.maximum(np.arange(n + 1), n - np.arange(n + 1)) >= needed[n], 0.5, 2000)


def naive_of_two():
    """Equally good policies, McNemar's test at 5 % after each of 200 pairs that differ."""
    yield ever(lambda n: 2 * scipy_stats.binom.cdf(np.minimum(np.arange(n + 1), n - np.arange(n + 1)), n, 0.5) < 0.05,
               0.5, 200)


def of_pairs(decides):
    """Equally good policies that differ on 5 to 100 % of 10 to 300 pairs."""
    for n in (10, 20, 50, 100, 300):
        for share in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
            total = 0.0
            for m in range(n + 1):
                b = np.arange(m + 1)
                total += float(scipy_stats.binom.pmf(m, n, share) * (scipy_stats.binom.pmf(b, m, 0.5)
                                                                     @ decides(b, m - b, n)))
            yield total


def mcnemar(b, c, n):
    return np.minimum(2 * scipy_stats.binom.cdf(np.minimum(b, c), b + c, 0.5), 1) < 0.05


def score(b, c, n):
    return np.abs(b - c) > 1.959964 * np.sqrt(b + c)


def of_independent(p_value):
    """Equal rates of 2 to 98 %, 10 and 20 trials of each."""
    for n in (10, 20):
        k = np.arange(n + 1)
        sure = np.array([[p_value(a, n, b, n) < 0.05 for b in k] for a in k])
        for p in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.98):
            mass = scipy_stats.binom.pmf(k, n, p)
            yield float(mass @ sure @ mass)


def at_the_margin(test):
    """Policies exactly `margin` apart (5 to 20 points), 50 pairs of rates 60 to 90 %, correlations 0 to 0.6."""
    n = 50
    for margin in (0.05, 0.1, 0.2):
        above, below = (np.array([[stats.tango_z(b, c, n, d) if b + c <= n else 0 for c in range(n + 1)]
                                  for b in range(n + 1)]) for d in (-margin, margin))
        sure = (above > 1.6448536) & ((below < -1.6448536) | (test is noninferiority_p_value))
        b, c = np.nonzero(sure)
        for q in (0.6, 0.8, 0.9):
            for r in (0.0, 0.3, 0.6):
                if at := cells(q - margin, q, r):
                    counts = np.stack([b, c, n - b - c], 1)
                    yield float(scipy_stats.multinomial.pmf(counts, n, [at[1], at[2], at[0] + at[3]]).sum())


# -- simulated ----------------------------------------------------------------------------------------------------


def latent(rng, p, seeds, starts, shape=(5, 100), shared=None):
    """0s and 1s of rate p, with spreads over training seeds and over starts."""
    shared = rng.normal(size=(1, shape[1])) if shared is None else shared
    z = seeds * rng.normal(size=(shape[0], 1)) + starts * shared + rng.normal(size=shape)
    return (z + scipy_stats.norm.ppf(p) * math.sqrt(1 + seeds**2 + starts**2) > 0).astype(float)


def covers(i, truth) -> bool:
    return bool(i.low <= truth <= i.high)


def exchanged(rng, draws=500):
    """Equal methods, 4 and 5 training seeds of each by 30 starts, spreads over both."""
    for seeds in (4, 5):
        for p, s, e in ((0.5, 0, 0), (0.8, 1, 1), (0.95, 0.3, 3)):
            out = []
            for _ in range(draws):
                shared = rng.normal(size=(1, 30))
                out.append(
                    stats.permutation_p_value(*(latent(rng, p, s, e, (seeds, 30), shared) for _ in range(2))) <= 0.05
                )
            yield out


LAWS = {"normal": (lambda rng, size: rng.normal(size=size), 0.0), "exponential": (
    lambda rng, size: rng.exponential(size=size), 1.0), "three values": (
        lambda rng, size: rng.choice([0.0, 0.5, 1.0], size=size, p=[0.2, 0.2, 0.6]), 0.7)}


def values(interval, draws=200, sizes=(10, 20, 50), truth=None):
    def run(rng):
        """Normal, exponential and three-valued (0, 0.5, 1), 10, 20 and 50 values."""
        for draw, mean in LAWS.values():
            target = mean if truth is None else float(truth(draw(np.random.default_rng(9), 1_000_000)))
            for n in sizes:
                yield [covers(interval(draw(rng, n)), target) for _ in range(draws)]
    return run


def tasks(runs):
    def run(rng, draws=200):
        """Interquartile mean of six tasks of other difficulty and spread."""
        levels, spread = np.array([0.0, 0.2, 0.5, 0.9, 1.5, 4.0]), np.array([0.2, 0.2, 0.5, 0.3, 1.0, 0.5])
        truth = float(interquartile_mean(levels + spread * np.random.default_rng(9).normal(size=(300_000, 6))))
        yield [covers(aggregate_over_tasks(levels + spread * rng.normal(size=(runs, 6))), truth) for _ in range(draws)]
    return run


def band(runs):
    def run(rng, draws=200):
        """Four tasks, at three thresholds."""
        levels, at = np.array([0.0, 0.3, 0.6, 1.0]), np.array([0.0, 0.4, 0.8])
        truth = scipy_stats.norm.sf(at[:, None], levels, 0.5).mean(1)
        profiles = [performance_profile(levels + 0.5 * rng.normal(size=(runs, 4)), at) for _ in range(draws)]
        for k in range(3):
            yield [bool(p.low[k] <= truth[k] <= p.high[k]) for p in profiles]
    return run


def sequence_of_a_difference(rng, draws=1000, most=500):
    """Differences of -10 to 50 points with correlations 0 to 0.6, after every one of 500 pairs at once."""
    # Each bet's wealth is followed pair by pair: not the closed form that is used.
    nodes, weights = np.polynomial.legendre.leggauss(96)
    u, weights = (
        (1 + nodes) / 2,
        weights / 2 * scipy_stats.beta.pdf((1 + nodes) / 2, PRIOR_WEIGHT / 2, PRIOR_WEIGHT / 2),
    )
    for p, q, r in ((0.5, 0.5, 0), (0.8, 0.8, 0.6), (0.8, 0.7, 0.3), (0.95, 0.85, 0), (0.9, 0.4, 0), (0.7, 0.8, 0.6)):
        d, at = p - q, cells(p, q, r)
        gain = np.log(np.stack([2 * u / (1 + d), 2 * (1 - u) / (1 - d), (1 + d - 2 * u * d) / (1 - d * d)]))
        log, out = np.zeros((draws, u.size)), np.zeros(draws, bool)
        for _ in range(most):
            log += gain[rng.choice(3, size=draws, p=[at[1], at[2], at[0] + at[3]])]
            out |= np.exp(log) @ weights >= 20
        yield (~out).tolist()


def families(adjust):
    def run(rng, draws=1000):
        """Six policies on the same 100 starts, all equal or three pairs of equals: any of the equal ones told apart."""
        for rates in ([0.8] * 6, [0.6, 0.6, 0.8, 0.8, 0.95, 0.95]):
            out = []
            for _ in range(draws):
                hardness = rng.normal(size=(1, 100)) + rng.normal(size=(6, 100))
                x = scipy_stats.norm.cdf(hardness, scale=math.sqrt(2)) < np.array(rates)[:, None]
                p = adjust([mcnemars(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in combinations(x, 2)])
                out.append(any(v < 0.05 for v, (a, b) in zip(p, combinations(rates, 2), strict=True) if a == b))
            yield out
    return run


def all_ranks(rng, draws=1000):
    """Six policies, all equal, three pairs of equals, or all different: all ranks at once."""
    for rates in ([0.8] * 6, [0.6, 0.6, 0.8, 0.8, 0.95, 0.95], [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]):
        out = []
        for _ in range(draws):
            x = rng.random((6, 100)) < np.array(rates)[:, None]
            p = multiple_comparisons.holm(
                [mcnemars(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in combinations(x, 2)]
            )
            different = np.zeros((6, 6), bool)
            for v, (i, j) in zip(p, combinations(range(6), 2), strict=True):
                different[i, j] = different[j, i] = v < 0.05
            best = [1 + sum(o > r for o in rates) for r in rates]
            last = [sum(o >= r for o in rates) for r in rates]
            out.append(all(f.low <= b and w <= f.high for f, b, w in zip(
                multiple_comparisons.rank_intervals(different, x.mean(1)), best, last, strict=True)))
        yield out


# -- the tables ---------------------------------------------------------------------------------------------------

ALWAYS, AVERAGE, ABOUT = "at least 95 %", "95 % on average", "about 95 %"
INTERVALS = {
    "Clopper–Pearson": (ALWAYS, one_rate, stats.clopper_pearson),
    "Wilson": (AVERAGE, one_rate, stats.wilson),
    "Jeffreys' posterior": (AVERAGE, one_rate, stats.beta_posterior),
    "Tango, paired": (ABOUT, paired, lambda a, b, c, d: tango(b, c, a + b + c + d)),
    "Newcombe, paired": (ABOUT, paired, other_statistics.newcombe_paired),
    "Miettinen–Nurminen, unpaired": (ABOUT, two_rates, independent.miettinen_nurminen),
    "Newcombe, unpaired": (ABOUT, two_rates, other_statistics.newcombe_independent),
    "mean: BCa, widened": (ABOUT, values(stats.bootstrap_mean, draws=400)),
    "mean: BCa": (ABOUT, values(bootstrap)),
    "mean: percentile": (ABOUT, values(lambda x: bootstrap(x, method="percentile"))),
    "interquartile mean: BCa": (ABOUT, values(lambda x: bootstrap(x, lambda v, axis: interquartile_mean(v, axis)),
                                              truth=interquartile_mean)),
    "over tasks, 3 runs": (ABOUT, tasks(3)),
    "over tasks, 10 runs": (ABOUT, tasks(10)),
    "over tasks, 50 runs": (ABOUT, tasks(50)),
    "profile, 10 runs": (ABOUT, band(10)),
    "profile, 50 runs": (ABOUT, band(50)),
    "ranks, all at once": (ALWAYS, all_ranks),
    "confidence sequence of a rate": (ALWAYS, sequence_of_a_rate),
    "confidence sequence of a difference": (ALWAYS, sequence_of_a_difference),
}
TESTS = {
    "McNemar, exact": ("at most 5 %", of_pairs, mcnemar),
    "Tango's score": ("about 5 %", of_pairs, score),
    "verdict of `compare`: both": ("at most 5 %", of_pairs, lambda b, c, n: mcnemar(b, c, n) & score(b, c, n)),
    "Fisher, exact": ("at most 5 %", of_independent, independent.fisher_exact),
    "Barnard, exact": ("at most 5 %", of_independent, independent.barnard_exact),
    "permutation of runs": ("at most 5 %", exchanged),
    "not inferior, paired": ("about 5 %", at_the_margin, noninferiority_p_value),
    "equivalent, paired": ("about 5 %", at_the_margin, equivalence_p_value),
    "15 pairs, Bonferroni": ("at most 5 %", families(other_statistics.bonferroni)),
    "15 pairs, Holm": ("at most 5 %", families(multiple_comparisons.holm)),
    "15 pairs, not adjusted": ("none", families(np.asarray)),
    "`SequentialRateTest`, always looking": ("at most 5 %", verdicts_of_a_rate),
    "`SequentialDifferenceTest`, always looking": ("at most 5 %", verdicts_of_two),
    "McNemar, always looking": ("none", naive_of_two),
}
SIMULATED = {name for name, (_, run, *_) in {**INTERVALS, **TESTS}.items() if "rng" in run.__code__.co_varnames[:1]}


def line(name: str, promise: str, run, *what) -> dict:
    """The mean and the worst over the cases, and how sure these are."""
    worst = max if name in TESTS else min
    cases = list(run(np.random.default_rng(zlib.crc32(name.encode())))) if name in SIMULATED else list(run(*what))
    draws = len(cases[0]) if name in SIMULATED else None
    rates = [float(np.mean(c)) for c in cases]
    error = None if draws is None else math.sqrt(max(worst(rates) * (1 - worst(rates)), 0.25 / draws) / draws)
    return {"name": name, "promise": promise, "cases": len(rates), "draws": draws, "mean": float(np.mean(rates)),
            "worst": float(worst(rates)), "error": error}


def kept(result: dict) -> bool:
    """Whether a line keeps its promise, less three simulation errors."""
    slack = 1e-9 + 3 * (result["error"] or 0)
    return result["promise"] not in (ALWAYS, "at most 5 %") or (
        result["worst"] <= 0.05 + slack if result["name"] in TESTS else result["worst"] >= 0.95 - slack)


def main() -> int:
    stored_lines = {f["name"]: f for f in json.loads(FILE.read_text())["lines"]} if FILE.exists() else {}
    for name, what in {**TESTS, **INTERVALS}.items():
        if "--page" not in sys.argv and name not in stored_lines:
            stored_lines[name] = line(name, *what)
            FILE.write_text(json.dumps({"lines": list(stored_lines.values())}, indent=1, ensure_ascii=False) + "\n")
            print(json.dumps(stored_lines[name], ensure_ascii=False), flush=True)
    page(stored_lines)
    broken = [f["name"] for f in stored_lines.values() if not kept(f)]
    print(f"promises not kept: {', '.join(broken)}" if broken else "every promise is kept")
    return len(broken)


def page(results: dict) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for title, names, level, worst in (("intervals", INTERVALS, 95, "lowest"), ("tests", TESTS, 5, "highest")):
        rows = [f"| | promise of {level} % | mean | {worst} |", "|---|---|--:|--:|"]
        rows += [_row(results[n]) for n in names if n in results]
        begin, end = f"<!-- {title}: made by benchmarks/intervals.py -->", f"<!-- end of {title} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = "\n".join([before + begin, "", *rows, "", end + after])
    PAGE.write_text(text, encoding="utf-8")


def _row(f: dict) -> str:
    error = "" if f["error"] is None else f" ± {100 * f['error']:.1f}"
    promise = f["promise"].replace("95 %", "").replace("5 %", "").strip()
    return f"| {f['name']} | {promise} | {f['mean']:.1%} | {f['worst']:.1%}{error} |"


if __name__ == "__main__":
    sys.exit(main())
