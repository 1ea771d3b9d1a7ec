"""Windows over data that are stored on the device. Only row indices are transferred to the device."""

from __future__ import annotations

import math

import numpy as np
import torch

from .batch_sampler import BatchSampler, MixtureSampler, SourcesSampler
from .packed_columns import PackedColumn, PackedColumns
from .window import Windows, _to_tensor

CHUNK_BYTES = 64 * 2**20  # bytes that are copied at a time, so that a mapped file is never completely in memory


def to_device(sampler: BatchSampler, device: torch.device) -> BatchSampler:
    """Returns a sampler of the same batches that gathers them on the device, from columns that are stored there.

    Columns are copied if they fill no more than a quarter of the free memory. The rest is for what an update needs. On
    the CPU, samplers are returned as they are. So is a sampler that is not made of windows.
    """
    if isinstance(sampler, MixtureSampler):
        return MixtureSampler([to_device(part, device) for part in sampler.samplers], sampler.weights)
    if isinstance(sampler, SourcesSampler):
        others = {name: to_device(other, device) for name, other in sampler.others.items()}
        return SourcesSampler(to_device(sampler.sampler, device), others)
    if not isinstance(sampler, Windows):
        return sampler
    windows = sampler
    arrays = {_memory_key(c.array): c.array for c in windows.packed.columns.values()}.values()
    return windows if sum(a.nbytes for a in arrays) > available_bytes(device) else DeviceWindows(windows, device)


def available_bytes(device: torch.device) -> int:
    """Returns how many bytes of data a device may get: a quarter of the free memory of a GPU, none on the CPU."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


class _RowIndices(PackedColumn):
    """A column that contains the indices of its own rows."""

    def take(self, indices):
        return indices if indices.flags.writeable else indices.copy()


class DeviceWindows(Windows):
    """Windows over a dataset. Batches are gathered on the device, from columns that are stored there."""

    def __init__(self, windows: Windows, device: torch.device):
        self.__dict__.update(windows.__dict__)
        self.device = device
        columns, device_arrays = windows.packed.columns, {}
        for column in columns.values():
            if (memory_key := _memory_key(column.array)) not in device_arrays:
                device_arrays[memory_key] = _copy_to_device(column.array, device)
        self.device_columns = {name: device_arrays[_memory_key(c.array)] for name, c in columns.items()}
        self.goal_columns = {g.into: self.device_columns[g.column] for g in self.window.goals}
        self.packed = PackedColumns(
            {name: _RowIndices(c.array, c.starts, c.lengths, c.constant) for name, c in columns.items()},
            windows.packed.lengths,
        )

    def _gather_rows(self, indices, rng):
        numbers = super()._gather_rows(indices, rng).to(self.device)

        def gathered(tree):
            return {k: self.goal_columns.get(k, self.device_columns.get(k))[v] for k, v in tree.items()}

        stored = {**{k: self.device_columns[k] for k in self.extra if k != "index"},
                  **{k: c for k, c in self.goal_columns.items() if k not in self.inputs}}
        extra = {k: stored[k][v] if k in stored else v for k, v in numbers.extra.items()}
        action = numbers.action if self.target is None else self.device_columns[self.target][numbers.action[..., 0]]
        if action.ndim != 3:
            action = action.reshape(*action.shape[:2], math.prod(action.shape[2:]))
        return numbers.replace(obs=gathered(numbers.obs), action=action, extra=extra,
                               next=None if numbers.next is None else gathered(numbers.next))


def _memory_key(array: np.ndarray) -> tuple:
    """Returns a key that is equal for two arrays that are views of the same memory."""
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str


def _copy_to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    rows = max(CHUNK_BYTES // max(array[:1].nbytes, 1), 1)
    whole = torch.empty(array.shape, dtype=_to_tensor(array[:1].copy()).dtype, device=device)
    for i in range(0, len(array), rows):
        whole[i: i + rows].copy_(_to_tensor(array[i: i + rows].copy()))
    return whole
