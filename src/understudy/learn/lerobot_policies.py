"""Loads ACT and Diffusion Policy checkpoints of LeRobot as policies of understudy.

A checkpoint is a folder `pretrained_model`: config.json, model.safetensors, and since LeRobot 0.4 the processor files
policy_preprocessor.json and policy_postprocessor.json with the statistics of the data. Checkpoints of LeRobot 0.1 to
0.3 have the statistics among the weights.

The networks are `nets.pretrained.act` and `nets.pretrained.diffusion_policy`, and `nets.unet`, whose weights correspond
one to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import load_tensors, read_tensors
from ..core import Feature, Unsupported, UserError
from ..data.codec import Normalizer
from ..data.running_statistics import Scale
from ..data.window import Window
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.temporal_ensemble import TemporalEnsemble
from ..files import read_json
from ..heads.base import Head
from ..heads.denoising.diffusion import Diffusion
from ..heads.likelihood.cvae import CVAE
from ..heads.likelihood.regression import Regression
from ..heads.solvers import DDIM, DDPM
from ..nets.base import Encoder, Trunk
from ..nets.pretrained.act import ACTEncoder, ACTTransformer
from ..nets.pretrained.diffusion_policy import DiffusionPolicyEncoder
from ..nets.unet import UNet
from ..nets.vision import without_downloads
from ..policy import Policy, PolicyConfig
from .behavior_cloning import BehaviorCloning
from .fit import LearnerConfig
from .optimizer import OptimizerConfig

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"  # fixed by LeRobot
_TYPES = ("act", "diffusion")
_DOWNLOAD = "copy or download the folder pretrained_model again"
_MODES: dict[str, Scale] = {"IDENTITY": "identity", "MEAN_STD": "zscore", "MIN_MAX": "minmax",
                            "QUANTILES": "quantile", "QUANTILE10": "quantile"}
_LIMITS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
EPS = 1e-8  # of LeRobot's normalization, where a file does not say it


def read_method(folder: Path) -> tuple[PolicyConfig, Executor, LearnerConfig]:
    """Reads the configuration of a LeRobot checkpoint, the folder `pretrained_model`: what a `Method` starts with.

    The learner has the optimizer settings of LeRobot.
    """
    return _Checkpoint(folder).method()


def load_lerobot_policy(folder: Path, device: str | torch.device = "cpu") -> Policy:
    """Loads the policy of a LeRobot checkpoint, the folder `pretrained_model`, in evaluation mode.

    Raises:
        Unsupported: The policy is neither ACT nor Diffusion Policy, or has a setting that understudy lacks.
    """
    checkpoint = _Checkpoint(folder)
    with without_downloads():
        policy = Policy(checkpoint.method()[0], checkpoint.features())
    path = folder / "model.safetensors"
    # torch.compile adds "_orig_mod" to names.
    stored = {k.replace("._orig_mod.", "."): v.float() for k, v in read_tensors(path, _DOWNLOAD).items()}
    tensors = checkpoint.statistics(policy, stored)
    names = tensor_names(policy)
    if missing := [lerobot_name for lerobot_name in names.values() if lerobot_name not in stored]:
        raise UserError(f"{len(missing)} tensors of the {checkpoint.kind} policy in config.json are missing, such as "
                        f"{missing[0]}", where=path, hint=_DOWNLOAD)
    if extra := [k for k in sorted(stored.keys() - set(names.values())) if not _is_unused(policy, k)]:
        raise UserError(f"{len(extra)} tensors do not belong to the {checkpoint.kind} policy in config.json, such as "
                        f"{extra[0]}", where=path, hint="config.json and model.safetensors must come from the same "
                                                        "folder; " + _DOWNLOAD)
    for ours, lerobot_name in names.items():
        tensors[ours] = _from_lerobot(policy, ours, stored[lerobot_name])
    try:
        load_tensors(policy, tensors)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit config.json: {error}", where=path, hint=_DOWNLOAD) from None
    return policy.eval().to(device)


# -- configuration --------------------------------------------------------------------------------------------------


class _Checkpoint:
    """The JSON files of a LeRobot checkpoint."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "config.json"
        self.values = _read_object(self.path)
        self.kind = self.values.get("type")
        if self.kind is None:
            raise UserError("the file does not say the type of a LeRobot policy", where=self.path,
                            hint="name the folder pretrained_model of a checkpoint. LeRobot before 0.1 stored no type: "
                                 "train again, or migrate the checkpoint with LeRobot")
        if self.kind not in _TYPES:
            raise Unsupported(f"LeRobot policies of type {self.kind!r} cannot be loaded; those of type act and "
                              "diffusion can", where=self.path,
                              hint="evaluate it with LeRobot (lerobot-eval), or train one of the methods of understudy "
                                   "on the same data: understudy methods")
        if self.get("use_peft", bool, False) or (folder / "adapter_config.json").exists():
            raise Unsupported("the checkpoint holds an adapter (PEFT), not a whole policy", where=folder,
                              hint="merge the adapter into the weights with LeRobot and PEFT first")
        self.renamed, self.modes, self.stored, self.eps = self._processors()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Returns a setting of the checkpoint. Without a default it must be there."""
        value, kinds = self.values.get(key, default), kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or isinstance(value, bool) and bool not in kinds:
            problem = f"the setting {key!r} is {value!r}" if key in self.values else f"the setting {key!r} is missing"
            raise UserError(problem, where=self.path, hint=_DOWNLOAD)
        return value

    def unsupported(self, key: str, hint: str) -> Unsupported:
        return Unsupported(f"policies with {key}={self.values.get(key)!r} cannot be loaded", where=self.path, hint=hint)

    def _processors(self):
        """Returns the normalization settings: column names, mode by type of feature, statistics, and eps."""
        modes, path = self.get("normalization_mapping", dict), self.folder / "policy_preprocessor.json"
        if not path.exists():
            return {}, modes, None, EPS
        renamed: dict[str, str] = {}
        stored: dict[str, dict[str, Tensor]] = {}
        eps = EPS
        for file, normalizer in ((path, "normalizer_processor"),
                                 (self.folder / "policy_postprocessor.json", "unnormalizer_processor")):
            for step in _read_object(file).get("steps", ()):
                name, settings = step.get("registry_name", step.get("class")), step.get("config", {})
                if name == normalizer:
                    modes, eps = settings.get("norm_map", modes), settings.get("eps", eps)
                    if "state_file" in step:
                        _add_statistics(stored, read_tensors(self.folder / step["state_file"], _DOWNLOAD))
                elif name == "rename_observations_processor":
                    renamed |= {new: old for old, new in settings.get("rename_map", {}).items()}
                elif name not in ("to_batch_processor", "device_processor"):
                    raise Unsupported(f"the processor has a step {name!r}, which understudy does not know", where=file,
                                      hint="evaluate the policy with LeRobot, or train it without this step")
        return renamed, modes, stored, eps

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns type and shape of each column that the policy reads, by LeRobot's name, in order."""
        inputs = {k: (f["type"], tuple(f["shape"])) for k, f in self.get("input_features", dict).items()}
        order = ("ENV", "VISUAL") if self.kind == "act" else ("VISUAL", "ENV")
        state = {k: f for k, f in inputs.items() if k == STATE}
        return {**state, **{k: f for kind in order for k, f in inputs.items() if f[0] == kind}}

    def features(self) -> dict[str, Feature]:
        """Returns the columns by the robot's names, in the order of the network, and the action."""
        features = {}
        for name, (kind, shape) in self.columns().items():
            vector = Feature("float32", shape)
            features[self.renamed.get(name, name)] = vector if kind != "VISUAL" else Feature(
                "uint8", (*shape[1:], shape[0]), "image")
        outputs = self.get("output_features", dict)
        if ACTION not in outputs:
            raise UserError("the policy has no output 'action'", where=self.path, hint=_DOWNLOAD)
        return {**features, ACTION: Feature("float32", tuple(outputs[ACTION]["shape"]))}

    def method(self) -> tuple[PolicyConfig, Executor, LearnerConfig]:
        features = self.features()
        trunk, encoder, head, window, executor = (self._act if self.kind == "act" else self._diffusion)(features)
        policy = PolicyConfig(head, trunk, encoder, self._codec(), window, tuple(k for k in features if k != ACTION))
        rate = float(self.get("optimizer_lr", (int, float), 1e-4))
        decay = float(self.get("optimizer_weight_decay", (int, float), 1e-6))
        return policy, executor, BehaviorCloning(optimizer=OptimizerConfig(lr=rate, weight_decay=decay))

    def _codec(self) -> Normalizer:
        vectors = {self._mode(kind) for kind, _ in self.columns().values() if kind != "VISUAL"} - {"IDENTITY"}
        mode = self._mode("ACTION")
        if self.kind == "diffusion" and self.get("clip_sample", bool, True) and mode != "IDENTITY":
            mode = "MIN_MAX"  # Diffusion clips at 1, and LeRobot does so whatever the statistics are
        return Normalizer(_MODES[min(vectors)] if vectors else "identity", _MODES[mode])

    def _mode(self, kind: str) -> str:
        mode = self.modes.get(kind, "IDENTITY")
        if mode not in _MODES:
            raise Unsupported(f"understudy does not know the normalization {mode!r}", where=self.path,
                              hint=f"it knows {', '.join(_MODES)}")
        return mode

    def _check_backbone(self) -> None:
        if self.get("vision_backbone", str, "resnet18") != "resnet18":
            raise self.unsupported("vision_backbone", "only resnet18 can: evaluate the policy with LeRobot")

    def _act(self, features) -> tuple[Trunk, Encoder, Head, Window, Executor]:
        cameras = [f for f in features.values() if f.kind == "image"]
        if cameras:
            self._check_backbone()
            if self.get("replace_final_stride_with_dilation", (bool, int), False):
                raise self.unsupported("replace_final_stride_with_dilation", "evaluate the policy with LeRobot")
        width = self.get("dim_model", int, 512)
        state = self.renamed.get(STATE, STATE)
        activation = self.get("feedforward_activation", str, "relu")
        if activation not in ("relu", "gelu"):
            raise self.unsupported("feedforward_activation", "relu and gelu can: evaluate the policy with LeRobot")
        trunk = ACTTransformer(
            width, self.get("n_heads", int, 8), self.get("dim_feedforward", int, 3200), activation,
            self.get("n_encoder_layers", int, 4), self.get("n_decoder_layers", int, 1),
            self.get("n_vae_encoder_layers", int, 4), self.get("pre_norm", bool, False),
            float(self.get("dropout", (int, float), 0.1)),
            tuple((-(-f.shape[0] // 32), -(-f.shape[1] // 32)) for f in cameras), state,
            features[state].size if state in features else 0)
        has_posterior = self.get("use_vae", bool, True)
        head = CVAE(self.get("latent_dim", int, 32), float(self.get("kl_weight", (int, float), 10.0))) \
            if has_posterior else Regression("l1")
        chunk = self.get("chunk_size", int)
        decay = self.get("temporal_ensemble_coeff", (int, float, type(None)))
        executor = RecedingHorizon(self.get("n_action_steps", int, chunk)) if decay is None \
            else TemporalEnsemble(float(decay))
        return trunk, ACTEncoder(width), head, Window(1, chunk), executor

    def _diffusion(self, features) -> tuple[Trunk, Encoder, Head, Window, Executor]:
        if STATE not in self.columns():
            raise UserError(f"a Diffusion Policy reads {STATE}, which is not among its inputs", where=self.path,
                            hint=_DOWNLOAD)
        if any(f.kind == "image" for f in features.values()):
            self._check_backbone()
        levels = self.get("num_train_timesteps", int, 100)
        schedule = self.get("beta_schedule", str, "squaredcos_cap_v2")
        betas = [self.get(k, (int, float), v) for k, v in (("beta_start", 1e-4), ("beta_end", 0.02))]
        if schedule != "squaredcos_cap_v2" and (schedule, levels, *betas) != ("linear", 1000, 1e-4, 0.02):
            raise self.unsupported("beta_schedule", "squaredcos_cap_v2 can, and linear with 1000 steps from 0.0001 to "
                                                    "0.02: evaluate the policy with LeRobot")
        sampler = self.get("noise_scheduler_type", str, "DDPM")
        if sampler not in ("DDPM", "DDIM"):
            raise self.unsupported("noise_scheduler_type", "DDPM and DDIM can: evaluate the policy with LeRobot")
        prediction = self.get("prediction_type", str, "epsilon")
        if prediction not in ("epsilon", "sample"):
            raise self.unsupported("prediction_type", "epsilon and sample can: evaluate the policy with LeRobot")
        n_steps = self.get("num_inference_steps", (int, type(None)))
        limit = float(self.get("clip_sample_range", (int, float), 1.0)) if self.get("clip_sample", bool, True) else 0.0
        head = Diffusion(levels if n_steps is None else n_steps, DDIM(clipped_noise=False) if sampler == "DDIM"
                         else DDPM(), levels, schedule, prediction, limit, spacing="leading")
        trunk = UNet(tuple(self.get("down_dims", list)), self.get("kernel_size", int, 5), self.get("n_groups", int, 8),
                     self.get("diffusion_step_embed_dim", int, 128), float(levels),
                     output_groups=8)
        crop, resize = (self._size(k) for k in ("crop_shape", "resize_shape"))
        encoder = DiffusionPolicyEncoder(
            crop, resize, self.get("spatial_softmax_num_keypoints", int, 32), self.get("use_group_norm", bool, True),
            not self.get("use_separate_rgb_encoder_per_camera", bool, False))
        n_obs = self.get("n_obs_steps", int, 2)
        window = Window(n_obs, self.get("horizon", int), 1 - n_obs)
        return trunk, encoder, head, window, RecedingHorizon(self.get("n_action_steps", int), n_obs - 1)

    def _size(self, key: str) -> tuple[int, int] | None:
        value = self.get(key, (list, type(None)))
        return None if value is None else (int(value[0]), int(value[1]))

    # -- statistics ---------------------------------------------------------------------------------------------------

    def statistics(self, policy: Policy, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the buffers of the codec and of the pixel normalizers, and removes them from `tensors`."""
        columns = {**self.columns(), ACTION: ("ACTION", policy.target.shape)}
        stored = self.stored
        if stored is None:
            stored = {}
            for key in [k for k in tensors if k.startswith(("normalize_", "unnormalize_"))]:
                place, name = key.split(".", 1)[1].rsplit(".", 1)
                for column in columns:
                    if place == f"buffer_{column.replace('.', '_')}":
                        stored.setdefault(column, {})[name] = tensors[key]
                del tensors[key]
            if not stored and any(self._mode(kind) != "IDENTITY" for kind, _ in columns.values()):
                raise UserError("the statistics of the data are missing: there is no policy_preprocessor.json, and "
                                "model.safetensors has none", where=self.folder, hint=_DOWNLOAD)
        buffers: dict[str, Tensor] = {"codec.count": torch.ones((), dtype=torch.int64)}
        images = [k for k in policy.inputs if policy.features[k].kind == "image"]
        vectors = [k for k in policy.inputs if policy.features[k].kind == "vector"]
        for column, (kind, shape) in columns.items():
            ours = self.renamed.get(column, column)
            offset, scale = self._offset_and_scale(column, kind, shape, stored.get(column), kind != "ACTION")
            if kind == "VISUAL":
                place = f"encoder.pixels.{images.index(ours)}"
                buffers |= {f"{place}.mean": offset.view(-1, 1, 1), f"{place}.std": scale.view(-1, 1, 1)}
                continue
            transform = "action_transform" if kind == "ACTION" else f"obs_transforms.{vectors.index(ours)}"
            buffers |= {f"codec.{transform}.offset": offset, f"codec.{transform}.scale": scale}
        policy_tensors = policy.state_dict()
        # Without normalization there are no transforms.
        return {k: v for k, v in buffers.items() if k in policy_tensors}

    def _offset_and_scale(self, column, kind, shape, stored, observed) -> tuple[Tensor, Tensor]:
        """Returns offset and scale of normalization, ``(x - offset) / scale``, of a column.

        As in LeRobot, a column without statistics stays as it is.
        """
        shape = (shape[0],) if kind == "VISUAL" else shape
        mode = self._mode(kind)
        if mode == "IDENTITY" or stored is None:
            return torch.zeros(shape), torch.ones(shape)
        names = _LIMITS.get(mode, ("mean", "std"))
        if missing := [n for n in names if n not in stored]:
            raise UserError(f"the statistics of {column} have no {missing[0]!r}, which {mode} needs", where=self.folder,
                            hint=_DOWNLOAD)
        low, high = (stored[n].float().reshape(shape) for n in names)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise UserError(f"the statistics of {column} are not finite", where=self.folder, hint=_DOWNLOAD)
        if mode == "MEAN_STD":
            scale = high + self.eps if observed else high
            # A scale of 0 codes a constant as 0, whatever is measured. LeRobot would divide by eps.
            return low, scale if kind == "VISUAL" else torch.where(high > 0, scale, 0.0)
        offset, scale = (low + high) / 2, (high - low) / 2
        if observed:
            # LeRobot codes a constant as -1 and amplifies any deviation from it by 2 / eps. This also codes it as -1,
            # but makes little of deviations.
            span = 1024 * low.abs().clamp(min=1)
            offset, scale = torch.where(scale > 0, offset, low + span), torch.where(scale > 0, scale, span)
        return offset, scale


def _add_statistics(statistics: dict[str, dict[str, Tensor]], tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        column, _, name = key.rpartition(".")
        statistics.setdefault(column, {})[name] = tensor


def _read_object(path: Path) -> dict[str, Any]:
    document = read_json(path, _DOWNLOAD)
    if not isinstance(document, dict):
        raise UserError("the file does not hold a JSON object", where=path, hint=_DOWNLOAD)
    return document


# -- weights --------------------------------------------------------------------------------------------------------


_ACT_NAMES = (  # beginnings of names, ours and LeRobot's
    ("encoder.backbone.", "model.backbone."), ("encoder.image_layer.", "model.encoder_img_feat_input_proj."),
    ("net.decoder.latent_layer.", "model.encoder_latent_input_proj."),
    ("net.decoder.token_positions", "model.encoder_1d_feature_pos_embed.weight"),
    ("net.decoder.encoder.", "model.encoder.layers."), ("net.decoder.encoder_norm.", "model.encoder.norm."),
    ("net.decoder.step_positions", "model.decoder_pos_embed.weight"),
    ("net.decoder.decoder.", "model.decoder.layers."), ("net.decoder.decoder_norm.", "model.decoder.norm."),
    ("net.decoder.output_layer.", "model.action_head."),
    ("net.posterior.class_token", "model.vae_encoder_cls_embed.weight"),
    ("net.posterior.state_layer.", "model.vae_encoder_robot_state_input_proj."),
    ("net.posterior.action_layer.", "model.vae_encoder_action_input_proj."),
    ("net.posterior.layers.", "model.vae_encoder.layers."), ("net.posterior.norm.", "model.vae_encoder.norm."),
    ("net.posterior.output_layer.", "model.vae_encoder_latent_output_proj."),
)
POSTERIOR_OUTPUT = "net.posterior.output_layer."
TIME_WEIGHT = "net.time_mlp.body.0.weight"


def _is_unused(policy: Policy, name: str) -> bool:
    """Returns whether a tensor of LeRobot is not needed here."""
    if name == "model.encoder_latent_input_proj.weight":
        return not isinstance(policy.config.head, CVAE)  # without a posterior, the latent is always zero
    return name.endswith(("vae_encoder_pos_enc", "pool.pos_grid", "num_batches_tracked"))


def tensor_names(policy: Policy) -> dict[str, str]:
    """Returns LeRobot's name of each tensor of a policy, without statistics of the data.

    Args:
        policy: A policy with the trunk `ACTTransformer` or `UNet`, and the encoder that belongs to it.
    """
    names = [k for k in policy.state_dict() if not k.startswith(("codec.", "encoder.pixels."))]
    translate = _act_name if isinstance(policy.config.trunk, ACTTransformer) else _diffusion_name
    return {name: translate(policy, name) for name in names}


def _act_name(policy: Policy, name: str) -> str:
    if name.startswith("encoder.vector_layers."):
        number, leaf = name.removeprefix("encoder.vector_layers.").split(".")
        trunk, vectors = policy.config.trunk, [k for k in policy.inputs if policy.features[k].kind == "vector"]
        assert isinstance(trunk, ACTTransformer)
        kind = "robot" if vectors[int(number)] == trunk.state else "env"
        return f"model.encoder_{kind}_state_input_proj.{leaf}"
    if not isinstance(policy.config.head, CVAE) and name.startswith("net."):
        name = f"net.decoder.{name.removeprefix('net.')}"
    return next(lerobot_name + name.removeprefix(ours) for ours, lerobot_name in _ACT_NAMES if name.startswith(ours))


def _diffusion_name(policy: Policy, name: str) -> str:
    encoder, (part, *components) = policy.config.encoder, name.split(".")
    if part == "encoder":  # cameras.NUMBER.NAME
        assert isinstance(encoder, DiffusionPolicyEncoder)
        place = ["rgb_encoder"] if encoder.shared else ["rgb_encoder", components[1]]
        kind, *components = components[2:]
        if kind == "backbone":  # torchvision's children by number: conv1, bn1, relu, maxpool, layer1, ...
            number = {"conv1": 0, "bn1": 1}.get(components[0])
            components[0] = str(int(components[0].removeprefix("layer")) + 3 if number is None else number)
            return ".".join(["diffusion", *place, "backbone", *components])
        block = {"points": ["pool", "nets"], "output_layer": ["out"]}[kind]
        return ".".join(["diffusion", *place, *block, *components])
    kind, *components = components
    if kind == "time_mlp":  # body.0 and body.2, after the sinusoids
        return f"diffusion.unet.diffusion_step_encoder.{int(components[1]) + 1}.{components[2]}"
    if kind == "output_layer":
        number, *leaf = components
        block = ["0", "block"] if number == "0" else [number]
        return ".".join(["diffusion.unet.final_conv", *block, *leaf])
    place = [{"down": "down_modules", "middle": "mid_modules", "up": "up_modules"}[kind], components.pop(0)]
    if kind != "middle":
        stage = components.pop(0)
        place.append({"first": "0", "second": "1", "resize": "2"}[stage])
        if stage == "resize":
            return ".".join(["diffusion.unet", *place, *components])
    block = {"first": ["conv1", "block"], "second": ["conv2", "block"], "film": ["cond_encoder", "1"],
             "skip": ["residual_conv"]}[components.pop(0)]
    return ".".join(["diffusion.unet", *place, *block, *components])


def _from_lerobot(policy: Policy, name: str, tensor: Tensor) -> Tensor:
    """Converts a tensor of LeRobot to the form of understudy."""
    if name.startswith(POSTERIOR_OUTPUT):
        return scale_last_half(tensor, 0.5)  # from log variance to log standard deviation
    if name == TIME_WEIGHT:
        return reflect_time(policy, tensor)
    if ".film." in name:
        n_rows = policy.state_dict()[name].shape[0]
        if tensor.shape[0] * 2 == n_rows:  # shifts alone: scales of 1
            return torch.cat([torch.full_like(tensor, float(name.endswith("bias"))), tensor])
    if name.startswith("encoder.cameras.") and name.endswith("output_layer.weight"):
        return torch.cat([tensor[:, 0::2], tensor[:, 1::2]], 1)  # (x, y) of each keypoint, here x of all and then y
    return tensor


def scale_last_half(tensor: Tensor, factor: float) -> Tensor:
    """Multiplies the second half of a tensor's rows by a factor."""
    first, second = tensor.chunk(2)
    return torch.cat([first, factor * second])


def reflect_time(policy: Policy, weight: Tensor) -> Tensor:
    """Converts the weights that read the diffusion time between the time conventions of LeRobot and understudy.

    Args:
        policy: A policy with the head `Diffusion`, which has N noise levels.
        weight: The weight of the first layer of the time embedding, (out, width): sines, then cosines.
    """
    assert isinstance(policy.config.head, Diffusion)
    half = weight.shape[1] // 2
    number = torch.arange(half, dtype=torch.float64, device=weight.device)
    rate = torch.exp(number * (-math.log(10_000) / (half - 1)))
    angle = (policy.config.head.n_train_steps - 1) * rate
    sine, cosine = weight.double().chunk(2, 1)
    return torch.cat([cosine * angle.sin() - sine * angle.cos(), sine * angle.sin() + cosine * angle.cos()], 1).float()
