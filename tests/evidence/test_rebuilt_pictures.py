"""The arms of the experiment with pictures that are rebuilt from the bottleneck."""

from dataclasses import replace

import numpy as np
import torch

from evidence.families.pictures import rebuilt_pictures as world
from understudy.nets.base import capture_intermediates
from understudy.policy import Policy

DATA = world.PushesToGoals(12, 4, 4).load(5)
CAPTURED = ("trunk_bottleneck", "context", "context_mask")


def test_arms_differ_in_what_is_rebuilt_alone():
    plain = world.TABLE.arms["plain"]
    assert not plain.learner.auxiliary_losses
    for method in world.TABLE.arms.values():
        assert replace(method, learner=replace(method.learner, auxiliary_losses=())) == plain


def test_the_encoding_is_rebuilt_without_the_noisy_action():
    method = world.TABLE.arms["encoding"]
    policy = Policy(method.policy, DATA.features()).fit_statistics(DATA)
    (config,) = method.learner.auxiliary_losses
    loss, batch = config.build(policy), policy.windows(DATA).gather(np.arange(0, 60, 10))
    with capture_intermediates(CAPTURED) as captured:
        policy.loss(batch, torch.Generator().manual_seed(1))
    value = loss(policy, batch, torch.Generator(), captured)
    others = {**captured, "trunk_bottleneck": captured["trunk_bottleneck"] + 1}
    assert torch.equal(loss(policy, batch, torch.Generator(), others), value)
    value.sum().backward()
    assert all(p.grad is None for p in policy.net.parameters())
    assert all(p.grad.abs().sum() > 0 for p in policy.encoder.parameters() if p.grad is not None)
    assert loss.projection[0].weight.grad.abs().sum() > 0


class ShortPush(world.NearPush):
    """Pushes of four steps."""

    def __init__(self, rows):
        super().__init__(rows)
        self.limit = 4


def test_success_is_that_of_both_sizes_at_other_starts(monkeypatch):
    monkeypatch.setattr(world, "NearPush", ShortPush)
    method = world.TABLE.arms["plain"]
    method = replace(method, learner=replace(method.learner, steps=1, batch_size=4))
    measured = world.pushed(world.TABLE, method, DATA, 5, 2, 7)
    assert measured["success"] == measured["success from 25"] + measured["success from 100"]
    assert len(measured["success"]) == 4 and 0 <= measured["progress"][0] <= 1
