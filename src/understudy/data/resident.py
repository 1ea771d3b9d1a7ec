"""Windows over data that lie on the device: of a batch only the numbers of its rows travel there."""

from __future__ import annotations

import math

import numpy as np
import torch

from .pack import Column, Pack
from .window import Windows, _tensor

PIECE = 64 * 2**20  # bytes that are copied at a time: a file that is mapped is never whole in memory


def resident(windows: Windows, device: torch.device) -> Windows:
    """The same windows, with their columns on the device where they fill no more than a quarter of what is free there:
    the rest is for what an update needs. As they are on the CPU, where they lie already."""
    arrays = {_place(c.array): c.array for c in windows.pack.columns.values()}.values()
    return windows if sum(a.nbytes for a in arrays) > room(device) else Resident(windows, device)


def room(device: torch.device) -> int:
    """Bytes that data may fill there."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


class _Numbers(Column):
    """A column of the numbers of its own rows."""

    def at(self, places):
        return places if places.flags.writeable else places.copy()


class Resident(Windows):
    """`windows`, whose batches are made on the device. Which rows they have is found as there, by the same code."""

    def __init__(self, windows: Windows, device: torch.device):
        self.__dict__.update(windows.__dict__)
        self.device = device
        columns, held = windows.pack.columns, {}
        for column in columns.values():
            if (place := _place(column.array)) not in held:
                held[place] = _held(column.array, device)
        self.held = {name: held[_place(c.array)] for name, c in columns.items()}
        self.goals = {g.into: self.held[g.of] for g in self.window.goals}
        self.pack = Pack({name: _Numbers(c.array, c.first, c.rows, c.constant) for name, c in columns.items()},
                         windows.pack.length)

    def gather(self, at, rng=None):
        numbers = super().gather(at, rng).to(self.device)

        def seen(tree):
            return {k: self.goals.get(k, self.held.get(k))[v] for k, v in tree.items()}
        extra = {k: self.held[k][v] if k in self.extra and k != "index" else v for k, v in numbers.extra.items()}
        action = self.held[self.target][numbers.action[..., 0]]
        if action.ndim != 3:
            action = action.reshape(*action.shape[:2], math.prod(action.shape[2:]))
        return numbers.but(obs=seen(numbers.obs), action=action, extra=extra,
                           next=None if numbers.next is None else seen(numbers.next))


def _place(array: np.ndarray) -> tuple:
    """Equal for two views of the same rows."""
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str


def _held(array: np.ndarray, device: torch.device) -> torch.Tensor:
    rows = max(PIECE // max(array[:1].nbytes, 1), 1)
    whole = torch.empty(array.shape, dtype=_tensor(array[:1].copy()).dtype, device=device)
    for i in range(0, len(array), rows):
        whole[i: i + rows].copy_(_tensor(array[i: i + rows].copy()))
    return whole
