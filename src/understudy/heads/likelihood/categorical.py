"""Categorical head: a distribution over classes for each component of each step."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import AtLeast, ConfigError, Context, Schema, UserError, part
from ...data.one_hot import map_components
from ...nets.feed_forward import feed_forward_layers
from ...nets.quantile_layer import QuantileLayer
from ..base import Head, LikelihoodHead, TemperatureHead, gumbel_noise


@part
class Categorical(LikelihoodHead, TemperatureHead):
    """Head for discrete targets, which the codec gives as one-hot vectors side by side.

    Steps are independent given the observation.

    Args:
        temperature: 0 plans the most likely class, 1 samples from the distribution, as the largest sum of logit and
            Gumbel noise.
        autoregressive: True predicts each component, such as a symbol of a code, from the components before it, so that
            components are drawn jointly. False treats them as independent.
        width: Width of the layers that join the components, or the levels. For `autoregressive` and `draw_levels`.
        n_quantiles: Number of outputs for each logit. The logit is the mean of its outputs. More than 1 for learners of
            values, as in `dqn`: the outputs become quantiles of the return.
        draw_levels: Learn the quantiles at levels that are drawn for each sample (IQN), instead of at equally spaced
            levels. The logits still use equally spaced levels.

    References:
        Gumbel (1954), Statistical Theory of Extreme Values and Some Practical Applications.
        Dabney et al. (2018), Implicit Quantile Networks for Distributional Reinforcement Learning, arXiv:1806.06923.
    """

    temperature: Annotated[float, AtLeast(0)] = 0.0
    autoregressive: bool = False
    width: Annotated[int, AtLeast(1)] = 64
    n_quantiles: Annotated[int, AtLeast(1)] = 1
    draw_levels: bool = False

    def __post_init__(self):
        if self.draw_levels and (self.n_quantiles == 1 or self.autoregressive):
            raise ConfigError("levels are those of quantiles of independent components",
                              where="Categorical.draw_levels",
                              hint="learn more quantiles, such as n_quantiles=32, with autoregressive=False")

    def build(self, trunk, coded_dim, spec):
        if not spec.num_classes:
            raise UserError("the Categorical head needs a discrete target, but this one is continuous",
                            where="Categorical", hint="use a head for continuous targets (Regression, GMM, "
                            "Diffusion, ...), or mark the target's Feature as kind=\"discrete\"")
        outputs = self.width if self.draw_levels else self.n_quantiles * (
            self.width if self.autoregressive else coded_dim)
        return _CategoricalNet(trunk.build(0, outputs, 0, spec), spec.num_classes, self)

    def loss(self, net, context, action, mask, rng):
        """Returns the cross-entropy of each step, (B, H)."""
        outputs = self.logits(net, context, action[..., :0])
        if net.layers is not None:
            before = [sum(net.num_classes[:i]) for i in range(len(net.num_classes))]
            outputs = torch.cat([layer(torch.cat([outputs, action[..., :n]], -1))
                                 for layer, n in zip(net.layers, before, strict=True)], -1)
        return -(map_components(_log_softmax, outputs, net.num_classes) * action).sum(-1)

    def sample(self, net, context, noise):
        outputs, gumbel = self.logits(net, context, noise[..., :0]), self.temperature * gumbel_noise(noise)
        if net.layers is None:
            return map_components(_most_likely, outputs + gumbel, net.num_classes).to(noise.dtype)
        chosen = noise[..., :0]
        for layer, drawn in zip(net.layers, gumbel.split(net.num_classes, -1), strict=True):
            score = layer(torch.cat([outputs, chosen], -1)) + drawn
            chosen = torch.cat([chosen, _most_likely(score).to(noise.dtype)], -1)
        return chosen

    def entropy(self, net, context, noise):
        if net.layers is not None:  # the sum over all combinations is too long
            return super().entropy(net, context, noise)
        log_probs = map_components(_log_softmax, self.logits(net, context, noise[..., :0]), net.num_classes)
        return -(log_probs.exp() * log_probs).sum(-1)

    def logits(self, net, context: Context, like: Tensor) -> Tensor:
        """Returns the logits of the classes of all components, side by side, (B, H, A).

        Args:
            like: A tensor whose first axes are (B, H), and whose last axis is empty.
        """
        return self.quantiles(net, context, like).mean(0)

    def quantiles(self, net, context: Context, like: Tensor, levels: Tensor | None = None) -> Tensor:
        """Returns the quantiles whose means are the `logits`, (n_quantiles, B, H, A).

        Args:
            levels: Levels of the quantiles, (B, n_quantiles), of a head that `draw_levels`. None: equally spaced.
        """
        return self.split_quantiles(net, net.trunk(like, like, context), levels)

    def split_quantiles(self, net, outputs: Tensor, levels: Tensor | None) -> Tensor:
        """Reshapes outputs of the trunk, (B, H, ...), to quantiles, (n_quantiles, B, H, A)."""
        if not self.draw_levels:
            return outputs.unflatten(-1, (-1, self.n_quantiles)).movedim(-1, 0)
        return net.quantile_layer(outputs.relu(), None if levels is None else levels.unsqueeze(1)).movedim(-2, 0)


def choose_head(features: Schema | None, numbers: Head, classes: Head | None = None) -> Head:
    """Returns the head that suits the actions: `classes` if they are classes, otherwise `numbers`.

    Args:
        features: The columns of the data. None if they are not known yet.
        classes: None for `Categorical`.
    """
    action = (features or {}).get("action")
    return (classes or Categorical()) if action is not None and action.kind == "discrete" else numbers


def _log_softmax(logits):
    return logits.log_softmax(-1)


def _most_likely(score):
    return F.one_hot(score.argmax(-1), score.shape[-1])


class _CategoricalNet(torch.nn.Module):
    def __init__(self, trunk, num_classes, config: Categorical):
        super().__init__()
        self.trunk, self.num_classes = trunk, tuple(num_classes)
        self.layers = torch.nn.ModuleList(
            feed_forward_layers((config.width + sum(num_classes[:i]), config.width, n), "silu")
            for i, n in enumerate(num_classes)) if config.autoregressive else None
        if config.draw_levels:
            self.quantile_layer = QuantileLayer(config.width, sum(num_classes), config.n_quantiles)
