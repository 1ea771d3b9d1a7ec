"""Policies that are written in the form of LeRobot."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.lerobot_policies import NAMES, close, noise_of, windows
from folders import TESTS
from safetensors.torch import load_file

from understudy.cli import main
from understudy.core import Feature, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.column_changes import LastAction
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.regression import Regression
from understudy.heads.solvers import DDIM, DDPM
from understudy.learn.lerobot_export import write_lerobot_policy
from understudy.learn.method import Method, TrainedRun, load_policy
from understudy.nets.pretrained.act import ACTEncoder, ACTTransformer
from understudy.nets.pretrained.diffusion_policy import DiffusionPolicyEncoder
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig
from understudy.testing import random_batch

STATE, ENV, TOP = "observation.state", "observation.environment_state", "observation.images.top"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_has_the_form_of_lerobot(name, checkpoints, arrays, policies, tmp_path):
    policy, (inputs, _) = policies(name), arrays(name)
    write_lerobot_policy(policy, Method.load(checkpoints[name]).executor, tmp_path / "out")
    first, again = (load_file(folder / "model.safetensors") for folder in (checkpoints[name], tmp_path / "out"))
    assert {k: (v.shape, v.dtype) for k, v in first.items()} == {k: (v.shape, v.dtype) for k, v in again.items()}
    for key, tensor in first.items():
        close(again[key], tensor, 1e-6)
    folders = checkpoints[name], tmp_path / "out"
    config, ours = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert set(ours) <= set(config)
    differ = {k for k in ours if ours[k] != config[k]}
    # Statistics are always written as mean and standard deviation. Trained weights need no initial ones.
    assert differ <= {"normalization_mapping", "pretrained_backbone_weights", "push_to_hub", "optimizer_lr",
                      "optimizer_weight_decay", "drop_n_last_frames", "do_mask_loss_for_padding"}
    for file in ("policy_preprocessor.json", "policy_postprocessor.json"):
        processors = [json.loads((folder / file).read_text()) for folder in folders]
        assert [[s["registry_name"] for s in x["steps"]] for x in processors][::-1] == [
            [s["registry_name"] for s in x["steps"]] for x in processors]
    obs, noise = windows(policy, inputs), noise_of(policy, inputs)
    again = load_policy(tmp_path / "out")
    close(again.plan(obs, noise) / policy.action_scale, policy.plan(obs, noise) / policy.action_scale)


def test_a_constant_component_stays_harmless_in_lerobot(policies, checkpoints, tmp_path):
    """With a standard deviation of 0, LeRobot would multiply what a constant sensor measures otherwise by 1e8."""
    policy = policies("act_state")
    write_lerobot_policy(policy, Method.load(checkpoints["act_state"]).executor, tmp_path / "out")
    statistics = load_file(tmp_path / "out" / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    is_constant = policy.codec.obs_transforms[policy.inputs.index(STATE)].scale == 0
    coded = (0.01 / (statistics[f"{STATE}.std"] + 1e-8))[is_constant]
    assert len(coded) and coded.abs().max() < 1e-6


def test_the_command_says_what_the_folder_does_not_compute(checkpoints, tmp_path, monkeypatch, capsys):
    run, whole = checkpoints["act_state"], TrainedRun.load(checkpoints["act_state"])
    changed = replace(whole, method=replace(whole.method, transforms=(LastAction(),)))
    for trained, says in ((whole, False), (changed, True)):
        monkeypatch.setattr(TrainedRun, "load", lambda *args, trained=trained: trained)
        assert main(["export", str(run), "--out", str(tmp_path / str(says))]) == 0
        out = capsys.readouterr().out
        assert ("does not compute what LastAction adds" in out) is says
        assert f"understudy eval {run if says else tmp_path / 'False'} ENV" in out
    assert main(["export", str(run), "--out", str(tmp_path / "other"), "--inputs", "5"]) == 2
    assert "--inputs: a folder for LeRobot" in capsys.readouterr().err


CAMERA = Feature("uint8", (44, 48, 3), "image")
SEEN = {STATE: Feature("float32", (3,)), TOP: CAMERA, "observation.images.wrist": CAMERA}
DIFFUSION = PolicyConfig(Diffusion(3, DDPM(), 6, "squaredcos_cap_v2", "sample", spacing="leading"),
                         UNet((8, 16), 3, 8, 8, 6.0), DiffusionPolicyEncoder(keypoints=4), window=Window(2, 8, -1),
                         inputs=tuple(SEEN))
ACT = PolicyConfig(Regression("l1"), ACTTransformer(16, 2, 24, "gelu", 1, 2, 1, True, 0.0, ((2, 2), (2, 2)), STATE, 3),
                   ACTEncoder(16), Normalizer("identity", "quantile"), Window(1, 6), tuple(SEEN))


@pytest.mark.parametrize("config", [
    replace(DIFFUSION, encoder=DiffusionPolicyEncoder((32, 40), (40, 44), 4, group_norm=False, shared=False)),
    replace(DIFFUSION, head=replace(DIFFUSION.head, prediction="epsilon", clip_sample=0.0, n_steps=6)),
    ACT, replace(ACT, head=CVAE(4), trunk=replace(ACT.trunk, activation="relu", pre_norm=False))])
@torch.no_grad()
def test_every_setting_comes_back(config, tmp_path):
    """What is written and read again plans the same, for the settings that no fixture has."""
    policy, batch = random_batch(config, inputs=SEEN)
    for x in policy.parameters():  # scales and shifts that are no longer their first values
        if x.ndim == 1:
            x.add_(torch.linspace(0.1, 0.3, len(x)))
    executor = RecedingHorizon(2, skip=-config.window.action_offset)
    write_lerobot_policy(policy, executor, tmp_path / "out")
    again, method = load_policy(tmp_path / "out"), Method.load(tmp_path / "out")
    assert method.executor == executor and again.window == policy.window and again.features == policy.features
    for part in ("trunk", "encoder"):
        expected = getattr(config, part)
        assert getattr(again.config, part) == (replace(expected, output_groups=8) if isinstance(expected, UNet)
                                               else expected)
    noise = torch.randn(len(batch), *policy.noise_shape, generator=torch.Generator().manual_seed(0))
    assert noise.shape[1:] == again.noise_shape
    plan = policy.plan(batch.obs, noise)
    size = plan.abs().max()  # large without clipping
    close(again.plan(batch.obs, noise) / size, plan / size)


def test_what_lerobot_has_not_is_refused(policies, tmp_path):
    act, diffusion = policies("act_state"), policies("diffusion_state")
    head = diffusion.config.head

    def written(config, executor, features=act.features):
        write_lerobot_policy(Policy(config, features), executor, tmp_path / "out")
    for config, executor, says in (
        (replace(act.config, trunk=Transformer(32, 1, 4)), RecedingHorizon(4), "trunk Transformer"),
        (act.config, StreamingExecutor(), "executor StreamingExecutor"),
        (replace(act.config, inputs=(STATE,)), RecedingHorizon(4), "states alone"),
        (replace(act.config, inputs=(ENV, STATE)), RecedingHorizon(4), "order"),
        (replace(diffusion.config, head=replace(head, solver=DDIM())), RecedingHorizon(4, 1), "sampler"),
        (replace(diffusion.config, head=replace(head, spacing="trailing")), RecedingHorizon(4, 1), "trailing"),
        (replace(diffusion.config, head=replace(head, n_extra_steps=2)), RecedingHorizon(4, 1), "n_extra_steps"),
        (replace(diffusion.config, trunk=replace(diffusion.config.trunk, time_scale=100.0)), RecedingHorizon(4, 1),
         "time_scale"),
        (replace(diffusion.config, trunk=replace(diffusion.config.trunk, condition="input")), RecedingHorizon(4, 1),
         "concatenated"),
        (diffusion.config, RecedingHorizon(4), "executor"),
    ):
        with pytest.raises(Unsupported, match=says):
            written(config, executor)
    assert not (tmp_path / "out").exists()


UPSTREAM = """
import sys
sys.path.insert(0, sys.argv[1])
from upstream_lerobot import stand_in
stand_in()
import numpy as np, torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
kind, folder, inputs, out = sys.argv[2:]
policy = get_policy_class(kind).from_pretrained(folder, strict=True).eval()
before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
arrays = {k: torch.from_numpy(v) for k, v in np.load(inputs).items()}
obs = {k: arrays[k] for k in policy.config.input_features}
if kind == "act":
    chunk = policy.predict_action_chunk(before(obs))
else:
    seen = before({k: v for k, v in obs.items()})
    condition = policy.diffusion._prepare_global_conditioning(seen)
    with torch.no_grad():
        chunk = policy.diffusion.conditional_sample(4, condition, noise=arrays["noise"])
np.save(out, after(chunk).numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["act_state", "diffusion_state"])
def test_lerobot_loads_what_was_written(name, checkpoints, arrays, policies, shared, tmp_path):
    """lerobot itself loads the folder and plans what the policy does. Needs what `make test` installs.

    Its networks for cameras are torchvision's, which has no CPU build for this torch, so the two other checkpoints are
    compared with what lerobot computed elsewhere (`test_chunks_are_those_of_lerobot`).
    """
    policy, (inputs, _) = policies(name), arrays(name)
    write_lerobot_policy(policy, Method.load(checkpoints[name]).executor, tmp_path / "out")
    source = shared / "fixtures" / "lerobot_policies" / name / "inputs.npz"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    process = subprocess.run([sys.executable, "-c", UPSTREAM, str(TESTS), name.split("_")[0],
                              str(tmp_path / "out"), str(source), str(tmp_path / "chunk.npy")],
                             capture_output=True, text=True, env={**os.environ, **offline}, timeout=250)
    assert process.returncode == 0, f"pip install --no-deps -r benchmarks/peers/lerobot.txt?\n{process.stderr[-3000:]}"
    plan = policy.plan(windows(policy, inputs), noise_of(policy, inputs))
    close(torch.from_numpy(np.load(tmp_path / "chunk.npy")) / policy.action_scale, plan.detach() / policy.action_scale)


@pytest.mark.parametrize("size", (1.0, 1e-6))
def test_lerobot_scales_small_units_as_the_policy_does(policies, checkpoints, tmp_path, size):
    """LeRobot adds 1e-8 to a standard deviation before it divides."""
    policy = copy.deepcopy(policies("act_state"))
    transform = policy.codec.obs_transforms[policy.inputs.index(STATE)]
    transform.set_statistics(transform.offset, torch.full_like(transform.scale, size))
    write_lerobot_policy(policy, Method.load(checkpoints["act_state"]).executor, tmp_path / "out")
    statistics = load_file(tmp_path / "out" / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    torch.testing.assert_close(statistics[f"{STATE}.std"] + 1e-8, transform.scale, rtol=1e-6, atol=0)
    transform.set_statistics(transform.offset, torch.full_like(transform.scale, 1e-9))
    with pytest.raises(Unsupported, match="smaller unit"):
        write_lerobot_policy(policy, Method.load(checkpoints["act_state"]).executor, tmp_path / "other")
