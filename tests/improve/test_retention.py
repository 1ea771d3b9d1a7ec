"""Retention: which collected episodes stay."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Episode
from understudy.data.replay_buffer import ReplayBuffer
from understudy.improve.retention import ROUND, AllEpisodes, LastRounds, SuccessfulEpisodes, TopReturns

STATE = "observation.state"


def rewarded(rewards, number=None) -> Episode:
    rewards = np.array(rewards, np.float32)
    steps = {STATE: np.zeros((len(rewards) + 1, 1), np.float32), "action": np.zeros((len(rewards), 1), np.float32),
             "next.reward": rewards}
    return Episode(steps, {} if number is None else {ROUND: number})


def test_retention_rules():
    data = ReplayBuffer([rewarded([1, 1]), rewarded([0, 0, 5], 0), rewarded([2], 1), rewarded([-1], 2)])

    def kept(rule):
        return [float(e.steps["next.reward"].sum()) for e in rule.keep(data)]
    assert kept(AllEpisodes()) == [2, 5, 2, -1]
    assert kept(LastRounds()) == [-1] and kept(LastRounds(2)) == [2, -1]
    assert kept(LastRounds(1, keep_initial=True)) == [2, -1] and kept(LastRounds(9)) == [5, 2, -1]
    assert kept(TopReturns(2)) == [5, 2] and kept(TopReturns(9)) == [2, 5, 2, -1]
    assert TopReturns(2).keep(data)[1].metadata == {ROUND: 1}  # of equal returns the newer
    for rule in (LastRounds(), TopReturns(1)):  # nothing is copied
        assert np.shares_memory(rule.keep(data).column(STATE)[0], data.column(STATE)[0])
    with pytest.raises(UserError, match="n_episodes.* at least 1"):
        TopReturns(0)
    with pytest.raises(UserError, match="no column 'reward'"):
        TopReturns(1, "reward").keep(data)


def test_successes_and_the_first_episodes_stay():
    facts = [{}, {"success": False}, {ROUND: 0, "success": True}, {ROUND: 0, "success": False}, {ROUND: 1}]
    data = ReplayBuffer([Episode({STATE: np.zeros((2, 1))}, dict(f)) for f in facts])
    assert [dict(e.metadata) for e in SuccessfulEpisodes().keep(data)] == facts[:3]
