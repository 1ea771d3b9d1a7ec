"""Trunks, encoders and averages: shapes, invariances, published sizes, and second writings of what they compute."""

import copy
import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from understudy import config
from understudy.core import Context, Feature, HeadSpec, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.base import check_trunk_times
from understudy.heads.regression import Regression
from understudy.methods.behavior_cloning.bottleneck_bc import BottleneckEncoder
from understudy.methods.generative.contextvla import PooledHistoryEncoder
from understudy.methods.generative.mdt import GoalEncoder
from understudy.methods.representation.pasta import ComponentTokenEncoder
from understudy.nets import convolution
from understudy.nets.act import ACTEncoder, ACTTransformer
from understudy.nets.base import CachesContext, SharedTimeTrunk, precomputed, time_embedding, with_time_embedding
from understudy.nets.diffusion_policy import DiffusionPolicyEncoder
from understudy.nets.ema import EMA, ConstantDecay, PolynomialDecay, WarmupDecay
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.fourier import FourierFeatures
from understudy.nets.grid import GridEncoder
from understudy.nets.in_context import InContextTransformer
from understudy.nets.linear import Linear
from understudy.nets.lstm import LSTM
from understudy.nets.mlp import MLP
from understudy.nets.mlp_mixer import MLPMixer
from understudy.nets.object_attention import ObjectAttentionEncoder
from understudy.nets.point_cloud import PointNet
from understudy.nets.recurrent import RecurrentEncoder
from understudy.nets.sizes import TRUNK_SIZES, sized_encoder, sized_trunk
from understudy.nets.small_denoiser import SmallDenoiser
from understudy.nets.text_encoder import ByteEncoder
from understudy.nets.transformer import Transformer, scaled_dot_product
from understudy.nets.unet import UNet
from understudy.nets.vision import (
    FixedBatchNorm,
    ResNet,
    ResNetBody,
    SmallConv,
    crop,
    crop_to,
    spatial_softargmax,
    without_downloads,
)
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_trunk

TRUNKS = {
    "mlp": MLP(32, 2), "mixer": MLPMixer(16, 2), "plain": FeedForward((32, 16), "gelu"),
    "unet": UNet((16, 32), 3, 4, 8), "unet5": UNet((8, 16, 24), 5, 4, 8),
    "unet_input": UNet((16, 32), 3, 4, 8, condition="input"),
    "cross": Transformer(16, 2, 2), "joint": Transformer(16, 2, 2, "joint"),
    "act": Transformer(16, 1, 2, encoder_depth=2), "joint_act": Transformer(16, 1, 2, "joint", encoder_depth=1),
    "block_causal": Transformer(16, 2, 2, "block_causal", encoder_depth=1), "lstm": LSTM(16, 2),
    "causal": Transformer(16, 2, 2, causal=True), "joint_causal": Transformer(16, 2, 2, "joint", causal=True),
    "in_context": InContextTransformer(16, 2, 2), "in_context_both_ways": InContextTransformer(16, 2, 2, causal=False),
    "small_denoiser": SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16),
    "small_chunk_denoiser": SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step=False),
}
PRIMING = [name for name in TRUNKS if name not in ("plain", "mixer", "lstm")]  # those that cache the context's part
FEATURES = {
    "observation.state": Feature("float32", (3,)), "observation.arms": Feature("float32", (2, 2)),
    "observation.last": Feature("int64", (), "discrete", num_classes=(5,)),
    "observation.mode": Feature("int64", (2,), "discrete", num_classes=(3, 4)),
    "observation.done": Feature("bool", ()), "observation.task": Feature("uint8", (12,), "text"),
    "observation.images.front": Feature("uint8", (36, 40, 3), "image"),
}
PLAIN = {k: FEATURES[k] for k in ("observation.state", "observation.arms", "observation.last", "observation.mode",
                                  "observation.done")}
SEEN = {k: f for k, f in FEATURES.items() if f.kind != "text"}
NUMBERS = {k: f for k, f in FEATURES.items() if f.kind == "vector"}
SENSED = {k: f for k, f in FEATURES.items() if f.kind in ("vector", "image")}
CELLS = {"observation.grid": Feature("int64", (2, 3), "discrete", num_classes=(3,) * 6),
         "observation.cell": Feature("int64", (2,), "discrete", num_classes=(2, 3))}
SMALL = TokenEncoder(8, 4, SmallConv((8, 8), 4))
ENCODERS = {
    "tokens": (SMALL, FEATURES),
    "resnet": (TokenEncoder(8, 2, ResNet(keypoints=4)), FEATURES),
    "grid": (TokenEncoder(8, 2, ResNet(pool="grid")), FEATURES),
    "components": (ComponentTokenEncoder(8, 2, 2), NUMBERS),
    "modalities": (ComponentTokenEncoder(8, 1, 2, "modality", True, ("observation.state",)), NUMBERS),
    "points": (TokenEncoder(8, point_clouds=("observation.arms",), points=PointNet((8, 8))), PLAIN),
    "flat": (ConcatEncoder(), PLAIN),
    "flat_seen": (ConcatEncoder(SmallConv((8, 8), 4), 4), SEEN),
    "act": (ACTEncoder(8), SENSED), "diffusion_policy": (DiffusionPolicyEncoder((32, 36), keypoints=4), SENSED),
    "recurrent": (RecurrentEncoder(12, 2, SMALL), FEATURES),
    "recurrent_flat": (RecurrentEncoder(12, 1, ConcatEncoder()), PLAIN),
    "bottleneck": (BottleneckEncoder(12, SMALL), FEATURES),
    "pooled_history": (PooledHistoryEncoder(3, 1, 2, encoder=SMALL), FEATURES),
    "whole_history": (PooledHistoryEncoder(1, None, 2, encoder=SMALL), FEATURES),
    "objects": (ObjectAttentionEncoder("observation.arms", hidden=8, encoder=SMALL), FEATURES),
    "goals": (GoalEncoder(("observation.last", "observation.images.front", "observation.task"), SMALL), FEATURES),
    "cells": (GridEncoder((8, 8)), {"observation.grid": CELLS["observation.grid"]}),
    "cell": (GridEncoder((8, 8), "observation.cell"), CELLS),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def observed(features, size=5, rows=2, seed=0):
    g, obs = rng(seed), {}
    for k, f in features.items():
        shape = (size, rows, *f.shape)
        if f.kind == "discrete":
            obs[k] = torch.stack([torch.randint(0, n, shape[:2], generator=g) for n in f.num_classes], -1).reshape(
                shape
            )
        elif f.dtype == "uint8":
            obs[k] = torch.randint(1, 256, shape, generator=g).to(torch.uint8)
        elif f.dtype == "bool":
            obs[k] = torch.rand(shape, generator=g) < 0.5
        else:
            obs[k] = torch.randn(shape, generator=g)
    return obs


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def arguments(size=5, horizon=6, inputs=3, times=1, tokens=4, width=7, seed=0, masked=0.4, shared=False):
    """`shared`: one time a row. The first token is always there."""
    g = rng(seed)
    t = torch.rand(size, 1 if shared else horizon, times, generator=g).expand(size, horizon, times)
    mask = torch.rand(size, tokens, generator=g) >= masked
    mask[:, :1] = True
    return (torch.randn(size, horizon, inputs, generator=g), t,
            Context(torch.randn(size, tokens, width, generator=g), mask))


def built(trunk, horizon=6, inputs=3, outputs=5, times=1, tokens=4, width=7, seed=0):
    spec = HeadSpec(horizon, tokens, width, token_obs_steps=tuple(2 * i // tokens for i in range(tokens)),
                    action_start=1)
    return seeded(lambda: trunk.build(inputs, outputs, times, spec), seed).eval()


# -- every trunk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_trunk_reads_every_encoder_and_every_weight_learns(trunk, encoder):
    spec, features = ENCODERS[encoder]
    enc = seeded(lambda: spec.build(features, 2))
    net = built(TRUNKS[trunk], 5, 2, 3, 1, enc.tokens, enc.width)
    context = enc(observed(features), rng())
    assert context.tokens.shape == (5, enc.tokens, enc.width) and context.mask.shape == (5, enc.tokens)
    assert context.mask.dtype == torch.bool
    x, t, _ = arguments(5, 5, 2, 1)
    out = net(x, t, context)
    assert out.shape == (5, 5, 3) and out.isfinite().all()
    out.square().sum().backward()
    dead = [n for m in (enc, net) for n, p in m.named_parameters() if p.requires_grad and (
        p.grad is None or not p.grad.any())]
    assert not dead, dead


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
    (into, _, out), seen = net.layers, torch.randn(5, 1, 2, generator=rng(), dtype=torch.double)
    hidden = (seen[:, 0] @ into.weight.T + into.bias).clamp(min=0)
    context = Context(seen, torch.ones(5, 1, dtype=torch.bool))
    found = net(torch.zeros(5, 1, 0).double(), torch.zeros(5, 1, 0).double(), context)
    torch.testing.assert_close(found[:, 0], hidden @ out.weight.T + out.bias)


@pytest.mark.parametrize("trunk", PRIMING)
def test_all_times_told_in_one_batch_say_the_same(trunk):
    net = built(TRUNKS[trunk]).double()
    x, _, context = arguments()
    x, context = x.double(), Context(context.tokens.double(), context.mask)
    times = torch.tensor([[0.0], [0.25], [0.9]], dtype=torch.double)
    for time, known in zip(times, time_embedding(net, times), strict=True):
        plain = net(x, time.expand(*x.shape[:2], 1), context)
        unread = torch.full((*x.shape[:2], 1), 0.5, dtype=torch.double)
        for once in (context, precomputed(net, context)):
            torch.testing.assert_close(
                net(x, unread, with_time_embedding(net, once, known)), plain, rtol=1e-10, atol=1e-12
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


@pytest.mark.parametrize("causal", [True, False])
def test_the_in_context_transformer_is_one_transformer_over_context_time_and_actions(causal):
    """A second writing that runs the whole sequence at once, and keeps no keys and values."""
    net = built(InContextTransformer(16, 3, 2, causal=causal)).double()
    x, t, c = arguments(shared=True)
    x, t, c = x.double(), t.double(), Context(c.tokens.double(), c.mask)
    null = net.null_token.expand(5, 1, -1)
    h = torch.cat([null, net.context_layer(c.tokens) + net.token_embedding, net.time(t[:, :1, :]),
                   net.input_layer(x) + net.step_embedding], 1)
    assert h.shape[1] == 1 + 4 + 1 + 6
    order = torch.arange(12) if causal else torch.tensor([0] * 5 + [1] * 7)
    seen = F.pad(c.mask, (1, 7), value=True)[:, None, None] & (order[:, None] >= order)
    for layer in net.layers:
        h = layer(h, mask=seen)
    torch.testing.assert_close(net(x, t, c), net.output_layer(h[:, 6:]), rtol=1e-10, atol=1e-12)


def test_in_context_a_causal_step_reads_earlier_steps_the_time_and_the_context():
    mask = InContextTransformer().attention_mask(2, 3, True)
    assert torch.equal(mask, torch.ones(6, 6, dtype=torch.bool).tril())
    both = InContextTransformer(causal=False).attention_mask(2, 3, True)
    assert both[2:].all() and both[:2, :2].all() and not both[:2, 2:].any()


@pytest.mark.parametrize("each_step", [True, False])
def test_a_small_denoiser_reads_the_context_once_and_denoises_steps_alone_or_together(each_step):
    net = built(SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step))
    x, t, c = arguments()
    calls = []
    net.backbone.register_forward_hook(lambda *_: calls.append(1))
    once = precomputed(net, c)
    first = net(x, t, once)
    x2, t2 = x.clone(), t.clone()
    x2[:, 3], t2[:, 3] = 9, 0.123
    second = net(x2, t2, once)
    assert len(calls) == 1
    changed = [not torch.allclose(first[:, i], second[:, i], atol=1e-6) for i in range(6)]
    assert changed == ([i == 3 for i in range(6)] if each_step else [True] * 6)


@pytest.mark.parametrize("each_step", [True, False])
def test_a_small_denoiser_keeps_the_contract_of_trunks(each_step):
    check_trunk(SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step))


def test_steps_of_a_small_denoiser_share_its_weights_and_differ_in_their_features():
    net = built(SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16))
    x, t, c = arguments(shared=True)
    features = precomputed(net, c).features
    there = torch.ones(5, 1, dtype=torch.bool)
    for i in range(6):
        alone = net.denoiser(x[:, i:i + 1], t[:, i:i + 1], Context(features[:, i:i + 1], there))
        torch.testing.assert_close(net(x, t, c)[:, i:i + 1], alone)
    assert not torch.allclose(features[:, 0], features[:, 1])


def test_a_causal_head_may_have_a_small_denoiser_of_single_steps_only():
    spec = HeadSpec(6, 1, 4, token_obs_steps=(0,), causal=True)
    SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16).build(2, 2, 1, spec)
    with pytest.raises(Unsupported, match="causal"):
        SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step=False).build(2, 2, 1, spec)
    with pytest.raises(UserError, match="InContextTransformer: .*multiple of heads"):
        InContextTransformer(18, heads=4).build(2, 2, 1, spec)


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


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_the_transformer_of_act(pre_norm):
    trunk = ACTTransformer(16, 2, 24, encoder_depth=1, depth=2, posterior_depth=1, pre_norm=pre_norm, grids=((1, 2),),
                           state_size=3)
    net, (x, t, context) = built(trunk, times=0), arguments(times=0)
    out = net(x, t, context)
    assert out.shape == (5, 6, 5) and not torch.allclose(out[:, 0], out[:, 1]), "steps have positions"
    one = net(x[1:2], t[1:2], Context(context.tokens[1:2], context.mask[1:2]))
    torch.testing.assert_close(one[0], out[1], rtol=1e-4, atol=1e-5)
    hidden = torch.where(context.mask.unsqueeze(-1), context.tokens, 50.0)
    torch.testing.assert_close(net(x, t, Context(hidden, context.mask)), out)
    plain, swapped = (net(x, t, Context(tokens, torch.ones_like(context.mask)))
                      for tokens in (context.tokens, context.tokens.flip(1)))
    assert not torch.allclose(plain, swapped), "tokens have positions"
    assert not torch.allclose(net(x + 1, t, context), out), "the latent is read"
    assert torch.equal(net(torch.cat([x[:, :1], x[:, 1:] + 1], 1), t, context), out), "of the first step"

    posterior = trunk.build_posterior(2, 8, HeadSpec(6, 4, 7)).eval()
    state = Context(context.tokens, context.mask, {"observation.state": torch.randn(5, 3, generator=rng(3))})
    action, present = torch.randn(5, 6, 2, generator=rng(4)), torch.ones(5, 6, 1)
    present[:, 4:] = 0
    q = posterior(torch.cat([action, present], -1), t, state)
    assert q.shape == (5, 6, 8) and torch.equal(q[:, 0], q[:, 5])
    spoiled = torch.where(present > 0, action, 9.0)
    torch.testing.assert_close(posterior(torch.cat([spoiled, present], -1), t, state), q)
    assert not torch.allclose(posterior(torch.cat([action, torch.ones(5, 6, 1)], -1), t, state), q)
    with pytest.raises(UserError, match="does not pass on 'observation.state'"):
        posterior(torch.cat([action, present], -1), t, context)


def test_what_the_transformer_of_act_cannot_do():
    with pytest.raises(Unsupported, match="no time embedding"):
        built(ACTTransformer(16, 2, 24), times=1)
    with pytest.raises(UserError, match="6 cells, but the context has 4 tokens"):
        built(ACTTransformer(16, 2, 24, grids=((2, 3),)), times=0)
    with pytest.raises(UserError, match="not a multiple of heads=3"):
        built(ACTTransformer(16, 3, 24), times=0)


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
    told = FourierFeatures(6)(t)
    assert told.shape == (2001, 12) and torch.cdist(told, told).fill_diagonal_(9).min() > 1e-4
    at_half = [f(2.0**i * math.pi / 4) for f in (math.sin, math.cos) for i in range(6)]
    assert np.allclose(told[1000].tolist(), at_half, atol=1e-5)


# -- the U-Net ------------------------------------------------------------------------------------------------------


def test_the_size_of_diffusion_policys_network():
    """The notebook of Diffusion Policy (state of PushT: 5 numbers, 2 rows, 2 actions) prints 6.535322e+07."""
    net = UNet((256, 512, 1024), time_width=256).build(2, 2, 1, HeadSpec(16, 2, 5))
    assert f"{sum(p.numel() for p in net.parameters()):e}" == "6.535322e+07"


def original_names(net, widths):
    """Parameters under the names of diffusion_policy's ConditionalUnet1D."""
    def block(b, name):
        return {f"{name}.blocks.0.block.0": b.first[0], f"{name}.blocks.0.block.1": b.first[1],
                f"{name}.blocks.1.block.0": b.second[0], f"{name}.blocks.1.block.1": b.second[1],
                f"{name}.cond_encoder.1": b.film,
                **({f"{name}.residual_conv": b.skip} if isinstance(b.skip, nn.Conv1d) else {})}
    found = {"diffusion_step_encoder.1": net.time_mlp.body[0],
             "diffusion_step_encoder.3": net.time_mlp.body[2],
             "final_conv.0.block.0": net.output_layer[0][0], "final_conv.0.block.1": net.output_layer[0][1],
             "final_conv.1": net.output_layer[1]}
    for i, b in enumerate(net.middle):
        found |= block(b, f"mid_modules.{i}")
    for part, stages in (("down", net.down), ("up", net.up)):
        for i, stage in enumerate(stages):
            found |= block(stage["first"], f"{part}_modules.{i}.0") | block(stage["second"], f"{part}_modules.{i}.1")
            if "resize" in stage:
                found[f"{part}_modules.{i}.2.conv"] = stage["resize"]
    weights = {f"{k}.{n}": p for k, m in found.items() for n, p in m.named_parameters()}
    assert sum(p.numel() for p in weights.values()) == sum(p.numel() for p in net.parameters()), "all are named"
    return weights


def original(w, x, k, condition, step_width, levels, groups):
    """What that network computes, from its weights by name: x (B, H, A), k (B,) as it embeds it, condition (B, C)."""
    def conv(x, name, **kw):
        return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], **kw)

    def norm(x, name):
        return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def convolved(x, name):
        return F.mish(norm(conv(x, f"{name}.0", padding=w[f"{name}.0.weight"].shape[-1] // 2), f"{name}.1"))

    def block(x, name):
        y = convolved(x, f"{name}.blocks.0.block")
        scale, shift = linear(F.mish(feature), f"{name}.cond_encoder.1").reshape(len(x), 2, -1, 1).unbind(1)
        y = convolved(scale * y + shift, f"{name}.blocks.1.block")
        return y + (conv(x, f"{name}.residual_conv") if f"{name}.residual_conv.weight" in w else x)
    half = step_width // 2
    angle = k[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    step = linear(F.mish(linear(torch.cat([angle.sin(), angle.cos()], -1), "diffusion_step_encoder.1")),
                  "diffusion_step_encoder.3")
    feature = torch.cat([step, condition], -1)
    x, seen = x.transpose(1, 2), []
    for i in range(levels):
        x = block(block(x, f"down_modules.{i}.0"), f"down_modules.{i}.1")
        seen.append(x)
        if i + 1 < levels:
            x = conv(x, f"down_modules.{i}.2.conv", stride=2, padding=1)
    x = block(block(x, "mid_modules.0"), "mid_modules.1")
    for i in range(levels - 1):
        x = block(block(torch.cat([x, seen.pop()], 1), f"up_modules.{i}.0"), f"up_modules.{i}.1")
        x = F.conv_transpose1d(x, w[f"up_modules.{i}.2.conv.weight"], w[f"up_modules.{i}.2.conv.bias"], 2, 1)
    return conv(convolved(x, "final_conv.0.block"), "final_conv.1").transpose(1, 2)


@pytest.mark.parametrize("widths", [(16,), (8, 16), (8, 16, 24)])
def test_weights_of_the_original_compute_the_same(widths):
    net = built(UNet(widths, 5, 4, 8), 12, 3, 3)
    x, t, c = arguments(horizon=12, shared=True)
    want = original(original_names(net, widths), x, 100 * t[:, 0, 0], c.flat(), 8, len(widths), 4)
    torch.testing.assert_close(net(x, t, c), want, rtol=1e-4, atol=1e-5)


def test_noise_levels_of_the_original_are_a_rotation_of_ours():
    """It is told k, 99 for pure noise and 0 next to none; with t = 1 - (k + 1) / 100 the same weights, turned."""
    net = built(UNet((8, 16), 5, 4, 8), 8, 3, 3)
    x, _, c = arguments(horizon=8)
    k = torch.tensor([0, 3, 50, 98, 99])
    want = original(original_names(net, (8, 16)), x, k.float(), c.flat(), 8, 2, 4)
    rate = torch.exp(torch.arange(4) * -(math.log(10000) / 3))
    turn, (sin, cos) = net.time_mlp.body[0].weight, net.time_mlp.body[0].weight.detach().chunk(2, 1)
    s, co = (99 * rate).sin(), (99 * rate).cos()  # k = 99 - 100 t: sin(k r) = s cos(100 t r) - co sin(100 t r)
    with torch.no_grad():
        turn.copy_(torch.cat([-sin * co + cos * s, sin * s + cos * co], 1))
    t = (1 - (k + 1) / 100).view(-1, 1, 1).expand(-1, 8, 1)
    torch.testing.assert_close(net(x, t, c), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("horizon", [1, 3, 5, 6, 7])
def test_other_horizons_are_padded_with_zeros_and_cut(horizon):
    spec = UNet((8, 16, 24), 5, 4, 8)
    short, whole = built(spec, horizon), built(spec, 8)
    whole.load_state_dict(short.state_dict())
    x, t, c = arguments(horizon=horizon, shared=True)
    padded = F.pad(x, (0, 0, 0, -horizon % 4))
    want = whole(padded, t[:, :1].expand(-1, padded.shape[1], -1), c)[:, :horizon]
    assert torch.equal(short(x, t, c), want)


@pytest.mark.parametrize("layout", ["auto", "channels_last", "gemm"])
@pytest.mark.parametrize("horizon", [1, 5, 16])
def test_every_layout_is_the_same_network(layout, horizon):
    """The same weights from the same draws, the same outputs, and the same slopes of every weight."""
    plain, fast = (built(UNet((8, 16, 24), 5, 4, 8, layout=x), horizon) for x in ("conv", layout))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True))
    x, t, c = arguments(horizon=horizon, shared=True)
    want, found = plain(x, t, c), fast(x, t, c)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    weights = torch.randn(want.shape, generator=rng(3))
    slopes = [torch.autograd.grad((y * weights).sum(), list(net.parameters()))
              for y, net in ((want, plain), (found, fast))]
    for (name, _), a, b in zip(plain.named_parameters(), *slopes, strict=True):
        scale = max(1.0, float(a.abs().max()))  # rounding grows with the sums that a slope is made of
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, name=name: f"{name}: {m}")


def test_a_fast_layout_stays_when_a_network_is_copied_or_loaded():
    net = built(UNet((8, 16), 5, 4, 8))
    strides = [p.stride() for p in net.parameters()]
    assert any(not p.is_contiguous() for p in net.parameters())
    other = copy.deepcopy(net)
    other.load_state_dict({k: v.clone(memory_format=torch.contiguous_format) for k, v in net.state_dict().items()})
    assert [p.stride() for p in other.parameters()] == strides
    assert [p.stride() for p in other.double().float().parameters()] == strides


@pytest.mark.parametrize("size, out, dtype, want", [
    (64, 64, torch.bfloat16, "channels_last"), (128, 128, torch.bfloat16, "gemm"),
    (64, 64, torch.float32, "channels_last"), (512, 512, torch.float32, "channels_last"),
    (1024, 1024, torch.float32, "gemm"), (2048, 2048, torch.float32, "gemm")])
def test_the_layout_follows_size_and_precision(size, out, dtype, want):
    assert convolution.choose_layout("auto", size, out, "cpu", dtype) == want
    assert convolution.choose_layout("conv", size, out, "cpu", dtype) == "conv"
    assert convolution.choose_layout("auto", size, out, "cuda", dtype) == "conv"


def test_the_layout_that_is_chosen_is_the_one_that_runs(monkeypatch):
    """By the precision in effect: within autocast it is that of autocast."""
    seen = []
    chosen = convolution.choose_layout
    monkeypatch.setattr(convolution, "choose_layout", lambda *a: seen.append(a[1:]) or chosen(*a))
    net = convolution.Convolution(16, 24, 3, "auto")
    net(torch.zeros(2, 4, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.zeros(2, 4, 16)).dtype == torch.bfloat16
    assert seen == [(16, 24, "cpu", torch.float32), (16, 24, "cpu", torch.bfloat16)]


def test_mish_and_its_slope():
    x = torch.linspace(-60, 60, 4001, dtype=torch.float64, requires_grad=True)
    got, want = convolution.mish(x), x * torch.tanh(F.softplus(x))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (got, F.mish(x))]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count, stride", [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2)])
def test_neighbours_are_zero_beyond_the_ends(steps, count, stride):
    x = torch.randn(2, steps, 3, dtype=torch.float64, generator=rng(), requires_grad=True)
    padded = F.pad(x, (0, 0, count // 2, count // 2))
    want = torch.cat([padded[:, i:i + steps:stride] for i in range(count)], -1)
    assert torch.equal(convolution.gather_neighbors(x, count, stride), want)
    assert torch.autograd.gradcheck(lambda x: convolution.gather_neighbors(x, count, stride), x)


def test_attention_in_bf16_is_that_of_fp32_to_its_digits():
    q, k, v = (torch.randn(3, 2, n, 8, generator=rng(n), requires_grad=True) for n in (5, 7, 7))
    keep = torch.rand(3, 1, 1, 7, generator=rng(1)) < 0.6
    keep[..., 0] = True
    for mask in (None, keep):
        want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        got = scaled_dot_product(*(x.bfloat16() for x in (q, k, v)), mask)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), want, rtol=0.03, atol=0.02)
        for a, b in zip(torch.autograd.grad(got.float().square().sum(), (q, k, v)),
                        torch.autograd.grad(want.square().sum(), (q, k, v)), strict=True):
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.08)


def test_channels_that_cannot_be_grouped_are_refused():
    with pytest.raises(UserError, match="multiples of 8"):
        SmallConv((8, 12)).build((16, 16, 3), 4)


@pytest.mark.parametrize("spec, said", [(UNet((12,), groups=8), "multiple of groups=8"), (UNet(kernel=4), "odd")])
def test_a_unet_that_cannot_be_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        built(spec)


# -- the transformer ------------------------------------------------------------------------------------------------


def test_what_sees_what():
    past = built(TRUNKS["joint_causal"])._causal_mask
    assert past(0, torch.zeros(1, 3, 1)).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert past(2, torch.zeros(1, 2, 1)).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_attention_is_that_of_torch():
    net = built(Transformer(16, 1, 4, encoder_depth=1))
    mine = net.layers[0].cross_attention
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        layers = (mine.query_layer, mine.key_layer, mine.value_layer)
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([mine.query_layer.bias, torch.zeros(16), mine.value_layer.bias]))
        theirs.out_proj.load_state_dict(mine.output_layer.state_dict())
    x, memory = torch.randn(3, 6, 16, generator=rng()), torch.randn(3, 5, 16, generator=rng(1))
    mask = torch.rand(3, 5, generator=rng(2)) < 0.6
    mask[:, 0] = True
    want = theirs(x, memory, memory, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(mine(x, mine.keys_values(memory), mask[:, None, None]), want, rtol=1e-5, atol=1e-6)


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(UserError, match="multiple of heads=4"):
        built(Transformer(18, heads=4))


# -- encoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_was_not_sensed_is_as_if_absent(encoder):
    """Whatever a dead sensor says, NaN even: same outputs, and gradients that are numbers."""
    spec, features = ENCODERS[encoder]
    enc = seeded(lambda: spec.build(features, 2))
    net = built(TRUNKS["cross"], tokens=enc.tokens, width=enc.width)
    x, t, _ = arguments()
    for name in features:
        obs, dead = observed(features), torch.tensor([True, False, True, False, False])
        obs[name + "?"] = torch.stack([~dead, torch.ones(5, dtype=torch.bool)], 1)
        other = {**obs, name: obs[name].clone()}
        other[name][dead, 0] = math.nan if obs[name].is_floating_point() else 0
        a, b = (net(x, t, enc(o, rng())) for o in (obs, other))
        assert torch.equal(a, b)
        enc.zero_grad()
        b.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in enc.parameters())
        del obs[name + "?"]
        assert not torch.allclose(net(x, t, enc(obs, rng()))[dead], a[dead])


def test_the_order_of_tokens_and_masks():
    enc = seeded(lambda: TokenEncoder(8).build(PLAIN, 2)).eval()
    obs = observed(PLAIN)
    assert (enc.tokens, enc.width) == (10, 8)
    here = torch.tensor([[True, False]] * 5)
    c = enc({**obs, "observation.arms?": here})
    assert c.mask.tolist() == [[True, True, True, False, *[True] * 6]] * 5
    want = enc.maps[0].weight @ obs["observation.state"][1, 1] + enc.maps[0].bias
    torch.testing.assert_close(c.tokens[1, 1], want)


def test_a_choice_is_the_sum_of_its_components_and_unknown_values_are_zeros():
    f = {"c": Feature("int64", (2,), "discrete", num_classes=(3, 4))}
    enc = TokenEncoder(8).build(f, 1)
    table = enc.maps[0].embedding.weight
    c = enc({"c": torch.tensor([[[2, 1]], [[0, 3]], [[3, -1]], [[99, 0]]])}).tokens[:, 0]
    assert torch.equal(c, torch.stack([table[2] + table[4], table[0] + table[6], 0 * table[0], table[3]]))
    one = TokenEncoder(8).build({"c": Feature("int64", (), "discrete", num_classes=(3,))}, 2)
    assert one({"c": torch.tensor([[0, 2]])}).tokens.shape == (1, 2, 8)


def test_flat_is_the_numbers_themselves():
    enc = ConcatEncoder().build(PLAIN, 2)
    obs = observed(PLAIN)
    got = enc(obs)
    parts = [obs["observation.state"].flatten(1), obs["observation.arms"].flatten(1),
             F.one_hot(obs["observation.last"], 5).flatten(1),
             torch.cat([F.one_hot(obs["observation.mode"][..., 0], 3), F.one_hot(obs["observation.mode"][..., 1], 4)],
                       -1).flatten(1), obs["observation.done"]]
    assert torch.equal(got.tokens[:, 0], torch.cat([p.float() for p in parts], -1)) and got.mask.all()
    assert (enc.tokens, enc.width) == (1, got.tokens.shape[-1]) and not list(enc.parameters())
    gone = enc({**obs, "observation.arms?": torch.tensor([[False, True]] * 5)}).tokens[:, 0]
    assert (gone[:, 6:10] == 0).all() and torch.equal(gone[:, 10:], got.tokens[:, 0, 10:])


def test_flat_sees_by_the_features_of_a_network_that_does_not_train():
    f = {"observation.images.front": FEATURES["observation.images.front"]}
    enc = seeded(lambda: ConcatEncoder(ResNet(pool="mean"), 2).build(f, 2)).train()
    obs = observed(f)
    image = obs["observation.images.front"][1, 1, 2:-2, 2:-2].permute(2, 0, 1).float()[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    maps = enc.maps[0].body.body((image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    torch.testing.assert_close(enc(obs, rng()).tokens[1, 0, 512:], maps.mean((2, 3))[0], rtol=1e-4, atol=1e-5)
    assert enc.width == 1024 and not any(p.requires_grad for p in enc.parameters())
    assert not any(m.training for m in enc.modules())
    grid = ConcatEncoder(ResNet(pool="grid")).build({"i": Feature("uint8", (64, 33, 3), "image")}, 1)
    assert grid.width == 4 * 512 == grid({"i": torch.zeros(2, 1, 64, 33, 3, dtype=torch.uint8)}).tokens.shape[-1]


def test_recurrence_reads_the_rows_in_order():
    enc = seeded(
        lambda: RecurrentEncoder(12, 2, ConcatEncoder()).build({"observation.state": Feature("float32", (3,))}, 4)
    ).eval()
    x = torch.randn(5, 4, 3, generator=rng())
    want = enc.lstm(x)[1][0][-1]
    got = enc({"observation.state": x})
    assert (enc.tokens, enc.width) == (1, 12) and got.mask.all()
    torch.testing.assert_close(got.tokens[:, 0], want)
    assert not torch.allclose(enc({"observation.state": x.flip(1)}).tokens[:, 0], want, atol=1e-3)


@pytest.mark.parametrize(
    "encoder, feature, said",
    [
        (TokenEncoder(), Feature("str", (), "string"), "kind 'string'"),
        (ConcatEncoder(), FEATURES["observation.task"], "kind 'text'"),
        (ConcatEncoder(), FEATURES["observation.images.front"], "kind 'image'"),
        (TokenEncoder(), Feature("int64", (1,), "discrete"), "number of classes is unknown"),
        (ConcatEncoder(), Feature("int64", (1,), "discrete"), "number of classes is unknown"),
        (TokenEncoder(crop=18), FEATURES["observation.images.front"], "cuts 36 pixels off"),
    ],
)
def test_what_an_encoder_cannot_read_is_named(encoder, feature, said):
    with pytest.raises(UserError, match=f"column 'observation.odd'.*{said}"):
        encoder.build({"observation.odd": feature}, 1)


# -- images ---------------------------------------------------------------------------------------------------------


def test_keypoints_in_closed_form():
    maps = torch.zeros(1, 4, 5, 9)
    maps[0, 0, 1, 6] = 100  # one peak
    maps[0, 2, 0, 0] = maps[0, 2, 4, 4] = 100  # two: their middle
    maps[0, 3] = torch.linspace(0, 3, 9).log1p()  # a slope along x
    weight = 1 + torch.linspace(0, 3, 9)
    mean = float((weight / weight.sum() * torch.linspace(-1, 1, 9)).sum())
    want = [6 / 8 * 2 - 1, 0, -0.5, mean, 1 / 4 * 2 - 1, 0, 0, 0]
    assert np.allclose(spatial_softargmax(maps)[0].tolist(), want, atol=1e-5)


def test_crops_reach_every_place_and_the_centre_at_inference():
    h, w, margin = 8, 10, 2
    image = (torch.arange(h)[:, None] * 16 + torch.arange(w)).expand(4000, 1, h, w)
    got = crop(image, margin, rng())
    assert got.shape == (4000, 1, h - 4, w - 4)
    corner = got[:, 0, 0, 0]
    assert torch.equal(got[:, 0], (corner[:, None, None] + torch.arange(h - 4)[:, None] * 16 + torch.arange(w - 4)))
    count = torch.zeros(5, 5).index_put_((corner // 16, corner % 16), torch.ones(4000), accumulate=True)
    assert count.sum() == 4000 and (count > 0).all() and abs(count / 4000 - 1 / 25).max() < 4.5 * 0.196 / 63.2
    assert (crop(image, margin, None) == image[..., 2:-2, 2:-2]).all()
    assert torch.equal(crop(image, margin, rng(3)), crop(image, margin, rng(3)))
    assert not torch.equal(crop(image, margin, rng(3)), crop(image, margin, rng(4)))
    assert crop(image, 0, rng()) is image
    rows = {float(x) for x in crop_to(image, (h - 3, w), rng())[:, 0, 0, 0]}
    assert rows == {float(x) for x in image[0, 0, :4, 0]}, "each of four positions, of whole columns"
    assert torch.equal(crop_to(image, (h - 3, w - 6), None), image[..., 2:h - 1, 3:w - 3])  # 1.5 is rounded to 2


def test_training_crops_at_random_and_inference_does_not():
    f = {"observation.images.front": FEATURES["observation.images.front"]}
    enc, obs = seeded(lambda: TokenEncoder(8, 6, SmallConv((8, 8), 4)).build(f, 2)), observed(f)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, still = enc(obs, rng(0)).tokens, enc(obs, rng(1)).tokens, enc(obs).tokens
    assert torch.equal(torch.get_rng_state(), before), "no draw but from the generator"
    assert not torch.allclose(a, b) and torch.equal(enc(obs).tokens, still) and torch.equal(enc(obs, rng(0)).tokens, a)
    other = {k: v.clone() for k, v in obs.items()}
    other["observation.images.front"][:, :, :6] = 0  # outside the centre
    assert torch.equal(enc(other).tokens, still)
    enc.train()
    assert torch.equal(enc(obs).tokens, still), "it is the generator that says training, nothing hidden"


@pytest.mark.parametrize("depth, parameters, tensors", [(18, 11_689_512, 102), (34, 21_797_672, 182),
                                                        (50, 25_557_032, 267)])
def test_a_resnet_has_the_tensors_of_torchvision(depth, parameters, tensors):
    """The parameters that torchvision publishes, and its tensors without the counts of batches, with the last layer."""
    with torch.device("meta"):
        body = ResNetBody(depth=depth, fixed=True)
    width, weights = body.width, body.state_dict()
    statistics = sum(v.numel() for k, v in weights.items() if "running" in k)
    assert sum(v.numel() for v in weights.values()) - statistics + 1000 * width + 1000 == parameters
    assert len(weights) + 2 == tensors
    if depth == 50:
        shapes = {k: tuple(weights[k].shape) for k in ("layer1.0.downsample.0.weight", "layer2.0.conv2.weight",
                                                       "layer3.5.conv1.weight", "layer4.2.conv3.weight")}
        assert list(shapes.values()) == [(256, 64, 1, 1), (128, 128, 3, 3), (256, 1024, 1, 1), (2048, 512, 1, 1)]
        assert (body.layer2[0].conv1.stride, body.layer2[0].conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("depth", [34, 50])
def test_deeper_resnets_have_smaller_maps_and_their_own_name(depth, tmp_path):
    net = ResNet(pool="grid", depth=depth).build((64, 33, 3), 8)
    assert net(torch.zeros(1, 3, 64, 33)).shape == (1, 4, 8)
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=f"'bn1.weight'.* is missing.*\n.*ResNet-{depth}"):
        ResNet(str(tmp_path / "cut.safetensors"), depth=depth).build((64, 64, 3), 8)


def test_the_size_of_a_resnet():
    body = ResNet().build((64, 64, 3), 8).body
    assert sum(p.numel() for p in body.parameters()) == 11_689_512 - 513_000
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    assert body(torch.zeros(1, 3, 65, 128)).shape == (1, 512, 3, 4)
    for size in ((32, 32, 3), (65, 128, 1), (96, 130, 3)):
        net = ResNet(pool="grid").build(size, 8)
        assert net(torch.zeros(1, size[2], *size[:2])).shape == (1, net.tokens, 8)
    assert ResNet(pool="mean").build((65, 128, 1), 8)(torch.zeros(2, 1, 65, 128)).shape == (2, 1, 8)


def test_fixed_batch_norm_is_batch_norm_at_inference():
    theirs = nn.BatchNorm2d(6)
    with torch.no_grad():
        for t in theirs.state_dict().values():
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape, generator=rng()) + 0.5)
    mine = FixedBatchNorm(6)
    mine.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(4, 6, 3, 3, generator=rng())
    torch.testing.assert_close(mine.train()(x), theirs.eval()(x))
    assert not list(mine.parameters())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file as torchvision would write it: the last layer, and how many batches each norm has seen."""
    net = seeded(lambda: ResNet("unread", pool="mean"), 5)
    with without_downloads():
        body = seeded(lambda: net.build((64, 64, 3), 8), 5).body
    weights = {k: torch.rand(v.shape, generator=rng(1)) + 0.5 if "running_var" in k else v.clone()
               for k, v in body.state_dict().items()}
    extra = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    counts = {k.replace("running_var", "num_batches_tracked"): torch.tensor(7) for k in weights if "running_var" in k}
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({**weights, **extra, **counts}, path)
    return path, weights


def test_pretrained_weights_are_read_from_a_file(pretrained):
    path, weights = pretrained
    body = ResNet(str(path)).build((64, 64, 3), 8).body
    assert len(weights) == 100 and all(torch.equal(v, weights[k]) for k, v in body.state_dict().items())
    assert not any("bn" in n for n, _ in body.named_parameters()), "norms stay as they were"


def test_pretrained_weights_that_are_not_there_are_named(pretrained, tmp_path):
    with pytest.raises(UserError, match="nothing.safetensors"):
        ResNet(str(tmp_path / "nothing.safetensors")).build((64, 64, 3), 8)
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"'conv1.weight' of shape \(64, 3, 7, 7\) has shape \(3,\)"):
        ResNet(str(tmp_path / "other.safetensors")).build((64, 64, 3), 8)
    (tmp_path / "cut.safetensors").write_bytes(pretrained[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="cut.safetensors.*cannot be read as safetensors"):
        ResNet(str(tmp_path / "cut.safetensors")).build((64, 64, 3), 8)
    with pytest.raises(UserError, match="hf://OWNER/NAME"):
        ResNet("hf://resnet18").build((64, 64, 3), 8)
    with pytest.raises(UserError, match="3 channels"):
        ResNet(str(pretrained[0])).build((64, 64, 1), 8)


def test_a_checkpoint_needs_no_pretrained_file(pretrained, tmp_path):
    path = tmp_path / "gone.safetensors"
    path.write_bytes(pretrained[0].read_bytes())
    features = {"observation.images.front": Feature("uint8", (40, 40, 3), "image"), "action": Feature("float32", (2,))}
    recipe = PolicyConfig(Regression(), encoder=TokenEncoder(8, 4, ResNet(str(path))), window=Window(1, 2))
    data = Dataset([Episode({"observation.images.front": np.zeros((3, 40, 40, 3), np.uint8),
                             "action": np.eye(3, 2, dtype=np.float32)})])
    policy = Policy(recipe, features).fit_statistics(data).eval()
    policy.save(tmp_path / "run")
    path.unlink()
    with pytest.raises(UserError):
        Policy(recipe, features)
    obs = observed({k: features[k] for k in policy.inputs}, 2, 1)
    again = Policy.load(tmp_path / "run")
    noise = torch.zeros(2, *policy.noise_shape)
    assert torch.equal(again.plan(obs, noise), policy.plan(obs, noise))


# -- sizes ----------------------------------------------------------------------------------------------------------


def parameters_on_meta(trunk, horizon=16, tokens=4, width=64):
    spec = HeadSpec(horizon, tokens, width, token_obs_steps=tuple(range(tokens)), action_start=tokens - 1)
    with torch.device("meta"):
        return trunk.build(8, 8, 1, spec)


def test_a_mixer_layer_has_the_size_of_the_paper():
    """Mixer-B/16 has 59.88 million parameters: 12 layers over 196 patches, patches of 16 x 16 x 3, 1000 classes.

    It also has a bias for each patch of each layer, which its LayerNorms ignore, and which is left out here.
    """
    layers = parameters_on_meta(sized_trunk("mlp_mixer", "base"), horizon=192, tokens=4).layers
    stem, norm, classes = 16 * 16 * 3 * 768 + 768, 2 * 768, 768 * 1000 + 1000
    assert sum(p.numel() for p in layers.parameters()) + 12 * 196 + stem + norm + classes == 59_880_472


@pytest.mark.parametrize("kind", TRUNK_SIZES)
def test_sizes_grow_and_can_be_built(kind):
    counts = [sum(p.numel() for p in parameters_on_meta(sized_trunk(kind, size)).parameters())
              for size in ("small", "base", "large")]
    assert counts[0] < counts[1] / 2 < counts[2] / 4
    with pytest.raises(UserError, match="no size 'huge'"):
        sized_trunk(kind, "huge")
    with pytest.raises(UserError, match="no kind 'cnn'"):
        sized_trunk("cnn")


def test_encoders_of_published_sizes():
    """Exact sizes of three of their networks, and all grow."""
    features = {"observation.state": Feature("float32", (7,)),
                "observation.image": Feature("uint8", (64, 64, 3), "image"),
                "observation.text": Feature("uint8", (16,), "text"), "observation.points": Feature("float32", (32, 3))}
    counts = []
    for size, width in (("small", 384), ("base", 768), ("large", 1024)):
        encoder = dataclasses.replace(sized_encoder(size), point_clouds=("observation.points",))
        with torch.device("meta"):
            net = encoder.build(features, 1)
        assert (net.tokens, net.width) == (4, width)
        counts.append([sum(p.numel() for p in m.parameters()) for m in net.maps])
    assert all(a < b < c for a, b, c in zip(*counts, strict=True))
    state, image, _, points = counts[0]
    assert state == 8 * 384 and image == 11_176_512 + (512 + 1) * 32 + (64 + 1) * 384
    assert points == 42_496 + (256 + 1) * 384 + 768  # three layers and the token, each with LayerNorm
    with pytest.raises(UserError, match="no size 'huge'"):
        sized_encoder("huge")


def test_the_mixer_reads_absent_tokens_as_zeros_and_no_head_that_needs_causality():
    net, (x, t, context) = built(TRUNKS["mixer"]), arguments()
    empty = Context(torch.full_like(context.tokens, math.nan).nan_to_num(7.0), torch.zeros_like(context.mask))
    other = Context(context.tokens, torch.zeros_like(context.mask))
    assert torch.equal(net(x, t, empty), net(x, t, other))
    with pytest.raises(Unsupported, match="causal"):
        TRUNKS["mixer"].build(3, 5, 1, HeadSpec(6, 4, 7, causal=True))


# -- points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, parameters", [(3, 59_072), (6, 207_232), (4, 207_104)])
def test_a_point_cloud_is_a_set_and_the_network_is_that_of_dp3(channels, parameters):
    """A token does not depend on the order of the points, nor on the number of times that a point is there."""
    name = "observation.points"
    enc = seeded(lambda: TokenEncoder(64, point_clouds=(name,)).build({name: Feature("float32", (32, channels))}, 2))
    assert sum(p.numel() for p in enc.parameters()) == parameters
    x = torch.randn(5, 2, 32, channels, generator=rng())
    token = enc({name: x}).tokens
    order = torch.randperm(32, generator=rng(1))
    assert token.shape == (5, 2, 64)
    torch.testing.assert_close(enc({name: x[:, :, order]}).tokens, token)
    torch.testing.assert_close(enc({name: torch.cat([x[:, :, 5:], x[:, :, 5:10]], 2)}).tokens,
                               enc({name: torch.cat([x[:, :, 5:], x[:, :, 9:14]], 2)}).tokens)
    assert not torch.allclose(enc({name: x[:, :, [0] * 32]}).tokens, token)


def test_a_codec_that_scales_points_one_by_one_is_refused():
    name = "observation.points"
    features = {name: Feature("float32", (8, 3)), "action": Feature("float32", (2,))}
    encoder = TokenEncoder(8, point_clouds=(name,))
    Policy(PolicyConfig(Regression(), encoder=encoder, codec=Normalizer(unscaled=(name,))), features)
    Policy(PolicyConfig(Regression(), encoder=encoder, codec=Normalizer(obs="identity")), features)
    with pytest.raises(UserError, match=r"Normalizer\(unscaled=\('observation.points',\)\)"):
        Policy(PolicyConfig(Regression(), encoder=encoder), features)
    with pytest.raises(UserError, match="point_clouds: The policy does not read a column 'points'"):
        TokenEncoder(8, point_clouds=("points",)).build(features, 1)
    with pytest.raises(UserError, match=r"column 'action': A point cloud has the shape \(points, channels\)"):
        TokenEncoder(8, point_clouds=("action",)).build(features, 1)


# -- words ----------------------------------------------------------------------------------------------------------


def words(*texts, length=16):
    return torch.tensor([list(t.encode().ljust(length, b"\0")) for t in texts], dtype=torch.uint8)


def test_zero_padding_says_nothing():
    net = seeded(lambda: ByteEncoder().build(8)).eval()
    texts = ("push the red block", "push the blue block", "a", "", "é")
    short, long = net(words(*texts, length=20)), net(words(*texts, length=64))
    torch.testing.assert_close(short, long, rtol=1e-6, atol=1e-6)
    assert short.isfinite().all()
    for i, text in enumerate(texts[:3]):  # and none at all
        torch.testing.assert_close(net(words(text, length=len(text)))[0], long[i], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(short[3], net.output_layer.bias)


def test_words_are_told_apart():
    net = seeded(lambda: ByteEncoder().build(8)).eval()
    out = net(words("red to blue", "blue to red", "red to blu", "red to blue!", "green"))
    assert torch.cdist(out, out).fill_diagonal_(9).min() > 1e-2


# -- averages -------------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("memory", torch.zeros(1, 2))

    def becomes(self, value):
        with torch.no_grad():
            self.a.fill_(value)
            self.b.fill_(-value)
            self.seen += 1
            self.memory = torch.full((int(self.seen), 2), float(value))


def averaged(decay, values):
    module = Counted()
    ema = EMA(module, decay)
    for value in values:
        module.becomes(value)
        ema.update(module)
    return ema, module


VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]


@pytest.mark.parametrize("decay, rates", [
    (ConstantDecay(0.9), [0.9] * 7), (WarmupDecay(0.35), [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35, 0.35, 0.35]),
    (0.35, [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35, 0.35, 0.35]),
    (PolynomialDecay(0.5, 0.45), [0, 1 - 2**-0.5, 1 - 3**-0.5, 0.5, 0.55, 0.55, 0.55]),
    (PolynomialDecay(0.5, 0.45, start=2), [0, 0, 0, 1 - 2**-0.5, 1 - 3**-0.5, 0.5, 0.55])])
def test_an_average_in_closed_form(decay, rates):
    ema, module = averaged(decay, VALUES)
    want = 0.0
    for rate, value in zip(rates, VALUES, strict=True):
        want = rate * want + (1 - rate) * value
    assert np.allclose(ema.module.a.tolist(), want, rtol=1e-6) and np.allclose(ema.module.b, -want, rtol=1e-6)
    assert ema.updates == 7 and ema.module.seen == 7 and torch.equal(ema.module.memory, module.memory)
    assert module.a.tolist() == [2.0] * 3, "the module itself is left alone"


def test_power_one_is_the_plain_mean_since_the_start():
    assert np.allclose(averaged(PolynomialDecay(1.0, 0.0), VALUES)[0].module.a, np.mean(VALUES), rtol=1e-6)
    assert np.allclose(averaged(PolynomialDecay(1.0, 0.0, 3), VALUES)[0].module.a, np.mean(VALUES[3:]), rtol=1e-6)


def test_an_average_goes_on_where_it_was():
    whole = averaged(WarmupDecay(0.99), VALUES)[0]
    half, module = averaged(WarmupDecay(0.99), VALUES[:3])
    again = EMA(module, WarmupDecay(0.99))
    again.module.load_state_dict({k: v.clone() for k, v in half.module.state_dict().items()})
    again.updates = half.updates
    for value in VALUES[3:]:
        module.becomes(value)
        again.update(module)
    assert all(torch.equal(v, whole.module.state_dict()[k]) for k, v in again.module.state_dict().items())


def test_an_average_can_go_on_with_another_module():
    first, second = Counted(), Counted()
    ema = EMA(first, ConstantDecay(0.5))
    for module, value in ((first, 4.0), (second, 8.0), (second, 2.0)):
        module.becomes(value)
        ema.update(module)
    assert ema.module.a.tolist() == [3.5] * 3 and torch.equal(ema.module.memory, second.memory)


def test_an_average_is_apart_and_learns_nothing():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    ema = EMA(module, ConstantDecay(0.5))
    before = copy.deepcopy(ema.module.state_dict())
    module[0].weight.data += 1
    assert all(torch.equal(v, before[k]) for k, v in ema.module.state_dict().items())
    assert not any(p.requires_grad for p in ema.module.parameters()) and not ema.module.training and module.training
    for decay in (ConstantDecay(0.5), WarmupDecay(0.9), PolynomialDecay(start=3)):
        assert config.load(json.loads(json.dumps(config.dump(decay)))) == decay
        assert all(0 <= decay.value(n) < 1 for n in range(1, 1000))
    assert dataclasses.replace(PolynomialDecay(), minimum=1e-3).value(10**9) == 1 - 1e-3


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
