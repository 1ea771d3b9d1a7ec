"""Statistics for comparing several policies at once: adjusted p-values, letter displays, and ranks."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

# -- p-values of several tests ------------------------------------------------------------------------------------


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusts the p-values of several tests by the method of Holm. Returns them in the given order.

    The probability that any true null hypothesis falls below alpha is at most alpha, whatever the dependence of the
    tests. The smallest p-value counts against all tests, and each next one against the remaining tests (Holm 1979).
    """
    p_values = _check_p_values(p)
    order = np.argsort(p_values, kind="stable")
    out = np.empty_like(p_values)
    out[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1)), 1.0)
    return out


def _check_p_values(p) -> np.ndarray:
    p_values = np.asarray(p, float)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers from 0 to 1, not {p_values.tolist()}")
    return p_values


# -- which can be told apart ---------------------------------------------------------------------------------------


def compact_letter_display(
    is_different: Sequence[Sequence[bool]] | np.ndarray, order: Sequence[int] | None = None
) -> list[str]:
    """Computes the compact letter display of n policies: two share a letter exactly if they cannot be told apart.

    Letters are split where two policies differ, absorbed if another letter has the same policies and more, and removed
    if no pair needs them (Piepho 2004).

    Args:
        is_different: Whether two policies can be told apart, (n, n).
        order: Indices of the policies, best first. The default is their order. `a` belongs to the best.
    """
    apart = _check_symmetric(is_different)
    n = len(apart)
    place = {i: at for at, i in enumerate(range(n) if order is None else order)}
    if sorted(place) != list(range(n)):
        raise ValueError(f"the order must have each of the numbers 0 to {n - 1} once, not {list(order or [])}")
    groups = [set(range(n))] if n else []
    for pair in combinations(range(n), 2):
        if apart[pair]:
            groups = _absorb(_split(groups, pair))
    _prune(groups, place)
    groups = sorted((g for g in groups if g), key=lambda g: sorted(place[i] for i in g))
    letters = [string.ascii_letters[at % 52] + "'" * (at // 52) for at in range(len(groups))]
    return ["".join(letter for letter, g in zip(letters, groups, strict=True) if i in g) for i in range(n)]


def _split(groups: list[set[int]], pair: tuple[int, int]) -> list[set[int]]:
    """Splits each group that has both policies into two groups, each without one of them."""
    with_both = [g for g in groups if g.issuperset(pair)]
    return [g for g in groups if not g.issuperset(pair)] + [g - {policy} for g in with_both for policy in pair]


def _absorb(groups: list[set[int]]) -> list[set[int]]:
    """Leaves out groups that are a part of another, or equal to an earlier one."""
    return [g for i, g in enumerate(groups) if g not in groups[:i] and not any(g < other for other in groups)]


def _prune(groups: list[set[int]], place: dict[int, int]) -> None:
    """Removes policies, the worst first, from letter groups in which no pair needs them."""
    for group in groups:
        for policy in sorted(group, key=place.__getitem__, reverse=True):
            other_groups = [other for other in groups if other is not group and policy in other]
            if all(any(partner in other for other in other_groups) for partner in group):
                group.remove(policy)


class RankInterval(NamedTuple):
    estimate: int  # 1 is the best; equal policies share the better rank
    low: int
    high: int


def rank_intervals(
    is_different: Sequence[Sequence[bool]] | np.ndarray, estimates: Sequence[float] | np.ndarray
) -> list[RankInterval]:
    """Returns the rank of each policy and the range of ranks it may have, given which policies are surely better.

    If the tests of all pairs together are wrong at most once in twenty (`holm`), all these intervals together are right
    in nineteen of twenty repetitions (Mogstad, Romano, Shaikh and Wilhelm 2024).

    Args:
        is_different: Whether two policies can be told apart, (n, n).
        estimates: One value per policy, (n,). Higher is better.
    """
    apart, x = _check_symmetric(is_different), np.asarray(estimates, float)
    if x.shape != (len(apart),):
        raise ValueError(f"there are {len(apart)} policies, but estimates of shape {x.shape}")
    above, below = x[None] > x[:, None], x[None] < x[:, None]  # (i, j): j is above i
    return [RankInterval(*map(int, r)) for r in zip(1 + above.sum(1), 1 + (above & apart).sum(1),
                                                    len(x) - (below & apart).sum(1), strict=True)]


def _check_symmetric(different) -> np.ndarray:
    apart = np.asarray(different, bool)
    if apart.size == 0:
        return apart.reshape(0, 0)
    if apart.ndim != 2 or apart.shape[0] != apart.shape[1] or (apart != apart.T).any() or apart.diagonal().any():
        raise ValueError("is_different must be a symmetric matrix with False on its diagonal")
    return apart
