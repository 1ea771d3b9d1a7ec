"""Computes statistics of columns batch by batch, and finds components that count as constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ..core import UserError

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["zscore", "minmax", "quantile", "identity"]

# Float32 numbers have a precision of 1.2e-7 of their size. Both limits leave room for a few operations.
MIN_SCALE = 1e-7  # range of a constant component, as a fraction of the largest number in its column
ROUNDING = 1e-6  # range of a constant component, as a fraction of its own size
LARGEST_UNIT, SMALLEST_UNIT = 1.0, 1e-5  # sizes of a column above and below which its size does not matter


def constant_floor(size: Tensor, min_scale: float = MIN_SCALE) -> Tensor:
    """Returns the range of each component up to which it counts as constant, because it is rounding.

    Two things are rounding in float32: changes of the last digits of a number, such as 1000.0001 instead of 1000, and
    what is left of a zero after arithmetic with other numbers of its column, such as 3e-9 in a rotation matrix.

    How large a component is in its unit says nothing: 1e-6 m for each step is a motion, and is learned. Other numbers
    above 1 do not count, because they may have another unit, such as encoder ticks beside amperes.

    Args:
        size: Largest absolute value of each component of a column, (*feature).
        min_scale: See `Normalizer`.
    """
    column_size = size.max().clamp(SMALLEST_UNIT, LARGEST_UNIT) if size.numel() else 1.0
    return (ROUNDING * size).clamp(min=min_scale * column_size)


def is_constant(low: np.ndarray, high: np.ndarray, min_scale: float = MIN_SCALE) -> np.ndarray:
    """Returns whether codecs treat each component as constant, given its smallest and largest value."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    size = np.maximum(np.abs(low), np.abs(high))
    column_size = np.clip(size.max(), SMALLEST_UNIT, LARGEST_UNIT) if size.size else 1.0
    return high - low <= np.maximum(ROUNDING * size, min_scale * column_size)  # as `constant_floor`, without PyTorch


def unlearned_components(low: np.ndarray, high: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Returns the numbers of constant components (C,) that nevertheless change by more than float32 rounding."""
    size = np.maximum(np.abs(low), np.abs(high))
    return np.flatnonzero(constant & (high - low > 2 * np.finfo(np.float32).eps * size))


class RunningStatistics:
    """Running statistics of a column, merged as by Chan et al. (1979). Percentiles are of random rows.

    PyTorch is imported by the methods, because commands that only look at data use this module and need none.
    """

    max_samples = 2**18

    def __init__(self):
        import torch

        self.count, self.rng = 0, torch.Generator().manual_seed(0)

    def add(self, x: Tensor, operand: Tensor | None = None) -> None:
        """Adds rows (n, ...) to the statistics.

        Args:
            operand: The numbers from which x was computed by subtraction. Their rounding also is in x.
        """
        import torch

        if not (n := len(x)):
            return
        x = x.reshape(n, -1).cpu().double()
        size = x.abs().amax(0)
        if operand is not None:
            size = torch.maximum(size, operand.reshape(n, -1).abs().amax(0).cpu().double())
        mean, squares = x.mean(0), (x - x.mean(0)).square().sum(0)
        priorities = torch.rand(n, generator=self.rng)
        if not self.count:
            self.mean, self.squares, self.min, self.max, self.size = mean, squares, x.amin(0), x.amax(0), size
            self.sample, self.priorities = x.float(), priorities
        else:
            gap, fraction = mean - self.mean, n / (self.count + n)
            self.squares = self.squares + squares + gap.square() * self.count * fraction
            self.mean = self.mean + gap * fraction
            self.min, self.max = torch.minimum(self.min, x.amin(0)), torch.maximum(self.max, x.amax(0))
            self.size = torch.maximum(self.size, size)
            self.sample = torch.cat([self.sample, x.float()])
            self.priorities = torch.cat([self.priorities, priorities])
        if self.priorities.shape[0] > self.max_samples:
            kept = self.priorities.topk(self.max_samples).indices
            self.sample, self.priorities = self.sample[kept], self.priorities[kept]
        self.count += n

    def check_classes(self, num_classes: tuple[int, ...]) -> None:
        """Raises `UserError` if a row has a class that is not in 0 to num_classes - 1."""
        import torch

        if self.count and not ((self.min >= 0) & (self.max < torch.tensor(num_classes))).all():
            raise UserError(f"The data have classes from {self.min.int().tolist()} to {self.max.int().tolist()}, and "
                            f"the features say num_classes={num_classes}.", where="the target",
                            hint="Set num_classes of the target's Feature to cover all classes of the data.")

    def offset_and_scale(self, kind: Scale, min_scale: float, where: str) -> tuple[Tensor, Tensor]:
        """Returns offset and scale of each component, with which it is normalized."""
        import torch

        if not self.count:
            raise UserError("The column was observed at no step, so it has no statistics.", where=where,
                            hint="Leave it out of inputs, or add episodes that have it.")
        if not (self.min + self.max).isfinite().all():
            bad = (~(self.min + self.max).isfinite()).nonzero().flatten().tolist()
            raise UserError(f"There are values that are NaN or infinite in component {bad[0]}.", where=where,
                            hint="Repair or drop those episodes (understudy inspect names them).")
        low, high = self.min, self.max
        floor = constant_floor(self.size, min_scale)
        constant = high - low <= floor
        if kind == "zscore":
            offset, scale = self.mean.clamp(low, high), (self.squares / self.count).sqrt()
        else:
            if kind == "quantile":
                low_quantile, high_quantile = (self._percentile(q) for q in (0.01, 0.99))
                # Percentiles do not see a component that changes rarely, such as a gripper.
                rare = high_quantile - low_quantile <= floor
                low, high = torch.where(rare, low, low_quantile), torch.where(rare, high, high_quantile)
            offset, scale = (low + high) / 2, (high - low) / 2
        return offset, torch.where(constant, 0.0, scale)

    def _percentile(self, q: float) -> Tensor:
        """Interpolates linearly between the two nearest values, as NumPy does."""
        import torch

        ordered = self.sample.double().sort(0).values
        position = q * (ordered.shape[0] - 1)
        return torch.lerp(ordered[int(position)], ordered[min(int(position) + 1, ordered.shape[0] - 1)],
                          position - int(position))
