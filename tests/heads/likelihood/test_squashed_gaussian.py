"""The squashed Gaussian, and what policies with a density sample and say of it."""

import math

import numpy as np
import pytest
import torch
from fixtures.heads import CHOICE, EMPTY, constant, rng
from torch import distributions as D

from understudy.core import Context, HeadSpec, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.correction import Correction
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import random_batch

MEAN, LOG_STD, BOUND = torch.tensor([0.3, -0.8]), torch.tensor([-0.5, 0.4]), 1.5


def squashing_net(values, log_std=None):
    """A network that says the same to everyone, with the range BOUND."""
    net = torch.nn.Module()
    net.trunk, net.bound, net.log_std = constant(*values), BOUND, log_std
    return net


NETS = {"state": squashing_net((*MEAN.tolist(), *LOG_STD.tolist())), "free": squashing_net(MEAN.tolist(), LOG_STD)}


def truth() -> D.TransformedDistribution:
    squash = [D.TanhTransform(cache_size=1), D.AffineTransform(0.0, BOUND, cache_size=1)]
    return D.TransformedDistribution(D.Normal(MEAN, LOG_STD.exp()), squash)


@pytest.mark.parametrize("kind", NETS)
def test_its_density_is_that_of_torch(kind):
    action = truth().sample((5, 2))
    head, mask = SquashedGaussian(kind), torch.ones(5, 2, dtype=torch.bool)
    expected = truth().log_prob(action).sum(-1)
    torch.testing.assert_close(-head.loss(NETS[kind], EMPTY, action, mask, rng()), expected)
    torch.testing.assert_close(head.log_prob(NETS[kind], EMPTY, action), expected.sum(1))


@pytest.mark.parametrize("kind", NETS)
def test_its_density_integrates_to_one(kind):
    edges = BOUND * torch.linspace(-6, 6, 501).tanh()  # much of it is near the border
    middle, cells = (edges[1:] + edges[:-1]) / 2, torch.cartesian_prod(edges.diff(), edges.diff()).prod(1)
    grid = torch.cartesian_prod(middle, middle).unsqueeze(1)
    density = SquashedGaussian(kind).log_prob(NETS[kind], EMPTY, grid).exp()
    assert float((density * cells).sum()) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", NETS)
def test_samples_have_that_density(kind):
    noise, head = torch.randn(5, 2, 2, generator=rng()), SquashedGaussian(kind, temperature=1.0)
    action, log_prob = head.sample_log_prob(NETS[kind], EMPTY, noise)
    torch.testing.assert_close(action, BOUND * (MEAN + LOG_STD.exp() * noise).tanh())
    torch.testing.assert_close(action, head.sample(NETS[kind], EMPTY, noise))
    torch.testing.assert_close(log_prob, truth().log_prob(action).sum(-1), rtol=1e-4, atol=1e-4)
    planned = SquashedGaussian(kind).sample(NETS[kind], EMPTY, noise)
    torch.testing.assert_close(planned, (BOUND * MEAN.tanh()).expand(5, 2, 2))


def test_densities_far_out_and_at_the_border_are_finite():
    """Where the inverse of tanh has no digits left, samples still have their density, and its gradient."""
    mean = torch.tensor([12.0, 0.0], requires_grad=True)
    net = squashing_net(())
    net.trunk = lambda x, t, context: mean.expand(*x.shape[:2], -1)
    action, log_prob = SquashedGaussian().sample_log_prob(net, EMPTY, torch.zeros(1, 1, 1))
    expected = -0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 12 - math.log1p(math.exp(-24))) - math.log(BOUND)
    assert float(log_prob.detach()) == pytest.approx(expected, rel=1e-6) and float(action.detach()) == BOUND
    log_prob.sum().backward()
    assert mean.grad[0] == pytest.approx(2, rel=1e-6)
    border = torch.full((1, 1, 2), BOUND)
    loss = SquashedGaussian().loss(NETS["state"], EMPTY, border, torch.ones(1, 1, dtype=torch.bool), rng())
    assert bool(loss.isfinite().all())


@pytest.mark.parametrize("spec", [HeadSpec(1, 1, 4), HeadSpec(1, 1, 4, bound=math.inf), HeadSpec(1, 1, 4, (3,), 1.0)])
def test_actions_without_a_range_are_refused(spec):
    with pytest.raises(Unsupported, match="squashed into a range"):
        SquashedGaussian().build(MLP(8, 1), 3, spec)


# -- policies ------------------------------------------------------------------------------------------------------


def policy_with(head, horizon=8, **fields):
    return random_batch(PolicyConfig(head, MLP(16, 1), window=Window(2, horizon), **fields),
                        target=CHOICE if isinstance(head, Categorical) else None)


@pytest.mark.parametrize("head", [SquashedGaussian(), Gaussian(), Gaussian(std=0.3), Correction(0.3), GMM(),
                                  Categorical()])
def test_padded_steps_do_not_count(head):
    policy, batch = policy_with(head)
    assert not batch.mask.all()
    context, coded = policy.context(batch.obs), policy.encode_batch(batch)
    log_prob = policy.log_prob(context, coded, batch.mask)
    spoiled = torch.where(batch.mask.unsqueeze(-1), coded, 0.5)
    assert torch.equal(policy.log_prob(context, spoiled, batch.mask), log_prob)
    assert not log_prob[~batch.mask].any() and log_prob[batch.mask].all()
    torch.testing.assert_close(-log_prob, policy.loss(batch, rng()) * batch.mask)
    complete = batch.mask.all(1)
    torch.testing.assert_close(log_prob[complete].sum(1), head.log_prob(policy.net, context, coded)[complete])


@pytest.mark.parametrize("head", [SquashedGaussian(), Gaussian(), Gaussian(std=0.3), Correction(0.3),
                                  GMM(joint=False), Categorical(), Categorical(autoregressive=True, width=8)])
def test_entropy_is_the_mean_negative_log_density_of_samples(head):
    policy, batch = policy_with(head, 1)
    one = {k: v[:1].expand(20_000, *v.shape[1:]) for k, v in batch.obs.items()}
    with torch.no_grad():
        context = policy.context(one)
        coded, log_prob = policy.sample_log_prob(context, rng(1))
        entropy = policy.entropy(context, rng(2))
        again = policy.log_prob(context, coded, torch.ones_like(log_prob, dtype=torch.bool))
    torch.testing.assert_close(again, log_prob, rtol=1e-3, atol=1e-3)
    spread = float(log_prob.std()) / math.sqrt(len(log_prob))
    assert abs(float(entropy.mean() + log_prob.mean())) < 6 * spread + 1e-4
    is_closed = type(head).entropy not in (GMM.entropy, SquashedGaussian.entropy) and not getattr(
        head, "autoregressive", False)
    assert bool((entropy == entropy[0]).all()) == is_closed


def test_entropies_in_closed_form():
    noise = torch.zeros(1, 1, 2)
    expected = D.Normal(0.0, torch.tensor([0.7, 0.7])).entropy().sum()
    torch.testing.assert_close(Gaussian(std=0.7).entropy(constant(0.0, 1.0), EMPTY, noise)[0, 0], expected)
    policy, batch = policy_with(Categorical(), 1)
    logits = policy.net.trunk(batch.action[..., :0], batch.action[..., :0], policy.context(batch.obs))
    expected = sum(D.Categorical(logits=part).entropy() for part in logits.split((3, 4), -1))
    torch.testing.assert_close(policy.entropy(policy.context(batch.obs), rng()), expected)


def test_the_temperature_of_samples():
    policy, batch = policy_with(SquashedGaussian(), 2)
    context = policy.context(batch.obs)
    planned, cold = policy.sample(context, rng()), policy.sample(context, rng(), temperature=0.0)
    hot = policy.sample(context, rng(), temperature=1.0)
    assert torch.equal(planned, cold) and not torch.allclose(hot, cold)
    assert torch.equal(hot, policy.sample_log_prob(context, rng())[0]) and hot.requires_grad
    assert float(hot.detach().abs().max()) <= 1 + 1e-6


def test_policies_without_density_or_temperature_say_so():
    policy, batch = policy_with(Regression(), 1)
    context = policy.context(batch.obs)
    with pytest.raises(Unsupported, match="Regression has no temperature"):
        policy.sample(context, rng(), 1.0)
    for call in (lambda: policy.log_prob(context, batch.action, batch.mask), lambda: policy.entropy(context, rng()),
                 lambda: policy.sample_log_prob(context, rng())):
        with pytest.raises(Unsupported, match=r"Regression has no density\n.*SquashedGaussian"):
            call()
    with pytest.raises(Unsupported, match="squashed into a range"):
        policy_with(SquashedGaussian(), codec=Normalizer(target="zscore"))


def test_cloning_with_it_finds_the_distribution():
    """Maximum likelihood on samples of a known density gives its mean and standard deviation back."""
    generator = np.random.default_rng(0)
    u = torch.from_numpy(generator.normal(0.4, 0.5, (2000, 1, 1))).float()
    net = SquashedGaussian("free").build(MLP(8, 1), 1, HeadSpec(1, 1, 1, bound=1.0))
    context = Context(torch.zeros(2000, 1, 1), torch.ones(2000, 1, dtype=torch.bool))
    optimizer, mask = torch.optim.Adam(net.parameters(), 0.02), torch.ones(2000, 1, dtype=torch.bool)
    for _ in range(150):
        optimizer.zero_grad()
        SquashedGaussian("free").loss(net, context, u.tanh(), mask, rng()).mean().backward()
        optimizer.step()
    assert float(net.log_std.detach().exp()) == pytest.approx(float(u.std()), abs=0.02)
