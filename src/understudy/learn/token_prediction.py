"""Objectives that train a `ComponentTokenEncoder`: predict hidden tokens, or each token from those before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ..core import Batch, ConfigError, check_range
from ..nets.component_tokens import ComponentTokenNet, EncodedComponents
from ..policy import Policy
from .representation_objectives import RepresentationObjective


class _TokenObjective(RepresentationObjective):
    def build(self, policy):
        if not isinstance(policy.encoder, ComponentTokenNet):
            raise ConfigError(f"{type(policy.config.encoder).__name__} has no tokens of single numbers to predict",
                              where=type(self).__name__, hint="use a ComponentTokenEncoder")
        return self.build_loss(policy.encoder)

    @abstractmethod
    def build_loss(self, encoder: ComponentTokenNet) -> nn.Module:
        """Returns the module that computes the loss of each window."""


class _Readout(nn.Module):
    """Predicts each component from a token: of its own place or of another."""

    def __init__(self, encoder: ComponentTokenNet):
        super().__init__()
        self.weight = nn.Parameter(encoder.width**-0.5 * torch.randn(encoder.n_components, encoder.width))
        self.bias = nn.Parameter(torch.zeros(encoder.n_components))

    def loss(self, encoder: ComponentTokenNet, tokens: Tensor, values: Tensor, counted: Tensor) -> Tensor:
        """Mean squared error over the counted components of each window, (B,).

        Args:
            encoder: The encoder.
            tokens: The token that predicts each token, (B, To, G, D).
            values: Coded values, (B, To, C).
            counted: Which of them to predict, (B, To, C) bool.
        """
        prediction = (tokens[:, :, encoder.group] * self.weight).sum(-1) + self.bias
        error = (prediction - values).square() * counted
        return error.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


@dataclass(frozen=True)
class MaskedTokenPrediction(_TokenObjective):
    """Hides random tokens, all components of each, and predicts them from the others.

    Args:
        fraction: Probability that a token is hidden.
        weight: Factor of the loss: the squared error of the coded values.

    References:
        Devlin et al. (2019), BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding,
        arXiv:1810.04805.
        Boige et al. (2024), PASTA: Pretrained Action-State Transformer Agents, arXiv:2307.10936 (C-BERT), whose values
        are classes.
    """

    fraction: float = 0.15
    weight: float = 1.0

    captures = ()

    def __post_init__(self):
        check_range(self, "weight")
        check_range(self, "fraction", above=0, at_most=1)

    def build_loss(self, encoder):
        return _MaskedTokenLoss(self, encoder)


class _MaskedTokenLoss(nn.Module):
    def __init__(self, config: MaskedTokenPrediction, encoder: ComponentTokenNet):
        super().__init__()
        self.config, self.readout = config, _Readout(encoder)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        net = policy.encoder
        assert isinstance(net, ComponentTokenNet)
        obs = policy.codec.encode_obs(policy.augment(batch.obs, rng))
        first = next(iter(obs.values()))
        hidden = torch.rand(*first.shape[:2], net.n_groups, generator=rng, device=first.device) < self.config.fraction
        encoded = net.encode(obs, hidden)
        counted = encoded.given & hidden[..., net.group]
        return self.config.weight * self.readout.loss(net, encoded.tokens, encoded.values, counted)


@dataclass(frozen=True)
class NextTokenPrediction(_TokenObjective):
    """Predicts the components of each token from the token before it, which has read all earlier ones.

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

    def __post_init__(self):
        check_range(self, "weight")

    def build_loss(self, encoder):
        if not encoder.config.causal:
            raise ConfigError("each token of the encoder reads those that it would predict",
                              where="NextTokenPrediction", hint="use ComponentTokenEncoder(causal=True)")
        return _NextTokenLoss(self, encoder)


class _NextTokenLoss(nn.Module):
    def __init__(self, config: NextTokenPrediction, encoder: ComponentTokenNet):
        super().__init__()
        self.config, self.readout = config, _Readout(encoder)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        net = policy.encoder
        assert isinstance(net, ComponentTokenNet)
        encoded = EncodedComponents(*(captured[name] for name in self.config.captures))
        before = encoded.tokens.flatten(1, 2).roll(1, 1).unflatten(1, encoded.tokens.shape[1:3])
        counted = encoded.given.clone()
        counted[:, 0] &= net.group > 0  # nothing comes before the first token
        return self.config.weight * self.readout.loss(net, before, encoded.values, counted)
