"""In-context transformer: context, time and actions are tokens of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Above, AtLeast, Below, Context, Unsupported, part
from .base import CachesContext, SharedTimeTrunk
from .fourier import FourierFeatures
from .linear import Linear
from .transformer import Transformer, TransformerBlock, check_heads


@part
class InContextTransformer(SharedTimeTrunk):
    """Transformer trunk over one sequence: tokens of context and time, then one token per action step.

    The network of Diffusion Transformer Policy. Context and time reach the actions by attention alone. In
    `nets.transformer.Transformer`, in contrast, the time also scales and shifts layers. Tokens of the context read
    neither the time nor the actions, so their keys and values are computed once per plan.

    Args:
        heads: Number of attention heads. Must divide `width`.
        causal: Each token reads only itself and earlier tokens, so that action step i reads only action steps 0 to i.
            False lets tokens of the context read each other, and action steps read everything.
        feed_forward_ratio: Width of the hidden layer of each block, relative to `width`.
        n_frequencies: Number of Fourier frequencies that embed the time.

    References:
        Hou et al. (2024), Diffusion Transformer Policy, arXiv:2410.15959.
        Hou et al. (2025), Dita: Scaling Diffusion Transformer for Generalist Vision-Language-Action Policy,
        arXiv:2503.19757.
    """

    width: Annotated[int, AtLeast(1)] = 128
    depth: Annotated[int, AtLeast(1)] = 3
    heads: Annotated[int, AtLeast(1)] = 4
    causal: bool = True
    dropout: Annotated[float, AtLeast(0), Below(1)] = 0.0
    feed_forward_ratio: Annotated[float, Above(0)] = 4
    n_frequencies: Annotated[int, AtLeast(0)] = 6

    def build(self, inputs, outputs, n_times, spec):
        if n_times > 1:
            raise Unsupported(f"InContextTransformer supports at most one time per batch row, and this head needs "
                              f"{n_times}.", hint="Use the Transformer or the MLP trunk.")
        check_heads(self.width, self.heads, "InContextTransformer")
        return _InContextNet(self, inputs, outputs, n_times, spec)

    def attention_mask(self, n_context: int, n_steps: int, has_time: bool) -> Tensor:
        """Which tokens read which. Their order is context, time (if there is one), then one token per action step.

        Returns:
            (S, S) bool for all S tokens: True where the token of the row reads the token of the column.
        """
        position = torch.arange(n_context + has_time + n_steps)
        place = position if self.causal else (position >= n_context).long()
        return place[:, None] >= place


@dataclass(frozen=True)
class _InContext(Context):
    memory_mask: Tensor | None = None  # (B, 1, 1, 1 + N)
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()  # of the tokens of the context, in each layer
    time_token: Tensor | None = None  # (width,): of a time that is fixed


class _InContextNet(CachesContext):
    layers: Any  # nn.ModuleList of TransformerBlock
    mask: Tensor

    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        width, self.n_context = config.width, 1 + spec.tokens
        self.causal = config.causal or spec.causal
        self.input_layer = Linear(inputs, width) if inputs else None
        self.step_embedding = nn.Parameter(0.02 * torch.randn(spec.horizon, width))
        self.context_layer = Linear(spec.width, width) if spec.tokens else None
        self.token_embedding = nn.Parameter(0.02 * torch.randn(spec.tokens, width)) if spec.tokens else None
        self.null_token = nn.Parameter(0.02 * torch.randn(1, width))  # attended to when every token is masked
        self.time = nn.Sequential(
            FourierFeatures(config.n_frequencies), Linear(2 * config.n_frequencies, width), nn.SiLU(),
            Linear(width, width)) if n_times else None
        self.layers = nn.ModuleList(TransformerBlock(Transformer(
            width, config.depth, config.heads, dropout=config.dropout, feed_forward_ratio=config.feed_forward_ratio
        ), {"self"}, False) for _ in range(config.depth))
        self.output_layer = nn.Sequential(nn.LayerNorm(width), Linear(width, outputs))
        mask = replace(config, causal=self.causal).attention_mask(self.n_context, spec.horizon, bool(n_times))
        self.register_buffer("mask", mask, persistent=False)

    def precompute(self, context):
        if isinstance(context, _InContext):
            return context
        h = self.null_token.expand(context.tokens.shape[0], 1, -1)
        present = torch.ones_like(h[..., 0], dtype=torch.bool)
        if self.context_layer is not None:
            h = torch.cat([h, self.context_layer(context.tokens) + self.token_embedding], 1)
            present = torch.cat([present, context.mask], 1)
        present, keys_values = present[:, None, None], []
        mask = present & self.mask[:self.n_context, :self.n_context]
        for number, layer in enumerate(self.layers):
            keys_values.append(layer.keys_values(h))
            if number + 1 < len(self.layers):
                h = layer(h, mask=mask, keys_values=keys_values[-1])
        return _InContext(context.tokens, context.mask, context.named, present, tuple(keys_values))

    def embed_time(self, times):
        assert self.time is not None  # a network without time is never asked
        return self.time(times)

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), time_token=embedding)

    def forward(self, x, t, context):
        context = self.precompute(context)
        h = self.step_embedding.expand(x.shape[0], -1, -1)
        if self.input_layer is not None:
            h = self.input_layer(x) + self.step_embedding
        if self.time is not None:
            token = self.time(t[:, 0]) if context.time_token is None else context.time_token.expand(x.shape[0], -1)
            h = torch.cat([token.unsqueeze(1), h], 1)
        mask = F.pad(context.memory_mask, (0, h.shape[1]), value=True) & self.mask[self.n_context:]
        for layer, (keys, values) in zip(self.layers, context.keys_values, strict=True):
            own_keys, own_values = layer.keys_values(h)
            h = layer(h, mask=mask, keys_values=(torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2)))
        return self.output_layer(h[:, -x.shape[1]:])
