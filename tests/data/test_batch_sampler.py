"""Batch samplers: mixtures in fixed proportions, and windows that look ahead."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.batch_sampler import BatchSampler, MixtureSampler, SourcesSampler
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window

STATE = "observation.state"


def dataset(value: float, episodes: int = 3, steps: int = 10) -> Dataset:
    """Every observation and action has the given value."""
    return Dataset([Episode({STATE: np.full((steps + 1, 2), value, np.float32),
                             "action": np.full((steps, 1), value, np.float32)}) for _ in range(episodes)])


def windows(value: float, **options):
    return Window(2, 3).windows(dataset(value), (STATE,), "action", **options)


def test_rows_come_from_each_sampler_in_fixed_proportions():
    mixture = MixtureSampler((windows(0.0), windows(1.0), windows(2.0)), (1, 2, 1))
    for step in range(5):
        batch = mixture.batch(64, step)
        index = batch.extra["dataset_index"]
        assert index.shape == (64, 1) and Counter(index[:, 0].tolist()) == {0: 16, 1: 32, 2: 16}
        assert torch.equal(batch.action[:, 0, 0], index[:, 0].float())
        assert torch.equal(batch.obs[STATE][:, 0, 0], index[:, 0].float())
        assert batch.extra["index"].shape == (64, 1) and batch.extra["index"].max() < 30


def test_fractions_of_a_row_even_out():
    mixture = MixtureSampler((windows(0.0), windows(1.0), windows(2.0)), (0.003, 0.34, 0.657))
    counts = np.array([mixture.rows_per_sampler(10, step) for step in range(10_000)])
    assert (counts.sum(1) == 10).all() and (counts >= 0).all()
    assert (np.ptp(counts, axis=0) == 1).all()  # never more than one row apart
    assert counts.mean(0) == pytest.approx([0.03, 3.4, 6.57], abs=2e-3)
    assert mixture.rows_per_sampler(10, 0) == [0, 3, 7]


def test_a_share_is_those_rows_of_the_batch():
    mixture = MixtureSampler((windows(0.0), windows(1.0, next_obs=False)), (0.3, 0.7))
    for step in range(4):
        whole = mixture.batch(13, step, seed=5)
        for rows in (slice(0, 4), slice(4, 9), slice(9, 13), slice(3, 3), slice(None)):
            part = mixture.batch(13, step, seed=5, rows=rows)
            assert len(part) == len(range(13)[rows])
            assert torch.equal(part.action, whole.action[rows])
            assert torch.equal(part.mask, whole.mask[rows])
            assert torch.equal(part.extra["index"], whole.extra["index"][rows])
            assert torch.equal(part.extra["dataset_index"], whole.extra["dataset_index"][rows])


def test_a_batch_is_a_function_of_seed_and_step():
    mixture = MixtureSampler((windows(0.0), windows(1.0)), (0.5, 0.5))
    index = [mixture.batch(32, step, seed).extra["index"] for step, seed in ((3, 1), (3, 1), (4, 1), (3, 2))]
    assert torch.equal(index[0], index[1])
    assert not torch.equal(index[0], index[2]) and not torch.equal(index[0], index[3])


def test_two_samplers_over_the_same_data_draw_differently():
    same = windows(0.0)
    index = MixtureSampler((same, same), (0.5, 0.5)).batch(64, 0).extra["index"]
    assert not torch.equal(index[:32], index[32:])


def test_the_next_observation_is_joined():
    batch = MixtureSampler((windows(0.0, next_obs=True), windows(1.0, next_obs=True)), (0.5, 0.5)).batch(8, 0)
    assert batch.next[STATE].shape == (8, 2, 2)
    assert torch.equal(batch.next[STATE][:, 0, 0], batch.extra["dataset_index"][:, 0].float())


@pytest.mark.parametrize(("samplers", "weights"), [
    ((), ()), ((0,), (0.5, 0.5)), ((0, 1), (-1.0, 2.0)), ((0, 1), (0.0, 0.0)), ((0, 1), (float("nan"), 1.0))])
def test_weights_that_mean_nothing_are_refused(samplers, weights):
    with pytest.raises(UserError, match="MixtureSampler"):
        MixtureSampler([windows(float(i)) for i in samplers], weights)


def test_batches_that_differ_are_refused_by_name():
    plain = windows(0.0)
    for other, difference in ((windows(1.0, next_obs=True), "next observation"),
                              (windows(1.0, extra=("action",)), "column 'action'"),
                              (Window(2, 4).windows(dataset(1.0), (STATE,), "action"),
                               "column 'action' in different shapes"),
                              (Window(1, 3).windows(dataset(1.0), (STATE,), "action"),
                               f"column '{STATE}' in different")):
        with pytest.raises(UserError, match=difference):
            MixtureSampler((plain, other), (0.5, 0.5)).batch(8, 0)


def test_windows_are_batch_samplers():
    assert isinstance(windows(0.0), BatchSampler)
    nested = MixtureSampler((MixtureSampler((windows(0.0), windows(1.0)), (0.5, 0.5)), windows(2.0)), (0.5, 0.5))
    assert nested.batch(8, 0).extra["dataset_index"][:, 0].tolist() == [0] * 4 + [1] * 4


# -- lookahead -------------------------------------------------------------------------------------------------------


def counting(*lengths: int) -> Dataset:
    """Step t of episode e holds 100 e + t."""
    return Dataset([Episode({STATE: (100 * e + np.arange(n + 1, dtype=np.float32))[:, None],
                             "action": (100 * e + np.arange(n, dtype=np.float32))[:, None],
                             "next.reward": 100 * e + np.arange(n, dtype=np.float32)})
                    for e, n in enumerate(lengths)])


@pytest.mark.parametrize("action_offset", [0, -1, 2])
def test_extra_covers_the_lookahead_and_next_comes_after_it(action_offset):
    window = Window(2, 2, action_offset=action_offset)
    windows = window.windows(counting(6, 4), (STATE,), "action", extra=("next.reward",), next_obs=True, lookahead=3)
    batch = windows.gather(np.arange(10))
    assert batch.action.shape == (10, 2, 1) and batch.extra["next.reward"].shape[:2] == (10, 3)
    for row, (e, t) in enumerate([(0, t) for t in range(6)] + [(1, t) for t in range(4)]):
        n = (6, 4)[e]
        rows = t + action_offset + np.arange(3)
        inside = (rows >= 0) & (rows < n)
        assert batch.extra["lookahead_mask"][row].tolist() == inside.tolist()
        rewards = batch.extra["next.reward"][row].flatten().numpy()
        assert rewards[inside].tolist() == (100 * e + rows[inside]).tolist()
        after = (t + action_offset + 3 + np.arange(-1, 1)).clip(0, n)
        assert batch.next[STATE][row, :, 0].tolist() == (100 * e + after).tolist()


def test_a_lookahead_of_zero_is_the_horizon():
    window = Window(2, 3)
    options = {"extra": ("next.reward",), "next_obs": True}
    plain = window.windows(counting(6, 4), (STATE,), "action", **options).batch(32, 0)
    same = window.windows(counting(6, 4), (STATE,), "action", **options, lookahead=3).batch(32, 0)
    assert "lookahead_mask" not in plain.extra
    assert torch.equal(same.extra["lookahead_mask"], plain.mask)
    assert torch.equal(plain.extra["next.reward"], same.extra["next.reward"])
    assert torch.equal(plain.next[STATE], same.next[STATE]) and torch.equal(plain.action, same.action)


def test_a_negative_lookahead_is_refused():
    with pytest.raises(UserError, match="lookahead"):
        Window(1, 1).windows(counting(3), (STATE,), "action", lookahead=-1)


def test_rows_of_other_sources_are_beside_the_batch():
    sources = SourcesSampler(windows(1.0, next_obs=True), {"expert": windows(2.0), "play": windows(3.0)})
    whole, alone = sources.batch(64, 5, seed=3), windows(1.0, next_obs=True).batch(64, 5, seed=3)
    assert torch.equal(whole.extra["index"], alone.extra["index"])  # the others change nothing
    assert (whole.action == 1).all() and whole.next is not None
    assert {name: other.action.unique().tolist() for name, other in whole.others.items()} == {
        "expert": [2.0], "play": [3.0]}
    draws = [batch.extra["index"] for batch in (whole, *whole.others.values())]
    assert not any(torch.equal(a, b) for a, b in zip(draws, draws[1:] + draws[:1], strict=True))
    assert sources.batch(64, 6, seed=3).others["expert"].extra["index"].tolist() != draws[1].tolist()


def test_a_share_has_the_same_rows_of_other_sources():
    sources = SourcesSampler(windows(1.0), {"expert": windows(2.0)})
    whole = sources.batch(13, 4, seed=5)
    for rows in (slice(0, 4), slice(4, 9), slice(9, 13), slice(3, 3)):
        share = sources.batch(13, 4, seed=5, rows=rows)
        for part in (share, whole.select_rows(rows), whole.to("cpu").select_rows(rows)):
            assert len(part) == len(part.others["expert"]) == len(range(13)[rows])
            assert torch.equal(part.others["expert"].extra["index"], whole.others["expert"].extra["index"][rows])
