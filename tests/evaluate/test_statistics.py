"""Posteriors, permutations, what pairs save, and the published tables.

Exact enumeration where it is possible, else simulation; `benchmarks/intervals.py` does the same at length.
"""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from fixtures.statistics import binary, ends
from scipy import stats as scipy_stats

from understudy.evaluate import stats

# -- what is believed, exchanged, and saved by pairs --------------------------------------------------------------


def test_a_posterior_is_bayes_rule():
    """Brown, Cai and DasGupta (2001): Jeffreys' interval. The posterior by quadrature."""
    rates = np.linspace(0, 1, 200_001)[1:-1]
    weight = scipy_stats.binom.pmf(7, 10, rates) * scipy_stats.beta.pdf(rates, 0.5, 0.5)
    share = np.cumsum(weight) / weight.sum()
    i = stats.beta_posterior(7, 10)
    assert i.estimate == pytest.approx((rates * weight).sum() / weight.sum(), abs=1e-4) == 7.5 / 11
    limits = [rates[np.searchsorted(share, tail)] for tail in (0.025, 0.975)]
    assert ends(i) == pytest.approx(limits, abs=1e-4)
    assert stats.beta_posterior(0, 0, prior=(1, 1)).low == pytest.approx(0.025)
    with pytest.raises(ValueError, match="prior"):
        stats.beta_posterior(1, 2, prior=(0, 1))


def test_permutation_by_hand():
    x, y = np.array([1.0, 4.0, 9.0, 2.5]), np.array([0.0, 1.0, 3.0, 3.0])  # differences 1, 3, 6, -0.5
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1)
    assert stats.permutation_p_value(x, y) == pytest.approx((np.abs((x - y) @ signs) >= 9.5 - 1e-9).mean())
    assert stats.permutation_p_value(binary(9, 12), ~binary(9, 12) & binary(12, 12)) == stats.mcnemar(9, 3)
    runs = [0.9, 0.8, 0.85, 0.7], [0.5, 0.6, 0.75, 0.4]
    sums = [sum(c) for c in combinations((*runs[0], *runs[1]), 4)]
    p = np.mean([abs(2 * s - 5.5) >= 2 * 3.25 - 5.5 - 1e-9 for s in sums])
    tables = [np.array(r)[:, None] * np.ones(10) for r in runs]
    assert stats.permutation_p_value(*tables) == pytest.approx(p)
    ones = np.ones((5, 10))
    assert stats.permutation_p_value(ones, 0 * ones) == pytest.approx(2 / math.comb(10, 5))  # the smallest there is
    assert stats.permutation_p_value(ones, ones) == 1.0
    for bad in ((x, tables[0]), (x, y[:3]), ([], [])):
        with pytest.raises(ValueError, match="both must have the same shape"):
            stats.permutation_p_value(*bad)


def test_permutation_of_methods_errs_once_in_twenty_at_most():
    """Seeds that differ much and starts that are hard for all: what is no difference of the methods."""
    rng, n_significant = np.random.default_rng(1), 0
    for _ in range(200):
        hard = rng.normal(size=30)
        x, y = ((rng.normal(size=(4, 1)) + hard + rng.normal(size=(4, 30)) > 0).astype(float) for _ in range(2))
        n_significant += stats.permutation_p_value(x, y) <= 0.05
    assert n_significant / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_what_the_pairing_saved():
    """Var(x - y) = Var x + Var y - 2 Cov: of equal variances, the share saved is the correlation."""
    x = np.array([1, 1, 1, 0] * 25, float)
    y = np.roll(x, 1)
    assert stats.pairing_gain(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert stats.pairing_gain(x, x) == 1.0 and stats.pairing_gain(x, 1 - x) == pytest.approx(-1.0)
    assert math.isnan(stats.pairing_gain(np.ones(9), np.ones(9)))
    rng = np.random.default_rng(0)
    hard = rng.normal(size=2000)
    x, y = ((3 * hard + rng.normal(size=(5, 2000)) > 0).astype(float) for _ in range(2))
    assert 0.6 < stats.pairing_gain(x, y) < 1  # methods that fail on the same starts


# -- the published tables -----------------------------------------------------------------------------------------


def test_every_line_of_the_tables_is_recorded_keeps_its_promise_and_is_on_the_page(coverage):
    recorded_lines = {f["name"]: f for f in json.loads(coverage.FILE.read_text(encoding="utf-8"))["lines"]}
    assert set(recorded_lines) == set(coverage.INTERVALS) | set(coverage.TESTS)
    assert [f["name"] for f in recorded_lines.values() if not coverage.kept(f)] == []
    page = coverage.PAGE.read_text(encoding="utf-8")
    assert all(coverage._row(f) in page for f in recorded_lines.values())
    assert not coverage.kept({**recorded_lines["Clopper–Pearson"], "worst": 0.949})  # it can fail
    assert not coverage.kept({**recorded_lines["`SequentialRateTest`, always looking"], "worst": 0.051})


@pytest.mark.parametrize("name", ["Tango's score", "McNemar, exact", "`SequentialDifferenceTest`, always looking"])
def test_exact_lines_come_out_again(coverage, name):
    recorded = {f["name"]: f for f in json.loads(coverage.FILE.read_text(encoding="utf-8"))["lines"]}[name]
    assert coverage.line(name, *coverage.TESTS[name]) == pytest.approx(recorded)
