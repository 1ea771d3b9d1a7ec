"""The table of steps."""


import numpy as np
import pytest
from fixtures.scored import data, episode, line, noisy, steady

from understudy.audit.scores import (
    NETWORK_SCORES,
    SCORES,
    ActionVariance,
    Smoothness,
    StateDiversity,
)
from understudy.audit.scores.step_table import StepTable
from understudy.core import UserError
from understudy.data.episode import Episode


def test_the_table_is_in_standard_deviations_and_knows_what_follows():
    t = StepTable.from_data(data(episode([0, 1, 2, 3], [[5, 0], [5, 2], [5, 4]]), episode([4, 5], [[5, 6], [5, 8]])))
    assert t.state.std() == pytest.approx(1) and t.state.mean() == pytest.approx(0, abs=1e-6)
    assert (t.action[:, 0] == 0).all(), "a constant component says nothing"
    assert t.has_next.tolist() == [True, True, True, True, False]
    assert np.allclose((t.next_state - t.state)[t.has_next] * np.std([0, 1, 2, 4, 5]), 1)
    assert [v.tolist() for v in t.split(np.arange(5.0))] == [[0, 1, 2], [3, 4]]


def test_rounding_is_no_variation():
    flat = np.full(50, 1e3) + 1e-5 * np.arange(50)
    assert (StepTable.from_data(data(episode(np.c_[np.arange(50.0), flat], np.arange(50.0)))).state[:, 1] == 0).all()


def test_a_value_that_is_no_number_spoils_its_step_only():
    d = data(line(6, steady))
    d[2].steps["observation.state"][7] = np.nan
    steps = StateDiversity(n_neighbors=3).score_steps(d)
    assert [int(np.isnan(s).sum()) for s in steps] == [0, 0, 2, 0, 0, 0], "the step, and the one that leads there"
    assert np.isfinite(StateDiversity(n_neighbors=3)(d)).all()


def test_odd_episodes_spoil_nobody_else():
    """One without steps, one of a single step, one of numbers that are none: NaN or a number for them, and for the
    others the same as if these had none of it."""
    none = Episode({"observation.state": np.zeros((1, 1), np.float32), "action": np.zeros((0, 1), np.float32)})
    one = episode([0.5], [1.0])
    bad = episode(np.full(9, np.nan), np.full(8, np.nan))
    some = line(5, noisy, steps=12)
    for name, make in SCORES.items():
        if name in NETWORK_SCORES - {"alignment"}:
            continue
        scores = make()(data(some, none, one, bad))
        assert scores.shape == (8,), name
        assert np.isfinite(scores[:5]).all() or name == "return", name
    assert np.array_equal(Smoothness()(data(some, bad))[:5], Smoothness()(data(some)))


@pytest.mark.parametrize("columns,message", [
    ({"observation.images.top": np.zeros((4, 8, 8, 3), np.uint8)}, "no numeric observation among action"),
    ({"observation.state": np.zeros((4, 2)), "action": None}, "no numeric action")])
def test_what_has_no_numbers_is_refused(columns, message):
    steps = {"action": np.zeros((4, 1), np.float32), **columns}
    with pytest.raises(UserError, match=message):
        ActionVariance()(data(Episode({k: v for k, v in steps.items() if v is not None})))


def test_choices_have_no_distance():
    """Action 2 is as far from 0 as 1 is."""
    d = data(Episode({"observation.state": np.zeros((3, 1)), "action": np.array([[0], [1], [2]])}))
    a = StepTable.from_data(d).action * np.array([v if np.isfinite(v) else 0 for v in StepTable.from_data(d).scales[3]])
    assert np.linalg.norm(a[0] - a[1]) == pytest.approx(np.linalg.norm(a[0] - a[2]))
