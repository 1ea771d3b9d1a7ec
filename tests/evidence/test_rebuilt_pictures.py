"""The arms and the control of the claim about pictures that are rebuilt from the bottleneck."""

from dataclasses import replace

import numpy as np
import torch
from claims.features_of_pictures import rebuilt_pictures as claim

from evidence.memo import empty_memos
from understudy.nets.base import capture_intermediates
from understudy.policy import Policy

DATA = claim.PushesToGoals(12, 4, 4).load(5)
CAPTURED = ("trunk_bottleneck", "context", "context_mask")


def arms():
    return {arm.name: arm.options[0] for arm in claim.TABLE.experiment.arms}


def loss_of(name):
    """An arm's loss, its policy with a batch, and what its head's loss captured."""
    method = dict(claim.TABLE.ablations)[name].option if name not in arms() else arms()[name]
    torch.manual_seed(0)
    policy = Policy(method.policy, DATA.features()).fit_statistics(DATA)
    (config,) = method.learner.auxiliary_losses
    batch, rng = policy.windows(DATA).gather(np.arange(0, 60, 10)), torch.Generator().manual_seed(1)
    with capture_intermediates(CAPTURED) as captured:
        policy.loss(batch, rng)
    return config.build(policy), policy, batch, captured


def test_arms_differ_in_what_is_rebuilt_alone():
    methods = [*arms().values(), *(a.option for _, a in claim.TABLE.ablations)]
    plain = arms()["plain"]
    assert not plain.learner.auxiliary_losses and len(methods) == 4
    for method in methods:
        assert replace(method, learner=replace(method.learner, auxiliary_losses=())) == plain


def test_the_encoding_is_rebuilt_without_the_noisy_action():
    loss, policy, batch, captured = loss_of("encoding")
    value = loss(policy, batch, torch.Generator(), captured)
    others = {**captured, "trunk_bottleneck": captured["trunk_bottleneck"] + 1}
    assert torch.equal(loss(policy, batch, torch.Generator(), others), value)
    value.sum().backward()
    assert all(p.grad is None for p in policy.net.parameters())
    assert all(p.grad.abs().sum() > 0 for p in policy.encoder.parameters() if p.grad is not None)
    assert loss.projection[0].weight.grad.abs().sum() > 0


def test_the_control_rebuilds_the_observation_of_another_window():
    loss, policy, batch, captured = loss_of("observations of other windows")
    own, *_ = loss_of("bottleneck")
    own.load_state_dict(loss.state_dict())
    rolled = {**captured, "trunk_bottleneck": captured["trunk_bottleneck"].roll(-1, 0)}
    expected = own(policy, batch, torch.Generator(), rolled).roll(1, 0)
    torch.testing.assert_close(loss(policy, batch, torch.Generator(), captured), expected)
    assert (own(policy, batch, torch.Generator(), captured) - expected).abs().max() > 1e-4


class ShortPush(claim.NearPush):
    """Pushes of four steps."""

    def __init__(self, rows):
        super().__init__(rows)
        self.limit = 4


def test_success_is_that_of_both_sizes_at_other_starts(monkeypatch):
    monkeypatch.setattr(claim, "NearPush", ShortPush)
    method = arms()["plain"]
    method = replace(method, learner=replace(method.learner, steps=1, batch_size=4))
    with empty_memos():
        measured = claim.pushed(claim.TABLE.experiment, method, DATA, 5, 2, 7)
    assert measured["success"] == measured["success from 25"] + measured["success from 100"]
    assert len(measured["success"]) == 4 and 0 <= measured["progress"][0] <= 1
