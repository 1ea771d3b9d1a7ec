"""Policies of LeRobot, read into our parts. The fixtures are checkpoints, inputs and outputs of lerobot 0.4.4."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.lerobot_policies import NAMES, close, noise_of, windows
from safetensors.torch import load_file, save_file

import understudy
from understudy.cli import main
from understudy.core import Unsupported, UserError, keys
from understudy.data.window import Window
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.solvers import DDIM, DDPM
from understudy.learn.lerobot_export import write_lerobot_policy
from understudy.learn.method import Method, load_actor, load_policy
from understudy.learn.stages import continue_from
from understudy.methods.chunking.act import act
from understudy.nets.pretrained.act import ACTTransformer, grid_positions, sequence_positions
from understudy.policy import Policy

STATE, ENV, TOP = "observation.state", "observation.environment_state", "observation.images.top"


# -- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_are_those_of_lerobot(name, policies, arrays):
    policy, (inputs, outputs) = policies(name), arrays(name)
    obs, start = windows(policy, inputs), policy.window.n_obs_steps - 1
    context = policy.context(obs)
    if "horizon_normalized" in outputs:
        close(policy.config.head.sample(policy.net, context, inputs["noise"]), outputs["horizon_normalized"])
        close(context.flat(), outputs["global_condition"])
    else:
        close(policy.config.head.sample(policy.net, context, noise_of(policy, inputs)), outputs["chunk_normalized"])
    chunk = policy.plan(obs, noise_of(policy, inputs))
    n_steps = outputs["chunk"].shape[1]
    close(chunk[:, start:start + n_steps] / policy.action_scale, outputs["chunk"] / policy.action_scale)
    close(chunk[:, start:start + n_steps], outputs["chunk"], 1e-4)  # units of the data, up to 50


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_observations_are_normalized_as_lerobot_does(name, policies, arrays):
    policy, (inputs, outputs) = policies(name), arrays(name)
    obs = windows(policy, inputs)
    coded = policy.codec.encode_obs(obs)
    for column in policy.inputs:
        normalized = outputs[f"normalized.{column}"]
        coded_column = coded[column]
        if policy.features[column].kind == "image":
            pixels = policy.encoder.pixels[0](coded_column.flatten(0, 1).permute(0, 3, 1, 2))
            coded_column = pixels[..., ::8, ::8].unflatten(0, obs[column].shape[:2])
        close(coded_column if policy.window.n_obs_steps > 1 else coded_column.squeeze(1), normalized)
    close(policy.encode(inputs["action"], obs), outputs["normalized.action"])


@pytest.mark.parametrize("name", ["act_camera", "diffusion_camera"])
@torch.no_grad()
def test_image_features_are_those_of_lerobot(name, policies, arrays):
    policy, (inputs, outputs) = policies(name), arrays(name)
    image = policy.encoder.pixels[0](windows(policy, inputs)[TOP].flatten(0, 1).permute(0, 3, 1, 2))
    if name == "act_camera":
        size = outputs["features"].abs().max()
        close(policy.encoder.backbone(image) / size, outputs["features"] / size)
        return
    features = policy.context(windows(policy, inputs)).tokens[..., 6:]
    close(features, outputs["features"])


@pytest.mark.parametrize("name", ["act_state", "act_camera"])
@torch.no_grad()
def test_the_posterior_and_the_loss_of_act(name, policies, arrays):
    policy, (inputs, outputs) = policies(name), arrays(name)
    obs, mask, head = windows(policy, inputs), ~inputs["action_is_pad"], policy.config.head
    context, action = policy.context(obs), policy.encode(inputs["action"], obs)
    assert not mask.all()
    mean, log_std = head._posterior(policy.net, context, action * mask.unsqueeze(-1), mask)
    close(mean, outputs["train.mu"])
    close(2 * log_std, outputs["train.log_sigma_x2"])
    chunk = head._decode(policy.net, context, mean + log_std.exp() * inputs["train.noise"])
    close(chunk, outputs["train.chunk_normalized"])
    divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1).mean()
    error = ((chunk - action).abs().mean(-1) * mask).mean()
    close(divergence, outputs["train.kld_loss"])
    close(error + head.beta * divergence, outputs["train.loss"], 1e-4)  # a loss of about 100


@pytest.mark.parametrize("name, masked", [("diffusion_state", True), ("diffusion_camera", False)])
@torch.no_grad()
def test_the_network_and_the_loss_of_diffusion(name, masked, policies, arrays):
    policy, (inputs, outputs) = policies(name), arrays(name)
    obs, head = windows(policy, inputs), policy.config.head
    context, action = policy.context(obs), policy.encode(inputs["action"], obs)
    # LeRobot numbers the noise levels from 0.
    t = (1 - (inputs["train.timesteps"] + 1) / head.n_train_steps)[:, None, None].expand(-1, 8, 1)
    close(policy.net(inputs["noise"], t, context), outputs["unet"])
    error = policy.net(head.interpolate(action, inputs["train.noise"], t), t, context) - inputs["train.noise"]
    weight = ~inputs["action_is_pad"] if masked else torch.ones(4, 8)
    close((error.square().mean(-1) * weight).mean(), outputs["train.loss"])


@torch.no_grad()
def test_ddpm_draws_the_noise_of_lerobot(checkpoints, arrays, tmp_path):
    folder = changed(checkpoints["diffusion_state"], tmp_path, noise_scheduler_type="DDPM", num_inference_steps=None)
    policy, (inputs, outputs) = load_policy(folder), arrays("diffusion_state")
    noise = torch.cat([inputs["noise"], *inputs["ddpm.step_noise"]], -1)
    assert policy.config.head.solver == DDPM() and noise.shape[1:] == policy.noise_shape
    close(policy.config.head.sample(policy.net, policy.context(windows(policy, inputs)), noise),
          outputs["ddpm.horizon_normalized"])


@pytest.mark.parametrize("name, settings, key", [
    ("act_state", {}, "rollout"), ("diffusion_state", {}, "rollout"),
    ("act_state", {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}, "rollout_ensembled")])
def test_rollouts_are_those_of_lerobot(name, settings, key, checkpoints, arrays, tmp_path, monkeypatch):
    inputs, outputs = arrays(name)
    actor = load_actor(changed(checkpoints[name], tmp_path, **settings))
    policy = actor.planner
    assert isinstance(actor.executor, TemporalEnsemble if settings else RecedingHorizon)
    if "rollout.noise" in inputs:
        monkeypatch.setattr(policy, "noise", lambda key, count: inputs["rollout.noise"][count[0]])
    steps = [{k: inputs[f"rollout.{k}"][t] for k in policy.inputs} for t in range(10)]
    state, actions = actor.start(steps[0], keys(0, range(4))), []
    for obs in steps:
        action, state = actor.act(obs, state)
        actions.append(action)
    scale = policy.action_scale
    close(torch.stack(actions) / scale, outputs[key] / scale)


@torch.no_grad()
def test_the_method_act_differs_from_lerobot_in_its_two_networks_only(checkpoints, policies, arrays):
    """With LeRobot's encoder, transformer and weights, its head, normalization and ensemble give LeRobot's actions."""
    policy, (inputs, outputs), method = policies("act_state"), arrays("act_state"), act(8, ensemble=True)
    config = replace(method.policy, trunk=policy.config.trunk, encoder=policy.config.encoder, inputs=policy.inputs,
                     head=replace(method.policy.head, latent_dim=12))
    assert config == policy.config
    actor, actions = PolicyActor(policy, method.executor), []
    steps = [{k: inputs[f"rollout.{k}"][t] for k in policy.inputs} for t in range(10)]
    state = actor.start(steps[0], keys(0, range(4)))
    for obs in steps:
        action, state = actor.act(obs, state)
        actions.append(action)
    close(torch.stack(actions) / policy.action_scale, outputs["rollout_ensembled"] / policy.action_scale)


# -- the parts --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_method(checkpoints):
    act, diffusion = (Method.load(checkpoints[name]) for name in ("act_camera", "diffusion_camera"))
    assert isinstance(act.policy.trunk, ACTTransformer) and act.policy.trunk.grids == ((2, 3),)
    assert act.policy.window == Window(1, 8) and act.executor == RecedingHorizon(4)
    assert act.learner.optimizer.lr == 1e-5 and act.policy.inputs == (STATE, TOP)
    assert diffusion.policy.head == Diffusion(5, DDIM(clipped_noise=False), 20, spacing="leading")
    assert diffusion.policy.window == Window(2, 8, -1) and diffusion.executor == RecedingHorizon(4, 1)
    assert diffusion.policy.encoder.crop == (60, 84) and diffusion.policy.trunk.time_scale == 20


def test_sinusoids_of_positions(checkpoints):
    stored = load_file(checkpoints["act_state"] / "model.safetensors")["model.vae_encoder_pos_enc"]
    close(sequence_positions(10, 32), stored[0], 1e-6)
    assert sequence_positions(3, 4)[2].tolist() == pytest.approx([np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)])
    grid = grid_positions(2, 3, 8).unflatten(0, (2, 3))
    assert grid[0, 2, :2].tolist() == pytest.approx([np.sin(np.pi), np.cos(np.pi)], abs=1e-5), "the first of two rows"
    assert grid[1, 0, 4:6].tolist() == pytest.approx([np.sin(2 * np.pi / 3), np.cos(2 * np.pi / 3)], abs=1e-5)


def test_a_constant_component_stays_harmless(policies, arrays):
    """LeRobot amplifies what a constant sensor measures otherwise by 1e8. Here it changes little."""
    for name in ("act_state", "diffusion_state"):
        policy, (inputs, _) = policies(name), arrays(name)
        obs = windows(policy, inputs)
        other = {**obs, STATE: obs[STATE] + torch.tensor([0, 0, 0, 0, 0, 0.01])}
        chunk, changed_chunk = (policy.plan(o, noise_of(policy, inputs)) for o in (obs, other))
        close(changed_chunk / policy.action_scale, chunk / policy.action_scale, 1e-3)


def test_it_is_an_ordinary_policy(checkpoints, policies, arrays, tmp_path):
    """It is saved as one, and the loss of training is finite and reaches the weights."""
    for name in NAMES[::2]:
        policy, (inputs, _) = policies(name), arrays(name)
        policy.save(tmp_path / name)
        again = Policy.load(tmp_path / name)
        obs = windows(policy, inputs)
        assert again.config == policy.config
        assert torch.equal(again.plan(obs, noise_of(policy, inputs)), policy.plan(obs, noise_of(policy, inputs)))
        batch = understudy.Batch(obs, inputs["action"], ~inputs["action_is_pad"])
        again.train().loss(batch, torch.Generator().manual_seed(0)).mean().backward()
        dead = {n for n, p in again.named_parameters() if p.grad is None or not p.grad.any()}
        # The first layer of ACT's decoder attends to zeros. Its keys and queries are then biases alone.
        assert {n for n in dead if "decoder.0.self_attn" not in n} == set()


def test_a_run_of_lerobot_has_a_last_checkpoint(checkpoints, tmp_path):
    for step in ("000100", "000200"):
        shutil.copytree(checkpoints["act_state"], tmp_path / "run" / "checkpoints" / step / "pretrained_model")
    set_config(tmp_path / "run" / "checkpoints" / "000200" / "pretrained_model", n_action_steps=3)
    assert load_actor(tmp_path / "run").executor == RecedingHorizon(3)
    assert load_actor(tmp_path / "run" / "checkpoints" / "000100").executor == RecedingHorizon(4)
    (tmp_path / "run" / "checkpoints" / "last").symlink_to("000100")
    assert load_actor(tmp_path / "run").executor == RecedingHorizon(4)
    with pytest.raises(UserError, match=r"policy of LeRobot(.|\n)*load_policy"):
        Policy.load(tmp_path / "run")


# -- other checkpoints ------------------------------------------------------------------------------------------------


def set_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def changed(folder, tmp_path, **settings):
    """A copy of a checkpoint with other settings."""
    shutil.copytree(folder, tmp_path / "changed")
    set_config(tmp_path / "changed", **settings)
    return tmp_path / "changed"


def without_processors(folder, tmp_path, name):
    """The checkpoint as LeRobot before 0.4 stored it, with the statistics among the weights."""
    old = tmp_path / f"old_{name}"
    shutil.copytree(folder, old)
    tensors = load_file(old / "model.safetensors")
    for key, value in load_file(old / "policy_preprocessor_step_3_normalizer_processor.safetensors").items():
        column, leaf = key.rsplit(".", 1)
        place = f"buffer_{column.replace('.', '_')}.{leaf}"
        for module in ("normalize_targets", "unnormalize_outputs") if column == "action" else ("normalize_inputs",):
            tensors[f"{module}.{place}"] = value.clone()
    save_file(tensors, old / "model.safetensors")
    for file in old.glob("policy_p*"):
        file.unlink()
    return old


@pytest.mark.parametrize("name", ["act_state", "diffusion_state"])
def test_statistics_among_the_weights(name, checkpoints, arrays, policies, tmp_path):
    old, (inputs, _) = load_policy(without_processors(checkpoints[name], tmp_path, name)), arrays(name)
    obs = windows(old, inputs)
    assert torch.equal(old.plan(obs, noise_of(old, inputs)), policies(name).plan(obs, noise_of(old, inputs)))


def test_a_column_that_lerobot_renames_has_the_name_of_the_robot(checkpoints, arrays, policies, tmp_path):
    folder = changed(checkpoints["act_state"], tmp_path)
    file = folder / "policy_preprocessor.json"
    processor = json.loads(file.read_text())
    processor["steps"][0]["config"]["rename_map"] = {"observation.joints": STATE}
    file.write_text(json.dumps(processor))
    policy, (inputs, _) = load_policy(folder), arrays("act_state")
    obs = windows(policies("act_state"), inputs)
    plan = policies("act_state").plan(obs, torch.zeros(4, 12))
    assert policy.inputs == ("observation.joints", ENV)
    assert torch.equal(policy.plan({"observation.joints": obs[STATE], ENV: obs[ENV]}, torch.zeros(4, 12)), plan)


def test_act_without_a_posterior(checkpoints, arrays, policies, tmp_path):
    """It is trained by regression. The latent is zero, as in plans of the others."""
    folder = changed(checkpoints["act_state"], tmp_path, use_vae=False)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "vae_encoder" not in k} | {
        "model.encoder_latent_input_proj.weight": torch.zeros(32, 12)}, folder / "model.safetensors")
    policy, (inputs, outputs) = load_policy(folder), arrays("act_state")
    close(policy.plan(windows(policy, inputs), torch.zeros(4, *policy.noise_shape)) / policy.action_scale,
          outputs["chunk"] / policy.action_scale)


@pytest.mark.parametrize("name, settings, says", [
    ("act_state", {"type": "smolvla"}, "'smolvla' cannot be loaded; those of type act and diffusion can"),
    ("act_state", {"type": None}, "does not say the type"),
    ("act_camera", {"vision_backbone": "resnet50"}, "vision_backbone='resnet50'"),
    ("act_state", {"use_peft": True}, "adapter"),
    ("act_state", {"chunk_size": "eight"}, "'chunk_size' is 'eight'"),
    ("diffusion_state", {"beta_schedule": "linear"}, "beta_schedule='linear'"),
    ("diffusion_state", {"prediction_type": "v_prediction"}, "prediction_type='v_prediction'"),
    ("diffusion_state", {"down_dims": [32, 64, 128]}, "are missing"),
    ("diffusion_state", {"kernel_size": 3}, "of another shape"),
    ("act_state", {"n_encoder_layers": 1}, "do not belong to the act policy"),
])
def test_what_cannot_be_loaded_is_named(name, settings, says, checkpoints, tmp_path):
    folder = changed(checkpoints[name], tmp_path, **settings)
    with pytest.raises(UserError) as error:
        load_policy(folder)
    assert says in str(error.value) and error.value.hint and str(folder) in str(error.value)
    unsupported = "=" in says or "use_peft" in settings or settings.get("type")
    assert isinstance(error.value, Unsupported) == bool(unsupported)


def test_an_unknown_processor_is_refused(checkpoints, tmp_path):
    folder = changed(checkpoints["act_state"], tmp_path)
    file = folder / "policy_preprocessor.json"
    processor = json.loads(file.read_text())
    processor["steps"].append({"registry_name": "delta_action_processor", "config": {}})
    file.write_text(json.dumps(processor))
    with pytest.raises(Unsupported, match="delta_action_processor"):
        load_policy(folder)


def test_damaged_files_are_named(checkpoints, tmp_path):
    folder = changed(checkpoints["act_state"], tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors.*damaged"):
        load_policy(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no such file"):
        load_policy(folder)


# -- commands ---------------------------------------------------------------------------------------------------------


ROBOT = """
import torch
from understudy.core import Feature
from understudy.envs.base import Env, StepResult


class Robot(Env):
    features = {"observation.state": Feature("float32", (6,)), "action": Feature("float32", (3,)),
                "observation.environment_state": Feature("float32", (4,))}

    def __init__(self, rows=1):
        self.rows, self.clock = rows, torch.zeros(rows, dtype=torch.int64)
        self.metadata = {"env": "robot", "version": 1, "fps": 10, "limit": 3, "success": "never"}

    def reset(self, which, key):
        self.clock[which] = 0
        return self._seen()

    def step(self, action):
        self.clock = self.clock + 1
        no = torch.zeros(self.rows, dtype=torch.bool)
        return StepResult(self._seen(), no.float(), no, self.clock >= 3, {"success": no})

    def _seen(self):
        return {name: torch.zeros(self.rows, *f.shape) for name, f in self.features.items() if name != "action"}
"""


@pytest.fixture
def robot(tmp_path, monkeypatch):
    (tmp_path / "lerobot_test_robot.py").write_text(ROBOT)
    monkeypatch.syspath_prepend(tmp_path)
    return "lerobot_test_robot:Robot"


def test_commands_take_a_run_of_lerobot(checkpoints, robot, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(checkpoints["act_state"], run / "checkpoints" / "000100" / "pretrained_model")
    before = sorted(p.name for p in run.rglob("*"))
    trust = ["--trust", robot.split(":")[0]]
    main(["eval", str(run), robot, *trust, "--episodes", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
    assert sorted(p.name for p in run.rglob("*")) == before, "the folder of LeRobot is not changed"


def test_a_policy_of_lerobot_is_trained_further(checkpoints, arrays, tmp_path):
    """From its weights and statistics, on other data, and what comes out can be written for LeRobot again."""
    rng, source = np.random.default_rng(0), checkpoints["act_state"]
    data = understudy.Dataset([understudy.Episode({
        STATE: rng.normal(size=(12, 6)).astype("float32"), ENV: rng.normal(size=(12, 4)).astype("float32"),
        "action": rng.normal(size=(12, 3)).astype("float32")}) for _ in range(3)])
    method = Method.load(source)
    method = replace(method, learner=replace(method.learner, steps=3, batch_size=8))
    understudy.train(continue_from(method, source), data, tmp_path / "run", seed=0, progress=False, device="cpu",
                     stages={"from": source})
    before, after = load_policy(source), load_policy(tmp_path / "run")
    assert torch.equal(after.codec.action_transform.scale, before.codec.action_transform.scale)
    moved = [(a - b).abs().max() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert 0 < max(moved) < 1e-3, "three small updates of these weights"
    write_lerobot_policy(after, method.executor, tmp_path / "out")
    inputs, _ = arrays("act_state")
    obs = windows(after, inputs)
    close(load_policy(tmp_path / "out").plan(obs, torch.zeros(4, 12)), after.plan(obs, torch.zeros(4, 12)), 1e-4)
