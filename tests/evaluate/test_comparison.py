"""Comparisons of one policy in two environments: numbers by hand."""

from dataclasses import replace

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.evaluate.comparison import generalization_gap
from understudy.evaluate.evaluation import Evaluation, evaluation_of
from understudy.evaluate.independent import miettinen_nurminen


def outcomes(*successes: bool | None) -> Evaluation:
    """An evaluation whose episodes succeeded or failed, with the return 2 for a success. None: nothing said which."""
    return evaluation_of(Dataset([
        Episode({"observation.state": np.zeros((2, 1), np.float32), "action": np.zeros((1, 1), np.float32),
                 "next.reward": np.array([2.0 * bool(success)], np.float32)},
                {"number": i, "seed": 0, "env": "toy", **({} if success is None else {"success": success})})
        for i, success in enumerate(successes)]))


def test_the_generalization_gap_by_hand():
    """Of 20 pairs, 9 succeed in the training environment alone and 2 in the new one alone. The exact p-value is that of
    9 or more of 11 fair coins, twice: 2 (55 + 11 + 1) / 2048."""
    training = outcomes(*[True] * 9, *[False] * 2, *[True] * 6, *[False] * 3)
    new = outcomes(*[False] * 9, *[True] * 2, *[True] * 6, *[False] * 3)
    gap = generalization_gap(training, new)
    assert (gap.metric, gap.difference, gap.p_value) == ("success", 7 / 20, pytest.approx(2 * 67 / 2048))
    assert gap.low < 7 / 20 < gap.high and generalization_gap(new, training).difference == -7 / 20
    assert generalization_gap(training, outcomes(*[None] * 20)).difference == 15 / 20  # no success was ever reported
    with pytest.raises(UserError, match=r"not pairs: 20 of seed 0 in toy, and 3 of seed 0 in toy"):
        generalization_gap(training, outcomes(True, False, True))


def test_the_gap_of_unrelated_episodes_has_the_interval_of_independent_samples():
    """60 and 40 of 100 whose outcomes are independent: 24 times both succeed, 36 and 16 times one of them."""
    training = outcomes(*[True] * 60, *[False] * 40)
    new = outcomes(*[True] * 24, *[False] * 36, *[True] * 16, *[False] * 24)
    gap, independent = generalization_gap(training, new), miettinen_nurminen(60, 100, 40, 100)
    assert (gap.low, gap.high) == pytest.approx((independent.low, independent.high), abs=2e-3)


def test_without_success_the_gap_is_that_of_returns():
    training, new = (replace(outcomes(*[True] * n, *[False] * (10 - n)), success=None) for n in (9, 3))
    gap = generalization_gap(training, new)
    assert (gap.metric, gap.difference) == ("return", pytest.approx(1.2)) and gap.low < 1.2 < gap.high
