"""What the claims about encoders of noisy observations measure, on cases with known answers."""

import numpy as np
import torch
from claims.representation import future_encodings as future

from understudy.core import Context
from understudy.policy import Policy


def policy_and_batch():
    data = future.Pushes(3).load(5)
    policy = Policy(future.cloning().policy, data.features()).fit_statistics(data)
    return data, policy, policy.windows(data, extra=future.COLUMNS).gather(np.arange(6))


def test_the_raw_future_is_the_coded_observation_and_the_control_another_windows():
    data, policy, batch = policy_and_batch()
    raw = future.RawPrediction(future.COLUMNS).build(policy).targets(policy, batch)
    coded = policy.codec.encode_obs(policy.windows(data).gather(np.arange(6)).obs)
    assert raw.shape == (6, 8, 8 + future.N_NOISE)
    torch.testing.assert_close(raw[0, 3], torch.cat([coded[name][3, 0] for name in future.COLUMNS]))
    torch.manual_seed(0)
    own = future.LatentPrediction(future.COLUMNS).build(policy).targets(policy, batch)
    other = future.OtherFutures(future.COLUMNS).build(policy).targets(policy, batch)
    torch.testing.assert_close(other[1:], own[:-1])
    assert not torch.allclose(own[1:], own[:-1], atol=0.1)


def test_the_probe_explains_what_the_encoding_has_and_nothing_else(monkeypatch):
    data, policy, _ = policy_and_batch()
    encodings, motion = future.encodings_and_motion(policy, data)
    state = np.asarray(data[0].steps[future.STATE], float)
    np.testing.assert_allclose(motion[2, :2], state[3, :2] - state[2, :2], atol=1e-7)
    np.testing.assert_allclose(motion[2, 2:], state[10, :6], atol=1e-7)
    assert len(motion) == sum(len(e) - 8 for e in data) == len(encodings)

    def context(name):
        def encode(self, obs, rng=None):
            return Context(obs[name].float(), torch.ones(len(obs[name]), 1, dtype=torch.bool))
        return encode
    monkeypatch.setattr(Policy, "context", context(future.STATE))
    informed = future.linear_fit(policy, 30, 5)
    monkeypatch.setattr(Policy, "context", context(future.NOISE))
    assert future.linear_fit(policy, 30, 5) < 0.1 < 0.4 < informed < 1.0
