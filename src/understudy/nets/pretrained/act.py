"""The network of ACT as LeRobot builds it, for its weights: a post-norm transformer between encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import AtLeast, Below, Context, HeadSpec, Unsupported, UserError, part
from ..base import Encoder, EncoderNet, PosteriorTrunk, TrunkNet, check_not_causal
from ..encoders import check_kinds, observed_column
from ..linear import Linear
from ..vision import PixelNormalizer, ResNetBody

_FEED_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@part
class ACTTransformer(PosteriorTrunk):
    """Transformer of ACT: an encoder over latent and context, and a decoder with one query per action step.

    It differs from `Transformer` in what trained weights depend on. Layers are normalized after the residual
    (unless `pre_norm`), positions are added to queries and keys in every layer, the decoder starts from zeros, and the
    posterior of a `CVAE` is another network that reads the state and the actions, but no images.

    Heads without time and with one input per chunk can use it: `CVAE` and `Regression`. Because the decoder starts from
    zeros, the input weights of the self-attention of its first layer change nothing and stay untrained.

    Args:
        width: Width of the tokens. The encoder's tokens are used as they are if they have this width.
        heads: Number of attention heads. Must divide `width`.
        feed_forward: Width of the hidden layer of each block.
        encoder_depth: Number of layers over latent and context.
        posterior_depth: Number of layers of the posterior network.
        pre_norm: Normalize before each sublayer instead of after it.
        grids: Height and width of the feature map of each camera, in tokens. Their tokens are the last ones of the
            context, and their positions are fixed sinusoids. All other positions are learned.
        state: The column that the posterior reads, in `Context.named`.
        state_size: Number of components of that column. 0 if the posterior reads the actions only.

    References:
        Zhao et al. (2023), Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv:2304.13705.
        Cadene et al. (2024), LeRobot: State-of-the-art Machine Learning for Real-World Robotics in PyTorch.
    """

    width: Annotated[int, AtLeast(1)] = 512
    heads: Annotated[int, AtLeast(1)] = 8
    feed_forward: Annotated[int, AtLeast(1)] = 3200
    activation: Literal["relu", "gelu"] = "relu"
    encoder_depth: Annotated[int, AtLeast(0)] = 4
    depth: Annotated[int, AtLeast(1)] = 1
    posterior_depth: Annotated[int, AtLeast(1)] = 4
    pre_norm: bool = False
    dropout: Annotated[float, AtLeast(0), Below(1)] = 0.1
    grids: tuple[tuple[int, int], ...] = ()
    state: str = "observation.state"
    state_size: Annotated[int, AtLeast(0)] = 0

    def build(self, inputs, outputs, n_times, spec):
        check_not_causal(self, spec)
        if n_times:
            raise Unsupported("ACTTransformer has no time embedding, and this head needs one.",
                              hint="Use the Transformer or the UNet trunk.")
        self._check_width()
        if (cells := sum(h * w for h, w in self.grids)) > spec.tokens:
            raise UserError(f"The grids have {cells} cells, but the context has {spec.tokens} tokens.",
                            where="ACTTransformer.grids", hint="Give the size of each camera's feature map: a 32nd of "
                                                               "the image in both directions, rounded up.")
        return _ACTNet(self, inputs, outputs, spec)

    def build_posterior(self, coded_dim, outputs, spec):
        self._check_width()
        return _ACTPosterior(self, coded_dim, outputs, spec)

    def _check_width(self):
        if self.width % self.heads or self.width % 4:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads} and of 4.",
                            where="ACTTransformer", hint="Use width=512 and heads=8, for example.")


class _ACTNet(TrunkNet):
    # nn.ModuleList, which does not say of what: layers.
    encoder: Any
    decoder: Any
    grid_positions: Tensor

    def __init__(self, config: ACTTransformer, inputs: int, outputs: int, spec: HeadSpec):
        super().__init__()
        width = config.width
        # A head without inputs gets a learned token in place of the latent.
        self.latent_layer = Linear(inputs, width) if inputs else _LearnedToken(width)
        self.context_layer = nn.Identity() if spec.width == width else Linear(spec.width, width)
        cells = sum(h * w for h, w in config.grids)
        self.token_positions = nn.Parameter(torch.randn(1 + spec.tokens - cells, width))
        grids = [grid_positions(h, w, width) for h, w in config.grids]
        self.register_buffer("grid_positions", torch.cat([torch.zeros(0, width), *grids]), persistent=False)
        self.encoder = nn.ModuleList(_ACTLayer(config, False) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(width) if config.pre_norm else nn.Identity()
        self.step_positions = nn.Parameter(torch.randn(spec.horizon, width))
        self.decoder = nn.ModuleList(_ACTLayer(config, True) for _ in range(config.depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.output_layer = Linear(width, outputs)
        for weight in (*self.encoder.parameters(), *self.decoder.parameters()):
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)

    def forward(self, x, t, context):
        latent = self.latent_layer(x[:, :1])
        memory = torch.cat([latent, self.context_layer(context.tokens)], 1)
        absent = ~torch.cat([torch.ones_like(latent[..., 0], dtype=torch.bool), context.mask], 1)
        positions = torch.cat([self.token_positions, self.grid_positions])
        for layer in self.encoder:
            memory = layer(memory, positions, absent)
        memory = self.encoder_norm(memory)
        steps = torch.zeros_like(self.step_positions).expand(x.shape[0], -1, -1)
        for layer in self.decoder:
            steps = layer(steps, self.step_positions, absent, (memory + positions, memory))
        return self.output_layer(self.decoder_norm(steps))


class _LearnedToken(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:2], -1)


class _ACTPosterior(TrunkNet):
    """Posterior network of ACT, (B, H, outputs), equal for all steps.

    The input of a step is its coded action, and 1 if it is not padded.
    """

    # nn.ModuleList, which does not say of what: layers.
    layers: Any
    positions: Tensor

    def __init__(self, config: ACTTransformer, coded_dim: int, outputs: int, spec: HeadSpec):
        super().__init__()
        width, self.state = config.width, config.state
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.state_layer = Linear(config.state_size, width) if config.state_size else None
        self.action_layer = Linear(coded_dim, width)
        n_tokens = 1 + (self.state_layer is not None) + spec.horizon
        self.register_buffer("positions", sequence_positions(n_tokens, width), persistent=False)
        self.layers = nn.ModuleList(_ACTLayer(config, False) for _ in range(config.posterior_depth))
        self.norm = nn.LayerNorm(width) if config.pre_norm else nn.Identity()
        self.output_layer = Linear(width, outputs)

    def forward(self, x, t, context):
        action, present = x[..., :-1], x[..., -1] > 0.5
        tokens = [self.class_token.expand(x.shape[0], 1, -1)]
        if self.state_layer is not None:
            if self.state not in context.named:
                raise UserError(f"The encoder does not pass on {self.state!r}, which the posterior reads.",
                                where="ACTTransformer.state", hint="Use ACTEncoder, or TokenEncoder(named=...).")
            tokens.append(self.state_layer(context.named[self.state].flatten(1)).unsqueeze(1))
        h = torch.cat([*tokens, self.action_layer(action)], 1)
        absent = F.pad(~present, (len(tokens), 0), value=False)
        for layer in self.layers:
            h = layer(h, self.positions, absent)
        return self.output_layer(self.norm(h)[:, :1]).expand(-1, x.shape[1], -1)


class _ACTLayer(nn.Module):
    """Self-attention, cross-attention (in the decoder) and a feed-forward layer. Names of weights are LeRobot's."""

    def __init__(self, config: ACTTransformer, is_decoder: bool):
        super().__init__()
        width, self.pre_norm = config.width, config.pre_norm
        self.self_attn = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, config.heads, config.dropout,
                                                    batch_first=True) if is_decoder else None
        self.linear1, self.linear2 = Linear(width, config.feed_forward), Linear(config.feed_forward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width) if is_decoder else nn.Identity()
        self.dropout, self.activation = nn.Dropout(config.dropout), _FEED_FORWARD[config.activation]

    def forward(self, x: Tensor, positions: Tensor, absent: Tensor,
                memory: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`absent` (B, keys) marks the masked tokens of x, or of `memory` (keys, values) if it is given."""
        def self_attention(y):
            query = y + positions
            mask = absent if memory is None else None
            return self.self_attn(query, query, y, key_padding_mask=mask, need_weights=False)[0]

        def feed_forward(y):
            return self.linear2(self.dropout(self.activation(self.linear1(y))))
        x = self._residual(x, self_attention, self.norm1)
        if memory is None or (attention := self.multihead_attn) is None:
            return self._residual(x, feed_forward, self.norm2)

        def cross_attention(y):
            return attention(y + positions, *memory, key_padding_mask=absent, need_weights=False)[0]
        x = self._residual(x, cross_attention, self.norm2)
        return self._residual(x, feed_forward, self.norm3)

    def _residual(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))


def sequence_positions(count: int, width: int) -> Tensor:
    """Returns the sinusoids of the positions 0 to count - 1 with sines and cosines alternating, (count, width).

    References:
        Vaswani et al. (2017), Attention Is All You Need, arXiv:1706.03762.
    """
    return _alternating(torch.arange(count, dtype=torch.float64), width).float()


def grid_positions(height: int, width: int, size: int) -> Tensor:
    """Sinusoids of the cells of a grid, row by row, (height * width, size): first of the row, then of the column.

    Rows and columns are numbered from 1 and scaled so that the last is at 2 pi, as in DETR and ACT.

    Args:
        size: Number of sinusoids of a cell, a multiple of 4.

    References:
        Carion et al. (2020), End-to-End Object Detection with Transformers, arXiv:2005.12872.
    """
    rows, columns = (_alternating(2 * math.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1e-6), size // 2)
                     for n in (height, width))
    cells = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], -1)
    return cells.flatten(0, 1).float()


def _alternating(position: Tensor, width: int) -> Tensor:
    index = torch.arange(width)
    angle = position[:, None] / 10_000 ** (2 * (index // 2).double() / width)
    return torch.where(index % 2 == 0, angle.sin(), angle.cos())


@part
class ACTEncoder(Encoder):
    """Encoder of ACT: one token per vector and observation step, then one per cell of 32 x 32 pixels.

    All cameras share a ResNet-18 whose batch normalization has fixed statistics. Vectors are also given to the trunk by
    name, as `ACTTransformer` needs them for its posterior.

    Args:
        width: Width of the tokens, which must be the width of the trunk.
        weights: Pretrained weights of the ResNet-18, see `nets.vision.ResNet`. None for random weights.

    References:
        Zhao et al. (2023), Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv:2304.13705.
    """

    width: Annotated[int, AtLeast(1)] = 512
    weights: str | None = None

    def build(self, features, n_obs_steps):
        return _ACTEncoderNet(self, features, n_obs_steps)


class _ACTEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        check_kinds("ACTEncoder", features, ("vector", "image"), "Leave the column out of inputs, or use TokenEncoder.")
        self.vectors = tuple(k for k, f in features.items() if f.kind == "vector")
        self.images = tuple(k for k, f in features.items() if f.kind == "image")
        self.vector_layers = nn.ModuleList(Linear(features[k].size, config.width) for k in self.vectors)
        if self.images:
            channels = {features[k].shape[2] for k in self.images}
            if len(channels) > 1:
                raise UserError(f"The cameras share one network, but have {sorted(channels)} channels.",
                                where="ACTEncoder", hint="Use cameras of the same kind, or TokenEncoder.")
            self.pixels = nn.ModuleList(PixelNormalizer(*channels) for _ in self.images)
            self.backbone = ResNetBody(*channels, fixed=True)
            self.backbone.load_pretrained(config.weights)
            self.image_layer = nn.Conv2d(512, config.width, 1)
        cells = [-(-features[k].shape[0] // 32) * -(-features[k].shape[1] // 32) for k in self.images]
        self.token_obs_steps = tuple(step for n in (*(1 for _ in self.vectors), *cells)
                                     for step in range(n_obs_steps) for _ in range(n))
        self.tokens, self.width = len(self.token_obs_steps), config.width

    def forward(self, obs, rng=None):
        tokens, masks, named = [], [], {}
        for name, layer in zip(self.vectors, self.vector_layers, strict=True):
            x, present = observed_column(obs, name)
            tokens.append(layer(x.unsqueeze(-1).flatten(2).float()))
            masks.append(present)
            named[name] = x[:, -1].float()
        for number, name in enumerate(self.images):
            x, present = observed_column(obs, name)
            maps = self.image_layer(self.backbone(self.pixels[number](x.flatten(0, 1).permute(0, 3, 1, 2))))
            cells = maps.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])  # (B, To, cells, D)
            tokens.append(cells.flatten(1, 2))
            masks.append(present.unsqueeze(-1).expand(cells.shape[:3]).flatten(1))
        return Context(torch.cat(tokens, 1), torch.cat(masks, 1), named)
