"""Flow matching against known Gaussians."""


import numpy as np
import pytest
import torch
from fixtures.heads import EMPTY, rng, velocity
from scipy import integrate, stats

from understudy.core import Unsupported
from understudy.heads.base import RampTimes
from understudy.heads.denoising.flow import Flow
from understudy.heads.solvers import Euler, Heun, Midpoint

MU, S = 0.3, 0.4  # of the Gaussian that the heads below learn


@pytest.mark.parametrize("solver, order", [(Euler(), 1), (Midpoint(), 2), (Heun(), 2)])
def test_flow_converges_to_a_known_gaussian(solver, order):
    noise = torch.linspace(-3, 3, 9).double().reshape(9, 1, 1)

    def error(steps):  # the exact flow keeps quantiles: MU + S * noise
        return float((Flow(steps, solver).sample(velocity, EMPTY, noise) - (MU + S * noise)).abs().max())
    for n in (20, 40, 80):
        assert error(2 * n) / error(n) < 0.5**order * 1.1
    assert error(400) < 0.01**order * 0.5


def clean_mean(x, t, context):
    """E[action | x] for actions from N(MU, S^2)."""
    return x + (1 - t) * velocity(x, t, context)


@pytest.mark.parametrize("solver", [Euler(), Midpoint()])
def test_flow_that_predicts_the_action_goes_the_same_way(solver):
    """The velocity follows from the action, at all times up to 0.95."""
    noise = torch.linspace(-3, 3, 9).double().reshape(9, 1, 1)
    torch.testing.assert_close(Flow(10, solver, prediction="sample").sample(clean_mean, EMPTY, noise),
                               Flow(10, solver).sample(velocity, EMPTY, noise))
    x, t = torch.tensor([[[0.7], [-1.2]]]), torch.tensor([[0.4, 0.9]])
    assert torch.equal(Flow(prediction="sample").predict_clean(clean_mean, EMPTY, x, t),
                       Flow().predict_clean(velocity, EMPTY, x, t))
    one = Flow(1, prediction="sample").sample(clean_mean, EMPTY, noise)
    torch.testing.assert_close(one, torch.full_like(noise, MU))  # a single step ends at the mean


def test_one_step_of_midpoint():
    x, t, to = torch.tensor([[[0.7]]]), torch.tensor([[0.2]]), torch.tensor([[0.6]])
    half = 0.7 + 0.2 * velocity(0.7, 0.2, None)
    assert float(Flow(solver=Midpoint()).denoise_step(velocity, EMPTY, x, t, to)) == pytest.approx(
        0.7 + 0.4 * velocity(half, 0.4, None), rel=1e-6)


def test_estimate_of_the_clean_action_of_flow():
    x, t = torch.tensor([[[0.7], [-1.2]]]), torch.tensor([[0.4, 0.9]])
    alpha, sigma = t.unsqueeze(-1), 1 - t.unsqueeze(-1)
    mean = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
    torch.testing.assert_close(Flow().predict_clean(velocity, EMPTY, x, t), mean)


def test_flow_is_exact_in_one_step_where_the_lines_are_straight():
    point = Flow(n_steps=1).sample(lambda x, t, c: MU - x, EMPTY, torch.randn(4, 2, 1))  # all mass in one place
    torch.testing.assert_close(point, torch.full((4, 2, 1), MU))


def test_times_of_flow_have_their_densities():
    u = torch.linspace(0, 1, 101)[1:-1]
    torch.testing.assert_close(Flow(time_distribution="beta")._time_quantile(u), torch.tensor(
        0.999 * (1 - stats.beta(1.5, 1).ppf(1 - u.double().numpy()))).float())
    torch.testing.assert_close(Flow(time_distribution="logit_normal")._time_quantile(u), torch.tensor(
        1 / (1 + np.exp(-stats.norm.ppf(u.double().numpy())))).float())
    density = lambda t: np.exp(4 * t) + np.exp(4 * (1 - t))  # noqa: E731
    whole, (a, b) = integrate.quad(density, 0, 1)[0], Flow(time_distribution="u_shaped")._time_quantile(
        torch.tensor([0.0, 1.0])).tolist()
    assert (a, b) == pytest.approx((0, 1), abs=1e-6)
    times = Flow(time_distribution="u_shaped")._time_quantile(u)
    assert [integrate.quad(density, 0, t)[0] / whole for t in times.tolist()] == pytest.approx(u.tolist(), abs=1e-5)
    assert torch.equal(Flow()._time_quantile(u), u)
    assert Flow(time_distribution="logit_normal")._time_quantile(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    with pytest.raises(Unsupported):
        Flow(times=RampTimes(), time_distribution="beta")


def test_loss_of_flow():
    """Against a network that knows: what is left is Var(action - noise | x), the least there can be."""
    action = MU + S * torch.randn(100_000, 1, 1, generator=rng(5))
    mask = torch.ones(100_000, 1, dtype=torch.bool)
    t = np.linspace(0.0005, 0.9995, 1000)
    least = (S**2 / (t**2 * S**2 + (1 - t) ** 2)).mean()
    loss = Flow().loss(velocity, EMPTY, action, mask, rng(6))
    assert float(loss.mean()) == pytest.approx(least, rel=0.03)
    variance = (S**2 * (1 - t) ** 2 / (t**2 * S**2 + (1 - t) ** 2)).mean()  # Var(action | x)
    loss = Flow(prediction="sample").loss(clean_mean, EMPTY, action, mask, rng(6))
    assert float(loss.mean()) == pytest.approx(variance, rel=0.03)
