"""Attention over the steps of a chunk and the tokens of its context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Context, UserError
from .base import CachesContext, Trunk
from .fourier import FourierFeatures
from .linear import Linear


@dataclass(frozen=True)
class Transformer(Trunk):
    """One token a step, normalized before each layer (Xiong et al. 2020); times scale and shift the normalized tokens
    of their own step in every layer (DiT, Peebles and Xie 2023).

    attention: "cross" reads the context by cross-attention, whose keys and values are worked out once a plan; "joint"
        attends over steps and context together, as one sequence.
    encoder_depth: layers over the context alone, before any step sees it. Transformer(512, 1, 8, encoder_depth=4) is
        the form of ACT (Zhao et al. 2023).
    causal: a step sees itself and earlier ones only (and the whole context).
    expand: width of the layer inside each block's perceptron, in widths.
    """

    width: int = 128
    depth: int = 3
    heads: int = 4
    attention: Literal["cross", "joint"] = "cross"
    encoder_depth: int = 0
    causal: bool = False
    dropout: float = 0.0
    feed_forward_ratio: float = 4
    n_frequencies: int = 6

    def build(self, inputs, outputs, n_times, spec):
        if self.width % self.heads:
            raise UserError(f"expected a multiple of heads={self.heads}, found {self.width}", where="Transformer.width",
                            hint=f"such as {-(-self.width // self.heads) * self.heads}")
        return _TransformerNet(self, inputs, outputs, n_times, spec)


@dataclass(frozen=True)
class _TransformerContext(Context):
    memory: Tensor | None = None  # (B, 1 + N, width), the first of them always there
    memory_mask: Tensor | None = None  # (B, 1, 1, 1 + N)
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()  # keys and values of each layer
    time_film: Tensor | None = None  # (W,): scales and shifts of all layers side by side, for a time that steps share


class _TransformerNet(CachesContext):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        width, self.spec = spec.width, spec
        self.input_layer = Linear(inputs, width) if inputs else None
        self.step_embedding = nn.Parameter(0.02 * torch.randn(shape.horizon, width))
        self.context_layer = Linear(shape.width, width) if shape.tokens else None
        self.token_embedding = nn.Parameter(0.02 * torch.randn(shape.tokens, width)) if shape.tokens else None
        self.null_token = nn.Parameter(0.02 * torch.randn(1, width))  # to look at when every token is masked
        self.encoder = nn.ModuleList(_TransformerBlock(spec, {"own"}, False) for _ in range(spec.encoder_depth))
        self.time = (
            nn.Sequential(
                FourierFeatures(spec.n_frequencies),
                Linear(2 * spec.n_frequencies * times, width),
                nn.SiLU(),
                Linear(width, width),
                nn.SiLU(),
            )
            if times
            else None
        )
        # A single step has nothing to attend to among the steps.
        looks = {"cross"} | ({"own"} if shape.horizon > 1 else set()) if spec.attention == "cross" else {"own"}
        self.layers = nn.ModuleList(_TransformerBlock(spec, looks, times > 0) for _ in range(spec.depth))
        self.output_layer = nn.Sequential(nn.LayerNorm(width), Linear(width, outputs))

    def precompute(self, context):
        if isinstance(context, _TransformerContext):
            return context
        tokens, mask = context.tokens, context.mask
        memory = self.null_token.expand(tokens.shape[0], 1, -1)
        keep = torch.ones_like(memory[..., 0], dtype=torch.bool)
        if self.context_layer is not None:
            memory = torch.cat([memory, self.context_layer(tokens) + self.token_embedding], 1)
            keep = torch.cat([keep, mask], 1)
        keep = keep[:, None, None]
        for layer in self.encoder:
            memory = layer(memory, keep=keep)
        pairs = (
            tuple(layer.cross_attention.keys_values(memory) for layer in self.layers)
            if self.spec.attention == "cross"
            else ()
        )
        return _TransformerContext(tokens, mask, memory, keep, pairs)

    def embed_time(self, times):
        time = self.time(times)
        return torch.cat([layer.film(time) for layer in self.layers], -1)

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), time_film=embedding)

    def _films(self, t: Tensor, context: _TransformerContext, before: int) -> list[Tensor | None]:
        """Scales and shifts of each layer, broadcasting against (B, before + H, .); what stands before the steps has
        no time."""
        if self.time is None:
            return [None] * len(self.layers)
        if context.time_film is None:
            time = F.pad(self.time(t), (0, 0, before, 0))
            return [layer.film(time) for layer in self.layers]
        films = context.time_film.split([layer.film.out_features for layer in self.layers])
        if not before:
            return list(films)
        return [torch.cat([layer.film.bias.expand(before, -1), film.expand(self.step_embedding.shape[0], -1)])
                for layer, film in zip(self.layers, films, strict=True)]

    def forward(self, x, t, context):
        context = self.precompute(context)
        h = (
            self.step_embedding.expand(x.shape[0], -1, -1)
            if self.input_layer is None
            else self.input_layer(x) + self.step_embedding
        )
        if self.spec.attention == "cross":
            past = self._causal_mask(0, h) if self.spec.causal else None
            for layer, film, pair in zip(self.layers, self._films(t, context, 0), context.keys_values, strict=True):
                h = layer(h, film, keep=past, pair=pair, keep_pair=context.memory_mask)
            return self.output_layer(h)
        n = context.memory.shape[1]
        keep = F.pad(context.memory_mask, (0, h.shape[1]), value=True)
        if self.spec.causal:
            keep = keep & self._causal_mask(n, h)
        h = torch.cat([context.memory, h], 1)
        for layer, film in zip(self.layers, self._films(t, context, n), strict=True):
            h = layer(h, film, keep=keep)
        return self.output_layer(h[:, n:])

    @staticmethod
    def _causal_mask(before: int, steps: Tensor) -> Tensor:
        """(before + H, before + H): what sees what. What stands before the steps sees none of them."""
        at = torch.arange(before + steps.shape[1], device=steps.device).clamp(min=max(before - 1, 0))
        return at[:, None] >= at


class _TransformerBlock(nn.Module):
    """Attention among its own tokens and then to a context, where it has these, and a perceptron."""

    def __init__(self, spec, looks: set[str], timed: bool):
        super().__init__()
        self.self_attention = _Attention(spec) if "own" in looks else None
        self.cross_attention = _Attention(spec) if "cross" in looks else None
        inner = round(spec.feed_forward_ratio * spec.width)
        self.feed_forward = nn.Sequential(Linear(spec.width, inner), nn.GELU(), nn.Dropout(spec.dropout),
                                   Linear(inner, spec.width))
        self.norms = nn.ModuleList(nn.LayerNorm(spec.width) for _ in range(len(looks) + 1))
        self.film = Linear(spec.width, 2 * spec.width * len(self.norms)) if timed else None
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, h, film=None, *, keep=None, pair=None, keep_pair=None):
        films = iter([] if film is None else film.chunk(2 * len(self.norms), -1))
        norms = iter(self.norms)

        def normed(h):
            y = next(norms)(h)
            return y if film is None else y * (1 + next(films)) + next(films)
        if self.self_attention is not None:
            y = normed(h)
            h = h + self.dropout(self.self_attention(y, self.self_attention.keys_values(y), keep))
        if self.cross_attention is not None:
            h = h + self.dropout(self.cross_attention(normed(h), pair, keep_pair))
        return h + self.dropout(self.feed_forward(normed(h)))


class _Attention(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.heads = spec.heads
        self.query_layer = Linear(spec.width, spec.width)
        self.key_layer = Linear(spec.width, spec.width, bias=False)  # a bias would shift all scores alike: no effect
        self.value_layer = Linear(spec.width, spec.width)
        self.output_layer = Linear(spec.width, spec.width)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self._split_heads(self.key_layer(memory)), self._split_heads(self.value_layer(memory))

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        """keep: broadcasts against (B, heads, asking, asked); False is not seen."""
        y = scaled_dot_product(self._split_heads(self.query_layer(x)), *pair, keep)
        return self.output_layer(y.transpose(1, 2).flatten(2))


def scaled_dot_product(ask: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) of (B, heads, asking, d) over (B, heads, asked, d)."""
    if ask.dtype != torch.bfloat16 or ask.device.type != "cpu":
        return F.scaled_dot_product_attention(ask, keys, values, attn_mask=keep)
    # PyTorch's kernel for bf16 on CPUs took 4 to 7 times as long for sequences of 16 and of 100, its slope above all.
    score = (ask * ask.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    score = score if keep is None else score.masked_fill(~keep, -torch.inf)
    return score.softmax(-1).to(values.dtype) @ values
