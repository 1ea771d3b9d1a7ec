"""MIP: two looks at the action."""

from types import SimpleNamespace

import pytest
import torch
from fixtures.heads import ACTION, EMPTY, MASK, named, rng

from understudy.heads.one_step.mip import MIP


def two_looks(seen):
    def trunk(x, t, context):
        seen.append((x, t))
        return 0.5 * x + t
    return SimpleNamespace(trunk=trunk, coded_dim=2)


@pytest.mark.parametrize(
    "head",
    [
        MIP(),
        MIP(loss_balance="equal"),
        MIP(scale_first_target=True),
        MIP(scale_first_target=True, loss_balance="equal"),
        MIP(noise_scale=0.0),
        MIP(second_time=0.5),
    ],
    ids=named,
)
def test_mip(head):
    """Pan et al. 2025: both terms, by hand."""
    inputs, t = [], head.second_time
    loss = head.loss(two_looks(inputs), EMPTY, ACTION, MASK, rng(3))
    noise = head.noise_scale * torch.randn(ACTION.shape, generator=rng(3))
    first_target = t * ACTION if head.scale_first_target else ACTION
    assert not inputs[0][0].any() and not inputs[0][1].any()
    torch.testing.assert_close(inputs[1][0], first_target + (1 - t) * noise)
    assert (inputs[1][1] == t).all()
    weights = (1 / t**2, 1 / (1 - t) ** 2) if head.loss_balance == "code" else (1, 1)
    expected = sum(w * e for w, e in zip(weights, ((0 - first_target).square().mean(-1),
                 (0.5 * (first_target + (1 - t) * noise) + t - ACTION).square().mean(-1)),
                                         strict=True)) * 2 / sum(weights)
    torch.testing.assert_close(loss, expected)
    plan = head.sample(two_looks([]), EMPTY, torch.zeros(1, 2, 0))
    torch.testing.assert_close(plan, torch.full((1, 2, 2), t))  # f(f(0, 0), t) of this trunk


def test_mip_without_the_second_look_is_regression_with_the_same_network():
    head, net = MIP(two_steps=False, scale_first_target=True), two_looks([])
    assert torch.equal(head.loss(net, EMPTY, ACTION, MASK, rng()), ACTION.square().mean(-1))
    assert not head.sample(net, EMPTY, torch.zeros(1, 2, 0)).any()
