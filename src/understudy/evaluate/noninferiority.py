"""Not worse, or as good: what "no significant difference" does not show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats as scipy_stats

from ..core import UserError
from . import stats
from .independent import score_z

Outcomes = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


def noninferiority_p_value(first: Outcomes, second: Outcomes, margin: float, *, paired: bool = True) -> float:
    """The p of "the first succeeds less often than the second by `margin` or more": below 0.05, it is not inferior.

    first, second: 0s and 1s, (episodes,) of two checkpoints, or (training seeds, episodes) of two methods, the same
    starts in the same places; paired=False: of two checkpoints on starts of their own, as many as each has. One-sided,
    by the test that makes the interval: Tango's score test (1998) of two checkpoints, `stats.difference_p` of two
    methods, Miettinen and Nurminen's score test (1985) of unpaired checkpoints.
    """
    return _one_sided_p_value(first, second, -_check_margin(margin), paired)


def equivalence_p_value(first: Outcomes, second: Outcomes, margin: float, *, paired: bool = True) -> float:
    """The p of "they differ by `margin` or more": below 0.05, they are as good as each other up to `margin`. The larger
    of two one-sided tests (Schuirmann 1987), so that 0.05 goes with an interval at 90 %. Arguments of `noninferior`."""
    return max(
        _one_sided_p_value(first, second, -_check_margin(margin), paired),
        _one_sided_p_value(second, first, -margin, paired),
    )


def _one_sided_p_value(first, second, null_difference: float, paired: bool) -> float:
    x, y = np.asarray(first, float), np.asarray(second, float)
    if not paired:
        if x.ndim != 1 or y.ndim != 1:
            raise ValueError("expected one list of outcomes of each: methods are compared on the same starts")
        return float(scipy_stats.norm.sf(score_z(x.sum(), len(x), y.sum(), len(y), null_difference)))
    stats._check_paired(x, y)
    if x.ndim == 1:
        return float(scipy_stats.norm.sf(stats.tango_z((x > y).sum(), (y > x).sum(), len(x), null_difference)))
    return stats.difference_p(stats._check_table(x, "rate") - stats._check_table(y, "rate"), null_difference)


def _check_margin(margin: float) -> float:
    if not 0 < margin < 1:
        raise UserError(f"expected a margin between 0 and 1, found {margin}", where="margin",
                        hint="0.05 is five points of success")
    return margin
