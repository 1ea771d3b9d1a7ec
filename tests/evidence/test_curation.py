"""An arm of curation learns from what is marked for it."""

import numpy as np
import pytest
import torch

from evidence.worlds.curation import CuratedMethod, cloning_method, train_curated, with_keep_columns
from understudy.data.episode import Episode


def test_marks_are_of_episodes_or_of_steps():
    data = with_keep_columns(
        [Episode({"action": np.zeros((3, 1))})] * 2, {"a": [1.0, 0.0], "b": [np.array([1, 0, 2]), 0.0]}
    )
    assert [e.steps["keep.a"].tolist() for e in data] == [[1, 1, 1], [0, 0, 0]]
    assert data[0].steps["keep.b"].tolist() == [1, 0, 2]


def test_an_arm_learns_from_what_is_marked_for_it_alone():
    """One episode does 1 and another does 3 in the same states, and half of the first does 5."""
    state = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    first = np.r_[np.full(20, 5.0), np.full(20, 1.0)].astype(np.float32)[:, None]
    data = with_keep_columns([Episode({"observation.state": state, "action": first}),
                   Episode({"observation.state": state, "action": np.full((40, 1), 3, np.float32)})],
                  {"half": [np.arange(40) >= 20, 0.0], "second": [0.0, 1.0], "both": [np.arange(40) >= 20, 0.5]})
    plans = {}
    for by in ("half", "second", "both"):
        policy = train_curated(CuratedMethod(cloning_method(3e-3, steps=60), by), data, 0)
        obs = {"observation.state": torch.from_numpy(state[20:, None])}
        plans[by] = float(policy.plan(obs, policy.noise(torch.zeros(20, dtype=torch.int64),
                                                        torch.zeros(20, dtype=torch.int64))).mean())
    assert plans["half"] == pytest.approx(1, abs=0.3) and plans["second"] == pytest.approx(3, abs=0.1)
    assert 1.4 < plans["both"] < 2.6
