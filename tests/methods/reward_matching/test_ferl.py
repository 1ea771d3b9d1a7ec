"""FERL: which steps of traces are compared, the loss, what is recovered, and what is no trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from scipy.stats import spearmanr
from torch.nn.functional import binary_cross_entropy_with_logits

from understudy.core import DataError
from understudy.data.episode import Dataset, Episode
from understudy.learn.fit_method import fit_method
from understudy.methods.reward_matching.ferl import TracePairs, ferl
from understudy.policy import Policy

STATE = "observation.state"


def traces(*ways: str, length: int = 9, rows: int = 1) -> Dataset:
    """The first number rises from 0 to 1, or falls. The second is that of the trace, the third noise."""
    rng, episodes = np.random.default_rng(0), []
    for number, way in enumerate(ways):
        feature = np.linspace(0, 1, length + number)[::1 if way == "up" else -1]
        state = np.stack([feature, np.full(len(feature), number), rng.normal(size=len(feature))], 1).astype(np.float32)
        state = np.concatenate([state, np.full((rows, 3), 9, np.float32)])  # what follows the last step
        episodes.append(Episode({STATE: state, "action": state[:len(feature), :2]}, {"trace": way}))
    return Dataset(episodes)


def test_later_is_better_in_rising_traces_and_ends_of_traces_are_equal():
    ways = ("up", "down", "up")
    pairs = TracePairs(n_pairs=50, n_ends=10).apply(traces(*ways))
    assert len(pairs) == 3 * (50 + 2 * 10)
    state, preference = (np.stack([e.steps[name] for e in pairs]) for name in (STATE, "preference"))
    assert all(e.steps["segment"][:, 0].tolist() == [0, 1] and len(e) == 2 for e in pairs)
    assert (state != 9).all()
    ordered = np.ptp(state[..., 1], axis=1) == 0
    assert ordered.sum() == 150 and (preference[ordered, :, 0] == [0, 2]).all()
    assert (state[ordered, 1, 0] > state[ordered, 0, 0]).all()
    assert len(np.unique(state[ordered, :, 0], axis=0)) > 60  # all kinds of pairs
    assert (preference[~ordered] == 1).all()
    assert sorted(map(tuple, np.unique(state[~ordered, :, 0], axis=0))) == [(0, 0), (1, 1)]
    assert len(TracePairs(5, 3).apply(traces("up"))) == 5


def test_the_loss_is_that_of_single_steps_whatever_the_actions():
    method = ferl(20)
    pairs = method.transforms[0].apply(traces("up", "down"))
    policy = Policy(method.policy, pairs.features()).fit_statistics(pairs)
    torch.manual_seed(0)
    learner = method.learner.build(policy, 0, 1, pairs)
    batch = learner.batch_sampler(pairs).batch(32, 0)
    drawn = torch.randint(len(pairs), (32,), generator=torch.Generator().manual_seed(7))
    first, second = (torch.from_numpy(np.stack([pairs[int(i)].steps[STATE][k:k + 1] for i in drawn])) for k in (0, 1))
    equal = torch.tensor([pairs[int(i)].steps["preference"][0, 0] == 1 for i in drawn])
    feature = [learner.nets.reward.value({STATE: x}, torch.randn(32, 1, 2)) for x in (first, second)]
    expected = binary_cross_entropy_with_logits(feature[1] - feature[0], 1 - 0.5 * equal.float(), reduction="none")
    torch.testing.assert_close(call_step(learner, "preference_loss", batch, torch.Generator().manual_seed(7)), expected)


def test_the_feature_is_recovered():
    method = ferl(60)
    method = replace(method, learner=replace(method.learner, steps=60, batch_size=64))
    model = fit_method(method, traces("up", "up", "down", "up", "down"), 0).modules["reward"]
    state = torch.rand(200, 1, 3)
    with torch.no_grad():
        feature = model({STATE: state}, torch.zeros(200, 1, 2))
    assert spearmanr(feature.numpy(), state[:, 0, 0].numpy()).statistic > 0.8


@pytest.mark.parametrize(("metadata", "words"), [({}, "None"), ({"trace": "sideways"}, "sideways")])
def test_demonstrations_are_no_traces(metadata, words):
    data = Dataset([*traces("up"), replace(traces("up")[0], metadata=metadata)])
    with pytest.raises(DataError, match=f"(?s)episode 1: a trace needs.*{words}.*--label trace=up"):
        TracePairs().apply(data)
    with pytest.raises(DataError, match="1 step and 'up'"):
        TracePairs().apply(traces("up", length=1))
