from __future__ import annotations

import copy
from dataclasses import field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ...core import Above, AtLeast, Batch, Below, Context, HeadSpec, UserError, part
from ...data.episode import Dataset
from ...data.window import Windows
from ...heads.likelihood.regression import Regression
from ...learn.algorithm import Engine
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.fit import LearnerConfig
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import check_kinds, observed_column
from ...nets.feed_forward import FeedForward, feed_forward_layers
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS
from ..registry import method

LEAST_OVERFITTING = 1e-4  # a loss, below which differences are rounding


@part
class ColumnEncoder(Encoder):
    """Encoder with one token for each column of numbers, through layers of its own."""

    width: Annotated[int, AtLeast(1)] = 64
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (64,)

    def build(self, features, n_obs_steps):
        return _ColumnEncoderNet(self, features, n_obs_steps)


class _ColumnEncoderNet(EncoderNet):
    def __init__(self, config, features, n_obs_steps):
        super().__init__()
        check_kinds("ColumnEncoder", features, ("vector",), "Leave it out of inputs, or use TokenEncoder.")
        self.names, self.tokens, self.width = tuple(features), len(features), config.width
        self.token_obs_steps = (n_obs_steps - 1,) * self.tokens
        self.layers = nn.ModuleList(feed_forward_layers((n_obs_steps * f.size, *config.hidden, config.width))
                                    for f in features.values())

    def forward(self, obs, rng=None):
        columns = [observed_column(obs, name) for name in self.names]
        tokens = [layers(x.flatten(1).float()) for layers, (x, _) in zip(self.layers, columns, strict=True)]
        return Context(torch.stack(tokens, 1), torch.stack([present[:, -1] for _, present in columns], 1))


@part
class ColumnLosses(AuxiliaryLoss):
    """Auxiliary losses: the loss of the policy from each token of its encoder alone, by separate networks.

    Args:
        weights: One for each token, where the loss of the policy itself has the weight 1.
    """

    weights: tuple[float, ...]
    captures = ("context", "context_mask")

    def build(self, policy: Policy) -> _ColumnLosses:
        return _ColumnLosses(self, policy)


class _ColumnLosses(nn.Module):
    weights: Tensor

    def __init__(self, config: ColumnLosses, policy: Policy):
        super().__init__()
        if len(config.weights) != policy.encoder.tokens:
            raise UserError(f"there are {len(config.weights)} weights, but {policy.encoder.tokens} tokens",
                            where="ColumnLosses.weights", hint="give one weight for each token, as of ColumnEncoder")
        self.register_buffer("weights", torch.tensor(config.weights))
        spec = HeadSpec(policy.window.horizon, 1, policy.encoder.width, policy.codec.num_classes, policy.codec.bound,
                        policy.encoder.token_obs_steps[-1:], policy.window.action_start)
        self.nets = nn.ModuleList(policy.config.head.build(policy.config.trunk, policy.codec.width, spec)
                                  for _ in config.weights)

    def losses(self, policy: Policy, batch: Batch, rng, captured) -> Tensor:
        """Returns the mean loss of each window from each token, (B, N)."""
        context, action = Context(captured["context"], captured["context_mask"]), policy.encode_batch(batch)
        steps = torch.stack([policy.config.head.loss(
            net, Context(context.tokens[:, i:i + 1], context.mask[:, i:i + 1]), action, batch.mask, rng)
            for i, net in enumerate(self.nets)], -1)
        return (steps * batch.mask.unsqueeze(-1)).sum(1) / batch.mask.sum(1, keepdim=True).clamp(min=1)

    def forward(self, policy, batch, rng, captured):
        return (self.losses(policy, batch, rng, captured) * self.weights).sum(-1)


def blend_weights(training: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Computes the weights of parts of a network, (K,), from how much each learns and overfits.

    Args:
        training: Losses of each part before and after it was trained alone, (K, 2).
        held_out: The same of episodes that were held out.
    """
    gain = (held_out[:, 0] - held_out[:, 1]).clip(min=0)
    overfitting = np.diff(held_out - training, axis=1)[:, 0].clip(min=LEAST_OVERFITTING)
    weights = gain / overfitting**2
    return weights / weights.sum() if weights.sum() else np.full(len(gain), 1 / len(gain))


@part
class GradientBlend(LearnerConfig):
    """Behavior cloning with `ColumnLosses`, whose weights are estimated once, before the training.

    Each column, and then all of them together, train alone for a while from the weights that the policy begins with. A
    part of the episodes is held out for that alone.

    Args:
        estimation_steps: Updates of each part.
        held_out: Fraction of the episodes.

    References:
        Wang, Tran and Feiszli (2020), What Makes Training Multi-Modal Classification Networks Hard?, arXiv:1905.12681.
    """

    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    estimation_steps: Annotated[int, AtLeast(1)] = 500
    held_out: Annotated[float, Above(0), Below(1)] = 0.2

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> Engine:
        *columns, everything = self.estimate(policy, data, seed)
        weights = tuple(float(weight / max(everything, 1e-6)) for weight in columns)
        cloning = BehaviorCloning(steps, self.batch_size, self.optimizer,
                                  auxiliary_losses=(ColumnLosses(weights),))
        return cloning.build(policy, seed, steps, data)

    def estimate(self, policy: Policy, data: Dataset, seed: int) -> np.ndarray:
        """Estimates the weight of each token, and of all together, (N + 1,)."""
        n_held = max(1, round(self.held_out * len(data)))
        if n_held == len(data):
            raise UserError("there is one episode, and none to hold out", where="GradientBlend",
                            hint="train on two or more")
        order = np.random.default_rng(seed % 2**64).permutation(len(data)).tolist()
        held_out, training = (policy.windows(data.select(part)) for part in (order[:n_held], order[n_held:]))
        n_tokens = policy.encoder.tokens
        nets = nn.ModuleList([policy, ColumnLosses((0.0,) * n_tokens).build(policy).to(policy.device)])
        curves = np.array([self._curve(copy.deepcopy(nets), i, training, held_out, seed) for i in range(n_tokens + 1)])
        return blend_weights(curves[:, 0], curves[:, 1])

    def _curve(self, nets, index: int, training: Windows, held_out: Windows, seed: int) -> list[list[float]]:
        """Returns training and held-out losses of a part before and after it is trained: (2, 2)."""
        policy, columns = nets
        rng = torch.Generator(policy.device).manual_seed(seed)

        def loss(batch: Batch) -> Tensor:
            batch = batch.to(policy.device)
            context = policy.training_context(batch.obs, rng)
            if index == policy.encoder.tokens:
                steps = policy.loss_given_context(context, batch, rng)
                return (steps.sum(1) / batch.mask.sum(1).clamp(min=1)).mean()
            captured = {"context": context.tokens, "context_mask": context.mask}
            return columns.losses(policy, batch, rng, captured)[:, index].mean()

        @torch.no_grad()
        def mean(windows: Windows) -> float:
            return sum(loss(batch).item() * len(batch) for batch in windows.scan()) / len(windows)
        before = mean(training), mean(held_out)
        optimizer = self.optimizer.build(nets, self.estimation_steps, policy.device)
        for step in range(self.estimation_steps):
            optimizer.backward(loss(training.batch(self.batch_size, step, seed)))
            optimizer.clip_gradients()
            optimizer.step(step)
        return [list(pair) for pair in zip(before, (mean(training), mean(held_out)), strict=True)]


@method("Wang et al. 2020, arXiv 1905.12681, with weights that are estimated once (offline)", rows=("240",),
        needs=(NUMBERS, "only observations that are numbers"),
        when="if a policy reads several columns, of which one overfits sooner than the others.")
def g_blend(width: int = 64) -> Method:
    """Behavior cloning with a loss for each column, weighted by how much it learns for how much it overfits.

    Args:
        width: Width of each column's token.
    """
    policy = PolicyConfig(Regression(), FeedForward((64, 64)), ColumnEncoder(width))
    return Method(policy, learner=GradientBlend())
