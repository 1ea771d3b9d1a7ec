"""Vision encoders: images to tokens."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from ..core import AtLeast, UserError, part
from .linear import Linear


class VisionNet(nn.Module, ABC):
    """The module that a `VisionEncoder` builds.

    Attributes:
        tokens: Number of tokens per image.
    """

    tokens: int
    width: int

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Encodes images (N, C, h, w) with values in [0, 1] as (N, tokens, width)."""


class VisionEncoder(ABC):
    """Config of an encoder of images. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, shape: tuple[int, int, int], width: int | None = None) -> VisionNet:
        """Builds the module. It normalizes the pixels itself.

        Args:
            shape: (h, w, C) of the images after cropping.
            width: Width of the tokens. None returns the features of the network, without a linear layer at the end.
        """


class FrozenVisionNet(VisionNet):
    """Base class of vision networks that are not trained, but for a linear layer at the end.

    Its features are a function of the image alone, so they can be computed once for a data set
    (`TokenEncoder.cache_features`).

    Args:
        body: A network from images (N, C, h, w) with values in [0, 1] to features (N, tokens, size). It is never
            trained.
        width: Width of the tokens. None for the width of the features.
        preprocessing: Plain JSON that says, with the weights, what `body` computes.
    """

    def __init__(self, body: nn.Module, tokens: int, size: int, width: int | None, preprocessing: object):
        super().__init__()
        self.body, self.tokens, self.size, self.preprocessing = body.requires_grad_(False), tokens, size, preprocessing
        self.leave, self.width = output_layer(size, width)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.body.eval()  # a frozen network uses no dropout either
        return self

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Returns the frozen network's features of images (N, C, h, w) in [0, 1], (N, tokens, size), without gradient.
        """
        return self.body(image)

    def project(self, features: Tensor) -> Tensor:
        """Applies the layer that is trained to what `features` returned, (N, tokens, size) to (N, tokens, width)."""
        return self.leave(features)

    def forward(self, image):
        return self.project(self.features(image))

    def digest(self) -> str:
        """Returns hex digits that identify the weights and the preprocessing."""
        digest = hashlib.sha256(json.dumps(self.preprocessing, sort_keys=True).encode())
        for name, tensor in self.body.state_dict().items():
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def output_layer(size: int, width: int | None) -> tuple[nn.Module, int]:
    """Returns the layer from features to tokens, and the width of its output.

    Args:
        width: Width of the tokens. None for the width of the features, without a layer.
    """
    return (nn.Identity(), size) if width is None else (Linear(size, width), width)


def spatial_softargmax(maps: Tensor) -> Tensor:
    """Computes the mean position under the softmax of each feature map (keypoints), for maps (N, K, h, w).

    Returns:
        (N, 2 K): first x of all maps, then y, from -1 (left, top) to 1 (right, bottom).

    References:
        Levine et al. (2016), End-to-End Training of Deep Visuomotor Policies, arXiv:1504.00702.
        Finn et al. (2016), Deep Spatial Autoencoders for Visuomotor Learning, arXiv:1509.06113.
    """
    h, w = maps.shape[-2:]
    weight = maps.flatten(2).softmax(-1).unflatten(-1, (h, w))
    x = torch.linspace(-1, 1, w, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1, 1, h, device=maps.device, dtype=maps.dtype)
    return torch.cat([(weight.sum(-2) * x).sum(-1), (weight.sum(-1) * y).sum(-1)], -1)


GROUPS = 8  # of GroupNorm in `SmallConv`


@part
class SmallConv(VisionEncoder):
    """Four convolutions, then keypoints (spatial soft-argmax). Small enough for a CPU. One token per image.

    The first two convolutions halve the resolution.
    """

    channels: Annotated[tuple[int, ...], AtLeast(1)] = (32, 32, 64, 64)
    keypoints: Annotated[int, AtLeast(1)] = 32

    def build(self, shape, width=None):
        if any(channels % GROUPS for channels in self.channels):
            raise UserError(f"The channels are {self.channels}, and not all are multiples of {GROUPS}, the number of "
                            "groups that are normalized.", where="SmallConv.channels", hint="Use (32, 32, 64, 64).")
        return _SmallConv(self, shape, width)


class _SmallConv(VisionNet):
    tokens = 1

    def __init__(self, config, shape, width):
        super().__init__()
        layers, size = [], shape[-1]
        for i, channels in enumerate(config.channels):
            stride = 2 if i < 2 else 1
            layers += [nn.Conv2d(size, channels, 3, stride, 1), nn.GroupNorm(GROUPS, channels), nn.SiLU()]
            size = channels
        self.body = nn.Sequential(*layers, nn.Conv2d(size, config.keypoints, 1))
        self.leave, self.width = output_layer(2 * config.keypoints, width)

    def forward(self, image):
        return self.leave(spatial_softargmax(self.body(2 * image - 1))).unsqueeze(1)


@part
class ResNet(VisionEncoder):
    """A residual network without its last layer. For three channels ResNet-18 has 11,176,512 parameters, ResNet-34
    21,284,672 and ResNet-50 23,508,032.

    Args:
        weights: None trains from random weights, with GroupNorm (16 channels per group) in place of BatchNorm, as
            Diffusion Policy does. Otherwise pretrained weights, with the statistics of BatchNorm fixed, as ACT does: a
            safetensors file, or ``"hf://OWNER/NAME[@REVISION][/FILE]"`` such as ``"hf://timm/resnet18.a1_in1k"``, which
            huggingface_hub downloads. Tensors have torchvision's names.
        pool: ``"keypoints"`` (spatial soft-argmax) and ``"mean"`` give one token per image, ``"grid"`` one per cell of
            32 x 32 pixels (for attention, as in ACT).
        keypoints: Number of keypoints, for ``pool="keypoints"``.
        frozen: Do not train the convolutions, only the layer after them. Needs ``pool="mean"`` or ``"grid"``.
        depth: Number of layers, 18, 34 or 50. That with 50 has bottlenecks, with the stride in their second
            convolution as in torchvision.

    References:
        He et al. (2016), Deep Residual Learning for Image Recognition, arXiv:1512.03385.
        Chi et al. (2023), Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, arXiv:2303.04137.
        Zhao et al. (2023), Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv:2304.13705.
    """

    weights: str | None = None
    pool: Literal["keypoints", "mean", "grid"] = "keypoints"
    keypoints: Annotated[int, AtLeast(1)] = 32
    frozen: bool = False
    depth: Literal[18, 34, 50] = 18

    def build(self, shape, width=None):
        if self.frozen and self.pool == "keypoints":
            raise UserError("Keypoints come from a convolution that is trained, so this network cannot be frozen.",
                            where="ResNet.pool", hint='Use pool="mean" or pool="grid".')
        net = _ResNet(self, shape, None if self.frozen else width)
        net.body.load_pretrained(self.weights)
        if not self.frozen:
            return net
        preprocessing = [f"resnet{self.depth}", self.pool, self.weights is not None]
        return FrozenVisionNet(net, net.tokens, net.width, width, preprocessing)


@dataclass(frozen=True)
class GivenWeights:
    """The state in which all weights come from a checkpoint, and none are downloaded."""

    folder: Path | None


_weights_given: ContextVar[GivenWeights | None] = ContextVar("the weights come from a checkpoint", default=None)


@contextmanager
def without_downloads(folder: Path | str | None = None) -> Iterator[None]:
    """Turns off reading pretrained weights, because a checkpoint supplies all weights. A context manager.

    Args:
        folder: The folder of the checkpoint, if there is one. It has the other files of pretrained networks, such as
            their configuration (see `nets.pretrained.files`).
    """
    token = _weights_given.set(GivenWeights(None if folder is None else Path(folder)))
    try:
        yield
    finally:
        _weights_given.reset(token)


def given_weights() -> GivenWeights | None:
    """Returns what `without_downloads` set. None if networks read their pretrained weights themselves."""
    return _weights_given.get()


class _ResNet(VisionNet):
    mean: Tensor
    std: Tensor

    def __init__(self, config, shape, width):
        super().__init__()
        h, w, channels = shape
        if config.weights is not None and channels != 3:
            raise UserError(f"The pretrained weights are for images of 3 channels, and these have {channels}.",
                            where="ResNet.weights", hint="Train from random weights (weights=None), or use color "
                                                           "images.")
        self.body, self.pool = ResNetBody(channels, config.weights is not None, config.depth), config.pool
        self.tokens = -(-h // 32) * -(-w // 32) if config.pool == "grid" else 1
        size = self.body.width
        self.points = nn.Conv2d(size, config.keypoints, 1) if config.pool == "keypoints" else None
        self.leave, self.width = output_layer(2 * config.keypoints if config.pool == "keypoints" else size, width)
        mean, std = _imagenet_statistics(channels)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, image):
        maps = self.body((image - self.mean) / self.std)
        if self.points is not None:
            return self.leave(spatial_softargmax(self.points(maps))).unsqueeze(1)
        cells = maps.flatten(2).transpose(1, 2)
        return self.leave(cells if self.pool == "grid" else cells.mean(1, keepdim=True))


class PixelNormalizer(nn.Module):
    """Normalizes pixels by a mean and a standard deviation that are stored with the weights.

    These are the statistics of ImageNet until others are loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        mean, std = _imagenet_statistics(channels)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, image: Tensor) -> Tensor:
        """Normalizes images, uint8 (N, C, h, w), to float32 (N, C, h, w)."""
        return (image.float() / 255 - self.mean) / self.std


def _imagenet_statistics(channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ImageNet's pixels, with which pretrained weights were trained, (C, 1, 1) each."""
    mean, std = (torch.tensor(v if channels == 3 else (0.5,) * channels).view(-1, 1, 1) for v in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return mean, std


class ResNetBody(nn.Module):
    """The convolutions of a residual network, (N, C, h, w) -> (N, width, h / 32, w / 32), rounded up.

    Args:
        fixed: Use BatchNorm with fixed statistics, for pretrained weights. Otherwise GroupNorm.
        depth: Number of layers: 18, 34 or 50.

    Attributes:
        width: Channels of the output: 512, or 2048 with 50 layers.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, channels: int = 3, fixed: bool = False, depth: int = 18):
        super().__init__()
        norm = FixedBatchNorm if fixed else _norm_groups
        block, blocks = _RESNETS[depth]
        self.depth, self.width = depth, 64
        self.conv1, self.bn1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), norm(64)
        for i, n in enumerate(blocks):
            layers = []
            for k in range(n):
                layers.append(block(self.width, 64 * 2**i, norm, 2 if i and not k else 1))
                self.width = 64 * 2**i * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def load_pretrained(self, weights: str | None) -> None:
        """Loads pretrained weights, unless a checkpoint supplies them.

        Args:
            weights: A safetensors file or an address on the hub (see `ResNet`). None changes nothing.
        """
        if weights is None or given_weights() is not None:
            return
        path = _weights_file(weights)
        try:
            file_tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"The file cannot be read as safetensors: {error}.", where=path,
                            hint=f"Give the safetensors file of a ResNet-{self.depth}, or download it again.") from None
        own = self.state_dict()
        for name, tensor in own.items():
            if name not in file_tensors or file_tensors[name].shape != tensor.shape:
                problem = f"has shape {tuple(file_tensors[name].shape)}" if name in file_tensors else "is missing"
                raise UserError(f"The tensor {name!r} of shape {tuple(tensor.shape)} {problem}.", where=path,
                                hint=f"Give the weights of a ResNet-{self.depth} with torchvision's names.")
        self.load_state_dict({k: file_tensors[k].to(torch.float32) for k in own})


class Residual(nn.Module):
    """Two convolutions of 3 x 3 with a shortcut, as in ResNet-18."""

    expansion = 1  # channels of the output, as a multiple of the channels inside

    def __init__(self, size, inner, norm, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(size, inner, 3, stride, 1, bias=False), norm(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False), norm(inner)
        self.downsample = _shortcut(size, inner, norm, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, size, inner, norm, stride):
        super().__init__()
        out = inner * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(size, inner, 1, bias=False), norm(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), norm(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), norm(out)
        self.downsample = _shortcut(size, out, norm, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


_RESNETS = {18: (Residual, (2, 2, 2, 2)), 34: (Residual, (3, 4, 6, 3)), 50: (_Bottleneck, (3, 4, 6, 3))}


def _shortcut(size: int, out: int, norm: Callable[[int], nn.Module], stride: int) -> nn.Module:
    if size == out and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(size, out, 1, stride, bias=False), norm(out))


def _norm_groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


class FixedBatchNorm(nn.Module):
    """Batch normalization with fixed statistics and scales, because batches of demonstrations differ from ImageNet."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def _weights_file(weights: str) -> Path:
    """Returns the path of the safetensors file, downloaded first if it is on the hub."""
    if not weights.startswith("hf://"):
        return Path(weights)
    owner, name, *file = weights.removeprefix("hf://").split("/", 2) if weights.count("/") > 2 else (None, None)
    if not name:
        raise UserError("The address does not name a repository.", where=weights,
                        hint="Write hf://OWNER/NAME[@REVISION][/FILE], or the path of a local file.")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise UserError("Downloading from the hub needs huggingface_hub, which is not installed.", where=weights,
                        hint="pip install huggingface_hub, or download the file yourself and give its path.") from None
    name, _, revision = name.partition("@")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file[0] if file else "model.safetensors",
                                    revision=revision or None))
    except Exception as error:
        raise UserError(f"The pretrained weights could not be downloaded ({type(error).__name__}: {error}).",
                        where=weights, hint="Check the address and the network, or give a local file.") from error


def crop(image: Tensor, margin: int, rng: Generator | None) -> Tensor:
    """Crops images (N, C, h, w) to (N, C, h - 2 margin, w - 2 margin).

    Args:
        margin: Pixels that are cut off each side.
        rng: Draws a random position for each image, on the device of the image. None crops the center.
    """
    if not margin:
        return image
    n, _, h, w = image.shape
    h, w = h - 2 * margin, w - 2 * margin
    if rng is None:
        return image[..., margin:margin + h, margin:margin + w]
    first_row, first_column = torch.randint(0, 2 * margin + 1, (2, n, 1, 1), generator=rng, device=image.device)
    return _cut(image, first_row, first_column, h, w)


def crop_to(image: Tensor, size: tuple[int, int], rng: Generator | None) -> Tensor:
    """Crops images (N, C, h, w) to (N, C, *size).

    Args:
        size: Height and width of the result, at most the height and width of the images.
        rng: Draws a random position for each image, on the device of the image. None crops the center.
    """
    n, _, h, w = image.shape
    rows, columns = h - size[0], w - size[1]
    if rng is None:
        first_row, first_column = round(rows / 2), round(columns / 2)  # half to even, as in torchvision
        return image[..., first_row:first_row + size[0], first_column:first_column + size[1]]
    first_row, first_column = (torch.randint(0, free + 1, (n, 1, 1), generator=rng, device=image.device)
                               for free in (rows, columns))
    return _cut(image, first_row, first_column, *size)


def _cut(image: Tensor, first_row: Tensor, first_column: Tensor, h: int, w: int) -> Tensor:
    """Returns the rectangle of each image whose first row and column is given, (N, 1, 1) each."""
    row = first_row + torch.arange(h, device=image.device)[:, None]
    column = first_column + torch.arange(w, device=image.device)
    number = torch.arange(image.shape[0], device=image.device)[:, None, None]
    return image.permute(0, 2, 3, 1)[number, row, column].permute(0, 3, 1, 2)
