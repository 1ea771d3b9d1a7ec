"""Diffusion: published schedules, samplers and guidance in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.heads import EMPTY, constant, named, rng, velocity
from scipy import stats

from understudy.core import DataWarning, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.base import RampTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.paths import noise_schedule
from understudy.heads.solvers import DDIM, DDPM, DPMSolverPP, Midpoint
from understudy.policy import PolicyConfig
from understudy.testing import random_batch

SOLVERS = {"ddim": DDIM(), "ddpm": DDPM(), "dpmpp": DPMSolverPP()}


def test_schedules_are_the_published_ones():
    alpha, sigma = (np.array(c) for c in noise_schedule("linear", 1000))
    betas = 1 - (alpha[1:] / alpha[:-1]) ** 2
    np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-9)  # Ho et al. 2020, section 4
    np.testing.assert_allclose(alpha[-1] ** 2, 4.0358e-5, rtol=1e-4)
    alpha, sigma = (np.array(c) for c in noise_schedule("squaredcos_cap_v2", 100))
    k = np.arange(100)  # Nichol and Dhariwal 2021, equation 17: f(t) = cos^2((t/T + s)/(1 + s) pi/2), ab = f(t)/f(0)
    f = np.cos((k / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha[:100] ** 2, f / f[0], rtol=1e-9)
    np.testing.assert_allclose(1 - (alpha[100] / alpha[99]) ** 2, 0.999)  # the cap
    for name in ("linear", "squaredcos_cap_v2"):
        for levels in (1, 10, 100, 1000):
            alpha, sigma = (np.array(c) for c in noise_schedule(name, levels))
            assert (alpha[0], sigma[0]) == (1, 0)
            np.testing.assert_allclose(alpha**2 + sigma**2, 1)
            assert (np.diff(alpha) < 0).all()


MU, S = 0.3, 0.4  # of the Gaussian that the heads below learn


def denoiser(head, seen=None):
    """The network that a Diffusion head would learn from N(MU, S^2): E[action | x] is known."""
    def net(x, t, context):
        if seen is not None:
            seen.append(float(t[0, 0, 0]))
        alpha, sigma = head.path.alpha_sigma(t)
        clean = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
        noise = (x - alpha * clean) / sigma
        return {"epsilon": noise, "sample": clean, "v": alpha * noise - sigma * clean}[head.prediction]
    return net


def moments(head):
    """Mean and standard deviation of what the sampler draws, exactly: with a Gaussian's denoiser it is affine in its
    noise."""
    n = math.prod(head.noise(1, 1))
    noise = torch.cat([torch.zeros(1, n), torch.eye(n)]).unsqueeze(1).double()
    out = head.sample(denoiser(head), EMPTY, noise).flatten()
    return float(out[0]), float((out[1:] - out[0]).norm())


@pytest.mark.parametrize("schedule", ("squaredcos_cap_v2", "linear"))
@pytest.mark.parametrize("prediction", ("epsilon", "sample", "v"))
@pytest.mark.parametrize("sampler, near", [("ddim", 0.004), ("ddpm", 0.01), ("dpmpp", 0.002)])
def test_samplers_draw_from_a_known_gaussian(sampler, near, prediction, schedule):
    head = Diffusion(
        solver=SOLVERS[sampler], prediction=prediction, schedule=schedule, clip_sample=0.0, n_steps=500,
        n_train_steps=1000
    )
    mean, std = moments(head)
    assert abs(mean - MU) < near and abs(std - S) < near


def test_samplers_converge_at_their_order():
    def error(sampler, steps):
        return abs(
            moments(Diffusion(solver=SOLVERS[sampler], prediction="v", clip_sample=0.0, n_steps=steps,
                              n_train_steps=1000))[1]
            - S
        )

    ddim = [error("ddim", n) for n in (10, 20, 40)]
    assert 0.4 < ddim[1] / ddim[0] < 0.62 and 0.4 < ddim[2] / ddim[1] < 0.62  # first order
    assert all(error("dpmpp", n) < error("ddim", n) / 5 for n in (20, 40, 100))
    ddpm = [error("ddpm", n) for n in (10, 50, 250)]
    assert ddpm[0] > 2 * ddpm[1] > 4 * ddpm[2]


def test_dpm_solver_is_algorithm_2_of_the_paper():
    """Lu et al. 2022: 2M, a loop over lambda = log(alpha / sigma), with first order at both ends."""
    head, steps, x0 = (
        Diffusion(solver=DPMSolverPP(), prediction="sample", clip_sample=0.0, n_steps=8, n_train_steps=1000),
        8,
        0.9,
    )
    alpha, sigma = (np.array(c) for c in noise_schedule("squaredcos_cap_v2", 1000))
    level = np.linspace(1000, 0, steps + 1).round().astype(int)
    x, last, h_last = x0, None, None
    for i, (s, t) in enumerate(zip(level[:-1], level[1:], strict=True)):
        clean = MU + alpha[s] * S**2 / (alpha[s] ** 2 * S**2 + sigma[s] ** 2) * (x - alpha[s] * MU)
        with np.errstate(divide="ignore"):
            h = np.log(alpha[t] / sigma[t]) - np.log(alpha[s] / sigma[s])
        r = None if last is None else h_last / h
        d = clean if i in (0, steps - 1) else (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * last
        x, last, h_last = sigma[t] / sigma[s] * x - alpha[t] * (np.exp(-h) - 1) * d, clean, h
    out = head.sample(denoiser(head), EMPTY, torch.full((1, 1, 1), x0).double())
    assert float(out) == pytest.approx(x, rel=1e-5)


def test_one_step_of_ddim():
    """Song et al. 2021, equation 12 with eta = 0."""
    head, x = Diffusion(clip_sample=0.0), torch.tensor([[[0.7]]])
    alpha, sigma = noise_schedule("squaredcos_cap_v2", 100)
    noise = 0.25
    t, to = torch.tensor([[0.4]]), torch.tensor([[0.5]])  # levels 60 and 50
    clean = (0.7 - sigma[60] * noise) / alpha[60]
    out = head.denoise_step(constant(noise), EMPTY, x, t, to)
    assert float(out) == pytest.approx(alpha[50] * clean + sigma[50] * noise, rel=1e-5)


def test_one_step_of_ddpm():
    """Ho et al. 2020, equations 7 and 11: the posterior's mean and its variance beta tilde, between neighbors."""
    head = Diffusion(clip_sample=0.0, solver=DDPM(), prediction="sample", n_steps=100)
    alpha, sigma = (np.array(c) for c in noise_schedule("squaredcos_cap_v2", 100))
    clean, noise = 0.2, torch.zeros(3, 1, 100)
    noise[:, 0, 0], noise[1, 0, 1], noise[2, 0, 2] = 0.6, 1.0, 1.0
    first = head.sample(constant(clean), EMPTY, noise)  # the last step ends at the estimate, whatever came before
    torch.testing.assert_close(first, torch.full((3, 1, 1), clean))
    inputs, draws = [], torch.randn(1, 1, 100, generator=rng())

    def net(x, t, context):
        inputs.append(float(x))
        return torch.full_like(x, clean)
    head.sample(net, EMPTY, draws)
    for k in range(99, 1, -1):  # from 99: at level 100 alpha is all but 0
        x, after, draw = inputs[100 - k], inputs[101 - k], float(draws[0, 0, 101 - k])
        ab, before = alpha[k] ** 2, alpha[k - 1] ** 2
        beta = 1 - ab / before
        mean = math.sqrt(before) * beta / (1 - ab) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - ab) * x
        assert after == pytest.approx(mean + draw * math.sqrt((1 - before) / (1 - ab) * beta), rel=1e-4, abs=1e-5)


def test_sampling_starts_at_pure_noise_and_visits_even_levels():
    for sampler in ("ddim", "ddpm", "dpmpp"):
        head, times = Diffusion(solver=SOLVERS[sampler], n_steps=4), []
        head.sample(denoiser(head, times), EMPTY, torch.zeros(1, 1, 1 if sampler != "ddpm" else 4))
        assert times == [0, 0.25, 0.5, 0.75]


def test_training_shows_every_level_but_the_clean_one():
    head, times = Diffusion(), []
    action = torch.zeros(200_000, 1, 1)

    def net(x, t, context):
        times.append(t)
        return torch.zeros_like(x)
    loss = head.loss(net, EMPTY, action, torch.ones(200_000, 1, dtype=torch.bool), rng())
    level = ((1 - times[0].flatten()) * 100).round().long()
    assert stats.chisquare(level.bincount(minlength=101)[1:]).pvalue > 1e-3 and level.min() == 1
    assert float(loss.mean()) == pytest.approx(1, abs=0.02)  # the noise's variance, for a network that says 0


def test_the_clip_holds_the_estimate():
    wild = constant(9.0)
    for sampler in ("ddim", "ddpm", "dpmpp"):
        head = Diffusion(prediction="sample", solver=SOLVERS[sampler], clip_sample=0.8)
        out = head.sample(wild, EMPTY, torch.randn(5, *head.noise(3, 1), generator=rng()))
        torch.testing.assert_close(out, torch.full((5, 3, 1), 0.8))


@pytest.mark.parametrize("target, clip, fine", [
    ("minmax", 1.0, True), ("minmax", 0.9, False), ("minmax", 0.0, True), ("zscore", 1.0, False),
    ("zscore", 0.0, True), ("quantile", 1.0, False), ("identity", 20.0, True)])
def test_the_clip_knows_the_range_of_the_codec(target, clip, fine):
    recipe = PolicyConfig(Diffusion(clip_sample=clip, n_steps=2), codec=Normalizer(target=target), window=Window(1, 4))
    if not fine:
        with pytest.raises(UserError, match="Diffusion.clip_sample: .* would cut off"):
            random_batch(recipe)
        return
    policy, batch = random_batch(recipe)
    assert policy.encode_batch(batch).abs().max() <= (clip or policy.codec.bound) + 1e-6


@pytest.mark.parametrize("clip, warned", [(1.0, True), (0.0, False), (20.0, False)])
def test_a_clip_within_the_data_of_an_unscaled_target_is_told(recwarn, clip, warned):
    random_batch(PolicyConfig(Diffusion(clip_sample=clip, n_steps=2), codec=Normalizer(target="identity")))
    random_batch(PolicyConfig(Diffusion(), codec=Normalizer(target="identity"), target=""))  # predicts nothing
    said = [str(w.message) for w in recwarn if w.category is DataWarning]
    assert len(said) == warned and all("clip_sample=1 cuts off plans, and coded actions are up to" in x for x in said)


def test_guidance_of_diffusion():
    """x' = alpha' clean + sigma' noise - alpha * slope (Song et al. 2023, algorithm 1), with the slope by hand."""
    head = Diffusion(clip_sample=0.0)
    alpha, sigma = noise_schedule("squaredcos_cap_v2", 100)
    x, t, to = torch.tensor([[[0.7]]]), torch.tensor([[0.4]]), torch.tensor([[0.5]])
    gain = alpha[60] * S**2 / (alpha[60] ** 2 * S**2 + sigma[60] ** 2)  # d clean / dx
    clean = MU + gain * (0.7 - alpha[60] * MU)
    free = head.denoise_step(denoiser(head), EMPTY, x, t, to)
    with torch.no_grad():
        pulled = head.denoise_step(denoiser(head), EMPTY, x, t, to, lambda a: 0.5 * (a - 1).square().flatten(1).sum(1))
    assert float(pulled - free) == pytest.approx(-alpha[60] * (clean - 1) * gain, rel=1e-4)


@pytest.mark.parametrize("head", [Diffusion(), Diffusion(solver=DDPM()), Diffusion(solver=DPMSolverPP()), Flow(),
                                  Flow(solver=Midpoint())], ids=named)
def test_guides_pull_plans_and_no_cost_changes_nothing(head):
    net = denoiser(head) if isinstance(head, Diffusion) else velocity
    noise = torch.randn(200, *head.noise(2, 1), generator=rng())

    def distance(weight):
        out = head.sample(net, EMPTY, noise, lambda a: 0.5 * weight * (a[:, 0] - 0.8).square().sum(-1))
        return float((out[:, 0] - 0.8).abs().mean()), out
    assert distance(1.0)[0] < 0.6 * distance(0.0)[0]
    torch.testing.assert_close(distance(0.0)[1], head.sample(net, EMPTY, noise))
    torch.testing.assert_close(distance(1.0)[1][:, 1], head.sample(net, EMPTY, noise)[:, 1])  # the step not asked for


def test_the_ancestral_sampler_has_no_single_steps():
    policy, batch = random_batch(PolicyConfig(Diffusion(solver=DDPM(), times=RampTimes()), window=Window(2, 4)))
    key = torch.arange(5)
    with pytest.raises(Unsupported, match="draws noise in every step"):
        StreamingExecutor().start(policy, batch.obs, key)


@pytest.mark.parametrize("prediction", ("epsilon", "sample", "v"))
def test_estimate_of_the_clean_action_of_diffusion(prediction):
    head, t = Diffusion(prediction=prediction, clip_sample=0.0), torch.tensor([[0.4, 0.9]])
    x = torch.tensor([[[0.7], [-1.2]]])
    alpha, sigma = head.path.alpha_sigma(t.unsqueeze(-1))
    mean = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
    torch.testing.assert_close(head.predict_clean(denoiser(head), EMPTY, x, t), mean)
    clipped = replace(head, clip_sample=0.1).predict_clean(denoiser(head), EMPTY, x, t)
    torch.testing.assert_close(clipped, mean.clamp(-0.1, 0.1))


def test_more_steps_than_levels():
    with pytest.raises(UserError, match="1 to n_train_steps=100"):
        Diffusion(n_steps=101)
