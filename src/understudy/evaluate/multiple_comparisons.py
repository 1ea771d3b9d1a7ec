"""Many policies at once: p-values that stay honest, letters for those that cannot be told apart, ranks."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

# -- p-values of several tests ------------------------------------------------------------------------------------


def bonferroni(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values, in the order given: that any true null hypothesis among them falls below alpha has a
    probability of at most alpha, however the tests depend on each other (Dunn 1961)."""
    found = _check_p_values(p)
    return np.minimum(found * found.size, 1.0)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """As `bonferroni`, with the same promise, and never larger: the smallest counts against all of them, the next
    against those that are left (Holm 1979)."""
    found = _check_p_values(p)
    order = np.argsort(found, kind="stable")
    out = np.empty_like(found)
    out[order] = np.minimum(np.maximum.accumulate(found[order] * np.arange(found.size, 0, -1)), 1.0)
    return out


def _check_p_values(p) -> np.ndarray:
    found = np.asarray(p, float)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"expected a list of p-values from 0 to 1, found {found.tolist()}")
    return found


# -- who can be told apart ----------------------------------------------------------------------------------------


def compact_letter_display(
    is_different: Sequence[Sequence[bool]] | np.ndarray, order: Sequence[int] | None = None
) -> list[str]:
    """The compact letter display of n policies: two share a letter exactly where they cannot be told apart.

    different (n, n): whether two are told apart. order: their numbers, best first (as they come, otherwise); `a` is
    the best's. The letters of policy i are the i-th of what is returned. Letters are split where two differ, absorbed
    where another has the same policies and more, and swept away where no pair needs them (Piepho 2004).
    """
    apart = _check_symmetric(is_different)
    n = len(apart)
    place = {i: at for at, i in enumerate(range(n) if order is None else order)}
    if sorted(place) != list(range(n)):
        raise ValueError(f"expected an order of the numbers 0 to {n - 1}, found {list(order or [])}")
    groups = [set(range(n))] if n else []
    for i, j in combinations(range(n), 2):
        if apart[i, j]:
            both = [g for g in groups if i in g and j in g]
            groups = [g for g in groups if not (i in g and j in g)] + [g - {k} for g in both for k in (i, j)]
            groups = [g for at, g in enumerate(groups)
                      if not any(g < other or g == other and at > nr for nr, other in enumerate(groups))]
    for g in groups:
        for i in sorted(g, key=place.__getitem__, reverse=True):
            rest = [other for other in groups if other is not g and i in other]
            if all(any(j in other for other in rest) for j in g):
                g.remove(i)
    groups = sorted((g for g in groups if g), key=lambda g: sorted(place[i] for i in g))
    return ["".join(_letter_name(at) for at, g in enumerate(groups) if i in g) for i in range(n)]


def _letter_name(number: int) -> str:
    return string.ascii_letters[number % 52] + "'" * (number // 52)


class RankInterval(NamedTuple):
    estimate: int  # 1 is the best; equals share the better one
    low: int
    high: int


def rank_intervals(
    is_different: Sequence[Sequence[bool]] | np.ndarray, estimates: Sequence[float] | np.ndarray
) -> list[RankInterval]:
    """Each policy's rank, with all that it may be: behind those only that are told to be better, before those only that
    are told to be worse. `different` (n, n) as for `letters`, `estimates` (n,), higher is better.

    Where the pairs' tests err at most once in twenty all together (`holm`), all these intervals hold together in
    nineteen of twenty repetitions (Mogstad, Romano, Shaikh and Wilhelm 2024).
    """
    apart, x = _check_symmetric(is_different), np.asarray(estimates, float)
    if x.shape != (len(apart),):
        raise ValueError(f"expected {len(apart)} estimates, found {x.shape}")
    above, below = x[None] > x[:, None], x[None] < x[:, None]  # (i, j): j is above i
    return [RankInterval(*map(int, r)) for r in zip(1 + above.sum(1), 1 + (above & apart).sum(1),
                                            len(x) - (below & apart).sum(1), strict=True)]


def _check_symmetric(different) -> np.ndarray:
    apart = np.asarray(different, bool)
    if apart.size == 0:
        return apart.reshape(0, 0)
    if apart.ndim != 2 or apart.shape[0] != apart.shape[1] or (apart != apart.T).any() or apart.diagonal().any():
        raise ValueError("expected for each two policies whether they differ: a symmetric table, False on its diagonal")
    return apart
