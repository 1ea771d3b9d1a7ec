"""RunningNormalizer: its statistics are those of all steps so far."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import make, train
from understudy.core import Batch, Feature, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.formats import open_dataset
from understudy.data.running_normalizer import LARGEST_CODE, RunningNormalizer
from understudy.improve.collection import random_episodes
from understudy.methods import find_method
from understudy.testing import STATE, check_codec

FEATURES = {STATE: Feature("float32", (3,)), "action": Feature("float32", (1,))}


def scan(states):
    states = torch.as_tensor(np.asarray(states, np.float32))
    action = torch.linspace(-2, 2, len(states)).reshape(-1, 1, 1)
    batch = Batch({STATE: states.unsqueeze(1)}, action, torch.ones(len(states), 1, dtype=torch.bool))
    return lambda: iter([batch])


def fitted(spec, states):
    codec = spec.build(FEATURES, (STATE,), "action")
    codec.fit_statistics(scan(states))
    return codec


def codes(codec, states):
    return codec.encode_obs({STATE: torch.as_tensor(np.asarray(states, np.float32)).unsqueeze(1)})[STATE].squeeze(1)


def test_contract():
    check_codec(RunningNormalizer())
    check_codec(RunningNormalizer(target="zscore", relative=STATE))
    check_codec(RunningNormalizer(), Feature("int64", (2,), "discrete", num_classes=(3, 4)))
    for options in ({"obs": "minmax"}, {"group_by": STATE}):
        with pytest.raises(Unsupported, match="only a mean and a standard deviation"):
            RunningNormalizer(**options)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_statistics_of_parts_are_those_of_the_whole(sizes, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal(size=3), rng.uniform(0.1, 3, 3), (n, 3)) for n in sizes]
    codec = fitted(RunningNormalizer(), parts[0])
    target = codec.action_transform.state_dict()
    for part in parts[1:]:
        codec.extend_statistics(scan(part))
    whole = fitted(Normalizer(), np.concatenate(parts))
    assert int(codec.count) == sum(sizes)
    for own, other in zip(codec.obs_statistics(STATE), whole.obs_statistics(STATE), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, target[name]) for name, value in codec.action_transform.state_dict().items())


def test_what_did_not_vary_at_first_is_seen_later():
    first = np.random.default_rng(0).normal(size=(100, 3))
    first[:, 1:] = 0.5, 7.0
    later = np.random.default_rng(1).normal(size=(100, 3))
    later[:, 1], later[:, 2] = np.arange(100) % 4, 7.0  # the second component begins to vary, the third does not
    codec = fitted(RunningNormalizer(), first)
    assert (codes(codec, later)[:, 1:] == 0).all()
    codec.extend_statistics(scan(later))
    assert codes(codec, later)[:, 1].unique().numel() == 4
    assert (codes(codec, later)[:, 2] == 0).all()


def test_rare_values_have_codes_of_bounded_size():
    states = np.zeros((5000, 3))
    states[:, 0] = np.arange(5000) % 2
    codec = fitted(RunningNormalizer(), states)
    codec.extend_statistics(scan([[0, 1, 0], [1, 0, 0]]))
    assert codes(codec, [[0, 1, 0]])[0, 1] == LARGEST_CODE
    assert codes(codec, [[1, 0, 0]])[0, 0] == pytest.approx(1, abs=1e-3)


def test_a_training_extends_them_after_each_round_but_the_last(tmp_path):
    env = make("particle", 2, limit=6)
    first = random_episodes(env, 20, 0)
    method = find_method("ppo", first.features(), n_rounds=3, n_steps=16, n_epochs=1)
    policy = train(method, first, tmp_path / "run", env=env, device="cpu")
    rounds = [open_dataset(tmp_path / f"run/collection/{number:06d}/episodes.npz") for number in range(2)]
    for column in policy.inputs:
        seen = np.concatenate([e.steps[column][:len(e)] for data in (first, *rounds) for e in data])
        for own, expected in zip(policy.codec.obs_statistics(column), (seen.mean(0), seen.std(0)), strict=True):
            torch.testing.assert_close(own, torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def test_small_units_are_seen_and_rounding_is_not():
    """Both in the first round and in the statistics of two rounds."""
    rng = np.random.default_rng(0)
    bit = np.spacing(np.float32(1000))
    states = [np.stack([1e-6 * rng.normal(size=100), 1000 + bit * rng.integers(-1, 2, 100), rng.normal(size=100)], 1)
              for _ in range(2)]
    codec = fitted(RunningNormalizer(), states[0])
    for _ in range(2):
        coded = codes(codec, states[1])
        assert (coded.abs().amax(0) > 1).tolist() == [True, False, True]
        codec.extend_statistics(scan(states[1]))
