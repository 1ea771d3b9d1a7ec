"""Between the world's units and the network's. What is fitted here is saved with the weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import Batch, Schema, Unsupported, UserError


class CodecModule(nn.Module, ABC):
    """Statistics as buffers, so ONNX export and save/load need no second path."""

    width: int  # of one coded step of the target
    num_classes: tuple[int, ...]  # see core.Shape
    bound: float | None = None  # see core.Shape

    @abstractmethod
    def fit_statistics(self, scan: Callable[[], Iterator[Batch]]) -> None:
        """In one pass: `scan()` yields every window once. Padded steps (mask False) say nothing."""

    @abstractmethod
    def encode_obs(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Same keys and shapes (B, To, *feature); what is no number (images, text, choices) is left alone."""

    @abstractmethod
    def encode(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """(B, H, A) in world units -> (B, H, width). `obs` as it came, not coded."""

    @abstractmethod
    def decode(self, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """The inverse of encode."""


class Codec(ABC):
    @abstractmethod
    def build(self, features: Schema, inputs: tuple[str, ...], target: str) -> CodecModule: ...


Scale = Literal["zscore", "minmax", "quantile", "identity"]


@dataclass(frozen=True)
class Normalizer(Codec):
    """Each component moved and stretched by statistics of the data.

    "zscore": mean 0, standard deviation 1. "minmax": the range becomes [-1, 1]. "quantile": the 1st and 99th
    percentiles become -1 and 1, and what lies beyond is kept. "identity": as it is, for what is bounded already.
    A component that never moved is coded 0 and decoded as the very constant: nothing is divided by noise.

    A target of choices becomes one-hot vectors side by side; it is decoded by the largest entry of each component,
    as float32 ids.

    relative: an observation whose newest row is subtracted from the target first, so that absolute positions become
        displacements, and executors still splice chunks in world units.
    components: (of the target, of that observation) pairs where the two correspond only in part; other components
        stay absolute. Empty: all of them, in order.
    floor: a component with a range of no more than this (or than a millionth of its size) never moved. The value is
        that of Diffusion Policy (Chi et al. 2023).
    """

    obs: Scale = "zscore"
    target: Scale = "minmax"
    relative: str | None = None
    components: tuple[tuple[int, int], ...] = ()
    min_scale: float = 1e-4

    def build(self, features, inputs, target):
        return _NormalizerModule(self, features, inputs, target)


class _NormalizerModule(CodecModule):
    def __init__(self, spec: Normalizer, features: Schema, inputs: tuple[str, ...], target: str):
        super().__init__()
        self.spec, feature = spec, features[target]
        if feature.kind == "discrete" and not feature.num_classes:
            raise UserError("expected the number of choices of each component, found none", where=target,
                            hint="say it in the features: Feature(..., kind='discrete', choices=(4,))")
        self.num_classes = feature.num_classes if feature.kind == "discrete" else ()
        self.width = sum(self.num_classes) or feature.size
        self.bound = 1.0 if self.num_classes else {"minmax": 1.0, "identity": None}.get(spec.target, math.inf)
        # "name?" says what was sensed and stays what it is.
        self.names = () if spec.obs == "identity" else tuple(
            k for k in inputs if features[k].kind == "vector" and not k.endswith("?"))
        self.target_obs_columns = nn.ModuleList(_Affine(features[k].shape) for k in self.names)
        self.obs_transforms = not self.num_classes and spec.target != "identity"
        self.action_transform = _Affine((feature.size,))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # of windows seen in fit; 0: not fitted
        self.fitted = not (self.names or self.obs_transforms)
        if spec.relative is not None:
            source, there = _relative_columns(spec, features, inputs, target)
            self.register_buffer("source", source, persistent=False)
            self.register_buffer("there", there, persistent=False)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        # A Python bool, since a branch on a tensor cannot be exported.
        self.fitted = self.fitted or bool(self.count > 0)

    def fit_statistics(self, scan):
        seen = [_RunningStatistics() for _ in self.names]
        target, count = _RunningStatistics(), 0
        for batch in scan():
            count += len(batch)
            for key, statistics in zip(self.names, seen, strict=True):
                x = batch.obs[key][:, -1]
                statistics.add(x[batch.obs[key + "?"][:, -1]] if key + "?" in batch.obs else x)
            target.add(self._add_relative(batch.action.float(), batch.obs, -1)[batch.mask])
        if not count:
            raise UserError("expected at least one window to take statistics of, found none",
                            hint="fit on data that have steps")
        if self.num_classes:
            target.set_num_classes(self.num_classes)
        if self.obs_transforms:
            self.action_transform.set_statistics(
                *target.offset_and_scale(self.spec.target, self.spec.min_scale, "the target")
            )
        for key, column, statistics in zip(self.names, self.target_obs_columns, seen, strict=True):
            column.set_statistics(*statistics.offset_and_scale(self.spec.obs, self.spec.min_scale, key))
        self.count.fill_(count)
        self.fitted = True

    def _check_fitted(self):
        if not self.fitted:
            raise UserError("expected fitted statistics, found none", where=type(self.spec).__name__,
                            hint="fit the policy first: policy.fit(data)")

    def _add_relative(self, action: Tensor, obs: Mapping[str, Tensor], sign: int) -> Tensor:
        if self.spec.relative is None:
            return action
        newest = obs[self.spec.relative][:, -1].flatten(1)[:, self.source] * self.there
        return action + sign * newest.unsqueeze(1)

    def encode_obs(self, obs):
        self._check_fitted()
        out = dict(obs)
        for key, column in zip(self.names, self.target_obs_columns, strict=True):
            out[key] = column.encode(obs[key].float())
            if key + "?" in obs:  # what was not sensed may hold anything, NaN as well
                sensed = obs[key + "?"].reshape(*obs[key].shape[:2], *[1] * (obs[key].ndim - 2))
                out[key] = torch.where(sensed, out[key], 0.0)
        return out

    def encode(self, action, obs):
        self._check_fitted()
        if self.num_classes:
            parts = (F.one_hot(a.long(), n) for a, n in zip(action.unbind(-1), self.num_classes, strict=True))
            return torch.cat(tuple(parts), -1).float()
        action = self._add_relative(action.float(), obs, -1)
        return self.action_transform.encode(action) if self.obs_transforms else action

    def decode(self, coded, obs):
        self._check_fitted()
        if self.num_classes:
            return torch.stack([c.argmax(-1) for c in coded.split(self.num_classes, -1)], -1).float()
        return self._add_relative(self.action_transform.decode(coded) if self.obs_transforms else coded, obs, 1)


def _relative_columns(
    spec: Normalizer, features: Schema, inputs: tuple[str, ...], target: str
) -> tuple[Tensor, Tensor]:
    """For each component of the target: its component of the observation, and 1.0 where it has one."""
    if features[target].kind == "discrete":
        raise Unsupported("choices have no difference", where="Scaled.relative", hint="remove relative")
    if spec.relative not in inputs:
        raise UserError(f"expected one of the inputs ({', '.join(inputs)}), found {spec.relative!r}",
                        where="Scaled.relative", hint="name an observation that the policy reads")
    size, width = features[target].size, features[spec.relative].size
    if not spec.components and size != width:
        raise UserError(f"{target!r} has {size} components and {spec.relative!r} {width}", where="Scaled.relative",
                        hint="say which belong together: components=((0, 0), ...)")
    source, there = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
    for a, o in spec.components or ((i, i) for i in range(size)):
        if not (0 <= a < size and 0 <= o < width):
            raise UserError(f"expected pairs below ({size}, {width}), found {(a, o)}",
                            where="Scaled.components",
                            hint="name components of the action and of the observation, from 0")
        source[a], there[a] = o, 1.0
    return source, there


class _Affine(nn.Module):
    """coded = (x - offset) / scale; where scale is 0, coded is 0 and decoded is offset."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("offset", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def set_statistics(self, offset: Tensor, scale: Tensor) -> None:
        self.offset.copy_(offset.reshape(self.offset.shape))
        self.scale.copy_(scale.reshape(self.scale.shape))

    def encode(self, x):
        return (x - self.offset) * torch.where(self.scale > 0, 1 / self.scale, 0.0)

    def decode(self, x):
        return x * self.scale + self.offset


class _RunningStatistics:
    """Of rows that come in parts. Means and variances are joined as Chan et al. (1979) do, in float64; percentiles
    are exact up to `most` rows and from then on those of an even random sample of so many."""

    max_samples = 2**18

    def __init__(self):
        self.count, self.rng = 0, torch.Generator().manual_seed(0)

    def add(self, x: Tensor) -> None:
        """(n, ...) any numbers."""
        if not (n := len(x)):
            return
        x = x.reshape(n, -1).cpu().double()
        mean, squares = x.mean(0), (x - x.mean(0)).square().sum(0)
        lot = torch.rand(n, generator=self.rng)
        if not self.count:
            self.mean, self.squares, self.min, self.max = mean, squares, x.amin(0), x.amax(0)
            self.sample, self.priorities = x.float(), lot
        else:
            gap, share = mean - self.mean, n / (self.count + n)
            self.squares = self.squares + squares + gap.square() * self.count * share
            self.mean = self.mean + gap * share
            self.min, self.max = torch.minimum(self.min, x.amin(0)), torch.maximum(self.max, x.amax(0))
            self.sample, self.priorities = torch.cat([self.sample, x.float()]), torch.cat([self.priorities, lot])
        if self.priorities.shape[0] > self.max_samples:
            kept = self.priorities.topk(self.max_samples).indices
            self.sample, self.priorities = self.sample[kept], self.priorities[kept]
        self.count += n

    def set_num_classes(self, choices: tuple[int, ...]) -> None:
        if self.count and not ((self.min >= 0) & (self.max < torch.tensor(choices))).all():
            raise UserError(f"expected choices from 0 to below {choices}, found {self.min.int().tolist()} to "
                            f"{self.max.int().tolist()}", where="the target",
                            hint="the features must count every choice of the data")

    def offset_and_scale(self, kind: Scale, floor: float, where: str) -> tuple[Tensor, Tensor]:
        """(offset, scale)."""
        if not self.count:
            raise UserError("expected at least one step to take statistics of, found none", where=where,
                            hint="it was sensed at no step: leave it out of inputs, or add episodes that have it")
        if not (self.min + self.max).isfinite().all():
            bad = (~(self.min + self.max).isfinite()).nonzero().flatten().tolist()
            raise UserError(f"expected finite numbers, found others in component {bad[0]}", where=where,
                            hint="repair or drop those episodes (understudy inspect names them)")
        low, high = self.min, self.max
        still = high - low <= torch.maximum(torch.full_like(low, floor), 1e-6 * torch.maximum(low.abs(), high.abs()))
        if kind == "zscore":
            offset, scale = self.mean.clamp(low, high), (self.squares / self.count).sqrt()
        else:
            if kind == "quantile":
                few, many = (self._percentile(q) for q in (0.01, 0.99))
                rare = many - few <= floor  # moves too seldom for percentiles to see: a gripper, say
                low, high = torch.where(rare, low, few), torch.where(rare, high, many)
            offset, scale = (low + high) / 2, (high - low) / 2
        return offset, torch.where(still, 0.0, scale)

    def _percentile(self, q: float) -> Tensor:
        """Linear between the two nearest, as NumPy does."""
        ordered = self.sample.double().sort(0).values
        at = q * (ordered.shape[0] - 1)
        return torch.lerp(ordered[int(at)], ordered[min(int(at) + 1, ordered.shape[0] - 1)], at - int(at))
