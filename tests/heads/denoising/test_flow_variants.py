"""AdaFlow, the interpolant from the last action and the normalizing flow, against closed forms."""

import math

import pytest
import torch

from understudy.core import Context, Feature, HeadSpec, UserError
from understudy.data.window import Window
from understudy.heads.denoising.adaflow import AdaFlow
from understudy.heads.denoising.flow import Flow
from understudy.heads.denoising.interpolant import Interpolant
from understudy.heads.likelihood.normalizing_flow import NormalizingFlow
from understudy.heads.solvers import Heun
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.policy import PolicyConfig
from understudy.testing import check_head

EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))
MU, S = 0.3, 0.4  # actions are from N(MU, S^2)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def contexts(rows, named=None):
    return Context(torch.zeros(rows, 1, 1), torch.ones(rows, 1, dtype=torch.bool), named or {})


def batch(n):
    action = MU + S * torch.randn(n, 1, 1, generator=rng(5), dtype=torch.float64)
    return action, torch.ones(n, 1, dtype=torch.bool)


# -- AdaFlow --------------------------------------------------------------------------------------------------------


def moments(x, t):
    """Mean and standard deviation of ``action - noise`` given x_t = x."""
    variance, covariance = t**2 * S**2 + (1 - t) ** 2, t * S**2 - (1 - t)
    return MU + covariance / variance * (x - t * MU), (S**2 + 1 - covariance**2 / variance).sqrt()


def test_the_exact_moments_are_where_the_gradient_vanishes():
    action, mask = batch(40_000)

    def gradient(*values):
        a, b, c = weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]

        def net(x, t, context):
            mean, std = moments(x, t)
            return torch.cat([a * mean + b, std.log() + c], -1)
        loss = AdaFlow().loss(net, EMPTY, action, mask, rng(2))
        return torch.stack(torch.autograd.grad(loss.mean(), weights)).abs().max()
    assert gradient(1.0, 0.0, 0.0) < 0.03
    assert min(gradient(1.2, 0.0, 0.0), gradient(1.0, 0.2, 0.0), gradient(1.0, 0.0, 0.2)) > 0.1


def test_the_velocity_has_the_gradient_of_flow_matching():
    action, mask = batch(64)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    ours = AdaFlow().loss(lambda x, t, c: torch.cat([scale * x, x.detach() - 2], -1), EMPTY, action, mask, rng(3))
    noise = torch.randn(action.shape, generator=(draws := rng(3)))
    t = torch.rand(64, 1, 1, generator=draws)
    plain = (scale * (t * action + (1 - t) * noise) - (action - noise)).square().mean(-1)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), scale)[0] for x in (ours, plain)))


def net_with(log_std):
    """Velocity -x + 1, and a standard deviation that each row of the batch has for itself."""
    return lambda x, t, context: torch.cat([1 - x, log_std.expand(*x.shape[:2], 1)], -1)


def test_certain_rows_take_one_step_and_uncertain_rows_all():
    noise = torch.randn(3, 2, 1, generator=rng(), dtype=torch.float64)
    std = torch.tensor([0.01, 10.0, 0.25])[:, None, None]
    head = AdaFlow(n_steps=5, max_error=0.1)
    plans = head.sample(net_with(std.log()), EMPTY, noise)
    assert head.count_steps(net_with(std.log()), EMPTY, noise).tolist() == [1, 5, 3]  # steps of 0.4, 0.4 and 0.2
    one, five = (Flow(n_steps=n).sample(lambda x, t, c: 1 - x, EMPTY, noise) for n in (1, 5))
    torch.testing.assert_close(plans[0], one[0])
    torch.testing.assert_close(plans[1], five[1])
    torch.testing.assert_close(plans[2], 1 + (noise[2] - 1) * 0.6 * 0.6 * 0.8)


def test_the_step_follows_the_whole_chunk():
    noise = torch.randn(1, 2, 1, generator=rng())
    log_std = torch.tensor([0.1, 0.7]).log().reshape(1, 2, 1)  # root mean square 0.5
    assert AdaFlow(max_error=0.2, n_steps=9).count_steps(net_with(log_std), EMPTY, noise).tolist() == [3]
    assert AdaFlow(max_error=0.26, n_steps=9).count_steps(net_with(log_std), EMPTY, noise).tolist() == [2]


# -- interpolant ------------------------------------------------------------------------------------------------------


LAST = -0.6
HEAD = Interpolant("last", source_std=0.2, scale=0.5)
NAMED = {"last": torch.full((1, 1), LAST)}


def mean_variance(t):
    """Of x_t = t action + (1 - t) (LAST + 0.2 noise) + 0.5 t (1 - t) latent."""
    return t * MU + (1 - t) * LAST, t**2 * S**2 + (1 - t) ** 2 * 0.04 + 0.25 * t**2 * (1 - t) ** 2


def velocity(x, t, context=None):
    """E[dx_t / dt | x_t = x], which for a Gaussian is m' + V' / (2 V) (x - m)."""
    mean, variance = mean_variance(t)
    rate = 2 * t * S**2 - 2 * (1 - t) * 0.04 + 0.5 * t * (1 - t) * (1 - 2 * t)
    return MU - LAST + rate / (2 * variance) * (x - mean)


def test_the_interpolant_moves_the_last_action_to_the_distribution_of_actions():
    noise = torch.randn(8, 3, 1, generator=rng(), dtype=torch.float64)
    context = contexts(8, {"last": torch.full((8, 1), LAST, dtype=torch.float64)})
    errors = [float((Interpolant("last", 0.2, 0.5, n, Heun()).sample(velocity, context, noise)
                     - (MU + S * noise)).abs().max()) for n in (20, 40)]
    assert errors[1] < 3e-3 and errors[1] < 0.3 * errors[0]


def test_the_exact_velocity_of_the_interpolant_is_where_the_gradient_vanishes():
    action, mask = batch(40_000)
    context = contexts(40_000, {"last": torch.full((40_000, 1), LAST, dtype=torch.float64)})

    def gradient(*values):
        a, b, c = weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
        loss = HEAD.loss(lambda x, t, context: a * velocity(x, t) + b + 2 * c * x, context, action, mask, rng(2))
        return torch.stack(torch.autograd.grad(loss.mean(), weights)).abs().max()
    assert gradient(1.0, 0.0, 0.0) < 0.03
    assert min(gradient(1.2, 0.0, 0.0), gradient(1.0, 0.2, 0.0), gradient(1.0, 0.0, 0.2)) > 0.1


def test_a_plan_without_movement_is_the_last_action_and_noise():
    last, noise = torch.tensor([[0.5, -1.0]]), torch.randn(1, 4, 2, generator=rng())
    plan = HEAD.sample(lambda x, t, c: torch.zeros_like(x), contexts(1, {"last": last}), noise)
    torch.testing.assert_close(plan, last.unsqueeze(1) + 0.2 * noise)


@pytest.mark.parametrize("trunk", [MLP(32, 1), pytest.param(Transformer(16, 1, 2), marks=pytest.mark.slow)])
def test_contract_of_the_interpolant(trunk):
    encoder = TokenEncoder(named=("observation.state",))
    check_head(PolicyConfig(Interpolant("observation.state"), trunk, encoder, window=Window(2, 8)),
               Feature("float32", (3,)))


def test_the_interpolant_needs_the_last_action():
    noise = torch.zeros(1, 4, 2)
    with pytest.raises(UserError, match=r"no column 'last' to the head\n.*TokenEncoder\(named=\('last',\)\)"):
        HEAD.sample(velocity, contexts(1), noise)
    with pytest.raises(UserError, match="has 1 numbers, and a coded action has 2"):
        HEAD.sample(velocity, contexts(1, NAMED), noise)
    with pytest.raises(UserError, match="source_std is 0.0, but must be above 0"):
        Interpolant(source_std=0.0)


# -- normalizing flow -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["MLP", "Transformer"])
def flow(request):
    """A flow with random weights, in float64."""
    head = NormalizingFlow(4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = head.build({"MLP": MLP(16, 1), "Transformer": Transformer(16, 1, 2)}[request.param], 2, HeadSpec(3, 1, 1))
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return head, net.double().eval()


def test_the_flow_is_invertible(flow):
    """Noise that was moved to a chunk comes back: -loss is the density of the noise times the volume's change."""
    head, net = flow
    noise = torch.randn(5, 3, 2, generator=rng(), dtype=torch.float64)
    context = Context(torch.randn(5, 1, 1, dtype=torch.float64, generator=rng(1)), torch.ones(5, 1, dtype=torch.bool))
    action = head.sample(net, context, noise)
    assert (action - noise).abs().mean() > 0.1
    for i in range(5):
        row = Context(context.tokens[i:i + 1], context.mask[i:i + 1])
        matrix = torch.autograd.functional.jacobian(lambda z, row=row: head.sample(net, row, z), noise[i:i + 1])
        log_det = matrix.reshape(6, 6).slogdet().logabsdet
        density = -0.5 * noise[i].square().sum() - 3 * math.log(2 * math.pi)
        torch.testing.assert_close(head.log_prob(net, row, action[i:i + 1])[0], density - log_det)


def test_padded_steps_take_no_part(flow):
    head, net = flow
    mask, context = torch.tensor([[True, True, False]]), contexts(1)
    context = Context(context.tokens.double(), context.mask)
    action = torch.randn(1, 3, 2, generator=rng(2), dtype=torch.float64)

    def nll(action):
        return head.loss(net, context, action, mask, None)[:, :2].sum()
    spoiled = action.clone()
    spoiled[:, 2] = 9e3
    torch.testing.assert_close(nll(spoiled), nll(action))


@pytest.mark.parametrize("present", [1, 2])
def test_the_density_of_the_steps_that_are_there_integrates_to_one(present):
    head = NormalizingFlow(4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = head.build(MLP(16, 1), 1, HeadSpec(2, 1, 1)).double()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    side = torch.linspace(-25, 25, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side if present == 2 else torch.zeros(1, dtype=torch.float64)).unsqueeze(-1)
    mask = torch.tensor([True, present == 2]).expand(len(grid), 2)
    with torch.no_grad():
        density = (-head.loss(net, contexts(len(grid)), grid, mask, None)[:, :present].sum(1)).exp()
    assert float(density.sum() * (side[1] - side[0]) ** present) == pytest.approx(1, abs=1e-3)


def test_no_component_is_squeezed_below_the_minimum():
    """Networks that ask for the largest and the smallest scale."""
    for n_layers in (2, 5):
        for raw, size in ((-1e3, 0.02), (1e3, 50.0)):
            head = NormalizingFlow(n_layers, min_std=0.02)
            net = [lambda x, t, c, raw=raw: torch.cat([0 * x[..., :-1], 0 * x[..., :-1] + raw], -1)] * n_layers
            noise = torch.ones(1, 3, 2, dtype=torch.float64)
            scales = head.sample(net, contexts(1), noise)
            assert scales.min() >= 0.02 - 1e-9 and scales.max() <= 50 + 1e-6
            assert float((scales.log().abs().max() - abs(math.log(size))).abs()) < 1e-6
