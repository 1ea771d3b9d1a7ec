"""Probability paths and solvers, each once and in closed form."""

import math

import numpy as np
import pytest
import torch

from understudy.core import ConfigError, Context, HeadSpec
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.denoising.interpolant import Interpolant
from understudy.heads.denoising.streaming_flow import StreamingFlow
from understudy.heads.paths import (
    EDMPath,
    LinearPath,
    NarrowGaussianPath,
    StochasticInterpolant,
    VariancePreservingPath,
    noise_schedule,
)
from understudy.heads.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, Midpoint, integrate
from understudy.nets.mlp import MLP

B, H, A = 3, 5, 2
SMOOTH = (LinearPath(), EDMPath(), EDMPath(0.01, 5.0, 3.0), StochasticInterpolant(), StochasticInterpolant(0.0),
          NarrowGaussianPath(), NarrowGaussianPath(0.5, 0.7))


def class_name(value):
    return repr(value).replace("'", "")


def action_and_noise(path):
    draw = torch.Generator().manual_seed(0)
    width = 2 * A if isinstance(path, StochasticInterpolant) else A
    return (torch.randn(B, H, A, generator=draw).double(), torch.randn(B, H, width, generator=draw).double())


# -- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SMOOTH, ids=class_name)
def test_velocity_is_the_derivative_of_the_path(path):
    action, noise = action_and_noise(path)
    t = torch.linspace(0.013, 0.967, B * H).reshape(B, H, 1).double()  # inside the segments of the trajectory
    _, derivative = torch.func.jvp(lambda t: path.interpolate(action, noise, t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.velocity(action, noise, t).expand_as(derivative), derivative)


@pytest.mark.parametrize("path", [LinearPath(), EDMPath(), StochasticInterpolant(), VariancePreservingPath(),
                                  VariancePreservingPath("linear", 1000)], ids=class_name)
def test_paths_end_exactly_at_the_action(path):
    action, noise = action_and_noise(path)
    assert torch.equal(path.interpolate(action, noise, torch.ones(B, H, 1)), action)


def test_where_paths_start():
    zero = torch.zeros(B, H, 1).double()
    action, noise = action_and_noise(LinearPath())
    assert torch.equal(LinearPath().interpolate(action, noise, zero), noise)
    torch.testing.assert_close(EDMPath(sigma_max=7.0).interpolate(action, noise, zero), action + 7 * noise)
    path = VariancePreservingPath("linear", 1000)
    alpha, sigma = path.alpha_sigma(zero)
    assert float(alpha.max()) == pytest.approx(math.sqrt(4.0358e-5), rel=1e-4)  # Ho et al. 2020
    torch.testing.assert_close(path.interpolate(action, noise, zero), alpha * action + sigma * noise)
    action, noise = action_and_noise(StochasticInterpolant())
    assert torch.equal(StochasticInterpolant().interpolate(action, noise, zero), noise[..., :A])  # the source


def test_velocity_of_the_discrete_path_leads_from_level_to_level():
    path = VariancePreservingPath("squaredcos_cap_v2", 50)
    action, noise = action_and_noise(path)
    x = path.interpolate(action, noise, torch.zeros(B, H, 1))
    for k in range(50, 0, -1):
        x = x + path.velocity(action, noise, torch.full((B, H, 1), 1 - k / 50)) / 50
        torch.testing.assert_close(x, path.interpolate(action, noise, torch.full((B, H, 1), 1 - (k - 1) / 50)).double())
    torch.testing.assert_close(x, action)
    assert not path.velocity(action, noise, torch.ones(B, H, 1)).any()


def test_velocity_of_the_discrete_path_approaches_the_cosine():
    """Nichol and Dhariwal 2021: alpha = f(1 - t) / f(0) with f(u) = cos((u + s) / (1 + s) pi / 2)."""
    t = torch.linspace(0.1, 0.9, 9).double()
    angle = (1 - t + 0.008) / 1.008 * math.pi / 2
    alpha = angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)
    rate = angle.sin() * math.pi / 2 / 1.008 / math.cos(0.008 / 1.008 * math.pi / 2)
    rates = VariancePreservingPath("squaredcos_cap_v2", 5000).alpha_sigma_rates(t)
    torch.testing.assert_close(rates[0].double(), rate, atol=3e-3, rtol=0)
    torch.testing.assert_close(rates[1].double(), -alpha * rate / (1 - alpha**2).sqrt(), atol=3e-3, rtol=0)


def test_noise_levels_of_edm():
    """Karras et al. 2022, equation 5, without its last entry 0, which is t = 1 here."""
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    alpha, noise_levels = EDMPath().alpha_sigma(torch.from_numpy(i[:-1] / 17))
    np.testing.assert_allclose(noise_levels, sigma[:-1], rtol=1e-9)
    assert (alpha == 1).all()
    last = EDMPath().alpha_sigma(torch.tensor(1 - 1e-9, dtype=torch.float64))[1]
    assert float(last) == pytest.approx(0.002, rel=1e-5)


def test_narrow_gaussian_follows_the_trajectory():
    """Jiang et al. 2025: mean xi(t), standard deviation std exp(-k t), and a flow that returns to xi at rate k."""
    path = NarrowGaussianPath(0.3, 2.0)
    action, noise = action_and_noise(path)
    t = torch.linspace(0, 1, H).reshape(1, H, 1).expand(B, H, 1).double()
    torch.testing.assert_close(path.interpolate(action, torch.zeros_like(noise), t), action)  # row i is at i / (H - 1)
    torch.testing.assert_close(path.interpolate(action, noise, t) - action, 0.3 * torch.exp(-2 * t) * noise)
    quarter = torch.full((B, 1, 1), 0.125).double()  # halfway between rows 0 and 1
    middle = (action[:, :1] + action[:, 1:2]) / 2
    x = path.interpolate(action, noise[:, :1], quarter)
    torch.testing.assert_close(path.velocity(action, noise[:, :1], quarter),
                               4 * (action[:, 1:2] - action[:, :1]) - 2.0 * (x - middle))


# -- solvers of a velocity field ------------------------------------------------------------------------------------


def solve(solver, velocity, x, n):
    times = torch.linspace(0, 1, n + 1).double()
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        x = solver.step(velocity, x, t, t_next)
    return x


@pytest.mark.parametrize("solver, order", [(Euler(), 1), (Midpoint(), 2), (Heun(), 2)], ids=class_name)
def test_order_of_convergence(solver, order):
    """dx/dt = -2 t x from 3 has the solution 3 exp(-t^2)."""
    def error(n):
        return abs(float(solve(solver, lambda x, t: -2 * t * x, torch.tensor(3.0).double(), n)) - 3 / math.e)
    for n in (40, 80, 160):
        assert error(n) / error(2 * n) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("solver, power", [(Euler(), 0), (Midpoint(), 1), (Heun(), 1)], ids=class_name)
def test_solvers_are_exact_for_polynomials_of_their_order(solver, power):
    exact = solve(solver, lambda x, t: (power + 1) * t**power + 0 * x, torch.tensor(0.5).double(), 3)
    assert float(exact) == pytest.approx(1.5, rel=1e-12)
    rough = solve(solver, lambda x, t: (power + 2) * t ** (power + 1) + 0 * x, torch.tensor(0.5).double(), 3)
    assert abs(float(rough) - 1.5) > 0.01


@pytest.mark.parametrize("solver", [Euler(), Midpoint(), Heun()], ids=class_name)
def test_solvers_evaluate_at_the_times_that_they_say(solver):
    times, t, t_next = [], torch.tensor(0.2), torch.tensor(0.6)
    solver.step(lambda x, t: times.append(t) or x, torch.zeros(1), t, t_next)
    assert torch.equal(torch.stack(times), torch.stack(solver.evaluation_times(t, t_next)))


@pytest.mark.parametrize("solver", [Euler(), Midpoint(), Heun()], ids=class_name)
def test_integration_of_a_network_equals_a_plain_loop(solver):
    """What is computed before the loop changes nothing."""
    torch.manual_seed(0)
    net = MLP(16, 1).build(A, A, 1, HeadSpec(H, 2, 4)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    context = Context(torch.randn(B, 2, 4).double(), torch.ones(B, 2, dtype=torch.bool))
    noise = torch.randn(B, H, A).double()
    plain = solve(solver, lambda x, t: net(x, t.expand(B, H, 1), context), noise, 4)
    out = integrate(solver, lambda x, t, context: net(x, t, context), net, context, noise, 4)
    torch.testing.assert_close(out, plain)
    assert not torch.allclose(out, noise, atol=0.1)


@pytest.mark.parametrize("head, solver, fitting", [
    (Flow, DPMSolverPP(), "Euler, Midpoint or Heun"), (Interpolant, DDIM(), "Euler, Midpoint or Heun"),
    (StreamingFlow, DDPM(), "Euler, Midpoint or Heun"), (Diffusion, Heun(), "DDIM, DDPM or DPMSolverPP"),
    (EDM, DDPM(), "Euler, Midpoint, Heun, DDIM or DPMSolverPP"), (Flow, Heun, "Euler, Midpoint or Heun")])
def test_a_head_refuses_a_solver_of_another_kind_and_names_those_that_fit(head, solver, fitting):
    with pytest.raises(ConfigError, match=rf"{head.__name__}.solver: solver is .* but must be {fitting}\n"):
        head(solver=solver)


# -- solvers that step from estimates of the clean action -----------------------------------------------------------

MU, S = 0.3, 0.4  # the clean action is from N(MU, S^2)


def draw(solver, alpha, sigma, noise):
    """Samples with the exact denoiser of a Gaussian."""
    x, coefficients = solver.prepare(noise, alpha, sigma)
    last = x
    for i, row in enumerate(zip(*coefficients, strict=True)):
        clean = MU + alpha[i] * S**2 / (alpha[i] ** 2 * S**2 + sigma[i] ** 2) * (x - alpha[i] * MU)
        x, last = solver.step(x, clean, last, alpha[i], sigma[i], alpha[i + 1], 0.0, *row), clean
    return x


@pytest.mark.parametrize("solver, order", [(DDIM(), 1), (DPMSolverPP(), 2)], ids=class_name)
def test_order_of_deterministic_denoising(solver, order):
    """The exact flow keeps (x - alpha MU) / sqrt(alpha^2 S^2 + sigma^2). alpha = sin, sigma = cos, down to sigma > 0,
    since both solvers end with a step of order 1 where the noise ends."""
    noise = torch.linspace(-2, 2, 5).reshape(5, 1, 1).double()

    def error(n):
        angle = torch.linspace(0.3, 1.2, n + 1).double()
        alpha, sigma = angle.sin(), angle.cos()
        start, end = ((alpha[i] * MU, (alpha[i] ** 2 * S**2 + sigma[i] ** 2).sqrt()) for i in (0, -1))
        truth = end[0] + end[1] * (noise - start[0]) / start[1]
        return float((draw(solver, alpha, sigma, noise) - truth).abs().max())
    for n in (40, 80, 160):
        assert error(n) / error(2 * n) == pytest.approx(2**order, rel=0.05)


def test_ddim_along_a_straight_path_is_euler():
    """With alpha = t and sigma = 1 - t, the velocity is the clean action minus the noise."""
    times = torch.linspace(0, 1, 9).double()
    noise = torch.randn(B, H, A, generator=torch.Generator().manual_seed(1)).double()

    def velocity(x, t):
        clean = MU + t * S**2 / (t**2 * S**2 + (1 - t) ** 2) * (x - t * MU)
        return clean - (x - t * clean) / (1 - t)
    torch.testing.assert_close(draw(DDIM(), times, 1 - times, noise), solve(Euler(), velocity, noise, 8))


def test_ddim_keeps_the_noise_of_the_clipped_or_of_the_unclipped_estimate():
    x, clean, unclipped, alpha, sigma, alpha_next, sigma_next = torch.tensor([2.0, 1.0, 3.0, 0.6, 0.8, 0.8, 0.6])

    def step(solver):
        return float(solver.step(x, clean, x, alpha, sigma, alpha_next, 0.0, sigma_next, unclipped=unclipped))
    assert step(DDIM()) == pytest.approx(0.8 + 0.6 * (2 - 0.6) / 0.8)
    assert step(DDIM(clipped_noise=False)) == pytest.approx(0.8 + 0.6 * (2 - 1.8) / 0.8)


def test_sampling_begins_at_the_noisiest_level_or_leads_to_the_lowest():
    trailing, leading = (Diffusion(3, n_train_steps=10, spacing=spacing)._sampling_times("cpu")
                         for spacing in ("trailing", "leading"))
    assert trailing.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert leading.tolist() == pytest.approx([0.3, 0.6, 0.9, 1]), "levels 7, 4, 1 and 0 of 10"
    every = Diffusion(10, n_train_steps=10, spacing="leading")._sampling_times("cpu")
    assert every.tolist() == pytest.approx([i / 10 for i in range(11)])


def test_extra_steps_shrink_a_plan_towards_the_mean_of_a_gaussian():
    """At level 1, the expected clean action of N(MU, S^2) is linear in x, so that each extra step is one factor."""
    path = VariancePreservingPath("squaredcos_cap_v2", 100)

    def net(x, t, context):  # the exact noise of N(MU, S^2)
        alpha, sigma = path.alpha_sigma(t)
        return sigma * (x - alpha * MU) / (alpha**2 * S**2 + sigma**2)
    noise = torch.randn(B, H, 2 * A, generator=torch.Generator().manual_seed(2)).double()
    alpha, sigma = path.alpha_sigma(torch.tensor(0.99).double())
    gain, before = S**2 * alpha / (alpha**2 * S**2 + sigma**2), None
    for n in range(3):
        head = Diffusion(2, DDPM(), clip_sample=0.0, n_extra_steps=n)
        plan = head.sample(net, Context(torch.zeros(B, 1, 1), torch.ones(B, 1).bool(), {}), noise)
        if before is not None:
            torch.testing.assert_close(plan, MU + gain * (before - alpha * MU), rtol=1e-5, atol=1e-6)
        before = plan


def test_ancestral_steps_keep_the_marginal_distribution():
    """Each step of DDPM has the mean and the variance of q(x_next | x, clean), Ho et al. 2020, equation 7."""
    alpha, sigma = (torch.tensor(c).double().flip(0)[::10] for c in noise_schedule("squaredcos_cap_v2", 100))
    n = len(alpha) - 1
    noise = torch.zeros(2, 1, n).double()
    noise[:, 0, 0], noise[1, 0, 4] = 0.6, 1.0  # the draw of step 3, in the second row
    x, coefficients = DDPM().prepare(noise, alpha, sigma)
    kept = [row[3] for row in coefficients]
    mean, above = DDPM().step(x, torch.full_like(x, 0.2), x, alpha[3], sigma[3], alpha[4], 0.0, *kept).flatten()
    ratio = (alpha[3] / alpha[4]) ** 2
    beta, before, after = 1 - ratio, sigma[3] ** 2, sigma[4] ** 2
    assert float(above - mean) == pytest.approx(float((after / before * beta).sqrt()))
    assert float(mean) == pytest.approx(float(alpha[4] * beta / before * 0.2 + ratio.sqrt() * after / before * 0.6))
    assert DDPM().n_noises(7) == 7 and DDIM().n_noises(7) == DPMSolverPP().n_noises(7) == 1
