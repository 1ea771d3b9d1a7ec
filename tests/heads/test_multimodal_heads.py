"""Heads that choose among modes: EDM, clusters, bins and energies, each against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from understudy.core import Context, HeadSpec, UserError
from understudy.heads.denoising.edm import EDM
from understudy.heads.energy.energy import AutoregressiveEnergy, EnergyModel
from understudy.heads.likelihood.bins import Bins
from understudy.heads.solvers import DDIM, DPMSolverPP, Euler, Heun
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.methods.behavior_cloning.ibc import ibc
from understudy.nets.mlp import MLP

EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def contexts(rows):
    return Context(torch.zeros(rows, 1, 1), torch.ones(rows, 1, dtype=torch.bool))


def pairs(action, mask=None):
    mask = torch.ones(action.shape[:2], dtype=torch.bool) if mask is None else mask
    return lambda: iter([(contexts(len(action)), action, mask)])


def train(head, action, steps=300, lr=3e-3, seed=0):
    """The head's module, fitted and trained on the same chunks (N, H, A) without observations."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = head.build(MLP(32, 1), action.shape[2], HeadSpec(action.shape[1], 1, 1))
    head.fit(net, pairs(action))
    optimizer, draws = torch.optim.Adam(net.parameters(), lr), rng(seed)
    mask = torch.ones(action.shape[:2], dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(net, contexts(len(action)), action, mask, draws).mean().backward()
        optimizer.step()
    return net


# -- EDM ------------------------------------------------------------------------------------------------------------


def nothing(x, t, context):
    """With this network the estimate is c_skip * x, which is exact for actions of variance sigma_data**2."""
    return torch.zeros_like(x)


@pytest.mark.parametrize("solver, order", [(Euler(), 1), (Heun(), 2), (DPMSolverPP(), 2)])
def test_edm_follows_the_flow_of_a_gaussian(solver, order):
    noise = torch.randn(4, 3, 2, generator=rng(), dtype=torch.float64)

    def error(n_steps):
        head = EDM(n_steps, solver, sigma_data=0.7, sigma_min=0.1, sigma_max=8.0)
        # x scales with sqrt(sigma**2 + 0.7**2) along the flow; the last step goes from sigma_min to the mean
        spread = math.sqrt(0.1**2 + 0.49) / math.sqrt(64 + 0.49)
        exact = 8 * noise * spread * 0.49 / (0.49 + 0.1**2)
        return float((head.sample(nothing, EMPTY, noise) - exact).abs().max())
    assert error(80) < 0.03 and math.log2(error(40) / error(80)) == pytest.approx(order, abs=0.3)


def test_ddim_along_the_noise_levels_is_euler():
    noise = torch.randn(4, 3, 2, generator=rng(), dtype=torch.float64)

    def plan(solver, cost=None):
        return EDM(6, solver, sigma_data=0.7).sample(nothing, EMPTY, noise, cost)

    def cost(action):
        return 0.3 * (action - 1).square().sum((1, 2))
    torch.testing.assert_close(plan(DDIM(), cost), plan(Euler(), cost))
    assert (plan(DDIM(), cost) - plan(DDIM())).abs().max() > 0.05


def test_edm_targets_have_variance_one_at_every_level():
    action = 0.5 * torch.randn(4000, 1, 2, generator=rng())
    mask = torch.ones(4000, 1, dtype=torch.bool)
    for level in (-4.0, -1.0, 2.0):
        head = EDM(log_sigma_mean=level, log_sigma_std=0.01)
        assert head.loss(nothing, EMPTY, action, mask, rng(1)).mean() == pytest.approx(1, abs=0.05)


def test_edm_network_reads_inputs_of_variance_one_and_the_time_of_its_level():
    inputs = []

    def net(x, t, context):
        inputs.append((x, t))
        return torch.zeros_like(x)
    head = EDM(log_sigma_mean=0.3, log_sigma_std=0.0)
    action = 0.5 * torch.randn(4000, 1, 2, generator=rng())
    head.loss(net, EMPTY, action, torch.ones(4000, 1, dtype=torch.bool), rng(1))
    x, t = inputs[0]
    assert x.var() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(head.path.alpha_sigma(t)[1], torch.full_like(t, math.exp(0.3)), rtol=1e-4, atol=0)


def test_edm_refuses_levels_that_do_not_fall():
    with pytest.raises(UserError, match="sigma_min < sigma_max"):
        EDM(sigma_min=1.0, sigma_max=0.5)


def test_a_single_step_of_edm_starts_at_the_highest_noise():
    noise = torch.randn(4, 3, 2, generator=rng(), dtype=torch.float64)
    plan = EDM(1, sigma_data=0.7, sigma_min=0.1, sigma_max=8.0).sample(nothing, EMPTY, noise)
    assert torch.allclose(plan, 0.49 / (64 + 0.49) * 8 * noise)  # the mean of the actions, given 8 * noise



# -- clusters ---------------------------------------------------------------------------------------------------------


def corners(rows, seed=0):
    """Chunks (rows, 2, 2) whose steps lie near three points."""
    points = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]])
    chosen = torch.randint(3, (rows, 2), generator=rng(seed))
    return points[chosen] + 0.02 * torch.randn(rows, 2, 2, generator=rng(seed + 1)), chosen


def test_bet_finds_the_clusters_and_its_loss_is_the_focal_one():
    action, _ = corners(200)
    head = BeT(3, gamma=2.0, offset_weight=5.0)
    net = head.build(MLP(8, 1), 2, HeadSpec(2, 1, 1))
    head.fit(net, pairs(action))
    centers = net.centers[:, 0][net.centers[:, 0, 0].argsort()]
    torch.testing.assert_close(centers, torch.tensor([[-1.0, 1], [0, -1], [1, 1]]), atol=0.02, rtol=0)
    order = net.centers[:, 0, 0].argsort()
    logits, offsets = torch.tensor([0.2, -0.4, 1.0]), torch.tensor([[0.1, 0.0], [0.0, 0.3], [-0.2, 0.0]])
    out = torch.empty(3, 3)
    out[order] = torch.cat([logits[:, None], offsets], 1)
    net.trunk = Constant(out.flatten())
    one = torch.tensor([[[0.05, -1.0], [0.95, 1.05]]])
    p = logits.softmax(0)
    expected = [-(1 - p[k]) ** 2 * p[k].log() + 5 * ((one[0, i] - net.centers[order[k], 0] - offsets[k]) ** 2).mean()
                for i, k in enumerate((1, 2))]
    loss = head.loss(net, EMPTY, one, torch.ones(1, 2, dtype=torch.bool), rng())
    torch.testing.assert_close(loss, torch.stack(expected)[None])


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, context):
        return self.value.expand(*x.shape[:2], -1)


@pytest.mark.parametrize("joint", [False, True])
def test_bet_chooses_clusters_as_often_as_the_softmax_says(joint):
    head = BeT(3, joint=joint)
    net = head.build(MLP(8, 1), 1, HeadSpec(2, 1, 1))
    net.centers.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand_as(net.centers))
    logits = torch.tensor([0.0, 1.0, 2.0])
    net.trunk = Constant(torch.stack([logits, torch.full((3,), 0.25)], 1).flatten())
    plans = head.sample(net, EMPTY, torch.randn(20_000, 2, 3, generator=rng()))[..., 0]
    rates = torch.stack([(plans == c + 0.25).float().mean() for c in (-1.0, 0.0, 1.0)])
    torch.testing.assert_close(rates, logits.softmax(0), atol=0.015, rtol=0)
    together = (plans[:, 0] == plans[:, 1]).float().mean()
    assert together == 1 if joint else together == pytest.approx(float(logits.softmax(0).square().sum()), abs=0.02)


def test_bet_with_fewer_points_than_clusters_still_fits():
    action = torch.tensor([[[1.0]], [[2.0]], [[1.0]]])
    head = BeT(5)
    net = head.build(MLP(8, 1), 1, HeadSpec(1, 1, 1))
    head.fit(net, pairs(action))
    assert set(net.centers.flatten().tolist()) == {1.0, 2.0}


def test_a_joint_bet_goes_one_of_two_ways_and_regression_would_go_neither():
    way = torch.tensor([1.0, -1.0]).repeat(32)[:, None, None].expand(64, 3, 1)
    head = BeT(2, joint=True)
    net = train(head, way)
    plans = head.sample(net, contexts(200), torch.randn(200, 3, 2, generator=rng()))[..., 0]
    assert (plans.abs() - 1).abs().max() < 0.1 and (plans.sign() == plans[:, :1].sign()).all()
    assert 0.3 < (plans[:, 0] > 0).float().mean() < 0.7


# -- bins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autoregressive", [False, True])
def test_the_density_of_bins_integrates_to_one(autoregressive):
    action = torch.rand(500, 1, 2, generator=rng()) ** 2
    head = Bins(5, "quantile", autoregressive)
    net = train(head, action, steps=20)
    grid = torch.linspace(-0.01, 1.01, 400)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 1, 2)
    inside = ((points > net.edges[:, 0]) & (points < net.edges[:, -1])).all(2)[:, 0]
    with torch.no_grad():
        density = head.log_prob(net, contexts(len(points)), points).exp()
    assert float((density * inside).sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1, abs=0.02)


def test_edges_are_numpys_quantiles_or_evenly_spaced():
    action = torch.randn(300, 2, 2, generator=rng(), dtype=torch.float64).float()
    flat = action.reshape(-1, 2).double().numpy()
    for kind, edges in (("quantile", np.quantile(flat, np.linspace(0, 1, 5), axis=0)),
                        ("uniform", np.linspace(flat.min(0), flat.max(0), 5))):
        head = Bins(4, kind)
        net = head.build(MLP(8, 1), 2, HeadSpec(2, 1, 1))
        head.fit(net, pairs(action))
        np.testing.assert_allclose(net.edges.numpy(), edges.T, rtol=1e-5, atol=1e-6)
    same = torch.ones(10, 2, 2)
    head.fit(net, pairs(same))
    assert head.loss(net, contexts(10), same, torch.ones(10, 2, dtype=torch.bool), rng()).isfinite().all()


def test_padded_steps_do_not_move_the_edges():
    action, mask = torch.rand(50, 2, 1, generator=rng()), torch.ones(50, 2, dtype=torch.bool)
    mask[:, 1] = False
    head = Bins(4)
    net = head.build(MLP(8, 1), 1, HeadSpec(2, 1, 1))
    head.fit(net, pairs(torch.where(mask.unsqueeze(2), action, torch.tensor(99.0)), mask))
    assert net.edges.max() <= 1


@pytest.mark.slow
def test_autoregressive_bins_draw_components_that_belong_together():
    sign = torch.tensor([1.0, -1.0]).repeat(64)[:, None, None]
    action = torch.cat([sign, -sign], 2)
    for autoregressive, together in ((True, 1.0), (False, 0.5)):
        head = Bins(4, autoregressive=autoregressive)
        net = train(head, action)
        plans = head.sample(net, contexts(400), torch.randn(400, 1, 2, generator=rng(3)))[:, 0]
        assert (plans[:, 0] * plans[:, 1] < 0).float().mean() == pytest.approx(together, abs=0.08)
        assert 0.4 < (plans[:, 0] > 0).float().mean() < 0.6


# -- energies ---------------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """Energy of each step: its squared distance from 0.3, times the stiffness."""

    def __init__(self, stiffness):
        super().__init__()
        self.stiffness = stiffness

    def forward(self, x, t, context):
        return self.stiffness * (x - 0.3).square().sum(-1, keepdim=True)


@pytest.mark.parametrize("sampler, error", [("derivative_free", 0.1), ("langevin", 0.1)])
def test_the_search_finds_the_bottom(sampler, error):
    head = EnergyModel(sampler=sampler, n_candidates=512, n_iterations=6, langevin_noise=0.1, max_step=0.5)
    net = head.build(MLP(8, 1), 2, HeadSpec(1, 1, 1))
    net.trunk = Bowl(20.0)
    noise = torch.randn(3, *head.noise(1, 2), generator=rng())
    plan = head.sample(net, contexts(3), noise)
    assert (plan - 0.3).abs().max() < error
    net.high.fill_(0.1)  # and stays within the range of the data
    assert head.sample(net, contexts(3), noise).max() <= 0.1


def test_langevin_dynamics_take_the_steps_of_the_paper():
    """Half the gradient plus noise, times a step that decreases with the square of the rounds that are left."""
    head = EnergyModel(sampler="langevin", n_candidates=1, n_iterations=2, langevin_noise=0.5, max_step=0.2)
    net = head.build(MLP(8, 1), 1, HeadSpec(1, 1, 1))
    net.trunk = Bowl(2.0)
    net.low.fill_(-2.0)  # half the range is 2, and 2 (x - 0.3)^2 has the slope 4 (x - 0.3), in units of it 8 (x - 0.3)
    net.high.fill_(2.0)
    noise = torch.tensor([0.0, 0.6, -9.0]).view(1, 1, 3)  # starts in the middle
    x = 0.0 - 2 * 0.1 * (4 * (0.0 - 0.3) + 0.5 * 0.6)
    x = x + 2 * 0.025 * 0.5 * 9.0 - 2 * 0.025 * 4 * (x - 0.3)
    assert head.sample(net, contexts(1), noise).item() == pytest.approx(x, abs=1e-6)
    noise[..., 2] = -900.0  # the largest change is a fifth of half the range
    first = 0.0 - 2 * 0.1 * (4 * (0.0 - 0.3) + 0.5 * 0.6)
    assert head.sample(net, contexts(1), noise).item() == pytest.approx(first + 0.4, abs=1e-6)


class Slope(nn.Module):
    """Energy with the same gradient everywhere."""

    def forward(self, x, t, context):
        return (torch.tensor([0.5, -3.0]) * x).sum(-1, keepdim=True)


@pytest.mark.parametrize("margin", [1.0, 7.0])
def test_the_penalty_is_the_squared_excess_of_the_largest_component(margin):
    plain, penalized = EnergyModel(5), EnergyModel(5, gradient_margin=margin)
    net = plain.build(MLP(8, 1), 2, HeadSpec(1, 1, 1))
    net.trunk = Slope()
    net.low.fill_(-2.0)
    net.high.fill_(2.0)
    action, mask = torch.zeros(4, 1, 2), torch.ones(4, 1, dtype=torch.bool)
    with torch.no_grad():  # a validation loss has the penalty too
        more = penalized.loss(net, contexts(4), action, mask, rng()) - plain.loss(net, contexts(4), action, mask, rng())
    torch.testing.assert_close(more, torch.full((4, 1), max(0.0, 3.0 * 2 - margin) ** 2))


@pytest.mark.slow
def test_langevin_negatives_are_near_the_bottom_and_teach_an_energy_of_many_dimensions():
    head = EnergyModel(16, "langevin", n_candidates=32, n_iterations=10, negatives="langevin", gradient_margin=1.0,
                       step_size=0.5, langevin_noise=0.1, max_step=0.5)
    net = head.build(MLP(8, 1), 6, HeadSpec(1, 1, 1))
    net.trunk = Bowl(5.0)
    real_steps = torch.ones(1, 1, 1, 1)
    negatives = head._negatives(net, contexts(3), torch.zeros(3, 1, 6), real_steps, rng())
    uniform = EnergyModel(16)._negatives(net, contexts(3), torch.zeros(3, 1, 6), real_steps, rng())
    assert (negatives - 0.3).abs().mean() < 0.3 * (uniform - 0.3).abs().mean()
    point = torch.linspace(-0.7, 0.7, 6).expand(64, 1, 6)
    net = train(head, point, steps=300)
    plans = head.sample(net, contexts(20), torch.randn(20, *head.noise(1, 6), generator=rng()))
    assert (plans - point[:20]).abs().mean() < 0.1


def test_infonce_of_equal_and_of_known_energies():
    head = EnergyModel(n_negatives=7)
    net = head.build(MLP(8, 1), 1, HeadSpec(2, 1, 1))
    net.trunk = Constant(torch.tensor([0.4]))
    action, mask = torch.zeros(5, 2, 1), torch.tensor([[True, True]] * 4 + [[True, False]])
    loss = head.loss(net, contexts(5), action, mask, rng())
    torch.testing.assert_close(loss[:4], torch.full((4, 2), math.log(8) / 2))
    assert loss[4, 0] == pytest.approx(math.log(8))
    net.trunk = Bowl(1e4)  # the demonstrated chunk is at the bottom, and certain
    assert head.loss(net, contexts(5), action + 0.3, mask, rng()).max() < 1e-3


@pytest.mark.slow
def test_energies_learn_two_ways():
    way = torch.tensor([0.8, -0.8]).repeat(32)[:, None, None].expand(64, 2, 1)
    head = EnergyModel(32, n_candidates=128)
    net = train(head, way, steps=400)
    plans = head.sample(net, contexts(100), torch.randn(100, *head.noise(2, 1), generator=rng()))[..., 0]
    at_a_mode = (plans.abs() - 0.8).abs().amax(1) < 0.15
    assert at_a_mode.float().mean() > 0.9 and (plans[at_a_mode, 0].sign() == plans[at_a_mode, 1].sign()).all()


class ChainEnergy(nn.Module):
    """20 (y - 0.3)^2 for the first component, and 20 (y - half of the one before)^2 for the others."""

    def forward(self, x):
        before = x[..., -2:-1] / 2 if x.shape[-1] > 4 else 0.3  # 3 features, the components before, and y
        return 20 * (x[..., -1:] - before).square()


def chain(head, horizon, width):
    net = head.build(MLP(8, 1), width, HeadSpec(horizon, 1, 1))
    net.layers = nn.ModuleList([ChainEnergy()] * (horizon * width))
    return net


def test_the_autoregressive_search_takes_the_lowest_energy_given_the_components_before():
    head = AutoregressiveEnergy(n_candidates=512, n_iterations=6, width=3)
    net = chain(head, 2, 2)
    plan = head.sample(net, contexts(3), torch.randn(3, *head.noise(2, 2), generator=rng()))
    torch.testing.assert_close(plan, torch.tensor([[0.3, 0.15], [0.075, 0.0375]]).expand(3, 2, 2), atol=5e-3, rtol=0)
    net.high[0] = 0.1  # each component stays within its own range, and later ones follow the chosen value
    plan = head.sample(net, contexts(3), torch.randn(3, *head.noise(2, 2), generator=rng()))
    torch.testing.assert_close(plan[:, 0], torch.tensor([0.1, 0.05]).expand(3, 2), atol=5e-3, rtol=0)


def test_the_autoregressive_loss_is_that_of_each_component_after_the_demonstrated_ones():
    head = AutoregressiveEnergy(n_negatives=4000, width=3)
    net = chain(head, 1, 2)
    action, mask = torch.tensor([[[0.5, 0.1]]]).repeat(50, 1, 1), torch.ones(50, 1, dtype=torch.bool)
    # with many negatives: minus the log-density of N(before, 1 / 40), over that of a negative, plus log n
    density = torch.distributions.Normal(torch.tensor([0.3, 0.25]), math.sqrt(1 / 40))
    expected = 2 * math.log(4000 / 2) - density.log_prob(action[0, 0]).sum()
    loss = head.loss(net, contexts(50), action, mask, rng()).detach()
    assert loss.mean() == pytest.approx(expected.item(), abs=0.02)
    net.layers = nn.ModuleList([Same(), Same()])
    torch.testing.assert_close(head.loss(net, contexts(50), action, mask, rng()),
                               torch.full((50, 1), 2 * math.log(4001)))


class Same(nn.Module):
    """The same energy for every value."""

    def forward(self, x):
        return 0 * x[..., :1]


@pytest.mark.slow
def test_autoregressive_energies_learn_two_ways_in_many_dimensions():
    """In 8 dimensions, where the search of `EnergyModel` over all components finds neither way."""
    point = torch.tensor([0.8, -0.4, 0.6, -0.7]).repeat(2).view(1, 4, 2)
    way = point * torch.tensor([1.0, -1.0]).repeat(32)[:, None, None]

    def fraction_near(head, steps, lr):
        net = train(head, way, steps, lr)
        plans = head.sample(net, contexts(100), torch.randn(100, *head.noise(4, 2), generator=rng()))
        gaps = torch.stack([(plans - side * point).abs().amax((1, 2)) for side in (1, -1)])
        return (gaps.amin(0) < 0.2).float().mean()
    head = ibc(4, n_negatives=32, autoregressive=True).policy.head
    assert fraction_near(replace(head, width=32), 250, 1e-2) > 0.9
    assert fraction_near(EnergyModel(32, n_candidates=128), 400, 3e-3) < 0.5


@pytest.mark.parametrize("size", (1e-6, 1.0))
@pytest.mark.parametrize("edges", ("uniform", "quantile"))
def test_bins_and_ranges_have_the_size_of_uncoded_actions(size, edges):
    """Of a codec that does not scale actions, in any unit."""
    action = size * torch.linspace(-1, 1, 101).reshape(-1, 1, 1)
    net = Bins(4, edges).build(MLP(8, 1), 1, HeadSpec(1, 1, 1))
    Bins(4, edges).fit(net, pairs(action))
    torch.testing.assert_close(net.edges[0] / size, torch.linspace(-1, 1, 5))
    head = EnergyModel(margin=0.1)
    net = head.build(MLP(8, 1), 1, HeadSpec(1, 1, 1))
    head.fit(net, pairs(action))
    torch.testing.assert_close(torch.stack([net.low, net.high]).flatten() / size, torch.tensor([-1.2, 1.2]))
