"""Writes a policy as a checkpoint that LeRobot loads, where LeRobot has the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core import Unsupported
from ..data.codec import Normalizer
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.temporal_ensemble import TemporalEnsemble
from ..files import whole_folder, write_json
from ..heads.denoising.diffusion import Diffusion
from ..heads.likelihood.cvae import CVAE
from ..heads.likelihood.regression import Regression
from ..heads.solvers import DDIM, DDPM
from ..nets.pretrained.act import ACTEncoder, ACTTransformer, sequence_positions
from ..nets.pretrained.diffusion_policy import DiffusionPolicyEncoder
from ..nets.unet import UNet
from ..policy import Policy
from .lerobot_policies import (
    ACTION,
    ENVIRONMENT,
    EPS,
    POSTERIOR_OUTPUT,
    STATE,
    TIME_WEIGHT,
    reflect_time,
    scale_last_half,
    tensor_names,
)

CONSTANT_SCALE = 1e12  # of a constant observation: LeRobot divides by it, and so codes what it measures as almost 0
_OTHERWISE = "export it as ONNX (--out FILE.onnx), which holds every architecture"


def write_lerobot_policy(policy: Policy, executor: Executor, folder: Path | str) -> None:
    """Writes a policy of ACT or Diffusion Policy in the form of LeRobot 0.4.

    The policy consists of `ACTTransformer` and `ACTEncoder`, or of `UNet` and `DiffusionPolicyEncoder`, as a checkpoint
    of LeRobot gives it. The folder is what LeRobot calls `pretrained_model`: `lerobot-eval --policy.path=FOLDER`.

    Args:
        executor: Executes its plans: `RecedingHorizon`, or `TemporalEnsemble` for ACT.
        folder: A new folder.

    Raises:
        Unsupported: LeRobot has no such policy. The message says what differs.
    """
    policy_config = policy.config
    if isinstance(policy_config.trunk, ACTTransformer):
        settings = _act_settings(policy, policy_config.trunk, executor)
    elif isinstance(policy_config.trunk, UNet):
        settings = _diffusion_settings(policy, policy_config.trunk, executor)
    else:
        raise _unsupported(f"the trunk {type(policy_config.trunk).__name__}; it has ACTTransformer and UNet")
    features, modes, statistics = _normalization(policy)
    names = tensor_names(policy)
    film = not _has_shifts_only(policy)
    tensors = {lerobot_name: _to_lerobot(policy, own_name, policy.state_dict()[own_name], film)
               for own_name, lerobot_name in names.items()}
    if settings["type"] == "diffusion":
        settings["use_film_scale_modulation"] = film
    inputs = {k: f for k, f in features.items() if k != ACTION}
    config = {
        "type": settings.pop("type"), "n_obs_steps": policy.window.n_obs_steps, "input_features": inputs,
        "output_features": {ACTION: features[ACTION]}, "device": "cpu", "use_amp": False, "push_to_hub": False,
        "normalization_mapping": modes, **settings}
    steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    normalizer = {"eps": EPS, "features": features, "norm_map": modes}
    file = "policy_{}_step_{}_{}_processor.safetensors".format
    with whole_folder(folder) as part:
        write_json(part / "config.json", config)
        save_file({k: v.detach().cpu().contiguous() for k, v in {**tensors, **_derived(policy)}.items()},
                  part / "model.safetensors", {"format": "pt"})
        for place, number in (("preprocessor", 3), ("postprocessor", 0)):
            name = "normalizer" if number else "unnormalizer"
            step_config = normalizer if number else {**normalizer, "features": {ACTION: features[ACTION]}}
            step = {"registry_name": f"{name}_processor", "config": step_config,
                    "state_file": file(place, number, name)}
            write_json(part / f"policy_{place}.json", {
                "name": f"policy_{place}", "steps": [*steps, step] if number else [step, steps[2]]})
            save_file(statistics, part / file(place, number, name))


def _unsupported(problem: str, hint: str = _OTHERWISE) -> Unsupported:
    return Unsupported(f"LeRobot has no policy with {problem}", hint=hint)


def _require(holds: bool, problem: str, hint: str = _OTHERWISE) -> None:
    if not holds:
        raise _unsupported(problem, hint)


# -- settings -------------------------------------------------------------------------------------------------------


def _check_inputs(policy: Policy, order: tuple[str, ...]) -> None:
    """Raises an error if the columns are not those that LeRobot knows, in its order."""
    def kind(name):
        if policy.features[name].kind == "image":
            return "images"
        return {STATE: "state", ENVIRONMENT: "environment"}.get(name)
    kinds = [kind(name) for name in policy.inputs]
    naming_hint = f"name columns {STATE}, {ENVIRONMENT} and observation.images.NAME"
    _require(None not in kinds, f"the column {policy.inputs[kinds.index(None)] if None in kinds else ''!r}",
             naming_hint)
    _require("images" in kinds or "environment" in kinds, "states alone: it needs a camera or an environment state",
             f"name what the robot does not measure itself {ENVIRONMENT}")
    _require(kinds == sorted(kinds, key=order.index), f"inputs in the order {', '.join(policy.inputs)}",
             f"train with inputs in the order {', '.join(order)}")
    _require(not policy.window.goals and not policy.window.obs_pad_mask and not policy.window.obs_offset,
             "goals, masks of padding or an offset of observations")
    _require(policy.config.target == ACTION, f"the target {policy.config.target!r}")


def _act_settings(policy: Policy, trunk: ACTTransformer, executor: Executor) -> dict[str, Any]:
    head, encoder, window = policy.config.head, policy.config.encoder, policy.window
    _check_inputs(policy, ("state", "environment", "images"))
    _require(isinstance(encoder, ACTEncoder) and encoder.width == trunk.width,
             f"{type(encoder).__name__} before ACTTransformer, or of another width",
             "train with ACTEncoder of the width of the trunk")
    _require(window.n_obs_steps == 1 and window.action_offset == 0, f"the window {window} in ACT")
    _require(isinstance(head, CVAE) and head.temperature == 0 or isinstance(head, Regression),
             f"the head {type(head).__name__} in ACT, or a temperature")
    sizes = [policy.features[k].shape for k in policy.inputs if policy.features[k].kind == "image"]
    _require(trunk.grids == tuple((-(-h // 32), -(-w // 32)) for h, w, _ in sizes),
             f"learned positions of camera tokens (grids={trunk.grids})", "set ACTTransformer.grids for all cameras")
    size = policy.features[STATE].size if STATE in policy.inputs else 0
    has_posterior = isinstance(head, CVAE)
    _require(not has_posterior or (trunk.state, trunk.state_size) == (STATE, size) or size == trunk.state_size == 0,
             f"a posterior that reads {trunk.state_size} numbers of {trunk.state!r}",
             f"set ACTTransformer.state_size to {size}")
    ensemble = isinstance(executor, TemporalEnsemble)
    _require(ensemble or isinstance(executor, RecedingHorizon), f"the executor {type(executor).__name__}")
    return {
        "type": "act", "chunk_size": window.horizon,
        "n_action_steps": executor.n_action_steps if isinstance(executor, RecedingHorizon) else 1,
        "vision_backbone": "resnet18", "pretrained_backbone_weights": None, "replace_final_stride_with_dilation": False,
        "pre_norm": trunk.pre_norm, "dim_model": trunk.width, "n_heads": trunk.heads,
        "dim_feedforward": trunk.feed_forward, "feedforward_activation": trunk.activation,
        "n_encoder_layers": trunk.encoder_depth, "n_decoder_layers": trunk.depth, "use_vae": has_posterior,
        "latent_dim": head.latent_dim if isinstance(head, CVAE) else 1, "n_vae_encoder_layers": trunk.posterior_depth,
        "temporal_ensemble_coeff": executor.decay if isinstance(executor, TemporalEnsemble) else None,
        "dropout": trunk.dropout, "kl_weight": head.beta if isinstance(head, CVAE) else 10.0,
        "optimizer_lr": 1e-5, "optimizer_weight_decay": 1e-4, "optimizer_lr_backbone": 1e-5}


def _diffusion_settings(policy: Policy, trunk: UNet, executor: Executor) -> dict[str, Any]:
    head, encoder, window = policy.config.head, policy.config.encoder, policy.window
    _require(isinstance(head, Diffusion), f"UNet and the head {type(head).__name__}")
    _require(isinstance(encoder, DiffusionPolicyEncoder), f"UNet and the encoder {type(encoder).__name__}",
             "train with DiffusionPolicyEncoder, or " + _OTHERWISE)
    assert isinstance(head, Diffusion) and isinstance(encoder, DiffusionPolicyEncoder)
    _check_inputs(policy, ("state", "images", "environment"))
    _require(STATE in policy.inputs, f"no {STATE} in Diffusion Policy")
    _require(window.action_offset == 1 - window.n_obs_steps, f"chunks that begin at step {window.action_offset}",
             f"train with action_offset={1 - window.n_obs_steps}")
    _require(trunk.time_scale == head.n_train_steps, f"time_scale={trunk.time_scale:g} in a U-Net for "
             f"{head.n_train_steps} noise levels", f"train with UNet(time_scale={head.n_train_steps})")
    _require(trunk.condition == "film", "a context that is concatenated to the input of a U-Net",
             'train with UNet(condition="film")')
    _require((trunk.output_groups or trunk.groups) == 8, "another number of groups than 8 in the last normalization",
             "train with UNet(output_groups=8)")
    _require(window.horizon % 2 ** len(trunk.widths) == 0, f"a horizon of {window.horizon} steps, not a multiple "
             f"of {2 ** len(trunk.widths)}", "train with another horizon")
    _require(isinstance(head.solver, DDPM) or isinstance(head.solver, DDIM) and (
        not head.solver.clipped_noise or not head.clip_sample), f"the sampler {head.solver}",
        "sample with DDPM or DDIM(clipped_noise=False): replace config.head of the policy")
    _require(head.spacing == "leading" or head.n_steps == head.n_train_steps, f"spacing={head.spacing!r}",
             'sample with Diffusion(spacing="leading"): replace config.head of the policy')
    _require(not head.n_extra_steps, f"n_extra_steps={head.n_extra_steps}",
             "sample with n_extra_steps=0: replace config.head of the policy")
    _require(head.prediction != "v" and head.times == "shared" and (
        head.schedule == "squaredcos_cap_v2" or head.n_train_steps == 1000),
        f"prediction={head.prediction!r}, times={head.times!r} and schedule={head.schedule!r}")
    skip = window.n_obs_steps - 1
    _require(isinstance(executor, RecedingHorizon) and executor.skip == skip, f"the executor {executor}",
             f"use RecedingHorizon(n_action_steps, skip={skip})")
    assert isinstance(executor, RecedingHorizon)
    return {
        "type": "diffusion", "horizon": window.horizon, "n_action_steps": executor.n_action_steps,
        "drop_n_last_frames": max(0, window.horizon - executor.n_action_steps - skip), "vision_backbone": "resnet18",
        "resize_shape": encoder.resize, "crop_ratio": 1.0, "crop_shape": encoder.crop, "crop_is_random": True,
        "pretrained_backbone_weights": None, "use_group_norm": encoder.group_norm,
        "spatial_softmax_num_keypoints": encoder.keypoints,
        "use_separate_rgb_encoder_per_camera": not encoder.shared, "down_dims": trunk.widths,
        "kernel_size": trunk.kernel, "n_groups": trunk.groups, "diffusion_step_embed_dim": trunk.time_width,
        "noise_scheduler_type": type(head.solver).__name__, "num_train_timesteps": head.n_train_steps,
        "beta_schedule": head.schedule, "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": head.prediction,
        "clip_sample": head.clip_sample > 0, "clip_sample_range": head.clip_sample or 1.0,
        "num_inference_steps": head.n_steps, "do_mask_loss_for_padding": True}


def _normalization(policy: Policy) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    """Returns LeRobot's features, its normalization by type of feature, and statistics."""
    codec = policy.config.codec
    _require(type(codec) is Normalizer and codec.relative is None and codec.group_by is None
             and policy.target.kind == "vector", f"the codec {type(codec).__name__} with these settings",
             "train with Normalizer(), on actions that are numbers, without relative and group_by")
    buffers = policy.state_dict()
    features: dict[str, Any] = {}
    statistics: dict[str, Tensor] = {}
    vectors = [k for k in policy.inputs if policy.features[k].kind == "vector"]
    images = [k for k in policy.inputs if policy.features[k].kind == "image"]
    for column in (*policy.inputs, ACTION):
        shape, kind = policy.features[column].shape, {STATE: "STATE", ACTION: "ACTION"}.get(column, "ENV")
        if column in images:
            kind, shape = "VISUAL", (shape[2], *shape[:2])
            place = f"encoder.pixels.{images.index(column)}"
            mean, std = buffers[f"{place}.mean"], buffers[f"{place}.std"]
        else:
            place = "codec.action_transform" if column == ACTION else f"codec.obs_transforms.{vectors.index(column)}"
            # Without normalization the codec has no statistics of a column.
            mean = buffers.get(f"{place}.offset", torch.zeros(shape))
            std = buffers.get(f"{place}.scale", torch.ones(shape))
            if column != ACTION:
                _require(not ((std > 0) & (std <= 2 * EPS)).any(), f"the standard deviations of {column}, some of "
                         f"which are at most {2 * EPS:g}", "store the column in a smaller unit")
                std = torch.where(std > 0, std - EPS, CONSTANT_SCALE)  # LeRobot divides by the sum of std and EPS
        features[column] = {"type": kind, "shape": shape}
        statistics |= {f"{column}.mean": mean.detach().cpu().clone(), f"{column}.std": std.detach().cpu().clone()}
    return features, dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "MEAN_STD"), statistics


# -- weights --------------------------------------------------------------------------------------------------------


def _has_shifts_only(policy: Policy) -> bool:
    """Returns whether all scales of a U-Net are 1 for any context, as LeRobot needs to store it without scales."""
    tensors = {k: v for k, v in policy.state_dict().items() if ".film." in k}
    return all((v.chunk(2)[0] == float(k.endswith("bias"))).all() for k, v in tensors.items())


def _to_lerobot(policy: Policy, name: str, tensor: Tensor, film: bool) -> Tensor:
    """Converts a tensor of understudy to the form of LeRobot."""
    if name.startswith(POSTERIOR_OUTPUT):
        return scale_last_half(tensor, 2.0)
    if name == TIME_WEIGHT:
        return reflect_time(policy, tensor)
    if ".film." in name and not film:
        return tensor.chunk(2)[1]
    if name.startswith("encoder.cameras.") and name.endswith("output_layer.weight"):
        return torch.stack(tensor.chunk(2, 1), 2).flatten(1)
    return tensor


def _derived(policy: Policy) -> Mapping[str, Tensor]:
    """Returns tensors of LeRobot that follow from the settings, such as position codes."""
    config = policy.config
    if isinstance(config.trunk, ACTTransformer):
        if not isinstance(config.head, CVAE):
            return {"model.encoder_latent_input_proj.weight": torch.zeros(config.trunk.width, 1)}
        n_tokens = 1 + (STATE in policy.inputs) + policy.window.horizon
        return {"model.vae_encoder_pos_enc": sequence_positions(n_tokens, config.trunk.width).unsqueeze(0)}
    encoder, tensors = config.encoder, {}
    assert isinstance(encoder, DiffusionPolicyEncoder)
    sizes = [policy.features[k].shape[:2] for k in policy.inputs if policy.features[k].kind == "image"]
    for number, size in enumerate(sizes[:1] if encoder.shared else sizes):
        h, w = (-(-n // 32) for n in encoder.crop or encoder.resize or size)
        place = "diffusion.rgb_encoder." + ("" if encoder.shared else f"{number}.")
        y, x = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
        tensors[f"{place}pool.pos_grid"] = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1)
        if not encoder.group_norm:
            norms = {k.rsplit(".", 1)[0] for k in tensor_names(policy).values() if k.endswith("running_mean")}
            tensors |= {f"{norm}.num_batches_tracked": torch.zeros((), dtype=torch.int64) for norm in norms}
    return tensors
