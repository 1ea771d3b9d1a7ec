"""A head says what the network's output means: its loss and its sampling, side by side.

A head is a frozen dataclass without weights. Everything it learns or fits lives in the module that `build`
returns. Losses come per step and are never reduced: who reduces, decides what counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Generator, Tensor, nn

from ..core import Context, HeadSpec, Unsupported
from ..nets.base import SharedTimeTrunk, Trunk, precomputed, time_embedding, with_time_embedding

Cost = Callable[[Tensor], Tensor]  # clean action estimate (B, H, A), coded -> (B,)
CodedBatches = Callable[[], Iterator[tuple[Context, Tensor, Tensor]]]  # context, coded action (B, H, A), mask (B, H)


class Head(ABC):
    def noise(self, horizon: int, coded_dim: int) -> tuple[int, ...]:
        """The shape of ALL randomness of one plan, standard normal. A plan is then a function of (obs, noise):
        exportable, testable, and steerable from outside (DSRL). (horizon, 0) for none."""
        return (horizon, coded_dim)

    @abstractmethod
    def build(self, trunk: Trunk, coded_dim: int, spec: HeadSpec) -> nn.Module:
        """The module whose weights `loss` trains. dim: width of one coded step."""

    def fit(self, net: nn.Module, pairs: CodedBatches) -> None:
        """Whatever is not gradient descent on `loss`: centres, codebooks, memories. What it settles is a buffer, or
        has requires_grad False since `build`."""

    @abstractmethod
    def loss(self, net, context: Context, action: Tensor, mask: Tensor, rng: Generator) -> Tensor:
        """(B, H). Every random draw is from `rng` (on the tensors' device). `mask` is for likelihoods that join the
        steps; padded actions arrive as zeros."""

    @abstractmethod
    def sample(self, net, context: Context, noise: Tensor) -> Tensor:
        """(B, H, A), coded: a function of its arguments alone. No len(tensor): it freezes the ONNX batch."""


class LikelihoodHead(Head):
    @abstractmethod
    def log_prob(self, net, context: Context, action: Tensor) -> Tensor:
        """(B,): of the whole chunk."""


class MemoryHead(Head):
    """Its fit stores what the encoder says of the data: filled again once the encoder has changed."""


class StepwiseHead(Head):
    """A head that samples in steps, each of which can be made alone."""

    @abstractmethod
    def denoise_step(self, net, context: Context, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """One deterministic step.

        Args:
            net: Module from `build`.
            context: Encoded observation.
            x: State at time t, (B, H, A).
            t: Time of each step of the chunk, (B, H).
            t_next: Time after the step, (B, H). It may differ from step to step of the chunk.

        Returns:
            State at time t_next, (B, H, A).
        """


class DenoisingHead(StepwiseHead):
    """A head that moves noise (t = 0) to an action (t = 1)."""

    n_steps: int  # of the sampler

    @abstractmethod
    def interpolate(self, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """t broadcasts against (B, H, 1); corrupt(a, n, 1) == a exactly."""

    @abstractmethod
    def denoise_step(self, net, context: Context, x: Tensor, t: Tensor, t_next: Tensor,
             cost: Cost | None = None) -> Tensor:
        """From time t (B, H) to `to` (B, H), which may differ from step to step. Deterministic."""

    def sample(self, net, context, noise, cost: Cost | None = None):
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., 0])
        grid = torch.linspace(0, 1, self.n_steps + 1, device=noise.device)

        def step(x, known, t, to):
            return self.denoise_step(net, with_time_embedding(net, context, known), x, zero + t, zero + to, cost)
        return scan(step, noise, time_embedding(net, grid[:-1, None]), grid[:-1], grid[1:])


def python_scan(step: Callable, carried, *columns: Tensor):
    """step(carried, *row) -> carried, for the rows of the columns one after the other."""
    for row in zip(*(c.unbind() for c in columns), strict=True):
        carried = step(carried, *row)
    return carried


scan_implementation: ContextVar[Callable] = ContextVar("how samplers repeat their step", default=python_scan)


def scan(step: Callable, carried, *columns: Tensor):
    """`plainly`, or as an export has loops."""
    return scan_implementation.get()(step, carried, *columns)


def training_times(kind: str, like: Tensor, rng: Generator) -> Tensor:
    """(B, H) times for training: one per row ("shared"), one per step ("each"), or the ramp that a rolling buffer
    holds, at a random phase ("ramp", streaming diffusion)."""
    B, H = like.shape[:2]
    if kind == "each":
        return torch.rand(B, H, generator=rng, device=like.device)
    row = torch.rand(B, 1, generator=rng, device=like.device)
    if kind == "shared":
        return row.expand(B, H)
    return ((H - torch.arange(H, device=like.device) - row) / H).clamp(0, 1)


def check_trunk_times(trunk: Trunk, kind: str) -> None:
    """Refuses a trunk that knows one time a row for a head whose steps are at different times."""
    if kind != "shared" and isinstance(trunk, SharedTimeTrunk):
        raise Unsupported(f"times={kind!r} gives every step of a chunk a time of its own, and "
                          f"{type(trunk).__name__} knows one time a row", hint="take the Transformer or the MLP trunk")


def cost_gradient(cost: Cost, estimate: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d cost(estimate(x)) / dx, also under inference."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(cost(estimate(x)).sum(), x)[0]
