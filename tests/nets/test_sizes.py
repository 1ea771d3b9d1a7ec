"""Published sizes of networks."""

import dataclasses
import math

import pytest
import torch
from fixtures.networks import TRUNKS, arguments, built

from understudy.core import Context, Feature, HeadSpec, Unsupported, UserError
from understudy.nets.sizes import TRUNK_SIZES, sized_encoder, sized_trunk


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
