"""Pretrained image networks of the packages transformers and timm."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import AtLeast, Unsupported, UserError, part
from ..vision import FrozenVisionNet, VisionEncoder, VisionNet, given_weights, output_layer
from .files import PretrainedFiles, PretrainedNet, import_extra, load_pretrained, transformers_model


@part
class TransformersVision(VisionEncoder):
    """An image network of transformers (``AutoModel``): DINOv2, CLIP, SigLIP, ViT, ConvNeXt and others.

    Of a network for images and texts, only the part for images is used. Images are resized as a whole, because a crop
    would hide their margin, and normalized as the files of the network say.

    Needs the extra `transformers`. Only safetensors are read, and no code from the hub.

    Args:
        weights: A folder that ``save_pretrained`` wrote, or ``"hf://OWNER/NAME[@REVISION]"`` such as
            ``"hf://facebook/dinov2-small"``, which huggingface_hub downloads. A checkpoint of the policy needs neither.
        pool: ``"pooled"`` gives one token per image, as the network pools it (DINOv2 and CLIP: the class token).
            ``"patches"`` gives one token per patch, for attention.
        frozen: Do not train the network, only the linear layer after it.
        image_size: Height and width to which images are resized. None for the size in the files of the network.

    References:
        Oquab et al. (2023), DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193.
        Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
        Zhai et al. (2023), Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
    """

    weights: str
    pool: Literal["pooled", "patches"] = "pooled"
    frozen: bool = True
    image_size: Annotated[tuple[int, int] | None, AtLeast(1)] = None

    def build(self, shape, width=None):
        _check_color(shape, "TransformersVision.weights")
        return _finish(_TransformersBody(self), self.frozen, width)


@part
class TimmVision(VisionEncoder):
    """An image network of timm (PyTorch Image Models), which has more than a thousand of them.

    Images are resized as a whole, because a crop would hide their margin, and normalized as the files of the network
    say.

    Needs the extra `timm`. Only safetensors are read.

    Args:
        weights: A folder that ``timm.models.save_for_hf`` wrote, or ``"hf://OWNER/NAME[@REVISION]"`` such as
            ``"hf://timm/vit_small_patch14_dinov2.lvd142m"``, which huggingface_hub downloads. A checkpoint of the
            policy needs neither.
        pool: ``"pooled"`` gives one token per image, as the network pools it. ``"patches"`` gives one token per patch
            or cell of the last feature map, for attention.
        frozen: Do not train the network, only the linear layer after it.
        image_size: Height and width to which images are resized. None for the size in the files of the network.

    References:
        Wightman (2019), PyTorch Image Models, doi:10.5281/zenodo.4414861.
    """

    weights: str
    pool: Literal["pooled", "patches"] = "pooled"
    frozen: bool = True
    image_size: Annotated[tuple[int, int] | None, AtLeast(1)] = None

    def build(self, shape, width=None):
        _check_color(shape, "TimmVision.weights")
        return _finish(_TimmBody(self), self.frozen, width)


@dataclass(frozen=True)
class _Preprocessing:
    """How pixels in [0, 1] are preprocessed before a pretrained network reads them."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: Literal["bilinear", "bicubic", "nearest"]


class _PretrainedBody(PretrainedNet, ABC):
    """A pretrained network with its preprocessing: images (N, 3, h, w) in [0, 1] to features (N, tokens, size)."""

    mean: Tensor
    std: Tensor
    model: Any  # a module of the other package

    def __init__(self, files: PretrainedFiles, preprocessing: _Preprocessing, pool: str, model: nn.Module):
        super().__init__()
        self.files, self.preprocessing, self.pool, self.model = files, preprocessing, pool, model
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        size, mode = self.preprocessing.size, self.preprocessing.mode
        if image.shape[-2:] != size:
            if mode == "nearest":
                image = F.interpolate(image, size, mode=mode)
            else:
                image = F.interpolate(image, size, mode=mode, antialias=True).clamp(0, 1)
        return self.encode((image - self.mean) / self.std)

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Encodes normalized pixels (N, 3, *size) as features (N, tokens, size)."""


class _TransformersBody(_PretrainedBody):
    def __init__(self, config: TransformersVision):
        transformers = import_extra("transformers", "transformers", "TransformersVision")
        field_name = "TransformersVision.weights"
        files = PretrainedFiles.open(config.weights, field_name)
        architecture = load_pretrained(lambda: transformers.AutoConfig.from_pretrained(files.folder), config.weights,
                                       field_name)
        architecture = getattr(architecture, "vision_config", architecture)
        preprocessor_config = (files.json("preprocessor_config.json")
                               or (files.json("processor_config.json") or {}).get("image_processor"))
        preprocessing = _transformers_preprocessing(preprocessor_config, architecture, config)
        unused = () if config.pool == "pooled" else ("pooler.", "head.", "vision_model.head.")
        model = load_pretrained(lambda: transformers_model(transformers.AutoModel, files, architecture, unused),
                                config.weights, field_name)
        super().__init__(files, preprocessing, config.pool, model)
        trained_size = _pair(getattr(architecture, "image_size", None) or preprocessing.size)
        resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if resizes and trained_size != preprocessing.size else {}
        patch = getattr(architecture, "patch_size", None)
        rows, columns = (0, 0) if patch is None else (
            n // p for n, p in zip(preprocessing.size, _pair(patch), strict=True))
        self.patches = rows * columns

    def encode(self, pixels):
        out = self.model(pixel_values=pixels, **self.options)
        if self.pool == "pooled":
            if getattr(out, "pooler_output", None) is None:
                raise Unsupported("This network does not pool its tokens.", where="TransformersVision.pool",
                                  hint='Use pool="patches".')
            return out.pooler_output.flatten(1).unsqueeze(1)
        hidden = out.last_hidden_state
        if hidden.ndim == 4:  # a feature map
            return hidden.flatten(2).transpose(1, 2)
        return hidden[:, -self.patches:]  # class and register tokens come first


def _transformers_preprocessing(preprocessor: dict | None, architecture, config: TransformersVision) -> _Preprocessing:
    source = f"TransformersVision.weights, {config.weights}"
    if preprocessor is None:
        raise UserError("There is no preprocessor_config.json, which says how pixels are normalized.", where=source,
                        hint="Take it from the place where the weights come from.")
    size = preprocessor.get("crop_size") if preprocessor.get("do_center_crop", True) else None
    size = (config.image_size or _size_of(size) or _size_of(preprocessor.get("size"))
            or getattr(architecture, "image_size", None))
    if size is None:
        raise UserError("The files of the network do not say which image size it reads.", where=source,
                        hint="Give it: image_size=(224, 224).")
    normalizes = preprocessor.get("do_normalize", True)
    mean, std = (preprocessor.get(name) if normalizes else None for name in ("image_mean", "image_std"))
    if normalizes and (mean is None or std is None):
        raise UserError("preprocessor_config.json has no image_mean and image_std.", where=source,
                        hint="Take the file from the place where the weights come from.")
    mode = {0: "nearest", 2: "bilinear"}.get(preprocessor.get("resample", 3), "bicubic")
    return _Preprocessing(_pair(size), tuple(mean or (0.0,) * 3), tuple(std or (1.0,) * 3), cast(Any, mode))


class _TimmBody(_PretrainedBody):
    def __init__(self, config: TimmVision):
        timm = import_extra("timm", "timm", "TimmVision")
        field_name = "TimmVision.weights"
        files = PretrainedFiles.open(config.weights, field_name)
        timm_config = files.json("config.json")
        if not isinstance(timm_config, dict) or "architecture" not in timm_config:
            raise UserError("config.json does not name an architecture of timm.", where=f"{field_name}, {files.folder}",
                            hint="Use TransformersVision for networks of transformers.")
        reads = given_weights() is None
        name = f"local-dir:{files.folder}" if reads else timm_config["architecture"]
        options = timm_config.get("model_args") or {}

        def create(**size):
            return timm.create_model(name, pretrained=reads, **{**options, **size, "num_classes": 0})

        def create_in_size():
            if config.image_size is None:
                return create()
            try:
                return create(img_size=config.image_size)
            except TypeError:  # convolutions, which read images of any size, do not have the argument
                return create()
        model = load_pretrained(create_in_size, config.weights, field_name)
        pixel_config = {**timm_config, **(timm_config.get("pretrained_cfg") or {})}
        if "mean" not in pixel_config or "std" not in pixel_config:
            raise UserError("config.json does not say how pixels are normalized (mean, std).",
                            where=f"{field_name}, {files.folder}",
                            hint="Take the file from the place where the weights come from.")
        size = config.image_size or tuple(pixel_config.get("input_size", (3, 224, 224)))[1:]
        mode = pixel_config.get("interpolation", "bicubic")
        mode = mode if mode in ("bilinear", "nearest") else "bicubic"
        preprocessing = _Preprocessing(_pair(size), tuple(pixel_config["mean"]), tuple(pixel_config["std"]), mode)
        super().__init__(files, preprocessing, config.pool, model)

    def encode(self, pixels):
        if self.pool == "pooled":
            return self.model(pixels).unsqueeze(1)
        hidden = self.model.forward_features(pixels)
        if hidden.ndim == 3:
            return hidden[:, getattr(self.model, "num_prefix_tokens", 0):]
        if hidden.shape[1] == self.model.num_features:
            return hidden.flatten(2).transpose(1, 2)
        return hidden.flatten(1, 2)  # channels last, as in Swin


class _TrainedVisionNet(VisionNet):
    """A pretrained network that is trained on."""

    def __init__(self, body: _PretrainedBody, tokens: int, size: int, width: int | None):
        super().__init__()
        self.body, self.tokens = body, tokens
        self.leave, self.width = output_layer(size, width)

    def forward(self, image):
        return self.leave(self.body(image))


def _finish(body: _PretrainedBody, frozen: bool, width: int | None) -> VisionNet:
    """Builds the network around a pretrained one, whose tokens are counted with one image."""
    body.eval()
    image = torch.zeros(1, 3, *body.preprocessing.size)
    with torch.set_grad_enabled(not frozen):
        features = body(image)
    _, tokens, size = features.shape
    if frozen:
        about = [type(body).__name__, body.pool, asdict(body.preprocessing)]
        return FrozenVisionNet(body, tokens, size, width, about)
    # Weights that do not reach the features (the mask token of DINOv2, the last norm of CLIP) are never trained.
    parameters = list(body.parameters())
    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return _TrainedVisionNet(body, tokens, size, width)


def _check_color(shape: tuple[int, int, int], where: str) -> None:
    if shape[-1] != 3:
        raise UserError(f"The pretrained weights are for images of 3 channels, and these have {shape[-1]}.",
                        where=where, hint="Use color images, or an encoder that is trained from random weights.")


def _size_of(size: Any) -> tuple[int, int] | None:
    """Returns height and width from an entry of preprocessor_config.json."""
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return size["height"], size["width"]
        size = size.get("shortest_edge")
    return None if size is None else _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    if len(height_width) != 2 or not all(isinstance(n, int) and n > 0 and math.isfinite(n) for n in height_width):
        raise UserError(f"An image size is a height and a width in pixels, and this is {size!r}.", where="image_size",
                        hint="Give two numbers, such as image_size=(224, 224).")
    return height_width
