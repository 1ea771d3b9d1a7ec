"""Heads that turn a chunk into codes or tokens: residual quantization and VQ-BeT, against closed forms."""

import math

import pytest
import torch
from torch import nn

from understudy.core import Context, HeadSpec, UserError
from understudy.heads.base import repeat_into_padding
from understudy.heads.vq_bet import VQBeT
from understudy.nets.mlp import MLP
from understudy.nets.quantization import ResidualVQ


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def contexts(rows):
    return Context(torch.zeros(rows, 1, 1), torch.ones(rows, 1, dtype=torch.bool))


def pairs(action, mask=None):
    mask = torch.ones(action.shape[:2], dtype=torch.bool) if mask is None else mask
    return lambda: iter([(contexts(len(action)), action, mask)])


def built(head, horizon, coded_dim, trunk=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return head.build(trunk or MLP(32, 1), coded_dim, HeadSpec(horizon, 1, 1))


def train(head, net, action, steps=300, lr=3e-3):
    optimizer, draws = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr), rng()
    mask = torch.ones(action.shape[:2], dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(net, contexts(len(action)), action, mask, draws).mean().backward()
        optimizer.step()


class Constant(nn.Module):
    """A network that says the same at each step, whatever it reads."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, context):
        return self.value.expand(*x.shape[:2], -1)


def test_padded_steps_repeat_the_nearest_known_one():
    action = torch.arange(4.0)[None, :, None].expand(4, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    filled = repeat_into_padding(action, mask)[..., 0]
    assert filled.tolist() == [[0, 1, 1, 1], [2, 2, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]]


# -- residual quantization --------------------------------------------------------------------------------------------


def test_each_level_quantizes_what_the_levels_before_left_over():
    vq = ResidualVQ(2, 3, 2)
    vq.codes.copy_(torch.tensor([[[1.0, 0], [0, 1], [-1, 0]], [[0.0, 0.0], [0.1, 0], [0, 0.1]]]))
    x = torch.tensor([[1.12, 0.01], [0.02, 1.09], [-1.0, 0.02]])
    index = vq.encode(x)
    assert index.tolist() == [[0, 1], [1, 2], [2, 0]]
    torch.testing.assert_close(vq.decode(index), torch.tensor([[1.1, 0], [0, 1.1], [-1, 0]]))
    first = (0.12**2 + 0.01**2) / 2 + (0.02**2 + 0.01**2) / 2  # both levels, each a mean over two components
    assert vq.commitment(x, index)[0] == pytest.approx(first, rel=1e-4)


def test_codes_are_moving_averages_of_the_vectors_that_they_stand_for():
    vq = ResidualVQ(1, 2, 1)
    vq.codes.copy_(torch.tensor([[[0.0], [10.0]]]))
    vq.counts.copy_(torch.tensor([[4.0, 2.0]]))
    vq.update(torch.tensor([[1.0], [2.0], [9.0]]), 0.8, rng())
    # counts: 0.8 * 4 + 0.2 * 2 and 0.8 * 2 + 0.2 * 1; sums: 0.8 * 4 * 0 + 0.2 * 3 and 0.8 * 2 * 10 + 0.2 * 9
    torch.testing.assert_close(vq.counts, torch.tensor([[3.6, 1.8]]))
    torch.testing.assert_close(vq.codes, torch.tensor([[[0.6 / 3.6], [17.8 / 1.8]]]))


def test_a_code_without_vectors_is_replaced_with_one_of_the_batch():
    vq, x = ResidualVQ(1, 2, 1), torch.tensor([[1.0], [1.2], [3.0], [3.2]])
    vq.codes.copy_(torch.tensor([[[2.0], [50.0]]]))
    vq.counts.fill_(1.0)
    for seed in range(60):
        vq.update(x, 0.8, rng(seed))
    assert sorted(vq.codes.flatten().tolist()) == pytest.approx([1.1, 3.1], abs=0.01)


# -- VQ-BeT -----------------------------------------------------------------------------------------------------------


def ways(rows=400):
    """Chunks (rows, 6, 2) of four kinds, with amplitudes that differ by chance."""
    kind, time = torch.randint(4, (rows,), generator=rng(1)), torch.linspace(0, 1, 6)
    wave = torch.sin(math.pi * time * (1 + kind // 2).unsqueeze(1)) * (2 * (kind % 2) - 1).unsqueeze(1)
    amplitude = 0.8 + 0.2 * torch.rand(rows, 1, generator=rng(2))
    return torch.stack([amplitude * wave, amplitude * time], 2), kind


SMALL = {"latent_dim": 16, "width": 32, "fit_steps": 300}


def test_the_autoencoder_is_fitted_before_training_and_then_frozen():
    chunks, kind = ways()
    head = VQBeT(n_codes=8, **SMALL)
    net = built(head, 6, 2)
    state = torch.random.get_rng_state()
    head.fit(net, pairs(chunks))
    assert torch.equal(torch.random.get_rng_state(), state)
    index = net.autoencoder.encode(chunks)
    assert (net.autoencoder.decode(index) - chunks).abs().mean() < 0.03  # of values up to 1
    for level in range(2):
        assert len(index[:, level].unique()) > 4
    for code in range(8):  # the coarse codes tell the kinds apart
        assert len(kind[index[:, 0] == code].unique()) <= 1
    before = {k: v.clone() for k, v in net.autoencoder.state_dict().items()}
    train(head, net, chunks, steps=3)
    assert all(torch.equal(v, before[k]) for k, v in net.autoencoder.state_dict().items())


def test_fitting_again_gives_the_same_bits():
    """A run that is killed before its first checkpoint fits again. A checkpoint holds the result."""
    chunks, _ = ways(100)
    head = VQBeT(n_codes=4, **{**SMALL, "fit_steps": 40})
    net, other = built(head, 6, 2), built(head, 6, 2)
    head.fit(net, pairs(chunks))
    for p in other.autoencoder.parameters():
        p.data.fill_(3.0)  # what was there before does not matter
    with torch.random.fork_rng():
        torch.manual_seed(7)
        head.fit(other, pairs(chunks))
    assert all(torch.equal(v, other.autoencoder.state_dict()[k]) for k, v in net.autoencoder.state_dict().items())


def known_net(head):
    """A network of two steps, one component and codes whose chunks are +-1 (level 1) plus +-0.1 (level 2)."""
    net = built(head, 2, 1)
    net.autoencoder.encoder, net.autoencoder.decoder = nn.Identity(), nn.Identity()
    net.autoencoder.quantizer = ResidualVQ(2, 2, 2)
    net.autoencoder.quantizer.codes.copy_(torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[0.1, 0.1], [-0.1, -0.1]]]))
    return net


# for each level and code: the logit and the offset
OUT = torch.tensor([[[0.3, 0.01], [-0.2, 0.02]], [[1.0, 0.03], [0.5, 0.04]]])
# the plan of each pair of codes: +-1 +-0.1 and both offsets
PLANS = torch.tensor([[1.1 + 0.04, 0.9 + 0.05], [-0.9 + 0.05, -1.1 + 0.06]])
RATES = OUT[0, :, 0].softmax(0)[:, None] * OUT[1, :, 0].softmax(0)


@pytest.mark.parametrize("mask, target", [([True, True], [0.9, 0.92]), ([True, False], [0.9, 0.0])])
def test_the_loss_is_focal_and_the_offsets_are_those_of_the_codes(mask, target):
    head = VQBeT(2, 2, gamma=2.0, offset_weight=7.0, offset_codes="encoded", latent_dim=2)
    net, mask = known_net(head), torch.tensor([mask])
    net.trunk = Constant(OUT.flatten())
    # both chunks have the codes 0 and 1: 1 - 0.1 = 0.9
    p1, p2 = OUT[0, :, 0].softmax(0)[0], OUT[1, :, 0].softmax(0)[1]
    codes = -5 * (1 - p1) ** 2 * p1.log() - 0.5 * (1 - p2) ** 2 * p2.log()
    plan = 0.9 + 0.01 + 0.04
    action = torch.tensor(target)[None, :, None]
    loss = head.loss(net, contexts(1), action, mask, rng())
    expected = codes + 7 * (plan - action[..., 0]).abs()
    torch.testing.assert_close(loss[mask], expected[mask])


def test_offsets_are_trained_for_the_codes_that_are_drawn():
    head = VQBeT(2, 2, offset_weight=1.0, first_code_weight=0.0, other_code_weight=0.0, latent_dim=2)
    net = known_net(head)
    net.trunk = Constant(OUT.flatten())
    action = torch.full((4000, 2, 1), 0.9)
    loss = head.loss(net, contexts(4000), action, torch.ones(4000, 2, dtype=torch.bool), rng())[:, 0]
    assert loss.mean() == pytest.approx(float(((PLANS - 0.9).abs() * RATES).sum()), abs=0.05)
    assert len(loss.unique()) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_codes_are_drawn_as_often_as_the_softmax_says(temperature):
    head = VQBeT(2, 2, latent_dim=2, temperature=temperature)
    net = known_net(head)
    net.trunk = Constant(OUT.flatten())
    plans = head.sample(net, contexts(20_000), torch.randn(20_000, *head.noise(2, 1), generator=rng()))[..., 0]
    assert torch.equal(plans[:, 0], plans[:, 1])  # codes belong to the whole chunk
    rates = torch.stack([((plans[:, 0] - v).abs() < 1e-4).float().mean() for v in PLANS.flatten()]).reshape(2, 2)
    expected = RATES if temperature else torch.tensor([[1.0, 0], [0, 0]])
    torch.testing.assert_close(rates, expected, atol=0.015, rtol=0)


def test_vq_bet_goes_both_ways_if_offsets_are_trained_for_the_encoded_chunk():
    """Offsets of drawn codes are medians over all ways: a code of the rarer way is corrected to the other one."""
    way = torch.tensor([1.0, 1.0, 1.0, -1.0]).repeat(16)[:, None, None].expand(64, 3, 1).contiguous()
    for offset_codes, rate in (("encoded", 0.25), ("sampled", 0.0)):
        head = VQBeT(2, 1, gamma=0.0, offset_codes=offset_codes, latent_dim=8, width=16, fit_steps=100)
        net = built(head, 3, 1)
        head.fit(net, pairs(way))
        train(head, net, way, steps=150, lr=1e-2)
        plans = head.sample(net, contexts(400), torch.randn(400, *head.noise(3, 1), generator=rng()))[..., 0]
        assert (plans.abs() - 1).abs().max() < 0.15 and (plans.sign() == plans[:, :1].sign()).all()
        assert (plans[:, 0] < 0).float().mean() == pytest.approx(rate, abs=0.12)


def test_vq_bet_needs_two_codes():
    with pytest.raises(UserError, match="at least two codes"):
        VQBeT(n_codes=1)
