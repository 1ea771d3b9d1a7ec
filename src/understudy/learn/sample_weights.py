"""How much each step of a batch counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Batch, UserError
from ..policy import Policy


class SampleWeights(ABC):
    """A frozen dataclass. `columns` are those that batches need in `extra`."""

    columns: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, batch: Batch, policy: Policy) -> Tensor:
        """(B,), (B, 1) or (B, H), not negative, on the batch's device. Padded steps never count, whatever this
        says."""


@dataclass(frozen=True)
class UniformWeights(SampleWeights):
    def __call__(self, batch, policy):
        return torch.ones(len(batch), device=batch.action.device)


@dataclass(frozen=True)
class ColumnWeights(SampleWeights):
    """A column of the data as weights, by value (Sirius, Liu et al. 2023: interventions count for more)."""

    column: str = "intervention"
    weight: float = 3.0
    other_weight: float = 1.0

    @property
    def columns(self):
        return (self.column,)

    def __call__(self, batch, policy):
        if self.column not in batch.extra:
            raise UserError(
                f"expected the batch to have {self.column!r}, found {', '.join(batch.extra)}",
                where="weights",
                hint=f"draw batches with extra=({self.column!r},)",
            )
        value = batch.extra[self.column].reshape(*batch.mask.shape, -1)
        if value.shape[-1] != 1:
            raise UserError(f"expected one value a step, found {value.shape[-1]}", where=f"column {self.column!r}",
                            hint="name a column with one number a step")
        return torch.where(value[..., 0] > 0, self.weight, self.other_weight)


@dataclass(frozen=True)
class AdvantageWeights(SampleWeights):
    """exp(beta * advantage), capped: AWR (Peng et al. 2019), CRR (Wang et al. 2020), IQL's extraction (Kostrikov et
    al. 2022), for any head."""

    advantage: Callable[[Batch], Tensor]  # (B,) in the units of return
    beta: float = 3.0
    max_weight: float = 100.0

    @torch.no_grad()
    def __call__(self, batch, policy):
        return (self.beta * self.advantage(batch)).exp().clamp(max=self.max_weight)
