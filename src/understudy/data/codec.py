"""Codecs: conversion between the units of the data and the numbers that networks read and predict.

The statistics are buffers of a module, so they are saved with the weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Batch, Schema, Unsupported, UserError, part
from .one_hot import decode_classes, encode_classes
from .running_statistics import MIN_SCALE, RunningStatistics, Scale

TARGET_TOLERANCE = 1e-3  # largest difference of two values of the same code, in units of the scale of the component


class CodecModule(nn.Module, ABC):
    """The module that a `Codec` builds, which encodes observations and targets and decodes predictions.

    Attributes:
        width: Width of one coded step of the target.
        num_classes: Number of classes of each component of a discrete target (see `core.HeadSpec`).
        bound: Largest absolute value of a coded target (see `core.HeadSpec`).
    """

    width: int
    num_classes: tuple[int, ...]
    bound: float | None = None

    def known_values(self, name: str) -> Tensor | None:
        """Returns the only values that an observation may have, one per row. None if any value is possible."""
        return None

    def obs_statistics(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Returns center and scale of each component of an observation in the data. None if they are unknown.

        Returns:
            Such as mean and standard deviation, (*feature) or, with statistics of groups, (G, *feature). The scale of a
            component that is constant in the data is 0, and the center is its value.
        """
        return None

    def target_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Returns center and scale of each component of the target in the data, as `obs_statistics` for observations.

        None if the codec has statistics of something else than the recorded values, such as displacements.
        """
        return None

    @abstractmethod
    def fit_statistics(self, scan: Callable[[], Iterator[Batch]]) -> None:
        """Computes the statistics in one pass over the data.

        Args:
            scan: Returns an iterator over batches that together have every window once. Padded steps (mask False) must
                be ignored.
        """

    def extend_statistics(self, scan: Callable[[], Iterator[Batch]]) -> None:
        """Adds the windows of a collection round to the statistics. By default it keeps the statistics as they are."""

    @abstractmethod
    def encode_obs(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encodes observations.

        Args:
            obs: ``{name: (B, To, *feature)}`` in the units of the data.

        Returns:
            The same names and shapes. Columns that are not numbers (images, text, classes) are unchanged.
        """

    @abstractmethod
    def encode(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Encodes targets.

        Args:
            action: (B, H, A) in the units of the data.
            obs: The observations, not coded.

        Returns:
            (B, H, width).
        """

    @abstractmethod
    def decode(self, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Decodes targets. The inverse of `encode`.

        Args:
            coded: Coded targets, (B, H, width).
            obs: The observations, not coded.

        Returns:
            (B, H, A) in the units of the data.
        """

    @property
    @abstractmethod
    def action_scale(self) -> Tensor:
        """Scale of each component of the target, (A,): how much it changes when its code changes by 1.

        It is 1 for components that are constant, discrete or not scaled.
        """

    def target_difference(self, other: CodecModule) -> str | None:
        """Describes how the encoding of the target differs from another codec's encoding. None if it does not differ.

        By default two codecs are the same only if all their statistics are. Override it if a codec has statistics that
        do not belong to the target.

        Args:
            other: A codec with statistics, of a target with as many components.

        Returns:
            A sentence for an error message, or None if the same code means the same value.
        """
        statistics, other_statistics = self.state_dict(), other.state_dict()
        same = type(self) is type(other) and statistics.keys() == other_statistics.keys() and all(
            own.shape == other_statistics[name].shape
            and torch.allclose(own, other_statistics[name].to(own), rtol=TARGET_TOLERANCE)
            for name, own in statistics.items())
        return None if same else f"its {type(other).__name__} has other statistics than the {type(self).__name__} here"


class Codec(ABC):
    """Config of a codec. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, features: Schema, inputs: tuple[str, ...], target: str) -> CodecModule:
        """Builds the module, without statistics. `target` is the column to predict."""


@part
class Normalizer(Codec):
    """Shifts and scales each component by statistics of the data.

    | scale | result |
    |---|---|
    | ``"zscore"`` | mean 0 and standard deviation 1 |
    | ``"minmax"`` | the range becomes [-1, 1] |
    | ``"quantile"`` | the 1st and 99th percentiles become -1 and 1; values beyond them are kept |
    | ``"identity"`` | unchanged |

    A component that is constant in the data is coded as 0 and decoded as the constant.

    A discrete target becomes one-hot vectors, one per component, side by side. It is decoded as the class with the
    largest entry, as float32. The bytes of a text are such classes.

    Args:
        relative: An observation. Its newest row is subtracted from the target before scaling, so that absolute
            positions become displacements. Executors still see absolute positions.
        components: Pairs (component of the target, component of `relative`), where the two correspond only in part.
            Other components stay absolute. Empty: all components, in order.
        min_scale: A component counts as constant if its range is at most this fraction of the largest number in its
            column (of 1 if that is larger), or a millionth of its own size: see `running_statistics.constant_floor`.
        group_by: A text or class column, such as ``"observation.robot"``. Statistics are computed and used for each of
            its values separately. With several robots, components that `ColumnPadding` added are constant for a robot,
            so they are coded as 0.
        unscaled: Observations that stay as they are, such as a latent that has no values in the data yet.

    References:
        Chi et al. (2023), Diffusion Policy: Visuomotor Policy Learning via Action Diffusion, arXiv:2303.04137.
    """

    obs: Scale = "zscore"
    target: Scale = "minmax"
    relative: str | None = None
    components: tuple[tuple[int, int], ...] = ()
    min_scale: float = MIN_SCALE
    group_by: str | None = None
    unscaled: tuple[str, ...] = ()

    def build(self, features, inputs, target):
        return _NormalizerModule(self, features, inputs, target)


class _NormalizerModule(CodecModule):
    obs_transforms: Any  # nn.ModuleList, which does not say of what
    count: Tensor
    groups: Tensor
    relative_source: Tensor
    is_relative: Tensor

    def __init__(self, config: Normalizer, features: Schema, inputs: tuple[str, ...], target: str):
        super().__init__()
        self.config, feature = config, features[target]
        if feature.kind == "discrete" and not feature.num_classes:
            raise UserError("The number of classes of each component is unknown.", where=target,
                            hint="Give it in the features: Feature(..., kind='discrete', num_classes=(4,)).")
        self.num_classes = (256,) * feature.size if feature.kind == "text" else (
            feature.num_classes or () if feature.kind == "discrete" else ())
        self.width = sum(self.num_classes) or feature.size
        self.bound = 1.0 if self.num_classes else {"minmax": 1.0, "identity": None}.get(config.target, math.inf)
        # "name?" is a mask and stays as it is.
        self.names = () if config.obs == "identity" else tuple(
            k for k in inputs if features[k].kind == "vector" and not k.endswith("?") and k not in config.unscaled)
        if missing := [name for name in config.unscaled if name not in inputs]:
            raise UserError(f"The policy does not read {missing[0]!r}. It reads {', '.join(inputs)}.",
                            where="Normalizer.unscaled", hint="Name one of the policy's inputs.")
        self.obs_transforms = nn.ModuleList(_Affine(features[k].shape) for k in self.names)
        self.scales_target = not self.num_classes and config.target != "identity"
        self.action_transform = _Affine((feature.size,))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # windows in the statistics; 0: not fitted
        self.fitted = not (self.names or self.scales_target)
        if config.group_by is not None:
            self.group_kind = _group_feature(config.group_by, features, inputs).kind
            # The value of each group, one row per group. Statistics have the groups as their first axis.
            self.register_buffer("groups", torch.zeros(0, features[config.group_by].size, dtype=torch.int64))
        if config.relative is not None:
            source, is_relative = _relative_columns(config, features, inputs, target)
            self.register_buffer("relative_source", source, persistent=False)
            self.register_buffer("is_relative", is_relative, persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if self.config.group_by is not None:  # the file says how many groups there are
            for name, buffer in self.named_buffers():
                if prefix + name in state_dict:
                    buffer.resize_(state_dict[prefix + name].shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # A Python bool, because a branch on a tensor cannot be exported.
        self.fitted = self.fitted or bool(self.count > 0)

    def known_values(self, name):
        return self.groups if name == self.config.group_by else None

    def obs_statistics(self, name):
        if not self.fitted or name not in self.names:
            return None
        transform = self.obs_transforms[self.names.index(name)]
        return transform.offset, transform.scale

    def target_statistics(self):
        if not self.fitted or not self.scales_target or self.config.relative is not None:
            return None
        return self.action_transform.offset, self.action_transform.scale

    def fit_statistics(self, scan):
        groups: dict[tuple[int, ...], tuple[list[RunningStatistics], RunningStatistics]] = {}
        count = 0
        for batch in scan():
            count += len(batch)
            target, action = self._add_relative(batch.action.float(), batch.obs, -1), batch.action.float()
            for key, rows in self._rows_of_groups(batch.obs):
                if key not in groups:
                    groups[key] = [RunningStatistics() for _ in self.names], RunningStatistics()
                obs_statistics, target_statistics = groups[key]
                for name, statistics in zip(self.names, obs_statistics, strict=True):
                    x = batch.obs[name][rows, -1]
                    statistics.add(x[batch.obs[name + "?"][rows, -1]] if name + "?" in batch.obs else x)
                mask = batch.mask[rows]
                target_statistics.add(target[rows][mask], action[rows][mask])  # a difference is as exact as these
        if not count:
            raise UserError("There are no windows to compute statistics from.", hint="Fit on data that have steps.")
        keys = sorted(groups)
        if self.num_classes:
            for key in keys:
                groups[key][1].check_classes(self.num_classes)
        if self.scales_target:
            self._set(self.action_transform, [groups[k][1] for k in keys], keys, self.config.target, "the target")
        for i, (name, transform) in enumerate(zip(self.names, self.obs_transforms, strict=True)):
            self._set(transform, [groups[k][0][i] for k in keys], keys, self.config.obs, name)
        if self.config.group_by is not None:
            self.groups = torch.tensor(keys, device=self.groups.device)
        self.count.fill_(count)
        self.fitted = True

    def _set(self, transform: _Affine, statistics: list[RunningStatistics], keys: list, scale: Scale, where: str):
        """Sets offset and scale of a transform from the statistics of each group."""
        grouped = self.config.group_by is not None
        offsets_and_scales = []
        for key, s in zip(keys, statistics, strict=True):
            if not s.count and any(other.count for other in statistics):
                # This robot lacks the sensor.
                offsets_and_scales.append((torch.zeros(transform.shape), torch.zeros(transform.shape)))
                continue
            label = f"{where}, {self.config.group_by} {self._group_label(key)}" if grouped else where
            offset, size = s.offset_and_scale(scale, self.config.min_scale, label)
            offsets_and_scales.append((offset.reshape(transform.shape), size.reshape(transform.shape)))
        offset, size = (torch.stack(values) if grouped else values[0]
                        for values in zip(*offsets_and_scales, strict=True))
        transform.set_statistics(offset, size)

    def _rows_of_groups(self, obs: Mapping[str, Tensor]) -> Iterator[tuple[tuple[int, ...], Tensor | slice]]:
        """Yields each group of rows (such as each robot) in the batch, with its row numbers."""
        if self.config.group_by is None:
            yield (), slice(None)
            return
        keys, group = torch.unique(self._group_values(obs), dim=0, return_inverse=True)
        for number, key in enumerate(keys.tolist()):
            yield tuple(key), (group == number).nonzero().flatten()

    def _group_values(self, obs: Mapping[str, Tensor]) -> Tensor:
        assert self.config.group_by is not None
        return obs[self.config.group_by][:, -1].unsqueeze(-1).flatten(1).long()

    @property
    def action_scale(self):
        self._check_fitted()
        scale = self.action_transform.scale
        if scale.ndim > 1:  # one row per group
            scale = scale.nanmean(0)
        return torch.where(scale > 0, scale, 1.0)

    def target_difference(self, other):
        self._check_fitted()
        if not isinstance(other, _NormalizerModule):
            return super().target_difference(other)
        other._check_fitted()
        a, b = self.config, other.config
        options = {"num_classes": (self.num_classes, other.num_classes), "relative": (a.relative, b.relative),
                   "components": (a.components, b.components), "group_by": (a.group_by, b.group_by)}
        for name, (own_option, other_option) in options.items():
            if own_option != other_option:
                return f"its actions are coded with {name}={other_option!r} and not {own_option!r}"
        if a.group_by is not None and not torch.equal(self.groups, other.groups.to(self.groups)):
            return (f"its statistics are those of {a.group_by} "
                    f"{', '.join(other._group_label(g) for g in other.groups.tolist())} and not of "
                    f"{', '.join(self._group_label(g) for g in self.groups.tolist())}")
        return None if self.num_classes else self.action_transform.difference(other.action_transform)

    def _group(self, obs: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the group of each row, (B,). None without `group_by`."""
        if self.config.group_by is None:
            return None
        values = self._group_values(obs)
        matches = (values.unsqueeze(1) == self.groups).all(-1)
        has_statistics = matches.any(1)
        if not torch.compiler.is_exporting() and not has_statistics.all():
            value = self._group_label(values[~has_statistics][0].tolist())
            raise UserError(f"There are no statistics for {value}. Known are "
                            f"{', '.join(self._group_label(g) for g in self.groups.tolist())}.",
                            where=f"column {self.config.group_by!r}",
                            hint="Train on episodes with this value, or correct the column.")
        # An exported network cannot raise errors. The last row of the tables is NaN.
        return torch.where(has_statistics, matches.int().argmax(1), self.groups.shape[0])

    def _group_label(self, value) -> str:
        """Returns the name of a group as a user would write it."""
        if self.group_kind == "text":
            return repr(bytes(value).rstrip(b"\0").decode(errors="replace"))
        return str(value[0] if len(value) == 1 else tuple(value))

    def _check_fitted(self):
        if not self.fitted:
            raise UserError("The statistics of the data have not been computed.", where=type(self.config).__name__,
                            hint="Call policy.fit_statistics(data) first.")

    def _add_relative(self, action: Tensor, obs: Mapping[str, Tensor], sign: int) -> Tensor:
        if self.config.relative is None:
            return action
        newest = obs[self.config.relative][:, -1:].flatten(1)[:, self.relative_source] * self.is_relative
        return action + sign * newest.unsqueeze(1)

    def encode_obs(self, obs):
        self._check_fitted()
        out, group = dict(obs), self._group(obs)
        for name, transform in zip(self.names, self.obs_transforms, strict=True):
            out[name] = transform.encode(obs[name].float(), group)
            if name + "?" in obs:  # values that were not observed may be anything, even NaN
                present = obs[name + "?"].reshape(*obs[name].shape[:2], *[1] * (obs[name].ndim - 2))
                out[name] = torch.where(present, out[name], 0.0)
        return out

    def encode(self, action, obs):
        self._check_fitted()
        if self.num_classes:
            return encode_classes(action, self.num_classes)
        action = self._add_relative(action.float(), obs, -1)
        return self.action_transform.encode(action, self._group(obs)) if self.scales_target else action

    def decode(self, coded, obs):
        self._check_fitted()
        if self.num_classes:
            return decode_classes(coded, self.num_classes).float()
        action = self.action_transform.decode(coded, self._group(obs)) if self.scales_target else coded
        return self._add_relative(action, obs, 1)


def _group_feature(name: str, features: Schema, inputs: tuple[str, ...]):
    """Returns the feature of the column that `Normalizer.group_by` names."""
    if name not in inputs:
        raise UserError(f"The policy does not read {name!r}. It reads {', '.join(inputs)}.",
                        where="Normalizer.group_by", hint="Name one of the policy's inputs.")
    if features[name].kind not in ("text", "discrete"):
        raise UserError(f"Column {name!r} has kind {features[name].kind!r}, and groups need a text or class column.",
                        where="Normalizer.group_by", hint="Store the group as UTF-8 bytes or as an integer.")
    return features[name]


def _relative_columns(config: Normalizer, features: Schema, inputs: tuple[str, ...], target: str,
                      ) -> tuple[Tensor, Tensor]:
    """Returns, for each target component, the observation component that is subtracted, and whether there is one."""
    if features[target].kind == "discrete":
        raise Unsupported("Classes have no difference.", where="Normalizer.relative", hint="Remove relative.")
    if config.relative not in inputs:
        raise UserError(f"The policy does not read {config.relative!r}. It reads {', '.join(inputs)}.",
                        where="Normalizer.relative", hint="Name one of the policy's inputs.")
    size, width = features[target].size, features[config.relative].size
    if not config.components and size != width:
        raise UserError(f"{target!r} has {size} components and {config.relative!r} {width}.",
                        where="Normalizer.relative", hint="Say which correspond: components=((0, 0), ...).")
    source, is_relative = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
    for a, o in config.components or ((i, i) for i in range(size)):
        if not (0 <= a < size and 0 <= o < width):
            raise UserError(f"The pair {(a, o)} is out of range: {target!r} has {size} components and "
                            f"{config.relative!r} {width}.", where="Normalizer.components",
                            hint="Number the components of target and observation from 0.")
        source[a], is_relative[a] = o, 1.0
    return source, is_relative


class _Affine(nn.Module):
    """Affine normalization (x - offset) / scale, with one row per group. Where scale is 0, the result is 0."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.register_buffer("offset", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("factor", torch.ones(shape), persistent=False)  # factor of the code: 1 / scale, or 0

    def set_statistics(self, offset: Tensor, scale: Tensor) -> None:
        self.offset, self.scale = offset.to(self.offset), scale.to(self.scale)
        self.factor = torch.where(self.scale > 0, self.scale.reciprocal(), 0.0)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.set_statistics(self.offset, self.scale)

    def difference(self, other: _Affine) -> str | None:
        """Names the statistic in which another transform differs, or None. See `TARGET_TOLERANCE`."""
        unit = torch.where(self.scale > 0, self.scale, self.offset.abs())
        for name in ("scale", "offset"):
            statistic, other_statistic = getattr(self, name), getattr(other, name)
            if not ((statistic - other_statistic.to(statistic)).abs() <= TARGET_TOLERANCE * unit + 1e-6).all():
                return f"its actions have the {name} {_short(other_statistic)} and not {_short(statistic)}"
        return None

    def _of_groups(self, group: Tensor | None, statistic: Tensor) -> Tensor:
        """Returns a statistic, or the statistic of each row's group, (B, 1, *shape). An unknown group has NaN."""
        if group is None:
            return statistic
        unknown = statistic.new_full((1, *self.shape), math.nan)
        return torch.cat([statistic, unknown])[group].unsqueeze(1)

    def encode(self, x, group=None):
        return (x - self._of_groups(group, self.offset)) * self._of_groups(group, self.factor)

    def decode(self, x, group=None):
        return x * self._of_groups(group, self.scale) + self._of_groups(group, self.offset)


def _short(numbers: Tensor) -> str:
    return f"({', '.join(f'{x:.4g}' for x in numbers.flatten().tolist())})"
