from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, AtMost, ConfigError, Context, UserError, part
from ...data.column_changes import LastAction
from ...data.window import Window
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.objectives.representation import RepresentationLearning
from ...learn.objectives.representation_objectives import NetworkObjective
from ...nets.base import Encoder, EncoderNet, record_intermediate
from ...nets.encoders import check_inputs, check_kinds, check_unscaled, observed_column
from ...nets.feed_forward import FeedForward
from ...nets.transformer import Transformer, TransformerBlock, check_heads
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@part
class ComponentTokenEncoder(Encoder):
    """Transformer encoder over the observation steps with one token for each number (component of a column).

    A token is the number times a vector of its component, plus the embeddings of the component and of the observation
    step. The tokens of the newest step, after the transformer, are the context. The objectives
    `MaskedTokenPrediction` and `NextTokenPrediction` train the transformer without a policy.

    A component may be missing, for example because a sensor failed. A column of flags says which components are
    missing. Its token then has the embeddings of component and step alone, and the transformer can infer it from the
    other tokens. Tokens of rows and columns that are marked as not observed (``"name?"``) are masked.

    Args:
        heads: Number of attention heads. Must divide `width`.
        level: ``"component"``: a token for each number. ``"modality"``: a token for each column of `first` and one for
            all other columns together. Both have the same weights: the token of a modality is the sum over its
            components.
        causal: Whether a token reads only itself and earlier tokens. Tokens are ordered by observation step, then by
            column (beginning with the columns in `first`), then by component. `NextTokenPrediction` needs it.
        first: Columns whose tokens come first within a step. By default the last action, which led to the observation.
        flags: Pairs (column, column of flags). A component is missing where its flag is below 0.5. The codec must leave
            the flags as they are: ``Normalizer(unscaled=...)``.

    References:
        Boige et al. (2024), PASTA: Pretrained Action-State Transformer Agents, arXiv:2307.10936, which turns numbers
        into classes by mu-law companding and shares their embeddings between the components.
    """

    width: Annotated[int, AtLeast(1)] = 64
    depth: Annotated[int, AtLeast(0)] = 2
    heads: Annotated[int, AtLeast(1)] = 4
    level: Literal["component", "modality"] = "component"
    causal: bool = False
    first: tuple[str, ...] = ("observation.last_action",)
    flags: tuple[tuple[str, str], ...] = ()

    def build(self, features, n_obs_steps):
        """Builds the module.

        Args:
            n_obs_steps: Number of observation rows in a window (To).

        Returns:
            The module. It gives the tokens of the newest step.
        """
        check_heads(self.width, self.heads, "ComponentTokenEncoder")
        for column, flags in self.flags:
            check_inputs(features, (column, flags), "ComponentTokenEncoder.flags")
            if features[column].size != features[flags].size:
                raise UserError(f"{flags!r} has {features[flags].size} flags, but {column!r} has "
                                f"{features[column].size} components.", where="ComponentTokenEncoder.flags",
                                hint="Use a column with one flag for each component.")
        check_kinds("ComponentTokenEncoder", features, ("vector",), "Leave it out of inputs, or use TokenEncoder.")
        return ComponentTokenNet(self, features, n_obs_steps)

    def check_policy(self, codec, augmentations):
        check_unscaled(codec, [flags for _, flags in self.flags], "the flags",
                       "flags that are constant in the data would all become 0", "ComponentTokenEncoder.flags")


class EncodedComponents(NamedTuple):
    """The output of a `ComponentTokenNet` for observation windows.

    Attributes:
        tokens: Tokens after the transformer, (B, To, G, D).
        values: The coded numbers, (B, To, C). Missing ones are 0.
        is_given: Where numbers are not missing, (B, To, C) bool. Hidden ones are given.
        mask: Whether any column of a token was observed, (B, To, G) bool.
    """

    tokens: Tensor
    values: Tensor
    is_given: Tensor
    mask: Tensor


class ComponentTokenNet(EncoderNet):
    """The module that `ComponentTokenEncoder` builds.

    Attributes:
        n_components: Number of components of a step (C).
        n_groups: Number of tokens of a step (G).
        group: Token of each component, (C,).
    """

    blocks: Any  # nn.ModuleList of TransformerBlock
    group: Tensor
    may_attend: Tensor

    def __init__(self, config: ComponentTokenEncoder, features, n_obs_steps: int):
        super().__init__()
        self.config, self.flags, self.width = config, dict(config.flags), config.width
        values = [name for name in features if name not in self.flags.values()]
        first = [name for name in config.first if name in values]
        self.names = (*first, *(name for name in values if name not in first))
        sizes = [features[name].size for name in self.names]
        self.n_components = sum(sizes)
        if config.level == "component":
            group = torch.arange(self.n_components)
        else:
            group = torch.arange(len(sizes)).clamp(max=len(first)).repeat_interleave(torch.tensor(sizes))
        self.n_groups = int(group[-1]) + 1
        # The sum over a modality has the size of one number. All embeddings have similar sizes: the first normalization
        # of a token would otherwise leave nothing but the sign of its number.
        scale = 1 / math.sqrt(self.n_components / self.n_groups)
        self.value_embedding = nn.Parameter(scale * torch.randn(self.n_components, self.width))
        self.presence_embedding = nn.Parameter(0.5 * scale * torch.randn(self.n_components, self.width))
        self.component_embedding = nn.Parameter(torch.randn(self.n_groups, self.width))
        self.step_embedding = nn.Parameter(0.5 * torch.randn(n_obs_steps, 1, self.width))
        block = Transformer(self.width, config.depth, config.heads)
        self.blocks = nn.ModuleList(TransformerBlock(block, {"self"}, False) for _ in range(config.depth))
        self.norm = nn.LayerNorm(self.width)
        n_tokens = n_obs_steps * self.n_groups
        may_attend = torch.ones(n_tokens, n_tokens, dtype=torch.bool)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("may_attend", may_attend.tril() if config.causal else may_attend, persistent=False)
        self.tokens, self.token_obs_steps = self.n_groups, (n_obs_steps - 1,) * self.n_groups

    def forward(self, obs, rng=None):
        encoded = self.encode(obs)
        for name, tensor in zip(encoded._fields, encoded, strict=True):
            record_intermediate(f"components.{name}", tensor)
        return Context(encoded.tokens[:, -1], encoded.mask[:, -1])

    def encode(self, obs: Mapping[str, Tensor], hidden: Tensor | None = None) -> EncodedComponents:
        """Encodes observation windows.

        Args:
            obs: Coded observations, as of `forward`.
            hidden: Tokens to hide, (B, To, G) bool. All their components are treated as missing.
        """
        values, available, observed = self._components(obs)
        present = available if hidden is None else available & ~hidden[..., self.group]
        embedded = (values.unsqueeze(-1) * self.value_embedding + self.presence_embedding) * present.unsqueeze(-1)
        mask = observed
        if self.config.level == "modality":
            shape = (*embedded.shape[:2], self.n_groups, self.width)
            embedded = embedded.new_zeros(shape).index_add(2, self.group, embedded)
            mask = torch.zeros(shape[:3], dtype=torch.long, device=observed.device)
            mask = mask.index_add(2, self.group, observed.long()) > 0
        h = (embedded + self.component_embedding + self.step_embedding).flatten(1, 2)
        # A token that is absent reads itself, because attention to nothing is not a number. No other token reads it.
        itself = torch.eye(len(self.may_attend), dtype=torch.bool, device=h.device)
        may_attend = (mask.flatten(1).unsqueeze(1) & self.may_attend | itself).unsqueeze(1)
        for block in self.blocks:
            h = block(h, mask=may_attend)
        return EncodedComponents(self.norm(h).unflatten(1, mask.shape[1:]), values, available, mask)

    def _components(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the numbers of all columns, where they are given, and where they were observed, (B, To, C) each."""
        values, available, observed = [], [], []
        for name in self.names:
            x, present = observed_column(obs, name)
            x = x.unsqueeze(-1).flatten(2).float()
            present = present.unsqueeze(-1).expand(x.shape)
            observed.append(present)
            if name in self.flags:
                flag, has_flag = observed_column(obs, self.flags[name])
                present = present & ((flag.unsqueeze(-1).flatten(2) >= 0.5) | ~has_flag.unsqueeze(-1))
            values.append(x.masked_fill(~present, 0))
            available.append(present)
        return torch.cat(values, -1), torch.cat(available, -1), torch.cat(observed, -1)


class _TokenObjective(NetworkObjective):
    def networks(self, policy):
        if not isinstance(policy.encoder, ComponentTokenNet):
            raise ConfigError(f"{type(policy.config.encoder).__name__} has no tokens of single numbers to predict",
                              where=type(self).__name__, hint="use a ComponentTokenEncoder")
        return {"readout": _Readout(policy.encoder)}


class _Readout(nn.Module):
    """Network that predicts each component from a token: its own or another."""

    def __init__(self, encoder: ComponentTokenNet):
        super().__init__()
        self.weight = nn.Parameter(encoder.width**-0.5 * torch.randn(encoder.n_components, encoder.width))
        self.bias = nn.Parameter(torch.zeros(encoder.n_components))

    def loss(self, encoder: ComponentTokenNet, tokens: Tensor, values: Tensor, counted: Tensor) -> Tensor:
        """Returns the mean squared error over the counted components of each window, (B,).

        Args:
            tokens: The token that predicts each token, (B, To, G, D).
            values: Coded values, (B, To, C).
            counted: Which of them to predict, (B, To, C) bool.
        """
        prediction = (tokens[:, :, encoder.group] * self.weight).sum(-1) + self.bias
        error = (prediction - values).square() * counted
        return error.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


@part
class MaskedTokenPrediction(_TokenObjective):
    """Auxiliary loss that hides random tokens and predicts their components from the visible tokens.

    Args:
        fraction: Probability that a token is hidden.
        weight: Factor of the loss: the squared error of the coded values.

    References:
        Devlin et al. (2019), BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding,
        arXiv:1810.04805.
        Boige et al. (2024), PASTA: Pretrained Action-State Transformer Agents, arXiv:2307.10936 (C-BERT), whose values
        are classes.
    """

    fraction: Annotated[float, Above(0), AtMost(1)] = 0.15
    weight: float = 1.0

    captures = ()

    def loss(self, networks, policy, batch, rng, captured):
        net = policy.encoder
        assert isinstance(net, ComponentTokenNet)
        obs = policy.codec.encode_obs(policy.augment(batch.obs, rng))
        first = next(iter(obs.values()))
        hidden = torch.rand(*first.shape[:2], net.n_groups, generator=rng, device=first.device) < self.fraction
        encoded = net.encode(obs, hidden)
        counted = encoded.is_given & hidden[..., net.group]
        return self.weight * networks.readout.loss(net, encoded.tokens, encoded.values, counted)


@part
class NextTokenPrediction(_TokenObjective):
    """Auxiliary loss that predicts the components of each token from the token before it.

    The encoder must be causal. The first token of a window is not predicted.

    Args:
        weight: Factor of the loss: the squared error of the coded values.

    References:
        Radford et al. (2018), Improving Language Understanding by Generative Pre-Training.
        Boige et al. (2024), PASTA: Pretrained Action-State Transformer Agents, arXiv:2307.10936 (C-GPT), whose values
        are classes.
    """

    weight: float = 1.0

    captures = tuple(f"components.{name}" for name in EncodedComponents._fields)

    def networks(self, policy):
        networks = super().networks(policy)
        if not policy.config.encoder.causal:
            raise ConfigError("each token of the encoder reads those that it would predict",
                              where="NextTokenPrediction", hint="use ComponentTokenEncoder(causal=True)")
        return networks

    def loss(self, networks, policy, batch, rng, captured):
        net = policy.encoder
        assert isinstance(net, ComponentTokenNet)
        encoded = EncodedComponents(*(captured[name] for name in self.captures))
        before = encoded.tokens.flatten(1, 2).roll(1, 1).unflatten(1, encoded.tokens.shape[1:3])
        counted = encoded.is_given.clone()
        counted[:, 0] &= net.group > 0  # nothing comes before the first token
        return self.weight * networks.readout.loss(net, before, encoded.values, counted)


@method("Boige et al. 2024 (PASTA), arXiv 2307.10936, whose numbers are classes, and which pretrains on several "
        "robots", rows=("024",), needs=(NUMBERS, "only observations that are numbers"),
        when="if observations are many single numbers.")
def pasta(n_obs_steps: int = 4, width: int = 64, depth: int = 3, objective: Literal["masked", "next"] = "masked",
          adapt: Literal["all", "last_layer", "none"] = "all") -> Method:
    """Pretrained action-state transformer: one token per number, hidden numbers are predicted, then the actions.

    Args:
        objective: Predict hidden numbers ("masked"), or each from those before it ("next").
        adapt: What of the transformer learns with the policy: all, its last block, or nothing (probing).
    """
    encoder = ComponentTokenEncoder(width, depth, causal=objective == "next")
    policy = PolicyConfig(Regression(), FeedForward(), encoder, window=Window(n_obs_steps))
    loss = NextTokenPrediction() if objective == "next" else MaskedTokenPrediction()
    train = {"all": ("codec", "encoder"), "last_layer": (f"encoder.blocks.{depth - 1}", "encoder.norm"), "none": ()}
    adapted = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=train[adapt])
    first = Method(policy, learner=RepresentationLearning((loss,)), transforms=(LastAction(),))
    return replace(first, learner=BehaviorCloning(steps=5000, batch_size=256), stages=(Stage("encoder", first),),
                   initialize_from=(adapted,))
