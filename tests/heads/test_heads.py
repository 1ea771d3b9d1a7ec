"""Every head with every trunk; then each against closed forms and published numbers."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as D

from understudy.core import Context, Feature, HeadSpec, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.adaflow import AdaFlow
from understudy.heads.base import RampTimes
from understudy.heads.behavior_transformer import BeT
from understudy.heads.bins import Bins
from understudy.heads.categorical import Categorical
from understudy.heads.consistency import Consistency
from understudy.heads.cvae import CVAE
from understudy.heads.diffusion import Diffusion
from understudy.heads.edm import EDM
from understudy.heads.energy import AutoregressiveEnergy, EnergyModel
from understudy.heads.fast import FAST
from understudy.heads.flow import Flow
from understudy.heads.gaussian import Gaussian
from understudy.heads.gmm import GMM
from understudy.heads.joint_diffusion import JointDiffusion
from understudy.heads.mcnn import MCNN
from understudy.heads.mean_flow import MeanFlow
from understudy.heads.mip import MIP
from understudy.heads.neighbors import Neighbors
from understudy.heads.normalizing_flow import NormalizingFlow
from understudy.heads.one_step import OneStepGenerator
from understudy.heads.paths import noise_schedule
from understudy.heads.regression import Regression
from understudy.heads.shortcut import Shortcut
from understudy.heads.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, Midpoint
from understudy.heads.streaming_flow import StreamingFlow
from understudy.heads.vq_bet import VQBeT
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import PolicyConfig
from understudy.testing import check_head, random_batch

CHOICE = Feature("int64", (2,), "discrete", num_classes=(3, 4))
JOINT = Feature("float32", (6,))
LANGEVIN = EnergyModel(8, "langevin", n_candidates=4, negatives="langevin", gradient_margin=1.0)
SOLVERS = {"ddim": DDIM(), "ddpm": DDPM(), "dpmpp": DPMSolverPP()}
HEADS = {h: None for h in (  # a new head joins by its line here; the first of each class is tested without --slow
    Regression(), Regression("l1"), Regression("huber"), Gaussian(), Gaussian(std=0.1, temperature=1.0), GMM(),
    GMM(joint=False, temperature=1.0), Diffusion(), Diffusion(solver=DDPM(), prediction="sample", schedule="linear"),
    Diffusion(solver=DPMSolverPP(), prediction="v"), Diffusion(4, DDIM(clipped_noise=False), spacing="leading"),
    Diffusion(4, n_extra_steps=3), Flow(), Flow(solver=Midpoint(), time_distribution="beta"),
    Flow(solver=Heun()), Flow(time_distribution="logit_normal"), MIP(), MIP(scale_first_target=True,
    loss_balance="equal"), Neighbors(), Neighbors(local_model="linear", weights="equal"), CVAE(latent_dim=4),
    CVAE(latent_dim=4, temperature=1.0), Shortcut(), Shortcut(n_steps=4, self_consistency_fraction=0.5), MeanFlow(),
    MeanFlow(n_steps=2, velocity_fraction=0.0), EDM(), EDM(n_steps=4, solver=Heun()),
    EDM(n_steps=4, solver=DPMSolverPP()), BeT(6), BeT(4, joint=True, temperature=0.0), Bins(8),
    Bins(8, "quantile", autoregressive=False), EnergyModel(8, n_candidates=16), LANGEVIN,
    AutoregressiveEnergy(8, n_candidates=16, width=8),
    VQBeT(4, latent_dim=8, width=8, fit_steps=20), VQBeT(4, 3, offset_codes="encoded", latent_dim=8, width=8,
    fit_steps=20, temperature=0.0), Consistency(), Consistency(n_steps=3), AdaFlow(), NormalizingFlow(4),
    OneStepGenerator(), Flow(coupling="optimal_transport"), Flow(prediction="sample"))}
HEADS |= {Categorical(): CHOICE, Categorical(temperature=1.0): CHOICE, Categorical(1.0, True, width=8): CHOICE}
HEADS |= {JointDiffusion(action_size=2): JOINT, JointDiffusion(action_size=2, mode="policy"): JOINT}
STEPWISE = (Diffusion(times="each"), Diffusion(times=RampTimes(2)), Flow(times="each"), Flow(times=RampTimes()))
TOKENS = (FAST(vocab_size=80, width=8), FAST(vocab_size=80, width=8, max_tokens=6, temperature=1.0))  # causal trunks
FROZEN = (MCNN(), MCNN(0.5, decay=1.0, limit=2.0))  # their encoder must not be trained
TRUNKS = (MLP(32, 1), UNet((8, 16), groups=4, time_width=16), Transformer(16, 1, 2))
TWO_TIMES = (Shortcut, MeanFlow, JointDiffusion)  # the U-Net reads one time
EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))


def named(value):
    return str(value).replace("'", "")


def cases(heads, trunks):
    """Pairs of head and trunk. All but the first of each class of head are slow."""
    first = {type(head): head for head in reversed(heads)}.values()
    for head in heads:
        for trunk in trunks:
            if not (isinstance(head, TWO_TIMES) and isinstance(trunk, UNet)):
                slow = () if head in first and trunk is trunks[0] else pytest.mark.slow
                yield pytest.param(head, trunk, marks=slow, id=f"{named(head)}-{type(trunk).__name__}")


@pytest.mark.parametrize("head, trunk", list(cases(list(HEADS), TRUNKS)))
def test_contract(head, trunk):
    check_head(PolicyConfig(head, trunk=trunk, window=Window(2, 8)), HEADS[head])


@pytest.mark.parametrize("head, trunk", list(cases(STEPWISE, (TRUNKS[0], TRUNKS[2]))))
def test_contract_of_stepwise_times(head, trunk):
    check_head(PolicyConfig(head, trunk=trunk, window=Window(2, 8)))


@pytest.mark.parametrize("head, trunk", list(cases(TOKENS, TRUNKS[2:])))
def test_contract_of_tokens(head, trunk):
    check_head(PolicyConfig(head, trunk=trunk, window=Window(2, 8)))
    with pytest.raises(Unsupported, match="causal trunk"):
        head.build(TRUNKS[0], 2, HeadSpec(8, 1, 4))


@pytest.mark.parametrize("head, trunk", list(cases(FROZEN, TRUNKS)))
def test_contract_of_frozen_encoders(head, trunk):
    check_head(PolicyConfig(head, trunk=trunk, encoder=ConcatEncoder(), window=Window(2, 8)))


@pytest.mark.parametrize("head, is_deterministic", [
    (Regression(), True), (MIP(), True), (Neighbors(), True), (Flow(), False), (Diffusion(), False),
    (EnergyModel(8, n_candidates=16), False), (AutoregressiveEnergy(8, n_candidates=16), False),
    (Gaussian(), True), (Gaussian(temperature=0.5), False), (Categorical(), True), (Categorical(1.0), False),
    (CVAE(4), True), (CVAE(4, temperature=1.0), False), (Bins(8, temperature=0.0), True), (Bins(8), False),
    (BeT(4, temperature=0.0), True), (BeT(4), False), (NormalizingFlow(4, temperature=0.0), True),
    (VQBeT(4, latent_dim=8, width=8, fit_steps=2, temperature=0.0), True), (NormalizingFlow(4), False),
    (FAST(80, width=8), True), (FAST(80, width=8, temperature=1.0), False),
    (GMM(), False), (GMM(1), True), (GMM(joint=False), False),  # the noise also chooses the component
    (StreamingFlow(), False), (StreamingFlow(sigma=0.0), True),
], ids=named)
def test_policies_say_whether_they_are_deterministic(head, is_deterministic):
    trunk = TRUNKS[2] if isinstance(head, FAST) else TRUNKS[0]
    policy, batch = random_batch(PolicyConfig(head, trunk=trunk, window=Window(2, 8)), target=HEADS.get(head) or (
        CHOICE if isinstance(head, Categorical) else None))
    assert policy.is_deterministic == is_deterministic
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():  # some layers are zero at first
            weight += 0.3 * torch.randn(weight.shape, generator=rng)
        one, other = (policy.plan(batch.obs, torch.randn(len(batch), *policy.noise_shape, generator=rng))
                      for _ in range(2))
    assert torch.equal(one, other) == is_deterministic


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS, ids=named)
def test_contract_of_single_steps(head):
    check_head(PolicyConfig(head, trunk=TRUNKS[0]), HEADS[head])


def test_heads_with_two_times_need_a_trunk_that_reads_them():
    for head in (Shortcut(), MeanFlow()):
        with pytest.raises(UserError, match="UNet"):
            head.build(TRUNKS[1], 2, HeadSpec(8, 1, 4))


@pytest.mark.parametrize("head", STEPWISE, ids=named)
def test_stepwise_times_need_a_trunk_that_reads_them(head):
    with pytest.raises(Unsupported, match="reads one time per chunk"):
        head.build(TRUNKS[1], 2, HeadSpec(8, 1, 4))


# -- regression, Gaussian, mixture, categorical: against torch.distributions ------------------------------------------


def constant(*values):
    """A network that says the same to everyone, (B, H, len(values))."""
    return lambda x, t, context: torch.tensor(values).expand(*x.shape[:2], -1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


ACTION = torch.tensor([[[0.5, -1.0], [2.0, 0.0]]])  # (1, 2, 2)
MASK = torch.ones(1, 2, dtype=torch.bool)


def test_regression_is_the_error_per_step():
    net = constant(1.0, 1.0)
    assert Regression("l2").loss(net, EMPTY, ACTION, MASK, rng()).tolist() == [[(0.25 + 4) / 2, (1 + 1) / 2]]
    assert Regression("l1").loss(net, EMPTY, ACTION, MASK, rng()).tolist() == [[(0.5 + 2) / 2, (1 + 1) / 2]]
    huber = Regression("huber", delta=0.75).loss(net, EMPTY, ACTION, MASK, rng())  # 0.5 e^2, or 0.75 (|e| - 0.375)
    assert huber.tolist() == [[(0.125 + 0.75 * 1.625) / 2, 0.75 * 0.625]]


@pytest.mark.parametrize("head, net, std", [
    (Gaussian(), constant(0.3, -0.2, 0.5, -2.0), np.logaddexp(0, [0.5, -2.0]) + 0.01),
    (Gaussian(std=0.7), constant(0.3, -0.2), [0.7, 0.7])])
def test_gaussian(head, net, std):
    truth = D.Normal(torch.tensor([0.3, -0.2]), torch.tensor(std).float()).log_prob(ACTION).sum(-1)
    torch.testing.assert_close(head.loss(net, EMPTY, ACTION, MASK, rng()), -truth)
    torch.testing.assert_close(head.log_prob(net, EMPTY, ACTION), truth.sum(1))
    noise = torch.randn(1, 2, 2)
    assert torch.equal(head.sample(net, EMPTY, noise), torch.tensor([0.3, -0.2]).expand(1, 2, 2))
    drawn = Gaussian(head.std, temperature=1.0).sample(net, EMPTY, noise)
    torch.testing.assert_close(drawn, torch.tensor([0.3, -0.2]) + noise * torch.tensor(std).float())


LOGITS, MEANS, SPREADS = torch.tensor([0.0, 1.0, -1.0]), torch.randn(3, 2, generator=rng(1)), torch.randn(
    3, 2, generator=rng(2))
MIXTURE = constant(*torch.cat([LOGITS.unsqueeze(1), MEANS, SPREADS], 1).flatten().tolist())


def test_mixture_of_each_step():
    std = torch.nn.functional.softplus(SPREADS) + 0.01
    truth = D.MixtureSameFamily(D.Categorical(logits=LOGITS), D.Independent(D.Normal(MEANS, std), 1)).log_prob(ACTION)
    head = GMM(n_components=3, joint=False)
    torch.testing.assert_close(-head.loss(MIXTURE, EMPTY, ACTION, MASK, rng()), truth)
    torch.testing.assert_close(head.log_prob(MIXTURE, EMPTY, ACTION), truth.sum(1))


def test_mixture_of_whole_chunks():
    std = torch.nn.functional.softplus(SPREADS) + 0.01

    def over(rows):  # each mode's Gaussian is over the rows of a chunk together
        mean, spread = (x.unsqueeze(1).expand(-1, rows, -1) for x in (MEANS, std))
        return D.MixtureSameFamily(D.Categorical(logits=LOGITS), D.Independent(D.Normal(mean, spread), 2))
    head = GMM(n_components=3)
    torch.testing.assert_close(head.log_prob(MIXTURE, EMPTY, ACTION), over(2).log_prob(ACTION))
    loss = head.loss(MIXTURE, EMPTY, ACTION, MASK, rng())
    torch.testing.assert_close(-loss, over(2).log_prob(ACTION).unsqueeze(1).expand(1, 2) / 2)
    first = torch.tensor([[True, False]])  # a padded step leaves the likelihood of the others as it is
    torch.testing.assert_close(-head.loss(MIXTURE, EMPTY, ACTION, first, rng())[:, 0], over(1).log_prob(ACTION[:, :1]))


@pytest.mark.parametrize("joint", (True, False))
def test_mixture_draws_modes_by_their_weights(joint):
    head, B = GMM(n_components=3, joint=joint), 20_000
    noise = torch.randn(B, *head.noise(2, 2), generator=rng())
    drawn = head.sample(MIXTURE, EMPTY, noise)
    mode = (drawn.unsqueeze(2) - MEANS).abs().sum(-1).argmin(-1)  # (B, 2)
    torch.testing.assert_close(drawn, MEANS[mode])  # low noise: nothing but means
    for step in range(2):
        assert stats.chisquare(mode[:, step].bincount(minlength=3), LOGITS.softmax(0) * B).pvalue > 1e-3
    same = float((mode[:, 0] == mode[:, 1]).float().mean())
    assert same == 1 if joint else abs(same - float(LOGITS.softmax(0).square().sum())) < 0.02
    drawn = GMM(n_components=3, joint=joint, temperature=1.0).sample(MIXTURE, EMPTY, noise)
    of_first = drawn[:, 0][mode[:, 0] == 1]
    std = torch.nn.functional.softplus(SPREADS[1]) + 0.01
    assert all(stats.kstest(of_first[:, i], "norm", (float(MEANS[1, i]), float(std[i]))).pvalue > 1e-3 for i in (0, 1))


def test_categorical():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, 1.5])
    net = SimpleNamespace(trunk=constant(*logits.tolist()), num_classes=(3, 2), layers=None)
    truth = [D.Categorical(logits=part) for part in logits.split((3, 2))]
    action = torch.tensor([[[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]]).float()
    each = torch.stack([truth[0].log_prob(torch.tensor([2, 0])) + truth[1].log_prob(torch.tensor([0, 1]))])
    head = Categorical()
    torch.testing.assert_close(head.loss(net, EMPTY, action, MASK, rng()), -each)
    torch.testing.assert_close(head.log_prob(net, EMPTY, action), each.sum(1))
    noise = torch.randn(20_000, 2, 5, generator=rng())
    assert torch.equal(head.sample(net, EMPTY, noise)[0, 0], torch.tensor([0, 1.0, 0, 0, 1]))
    drawn = Categorical(temperature=1.0).sample(net, EMPTY, noise)
    for part, one in zip(truth, drawn[:, 1].split((3, 2), -1), strict=True):
        assert (one.sum(-1) == 1).all()
        assert stats.chisquare(one.sum(0), part.probs * 20_000).pvalue > 1e-3


def test_categorical_needs_choices():
    with pytest.raises(UserError, match="needs a discrete target"):
        Categorical().build(MLP(), 2, HeadSpec(1, 1, 4))


# -- diffusion ------------------------------------------------------------------------------------------------------


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
    said = 0.25
    t, to = torch.tensor([[0.4]]), torch.tensor([[0.5]])  # levels 60 and 50
    clean = (0.7 - sigma[60] * said) / alpha[60]
    out = head.denoise_step(constant(said), EMPTY, x, t, to)
    assert float(out) == pytest.approx(alpha[50] * clean + sigma[50] * said, rel=1e-5)


def test_one_step_of_ddpm():
    """Ho et al. 2020, equations 7 and 11: the posterior's mean and its variance beta tilde, between neighbors."""
    head = Diffusion(clip_sample=0.0, solver=DDPM(), prediction="sample", n_steps=100)
    alpha, sigma = (np.array(c) for c in noise_schedule("squaredcos_cap_v2", 100))
    clean, noise = 0.2, torch.zeros(3, 1, 100)
    noise[:, 0, 0], noise[1, 0, 1], noise[2, 0, 2] = 0.6, 1.0, 1.0
    first = head.sample(constant(clean), EMPTY, noise)  # the last step ends at the estimate, whatever came before
    torch.testing.assert_close(first, torch.full((3, 1, 1), clean))
    seen, draws = [], torch.randn(1, 1, 100, generator=rng())

    def net(x, t, context):
        seen.append(float(x))
        return torch.full_like(x, clean)
    head.sample(net, EMPTY, draws)
    for k in range(99, 1, -1):  # from 99: at level 100 alpha is all but 0
        x, after, draw = seen[100 - k], seen[101 - k], float(draws[0, 0, 101 - k])
        ab, before = alpha[k] ** 2, alpha[k - 1] ** 2
        beta = 1 - ab / before
        mean = math.sqrt(before) * beta / (1 - ab) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - ab) * x
        assert after == pytest.approx(mean + draw * math.sqrt((1 - before) / (1 - ab) * beta), rel=1e-4, abs=1e-5)


def test_sampling_starts_at_pure_noise_and_visits_even_levels():
    for sampler in ("ddim", "ddpm", "dpmpp"):
        head, seen = Diffusion(solver=SOLVERS[sampler], n_steps=4), []
        head.sample(denoiser(head, seen), EMPTY, torch.zeros(1, 1, 1 if sampler != "ddpm" else 4))
        assert seen == [0, 0.25, 0.5, 0.75]


def test_training_shows_every_level_but_the_clean_one():
    head, seen = Diffusion(), []
    action = torch.zeros(200_000, 1, 1)

    def net(x, t, context):
        seen.append(t)
        return torch.zeros_like(x)
    loss = head.loss(net, EMPTY, action, torch.ones(200_000, 1, dtype=torch.bool), rng())
    level = ((1 - seen[0].flatten()) * 100).round().long()
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
    ("zscore", 0.0, True), ("quantile", 1.0, False), ("identity", 1.0, True)])
def test_the_clip_knows_the_range_of_the_codec(target, clip, fine):
    recipe = PolicyConfig(Diffusion(clip_sample=clip, n_steps=2), codec=Normalizer(target=target), window=Window(1, 4))
    if not fine:
        with pytest.raises(UserError, match="Diffusion.clip_sample: .* would cut off"):
            random_batch(recipe)
        return
    policy, batch = random_batch(recipe)
    assert target == "identity" or (policy.encode_batch(batch).abs().max() <= policy.codec.bound + 1e-6)


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


# -- flow -----------------------------------------------------------------------------------------------------------


def velocity(x, t, context):
    """E[action - noise | x] for actions from N(MU, S^2)."""
    return MU + (t * S**2 - (1 - t)) / (t**2 * S**2 + (1 - t) ** 2) * (x - t * MU)


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
    left = (S**2 * (1 - t) ** 2 / (t**2 * S**2 + (1 - t) ** 2)).mean()  # Var(action | x)
    loss = Flow(prediction="sample").loss(clean_mean, EMPTY, action, mask, rng(6))
    assert float(loss.mean()) == pytest.approx(left, rel=0.03)


# -- MIP ------------------------------------------------------------------------------------------------------------


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
    seen, t = [], head.second_time
    loss = head.loss(two_looks(seen), EMPTY, ACTION, MASK, rng(3))
    noise = head.noise_scale * torch.randn(ACTION.shape, generator=rng(3))
    shown = t * ACTION if head.scale_first_target else ACTION
    assert not seen[0][0].any() and not seen[0][1].any()
    torch.testing.assert_close(seen[1][0], shown + (1 - t) * noise)
    assert (seen[1][1] == t).all()
    weights = (1 / t**2, 1 / (1 - t) ** 2) if head.loss_balance == "code" else (1, 1)
    wanted = sum(w * e for w, e in zip(weights, ((0 - shown).square().mean(-1),
                 (0.5 * (shown + (1 - t) * noise) + t - ACTION).square().mean(-1)), strict=True)) * 2 / sum(weights)
    torch.testing.assert_close(loss, wanted)
    plan = head.sample(two_looks([]), EMPTY, torch.zeros(1, 2, 0))
    torch.testing.assert_close(plan, torch.full((1, 2, 2), t))  # f(f(0, 0), t) of this trunk


def test_mip_without_the_second_look_is_regression_with_the_same_network():
    head, net = MIP(two_steps=False, scale_first_target=True), two_looks([])
    assert torch.equal(head.loss(net, EMPTY, ACTION, MASK, rng()), ACTION.square().mean(-1))
    assert not head.sample(net, EMPTY, torch.zeros(1, 2, 0)).any()


# -- neighbors -----------------------------------------------------------------------------------------------------


def remembering(head, seed=0, n=200, linear=False):
    """A memory of n random situations, and 6 new ones."""
    random = np.random.default_rng(seed)
    keys, new = random.normal(size=(n, 5)), random.normal(size=(6, 5))
    known = np.arange(3) < random.integers(1, 4, (n, 1))
    values = np.einsum("nd,dha->nha", keys, random.normal(size=(5, 3, 2))) + 1 if linear else random.normal(
        size=(n, 3, 2))
    net = head.build(MLP(), 2, HeadSpec(3, 1, 5))

    def pairs():
        yield Context(tensor(keys).unsqueeze(1), torch.ones(n, 1).bool()), tensor(values), torch.tensor(known)
    head.fit(net, pairs)
    plan = head.sample(net, Context(tensor(new).unsqueeze(1), torch.ones(6, 1).bool()), torch.zeros(6, 3, 0))
    return keys, values, known, new, plan.numpy()


@pytest.mark.parametrize("head", [Neighbors(), Neighbors(9, sharpness=3.0), Neighbors(9, weights="equal"),
                                  Neighbors(7, block_size=10), Neighbors(500)], ids=named)
def test_neighbours_against_a_plain_loop(head):
    """VINN's a = sum exp(-d) a / sum exp(-d) over the k nearest, where those know the step."""
    keys, values, known, new, plan = remembering(head)
    for query, chunk in zip(new, plan, strict=True):
        d = np.linalg.norm(keys - query, axis=1)
        near = np.argsort(d)[:head.n_neighbors]
        w = np.exp(-head.sharpness * d[near]) if head.weights == "softmax" else np.ones(len(near))
        for h in range(3):
            u = w * known[near, h]
            wanted = (u[:, None] * values[near, h]).sum(0) / u.sum() if u.any() else np.zeros(2)
            np.testing.assert_allclose(chunk[h], wanted, atol=1e-9)


def test_far_away_neighbours_still_speak():
    """Where exp(-d) of all of them is 0 in floating point."""
    head = Neighbors(3, sharpness=1e6)
    keys, values, known, new, plan = remembering(head)
    assert np.isfinite(plan).all()
    nearest = [np.argmin(np.linalg.norm(keys - q, axis=1)) for q in new]
    np.testing.assert_allclose(plan[:, 0], values[nearest, 0])


def test_locally_weighted_regression_is_exact_for_what_is_linear():
    *_, new, plan = remembering(Neighbors(200, local_model="linear", ridge=1e-10), linear=True)
    # Steps known to too few neighbors aside, the plane through all of them is the truth.
    slope = np.random.default_rng(0)
    slope.normal(size=(200, 5)), slope.normal(size=(6, 5)), slope.integers(1, 4, (200, 1))
    truth = np.einsum("nd,dha->nha", new, slope.normal(size=(5, 3, 2))) + 1
    np.testing.assert_allclose(plan, truth, atol=1e-5)
    *_, mean = remembering(Neighbors(200, weights="equal"), linear=True)
    assert np.abs(mean - truth).max() > 0.5  # where the mean is far off


def test_a_heavy_ridge_is_the_mean():
    heavy, mean = (remembering(h)[-1] for h in (Neighbors(9, local_model="linear", ridge=1e9), Neighbors(9)))
    np.testing.assert_allclose(heavy, mean, atol=1e-6)


def test_a_memory_repeats_what_it_saw():
    policy, batch = random_batch(PolicyConfig(Neighbors(1), window=Window(2, 4)))
    torch.testing.assert_close(policy.plan(batch.obs, torch.zeros(5, 4, 0))[batch.mask], batch.action[batch.mask],
                               rtol=1e-4, atol=1e-5)


def test_an_empty_memory_is_said():
    head = Neighbors()
    with pytest.raises(UserError, match="memory is empty"):
        head.sample(head.build(MLP(), 2, HeadSpec(3, 1, 5)), Context(torch.zeros(1, 1, 5), torch.ones(1, 1).bool()),
                    torch.zeros(1, 3, 0))


# -- MCNN -----------------------------------------------------------------------------------------------------------


def tensor(x):
    return torch.as_tensor(x, dtype=torch.float64)


def mcnn_net(head, keys, values, output=0.0):
    """A net whose trunk predicts `output` everywhere. Memories are stored as they are given."""
    return SimpleNamespace(trunk=lambda x, t, context: torch.full((*x.shape[:2], 1), output, dtype=torch.float64),
                           limit=head.limit, keys=tensor(keys).reshape(-1, 1),
                           values=tensor(values).reshape(-1, 1, 1))


def at(*states):
    return Context(tensor(states).reshape(-1, 1, 1), torch.ones(len(states), 1, dtype=torch.bool))


def test_mcnn_mixes_memory_and_clipped_network():
    """a exp(-decay d) + L (1 - exp(-decay d)) clip(f): Sridhar et al. 2024, with the nearest of two memories."""
    head = MCNN(decay=2.0, limit=1.5)
    net, d = mcnn_net(head, [0.0, 10.0], [0.4, -0.8], output=3.0), [0.0, 0.25, 1.0]
    plan = head.sample(net, at(0, 0.25, 9.0, 60.0), torch.zeros(4, 1, 0))[:, 0, 0].tolist()
    w = np.exp(-2 * np.array(d))
    assert plan[0] == 0.4  # exactly
    np.testing.assert_allclose(plan[1:3], [w[1] * 0.4 + 1.5 * (1 - w[1]), w[2] * -0.8 + 1.5 * (1 - w[2])], rtol=1e-12)
    assert plan[3] == pytest.approx(1.5)  # far from all memories: the network, clipped at its limit
    loss = head.loss(net, at(0.25), tensor([[[0.1]]]), torch.ones(1, 1).bool(), rng())
    assert loss.item() == pytest.approx((plan[1] - 0.1) ** 2)


def test_mcnn_stays_near_its_memories_whatever_the_network_says():
    """|a - w a_m| <= L (1 - w), so |a - a_m| <= (|a_m| + L) decay d, and two networks differ by 2 L (1 - w) at most."""
    head, draw = MCNN(decay=3.0), np.random.default_rng(0)
    keys, values, states = draw.uniform(-2, 2, 12), draw.uniform(-1, 1, 12), draw.uniform(-3, 3, 400)
    d = np.abs(states[:, None] - keys).min(1)
    memory, w = values[np.abs(states[:, None] - keys).argmin(1)], np.exp(-3 * d)
    plans = []
    for output in (-1e6, -0.7, 0.2, 1e6):
        net = mcnn_net(head, keys, values, output)
        plan = head.sample(net, at(*states), torch.zeros(400, 1, 0))[:, 0, 0].numpy()
        assert (np.abs(plan - w * memory) <= 1 - w + 1e-12).all()
        assert (np.abs(plan - memory) <= (np.abs(memory) + 1) * 3 * d + 1e-12).all()
        plans.append(plan)
    np.testing.assert_allclose(np.ptp(plans, axis=0), 2 * (1 - w), atol=1e-12)  # the two extremes attain the bound


def test_mcnn_returns_from_outside_the_clip():
    """There the clip has no slope, so that a plain gradient could never change the network again."""
    output = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    net = mcnn_net(head := MCNN(), [0.0], [0.0])
    net.trunk = lambda x, t, context: output.expand(*x.shape[:2], 1)
    head.loss(net, at(5.0), tensor([[[0.5]]]), torch.ones(1, 1).bool(), rng()).sum().backward()
    assert output.grad.item() == pytest.approx(2 * (1 - 0.5))


def test_mcnn_chooses_windows_of_the_data_as_memories():
    head, draw = MCNN(memory_fraction=0.1), np.random.default_rng(0)
    around = np.repeat([-4.0, 0.0, 4.0], 10) + draw.normal(scale=0.1, size=30)
    net = head.build(MLP(8, 1), 1, HeadSpec(2, 1, 1, bound=1.0))
    action = torch.stack([tensor(around) / 10, tensor(around) / 10], 1).unsqueeze(-1)
    mask = torch.tensor([[True, False]]).expand(30, 2)  # chunks that the end of an episode cuts off are filled
    head.fit(net, lambda: iter([(at(*around), action * mask.unsqueeze(-1), mask)]))
    keys = net.keys.flatten().numpy()
    assert sorted(np.round(keys)) == [-4, 0, 4] and set(keys) <= set(around)
    np.testing.assert_allclose(net.values[..., 0].numpy(), keys[:, None].repeat(2, 1) / 10)


def test_mcnn_refuses_what_would_make_memories_meaningless():
    policy, batch = random_batch(PolicyConfig(MCNN(), trunk=MLP(8, 1)))
    with pytest.raises(Unsupported, match="the encoder is trained"):
        policy.loss(batch, rng())
    with pytest.raises(UserError, match="the coded actions are not"):
        MCNN().build(MLP(), 2, HeadSpec(3, 1, 5, bound=float("inf")))
    with pytest.raises(UserError, match="there are no memories"):
        head = MCNN()
        head.sample(head.build(MLP(), 2, HeadSpec(3, 1, 1, bound=1.0)), at(1), torch.zeros(1, 3, 0))


# -- CVAE -----------------------------------------------------------------------------------------------------------


def test_cvae():
    """Mean absolute error plus beta times the divergence, summed over z: Zhao et al. 2023, appendix C."""
    mean, log = torch.tensor([0.5, -1.0]), torch.tensor([-0.3, 0.2])
    seen = []

    def posterior(x, t, context):
        seen.append(x)
        said = torch.cat([mean, log]).expand(*x.shape[:2], -1).clone()
        said[:, 1] = 99.0  # of the padded step
        return said
    net = SimpleNamespace(posterior=posterior, decoder=lambda x, t, c: x, horizon=2)
    head, mask = CVAE(latent_dim=2, beta=10.0), torch.tensor([[True, False]])
    loss = head.loss(net, EMPTY, ACTION, mask, rng(4))
    z = mean + log.exp() * torch.randn(1, 2, generator=rng(4))
    divergence = D.kl_divergence(D.Normal(mean, log.exp()), D.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(loss, (z - ACTION).abs().mean(-1) + 10 * divergence)
    assert seen[0].tolist() == [[[0.5, -1.0, 1.0], [0, 0, 0]]]  # the action and whether it is one
    noise = torch.randn(1, *head.noise(2, 2))
    assert not head.sample(net, EMPTY, noise).any()  # z = 0
    torch.testing.assert_close(CVAE(2, temperature=1.0).sample(net, EMPTY, noise), noise.unsqueeze(1).expand(1, 2, 2))


# -- all of them ----------------------------------------------------------------------------------------------------


# -- two equally good ways -----------------------------------------------------------------------------


@pytest.mark.parametrize("head, modes", [
    (Regression(), 0), (GMM(), 2), (CVAE(latent_dim=2, beta=0.05, temperature=1.0), 2), (Flow(), 2), (Diffusion(), 2),
    (Diffusion(prediction="sample", solver=DPMSolverPP()), 2), (Diffusion(prediction="v", solver=DDPM()), 2)],
    ids=named)
def test_two_ways(head, modes):
    """Chunks that go left or right by a coin: the mean goes neither way, a distribution both, half and half."""
    shape, B = HeadSpec(2, 1, 1), 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = head.build(MLP(64, 1), 1, shape)
    context = Context(torch.zeros(B, 1, 1), torch.ones(B, 1, dtype=torch.bool))
    optimizer, draw, mask = torch.optim.Adam(net.parameters(), 5e-3), rng(1), torch.ones(B, 2, dtype=torch.bool)
    for _ in range(400):
        side = torch.randint(2, (B, 1, 1), generator=draw) * 1.4 - 0.7
        loss = head.loss(net, context, side.expand(B, 2, 1), mask, draw).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        out = head.sample(net, context, torch.randn(B, *head.noise(2, 1), generator=draw)).squeeze(-1)
    if not modes:
        assert (out.abs() < 0.15).all()
        return
    assert ((out.abs() - 0.7).abs() < 0.25).all(1).float().mean() > 0.85  # on one of the ways
    assert (out[:, 0].sign() == out[:, 1].sign()).float().mean() > 0.9  # and keeps to it
    assert 0.3 < (out > 0).float().mean() < 0.7


def test_a_policy_acts_with_another_head_and_a_copy_of_its_weights():
    policy, batch = random_batch(PolicyConfig(Flow(n_steps=4), MLP(16, 1), window=Window(1, 3)))
    one_step = policy.with_head(Flow(n_steps=1))
    noise = torch.randn(len(batch), *policy.noise_shape)
    with torch.no_grad():
        velocity = policy.net(noise, torch.zeros_like(noise[..., :1]), policy.context(batch.obs))
        wanted = policy.decode(noise + velocity, batch.obs)
        for p in policy.parameters():
            p.zero_()
        torch.testing.assert_close(one_step.plan(batch.obs, noise), wanted)
