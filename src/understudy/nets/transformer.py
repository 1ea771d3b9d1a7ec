"""Attention over the steps of a chunk and the tokens of its context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Context, UserError
from .base import Primes, Trunk
from .linear import Linear
from .waves import Waves


@dataclass(frozen=True)
class Transformer(Trunk):
    """One token a step, normalised before each layer (Xiong et al. 2020); times scale and shift the normalised tokens
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
    expand: float = 4
    waves: int = 6

    def build(self, inputs, outputs, times, shape):
        if self.width % self.heads:
            raise UserError(f"expected a multiple of heads={self.heads}, found {self.width}", where="Transformer.width",
                            do=f"such as {-(-self.width // self.heads) * self.heads}")
        return _Transformer(self, inputs, outputs, times, shape)


@dataclass(frozen=True)
class _Read(Context):
    memory: Tensor | None = None  # (B, 1 + N, width), the first of them always there
    keep: Tensor | None = None  # (B, 1, 1, 1 + N)
    pairs: tuple[tuple[Tensor, Tensor], ...] = ()  # keys and values of each layer
    of_time: Tensor | None = None  # (W,): scales and shifts of all layers side by side, for a time that steps share


class _Transformer(Primes):
    def __init__(self, spec, inputs, outputs, times, shape):
        super().__init__()
        width, self.spec = spec.width, spec
        self.enter = Linear(inputs, width) if inputs else None
        self.place = nn.Parameter(0.02 * torch.randn(shape.horizon, width))
        self.read = Linear(shape.width, width) if shape.tokens else None
        self.order = nn.Parameter(0.02 * torch.randn(shape.tokens, width)) if shape.tokens else None
        self.always = nn.Parameter(0.02 * torch.randn(1, width))  # to look at when every token is masked
        self.encoder = nn.ModuleList(_Layer(spec, {"own"}, False) for _ in range(spec.encoder_depth))
        self.time = nn.Sequential(Waves(spec.waves), Linear(2 * spec.waves * times, width), nn.SiLU(),
                                  Linear(width, width), nn.SiLU()) if times else None
        # A single step has nothing to attend to among the steps.
        looks = {"cross"} | ({"own"} if shape.horizon > 1 else set()) if spec.attention == "cross" else {"own"}
        self.layers = nn.ModuleList(_Layer(spec, looks, times > 0) for _ in range(spec.depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), Linear(width, outputs))

    def prime(self, context):
        if isinstance(context, _Read):
            return context
        tokens, mask = context.tokens, context.mask
        memory = self.always.expand(tokens.shape[0], 1, -1)
        keep = torch.ones_like(memory[..., 0], dtype=torch.bool)
        if self.read is not None:
            memory = torch.cat([memory, self.read(tokens) + self.order], 1)
            keep = torch.cat([keep, mask], 1)
        keep = keep[:, None, None]
        for layer in self.encoder:
            memory = layer(memory, keep=keep)
        pairs = tuple(layer.cross.pair(memory) for layer in self.layers) if self.spec.attention == "cross" else ()
        return _Read(tokens, mask, memory, keep, pairs)

    def tell(self, times):
        time = self.time(times)
        return torch.cat([layer.film(time) for layer in self.layers], -1)

    def at(self, context, told):
        return replace(self.prime(context), of_time=told)

    def _films(self, t: Tensor, context: _Read, before: int) -> list[Tensor | None]:
        """Scales and shifts of each layer, broadcasting against (B, before + H, .); what stands before the steps has
        no time."""
        if self.time is None:
            return [None] * len(self.layers)
        if context.of_time is None:
            time = F.pad(self.time(t), (0, 0, before, 0))
            return [layer.film(time) for layer in self.layers]
        films = context.of_time.split([layer.film.out_features for layer in self.layers])
        if not before:
            return list(films)
        return [torch.cat([layer.film.bias.expand(before, -1), film.expand(self.place.shape[0], -1)])
                for layer, film in zip(self.layers, films, strict=True)]

    def forward(self, x, t, context):
        context = self.prime(context)
        h = self.place.expand(x.shape[0], -1, -1) if self.enter is None else self.enter(x) + self.place
        if self.spec.attention == "cross":
            past = self._past(0, h) if self.spec.causal else None
            for layer, film, pair in zip(self.layers, self._films(t, context, 0), context.pairs, strict=True):
                h = layer(h, film, keep=past, pair=pair, keep_pair=context.keep)
            return self.leave(h)
        n = context.memory.shape[1]
        keep = F.pad(context.keep, (0, h.shape[1]), value=True)
        if self.spec.causal:
            keep = keep & self._past(n, h)
        h = torch.cat([context.memory, h], 1)
        for layer, film in zip(self.layers, self._films(t, context, n), strict=True):
            h = layer(h, film, keep=keep)
        return self.leave(h[:, n:])

    @staticmethod
    def _past(before: int, steps: Tensor) -> Tensor:
        """(before + H, before + H): what sees what. What stands before the steps sees none of them."""
        at = torch.arange(before + steps.shape[1], device=steps.device).clamp(min=max(before - 1, 0))
        return at[:, None] >= at


class _Layer(nn.Module):
    """Attention among its own tokens and then to a context, where it has these, and a perceptron."""

    def __init__(self, spec, looks: set[str], timed: bool):
        super().__init__()
        self.own = _Attention(spec) if "own" in looks else None
        self.cross = _Attention(spec) if "cross" in looks else None
        inner = round(spec.expand * spec.width)
        self.think = nn.Sequential(Linear(spec.width, inner), nn.GELU(), nn.Dropout(spec.dropout),
                                   Linear(inner, spec.width))
        self.norms = nn.ModuleList(nn.LayerNorm(spec.width) for _ in range(len(looks) + 1))
        self.film = Linear(spec.width, 2 * spec.width * len(self.norms)) if timed else None
        self.drop = nn.Dropout(spec.dropout)

    def forward(self, h, film=None, *, keep=None, pair=None, keep_pair=None):
        films = iter([] if film is None else film.chunk(2 * len(self.norms), -1))
        norms = iter(self.norms)

        def normed(h):
            y = next(norms)(h)
            return y if film is None else y * (1 + next(films)) + next(films)
        if self.own is not None:
            y = normed(h)
            h = h + self.drop(self.own(y, self.own.pair(y), keep))
        if self.cross is not None:
            h = h + self.drop(self.cross(normed(h), pair, keep_pair))
        return h + self.drop(self.think(normed(h)))


class _Attention(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.heads = spec.heads
        self.ask = Linear(spec.width, spec.width)
        self.keys = Linear(spec.width, spec.width, bias=False)  # a bias would shift all scores alike: no effect
        self.values = Linear(spec.width, spec.width)
        self.leave = Linear(spec.width, spec.width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def pair(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.keys(memory)), self._split(self.values(memory))

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        """keep: broadcasts against (B, heads, asking, asked); False is not seen."""
        y = attend(self._split(self.ask(x)), *pair, keep)
        return self.leave(y.transpose(1, 2).flatten(2))


def attend(ask: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) of (B, heads, asking, d) over (B, heads, asked, d)."""
    if ask.dtype != torch.bfloat16 or ask.device.type != "cpu":
        return F.scaled_dot_product_attention(ask, keys, values, attn_mask=keep)
    # PyTorch's kernel for bf16 on CPUs took 4 to 7 times as long for sequences of 16 and of 100, its slope above all.
    score = (ask * ask.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    score = score if keep is None else score.masked_fill(~keep, -torch.inf)
    return score.softmax(-1).to(values.dtype) @ values
