"""Coverage of the intervals over training seeds, by simulation: python benchmarks/coverage.py

Seeds differ by a normal spread on the probit scale, starts differ in difficulty, and a seed may collapse to a success
rate of 5 %. Each cell simulates many experiments. It records, for the adopted interval and for other candidates, the
fraction of intervals that contain the truth (coverage), their mean width and, for differences, the fraction that
excludes 0. That fraction is the false-positive rate where the methods are equal and the power where they are not.

Results go to results/two_level_coverage.json after every part, and a stopped run continues there. The tables go into
docs/tables/statistics.md. `--page` only writes the tables. `--quick` runs a tenth of the draws, prints the tables and
writes nothing. `--again` starts from nothing. Everything is seeded. The full run takes five to ten minutes on one core.
"""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats

from understudy.evaluate import stats

HERE = Path(__file__).parent
FILE, PAGE = HERE / "results" / "two_level_coverage.json", HERE.parent / "docs" / "tables" / "statistics.md"
SEEDS, EPISODES, SPREADS, RATES = (3, 5, 10, 20), (20, 100, 1000), (0.0, 0.3, 1.0, 2.0, 3.0), (0.5, 0.8, 0.95, 0.99)
PAIRS = ((0.5, 0.5), (0.8, 0.8), (0.95, 0.95), (0.99, 0.99), (0.8, 0.7), (0.9, 0.6), (0.95, 0.85), (0.99, 0.95))
PAIRS_OF_SCORES = tuple((kind, first, second, spread) for kind, places in (
    ("bounded", ((0.0, 0.0), (2.0, 2.0), (1.0, 0.0), (4.0, 2.0))), ("real", ((0.0, 0.0), (1.0, 0.0))),
    ("skewed", ((0.0, 0.0), (1.0, 0.0)))) for first, second in places for spread in (0.5, 1.0, 2.0))
COLLAPSED = 0.05  # success rate of a collapsed seed
TAIL = 0.025
ADOPTED = "margins of seeds and starts"  # of a difference
CHUNK = 2_000_000  # outcomes held at a time
BOOTSTRAPS = 400


@dataclass(frozen=True)
class Cell:
    """One design. `q` is the second method's rate, or None for a single rate. `p` and `q` are rates of seeds that do
    not collapse. `collapse` is the probability that a seed does, `correlation` that of the two methods' seed effects.
    """

    seeds: int
    episodes: int
    spread: float
    p: float
    q: float | None = None
    collapse: float = 0.0
    start_spread: float = 1.0
    correlation: float = 0.0

    @property
    def draws(self) -> int:
        return 2000 if self.episodes <= 100 else 1000

    @property
    def truth(self) -> float:
        good = 1 - self.collapse
        return good * self.p + self.collapse * COLLAPSED if self.q is None else good * (self.p - self.q)


@dataclass(frozen=True)
class Scores:
    """Scores between 0 and 1, such as an AUROC, one per training seed: normal on the logit scale."""

    seeds: int
    logit: float
    spread: float


@dataclass(frozen=True)
class ScorePair:
    """Measures of two methods with one value per training seed, paired by seed.

    `kind` is "bounded", normal on the logit scale, "real", normal, or "skewed", a real measure that is log-normal.
    `first` and `second` are medians on the scale where the values are normal, `correlation` is that of the two methods.
    """

    seeds: int
    kind: str
    first: float
    second: float
    spread: float
    correlation: float


# -- simulation ---------------------------------------------------------------------------------------------------


def outcomes(rng: np.random.Generator, cell: Cell, p: float, draws: int, starts, common) -> np.ndarray:
    """Successes, (draws, seeds, episodes) bool. `starts` (draws, 1, episodes) and `common` (draws, seeds, 1) are
    standard normal: difficulty of the starts and what both methods' seeds share."""
    shape = draws, cell.seeds, 1
    own = rng.standard_normal(shape, dtype=np.float32)
    seed = math.sqrt(cell.correlation) * common + math.sqrt(1 - cell.correlation) * own
    noise = math.sqrt(1 + cell.start_spread**2)
    threshold = cell.spread * seed + scipy_stats.norm.ppf(p) * math.hypot(noise, cell.spread)
    bad = rng.random(shape) < cell.collapse
    threshold = np.where(bad, scipy_stats.norm.ppf(COLLAPSED) * noise, threshold).astype(np.float32)
    sample = rng.standard_normal((draws, cell.seeds, cell.episodes), dtype=np.float32)
    return sample < threshold + np.float32(cell.start_spread) * starts


def tables(cell: Cell, draws: int) -> Iterator[np.ndarray]:
    """Successes of one method, or differences of two, (some draws, seeds, episodes). Half of the variance of the
    starts' difficulty is common to both methods."""
    rng = np.random.default_rng(zlib.crc32(repr(astuple(cell)).encode()))
    step = max(1, CHUNK // (cell.seeds * cell.episodes))
    for first in range(0, draws, step):
        n = min(step, draws - first)
        shared, common = (rng.standard_normal((n, *s), dtype=np.float32) for s in ((1, cell.episodes), (cell.seeds, 1)))
        if cell.q is None:
            yield outcomes(rng, cell, cell.p, n, shared, common).astype(np.float32)
            continue
        x, y = (outcomes(rng, cell, r, n, np.float32(math.sqrt(0.5)) * (
            shared + rng.standard_normal(shared.shape, dtype=np.float32)), common) for r in (cell.p, cell.q))
        yield x.astype(np.float32) - y


def simulate(cell: Cell, scale: float = 1.0) -> dict:
    """{method: (coverage, mean width, fraction that excludes 0)}."""
    results: dict[str, list] = {}
    for x in tables(cell, max(int(cell.draws * scale), 20)):
        intervals = single(x) if cell.q is None else difference(x)
        for name, (low, high) in intervals.items():
            results.setdefault(name, []).append(np.stack([
                (low <= cell.truth + 1e-9) & (cell.truth - 1e-9 <= high), high - low, (low > 0) | (high < 0)]))
    return {name: np.concatenate(v, 1).mean(1).tolist() for name, v in results.items()}


def simulate_scores(cell: Scores, scale: float = 1.0) -> dict:
    """As `simulate`, for a bounded measure."""
    rng = np.random.default_rng(zlib.crc32(repr(astuple(cell)).encode()))
    truth = float(scipy_stats.logistic.cdf(cell.logit + cell.spread * rng.standard_normal(1_000_000)).mean())
    shape = max(int(10_000 * scale), 20), cell.seeds, 1
    x = scipy_stats.logistic.cdf(cell.logit + cell.spread * rng.standard_normal(shape))
    mean, variance = x.mean((1, 2)), stats.mean_squares(x)[0] / cell.seeds
    shrink = (scipy_stats.norm.isf(TAIL) / scipy_stats.t.isf(TAIL, cell.seeds - 1)) ** 2
    intervals = {"two-level": _binomial(mean, mean * (1 - mean) / variance * shrink),
                 "t over seeds": _around(mean, variance, cell.seeds - 1)}
    return {name: [float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean()), 1.0]
            for name, (low, high) in intervals.items()}


def simulate_pair(cell: ScorePair, scale: float = 1.0) -> dict:
    """As `simulate`, for a difference of two methods."""
    rng = np.random.default_rng(zlib.crc32(repr(astuple(cell)).encode()))
    onto = {"bounded": scipy_stats.logistic.cdf, "real": np.asarray, "skewed": np.exp}[cell.kind]

    def differences(draws: int) -> np.ndarray:
        shape = draws, cell.seeds, 1
        common = math.sqrt(cell.correlation) * rng.standard_normal(shape)
        x, y = (onto(median + cell.spread * (common + math.sqrt(1 - cell.correlation) * rng.standard_normal(shape)))
                for median in (cell.first, cell.second))
        return x - y
    truth = float(differences(1_000_000 // cell.seeds).mean()) if cell.first != cell.second else 0.0
    d = differences(max(int(10_000 * scale), 20))
    mean, margin = d.mean((1, 2)), stats.crossed_margin(d, TAIL, "bounded" if cell.kind == "bounded" else "real")
    low, high = mean - margin, mean + margin
    return {"two-level": [float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean()),
                          float(((low > 0) | (high < 0)).mean())]}


# -- intervals of many tables at once -----------------------------------------------------------------------------


def single(x: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Candidates for one rate."""
    _, seeds, episodes = x.shape
    mean, t = x.mean((1, 2), dtype=float), scipy_stats.t.isf(TAIL, seeds - 1)
    by_seed, by_start, residual = stats.mean_squares(x.astype(float))
    crossed, df = satterthwaite(by_seed, by_start, residual, seeds, episodes)
    shrink = (scipy_stats.norm.isf(TAIL) / t) ** 2
    margin = stats.crossed_margin(x.astype(float), TAIL)
    return {"two-level": _binomial(mean, _effective(mean * (1 - mean), (by_seed + by_start) / x[0].size, x) * shrink),
            "margins of seeds and starts": (mean - margin, mean + margin),
            "two-level, ANOVA": _binomial(mean, _effective(mean * (1 - mean), crossed, x)
                                          * (scipy_stats.norm.isf(TAIL) / scipy_stats.t.isf(TAIL, df)) ** 2),
            "ANOVA t": _around(mean, crossed, df), "t over seeds": _around(mean, by_seed / x[0].size, seeds - 1),
            "bootstrap of seeds": _bootstrap(x.mean(2))}


def difference(d: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Candidates for a difference of two methods."""
    draws, seeds, episodes = d.shape
    mean, t = d.mean((1, 2), dtype=float), scipy_stats.t.isf(TAIL, seeds - 1)
    by_seed, by_start, residual = stats.mean_squares(d.astype(float))
    crossed, df = satterthwaite(by_seed, by_start, residual, seeds, episodes)
    b, c = (d > 0).mean((1, 2)), (d < 0).mean((1, 2))
    alone = b + c - (b - c) ** 2
    shrink = (scipy_stats.norm.isf(TAIL) / t) ** 2
    margin = stats.crossed_margin(d.astype(float), TAIL, "rate")
    low, high = mean - margin, mean + margin
    tied = np.ptp(d.reshape(draws, -1), 1) == 0
    ends = _tango(b[tied], c[tied], np.full(tied.sum(), episodes * shrink))
    low[tied], high[tied] = ends
    return {"margins of seeds and starts": (np.maximum(low, -1), np.minimum(high, 1)),
            "ANOVA t": _around(mean, crossed, df),
            "Tango, two-level": _tango(b, c, _effective(alone, (by_seed + by_start) / d[0].size, d) * shrink),
            "Tango, ANOVA": _tango(b, c, _effective(alone, crossed, d)
                                   * (scipy_stats.norm.isf(TAIL) / scipy_stats.t.isf(TAIL, df)) ** 2),
            "t over seeds": _around(mean, by_seed / d[0].size, seeds - 1), "bootstrap of seeds": _bootstrap(d.mean(2))}


def satterthwaite(by_seed, by_start, residual, seeds: int, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased variance of the mean of a crossed design, at least that of the residual alone, and Satterthwaite's
    degrees of freedom, at least seeds - 1."""
    total = np.maximum(by_seed + by_start - residual, residual)
    spread = (by_seed**2 / (seeds - 1) + by_start**2 / (episodes - 1)
              + residual**2 / ((seeds - 1) * (episodes - 1)))
    df = np.divide(total**2, spread, out=np.zeros_like(total), where=spread > 0)
    return total / (seeds * episodes), np.maximum(df, seeds - 1)


def _effective(alone: np.ndarray, variance: np.ndarray, x: np.ndarray) -> np.ndarray:
    is_random = (alone > 1e-12) & (variance > 0)
    n = np.divide(alone, variance, out=np.zeros_like(variance), where=is_random)
    return np.where(is_random, np.minimum(n, x[0].size), x.shape[2])


def _binomial(mean: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k = mean * n
    with np.errstate(invalid="ignore"):
        low, high = scipy_stats.beta.ppf(TAIL, k, n - k + 1), scipy_stats.beta.ppf(1 - TAIL, k + 1, n - k)
    return np.where(k <= 0, 0, low), np.where(k >= n, 1, high)


def _around(mean, variance, df) -> tuple[np.ndarray, np.ndarray]:
    half = scipy_stats.t.isf(TAIL, df) * np.sqrt(variance)
    return mean - half, mean + half


def _bootstrap(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the mean of resampled seeds."""
    n = means.shape[1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), BOOTSTRAPS).T / n
    low, high = np.quantile(means @ weights, [TAIL, 1 - TAIL], axis=1)
    return low, high


def _tango(b: np.ndarray, c: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tango's score interval by bisection, from fractions of pairs that only one method solves."""
    z, mean = scipy_stats.norm.isf(TAIL), b - c

    def score(d):
        slope = (2 - b + c) * d - b - c
        only = (np.sqrt(np.maximum(slope**2 + 8 * c * d * (1 - d), 0)) - slope) / 4
        return np.sqrt(n) * (mean - d) / np.sqrt(np.maximum(2 * only + d * (1 - d), 1e-300))
    ends = []
    for end, sign in ((-1.0, 1), (1.0, -1)):
        out, inside = np.full_like(mean, end), mean.copy()
        for _ in range(40):
            middle = (out + inside) / 2
            beyond = sign * score(middle) > z
            out, inside = np.where(beyond, middle, out), np.where(beyond, inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def check() -> None:
    """The intervals above are those of the library."""
    for cell in (Cell(5, 20, 1.0, 0.8), Cell(3, 20, 0.3, 0.99)):
        x = next(tables(cell, 20))
        for row, low, high in zip(x, *single(x)["two-level"], strict=True):
            interval = stats.two_level_rate(row)
            assert np.allclose((interval.low, interval.high), (low, high), atol=1e-6)
    scores = np.random.default_rng(0).random((5, 1))
    interval, mean = stats.two_level_rate(scores, kind="bounded"), scores.mean()
    n = mean * (1 - mean) / (scores.var(ddof=1) / 5) * (
        scipy_stats.norm.isf(TAIL) / scipy_stats.t.isf(TAIL, 4)) ** 2
    assert np.allclose((interval.low, interval.high), _binomial(mean, n))
    for cell in (Cell(5, 20, 1.0, 0.9, 0.6), Cell(3, 20, 0.3, 0.99, 0.99)):
        d = next(tables(cell, 20))
        for row, low, high in zip(d, *difference(d)[ADOPTED], strict=True):
            interval, _ = stats.two_level_difference(row > 0, row < 0)
            assert np.allclose((interval.low, interval.high), (low, high), atol=1e-6)
        n = np.full(20, 30.0)
        b, c = (d > 0).mean((1, 2)), (d < 0).mean((1, 2))
        for x, y, low, high in zip(b, c, *_tango(b, c, n), strict=True):
            interval = stats.tango(30 * x, 30 * y, 30)
            assert np.allclose((interval.low, interval.high), (low, high), atol=1e-6)


# -- the grid -----------------------------------------------------------------------------------------------------


def parts() -> dict[str, list[Cell] | list[Scores] | list[ScorePair]]:
    """Name -> cells. The file is written after each part."""
    out = {}
    for n, e in product(SEEDS, EPISODES):
        out[f"rate, {n} seeds, {e} episodes"] = [
            Cell(n, e, s, p, None, c) for s, p, c in product(SPREADS, RATES, (0.0, 0.1, 0.3))]
        out[f"difference, {n} seeds, {e} episodes"] = [
            Cell(n, e, s, p, q, c) for s, (p, q), c in product(SPREADS, PAIRS, (0.0, 0.1))]
    out["correlated seeds"] = [Cell(n, 100, s, p, q, 0.0, 1.0, 0.8) for n, s, (p, q) in product(
        SEEDS, (1.0, 3.0), ((0.8, 0.8), (0.8, 0.7), (0.9, 0.6)))]
    out["scores"] = [Scores(n, m, s) for n, m, s in product(SEEDS, (0.0, 2.0, 4.0), (0.5, 1.0, 2.0))]
    out["scores of two methods"] = [ScorePair(n, *pair, correlation)
                                    for n, pair, correlation in product(SEEDS, PAIRS_OF_SCORES, (0.0, 0.8))]
    # Designs to look at closely, without a spread of starts.
    out["stated rates"] = [*(Cell(5, e, s, p, None, 0.1, 0.0)
                             for e, s, p in product((100, 1000), (0.0, 0.3), (0.95, 0.99))),
                           *(Cell(10, e, 3.0, 0.95, None, 0.0, 0.0) for e in (20, 50, 100, 1000))]
    out["stated differences"] = [*(Cell(5, 100, s, 0.9, 0.6, 0.0, 0.0) for s in (0.0, 0.3, 0.5, 0.7, 0.8, 1.0)),
                                 *(Cell(3, 100, s, 0.8, 0.7, 0.0, 0.0) for s in (0.0, 0.1, 0.15, 0.2, 0.3)),
                                 *(Cell(5, 100, 0.0, p, p, 0.0, 0.0) for p in (0.5, 0.8, 0.95))]
    return out


SIMULATIONS: dict = {Cell: simulate, Scores: simulate_scores, ScorePair: simulate_pair}


def run(scale: float, results: dict) -> dict:
    for name, cells in parts().items():
        if name in results:
            continue
        began = time.perf_counter()
        simulated = [SIMULATIONS[type(c)](c, scale) for c in cells]
        results[name] = {"methods": list(simulated[0]), "rows": [  # a row for each cell
            [list(astuple(c)), *([round(v, 4) for v in values] for values in each.values())]
            for c, each in zip(cells, simulated, strict=True)]}
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if scale == 1:
            FILE.write_text("{\n" + ",\n".join(
                f'{json.dumps(n)}: {{"methods": {json.dumps(p["methods"])}, "rows": [\n'
                + ",\n".join(map(json.dumps, p["rows"])) + "]}" for n, p in results.items()) + "\n}\n")
    return results


# -- the tables ---------------------------------------------------------------------------------------------------

Rows = list[tuple[Cell, str, float, float, float]]


def rows_of(results: dict) -> Rows:
    return [(Cell(*cell), *numbers) for name in results if name.startswith(("rate", "difference"))
            for cell, *numbers in flat(results[name])]


def flat(part: dict) -> Iterator[tuple]:
    """(cell, method, coverage, width, excludes 0) each."""
    return ((cell, method, *values) for cell, *each in part["rows"]
            for method, values in zip(part["methods"], each, strict=True))


CONDITIONS = {"spread up to 1": lambda c: c.spread <= 1 and not c.collapse,
              "spread 2": lambda c: c.spread == 2 and not c.collapse,
              "spread 3": lambda c: c.spread == 3 and not c.collapse,
              "10 % collapse": lambda c: c.collapse == 0.1, "30 % collapse": lambda c: c.collapse == 0.3}


def _range(values: list[float]) -> str:
    return f"{np.mean(values):.0%} ({min(values):.0%})" if values else "–"


def by_condition(rows: Rows, method: str, conditions: dict) -> list[str]:
    lines = [f"| training seeds | {' | '.join(conditions)} |", "|--:|" + "--:|" * len(conditions)]
    for n in SEEDS:
        cells = [_range([r[2] for r in rows if r[1] == method and r[0].seeds == n and asked(r[0])])
                 for asked in conditions.values()]
        lines.append(f"| {n} | {' | '.join(cells)} |")
    return lines


def rates(results: dict) -> list[str]:
    return by_condition([r for r in rows_of(results) if r[0].q is None], "two-level", CONDITIONS)


def differences(results: dict) -> list[str]:
    two = [r for r in rows_of(results) if r[0].q is not None]
    equal = {f"equal, {k}": lambda c, v=v: c.p == c.q and v(c) for k, v in list(CONDITIONS.items())[:1]}
    apart = {f"apart, {k}": lambda c, v=v: c.p != c.q and max(c.p, c.q) < 0.99 and v(c) for k, v in CONDITIONS.items()}
    ceiling = {"0.99 against 0.95": lambda c: (c.p, c.q) == (0.99, 0.95) and not c.collapse}
    return by_condition(two, ADOPTED, {**equal, **dict(list(apart.items())[:4]), **ceiling})


def scores(results: dict) -> list[str]:
    spreads = (0.5, 1.0, 2.0)
    lines = ["| training seeds | " + " | ".join(f"spread {s:g}" for s in spreads) + " |",
             "|--:|" + "--:|" * len(spreads)]
    rows = [(Scores(*cell), method, values[0]) for cell, method, *values in flat(results["scores"])]
    for n in SEEDS:
        each = [_range([c for k, m, c in rows if (k.seeds, k.spread, m) == (n, s, "two-level")]) for s in spreads]
        lines.append(f"| {n} | {' | '.join(each)} |")
    return lines


def score_differences(results: dict) -> list[str]:
    """Coverage, and the rate of false positives where the methods are equal."""
    rows = [(ScorePair(*cell), *values) for cell, _, *values in flat(results["scores of two methods"])]
    columns = {f"{kind}, {name}": (kind, equal) for kind in ("bounded", "real", "skewed")
               for name, equal in (("equal", True), ("apart", False))}
    lines = ["| training seeds | " + " | ".join(columns) + " | false positives, at most |",
             "|--:|" + "--:|" * (len(columns) + 1)]
    for n in SEEDS:
        each = [_range([covered for cell, covered, *_ in rows
                        if (cell.seeds, cell.kind, cell.first == cell.second) == (n, kind, equal)])
                for kind, equal in columns.values()]
        worst = max(positive for cell, _, _, positive in rows if cell.seeds == n and cell.first == cell.second)
        lines.append(f"| {n} | {' | '.join(each)} | {worst:.1%} |")
    return lines


def power(results: dict) -> list[str]:
    """Power and false-positive rates of the adopted interval, 100 episodes per seed."""
    rate_pairs = [(0.8, 0.8), (0.8, 0.7), (0.9, 0.6), (0.95, 0.85)]
    lines = ["| training seeds | seed spread | " + " | ".join(f"{p:g} against {q:g}" for p, q in rate_pairs) + " |",
             "|--:|--:|" + "--:|" * len(rate_pairs)]
    at = {r[0]: r[4] for r in rows_of(results) if r[1] == ADOPTED}
    for n, s in product((3, 5, 10), (0.3, 1.0)):
        each = [f"{at[cell]:.2f}" for p, q in rate_pairs if (cell := Cell(n, 100, s, p, q)) in at]
        lines.append(f"| {n} | {s:g} | {' | '.join(each)} |")
    return lines


def candidates(results: dict) -> list[str]:
    lines = ["| | coverage: spread up to 1 | spread 2 and 3 | 10 % collapse | width | false positives, at most |",
             "|---|--:|--:|--:|--:|--:|"]
    for title, asked in (("rate: ", lambda c: c.q is None), ("difference: ", lambda c: c.q is not None)):
        some = [r for r in rows_of(results) if asked(r[0])]
        for method in dict.fromkeys(r[1] for r in some):
            method_rows = [r for r in some if r[1] == method]
            at = [_range([r[2] for r in method_rows if when(r[0])]) for when in (
                CONDITIONS["spread up to 1"], lambda c: c.spread > 1 and not c.collapse, CONDITIONS["10 % collapse"])]
            false = [r[4] for r in method_rows if r[0].p == r[0].q]
            worst = f"{max(false):.1%}" if false else "–"
            width = np.mean([r[3] for r in method_rows if r[0].seeds > 3 and CONDITIONS["spread up to 1"](r[0])])
            lines.append(f"| {title}{method} | {' | '.join(at)} | {width:.3f} | {worst} |")
    return lines


TABLES = {"rates over seeds": rates, "differences over seeds": differences, "power over seeds": power,
          "scores over seeds": scores}
ONLY_PRINTED = {"differences of scores over seeds": score_differences, "candidates": candidates}


def page(results: dict) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for title, table in TABLES.items():
        begin, end = f"<!-- {title}: made by benchmarks/coverage.py -->", f"<!-- end of {title} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = "\n".join([before + begin, "", *table(results), "", end + after])
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    check()
    quick = "--quick" in sys.argv
    results = json.loads(FILE.read_text()) if FILE.exists() and not quick and "--again" not in sys.argv else {}
    if "--page" not in sys.argv:
        results = run(0.1 if quick else 1.0, results)
    for title, table in {**TABLES, **ONLY_PRINTED}.items():
        print(f"\n{title}", *table(results), sep="\n")
    for cell, method, *values in (*flat(results["stated rates"]), *flat(results["stated differences"])):
        print(f"{Cell(*cell)} {method}: coverage {values[0]:.3f}, excludes 0 {values[2]:.3f}")
    if not quick:
        page(results)


if __name__ == "__main__":
    main()
