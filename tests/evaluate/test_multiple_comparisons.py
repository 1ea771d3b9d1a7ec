"""Many policies at once: adjusted p-values, letters and ranks."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from benchmarks import other_statistics
from understudy.evaluate import multiple_comparisons

SOME_P = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(SOME_P)
def test_holm_is_the_closed_test_of_bonferroni(p):
    """Marcus, Peritz and Gabriel (1976): a hypothesis falls when all intersections that hold it do."""
    numbers = range(len(p))
    closed = [max(min(1, len(s) * min(p[j] for j in s)) for size in numbers for s in combinations(numbers, size + 1)
                  if i in s) for i in numbers]
    assert multiple_comparisons.holm(p) == pytest.approx(closed)
    assert (
        multiple_comparisons.holm(p) <= other_statistics.bonferroni(p)
    ).all() and other_statistics.bonferroni(p) == pytest.approx([min(1, len(p) * v) for v in p])


def test_adjusted_p_values_as_r_prints_them():
    """p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")"""
    assert multiple_comparisons.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert multiple_comparisons.holm([0.03, 0.01]) == pytest.approx([0.03, 0.02])
    assert multiple_comparisons.holm([]).size == 0
    for bad in ([1.2], [-0.1], [math.nan], [[0.1]]):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            multiple_comparisons.holm(bad)


def table(n, pairs):
    out = np.zeros((n, n), bool)
    for i, j in pairs:
        out[i, j] = out[j, i] = True
    return out


def test_letters_of_known_tables():
    """The first is the example of R's multcompView: A-B and A-C alike, B-C different."""
    assert multiple_comparisons.compact_letter_display(table(3, [(1, 2)])) == ["ab", "a", "b"]
    assert multiple_comparisons.compact_letter_display(table(3, [])) == ["a", "a", "a"]
    assert multiple_comparisons.compact_letter_display(table(3, [(0, 1), (0, 2), (1, 2)]), order=[2, 0, 1]) == [
        "b",
        "c",
        "a",
    ]
    # a chain
    assert multiple_comparisons.compact_letter_display(table(4, [(0, 2), (0, 3), (1, 3)])) == ["a", "ab", "bc", "c"]
    assert (
        multiple_comparisons.compact_letter_display(table(1, [])) == ["a"]
        and multiple_comparisons.compact_letter_display(np.zeros((0, 0))) == []
    )
    everyone = multiple_comparisons.compact_letter_display(~np.eye(54, dtype=bool))
    assert everyone[26] == "A" and everyone[52:] == ["a'", "b'"]
    with pytest.raises(ValueError, match="symmetric"):
        multiple_comparisons.compact_letter_display([[False, True], [False, False]])
    with pytest.raises(ValueError, match="order"):
        multiple_comparisons.compact_letter_display(table(3, []), order=[0, 1])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(
    st.just(n), st.sets(st.sampled_from(list(combinations(range(n), 2)) or [(0, 0)])), st.permutations(range(n)))))
def test_two_share_a_letter_exactly_where_they_cannot_be_told_apart(case):
    n, pairs, order = case
    different = table(n, [p for p in pairs if p[0] != p[1]])
    letters = [set(x) for x in multiple_comparisons.compact_letter_display(different, order)]
    for i, j in combinations(range(n), 2):
        assert bool(letters[i] & letters[j]) != different[i, j]
    assert all(letters) and "a" in letters[order[0]]
    for i in range(n):  # nothing can be left out
        for letter in letters[i]:
            less = letters[i] - {letter}
            assert not less or any(not different[i, j] and not less & letters[j] for j in range(n) if j != i)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_a_rank_is_in_all_orders_that_are_not_ruled_out(x):
    """Differences beyond 3 are told apart; every order that respects these is possible."""
    different = np.abs(np.subtract.outer(x, x)) > 3
    possible = [p for p in permutations(range(len(x)))
                if all(p.index(i) < p.index(j) for i in p for j in p if different[i, j] and x[i] > x[j])]
    for i, r in enumerate(multiple_comparisons.rank_intervals(different, x)):
        places = [p.index(i) + 1 for p in possible]
        assert (r.low, r.high) == (min(places), max(places)) and r.low <= r.estimate <= r.high
        assert r.estimate == scipy_stats.rankdata([-v for v in x], "min")[i]
