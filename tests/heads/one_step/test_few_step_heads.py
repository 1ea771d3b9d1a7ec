"""Shortcut and MeanFlow against the exact flow of a Gaussian."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import Context, UserError
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.one_step.mean_flow import MeanFlow
from understudy.heads.one_step.shortcut import Shortcut
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.nets.mlp import MLP

EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))
MU, S = 0.3, 0.4  # actions are from N(MU, S^2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def std(t):
    """Standard deviation of x_t = t * action + (1 - t) * noise, whose mean is t * MU."""
    return (t**2 * S**2 + (1 - t) ** 2).sqrt()


def velocity(x, t):
    """E[action - noise | x_t = x]."""
    return MU + (t * S**2 - (1 - t)) / std(t) ** 2 * (x - t * MU)


def average_velocity(x, t, t_next):
    """The exact flow keeps (x - t MU) / std(t)."""
    end = t_next * MU + std(t_next) / std(t) * (x - t * MU)
    same = t_next == t
    return torch.where(same, velocity(x, t), (end - x) / torch.where(same, 1.0, t_next - t))


def shortcut_net(x, times, context):
    t, d = times.split(1, -1)
    return average_velocity(x, t, t + d)


def mean_flow_net(x, times, context):
    return average_velocity(x, *times.split(1, -1))


HEADS = [(Shortcut, shortcut_net), (MeanFlow, mean_flow_net)]


@pytest.mark.parametrize("n_steps", (1, 2, 8))
@pytest.mark.parametrize("head, net", HEADS)
def test_every_number_of_steps_is_exact(head, net, n_steps):
    noise = torch.linspace(-3, 3, 9).double().reshape(9, 1, 1)
    torch.testing.assert_close(head(n_steps).sample(net, EMPTY, noise), MU + S * noise)


@pytest.mark.parametrize("head, net", HEADS)
def test_the_estimate_of_the_clean_action_is_its_conditional_mean(head, net):
    x, t = torch.randn(4, 3, 1, generator=rng()).double(), torch.rand(4, 3, generator=rng()).double()
    alpha, sigma = t.unsqueeze(-1), 1 - t.unsqueeze(-1)
    mean = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
    torch.testing.assert_close(head().predict_clean(net, EMPTY, x, t), mean)


def batch(n=4096, action=None):
    action = MU + S * torch.randn(n, 1, 1, generator=rng(5)) if action is None else action
    return action.double(), torch.ones(n, 1, dtype=torch.bool)


@pytest.mark.parametrize("head", [Shortcut(self_consistency_fraction=0.5), MeanFlow(velocity_fraction=0.3)])
def test_the_loss_is_zero_for_the_exact_flow_to_a_point(head):
    """All mass at MU: straight lines, so that every average velocity is the velocity."""
    action, mask = batch(action=torch.full((4096, 1, 1), MU, dtype=torch.float64))
    loss = head.loss(lambda x, times, context: (MU - x) / (1 - times[..., :1]), EMPTY, action, mask, rng(1))
    assert loss.shape == (4096, 1) and float(loss.max()) < 1e-18


@pytest.mark.parametrize("head, net", [
    (Shortcut(), shortcut_net), (MeanFlow(velocity_fraction=0.0, adaptive_power=0.0), mean_flow_net)])
def test_the_exact_flow_is_where_the_gradient_vanishes(head, net):
    """The network a * u(x, t, .) + b + c * x has no gradient at a = 1, b = c = 0, and has one elsewhere."""
    action, mask = batch(20_000)

    def gradient(*values):
        a, b, c = weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
        loss = head.loss(lambda x, t, context: a * net(x, t, context) + b + c * x, EMPTY, action, mask, rng(2))
        return torch.stack(torch.autograd.grad(loss.mean(), weights)).abs().max()
    assert gradient(1.0, 0.0, 0.0) < 0.05
    assert min(gradient(1.2, 0.0, 0.0), gradient(1.0, 0.2, 0.0), gradient(1.0, 0.0, 0.2)) > 0.1


def test_the_exact_flow_is_consistent_with_itself():
    """Up to the smallest step, for which the velocity stands."""
    action, mask = batch()
    errors = [float(Shortcut(n_train_steps=n, self_consistency_fraction=1.0).loss(
        shortcut_net, EMPTY, action, mask, rng(8)).mean().sqrt()) for n in (64, 1024)]
    assert errors[1] < 0.1 * errors[0] < 0.01


def test_mean_flow_differentiates_along_the_path():
    """u = v + (r - t) du/dt, with a network whose total derivative is known: u = x t + r^2 has du/dt = v t + x."""
    head, (action, mask) = MeanFlow(velocity_fraction=0.0, adaptive_power=0.0), batch()
    inputs = []

    def net(x, times, context):
        t, r = times.split(1, -1)
        inputs.append([torch.autograd.forward_ad.unpack_dual(v).primal for v in (x, t, r)])
        return x * t + r**2
    loss = head.loss(net, EMPTY, action, mask, rng(3))
    x, t, r = inputs[0]
    v = (action - x) / (1 - t)
    torch.testing.assert_close(loss, (x * t + r**2 - v - (r - t) * (v * t + x)).square().mean(-1))
    assert (r >= t).all() and (r > t).any()
    logit = torch.cat([t, r]).logit()
    assert float(logit.mean()) == pytest.approx(head.time_mean, abs=0.05)
    assert float(logit.std()) == pytest.approx(head.time_std, abs=0.05)


@pytest.mark.parametrize("power, constant", [(1.0, 1e-3), (0.5, 0.1)])
def test_mean_flow_weights_chunks_by_their_error(power, constant):
    """Geng et al. 2025: 1 / (|e|^2 + c)^p, without gradient. A network u = offset has du/dt = 0, so that e = u - v."""
    head = MeanFlow(adaptive_power=power, adaptive_constant=constant)
    action, mask = torch.randn(5, 4, 2, generator=rng(9)).double(), torch.ones(5, 4, dtype=torch.bool)
    mask[1, 2:] = False
    offset, inputs = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), []

    def net(x, times, context):
        inputs.append([torch.autograd.forward_ad.unpack_dual(v).primal for v in (x, times)])
        return offset + 0 * x
    loss = head.loss(net, EMPTY, action, mask, rng(3))
    (x, times), = inputs
    error = 0.5 - (action - x) / (1 - times[..., :1])
    weight = 1 / ((error.square() * mask.unsqueeze(-1)).sum((1, 2)) + constant) ** power
    torch.testing.assert_close(loss, error.square().mean(-1) * weight.unsqueeze(1))
    gradient, = torch.autograd.grad(loss.sum(), offset)
    torch.testing.assert_close(gradient, (2 * error.mean(-1) * weight.unsqueeze(1)).sum())
    if power == 1 and constant < 0.01:  # the numbers of a chunk add up to 1
        torch.testing.assert_close(2 * (loss * mask).sum(1), torch.ones(5, dtype=torch.float64), rtol=5e-3, atol=0)


def test_shortcut_trains_double_steps_on_two_single_steps():
    """Frans et al. 2024, equation 5, and the sizes that are trained: 2d of 1, 1/2, ..., 2 / n_train_steps."""
    head, (action, mask) = Shortcut(n_train_steps=8, self_consistency_fraction=1.0), batch()
    asked, targets = [], []

    def net(x, times, context):
        asked.append((x, *times.split(1, -1)))
        return torch.zeros_like(x)

    def target_net(x, times, context):
        targets.append((x, *times.split(1, -1)))
        return x + 2 * times[..., :1] + times[..., 1:]
    loss = head.loss(net, EMPTY, action, mask, rng(4), target_net)
    [(x, t, double)], [(x1, t1, d1), (x2, t2, d2)] = asked, targets
    assert sorted(double.unique().tolist()) == [0.25, 0.5, 1.0]
    assert torch.equal((t / double).round() * double, t) and (t + double <= 1).all()
    d = torch.where(double == 0.25, 0.0, double / 2)  # the smallest size is asked for as 0
    assert torch.equal(x1, x) and torch.equal(t1, t) and torch.equal(d1, d) and torch.equal(d2, d)
    first = x + 2 * t + d
    torch.testing.assert_close(x2, x + double / 2 * first)
    torch.testing.assert_close(t2, t + double / 2)
    torch.testing.assert_close(loss, ((first + x2 + 2 * t2 + d) / 2).square().mean(-1))


def test_shortcut_without_a_target_network_uses_its_own_without_gradient():
    head, (action, mask) = Shortcut(self_consistency_fraction=1.0), batch(8)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def net(x, times, context):
        return scale * (x + times[..., :1])
    own = head.loss(net, EMPTY, action, mask, rng(6))
    with_target = head.loss(net, EMPTY, action, mask, rng(6), lambda x, times, context: 1.5 * (x + times[..., :1]))
    torch.testing.assert_close(own, with_target)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), scale)[0] for value in (own, with_target)))


def test_most_windows_of_shortcut_train_the_velocity():
    head, (action, mask) = Shortcut(self_consistency_fraction=0.25), batch(20_000)
    sizes = []

    def net(x, times, context):
        sizes.append(times[..., 1])
        return torch.zeros_like(x)
    head.loss(net, EMPTY, action, mask, rng(7))
    assert float((sizes[-1] > 0).double().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 20_000))


def test_shortcut_needs_powers_of_two():
    for fields in ({"n_steps": 3}, {"n_train_steps": 100}, {"n_steps": 256}):
        with pytest.raises(UserError, match="powers of two"):
            Shortcut(**fields)


def one_step_rollouts(name):
    """50 episodes of a small network that makes a chunk in one step, after 3,000 updates on 60 demonstrations."""
    env, named = Fork(20), find_method(name, horizon=8, n_action_steps=4)
    policy = replace(named.policy, head=replace(named.policy.head, n_steps=1), trunk=MLP(128, 3))
    small = replace(named, policy=policy, learner=replace(named.learner, steps=3000, batch_size=64))
    data = rollout(env.expert(), env, 60, recording_seed(0))
    return evaluate(fit_method(small, data, 0).actor, env, 50)


@pytest.fixture(scope="module")
def flow_rollouts():
    return one_step_rollouts("flow-policy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shortcut-policy", "mean-flow-policy"])
def test_one_step_goes_both_ways_round_the_pillar(name, flow_rollouts):
    """One step of a flow gives the mean of both ways, which hits the pillar. Rule: the intervals do not overlap."""
    evaluation = one_step_rollouts(name)
    goes_left = [bool(e.steps["observation.state"][:, 1].mean() > 0) for e in evaluation.episodes]
    assert evaluation.success.low > flow_rollouts.success.high and 0.2 < np.mean(goes_left) < 0.8
