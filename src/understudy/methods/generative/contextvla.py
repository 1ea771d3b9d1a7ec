from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ...core import AtLeast, Below, Context, UserError, part
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.flow import Flow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer, TransformerBlock, check_heads
from ...policy import PolicyConfig
from ..registry import method


@part
class PooledHistoryEncoder(Encoder):
    """Transformer encoder that pools all past observation steps into one token after a few blocks.

    The first `pool_after` blocks run over the tokens of all steps. A token reads the tokens of its own step and of
    earlier steps. Then the tokens of all past steps are replaced by their mean, which is called the context token and
    comes first. The remaining blocks run over the context token and the tokens of the current step. These blocks and
    the trunk take as long as for a single step with one more token.

    Use ``Window(obs_pad_mask=True)``, which marks rows before the start of the episode: such rows are not read and do
    not enter the mean. If there are no past steps at all, the context token is masked, and the tokens of the current
    step are the same as from an encoder with a single step.

    Args:
        pool_after: Number of blocks before the mean is taken. 0 averages the tokens of the past before anything relates
            them to each other. None does not pool: all blocks run over all tokens, and all are given to the trunk.
        heads: Number of attention heads. Must divide the width of the tokens.
        dropout: Dropout probability.
        encoder: Encoder that gives the tokens of each step. All columns have tokens of the past, words as well.

    References:
        Jang et al. (2025), ContextVLA: Vision-Language-Action Model with Amortized Multi-Frame Context,
        arXiv:2510.04246.
    """

    depth: Annotated[int, AtLeast(0)] = 4
    pool_after: Annotated[int | None, AtLeast(0)] = 2
    heads: Annotated[int, AtLeast(1)] = 4
    dropout: Annotated[float, AtLeast(0), Below(1)] = 0.0
    encoder: Encoder = field(default_factory=TokenEncoder)

    def __post_init__(self):
        if self.pool_after is not None and self.pool_after > self.depth:
            raise UserError(f"pool_after is {self.pool_after}, but there are {self.depth} blocks",
                            where="PooledHistoryEncoder.pool_after", hint="use None to keep the tokens of all steps")

    def build(self, features, n_obs_steps):
        """Builds the module.

        Args:
            n_obs_steps: Number of observation rows in a window (To).

        Returns:
            The module. It gives the context token and the tokens of the current step.
        """
        return _PooledHistoryNet(self, features, n_obs_steps)

    def pool(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pools the tokens of the past steps into one token.

        Args:
            tokens: The tokens, (B, N, D).
            mask: False for tokens that were not observed, (B, N) bool.

        Returns:
            The mean of the observed tokens, (B, 1, D), and whether there are any, (B, 1) bool.
        """
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return (tokens * weights.unsqueeze(-1).to(tokens.dtype)).sum(1, keepdim=True), mask.any(1, keepdim=True)


class _PooledHistoryNet(EncoderNet):
    blocks: Any  # nn.ModuleList of TransformerBlock
    past: Tensor
    current: Tensor
    reads: Tensor
    pooled_reads: Tensor

    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        self.encoder = config.encoder.build(features, n_obs_steps)
        self.width, steps = self.encoder.width, torch.tensor(self.encoder.token_obs_steps)
        past, current = (torch.nonzero(chosen).flatten() for chosen in (steps < n_obs_steps - 1,
                                                                        steps == n_obs_steps - 1))
        if n_obs_steps > 1 and not len(past):
            raise UserError(f"all tokens of {type(config.encoder).__name__} depend on the current step, so there is "
                            "no past to pool", where="PooledHistoryEncoder.encoder",
                            hint="use an encoder with tokens for each step, such as TokenEncoder")
        check_heads(self.width, config.heads, "PooledHistoryEncoder")
        self.pool = config.pool if config.pool_after is not None and len(past) else None
        self.n_first = config.depth if config.pool_after is None else config.pool_after
        self.token_embedding = nn.Parameter(0.02 * torch.randn(len(steps), self.width))
        block = Transformer(self.width, config.depth, config.heads, dropout=config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(block, {"self"}, False) for _ in range(config.depth))
        self.norm = nn.LayerNorm(self.width)
        pooled_steps = torch.cat([steps[past].amax(0, keepdim=True), steps[current]]) if self.pool else steps
        self.token_obs_steps = tuple(pooled_steps.tolist())
        self.tokens = len(self.token_obs_steps)
        for name, value in (("past", past), ("current", current), ("reads", steps[:, None] >= steps),
                            ("pooled_reads", pooled_steps[:, None] >= pooled_steps)):
            self.register_buffer(name, value, persistent=False)

    @property
    def cached_features(self):
        return self.encoder.cached_features

    def forward(self, obs, rng=None):
        context = self.encoder(obs, rng)
        h = self._run(self.blocks[:self.n_first], context.tokens + self.token_embedding, context.mask, self.reads)
        mask = context.mask
        if self.pool is not None:
            token, any_past = self.pool(h[:, self.past], mask[:, self.past])
            h, mask = torch.cat([token, h[:, self.current]], 1), torch.cat([any_past, mask[:, self.current]], 1)
        h = self._run(self.blocks[self.n_first:], h, mask, self.pooled_reads)
        return Context(self.norm(h), mask, context.named)

    @staticmethod
    def _run(blocks, h: Tensor, present: Tensor, reads: Tensor) -> Tensor:
        # A token that is absent reads itself, because attention to nothing is not a number. No other token reads it.
        itself = torch.eye(len(reads), dtype=torch.bool, device=reads.device)
        mask = (present.unsqueeze(1) & reads | itself).unsqueeze(1)
        for block in blocks:
            h = block(h, mask=mask)
        return h


@method("Jang et al. 2025 (ContextVLA), arXiv 2510.04246, which does this in a pretrained vision-language model, with "
        "tokens of words that are not pooled", rows=("304",),
        when="if what to do depends on the last observations, and reading all of them in each layer is too slow.")
def contextvla(
    n_obs_steps: int = 8, horizon: int = 16, n_action_steps: int = 8, depth: int = 4, pool_after: int | None = 2,
) -> Method:
    """A flow policy with a history: after two blocks of a transformer, all past observations become one token.

    Args:
        depth: Number of blocks of the transformer that reads the observations.
        pool_after: Number of blocks before the past becomes one token. None keeps all tokens in all blocks.
    """
    encoder = PooledHistoryEncoder(depth, pool_after, 4, encoder=TokenEncoder(128))
    window = Window(n_obs_steps, horizon, obs_pad_mask=True)
    policy = PolicyConfig(Flow(), Transformer(128, 2, 4), encoder, window=window)
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer))
