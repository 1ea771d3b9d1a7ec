"""Tests of noninferiority and equivalence, which "no significant difference" does not show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from ..core import UserError
from . import stats
from .independent import score_z

Outcomes = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


def noninferiority_p_value(first: Outcomes, second: Outcomes, margin: float, *, paired: bool = True) -> float:
    """Computes the p-value of the hypothesis that the first policy is worse by `margin` or more.

    Below 0.05, it is not inferior.

    The test is one-sided and belongs to the interval: Tango's score test (1998) for two checkpoints,
    `stats.difference_p` for two methods, Miettinen and Nurminen's score test (1985) for unpaired checkpoints.

    Args:
        first: Outcomes 0 and 1: (episodes,) of a checkpoint, or (training seeds, episodes) of a method.
        second: Outcomes of the second checkpoint or method, with the same starts in the same places.
        margin: Largest acceptable difference of success rates.
        paired: False for two checkpoints on different starts, which may have different numbers of episodes.
    """
    return _one_sided_p_value(first, second, -_check_margin(margin), paired)


def equivalence_p_value(first: Outcomes, second: Outcomes, margin: float, *, paired: bool = True) -> float:
    """Computes the p-value of the hypothesis that the policies differ by `margin` or more.

    Below 0.05, they are equivalent up to it.

    This is the larger p-value of two one-sided tests, so 0.05 corresponds to a 90 % interval.

    Args:
        first: Outcomes of the first policy, as for `noninferiority_p_value`.
        margin: The largest difference of success rates that does not matter, above 0.

    References:
        Schuirmann (1987), A Comparison of the Two One-Sided Tests Procedure and the Power Approach.
    """
    return max(
        _one_sided_p_value(first, second, -_check_margin(margin), paired),
        _one_sided_p_value(second, first, -margin, paired),
    )


def _one_sided_p_value(first, second, null_difference: float, paired: bool) -> float:
    x, y = np.asarray(first, float), np.asarray(second, float)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("these tests are about success, so each outcome must be 0 or 1")
    if not paired:
        if x.ndim != 1 or y.ndim != 1:
            raise ValueError("unpaired tests need one list of outcomes of each: methods are compared on the same "
                             "starts")
        return float(scipy.stats.norm.sf(score_z(x.sum(), len(x), y.sum(), len(y), null_difference)))
    stats._check_paired(x, y)
    if x.ndim == 1:
        return float(scipy.stats.norm.sf(stats.tango_z((x > y).sum(), (y > x).sum(), len(x), null_difference)))
    return stats.difference_p(stats._check_table(x, "rate") - stats._check_table(y, "rate"), null_difference)


def _check_margin(margin: float) -> float:
    if not 0 < margin < 1:
        raise UserError(f"the margin must be between 0 and 1, not {margin}", where="margin",
                        hint="0.05 is five points of success")
    return margin
