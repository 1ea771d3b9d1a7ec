from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated

import torch
from torch import nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, Context, Schema, UserError, part
from ...data.text_columns import TaskText
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.objectives.representation import RepresentationLearning
from ...learn.objectives.representation_objectives import ForwardDynamics, InverseDynamics, MaskedPrediction
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import TokenEncoder
from ...nets.feed_forward import FeedForward
from ...nets.linear import Linear
from ...nets.transformer import MultiHeadAttention, Transformer, TransformerBlock, check_heads
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@part
class PromptedEncoder(Encoder):
    """Encoder: a transformer over all columns, with cross-attention to the prompt before each block.

    It can be trained in two phases. A first policy with ``prompted=False`` reads the same columns and ignores the
    prompt: its encoder has the module "trunk" alone, which self-supervised objectives train. A second policy takes the
    trunk over and trains the module "prompt": ``InitializeFrom(FromStage("trunk"), load=("codec", "encoder.trunk"),
    train=())``.

    The cross-attention also reads a learned token, so that each token of the observation decides how much the prompt
    changes it. With the prompt alone, which is often one token, it would add the same vector everywhere. Where the
    prompt is not given (``"name?"`` is False), only the learned token is read.

    Args:
        prompt: Column that says what to do: a text, a class, or numbers such as a goal.
        encoder: Encoder of the observations, and of the prompt alone. The transformer has the width of this encoder.
        heads: Number of attention heads. Must divide the width.
        feed_forward_ratio: Width of the hidden layer of each block, relative to the width of the tokens.

    References:
        Wei et al. (2023), Is Imitation All You Need? Generalized Decision-Making with Dual-Phase Training (DualMind),
        arXiv:2307.07909, whose cross-attention reads one token, so that it adds the same vector everywhere.
    """

    prompt: str = "observation.task"
    prompted: bool = True
    encoder: TokenEncoder = field(default_factory=TokenEncoder)
    depth: Annotated[int, AtLeast(1)] = 2
    heads: Annotated[int, AtLeast(1)] = 4
    feed_forward_ratio: Annotated[float, Above(0)] = 2

    def build(self, features, n_obs_steps):
        if self.prompt not in features or len(features) == 1:
            raise UserError(f"The policy reads {', '.join(features)}, and it must read the prompt {self.prompt!r} and "
                            "another column.", where="PromptedEncoder.prompt", hint="Name one of the policy's inputs.")
        check_heads(self.encoder.width, self.heads, "PromptedEncoder")
        return _PromptedEncoderNet(self, features, n_obs_steps)


class _PromptedEncoderNet(EncoderNet):
    def __init__(self, config: PromptedEncoder, features, n_obs_steps):
        super().__init__()
        observed = {name: f for name, f in features.items() if name != config.prompt}
        self.trunk = _Trunk(config, observed, n_obs_steps)
        prompt = {config.prompt: features[config.prompt]}
        self.prompt = _Prompt(config, prompt, n_obs_steps) if config.prompted else None
        tokens = self.trunk.tokens
        self.tokens, self.width = tokens.tokens, config.encoder.width
        # Every token reads all others.
        self.token_obs_steps = (n_obs_steps - 1,) * self.tokens

    @property
    def cached_features(self):
        prompt = {} if self.prompt is None else self.prompt.tokens.cached_features
        return {**self.trunk.tokens.cached_features, **prompt}

    def forward(self, obs, rng=None):
        context = self.trunk.tokens(obs, rng)
        tokens, mask = self.trunk.position + context.tokens, self.trunk.attended(context.mask)
        if self.prompt is None:
            for block in self.trunk.blocks:
                tokens = block(tokens, mask=mask)
        else:
            prompt = self.prompt.memory(obs, rng)
            for block, cross_attention in zip(self.trunk.blocks, self.prompt.layers, strict=True):
                tokens = block(cross_attention(tokens, *prompt), mask=mask)
        return Context(self.trunk.norm(tokens), context.mask, context.named)


class _Trunk(nn.Module):
    """The parts of the encoder that the first training phase trains."""

    def __init__(self, config: PromptedEncoder, features, n_obs_steps):
        super().__init__()
        width, self.tokens = config.encoder.width, config.encoder.build(features, n_obs_steps)
        sizes = Transformer(width, config.depth, config.heads, feed_forward_ratio=config.feed_forward_ratio)
        # A single token has no other tokens to attend to.
        attentions = {"self"} if self.tokens.tokens > 1 else set()
        self.position = nn.Parameter(0.02 * torch.randn(self.tokens.tokens, width))
        self.blocks = nn.ModuleList(TransformerBlock(sizes, attentions, False) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)

    def attended(self, mask):
        """Returns which tokens are read, to broadcast against (B, heads, queries, keys). Each token reads itself."""
        itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        return mask[:, None, None] | itself


class _Prompt(nn.Module):
    """The parts of the encoder that the second training phase adds, which read the prompt."""

    def __init__(self, config: PromptedEncoder, features, n_obs_steps):
        super().__init__()
        width, self.tokens = config.encoder.width, config.encoder.build(features, n_obs_steps)
        self.null_token = nn.Parameter(0.02 * torch.randn(1, width))
        self.projection = nn.Sequential(Linear(width, width), nn.GELU(), Linear(width, width))
        self.layers = nn.ModuleList(_CrossAttention(config) for _ in range(config.depth))

    def memory(self, obs, rng):
        """Returns the tokens that cross-attention reads, (B, 1 + n, width), and which of them are given."""
        context = self.tokens(obs, rng)
        null = self.null_token.expand(len(context.tokens), 1, -1)
        mask = torch.cat([torch.ones_like(context.mask[:, :1]), context.mask], 1)
        return torch.cat([null, self.projection(context.tokens)], 1), mask[:, None, None]


class _CrossAttention(nn.Module):
    """Cross-attention that adds little of the prompt at first, so that the trunk starts as it is."""

    def __init__(self, config: PromptedEncoder):
        super().__init__()
        width = config.encoder.width
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(Transformer(width, heads=config.heads))
        nn.init.normal_(self.attention.output_layer.weight, std=0.02)
        nn.init.zeros_(self.attention.output_layer.bias)

    def forward(self, tokens, memory, mask):
        return tokens + self.attention(self.norm(tokens), self.attention.keys_values(memory), mask)


@method("Wei et al. 2023, arXiv 2307.07909, with a history of six images, prompts from CLIP, and more and more hidden "
        "actions. The first phase takes any episodes, also without tasks: --stage trunk=RUN", rows=("169",),
        needs=(NUMBERS_OR_CLASSES, "a task in words, or another column that says what to do (--prompt)",
               "while acting: what to do, in words or as a column"),
        when="if one network serves many named tasks.")
def dualmind(prompt: str = "observation.task", horizon: int = 4, depth: int = 2,
             features: Schema | None = None) -> Method:
    """DualMind: a trunk learns the dynamics without tasks. Then it is frozen, and new layers read a prompt.

    Args:
        prompt: Column that says what to do. By default the words of the task.
        horizon: Number of actions in a chunk. The trunk compares observations that are as many steps apart.
        depth: Number of blocks of the trunk.
    """
    head = choose_head(features, Regression())
    words = (TaskText(),) if prompt == "observation.task" and features is not None and prompt not in features else ()
    policy = PolicyConfig(head, FeedForward(), PromptedEncoder(prompt, depth=depth), window=Window(1, horizon))
    bare = replace(policy, encoder=PromptedEncoder(prompt, prompted=False, depth=depth))
    learner = RepresentationLearning((ForwardDynamics(), InverseDynamics(head), MaskedPrediction()),
                                     optimizer=OptimizerConfig(lr=1e-3))
    frozen = InitializeFrom(FromStage("trunk"), load=("codec", "encoder.trunk"), train=())
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(steps=5000, batch_size=256), words,
                  (Stage("trunk", Method(bare, learner=learner, transforms=words)),), (frozen,))
