"""What must also hold on a GPU. `make test-gpu` runs these tests and the other tests with the marker gpu."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy import make
from understudy.cli import main
from understudy.data.formats import write_dataset
from understudy.data.window import Window
from understudy.evaluate import evaluate
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.devices import deterministic
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method, method_files
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_head, check_method, random_batch

pytestmark = pytest.mark.gpu

CONFIGS = {
    "regression": PolicyConfig(Regression(), MLP(64), window=Window(2, 8)),
    "gmm": PolicyConfig(GMM(), MLP(64), window=Window(2, 8)),
    "cvae": PolicyConfig(CVAE(), Transformer(32, 1, 4, encoder_depth=1), window=Window(2, 8)),
    "diffusion": PolicyConfig(Diffusion(n_steps=4), UNet((32, 64)), window=Window(2, 8)),
    "flow": PolicyConfig(Flow(n_steps=4), Transformer(32, 2, 4), window=Window(2, 8)),
}


@pytest.fixture(params=["cuda"])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.mark.parametrize("name", CONFIGS)
def test_contract_of_the_head(name):
    """With a GPU, the contract also compares losses there."""
    check_head(CONFIGS[name])


@pytest.mark.parametrize("name", method_files())
def test_contract_of_the_method(name, device):
    check_method(name, device=device.type)


@pytest.mark.parametrize("name", CONFIGS)
def test_plans_and_losses_are_those_of_the_cpu(name, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as it comes, PyTorch's convolutions round to TF32
    policy, batch = random_batch(CONFIGS[name])
    noise = torch.randn(len(batch), *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plan = policy.plan(batch.obs, noise)
        policy.to(device)
        there = policy.plan({k: v.to(device) for k, v in batch.obs.items()}, noise.to(device))
    assert there.device.type == device.type
    torch.testing.assert_close(there.cpu(), plan, rtol=1e-3, atol=1e-3 * float(plan.abs().max()))
    loss = policy.loss(batch.to(device), torch.Generator(device).manual_seed(0))
    assert loss.shape == batch.mask.shape and loss.device.type == device.type and bool(loss.isfinite().all())


def batches(policy, data, device):
    windows = policy.windows(data)
    return lambda step: windows.batch(32, step, 0).to(device)


def learner(demos, device, precision, steps, compile=False, name="diffusion"):
    policy = Policy(CONFIGS[name], demos.features()).fit_statistics(demos).to(device)
    config = BehaviorCloning(optimizer=OptimizerConfig(lr=1e-3, precision=precision, compile=compile))
    return config.build(policy, 0, steps, demos), batches(policy, demos, device)


def test_bf16_learns(demos, device):
    torch.manual_seed(0)
    trained, draw = learner(demos, device, "bf16", 120)
    losses = []
    fit(trained, draw, 120, callbacks=[lambda step, _, seen: losses.append(seen["loss"])])
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])
    assert {p.dtype for p in trained.trained_policy.parameters()} == {torch.float32}


def test_compiled_networks_compute_the_same_losses(demos, device):
    def losses(compile):
        torch.manual_seed(0)
        trained, draw = learner(demos, device, "fp32", 5, compile)
        seen = []
        fit(trained, draw, 5, callbacks=[lambda step, _, metrics: seen.append(metrics["loss"])])
        return seen
    assert losses(True) == pytest.approx(losses(False), rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_training_that_was_saved_goes_on_with_the_same_bits(demos, device, name, precision):
    def begin():
        torch.manual_seed(0)
        return learner(demos, device, precision, 20, name=name)

    with deterministic(device):
        whole, draw = begin()
        fit(whole, draw, 20)
        half, draw = begin()
        fit(half, draw, 10)
        tensors, facts = half.state()
        tensors = {name: value.clone() for name, value in tensors.items()}
        again, draw = begin()
        again.restore(tensors, json.loads(json.dumps(facts)))
        fit(again, draw, 20, start=10)
    for (name, one), other in zip(whole.state()[0].items(), again.state()[0].values(), strict=True):
        assert torch.equal(one, other), name


def test_a_method_trained_there_succeeds(demos, device):
    method = find_method("bc-gmm", demos.features())
    method = replace(method, learner=replace(method.learner, steps=400))
    result = fit_method(method, demos.filter(lambda e: e.metadata["success"]), 0, device=device)
    assert {p.device.type for p in result.policy.parameters()} == {device.type}
    assert evaluate(result.actor, make("fork", 50), episodes=50).success.estimate > 0.8


def test_the_command_trains_and_evaluates_there(demos, device, tmp_path):
    write_dataset(demos, tmp_path / "demos")
    assert main(["train", "bc", str(tmp_path / "demos"), "--out", str(tmp_path / "run"), "--steps", "100",
                 "--device", device.type]) == 0
    assert main(["eval", str(tmp_path / "run"), "fork", "--episodes", "10", "--device", device.type]) == 0
