"""Images to tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from ..core import UserError
from .linear import Linear


class VisionNet(nn.Module, ABC):
    tokens: int
    width: int

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] -> (N, tokens, width)."""


class VisionEncoder(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def build(self, shape: tuple[int, int, int], width: int | None = None) -> VisionNet:
        """For images of shape (h, w, C), after cropping; it scales their pixels as it likes to have them. Without a
        width its own features come out, whatever their number, by no linear map at the end."""


def _output_layer(size: int, width: int | None) -> tuple[nn.Module, int]:
    return (nn.Identity(), size) if width is None else (Linear(size, width), width)


def spatial_softargmax(maps: Tensor) -> Tensor:
    """(N, K, h, w) -> (N, 2 K), the spatial soft-argmax (Levine et al. 2016; Finn et al. 2016): the mean position
    under the softmax of each map, first x of all and then y, from -1 (left, top) to 1."""
    h, w = maps.shape[-2:]
    share = maps.flatten(2).softmax(-1).unflatten(-1, (h, w))
    x = torch.linspace(-1, 1, w, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1, 1, h, device=maps.device, dtype=maps.dtype)
    return torch.cat([(share.sum(-2) * x).sum(-1), (share.sum(-1) * y).sum(-1)], -1)


@dataclass(frozen=True)
class SmallConv(VisionEncoder):
    """Four convolutions, then keypoints: a network for a CPU. One token an image."""

    channels: tuple[int, ...] = (32, 32, 64, 64)
    keypoints: int = 32

    def build(self, shape, width=None):
        return _SmallConv(self, shape, width)


class _SmallConv(VisionNet):
    tokens = 1

    def __init__(self, spec, shape, width):
        super().__init__()
        layers, size = [], shape[-1]
        for i, channels in enumerate(spec.channels):
            stride = 2 if i < 2 else 1
            layers += [nn.Conv2d(size, channels, 3, stride, 1), nn.GroupNorm(8, channels), nn.SiLU()]
            size = channels
        self.body = nn.Sequential(*layers, nn.Conv2d(size, spec.keypoints, 1))
        self.leave, self.width = _output_layer(2 * spec.keypoints, width)

    def forward(self, image):
        return self.leave(spatial_softargmax(self.body(2 * image - 1))).unsqueeze(1)


@dataclass(frozen=True)
class ResNet18(VisionEncoder):
    """The residual network of He et al. 2016 without its last layer: 11,176,512 parameters for three channels.

    weights: None to train from random weights, with GroupNorm of 16 channels a group in place of BatchNorm (Diffusion
        Policy, Chi et al. 2023); otherwise pretrained ones, with BatchNorm fixed at their statistics (ACT, Zhao et al.
        2023): a safetensors file, or "hf://OWNER/NAME[@REVISION][/FILE]" (hf://timm/resnet18.a1_in1k), fetched by
        huggingface_hub. Names of tensors are torchvision's.
    pool: "keypoints" (as many as `keypoints`, a spatial soft-argmax) and "mean" make one token an image, "grid" one for
        each cell of 32 x 32 pixels (for attention, as in ACT).
    """

    weights: str | None = None
    pool: Literal["keypoints", "mean", "grid"] = "keypoints"
    keypoints: int = 32

    def build(self, shape, width=None):
        net = _ResNet18(self, shape, width)
        if self.weights is not None and not _weights_given.get():
            net.body.pretrained(self.weights)
        return net


_weights_given: ContextVar[bool] = ContextVar("weights are given", default=False)


@contextmanager
def without_downloads() -> Iterator[None]:
    """Within it, nothing pretrained is read: the weights come from a checkpoint, which needs no other file."""
    token = _weights_given.set(True)
    try:
        yield
    finally:
        _weights_given.reset(token)


class _ResNet18(VisionNet):
    def __init__(self, spec, shape, width):
        super().__init__()
        h, w, channels = shape
        if spec.weights is not None and channels != 3:
            raise UserError(f"expected images of 3 channels, as the pretrained weights have, found {channels}",
                            where="ResNet18.weights", hint="train from random weights (None), or use color images")
        self.body, self.pool = ResNet18Body(channels, fixed=spec.weights is not None), spec.pool
        self.tokens = -(-h // 32) * -(-w // 32) if spec.pool == "grid" else 1
        self.points = nn.Conv2d(512, spec.keypoints, 1) if spec.pool == "keypoints" else None
        self.leave, self.width = _output_layer(2 * spec.keypoints if spec.pool == "keypoints" else 512, width)
        # What ImageNet's pixels are scaled by, the habit of all pretrained weights.
        mean, std = (torch.tensor(v if channels == 3 else (0.5,) * channels).view(-1, 1, 1) for v in
                     ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, image):
        maps = self.body((image - self.mean) / self.std)
        if self.pool == "keypoints":
            return self.leave(spatial_softargmax(self.points(maps))).unsqueeze(1)
        cells = maps.flatten(2).transpose(1, 2)
        return self.leave(cells if self.pool == "grid" else cells.mean(1, keepdim=True))


class ResNet18Body(nn.Module):
    """(N, C, h, w) -> (N, 512, h / 32, w / 32), rounded up."""

    def __init__(self, channels: int = 3, fixed: bool = False):
        super().__init__()
        norm = FixedBatchNorm if fixed else _group_norm
        self.conv1, self.bn1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False), norm(64)
        for i, (a, b) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), start=1):
            setattr(self, f"layer{i}", nn.Sequential(_Residual(a, b, norm, 1 if a == b else 2), _Residual(b, b, norm)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def pretrained(self, weights: str) -> None:
        path = _weights_file(weights)
        try:
            found = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"expected a whole safetensors file, found {error}", where=path,
                            hint="name a safetensors file of a ResNet-18, or fetch it again") from None
        mine = self.state_dict()
        for name, tensor in mine.items():
            if name not in found or found[name].shape != tensor.shape:
                have = tuple(found[name].shape) if name in found else "none"
                raise UserError(f"expected a tensor {name!r} of shape {tuple(tensor.shape)}, found {have}", where=path,
                                hint="name the weights of a ResNet-18 with torchvision's names")
        self.load_state_dict({k: found[k].to(torch.float32) for k in mine})


class _Residual(nn.Module):
    def __init__(self, size, out, norm, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(size, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.downsample = nn.Identity() if size == out else nn.Sequential(
            nn.Conv2d(size, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


class FixedBatchNorm(nn.Module):
    """Batch normalization with fixed statistics and scales: batches of demonstrations are no sample of ImageNet."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def _weights_file(weights: str) -> Path:
    """Where the safetensors file lies; fetched first if it is on the hub."""
    if not weights.startswith("hf://"):
        return Path(weights)
    owner, name, *file = weights.removeprefix("hf://").split("/", 2) if weights.count("/") > 2 else (None, None)
    if not name:
        raise UserError("expected hf://OWNER/NAME[@REVISION][/FILE], found less", where=weights,
                        hint="name a repository on the hub, or a file on this machine")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise UserError("fetching from the hub needs huggingface_hub, which is not installed", where=weights,
                        hint="pip install huggingface_hub, or fetch the file yourself and name its path") from None
    name, _, revision = name.partition("@")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file[0] if file else "model.safetensors",
                                    revision=revision or None))
    except Exception as error:
        raise UserError(f"could not fetch the pretrained weights ({type(error).__name__}: {error})", where=weights,
                        hint="check the address and the network, or name a local file") from error


def crop(image: Tensor, margin: int, rng: Generator | None) -> Tensor:
    """(N, C, h, w) -> (N, C, h - 2 margin, w - 2 margin): at a random place for each image, in the centre without
    `rng` (on the image's device)."""
    if not margin:
        return image
    n, _, h, w = image.shape
    h, w = h - 2 * margin, w - 2 * margin
    if rng is None:
        return image[..., margin:margin + h, margin:margin + w]
    top, left = torch.randint(0, 2 * margin + 1, (2, n, 1, 1), generator=rng, device=image.device)
    row = top + torch.arange(h, device=image.device)[:, None]
    column = left + torch.arange(w, device=image.device)
    which = torch.arange(n, device=image.device)[:, None, None]
    return image.permute(0, 2, 3, 1)[which, row, column].permute(0, 3, 1, 2)
