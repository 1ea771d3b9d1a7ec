"""Behavior cloning with any head: the weighted mean of the head's loss, plus auxiliary losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from itertools import chain
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ..core import AtLeast, Batch, Unsupported, UserError, part
from ..data.episode import Dataset
from ..data.window import ColumnSamplingWeights, SamplingWeights
from ..heads.base import TargetNetworkHead
from ..nets.base import capture_intermediates
from ..nets.ema import EMADecay, WarmupDecay
from ..policy import Policy
from .fit import LearnerConfig
from .gradient_learner import GradientLearner
from .optimizer import OptimizerConfig
from .sample_weights import FixedWeights, LearnedWeightFunction, SampleWeights, UniformWeights

AuxiliaryLossFunction = Callable[[Policy, Batch, Generator, Mapping[str, Tensor]], Tensor]
"""`function(policy, batch, rng, captured)` returns the loss of each window, (B,), not reduced. `captured` has the
activations of this forward pass that `AuxiliaryLoss.captures` names."""


class AuxiliaryLoss(ABC):
    """A frozen dataclass that builds a further term of the training loss, such as a regularizer.

    Attributes:
        captures: Names of activations that the function needs in `captured`. The networks offer them with
            `nets.base.record_intermediate`. Every policy records "context", the tokens of its encoder (B, N, D), and
            "context_mask", which of them are present (B, N).
        columns: Columns that the function needs in `Batch.extra`.
        next_obs: Whether the function needs `Batch.next`.
        reads_actions: Whether the function needs the actions of the batch.
        ordered_frames: Whether the function needs batches of `OrderedFrames`, which `RepresentationLearning` draws.
    """

    captures: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    next_obs: bool = False
    reads_actions: bool = False
    ordered_frames: bool = False

    @abstractmethod
    def build(self, policy: Policy) -> AuxiliaryLossFunction:
        """Returns the function. If it is a module, its parameters train with the policy, and its state is saved."""


class LaggedAuxiliaryLoss(nn.Module, ABC):
    """The function of an auxiliary loss that keeps a slowly updated copy of a part of the policy."""

    @abstractmethod
    def after_update(self, policy: Policy) -> None:
        """Updates the copy. Called after each update of the policy."""


def update_lagged(losses: Iterable[AuxiliaryLossFunction], policy: Policy) -> None:
    """Updates the copies of those functions that keep one: see `LaggedAuxiliaryLoss`."""
    for function in losses:
        if isinstance(function, LaggedAuxiliaryLoss):
            function.after_update(policy)


@part
class BehaviorCloning(LearnerConfig):
    """Minimize `sum(weight * loss) / sum(weight)` over the steps that are not padding, plus auxiliary losses.

    Args:
        ema: Decay of the averaged weights, which act. `ConstantDecay(0.0)` acts with the last weights.
        sampling_column: Column with the relative rate at which each step starts a window, such as `Retrieve` writes.
            It takes the place of the weights of a mixture. None draws all steps of each part equally often.
        auxiliary_losses: Further terms of the loss, averaged over the batch and added.
        n_noise_samples: Noise draws per encoded observation in one loss. More draws make the gradient of a denoising
            head less noisy, at little cost where the encoder is large (level-2 minibatches of Mini-Diffuser).
    """

    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))
    sample_weights: SampleWeights = field(default_factory=UniformWeights)
    sampling_column: str | None = None
    auxiliary_losses: tuple[AuxiliaryLoss, ...] = ()
    n_noise_samples: Annotated[int, AtLeast(1)] = 1

    @property
    def extra(self):
        columns = (self.sample_weights.columns, *(loss.columns for loss in self.auxiliary_losses))
        return tuple(dict.fromkeys(chain.from_iterable(columns)))

    @property
    def next_obs(self):
        return any(loss.next_obs for loss in self.auxiliary_losses)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> BehaviorCloningLearner:
        return BehaviorCloningLearner(self, policy, seed, steps, data)


class BehaviorCloningLearner(GradientLearner):
    """Learner of `BehaviorCloning`."""

    config: BehaviorCloning

    def __init__(self, config: BehaviorCloning, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        self.captures = {name: loss for loss in config.auxiliary_losses for name in loss.captures}
        if self.captures and config.optimizer.compile:
            name, loss = next(iter(self.captures.items()))
            raise Unsupported(f"{type(loss).__name__} captures {name!r}, and compiled networks offer no activations",
                              where="BehaviorCloning", hint="set optimizer.compile to False")
        self.auxiliary_losses = tuple(loss.build(policy) for loss in config.auxiliary_losses)
        self.register("policy", policy, config.optimizer,
                      auxiliary=[loss for loss in self.auxiliary_losses if isinstance(loss, nn.Module)])
        self.average_weights("policy", config.ema)
        head = policy.config.head
        self.target_policy = (self.target_network("policy", head.target_decay)
                              if isinstance(head, TargetNetworkHead) else None)
        self.sample_weights = config.sample_weights.build(policy, data)
        if isinstance(self.sample_weights, LearnedWeightFunction):
            self.register("weights", self.sample_weights, self.sample_weights.optimizer)
        elif isinstance(self.sample_weights, nn.Module):
            self.register("weights", self.sample_weights)

    def batch_sampler(self, data: Dataset, sampling_weights: SamplingWeights | None = None):
        column = self.config.sampling_column
        sampler = super().batch_sampler(data, sampling_weights if column is None else ColumnSamplingWeights(column))
        self.sample_weights.fit(data)
        return sampler

    def update(self, batch: Batch) -> dict[str, float]:
        batch, function = batch.to(self.device), self.sample_weights
        if isinstance(function, LearnedWeightFunction):
            self.minimize("weights", lambda part, rng: function.loss(part, self.policy, rng), batch)
        with torch.no_grad() if isinstance(function, FixedWeights) else self.evaluation():
            weights = function(batch, self.policy)
        self.minimize("policy", self.policy_loss, batch, weights)
        metrics = self.end_update()
        function.after_update(self.policy)
        update_lagged(self.auxiliary_losses, self.policy)
        return metrics

    def policy_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, ...]:
        """Returns the loss of the head, (B, H), then the loss of each auxiliary loss, (B,), not reduced."""
        with capture_intermediates(self.captures) as captured:
            loss = self.policy.loss(batch, rng, self.target_policy, self.config.n_noise_samples)
        for name, auxiliary_loss in self.captures.items():
            if name not in captured:
                raise UserError(f"{type(auxiliary_loss).__name__} needs the activation {name!r}, which this policy "
                                "does not record", where="BehaviorCloning",
                                hint="use networks that record it, or another auxiliary loss")
        return loss, *(f(self.policy, batch, rng, captured) for f in self.auxiliary_losses)
