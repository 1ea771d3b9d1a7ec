"""Every head with every trunk, and on a task with two equally good ways."""


import pytest
import torch
from fixtures.heads import CHOICE, FROZEN, HEADS, STEPWISE, TOKENS, named, rng

from understudy.core import Context, HeadSpec, Unsupported, UserError
from understudy.data.window import Window
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.denoising.joint_diffusion import JointDiffusion
from understudy.heads.denoising.streaming_flow import StreamingFlow
from understudy.heads.energy.energy import AutoregressiveEnergy, EnergyModel
from understudy.heads.likelihood.bins import Bins
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.normalizing_flow import NormalizingFlow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.heads.memory.neighbors import Neighbors
from understudy.heads.one_step.mean_flow import MeanFlow
from understudy.heads.one_step.mip import MIP
from understudy.heads.one_step.shortcut import Shortcut
from understudy.heads.solvers import DDPM, DPMSolverPP
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.heads.tokens.fast import FAST
from understudy.heads.tokens.vq_bet import VQBeT
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import PolicyConfig
from understudy.testing import check_head, random_batch

TRUNKS = (MLP(32, 1), UNet((8, 16), groups=4, time_width=16), Transformer(16, 1, 2))
TWO_TIMES = (Shortcut, MeanFlow, JointDiffusion)  # the U-Net reads one time


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
    (SquashedGaussian(), True), (SquashedGaussian(temperature=1.0), False),
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
        expected = policy.decode(noise + velocity, batch.obs)
        for p in policy.parameters():
            p.zero_()
        torch.testing.assert_close(one_step.plan(batch.obs, noise), expected)
