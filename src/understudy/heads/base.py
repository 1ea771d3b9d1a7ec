"""Base classes of policy heads. Each head has its loss and its sampler side by side in one file.

A head is a frozen dataclass without weights. Everything that it learns or fits is in the module that `build` returns.
Shapes: B batch rows, H steps of a chunk, A width of one coded step, K times that a network reads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ..core import Above, AtLeast, AtMost, Context, HeadSpec, Unsupported, UserError, part
from ..nets.base import SharedTimeTrunk, Trunk, precomputed, time_embedding, with_time_embedding
from .paths import EDMPath, ProbabilityPath, edm_scales

Cost = Callable[[Tensor], Tensor]  # estimate of the clean action, coded (B, H, A) -> (B,)
CodedBatches = Callable[[], Iterator[tuple[Context, Tensor, Tensor]]]  # context, coded action (B, H, A), mask (B, H)


class Head(ABC):
    """A policy head: the loss that trains a network, and the function that samples chunks of actions from it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # subclasses are dataclasses

    def noise(self, horizon: int, coded_dim: int) -> tuple[int, ...]:
        """Returns the shape of all standard normal noise that one plan needs.

        A plan is a function of observation and noise, so that it can be exported, tested, and steered from outside
        (DSRL, Wagenmaker et al. 2025).

        Returns:
            Shape without the batch dimension. The first number is the horizon, because `sample` reads the length of the
            chunk from its noise. A head without randomness returns ``(horizon, 0)``. A head that draws once per chunk
            returns ``(horizon, n)`` and reads the first step.
        """
        return (horizon, coded_dim)

    @property
    def ignores_noise(self) -> bool:
        """Whether plans do not depend on the noise with these settings. `Policy.is_deterministic` reads it."""
        return False

    @property
    def max_coded_action(self) -> float | None:
        """The largest absolute value of normalized actions that the head can plan, or None if it has no limit."""
        return None

    @abstractmethod
    def build(self, trunk: Trunk, coded_dim: int, spec: HeadSpec) -> nn.Module:
        """Builds the module whose weights `loss` trains, and which the other methods receive as `net`.

        Raises Unsupported if head and trunk do not fit together, and UserError if head and target do not.

        Args:
            trunk: Builds networks with the inputs, outputs and times that the head asks for.
        """

    def fit(self, net: nn.Module, pairs: CodedBatches) -> None:
        """Fits what gradient descent on `loss` does not train, such as cluster centers, codebooks or memories.

        What it fits is stored in buffers of `net`, or in parameters whose requires_grad is False since `build`.

        Args:
            pairs: Returns an iterator over all training windows, as context, coded action (B, H, A) and mask (B, H).
        """

    @abstractmethod
    def loss(self, net, context: Context, action: Tensor, mask: Tensor, rng: Generator) -> Tensor:
        """Returns the loss of each step, not reduced.

        Args:
            action: Coded actions, (B, H, A). Padded steps are zero.
            mask: True where a step is not padding, (B, H). For likelihoods that join the steps of a chunk.
            rng: Source of all randomness, on the device of the tensors.

        Returns:
            Loss of each step, (B, H). Values at padded steps are ignored.
        """

    @abstractmethod
    def sample(self, net, context: Context, noise: Tensor) -> Tensor:
        """Samples chunks of actions. The result depends on the arguments alone.

        Args:
            noise: Standard normal noise, (B, *noise(horizon, coded_dim)). Do not use ``len(noise)``, which would fix
                the batch size of an exported policy.

        Returns:
            Coded actions, (B, H, A).
        """

    def counted(self, action: Tensor) -> Tensor:
        """Returns which components of recorded targets count in held-out errors. By default all.

        Args:
            action: Targets, (B, H, A), as they are in the data and not coded.

        Returns:
            bool, of a shape that broadcasts to (B, H, A).
        """
        return torch.ones_like(action[:1, :1], dtype=torch.bool)

    def sample_and_loss(self, net, context: Context, noise: Tensor, action: Tensor, mask: Tensor, rng: Generator
                        ) -> tuple[Tensor, Tensor]:
        """Returns `sample` and `loss` for the same observations. A head may make both with one pass of its network."""
        return self.sample(net, context, noise), self.loss(net, context, action, mask, rng)


class HeadNet(nn.Module):
    """The network of a head: a trunk, and further networks that the head needs, by name.

    Args:
        **parts: Tensors become buffers. Anything but modules and parameters is a plain attribute.
    """

    def __init__(self, **parts: Any):
        super().__init__()
        for name, content in parts.items():
            if isinstance(content, Tensor) and not isinstance(content, nn.Parameter):
                self.register_buffer(name, content)
            else:
                setattr(self, name, content)


class DeterministicHead(Head):
    """Base class of heads whose plans have no randomness."""

    def noise(self, horizon, coded_dim):
        return (horizon, 0)  # the empty tensor still carries B and H


class LikelihoodHead(Head):
    """Base class of heads with a density. ``-loss``, summed over a chunk without padding, equals `log_prob`."""

    def log_prob(self, net, context: Context, action: Tensor) -> Tensor:
        """Returns the log-density, (B,), of whole chunks: coded actions without padding, (B, H, A)."""
        return -self._loss_of_whole(net, context, action).sum(1)

    def sample_log_prob(self, net, context: Context, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws chunks from the density, whatever the temperature, with the gradients that `sample` has.

        Args:
            noise: As in `sample`.

        Returns:
            Coded actions, (B, H, A), and the log-density of each step, (B, H).
        """
        head = replace(self, temperature=1.0) if isinstance(self, TemperatureHead) else self
        action = head.sample(net, context, noise)
        return action, -self._loss_of_whole(net, context, action)

    def entropy(self, net, context: Context, noise: Tensor) -> Tensor:
        """Returns the entropy of each step, (B, H). By default it is estimated by one sample.

        Args:
            noise: As in `sample`.
        """
        return -self.sample_log_prob(net, context, noise)[1]

    def _loss_of_whole(self, net, context: Context, action: Tensor) -> Tensor:
        """Returns the loss of chunks without padding, which is not random."""
        mask = torch.ones_like(action[..., 0], dtype=torch.bool)
        return self.loss(net, context, action, mask, None)  # ty: ignore[invalid-argument-type]


class TemperatureHead(Head):
    """Base class of heads with a sampling temperature, which exploration may set with `dataclasses.replace`.

    Attributes:
        temperature: 0 samples the most likely or mean action, 1 samples from the learned distribution.
    """

    temperature: float

    @property
    def ignores_noise(self) -> bool:
        """Whether the temperature is 0. Override it if plans depend on the noise even then, as with `GMM`."""
        return self.temperature == 0


class MemoryHead(Head):
    """Base class of heads whose `fit` stores encoded training data, and is repeated after the encoder has changed."""


class TargetNetworkHead(Head):
    """Base class of heads whose loss also reads a slowly updated copy of the network (target network).

    Attributes:
        target_decay: Fraction of the target network that an update keeps. `BehaviorCloning` and distillation read it.
            Other learners have no such target network, and the network itself computes its targets.
    """

    target_decay: float = 0.999

    @abstractmethod
    def loss(self, net, context: Context, action: Tensor, mask: Tensor, rng: Generator, target_net=None) -> Tensor:
        """Returns the loss of each step, not reduced. Arguments as in `Head.loss`, and:

        Args:
            target_net: Copy of `net` that computes regression targets without gradient. None uses `net` itself.
        """


@part
class RampTimes:
    """Training times that decrease along the chunk, as in the rolling buffer of streaming diffusion.

    A chunk has H / n_action_steps groups of steps. All steps of a group have the same time, and each group is
    n_action_steps / H noisier than the group before. The phase of the ramp is random. The first group is never clean
    and the last group never pure noise. `StreamingExecutor` runs policies that are trained so.

    Args:
        n_action_steps: Number of steps that become clean, and are executed, together. Must divide the horizon.
        shared_fraction: Fraction of the training chunks whose steps all have the same time, which is uniform. They
            train whole plans, by which an episode can begin. The paper draws them for a fifth of the batches.

    References:
        Høeg et al. (2024), Streaming Diffusion Policy, arXiv:2406.04806.
    """

    n_action_steps: Annotated[int, AtLeast(1)] = 1
    shared_fraction: Annotated[float, AtLeast(0), AtMost(1)] = 0.2

    def levels(self, horizon: int, device: torch.device | None = None) -> Tensor:
        """Returns the times of a buffer whose first group is the next to become clean, (horizon,)."""
        if horizon % self.n_action_steps:
            raise UserError(f"a chunk of {horizon} steps has no whole number of groups of {self.n_action_steps} steps",
                            where="RampTimes.n_action_steps", hint="use a horizon that is a multiple of n_action_steps")
        group = torch.arange(horizon, device=device) // self.n_action_steps
        return 1 - (group + 1) * self.n_action_steps / horizon


@part
class PrefixTimes:
    """Training times of chunks whose first steps are given: actions that are executed before the chunk arrives.

    For each training chunk, the number of given steps is drawn from 0 to `max_delay`. Given steps are clean, at time 1,
    and have no loss. The other steps share a time. `PrefixChunking` runs policies that are trained so.

    Args:
        max_delay: Largest number of given steps.

    References:
        Black et al. (2025), Training-Time Action Conditioning for Efficient Real-Time Chunking, arXiv:2512.05964.
    """

    max_delay: Annotated[int, AtLeast(0)] = 4

    def draw_given(self, like: Tensor, rng: Generator) -> Tensor:
        """Draws which steps of coded actions (B, H, A) are given: True where a step is given, (B, H)."""
        delay = torch.randint(self.max_delay + 1, (like.shape[0], 1), generator=rng, device=like.device)
        return torch.arange(like.shape[1], device=like.device) < delay


StepTimes = Literal["shared", "each"] | RampTimes | PrefixTimes


class StepwiseHead(Head):
    """Base class of heads that sample in steps, each of which can be made alone, such as by an executor.

    Attributes:
        times: The training times of the steps of a chunk, see `sample_times`.
    """

    times: StepTimes = "shared"

    @abstractmethod
    def denoise_step(self, net, context: Context, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Makes one deterministic sampling step. Times run from noise (0) to action (1).

        Args:
            x: State at time t, (B, H, A).
            t: Time of each step of the chunk, (B, H).
            t_next: Time after the step, (B, H). It may differ from step to step of the chunk.

        Returns:
            State at time t_next, (B, H, A).
        """


class DenoisingHead(StepwiseHead):
    """Base class of heads that denoise: they move noise (t = 0) to an action (t = 1), along `path`."""

    n_steps: int
    path: ProbabilityPath

    def interpolate(self, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns the state at time t between noise and action.

        Args:
            action: Coded actions, (B, H, A).
            noise: Standard normal noise, (B, H, A).
            t: Times, broadcast against (B, H, 1).

        Returns:
            Noisy actions, (B, H, A). At t = 1 they equal `action` exactly.
        """
        return self.path.interpolate(action, noise, t)

    @abstractmethod
    def predict_clean(self, net, context: Context, x: Tensor, t: Tensor) -> Tensor:
        """Estimates the clean action from a noisy one: its conditional mean, if the network were perfect.

        Args:
            x: Noisy actions at time t, (B, H, A).
            t: Time of each step of the chunk, (B, H).

        Returns:
            Coded actions, (B, H, A).
        """

    @abstractmethod
    def denoise_step(self, net, context: Context, x: Tensor, t: Tensor, t_next: Tensor,
                     cost: Cost | None = None) -> Tensor:
        """Makes one deterministic sampling step that can also lower a cost. Arguments as in `StepwiseHead`, and:

        Args:
            cost: Cost of the estimated clean action, (B, H, A) -> (B,). None for no guidance.
        """

    def network_times(self, t: Tensor, t_next: Tensor) -> Tensor:
        """Returns the K times that the network reads in a step from t to t_next, as (..., K). By default t alone."""
        return t.unsqueeze(-1)

    def sample(self, net, context, noise, cost: Cost | None = None):
        context, zero = precomputed(net, context), torch.zeros_like(noise[..., 0])
        times = torch.linspace(0, 1, self.n_steps + 1, device=noise.device)
        t, t_next = times[:-1], times[1:]

        def step(x, embedding, t, t_next):
            return self.denoise_step(net, with_time_embedding(net, context, embedding), x, zero + t, zero + t_next,
                                     cost)
        return scan(step, noise, time_embedding(net, self.network_times(t, t_next)), t, t_next)


class PreconditionedHead(DenoisingHead):
    """Base class of heads whose network reads noisy actions divided by their scale (EDM)."""

    n_steps: Annotated[int, AtLeast(1)]
    sigma_data: Annotated[float, Above(0)]
    sigma_min: float
    sigma_max: float
    rho: Annotated[float, Above(0)]

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}", where=type(self).__name__,
                            hint="use 0 < sigma_min < sigma_max")

    @property
    def path(self) -> EDMPath:
        """The path from ``sigma_max * noise`` to the action."""
        return EDMPath(self.sigma_min, self.sigma_max, self.rho)

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def _clean(self, net, context: Context, x: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
        """Estimates the clean action from x at the noise level sigma, whose time is t."""
        skip, out, scale_in = edm_scales(sigma, self.sigma_data)
        return skip * x + out * net(scale_in * x, t, context)


def python_scan(step: Callable, carried, *columns: Tensor):
    """Runs ``carried = step(carried, *row)`` for each row of the columns, in order, and returns the last result.

    Args:
        carried: Argument of the first call: a tensor, or a tuple of tensors.
        *columns: Tensors with the same number of rows.
    """
    for row in zip(*(c.unbind() for c in columns), strict=True):
        carried = step(carried, *row)
    return carried


scan_implementation: ContextVar[Callable] = ContextVar("how samplers repeat their step", default=python_scan)


def scan(step: Callable, carried, *columns: Tensor):
    """Runs `python_scan`, or a loop of the exported program while a policy is exported."""
    return scan_implementation.get()(step, carried, *columns)


def uniform_noise(noise: Tensor) -> Tensor:
    """Converts standard normal noise to uniform noise in [0, 1]."""
    return 0.5 * torch.erfc(-noise / math.sqrt(2))


def gumbel_noise(noise: Tensor) -> Tensor:
    """Converts standard normal noise to Gumbel noise, with which the largest logit is a sample of the class."""
    return -(-uniform_noise(noise).clamp(1e-7, 1 - 1e-7).log()).log()


def sample_times(kind: StepTimes, like: Tensor, rng: Generator) -> Tensor:
    """Draws uniform training times, (B, H), for coded actions `like`, (B, H, A).

    Args:
        kind: ``"shared"`` by all steps of a chunk; ``"each"`` step has its own (diffusion forcing); `RampTimes`
            increase along a rolling buffer, at a random phase (streaming diffusion). With `PrefixTimes`, all steps that
            are not given share a time.
    """
    B, H = like.shape[:2]
    if kind == "each":
        return torch.rand(B, H, generator=rng, device=like.device)
    row = torch.rand(B, 1, generator=rng, device=like.device)
    if not isinstance(kind, RampTimes):
        return row.expand(B, H)
    ramp = kind.levels(H, like.device) + (1 - row) * kind.n_action_steps / H
    shared = torch.rand(B, 1, generator=rng, device=like.device) < kind.shared_fraction
    return torch.where(shared, row, ramp.clamp(0, 1))


def repeat_into_padding(action: Tensor, mask: Tensor) -> Tensor:
    """Fills the padded steps of coded actions (B, H, A) with the nearest step that is known.

    For heads that transform a chunk as a whole. A chunk without a known step repeats its first step.

    Args:
        mask: True where a step is known, (B, H). The known steps of a row are neighbors.
    """
    step, first = torch.arange(mask.shape[1], device=mask.device), mask.int().argmax(1, keepdim=True)
    nearest = torch.minimum(step, first + mask.sum(1, keepdim=True) - 1).maximum(first)
    return action.gather(1, nearest.unsqueeze(-1).expand(action.shape))


def cluster_chunks(pairs: CodedBatches, n: int, joint: bool) -> Tensor:
    """Computes the centers of clusters (k-means) of chunks, (n, H, A), or of their steps, (n, 1, A), float64.

    Chunks with padding are left out if there are others. Centers repeat where fewer than n chunks are different.
    """
    from scipy.cluster.vq import kmeans2

    action, mask = (torch.cat(column) for column in zip(*((a, m) for _, a, m in pairs()), strict=True))
    is_whole = mask.all(1)
    chunks = action[mask].unsqueeze(1) if not joint else action[is_whole] if bool(is_whole.any()) else action
    points = chunks.flatten(1).double().cpu().numpy()
    k = min(n, len(np.unique(points, axis=0)))
    centers = kmeans2(points, k, iter=50, minit="++", seed=np.random.default_rng(0))[0]
    return torch.from_numpy(centers[np.arange(n) % k]).unflatten(1, chunks.shape[1:])


def check_trunk_times(trunk: Trunk, kind: StepTimes, horizon: int) -> None:
    """Checks that a trunk can read the times with which a head is trained, see `sample_times`.

    It raises Unsupported if the steps of a chunk have different times and the trunk reads one time per chunk, and
    UserError if the groups of `RampTimes`, or the steps of `PrefixTimes`, do not fit into the horizon.
    """
    if isinstance(kind, RampTimes):
        kind.levels(horizon)
    if isinstance(kind, PrefixTimes) and kind.max_delay >= horizon:
        raise UserError(f"max_delay={kind.max_delay} gives all {horizon} steps of a chunk, so that none is left to "
                        "learn", where="PrefixTimes.max_delay", hint="use a longer horizon or a smaller delay")
    if kind != "shared" and isinstance(trunk, SharedTimeTrunk):
        raise Unsupported(f"times={kind!r} gives each step of a chunk its own time, but {type(trunk).__name__} reads "
                          "one time per chunk", hint="use the Transformer or the MLP trunk")
