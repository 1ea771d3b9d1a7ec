"""What an encoder and a trunk promise. Everything that computes with weights is built by one of these two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Generator, Tensor, nn

from ..core import Context, HeadSpec, Schema


class EncoderNet(nn.Module, ABC):
    tokens: int
    width: int

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor], rng: Generator | None = None) -> Context:
        """obs[name] (B, To, *feature), coded; "name?" (B, To) bool, if there, says what was sensed.

        `rng` is given in training only, on the tensors' device: what it is for (a random crop) has its fixed twin
        (the centre) for rng=None in the same function, so that inference cannot forget it.
        """


class Encoder(ABC):
    """A frozen dataclass. Observation windows -> Context."""

    @abstractmethod
    def build(self, features: Schema, n_obs_steps: int) -> EncoderNet:
        """`features` of the inputs, `rows` observation rows. `.tokens` and `.width` are known before data flows."""


class TrunkNet(nn.Module, ABC):
    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """x (B, H, in), t (B, H, K) in [0, 1], context -> (B, H, out)."""


class Trunk(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def build(self, inputs: int, outputs: int, n_times: int, spec: HeadSpec) -> TrunkNet:
        """A network from x, `times` scalars per step and a context to (B, H, outputs).

        Times are per step and not per row, so that a rolling buffer, whose steps are at different noise levels,
        needs no trunk of its own; K = 0 for heads that know no time, 2 for flow maps. A trunk that can say one time
        a row only is a RowTime.
        """


class SharedTimeTrunk(Trunk):
    """A trunk that reads the time of each row's first step only: heads whose steps differ refuse it in build."""


class CachesContext(TrunkNet):
    """A network that can work out once what depends on the context alone, and in one batch what depends on time
    alone, for the many steps of a sampler. The output is the same, at less cost."""

    @abstractmethod
    def precompute(self, context: Context) -> Context:
        """A Context (of a subclass, if need be) that stands for `context`."""

    @abstractmethod
    def embed_time(self, times: Tensor) -> Tensor:
        """times (S, K) -> (S, W): what is known of each time, where all rows and steps share it."""

    @abstractmethod
    def with_time_embedding(self, context: Context, embedding: Tensor) -> Context:
        """A primed context for use at one time alone, `told` (W,) of `tell`, whose word is taken and not that of t."""


def precomputed(net, context: Context) -> Context:
    """`context`, primed if `net` can; guides may have wrapped the network into a plain function."""
    return net.precompute(context) if isinstance(net, CachesContext) else context


def time_embedding(net, times: Tensor) -> Tensor:
    """times (S, K) -> (S, W) of `CachesContext.tell`; nothing (S, 0) of a network that is none."""
    return net.embed_time(times) if isinstance(net, CachesContext) else times[:, :0]


def with_time_embedding(net, context: Context, embedding: Tensor) -> Context:
    """`CachesContext.at`; `context` itself for a network that is none."""
    return net.with_time_embedding(context, embedding) if isinstance(net, CachesContext) else context
