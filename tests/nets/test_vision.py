"""Encoders of images: keypoints, crops, ResNets and pretrained weights."""


import numpy as np
import pytest
import torch
from fixtures.networks import FEATURES, observed, rng, seeded
from safetensors.torch import save_file
from torch import nn

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.nets.encoders import TokenEncoder
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
    batch_norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        for t in batch_norm.state_dict().values():
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape, generator=rng()) + 0.5)
    fixed_norm = FixedBatchNorm(6)
    fixed_norm.load_state_dict({k: v for k, v in batch_norm.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(4, 6, 3, 3, generator=rng())
    torch.testing.assert_close(fixed_norm.train()(x), batch_norm.eval()(x))
    assert not list(fixed_norm.parameters())


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
