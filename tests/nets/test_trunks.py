"""Every trunk with every encoder: shapes, invariances, precision and export."""

import copy
import json
import math
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fixtures.networks import ENCODERS, TRUNKS, arguments, built, observed, rng, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from understudy import config
from understudy.core import Context, HeadSpec, Unsupported
from understudy.heads.base import check_trunk_times
from understudy.nets.base import CachesContext, SharedTimeTrunk, precomputed, time_embedding, with_time_embedding
from understudy.nets.feed_forward import FeedForward
from understudy.nets.fourier import FourierFeatures
from understudy.nets.linear import Linear
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet

PRIMING = [name for name in TRUNKS if name not in ("plain", "mixer", "lstm")]  # those that cache the context's part


# -- every trunk ----------------------------------------------------------------------------------------------------


@cache
def encoded(encoder):
    spec, features = ENCODERS[encoder]
    enc = seeded(lambda: spec.build(features, 2))
    return enc, enc(observed(features), rng())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_weight_of_an_encoder_learns(encoder):
    enc, context = encoded(encoder)
    assert context.tokens.shape == (5, enc.tokens, enc.width) and context.mask.shape == (5, enc.tokens)
    assert context.mask.dtype == torch.bool
    loss = (context.tokens * context.mask.unsqueeze(-1)).square().sum()
    if weights := {n: p for n, p in enc.named_parameters() if p.requires_grad}:
        gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
        dead = [n for n, g in zip(weights, gradients, strict=True) if g is None or not g.any()]
        assert not dead, dead


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_trunk_reads_every_encoder_and_every_weight_learns(trunk, encoder):
    """A gradient of each token that is there is one of the encoder's weights too."""
    enc, context = encoded(encoder)
    net, tokens = built(TRUNKS[trunk], 5, 2, 3, 1, enc.tokens, enc.width), context.tokens.detach().requires_grad_()
    x, t, _ = arguments(5, 5, 2, 1)
    out = net(x, t, replace(context, tokens=tokens))
    assert out.shape == (5, 5, 3) and out.isfinite().all()
    out.square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead, dead
    assert torch.equal(tokens.grad.any(-1), context.mask)


@pytest.mark.parametrize("times", [0, 1])
@pytest.mark.parametrize("inputs", [0, 3])
@pytest.mark.parametrize("horizon", [1, 2, 7, 16])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_any_horizon_with_and_without_input_and_time(trunk, horizon, inputs, times):
    net = built(TRUNKS[trunk], horizon, inputs, 5, times)
    x, t, context = arguments(4, horizon, inputs, times)
    out = net(x, t, context)
    assert out.shape == (4, horizon, 5) and out.isfinite().all()
    out.square().sum().backward()
    dead = [n for n, p in net.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]
    assert not dead, dead
    if inputs == times == 0 and horizon > 1:  # a head that feeds nothing can still tell the steps apart
        assert not torch.allclose(out[:, 0], out[:, 1])


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_context_without_tokens(trunk):
    net = built(TRUNKS[trunk], tokens=0)
    x, t, _ = arguments()
    assert net(x, t, Context(torch.zeros(5, 0, 7), torch.zeros(5, 0, dtype=torch.bool))).isfinite().all()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_bf16_agrees_with_fp32(trunk, grad):
    net, (x, t, context) = built(TRUNKS[trunk]), arguments(shared=True)
    with torch.set_grad_enabled(grad):
        want = net(x, t, context)
        with torch.autocast("cpu", torch.bfloat16):
            got = net(x, t, context)
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("grad", [True, False])
def test_a_recurrent_encoder_in_bf16_agrees_with_fp32(grad):
    spec, features = ENCODERS["recurrent_flat"]
    net, obs = seeded(lambda: spec.build(features, 2)), observed(features)
    with torch.set_grad_enabled(grad):
        want = net(obs).tokens
        with torch.autocast("cpu", torch.bfloat16):
            got = net(obs).tokens
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.05)


def test_the_plain_network_is_its_layers_and_nothing_else():
    net = FeedForward((3,), "relu").build(0, 2, 0, HeadSpec(1, 1, 2)).double()
    (into, _, out), inputs = net.layers, torch.randn(5, 1, 2, generator=rng(), dtype=torch.double)
    hidden = (inputs[:, 0] @ into.weight.T + into.bias).clamp(min=0)
    context = Context(inputs, torch.ones(5, 1, dtype=torch.bool))
    output = net(torch.zeros(5, 1, 0).double(), torch.zeros(5, 1, 0).double(), context)
    torch.testing.assert_close(output[:, 0], hidden @ out.weight.T + out.bias)


@pytest.mark.parametrize("trunk", PRIMING)
def test_all_times_told_in_one_batch_say_the_same(trunk):
    net = built(TRUNKS[trunk]).double()
    x, _, context = arguments()
    x, context = x.double(), Context(context.tokens.double(), context.mask)
    times = torch.tensor([[0.0], [0.25], [0.9]], dtype=torch.double)
    for time, embedding in zip(times, time_embedding(net, times), strict=True):
        plain = net(x, time.expand(*x.shape[:2], 1), context)
        unread = torch.full((*x.shape[:2], 1), 0.5, dtype=torch.double)
        for once in (context, precomputed(net, context)):
            torch.testing.assert_close(
                net(x, unread, with_time_embedding(net, once, embedding)), plain, rtol=1e-10, atol=1e-12
            )
    plain = with_time_embedding(lambda *a: net(*a), context, time_embedding(lambda *a: net(*a), times)[0])
    assert plain is context, "guides may wrap a network into a function"


@pytest.mark.parametrize("trunk", PRIMING)
def test_primed_says_the_same(trunk):
    net = built(TRUNKS[trunk])
    x, t, context = arguments()
    assert isinstance(net, CachesContext)
    once = precomputed(net, context)
    assert isinstance(once, Context) and torch.equal(once.flat(), context.flat())
    for seed in range(3):
        x, t, _ = arguments(seed=seed)
        assert torch.equal(net(x, t, once), net(x, t, context))
    assert precomputed(net, once) is once
    assert torch.equal(net(*(a.repeat_interleave(2, 0) for a in (x, t)), once.repeat(2)),
                       net(*(a.repeat_interleave(2, 0) for a in (x, t)), context.repeat(2)))
    assert precomputed(lambda *a: net(*a), context) is context, "guides may wrap a network into a function"


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_row_knows_nothing_of_the_others(trunk):
    net = built(TRUNKS[trunk])
    x, t, c = arguments()
    out = net(x, t, c)
    one = net(x[2:3], t[2:3], Context(c.tokens[2:3], c.mask[2:3]))
    torch.testing.assert_close(one[0], out[2], rtol=1e-5, atol=1e-6)
    x2, t2, c2 = arguments(seed=1)
    keep = torch.arange(5) == 2

    def both(a, b):
        return torch.where(keep.view(-1, *(1,) * (a.ndim - 1)), a, b)
    mixed = net(both(x, x2), both(t, t2), Context(both(c.tokens, c2.tokens), both(c.mask, c2.mask)))
    assert torch.equal(mixed[2], out[2]) and not torch.allclose(mixed[1], out[1])


@settings(max_examples=20, deadline=None)
@given(trunk=st.sampled_from(sorted(TRUNKS)), seed=st.integers(0, 99), scale=st.floats(0, 1e4),
       everything=st.booleans())
def test_a_masked_token_is_as_if_absent(trunk, seed, scale, everything):
    net = built(TRUNKS[trunk])
    x, t, c = arguments(seed=seed)
    mask = c.mask & (not everything)
    other = torch.where(mask.unsqueeze(-1), c.tokens, scale * torch.randn(c.tokens.shape, generator=rng(seed)))
    out = net(x, t, Context(c.tokens, mask))
    assert out.isfinite().all() and torch.equal(net(x, t, Context(other, mask)), out)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_what_is_there_is_read(trunk):
    net = built(TRUNKS[trunk])
    x, t, c = arguments(masked=0)
    out = net(x, t, c)
    assert not torch.allclose(net(x + 1, t, c), out)
    assert not torch.allclose(net(x, (t + 0.3) % 1, c), out)
    for token in range(4):  # each token, and its place: two that swap are not the same
        one = c.tokens.clone()
        one[:, token] += 1
        assert not torch.allclose(net(x, t, Context(one, c.mask)), out)
        mask = c.mask.clone()
        mask[:, token] = False
        assert not torch.allclose(net(x, t, Context(c.tokens, mask)), out)
    assert not torch.allclose(net(x, t, Context(c.tokens.flip(1), c.mask)), out, atol=1e-4)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_times_are_per_step_except_where_the_trunk_says_so(trunk):
    net = built(TRUNKS[trunk])
    x, t, c = arguments(shared=True)
    later = t.clone()
    later[:, 3] += 0.2
    if isinstance(TRUNKS[trunk], SharedTimeTrunk):
        assert torch.equal(net(x, later, c), net(x, t, c))
        with pytest.raises(Unsupported, match="one time per chunk"):
            check_trunk_times(TRUNKS[trunk], "each", 6)
        with pytest.raises(Unsupported, match="at most one"):
            built(TRUNKS[trunk], times=2)
    else:
        assert not torch.allclose(net(x, later, c), net(x, t, c))
        two = built(TRUNKS[trunk], times=2)
        a, b = torch.rand(2, 5, 6, 1, generator=rng())
        assert not torch.allclose(two(x, torch.cat([a, b], -1), c), two(x, torch.cat([b, a], -1), c))


@pytest.mark.parametrize("trunk", ["causal", "joint_causal", "block_causal", "lstm", "in_context", "cross", "joint",
                                   "in_context_both_ways"])
def test_a_causal_trunk_sees_no_later_step(trunk):
    net = built(TRUNKS[trunk])
    x, t, c = arguments()
    x2, t2 = x.clone(), t.clone()
    x2[:, 3:], t2[:, 3:] = 9, 0.123
    a, b = net(x, t, c), net(x2, t2, c)
    assert torch.allclose(a[:, :3], b[:, :3], atol=1e-6) == (
        trunk not in ("cross", "joint", "in_context_both_ways"))
    assert not torch.allclose(a[:, 3:], b[:, 3:])


def test_a_context_as_input_of_a_u_net_is_concatenated_to_every_step_and_modulates_nothing():
    net = built(UNet((16, 32), 3, 4, 8, condition="input"))
    x, t, c = arguments(shared=True)
    plain = UNet((16, 32), 3, 4, 8).build(3 + 4 * 7, 5, 1, HeadSpec(6, 0, 7)).eval()
    plain.load_state_dict(net.state_dict())
    nothing = Context(torch.zeros(5, 0, 7), torch.zeros(5, 0, dtype=torch.bool))
    joined = torch.cat([x, c.flat()[:, None].expand(-1, 6, -1)], -1)
    torch.testing.assert_close(net(x, t, c), plain(joined, t, nothing))


def test_a_linear_layer_without_inputs_is_its_bias_and_is_built_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = Linear(0, 3)
    layer.bias.data += 2
    assert layer(torch.zeros(4, 0)).tolist() == [[2.0] * 3] * 4


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_trunk_is_data_and_its_net_can_be_copied(trunk):
    assert config.load(json.loads(json.dumps(config.dump(TRUNKS[trunk])))) == TRUNKS[trunk]
    net = built(TRUNKS[trunk])
    other = copy.deepcopy(built(TRUNKS[trunk], seed=1))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(*arguments()), net(*arguments()))


def test_networks_follow_their_inputs_to_another_device():
    """The meta device computes nothing, but refuses tensors of two devices in one operation."""
    for trunk in TRUNKS.values():
        net = built(trunk).to("meta")
        x, t, c = arguments()
        context = precomputed(net, Context(c.tokens.to("meta"), c.mask.to("meta")))
        assert net(x.to("meta"), t.to("meta"), context).device.type == "meta"
    for spec, features in ENCODERS.values():
        net = spec.build(features, 2).to("meta")
        assert net({k: v.to("meta") for k, v in observed(features).items()}).tokens.device.type == "meta"


class Positional(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, tokens, mask):
        return self.net(x, t, Context(tokens, mask))


@pytest.mark.slow
@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_trunk_exports_for_any_number_of_rows(trunk):
    net, rows = Positional(built(TRUNKS[trunk])), torch.export.Dim("rows")
    x, t, c = arguments(5)
    exported = torch.export.export(net, (x, t, c.tokens, c.mask), dynamic_shapes=({0: rows},) * 4).module()
    x, t, c = arguments(3, seed=1)
    torch.testing.assert_close(exported(x, t, c.tokens, c.mask), net(x, t, c.tokens, c.mask))


class Pair(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, obs):
        context = self.net(obs)
        return context.tokens, context.mask


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_exports_for_any_number_of_rows(encoder):
    spec, features = ENCODERS[encoder]
    net, rows = Pair(spec.build(features, 2).eval()), torch.export.Dim("rows")
    exported = torch.export.export(net, (observed(features, 5),), dynamic_shapes=({k: {0: rows} for k in features},))
    obs = observed(features, 3, seed=1)
    torch.testing.assert_close(exported.module()(obs), net(obs))


def test_no_two_times_look_alike():
    t = torch.linspace(0, 1, 2001).unsqueeze(-1)
    features = FourierFeatures(6)(t)
    assert features.shape == (2001, 12) and torch.cdist(features, features).fill_diagonal_(9).min() > 1e-4
    at_half = [f(2.0**i * math.pi / 4) for f in (math.sin, math.cos) for i in range(6)]
    assert np.allclose(features[1000].tolist(), at_half, atol=1e-5)


# -- averages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0, 1])
def test_a_memory_that_reads_no_action_step_is_computed_once_per_plan_with_the_same_result(times):
    net = built(Transformer(16, 3, 2, "joint", causal=True, encoder_depth=1), times=times).double()
    x, t, context = arguments(times=times)
    x, t, context = x.double(), t.double(), Context(context.tokens.double(), context.mask)
    whole = net.train()(x, t, context)  # without dropout. In training, one sequence has all tokens
    assert not net.precompute(context).keys_values
    net.eval()
    torch.testing.assert_close(net(x, t, context), whole, rtol=1e-9, atol=1e-12)
    once, calls = net.precompute(context), []
    assert len(once.keys_values) == 3
    keys = net.layers[0].self_attention.key_layer
    keys.register_forward_hook(lambda module, inputs, _: calls.append(inputs[0].shape[1]))
    torch.testing.assert_close(net(x, t, once), whole, rtol=1e-9, atol=1e-12)
    assert calls == [6]  # the action steps alone
    assert not built(Transformer(16, 3, 2, "joint"), times=times).precompute(arguments()[2]).keys_values
