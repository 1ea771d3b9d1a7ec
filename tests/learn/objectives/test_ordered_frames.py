"""Ordered frames: five steps of one episode after the other."""

import numpy as np
import pytest

from understudy.core import DataError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.learn.objectives.ordered_frames import OrderedFrames, video_rows

STATE = "observation.state"


def sampler(*lengths, weights=None):
    """Of episodes whose rows have the number of the episode and their own."""
    rows = [np.stack([np.full(n, i), np.arange(n)], 1).astype(np.float32) for i, n in enumerate(lengths)]
    data = Dataset([Episode({STATE: x, "action": x}) for x in rows])
    return OrderedFrames(Window().windows(data, (STATE,), "action", sampling_weights=weights))


def test_frames_are_of_one_episode_and_in_order():
    episode, row = sampler(3, 20, 7).batch(15_000, 0).obs[STATE].reshape(3000, 5, 2).unbind(-1)
    assert (episode == episode[:, :1]).all()
    for number, (n, fifth) in enumerate(((3, 1), (20, 5), (7, 2))):
        start, goal, s0, s1, s2 = row[episode[:, 0] == number].T.int()
        assert len(start) == pytest.approx(1000, abs=100) and (s0 < s1).all() and (s1 < s2).all()
        assert set(start.tolist()) == set(range(fifth)) and set(goal.tolist()) == set(range(n - fifth, n))
        assert all(set(s.tolist()) == set(range(i, n - 2 + i)) for i, s in enumerate((s0, s1, s2)))


def test_weights_choose_episodes_and_incomplete_videos_are_left_out():
    batch = sampler(5, 6, 4, weights=lambda e: np.full(len(e), float(len(e) == 6))).batch(13, 1)
    assert (batch.obs[STATE][:, 0, 0] == 1).all()
    assert video_rows(batch).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert video_rows(batch.select_rows(slice(3, 13))).tolist() == [[2, 3, 4, 5, 6]]


def test_short_episodes_are_refused():
    with pytest.raises(DataError, match="has 2 steps"):
        sampler(5, 2)
