"""Filters of actions."""


import pytest
import torch
from fixtures.schemes import Scripted, ran

from understudy.core import Unsupported, UserError
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.filters import FilteredExecutor, JerkLimit, LowPassFilter
from understudy.execute.streaming_flow import StreamingFlowExecutor


def test_a_low_pass_filter_is_an_exponential_average():
    planner = Scripted([[2.0, 6.0, 6.0, 6.0]])
    assert ran(FilteredExecutor(RecedingHorizon(4), LowPassFilter(0.5)), planner, 4) == [2, 4, 5, 5.5]
    with pytest.raises(UserError, match="below 1"):
        LowPassFilter(1.0)


def test_a_jerk_limit_holds_for_any_actions():
    planner = Scripted([[0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    # The step of 1 is within the limit; two averages of 2 make it 1/4, 3/4, 1.
    done = ran(FilteredExecutor(RecedingHorizon(6), JerkLimit(1.0, 2)), planner, 6)
    assert done == pytest.approx([0, 0.25, 0.75, 1, 1, 1])
    torch.manual_seed(0)
    wild = torch.randn(300).sign().cumsum(0).clamp(-3, 3) * 2
    for n in (1, 2, 5):
        planner = Scripted(wild[None])
        planner.action_scale = torch.tensor([0.5])
        done = torch.tensor(ran(FilteredExecutor(RecedingHorizon(300), JerkLimit(0.8, n)), planner, 300)).double()
        limit = 0.8 * 0.5
        assert done.diff().abs().max() <= limit + 1e-5
        if n > 1:
            assert done.diff().diff().abs().max() <= 2 * limit / n + 1e-5
            assert done.diff().diff().diff().abs().max() <= 4 * limit / n**2 + 1e-5
        assert wild.min() <= done.min() and done.max() <= wild.max()
        assert done.diff().abs().max() > 0.9 * limit  # and no slower than it must be
    for options in ({"max_change": 0.0}, {"n_average": 0}):
        with pytest.raises(UserError, match=f"{next(iter(options))} is .*, but must be (above 0|at least 1)"):
            JerkLimit(**options)


def test_actions_that_are_continued_are_not_filtered():
    with pytest.raises(Unsupported, match="a filter would change them"):
        FilteredExecutor(StreamingFlowExecutor())
