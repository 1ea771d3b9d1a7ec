"""Pretrained networks of transformers and timm: random tiny ones, saved to a folder as the libraries save them."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch

from understudy.core import Feature, UserError, keys
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.pretrained.vision import TimmVision, TransformersVision
from understudy.nets.vision import ResNet
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder, random_dataset

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None,
                                        reason="extra transformers not installed")
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="extra timm not installed")

CAMERA = "observation.images.front"
IMAGE = {CAMERA: Feature("uint8", (16, 16, 3), "image")}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PREPROCESSING = {"image_mean": MEAN, "image_std": STD, "size": {"height": 16, "width": 16}, "do_center_crop": False}


def _transformers_model(kind):
    import transformers as t

    small = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
             "image_size": 16, "patch_size": 4}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "vocab_size": 30, "max_position_embeddings": 12}
    if kind == "dinov2":
        return t.Dinov2Model(t.Dinov2Config(**{**small, "image_size": 28}))
    if kind == "registers":
        return t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**small, num_register_tokens=3))
    if kind == "clip":  # with its half for texts, which is left out
        return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=small, projection_dim=6))
    if kind == "siglip":
        return t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=small))
    return t.ConvNextV2Model(t.ConvNextV2Config(hidden_sizes=[4, 6, 8, 12], depths=[1, 1, 1, 1], patch_size=2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function from a kind to the folder with a random tiny network of that kind, and the network."""
    models = {}

    def find(kind):
        if kind not in models:
            folder = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                if kind.startswith("timm"):
                    model = _save_timm(kind, folder)
                else:
                    model = _transformers_model(kind).eval()
                    model.save_pretrained(folder)
                    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
            models[kind] = folder, model
        return models[kind]
    return find


def _save_timm(kind, folder):
    import timm

    name, options = {"timm_vit": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2,
                                                           "num_heads": 2}),
                     "timm_resnet": ("resnet10t", {})}[kind]
    model = timm.create_model(name, pretrained=False, **options).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "input_size": (3, 16, 16)}
    timm.models.save_for_hf(model, folder, model_args=options, safe_serialization=True)
    return model


def images(n=3, size=16, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)) / 255


def normalized(image):
    return (image - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


@needs_transformers
@pytest.mark.parametrize("kind, tokens", [("dinov2", 16), ("registers", 16), ("clip", 16), ("siglip", 16),
                                          ("convnext", 1)])
def test_features_are_those_of_the_network_for_normalized_pixels(saved, kind, tokens):
    folder, model = saved(kind)
    model = getattr(model, "vision_model", model)
    with torch.no_grad():
        want = model(pixel_values=normalized(images()))
    pooled = TransformersVision(str(folder)).build((16, 16, 3))
    torch.testing.assert_close(pooled(images()), want.pooler_output[:, None], rtol=1e-5, atol=1e-5)
    patches = TransformersVision(str(folder), "patches").build((16, 16, 3))
    hidden = want.last_hidden_state
    hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, hidden.shape[1] - tokens:]
    assert (patches.tokens, patches.width) == (tokens, 12)
    torch.testing.assert_close(patches(images()), hidden, rtol=1e-5, atol=1e-5)


@needs_transformers
def test_other_sizes_are_resized_and_positions_are_interpolated(saved):
    folder, _ = saved("clip")
    native = TransformersVision(str(folder)).build((32, 32, 3))
    large = images(size=8).repeat_interleave(4, -1).repeat_interleave(4, -2)  # what is resized to 16 x 16 before
    small = torch.nn.functional.interpolate(large, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(native(large), native(small))
    wide = TransformersVision(str(folder), "patches", image_size=(16, 24)).build((16, 24, 3), 5)
    assert wide.tokens == 4 * 6 and wide(torch.rand(2, 3, 16, 24)).shape == (2, 24, 5)


@needs_timm
@pytest.mark.parametrize("kind, tokens", [("timm_vit", 16), ("timm_resnet", 1)])
def test_features_of_timm(saved, kind, tokens):
    folder, model = saved(kind)
    with torch.no_grad():
        maps = model.forward_features(normalized(images()))
        pooled = model.forward_head(maps, pre_logits=True)
    maps = maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps[:, 1:]
    net = TimmVision(str(folder)).build((16, 16, 3))
    torch.testing.assert_close(net(images()), pooled[:, None], rtol=1e-5, atol=1e-5)
    net = TimmVision(str(folder), "patches").build((16, 16, 3))
    assert net.tokens == tokens
    torch.testing.assert_close(net(images()), maps, rtol=1e-5, atol=1e-5)
    wide = TimmVision(str(folder), "patches", image_size=(32, 64)).build((32, 64, 3))
    assert wide(torch.rand(2, 3, 32, 64)).shape == (2, {"timm_vit": 8 * 16, "timm_resnet": 2}[kind], wide.width)


def encoders(saved, **options):
    return [TransformersVision(str(saved("dinov2")[0]), **options), TransformersVision(str(saved("clip")[0]),
                                                                                       **options)]


@needs_transformers
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("pool", ["pooled", "patches"])
def test_they_keep_the_contract_of_encoders(saved, frozen, pool):
    for vision in encoders(saved, frozen=frozen, pool=pool):
        check_encoder(TokenEncoder(8, vision=vision), IMAGE)


@needs_timm
@pytest.mark.parametrize("frozen", [True, False])
def test_networks_of_timm_keep_the_contract_of_encoders(saved, frozen):
    check_encoder(TokenEncoder(8, 2, TimmVision(str(saved("timm_vit")[0]), frozen=frozen)), {
        CAMERA: Feature("uint8", (20, 20, 3), "image")})


def trained(vision, steps=3, **encoder):
    data = random_dataset({**IMAGE, "action": Feature("float32", (2,))}, episodes=2, steps=6)
    method = Method(PolicyConfig(Regression(), MLP(8, 1), TokenEncoder(8, vision=vision, **encoder)),
                    learner=BehaviorCloning(steps, batch_size=4))
    return fit_method(method, data, seed=0).policy


@needs_transformers
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_network_stays_as_it_was_and_another_is_trained_on(saved, frozen):
    vision = TransformersVision(str(saved("dinov2")[0]), frozen=frozen)
    before = {k: v.clone() for k, v in vision.build((16, 16, 3)).body.state_dict().items()}
    policy = trained(vision)
    same = [torch.equal(v, before[k]) for k, v in policy.encoder.maps[0].body.body.state_dict().items()]
    assert all(same) if frozen else sum(same) < len(same) / 4
    policy.requires_grad_(True)  # as a learner does that continues a policy
    image = images().requires_grad_(False)
    policy.encoder.maps[0].body.train()(image).sum().backward()
    parameters = list(policy.encoder.maps[0].body.body.parameters())
    assert frozen == all(p.grad is None for p in parameters)
    assert frozen == (not any(m.training for m in policy.encoder.maps[0].body.body.modules()))


@pytest.mark.parametrize("kind", [pytest.param("dinov2", marks=needs_transformers),
                                  pytest.param("timm_vit", marks=needs_timm)])
@torch.no_grad()
def test_a_checkpoint_needs_no_pretrained_folder(saved, tmp_path, kind):
    shutil.copytree(saved(kind)[0], tmp_path / "weights")
    config = (TimmVision if kind.startswith("timm") else TransformersVision)(str(tmp_path / "weights"))
    with torch.enable_grad():
        policy = trained(config, 1)
    policy.save(tmp_path / "run")
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(UserError, match="no such folder"):
        config.build((16, 16, 3))
    again = Policy.load(tmp_path / "run")
    obs = {CAMERA: torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8)}
    noise = policy.noise(keys(0, range(2)), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(again.plan(obs, noise), policy.plan(obs, noise), rtol=1e-6, atol=1e-6)
    again.save(tmp_path / "copy")  # and once more, from a policy that was loaded
    torch.testing.assert_close(Policy.load(tmp_path / "copy").plan(obs, noise), policy.plan(obs, noise), rtol=1e-6,
                               atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_transformers) for k in ("dinov2", "clip", "siglip")]
                         + [pytest.param("timm_vit", marks=needs_timm)])
def test_an_exported_policy_plans_alike(saved, tmp_path, kind):
    pytest.importorskip("onnxscript", reason="extra onnx not installed")
    pytest.importorskip("onnxruntime", reason="extra onnx not installed")
    from understudy.deploy.onnx import export

    config = (TimmVision if kind.startswith("timm") else TransformersVision)(str(saved(kind)[0]), "patches")
    assert export(trained(config, 1).eval(), tmp_path / "policy.onnx") < 1e-4  # it also compares the plans


@needs_transformers
def test_what_is_missing_is_named(saved, tmp_path):
    def build(**options):
        return TransformersVision(str(tmp_path / "w"), **options).build((16, 16, 3))

    with pytest.raises(UserError, match="TransformersVision.weights.*no such folder"):
        build()
    shutil.copytree(saved("dinov2")[0], tmp_path / "w")
    with pytest.raises(UserError, match="3 channels, and these have 1"):
        TransformersVision(str(tmp_path / "w")).build((16, 16, 1))
    (tmp_path / "w/preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="preprocessor_config.json"):
        build()
    (tmp_path / "w/preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, "image_mean": None}))
    with pytest.raises(UserError, match="image_mean"):
        build()
    (tmp_path / "w/preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    whole = (tmp_path / "w/model.safetensors").read_bytes()
    (tmp_path / "w/model.safetensors").write_bytes(whole[:200])
    with pytest.raises(UserError, match="cannot be read"):
        build()
    (tmp_path / "w/model.safetensors").rename(tmp_path / "w/pytorch_model.bin")
    with pytest.raises(UserError, match="Only safetensors are read"):
        build()
    (tmp_path / "w/config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        build()
    with pytest.raises(UserError, match="hf://OWNER/NAME"):
        TransformersVision("hf://dinov2").build((16, 16, 3))


@needs_transformers
def test_weights_that_are_missing_are_not_replaced_by_random_ones(saved, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
                       patch_size=4)
    ViTModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("pooler.")}  # as in the ViT of DINO
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert TransformersVision(str(tmp_path), "patches").build((16, 16, 3)).tokens == 16
    with pytest.raises(UserError, match="lack 2 tensors of the network, such as pooler.dense.bias"):
        TransformersVision(str(tmp_path)).build((16, 16, 3))
    save_file({k: v for k, v in kept.items() if "layernorm.weight" not in k}, tmp_path / "model.safetensors",
              {"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors of the network, such as layernorm.weight"):
        TransformersVision(str(tmp_path), "patches").build((16, 16, 3))


@pytest.mark.parametrize("config", [TransformersVision("x"), TimmVision("x")])
def test_a_missing_extra_is_named(monkeypatch, config):
    package = "timm" if isinstance(config, TimmVision) else "transformers"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'understudy\[{package}\]'"):
        config.build((16, 16, 3))


def test_a_frozen_resnet_is_one_without_its_training():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = ResNet(pool="mean").build((32, 32, 3))
    torch.manual_seed(0)
    frozen = ResNet(pool="mean", frozen=True).build((32, 32, 3))
    image = images(size=32)
    assert torch.equal(frozen(image), plain(image)) and not any(p.requires_grad for p in frozen.parameters())
    assert len(list(ResNet(pool="mean", frozen=True).build((32, 32, 3), 4).leave.parameters())) == 2
    with pytest.raises(UserError, match="cannot be frozen"):
        ResNet(frozen=True).build((32, 32, 3))
