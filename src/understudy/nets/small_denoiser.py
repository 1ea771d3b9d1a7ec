"""Small denoiser: a large network reads the context once per plan, and a small one denoises the actions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..core import AtLeast, Context, part
from .base import CachesContext, Trunk
from .mlp import MLP
from .transformer import Transformer


@part
class SmallDenoiser(Trunk):
    """A large trunk computes features of each action step from the context alone, a small one denoises given these.

    This is the diffusion head of Octo and of masked autoregressive models. A plan evaluates the large trunk once, so
    sampling is cheap. With ``each_step=True``, the steps of a chunk are denoised independently of each other: all that
    they have in common must be in the context. The alternative is a large trunk that denoises itself, such as
    `nets.in_context.InContextTransformer`.

    Args:
        backbone: The large trunk. It sees no actions and no times.
        denoiser: The small trunk. It sees noisy actions and times, and features in place of the context.
        each_step: True denoises each step alone, with the same weights. False denoises the chunk as a whole, given the
            features of all steps.

    References:
        Li et al. (2024), Autoregressive Image Generation without Vector Quantization, arXiv:2406.11838 (one step).
        Octo Model Team (2024), Octo: An Open-Source Generalist Robot Policy, arXiv:2405.12213 (a whole chunk).
        Hou et al. (2024), Diffusion Transformer Policy, arXiv:2410.15959, which compares both with one transformer.
    """

    backbone: Trunk = Transformer()
    denoiser: Trunk = MLP(128, 3)
    width: Annotated[int, AtLeast(1)] = 128
    each_step: bool = True

    def build(self, inputs, outputs, n_times, spec):
        return _SmallDenoiserNet(self, inputs, outputs, n_times, spec)


@dataclass(frozen=True)
class _Features(Context):
    features: Tensor | None = None  # (B, H, width)
    times: Tensor | None = None  # (K,): of all rows and steps, if they are fixed


class _SmallDenoiserNet(CachesContext):
    def __init__(self, config, inputs, outputs, n_times, spec):
        super().__init__()
        self.horizon, self.each_step = spec.horizon, config.each_step
        self.backbone = config.backbone.build(0, config.width, 0, spec)
        steps = tuple(spec.action_start + i for i in range(spec.horizon))
        denoiser_spec = replace(spec, tokens=spec.horizon, width=config.width, token_obs_steps=steps)
        if config.each_step:
            denoiser_spec = replace(denoiser_spec, horizon=1, tokens=1, token_obs_steps=steps[:1], causal=False)
        self.denoiser = config.denoiser.build(inputs, outputs, n_times, denoiser_spec)

    def precompute(self, context):
        if isinstance(context, _Features):
            return context
        no_inputs = context.tokens.new_zeros(context.tokens.shape[0], self.horizon, 0)
        return _Features(context.tokens, context.mask, context.named, self.backbone(no_inputs, no_inputs, context))

    def embed_time(self, times):
        return times

    def with_time_embedding(self, context, embedding):
        return replace(self.precompute(context), times=embedding)

    def forward(self, x, t, context):
        context = self.precompute(context)
        features, named = context.features, context.named
        if context.times is not None:
            t = context.times.expand(*x.shape[:2], -1)
        if self.each_step:
            x, t, features = (a.flatten(0, 1).unsqueeze(1) for a in (x, t, features))
            named = {k: v.repeat_interleave(self.horizon, 0) for k, v in named.items()}
        mask = torch.ones_like(features[..., 0], dtype=torch.bool)
        out = self.denoiser(x, t, Context(features, mask, named))
        return out.squeeze(1).unflatten(0, (-1, self.horizon)) if self.each_step else out
