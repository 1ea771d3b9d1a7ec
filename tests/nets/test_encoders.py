"""Encoders of numbers, choices, histories and words."""

import math

import pytest
import torch
import torch.nn.functional as F
from fixtures.networks import ENCODERS, FEATURES, PLAIN, TRUNKS, arguments, built, observed, rng, seeded

from understudy.core import Feature, UserError
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.recurrent import RecurrentEncoder
from understudy.nets.text_encoder import ByteEncoder
from understudy.nets.vision import (
    ResNet,
)

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
    without_arms = enc({**obs, "observation.arms?": torch.tensor([[False, True]] * 5)}).tokens[:, 0]
    assert (without_arms[:, 6:10] == 0).all() and torch.equal(without_arms[:, 10:], got.tokens[:, 0, 10:])


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
