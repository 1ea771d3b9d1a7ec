"""Unpaired rollouts: intervals and tests of two rates."""

import math

import numpy as np
import pytest
from fixtures.statistics import ends
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from benchmarks import other_statistics
from understudy.evaluate import independent

# Newcombe (1998), Statistics in Medicine 17:873, table II: methods 10 (Wilson's limits) and 6 (Miettinen-Nurminen).
INDEPENDENT = [((56, 70, 48, 80), (0.0524, 0.3339), (0.0528, 0.3382)), ((9, 10, 3, 10), (0.1705, 0.8090),
                                                                        (0.1700, 0.8406)),
               ((6, 7, 2, 7), (0.0582, 0.8062), (0.0342, 0.8534)), ((5, 56, 0, 29), (-0.0381, 0.1926),
                                                                    (-0.0326, 0.1933)),
               ((0, 10, 0, 20), (-0.1611, 0.2775), (-0.1658, 0.2844)), ((10, 10, 0, 20), (0.6791, 1.0), (0.7156, 1.0))]


@pytest.mark.parametrize("counts, wilsons, score", INDEPENDENT)
def test_published_intervals_of_independent_rates(counts, wilsons, score):
    assert ends(other_statistics.newcombe_independent(*counts)) == pytest.approx(wilsons, abs=6e-5)
    assert ends(independent.miettinen_nurminen(*counts)) == pytest.approx(score, abs=6e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.floats(-0.9, 0.9))
def test_the_score_of_independent_rates_against_numerical_likelihood(n1, n2, share1, share2, d):
    k1, k2 = round(n1 * share1), round(n2 * share2)

    def loss(q):
        return -(scipy_stats.binom.logpmf(k1, n1, q + d) + scipy_stats.binom.logpmf(k2, n2, q))
    low, high = max(0.0, -d) + 1e-9, min(1.0, 1 - d) - 1e-9
    q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-11}).x
    q = min((q, low, high), key=loss)
    variance = ((q + d) * (1 - q - d) / n1 + q * (1 - q) / n2) * (n1 + n2) / (n1 + n2 - 1)
    z = (k1 / n1 - k2 / n2 - d) / math.sqrt(variance)
    assert independent.score_z(k1, n1, k2, n2, d) == pytest.approx(z, rel=1e-3, abs=1e-3)


def test_the_score_of_equal_rates_is_the_pooled_test():
    k1, n1, k2, n2 = 30, 41, 7, 50
    pooled = scipy_stats.chi2_contingency([[k1, n1 - k1], [k2, n2 - k2]], correction=False).statistic
    assert independent.score_z(k1, n1, k2, n2, 0.0)**2 == pytest.approx(pooled * 90 / 91)


def test_exact_tests_of_two_rates():
    """Fisher's tea (1935), 3 of 4 right: 0.486. Mehta and Senchaudhuri (2003): 7 of 12 against 1 of 17, one of few
    printed p-values of Barnard's test with the pooled statistic."""
    assert independent.fisher_exact(3, 4, 1, 4) == pytest.approx(34 / 70)
    for n in (3, 8):  # by enumeration over the rate that chance likes best
        grid, k = np.linspace(0.001, 0.999, 999), np.arange(n + 1)
        for k1, k2 in ((n, 0), (n - 1, 0), (n - 1, 1)):
            z = np.array([[abs(a - b) / math.sqrt((a + b) * (2 * n - a - b)) if 0 < a + b < 2 * n else 0.0 for b in k]
                          for a in k])
            as_far = z >= z[k1, k2] - 1e-12
            pmf = scipy_stats.binom.pmf(k[:, None], n, grid)
            p = np.einsum("ag,bg,ab->g", pmf, pmf, as_far).max()
            assert independent.barnard_exact(k1, n, k2, n) == pytest.approx(p, abs=2e-4)
            assert independent.barnard_exact(k1, n, k2, n) <= independent.fisher_exact(k1, n, k2, n)
    assert independent.barnard_exact(0, 5, 0, 9) == independent.fisher_exact(0, 5, 0, 9) == 1.0
    for bad in ((1, 0, 1, 2), (3, 2, 1, 2)):
        with pytest.raises(ValueError, match="trial"):
            independent.fisher_exact(*bad)


@pytest.mark.parametrize("n", [8, 25])
def test_intervals_of_independent_rates_cover_about_as_promised(n):
    """Exactly, over all outcomes."""
    k = np.arange(n + 1)
    for interval, least in ((independent.miettinen_nurminen, 0.93), (other_statistics.newcombe_independent, 0.92)):
        intervals = {(a, b): interval(a, n, b, n) for a in k for b in k}
        rates = []
        for p, q in ((0.5, 0.5), (0.9, 0.9), (0.8, 0.6), (0.95, 0.7), (0.3, 0.1)):
            mass = np.outer(scipy_stats.binom.pmf(k, n, p), scipy_stats.binom.pmf(k, n, q))
            rates.append(sum(mass[at] for at, i in intervals.items() if i.low <= p - q <= i.high))
        assert min(rates) >= least and np.mean(rates) >= 0.945
