"""The consistency head against the exact flow of a Gaussian, and against the formulas of its papers."""

import math

import pytest
import torch

from understudy.core import Context, HeadSpec, Unsupported, UserError
from understudy.heads.one_step.consistency import Consistency
from understudy.nets.mlp import MLP

EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))
S = 0.4  # actions are from N(0, S^2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def sigma_of(head, t):
    return head.path.alpha_sigma(t)[1]


def exact_net(head):
    """The network with which the estimate is the end of the flow, x * S / sqrt(S^2 + sigma^2)."""
    def net(x, t, context):
        sigma = sigma_of(head, t)
        variance = sigma**2 + head.sigma_data**2
        x = x * variance.sqrt()
        clean = x * S / (S**2 + sigma**2).sqrt()
        return (clean - head.sigma_data**2 / variance * x) / (sigma * head.sigma_data / variance.sqrt())
    return net


def batch(n=4096, width=1):
    action = S * torch.randn(n, 3, width, generator=rng(5), dtype=torch.float64)
    return action, torch.ones(n, 3, dtype=torch.bool)


def test_without_noise_the_estimate_is_the_action_for_every_network():
    head = Consistency()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = head.build(MLP(16, 1), 2, HeadSpec(3, 1, 1))
        torch.nn.init.normal_(net.output_layer[-1].weight)
    context = Context(torch.zeros(4, 1, 1), torch.ones(4, 1, dtype=torch.bool))
    x = torch.randn(4, 3, 2, generator=rng())
    assert torch.equal(head.predict_clean(net, context, x, torch.ones(4, 3)), x)
    assert not torch.allclose(head.predict_clean(net, context, x, torch.full((4, 3), 0.9)), x, atol=1e-3)


def test_the_head_adds_the_right_scales_to_the_network():
    head, x = Consistency(), torch.randn(5, 3, 1, generator=rng(), dtype=torch.float64)
    t = torch.rand(5, 3, generator=rng(1), dtype=torch.float64)
    sigma = sigma_of(head, t.unsqueeze(-1))
    torch.testing.assert_close(head.predict_clean(exact_net(head), EMPTY, x, t), x * S / (S**2 + sigma**2).sqrt())


def test_one_step_is_the_end_of_the_flow():
    head, noise = Consistency(), torch.randn(6, 3, 1, generator=rng(), dtype=torch.float64)
    exact = 80 * noise * S / math.sqrt(S**2 + 80**2)
    torch.testing.assert_close(head.sample(exact_net(head), EMPTY, noise), exact)
    torch.testing.assert_close(Consistency(initial_scale=0.5).sample(exact_net(head), EMPTY, noise), exact / 2)


def test_further_steps_noise_the_estimate_again():
    """Prasad et al. 2024: three steps at the bins 0, 27 and 53 of 80, which are equally spaced in time."""
    head = Consistency(n_steps=3)
    noise = torch.randn(6, 2, 3, generator=rng(), dtype=torch.float64)
    x = torch.zeros(6, 2, 1, dtype=torch.float64)
    for i in range(3):
        sigma = (80 ** (1 / 7) + i / 3 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        x = (x + sigma * noise[..., i:i + 1]) * S / math.sqrt(S**2 + sigma**2)
    torch.testing.assert_close(head.sample(exact_net(head), EMPTY, noise), x, rtol=1e-5, atol=1e-6)


def test_pairs_share_the_noise_and_are_neighbors():
    head, (action, mask) = Consistency(n_train_levels=20), batch(width=2)
    inputs, targets = [], []

    def net(x, t, context):
        inputs.append((x, t))
        return torch.zeros_like(x)

    def target_net(x, t, context):
        targets.append((x, t))
        return torch.ones_like(x)
    loss = head.loss(net, EMPTY, action, mask, rng(1), target_net)
    [(x, t)], [(x_next, t_next)] = inputs, targets
    level = (t * 20).round()
    torch.testing.assert_close(t, level / 20)
    torch.testing.assert_close(t_next, (level + 1) / 20)
    assert (t[:, :1] == t).all() and level.min() == 0 and level.max() == 19
    sigma, sigma_next = sigma_of(head, t), sigma_of(head, t_next)
    x, x_next = (v * (s**2 + 0.25).sqrt() for v, s in ((x, sigma), (x_next, sigma_next)))  # without c_in
    noise = (x - action) / sigma
    torch.testing.assert_close(x_next, action + sigma_next * noise, rtol=1e-6, atol=1e-9)
    prediction = 0.25 / (sigma**2 + 0.25) * x
    target = 0.25 / (sigma_next**2 + 0.25) * x_next + 0.5 * sigma_next / (sigma_next**2 + 0.25).sqrt()
    distance = ((prediction - target).square().mean(-1) + 0.01).sqrt() - 0.1
    torch.testing.assert_close(loss, distance / (sigma - sigma_next)[..., 0])


def test_all_levels_are_equally_likely():
    head, n = Consistency(n_train_levels=10), 40_000
    t, t_next = head.training_times(torch.zeros(n, 1, 1, dtype=torch.float64), rng(2))
    rates = torch.bincount((t[:, 0] * 10).round().long(), minlength=10) / n
    torch.testing.assert_close(rates, torch.full((10,), 0.1), atol=4 * math.sqrt(0.09 / n), rtol=0)
    torch.testing.assert_close(t_next - t, torch.full_like(t, 0.1))


def test_training_finds_two_ways():
    """Chunks that go left or right by a coin. With the absolute error as the distance, few plans keep to one way."""
    head, B = Consistency(), 128
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = head.build(MLP(64, 1), 1, HeadSpec(2, 1, 1))
    context = Context(torch.zeros(B, 1, 1), torch.ones(B, 1, dtype=torch.bool))
    optimizer, draws, mask = torch.optim.Adam(net.parameters(), 5e-3), rng(1), torch.ones(B, 2, dtype=torch.bool)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        side = torch.randint(2, (B, 1, 1), generator=draws) * 1.4 - 0.7
        loss = head.loss(net, context, side.expand(B, 2, 1), mask, draws).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        out = head.sample(net, context, torch.randn(B, *head.noise(2, 1), generator=draws)).squeeze(-1)
    assert ((out.abs() - 0.7).abs() < 0.3).all(1).float().mean() > 0.8
    assert (out[:, 0].sign() == out[:, 1].sign()).float().mean() > 0.95
    assert 0.3 < (out > 0).float().mean() < 0.7


def test_the_loss_is_zero_for_the_exact_jump_to_a_point():
    """All mass at one action: the end of every trajectory is that action."""
    head, action = Consistency(), torch.full((512, 3, 1), 0.3, dtype=torch.float64)

    def net(x, t, context):
        sigma = sigma_of(head, t)
        variance = sigma**2 + 0.25
        out = sigma * 0.5 / variance.sqrt()
        return torch.where(sigma > 0, (0.3 - 0.25 / variance.sqrt() * x) / out.clamp(min=1e-9), 0.0)
    loss = head.loss(net, EMPTY, action, torch.ones(512, 3, dtype=torch.bool), rng(3))
    assert loss.shape == (512, 3) and float(loss.max()) < 1e-9
    off = head.loss(lambda x, t, context: net(x, t, context) + 1.0, EMPTY, action, None, rng(3))
    assert float(off.mean()) > 1e-4


def test_the_target_has_no_gradient():
    head, (action, mask) = Consistency(), batch(64)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    own = head.loss(lambda x, t, context: scale * x, EMPTY, action, mask, rng(6))
    with_target = head.loss(lambda x, t, context: scale * x, EMPTY, action, mask, rng(6), lambda x, t, context: 1.5 * x)
    torch.testing.assert_close(own, with_target)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), scale)[0] for value in (own, with_target)))


def test_guidance_lowers_the_cost_of_the_estimate():
    """With one step and a linear cost, guidance adds -weight * sigma * d clean / dx."""
    head, noise = Consistency(guidance_weight=0.5), torch.randn(4, 3, 1, generator=rng(), dtype=torch.float64)
    free = head.sample(exact_net(head), EMPTY, noise)
    pulled = head.sample(exact_net(head), EMPTY, noise, lambda x: x.sum((1, 2)))
    torch.testing.assert_close(pulled, free - 0.5 * 80 * S / math.sqrt(S**2 + 80**2))


def test_what_a_consistency_model_cannot_do():
    with pytest.raises(UserError, match="must be at least 1"):
        Consistency(n_steps=0)
    x, t = torch.zeros(1, 1, 1), torch.zeros(1, 1)
    with pytest.raises(Unsupported, match="no single steps"):
        Consistency().denoise_step(exact_net(Consistency()), EMPTY, x, t, t)
