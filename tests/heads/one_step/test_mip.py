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


@pytest.mark.parametrize("head, expected", [
    # Of the network x / 2 + t + 1, for the action 3. The code's first look is 1 for 3, its second 1.5 + 1.9 for 3.
    (MIP(noise_scale=0.0, loss_balance="equal"), 4 + 0.16),
    (MIP(noise_scale=0.0), (4 / 0.81 + 0.16 / 0.01) * 2 / (1 / 0.81 + 1 / 0.01)),
    (MIP(noise_scale=4.0), (4 / 0.81 + 0.20 / 0.01) * 2 / (1 / 0.81 + 1 / 0.01)),  # 0.1 * 4 n / 2 has variance 0.04
    # The paper's first look is 1 for 2.7, and its second 1.35 + 1.9 for 3.
    (MIP(noise_scale=0.0, loss_balance="equal", scale_first_target=True), 2.89 + 0.0625),
    (MIP(noise_scale=0.0, scale_first_target=True), (2.89 / 0.81 + 0.0625 / 0.01) * 2 / (1 / 0.81 + 1 / 0.01)),
], ids=named)
def test_the_loss_of_a_linear_network_worked_out_by_hand(head, expected):
    net, n = SimpleNamespace(trunk=lambda x, t, context: 0.5 * x + t + 1, coded_dim=1), 40_000
    loss = head.loss(net, EMPTY, torch.full((n, 1, 1), 3.0), torch.ones(n, 1, dtype=torch.bool), rng())
    assert loss.mean().item() == pytest.approx(expected, abs=0.01 if head.noise_scale else 1e-5)
    plan = head.sample(net, EMPTY, torch.zeros(1, 1, 0))
    torch.testing.assert_close(plan, torch.full((1, 1, 1), 2.4))  # the first look is 1, and the second 0.5 + 0.9 + 1


def test_mip_without_the_second_look_is_regression_with_the_same_network():
    head, net = MIP(two_steps=False, scale_first_target=True), two_looks([])
    assert torch.equal(head.loss(net, EMPTY, ACTION, MASK, rng()), ACTION.square().mean(-1))
    assert not head.sample(net, EMPTY, torch.zeros(1, 2, 0)).any()
