"""What is found in data before training."""

import numpy as np
import pytest

from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.preflight import ConstantComponent, constant_components
from understudy.policy import Policy, PolicyConfig
from understudy.testing import STATE

WAVE = np.sin(np.arange(40, dtype=np.float64))


def policy_and_data(codec, state, action):
    columns = {STATE: np.stack(state, 1).astype(np.float32), "action": np.stack(action, 1).astype(np.float32)}
    data = Dataset([Episode({name: x[:20] for name, x in columns.items()}),
                    Episode({name: x[20:] for name, x in columns.items()})])
    return Policy(PolicyConfig(Regression(), codec=codec), data.features()).fit_statistics(data), data


def test_a_policy_with_a_coarse_floor_names_what_it_does_not_learn():
    """As policies of earlier versions have it: their floor was 1e-4 in any unit."""
    old, data = policy_and_data(Normalizer(min_scale=1e-4), [WAVE, 2e-5 * WAVE, 0 * WAVE], [3e-5 * WAVE, WAVE])
    hidden = constant_components(old, data)
    assert [(c.column, c.index) for c in hidden] == [(STATE, 1), ("action", 0)]
    assert hidden[1] == ConstantComponent("action", 0, hidden[1].name, pytest.approx(-3e-5, rel=1e-3),
                                          pytest.approx(3e-5, rel=1e-3))
    new, _ = policy_and_data(Normalizer(), [WAVE, 2e-5 * WAVE, 0 * WAVE], [3e-5 * WAVE, WAVE])
    assert constant_components(new, data) == ()


def test_rounding_is_not_named():
    last_bits = np.float32(1000) + np.spacing(np.float32(1000)) * np.sign(WAVE)
    policy, data = policy_and_data(Normalizer(), [WAVE, last_bits, 3e-8 * WAVE], [WAVE, WAVE])
    assert [(c.column, c.index) for c in constant_components(policy, data)] == [(STATE, 2)]


def test_policies_without_statistics_hide_nothing():
    policy, data = policy_and_data(Normalizer(obs="identity", target="identity"), [1e-9 * WAVE], [WAVE, 1e-12 * WAVE])
    assert constant_components(policy, data) == ()
    policy, data = policy_and_data(Normalizer(relative=STATE), [WAVE, WAVE], [WAVE, WAVE + 0.1])
    assert constant_components(policy, data) == ()
