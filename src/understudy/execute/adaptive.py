"""Executors that decide, by comparing plans, for how long a chunk is executed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import AtLeast, AtMost, UserError, part, put
from .base import check_numeric_actions, check_samples
from .chunking import ChunkedExecutor


@part
class AdaptiveHorizon(ChunkedExecutor):
    """Executor that follows a chunk for as long as several samples of the policy agree on it, then plans again.

    Each decision draws `n_samples` chunks and executes the first one. The disagreement of a step is the root mean
    square, over the action components, of the standard deviation of the samples in units of `planner.action_scale`.
    The chunk is executed up to the first step whose disagreement is above `threshold`.

    Args:
        n_action_steps: Largest number of steps executed from each chunk.
        n_samples: Number of chunks drawn for each decision, at least 2.
        threshold: Largest disagreement of an executed step. With 0 every step is planned again, and with a large number
            `n_action_steps` steps are executed.
        min_action_steps: Smallest number of steps executed from each chunk, from 1 to `n_action_steps`.
    """

    n_action_steps: int = 8
    skip: int = 0
    n_samples: Annotated[int, AtLeast(2)] = 8
    threshold: Annotated[float, AtLeast(0)] = 0.3
    min_action_steps: int = 1

    def __post_init__(self):
        if not 1 <= self.min_action_steps <= self.n_action_steps:
            raise UserError(f"min_action_steps is {self.min_action_steps}, but must be from 1 to n_action_steps, "
                            f"which is {self.n_action_steps}", where="AdaptiveHorizon.min_action_steps",
                            hint="leave it at 1")

    def check_planner(self, planner):
        check_numeric_actions(planner, "AdaptiveHorizon", "measures how far samples of an action are apart")
        check_samples(planner, "AdaptiveHorizon")
        super().check_planner(planner)

    def start(self, planner, obs, key):
        state = super().start(planner, obs, key)
        return {**state, "n_steps": state["cursor"].clone()}

    def rows_due(self, state):
        rows = (state["cursor"] >= state["n_steps"]).nonzero().flatten()
        return rows if rows.numel() else None

    def accept_plan(self, planner, state, request, chunk, delay=0):
        n_steps = self.agreed_steps(chunk / planner.action_scale)
        state = self.replace_chunk(state, request.rows, chunk[:, 0], delay)
        return {**state, "n_steps": put(state["n_steps"], request.rows, n_steps)}

    def agreed_steps(self, samples: Tensor) -> Tensor:
        """Returns how many steps of the first sample are executed, (B,).

        Args:
            samples: The chunks in units of the action scale, (B, n, H, A).
        """
        disagreement = samples[:, :, self.skip:].var(1).mean(-1).sqrt()
        agreed = (disagreement <= self.threshold).long().cumprod(1).sum(1)
        return agreed.clamp(self.min_action_steps, self.n_action_steps)


class Agreement(ABC):
    """Rule that decides whether a new chunk agrees with the rest of the old one. Subclasses are frozen dataclasses."""

    @abstractmethod
    def agrees(self, old: Tensor, new: Tensor, mask: Tensor) -> Tensor:
        """Returns whether the chunks of each row agree, (B,) bool.

        Args:
            old: The old chunk from the current step on, coded, (B, T, A).
            new: The new chunk from the current step on, coded, (B, T, A).
            mask: False where the old chunk has no action, (B, T). The first step of a row may be one of these.
        """


@part
class CosineAgreement(Agreement):
    """Rule by which chunks agree if their next actions have nearly the same direction.

    Args:
        threshold: Smallest cosine similarity of chunks that agree. The paper has 0.97 for changing environments and
            0.99 for static ones. Above 1 no chunks agree; with -1 all do.
    """

    threshold: float = 0.97

    def agrees(self, old, new, mask):
        similarity = F.cosine_similarity(old[:, 0], new[:, 0], dim=-1)
        both_zero = (old[:, 0].norm(dim=-1) < 1e-6) & (new[:, 0].norm(dim=-1) < 1e-6)
        return torch.where(both_zero, 1.0, similarity) >= self.threshold


@part
class DistanceAgreement(Agreement):
    """Rule by which chunks agree if their next actions are close to each other.

    Args:
        threshold: Largest distance of chunks that agree: the root mean square of the differences of coded actions.
        n_steps: Number of steps that are compared. Steps that the old chunk does not have do not count.
    """

    threshold: Annotated[float, AtLeast(0)] = 0.3
    n_steps: Annotated[int, AtLeast(1)] = 4

    def agrees(self, old, new, mask):
        square = (old - new).square().mean(-1)[:, : self.n_steps]
        counts = mask[:, : self.n_steps]
        return ((square * counts).sum(1) / counts.sum(1).clamp(min=1)).sqrt() <= self.threshold


@dataclass(frozen=True)
class AdaptiveChunking(ChunkedExecutor):
    """Executor that plans often, and keeps the old chunk for as long as new ones agree with it.

    If a new chunk agrees with the rest of the old one, the old one continues, and the new one only fills in the steps
    after its end. Otherwise the new chunk replaces it. Chunks are compared in coded units, because the direction of an
    action in world units depends on where its origin is.

    Args:
        n_action_steps: Number of steps between two plans. The paper plans at every step.

    References:
        So et al. (2025), Improving Generative Behavior Cloning via Self-Guidance and Adaptive Chunking,
        arXiv:2510.12392.
    """

    n_action_steps: int = 1
    skip: int = 0
    agreement: Agreement = CosineAgreement()

    def accept_plan(self, planner, state, request, chunk, delay=0):
        old, mask = self.last_chunk(state, request.rows, delay).aligned()
        now = self.skip + delay
        if now < chunk.shape[1]:
            coded_old, coded_new = (planner.encode(x, request.obs)[:, now:] for x in (old, chunk))
            kept = self.agreement.agrees(coded_old, coded_new, mask[:, now:]) & mask[:, now]
            chunk = torch.where((kept.unsqueeze(1) & mask).unsqueeze(-1), old, chunk)
        return self.replace_chunk(state, request.rows, chunk, delay)


@part
class ChunkBlending(ChunkedExecutor):
    """Executor that averages each new chunk with the rest of the old one, where both have an action.

    The old chunk is such an average itself, so that the weight of earlier chunks decreases exponentially.

    Args:
        weight: Weight of the old chunk, from 0 to 1.

    References:
        Liu et al. (2024), Bidirectional Decoding: Improving Action Chunking via Closed-Loop Resampling,
        arXiv:2408.17355.
    """

    n_action_steps: int = 1
    skip: int = 0
    weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.5

    def check_planner(self, planner):
        check_numeric_actions(planner, "ChunkBlending", "averages actions of two chunks")
        super().check_planner(planner)

    def accept_plan(self, planner, state, request, chunk, delay=0):
        old, mask = self.last_chunk(state, request.rows, delay).aligned()
        blended = self.weight * old + (1 - self.weight) * chunk
        return self.replace_chunk(state, request.rows, torch.where(mask.unsqueeze(-1), blended, chunk), delay)
