"""Guides: entries of a chunk that are given, and the contract of guides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from understudy.core import Feature, Unsupported
from understudy.data.augment import ConditionDropout
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.execute.planners import FixedBatch
from understudy.heads.base import PrefixTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.solvers import Heun
from understudy.nets.mlp import MLP
from understudy.policy import Clamp, ClassifierFreeGuidance, Inpaint, NetworkGuidance, PolicyConfig
from understudy.testing import STATE, ContractViolation, check_guide, random_batch

MEAN, COVARIANCE = torch.tensor([0.2, -0.1]), torch.tensor([[0.5, 0.3], [0.3, 0.4]])


class IdealVelocity(nn.Module):
    """The velocity of a perfect network for chunks of two steps, which are Gaussian, at any time of each step."""

    def forward(self, x, t, context):
        times = torch.diag_embed(t.squeeze(-1))
        complement = torch.eye(2) - times
        precision = torch.linalg.inv(times @ COVARIANCE @ times + complement @ complement)
        error = precision @ (x.squeeze(-1) - t.squeeze(-1) * MEAN).unsqueeze(-1)
        return MEAN.unsqueeze(-1) + COVARIANCE @ times @ error - complement @ error


def config(head, horizon=4, **parts):
    return PolicyConfig(head, MLP(16, 1), window=Window(2, horizon), inputs=(STATE,), **parts)


@pytest.mark.parametrize("head", [Flow(300, times="each"), Flow(60, Heun(), times=PrefixTimes(1))],
                         ids=["Euler", "Heun"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_perfect_network_completes_given_steps_as_the_conditional_distribution(head, at):
    """Of a Gaussian, the conditional distribution has a mean and a standard deviation in closed form."""
    policy, batch = random_batch(config(head, 2), target=Feature("float32", (1,)))
    policy.net, other = IdealVelocity(), 1 - at
    obs, n = batch.obs, len(batch)
    coded = torch.linspace(-1, 1, n).reshape(n, 1, 1).expand(-1, 2, 1)
    noise = torch.randn(n, 2, 1, generator=torch.Generator().manual_seed(0))
    guide = Clamp(policy.decode(coded, obs), (torch.arange(2) == at).reshape(1, 2, 1).expand(n, -1, 1))
    plan = policy.encode(policy.plan(obs, noise, (guide,)), obs).squeeze(-1)
    assert torch.allclose(plan[:, at], coded[:, 0, 0], atol=1e-6)
    slope = COVARIANCE[other, at] / COVARIANCE[at, at]
    mean = MEAN[other] + slope * (coded[:, 0, 0] - MEAN[at])
    std = (COVARIANCE[other, other] - slope * COVARIANCE[at, other]).sqrt()
    assert torch.allclose(plan[:, other], mean + std * noise[:, other, 0], atol=1e-2)
    free = policy.encode(policy.plan(obs, noise), obs).squeeze(-1)
    assert (free[:, other] - plan[:, other]).abs().max() > 0.1


class Recorder(nn.Module):
    """Stores what the network reads."""

    def __init__(self):
        super().__init__()
        self.read: list[tuple[Tensor, Tensor]] = []

    def forward(self, x, t, context):
        self.read.append((x, t.expand(*x.shape[:2], 1)))
        return torch.tanh(x) + 1


@pytest.mark.parametrize("head", [Flow(6), Diffusion(n_steps=6, clip_sample=0), Flow(6, times="each")], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_every_denoising_step_reads_what_is_given(head, whole):
    """Also single components. A head whose steps share a time keeps it: so plans Decision Diffuser."""
    policy, batch = random_batch(config(head))
    policy.net = recorder = Recorder()
    obs, n = batch.obs, len(batch)
    is_given = torch.zeros(n, 4, 2, dtype=torch.bool)
    is_given[:, 0] = True
    if not whole:
        is_given[:, 2, 1] = True
    action = torch.randn(n, 4, 2, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(n, *policy.noise_shape, generator=torch.Generator().manual_seed(2))
    guide = Clamp(action, is_given[..., :1] if whole else is_given)
    plan, coded = policy.plan(obs, noise, (guide,)), policy.encode(action, obs)
    assert torch.allclose(plan[is_given], action[is_given], atol=1e-5)
    assert len(recorder.read) == 6
    for x, t in recorder.read:
        assert torch.equal(x[is_given], coded[is_given])
        assert (t[:, 0] == 1).all() if head.times == "each" else torch.equal(t[:, 0], t[:, 1])
    assert torch.equal(recorder.read[0][0][~is_given], noise[~is_given])
    assert recorder.read[0][1][:, 1].max() < 1
    elsewhere = torch.where(is_given, action, 1e6)
    assert torch.equal(policy.plan(obs, noise, (replace(guide, action=elsewhere),)),
                       plan)  # what is not given is not read
    assert torch.allclose(FixedBatch(policy, 2).plan(obs, noise, (guide,)), plan, atol=1e-5)


def test_other_guides_compute_their_cost_with_what_is_given():
    policy, batch = random_batch(config(Flow(4)))
    obs, n, estimates = batch.obs, len(batch), []

    class Watcher(Inpaint):
        def cost(self, coded_action, encode, decode):
            estimates.append(decode(coded_action).detach())
            return super().cost(coded_action, encode, decode)

    action, is_given = torch.randn(n, 4, 2), torch.zeros(n, 4, 1, dtype=torch.bool)
    is_given[:, :2] = True
    policy.plan(obs, torch.randn(n, 4, 2), (Clamp(action, is_given), Watcher(action + 1, torch.ones(n, 4))))
    assert len(estimates) == 4
    assert all(torch.allclose(x[:, :2], action[:, :2], atol=1e-5) for x in estimates)


def test_clamps_of_some_components():
    action, is_given = torch.randn(3, 4, 4), torch.rand(3, 4, 4) < 0.5
    part = Clamp(action, is_given).select_components(slice(1, 3))
    assert torch.equal(part.action, action[..., 1:3]) and torch.equal(part.is_given, is_given[..., 1:3])
    whole = Clamp(action, is_given[..., :1]).select_components(slice(1, 3))
    assert torch.equal(whole.is_given, is_given[..., :1])


def test_a_head_whose_network_reads_scaled_actions_refuses_clamps():
    policy, batch = random_batch(config(EDM(4)))
    guide = Clamp(batch.action, torch.ones(len(batch), 4, 1, dtype=torch.bool))
    with pytest.raises(Unsupported, match="EDM reads noisy actions divided by their scale"):
        policy.plan(batch.obs, torch.randn(len(batch), 4, 2), (guide,))
    with pytest.raises(Unsupported, match="the codec turns them into 2 others"):
        replace(guide, is_given=guide.is_given.expand(-1, -1, 3)).fixed(batch.action, lambda x: x)


# -- the contract -----------------------------------------------------------------------------------------------------


def first_step(policy, batch):
    is_given = torch.zeros(len(batch), policy.window.horizon, 1, dtype=torch.bool)
    is_given[:, 0] = True
    return Clamp(batch.action + 1, is_given)


@dataclass(frozen=True)
class Odd(NetworkGuidance):
    about: str
    shift: Tensor

    def select_rows(self, rows):
        return self if self.about == "keeps all rows" else replace(self, shift=self.shift[rows])

    def guided_net(self, net, without, encode):
        def wrapped(x, t, context):
            shift = self.shift[:len(x)]
            if self.about == "draws":
                return net(x, t, context) + torch.randn(())
            if self.about == "mixes rows":
                return net(x, t, context) + shift.mean(0)
            if self.about == "divides":
                return net(x, t, context) / 0
            return net(x, t, context) + (0 if self.about == "idle" else shift)
        return wrapped


def odd(about):
    return lambda policy, batch: Odd(about, torch.arange(1.0, len(batch) + 1).reshape(-1, 1, 1))


@pytest.mark.parametrize("guide, parts", [
    (first_step, {}), (odd(""), {}),
    (lambda policy, batch: Inpaint(batch.action + 1, torch.ones(len(batch), 4)), {}),
    (ClassifierFreeGuidance((STATE,), 3.0), {"augmentations": (ConditionDropout(STATE),)})],
    ids=["clamp", "shift", "inpaint", "free"])
@pytest.mark.parametrize("head", [Flow(3), Diffusion(n_steps=3)], ids=["flow", "diffusion"])
def test_guides_keep_their_contract(guide, parts, head):
    check_guide(guide, config(head, codec=Normalizer(), **parts))


@pytest.mark.parametrize("about, said", [
    ("idle", "Odd changes no plan"), ("draws", "same arguments must give the same guided plan"),
    ("mixes rows", "must not depend on the other rows"), ("keeps all rows", "select_rows must select from each"),
    ("divides", "a guided plan must be finite")])
def test_guides_that_break_a_promise(about, said):
    with pytest.raises(ContractViolation, match=said):
        check_guide(odd(about), config(Flow(3)))
