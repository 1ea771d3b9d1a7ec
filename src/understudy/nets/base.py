"""Base classes of encoders and trunks, the two kinds of network that a policy is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from ..core import Context, HeadSpec, Schema, Unsupported, UserError

if TYPE_CHECKING:
    from ..data.augment import Augmentation
    from ..data.codec import Codec


class ImageFeatures(ABC):
    """Base class of networks that compute image features and are not trained, inside an encoder.

    Attributes:
        feature_shape: Number of tokens per image and their width.
    """

    feature_shape: tuple[int, int]

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Computes the features of images, uint8 (N, h, w, C), as (N, tokens, width)."""

    @abstractmethod
    def digest(self) -> str:
        """Returns hex digits that identify the function that `features` computes."""


class EncoderNet(nn.Module, ABC):
    """The module that an `Encoder` builds.

    Attributes:
        tokens: Number of tokens per window.
        token_obs_steps: For each token, the latest observation step that it depends on (0 is the oldest row of the
            window). Causal trunks read it. `understudy.testing.check_encoder` tests it.
    """

    tokens: int
    width: int
    token_obs_steps: tuple[int, ...]

    @property
    def cached_features(self) -> Mapping[str, ImageFeatures]:
        """The image columns whose features are computed once for the training data, with their networks.

        For such a column, `forward` also accepts the features (B, To, tokens, width) in place of the images.
        """
        return {}

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor], rng: Generator | None = None) -> Context:
        """Encodes observation windows.

        Args:
            obs: Coded observations, ``{name: (B, To, *feature)}``. ``"name?"`` (B, To) bool, if present, is False where
                `name` was not observed. The values at those places must not change the result.
            rng: Given in training only, on the device of the tensors. Whatever it randomizes (a crop) has a
                deterministic counterpart (the center crop) for ``rng=None``, so inference needs no second code path.

        Returns:
            The context. Tokens whose mask is False are treated as absent.
        """


class Encoder(ABC):
    """Config of an encoder, which maps observation windows to a `Context`. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, features: Schema, n_obs_steps: int) -> EncoderNet:
        """Builds the module. Its `tokens`, `width` and `token_obs_steps` are known before any data is seen.

        Args:
            n_obs_steps: Number of observation rows in a window (To).
        """

    def check_policy(self, codec: Codec, augmentations: tuple[Augmentation, ...]) -> None:
        """Raises UserError if the other parts of the policy do not fit this encoder.

        By default they must fit the encoders in its fields.
        """
        for encoder in vars(self).values():
            if isinstance(encoder, Encoder):
                encoder.check_policy(codec, augmentations)


class TrunkNet(nn.Module, ABC):
    """The module that a `Trunk` builds."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Computes one output vector per action step, (B, H, outputs).

        Args:
            x: Inputs per step, (B, H, inputs).
            t: Times per step in [0, 1], (B, H, K).
            context: What the encoder returned, or what `CachesContext` precomputed from it.
        """


class Trunk(ABC):
    """Config of a trunk, the network between context and head. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, inputs: int, outputs: int, n_times: int, spec: HeadSpec) -> TrunkNet:
        """Builds the module.

        Times are per action step, not per batch row, so that a rolling buffer, whose steps have different noise levels,
        works with any trunk. A trunk that supports only one time per batch row is a `SharedTimeTrunk`.

        Args:
            inputs: Width of the input of each step. 0 if the head has no input.
            outputs: Width of the output of each step.
            n_times: Number of times per step (K): 0 for heads without time, 1 for diffusion and flow, 2 for flow maps.
            spec: Sizes and alignment. If `spec.causal` is set and the horizon is longer than 1, output step i must
                depend on input steps 0 to i only. A trunk that cannot do this raises `Unsupported`.
        """


class PosteriorTrunk(Trunk):
    """Base class of trunks with another network for the posterior of a CVAE."""

    @abstractmethod
    def build_posterior(self, coded_dim: int, outputs: int, spec: HeadSpec) -> TrunkNet:
        """Builds the network that reads a demonstrated chunk. Its times are empty.

        Args:
            coded_dim: Width of one coded step. The input of each step is one wider: its last entry is 1, and 0 where
                the step is padded.
            outputs: Width of the output. The head takes the mean over the steps.
        """


class SharedTimeTrunk(Trunk):
    """Base class of trunks that read only the time of the first step of each batch row.

    Heads whose steps have different times refuse it in `build`.
    """


class CachesContext(TrunkNet):
    """Base class of trunks that can precompute what depends on the context alone, or on the time alone.

    A sampler evaluates the network many times with the same context. The output is the same as without precomputing.
    """

    @abstractmethod
    def precompute(self, context: Context) -> Context:
        """Computes what depends on the context alone. A context that is already precomputed is returned unchanged.

        Returns:
            A context, usually of a subclass, to be used in place of `context`. It keeps `Context.named`.
        """

    @abstractmethod
    def embed_time(self, times: Tensor) -> Tensor:
        """Embed times (S, K) that all batch rows and steps share, (S, W), one row per time, for `with_time_embedding`.
        """

    @abstractmethod
    def with_time_embedding(self, context: Context, embedding: Tensor) -> Context:
        """Fixes the time of all batch rows and steps: `embedding` is one row (W,) of the result of `embed_time`.

        Returns:
            A precomputed context with which the network uses `embedding` and ignores its argument `t`.
        """


class FusesTimes(CachesContext):
    """A trunk that a cheaper network can replace at a few times that are known beforehand, as in a sampler."""

    @abstractmethod
    def fuse(self, times: Tensor) -> CachesContext:
        """Makes a network for these times (S, K) alone, which all batch rows and steps share.

        Returns:
            A copy for inference with the weights of this moment. With the result of `with_time_embedding` it gives the
            same outputs up to rounding. It raises `Unsupported` for other times, and for contexts without a time.
        """


def precomputed(net, context: Context) -> Context:
    """Returns `net.precompute(context)`, or `context` if `net` does not cache, as a function of guidance does not."""
    return net.precompute(context) if isinstance(net, CachesContext) else context


def time_embedding(net, times: Tensor) -> Tensor:
    """Returns `net.embed_time(times)`, (S, W), for times (S, K). It is empty, (S, 0), if `net` does not cache."""
    return net.embed_time(times) if isinstance(net, CachesContext) else times[:, :0]


def with_time_embedding(net, context: Context, embedding: Tensor) -> Context:
    """Returns `net.with_time_embedding(context, embedding)` for one row (W,), or `context` if `net` does not cache."""
    return net.with_time_embedding(context, embedding) if isinstance(net, CachesContext) else context


def check_not_causal(trunk: Trunk, spec: HeadSpec) -> None:
    """Raises Unsupported if the head demands causality: the trunk reads the whole chunk at once."""
    if spec.causal and spec.horizon > 1:
        raise Unsupported(f"This head needs a causal trunk, and {type(trunk).__name__} reads all steps of a chunk at "
                          "once.", hint="Use the Transformer or the LSTM trunk.")


def check_alignment(trunk: Trunk, spec: HeadSpec) -> None:
    """Checks that a trunk which aligns action steps with observation steps can do so.

    It raises UserError if `spec` lacks the observation step of a token, or if action step 0 happens before the
    observation step of the first token, so that the first actions would depend on no token.
    """
    trunk_name = type(trunk).__name__
    if len(spec.token_obs_steps) != spec.tokens:
        raise UserError(f"The spec has {spec.tokens} tokens and the observation steps of {len(spec.token_obs_steps)}.",
                        where=trunk_name, hint="Give HeadSpec.token_obs_steps one observation step per token, as the "
                                          "encoder's token_obs_steps does.")
    first = min(spec.token_obs_steps, default=0)
    if spec.action_start < first:
        hint = ("Use an encoder with tokens for each observation step (TokenEncoder), or a window whose actions begin "
                "later (Window.action_offset)." if first > 0 else
                "The window begins to predict before its oldest observation: change Window.n_obs_steps and "
                "Window.action_offset together. If the method has an option for it, such as --n-obs-steps 4, "
                "this changes the window and the executor together.")
        raise UserError(f"Action step 0 happens at observation step {spec.action_start}, and the first token depends "
                        f"on observation step {first}. The first actions would see nothing.", where=trunk_name,
                        hint=hint)


_capture: ContextVar[tuple[Collection[str], dict[str, Tensor]] | None] = ContextVar("activations to capture",
                                                                                    default=None)


def record_intermediate(name: str, tensor: Tensor) -> None:
    """Makes an activation of the current forward pass, batch rows first, available to auxiliary losses.

    Does nothing unless an auxiliary loss asks for the name. For losses only: nothing that acts reads what is recorded.
    If a name is recorded several times in one forward pass, the last one counts.
    """
    captured = _captured_with(name)
    if captured is not None:
        captured[name] = tensor


def is_captured(name: str) -> bool:
    """Returns whether an auxiliary loss asks for an activation, so that a network computes it only then."""
    return _captured_with(name) is not None


def _captured_with(name: str) -> dict[str, Tensor] | None:
    """The captured activations, if this name is to be captured."""
    capture = None if torch.compiler.is_compiling() else _capture.get()
    return capture[1] if capture is not None and name in capture[0] else None


@contextmanager
def capture_intermediates(names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Captures the activations of these names in forward passes within the block, in a dict. They carry gradients."""
    captured: dict[str, Tensor] = {}
    token = _capture.set((names, captured))
    try:
        yield captured
    finally:
        _capture.reset(token)


def is_autocast_on(x: Tensor) -> bool:
    """Returns whether products of `x` are computed in the precision of autocast here."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the type in which products of `x` are computed here."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast_on(x) else x.dtype
