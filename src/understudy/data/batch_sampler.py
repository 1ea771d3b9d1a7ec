"""Batch samplers: where training batches come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..core import Batch, UserError, keys

GOLDEN_RATIO = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly over [0, 1)


class BatchSampler(ABC):
    """Source of training batches.

    A batch is a function of its arguments alone. A training run therefore resumes at any step without stored state.
    """

    @abstractmethod
    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns the rows `rows` of one batch.

        Args:
            size: Number of windows in the whole batch.
            step: Number of the batch, from 0.
            rows: The rows of the batch to return. With several processes, each process asks for its part.
        """


class MixtureSampler(BatchSampler):
    """Joins batches of several samplers in fixed proportions.

    Half of each batch can come from demonstrations and half from a replay buffer (RLPD, Ball et al. 2023), for
    example. The rows of the first sampler come first. `extra["dataset_index"]` (B, 1) is the number of the sampler
    that a row comes from. `extra["index"]` is the number of the window in the data of that sampler.

    If `size * weight` is not an integer, the number of rows varies by one from step to step, and its mean over the
    steps is exact.

    Args:
        samplers: At least one. Their batches must have the same columns and shapes.
        weights: Fraction of each batch that comes from each sampler, not negative. They need not add up to 1.

    Example:
        >>> sampler = MixtureSampler((policy.windows(demos), policy.windows(play)), weights=(0.5, 0.5))
        >>> sampler.batch(64, step=0).extra["dataset_index"].sum()
        tensor(32)
    """

    def __init__(self, samplers: Sequence[BatchSampler], weights: Sequence[float]):
        self.samplers = tuple(samplers)
        self.weights = tuple(float(w) for w in weights)
        values = np.array(self.weights)
        if not self.samplers or len(self.samplers) != len(self.weights):
            raise UserError(f"a mixture needs one weight per sampler: there are {len(self.samplers)} samplers and "
                            f"{len(self.weights)} weights", where="MixtureSampler",
                            hint="give a weight for each sampler, such as (0.5, 0.5)")
        if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise UserError(f"the weights of a mixture must be finite, at least 0 and not all 0: they are "
                            f"{list(self.weights)}", where="MixtureSampler",
                            hint="give fractions such as 0.5 and 0.5")
        self._cumulative = np.cumsum(values) / values.sum()

    def rows_per_sampler(self, size: int, step: int) -> list[int]:
        """Returns how many rows of batch `step`, from 0, come from each sampler. They add up to `size`.

        Systematic sampling: the boundaries between samplers are shifted by an offset in [0, 1) that is spread evenly
        over the steps.
        """
        offset = step * GOLDEN_RATIO % 1
        ends = np.floor(np.round(self._cumulative * size, 9) + offset).astype(int)
        return np.diff(ends, prepend=0).tolist()

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns one batch: see `BatchSampler.batch`. Each sampler gets another seed, derived from `seed`."""
        low, high, _ = rows.indices(size)
        parts, begin = [], 0
        seeds = keys(seed, range(len(self.samplers))).tolist()  # two samplers over the same data draw differently
        for number, count in enumerate(self.rows_per_sampler(size, step)):
            first, last = max(low - begin, 0), min(high - begin, count)
            begin += count
            if first < last:
                parts.append((number, self.samplers[number].batch(count, step, seeds[number], slice(first, last))))
        if not parts:  # an empty share
            parts.append((0, self.samplers[0].batch(1, step, seeds[0], slice(0, 0))))
        return join_batches([part.replace(extra={**part.extra, "dataset_index": torch.full(
            (len(part), 1), number, device=part.action.device)}) for number, part in parts])


class SourcesSampler(BatchSampler):
    """Draws batches from one sampler. Puts as many rows from each further sampler into `Batch.others`."""

    def __init__(self, sampler: BatchSampler, others: Mapping[str, BatchSampler]):
        self.sampler, self.others = sampler, dict(others)

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns one batch: see `BatchSampler.batch`. Each other sampler gets a seed derived from `seed`."""
        seeds = keys(seed, range(len(self.others))).tolist()
        return self.sampler.batch(size, step, seed, rows).replace(others={
            name: other.batch(size, step, key, rows)
            for (name, other), key in zip(self.others.items(), seeds, strict=True)})


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Joins batches: the rows of all parts, in the order of the parts, without their `others`."""
    if len(parts) == 1:
        return parts[0]
    nexts = [p.next for p in parts if p.next is not None]
    if len(nexts) not in (0, len(parts)):
        raise UserError("some samplers of the mixture give the next observation and others do not",
                        where="MixtureSampler", hint="build all of them with the same next_obs")
    return Batch(_join_columns([p.obs for p in parts]), _join_column("action", [p.action for p in parts]),
                 _join_column("mask", [p.mask for p in parts]), _join_columns([p.extra for p in parts]),
                 _join_columns(nexts) if nexts else None)


def _join_columns(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = set(parts[0])
    for part in parts[1:]:
        if set(part) != names:
            differing_column = sorted(names ^ set(part))[0]
            raise UserError(f"some samplers of the mixture give the column {differing_column!r} and others do not",
                            where="MixtureSampler", hint="build all of them with the same window and extra columns")
    return {name: _join_column(name, [p[name] for p in parts]) for name in parts[0]}


def _join_column(name: str, parts: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(p.shape[1:]) for p in parts}
    if len(shapes) > 1:
        raise UserError(f"the samplers of the mixture give column {name!r} in different shapes: "
                        f"{', '.join(map(str, sorted(shapes)))}", where="MixtureSampler",
                        hint="use the same window and datasets with the same features")
    return torch.cat(list(parts))
