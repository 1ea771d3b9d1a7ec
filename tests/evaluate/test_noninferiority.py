"""Margins."""

import math

import numpy as np
import pytest
from fixtures.statistics import binary
from scipy import stats as scipy_stats

from understudy.core import UserError
from understudy.evaluate import independent, stats
from understudy.evaluate.noninferiority import equivalence_p_value, noninferiority_p_value


def test_margins_go_with_the_intervals_at_90_percent():
    """Schuirmann (1987): equivalent at 5 % exactly where the 90 % interval lies between the margins."""
    rng = np.random.default_rng(0)
    for paired, trials in ((True, 60), (False, 60)):
        agreed = 0
        for _ in range(trials):
            x, p = rng.random(300) < 0.8, rng.uniform(0.7, 0.9)
            y = np.where(rng.random(300) < 0.8, x, rng.random(300) < p)
            i = (stats.tango((x & ~y).sum(), (y & ~x).sum(), 300, 0.9) if paired else
                 independent.miettinen_nurminen(x.sum(), 300, y.sum(), 300, 0.9))
            margin = rng.uniform(0.02, 0.15)
            assert (noninferiority_p_value(x, y, margin, paired=paired) < 0.05) == (i.low > -margin)
            same = -margin < i.low and i.high < margin
            assert (equivalence_p_value(x, y, margin, paired=paired) < 0.05) == same
            agreed += same
        assert 5 < agreed < 55
    x, y = (rng.random((5, 100)) < 0.9), (rng.random((5, 100)) < 0.9)
    i = stats.two_level_difference(x, y, 0.9)[0]
    assert (equivalence_p_value(x, y, 0.2) < 0.05) == (i.low > -0.2 and i.high < 0.2)


def test_published_example_of_a_paired_margin():
    """Tango (1998), section 6.1: 44 pairs, 0 and 1 differ; z = 1.709 at a margin of 0.1, so p = 0.0437."""
    x, y = binary(43, 44), binary(44, 44)
    assert noninferiority_p_value(x, y, 0.1) == pytest.approx(0.0437, abs=1e-4)
    for bad in (0, 1, -0.1, math.nan):
        with pytest.raises(UserError, match="the margin must be between 0 and 1"):
            noninferiority_p_value(x, y, bad)
    with pytest.raises(ValueError, match="as many"):
        noninferiority_p_value(x, y[:9], 0.1)


def test_at_the_margin_five_percent_pass():
    """Exactly, unpaired: policies that differ by the margin are called not inferior about once in twenty."""
    n, margin = 60, 0.1
    k = np.arange(n + 1)
    sure = np.array([[scipy_stats.norm.sf(independent.score_z(a, n, b, n, -margin)) < 0.05 for b in k] for a in k])
    for p in (0.5, 0.8, 0.9):
        mass = np.outer(scipy_stats.binom.pmf(k, n, p - margin), scipy_stats.binom.pmf(k, n, p))
        assert 0.03 < mass[sure].sum() < 0.06


@pytest.mark.parametrize("paired", [True, False])
def test_returns_are_no_outcomes_of_these_tests(paired):
    for first in ([10.0, 20.0, 3.0], [1.0, math.nan, 0.0]):
        for test in (noninferiority_p_value, equivalence_p_value):
            with pytest.raises(ValueError, match="each outcome must be 0 or 1"):
                test(first, [1, 0, 1], 0.1, paired=paired)
