"""bc-transformer-gmm: what to do may depend on the oldest observation of the window."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.data.episode import Dataset, Episode
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method


@pytest.mark.slow
def test_it_does_what_was_shown_nine_steps_ago():
    rng = np.random.default_rng(0)
    shown = [rng.uniform(-1, 1, (40, 1)).astype(np.float32) for _ in range(100)]
    data = Dataset([Episode({"observation.state": s, "action": np.roll(s, 9, 0)}) for s in shown])
    method = find_method("bc-transformer-gmm", width=32)
    method = replace(method, policy=replace(method.policy, trunk=replace(method.policy.trunk, depth=1)),
                     learner=replace(method.learner, steps=300, optimizer=OptimizerConfig(lr=3e-3)))
    policy = fit_method(method, data, seed=0).policy
    new = torch.from_numpy(rng.uniform(-1, 1, (64, 10, 1)).astype(np.float32))
    noise = torch.randn(64, *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    plan = policy.plan({"observation.state": new}, noise)
    assert (plan[:, 0] - new[:, 0]).abs().mean() < 0.25  # 0.67 without a memory
