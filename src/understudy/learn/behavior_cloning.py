"""Behavior cloning with any head: minimizes the weighted mean of the head's loss, plus auxiliary losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from itertools import chain
from typing import Annotated, Any

from torch import Generator, Tensor, nn

from ..core import AtLeast, Batch, Unsupported, UserError, part
from ..data.batch_sampler import BatchSampler
from ..data.episode import Dataset
from ..data.window import ColumnSamplingWeights, SamplingWeights
from ..heads.base import TargetNetworkHead
from ..nets.base import capture_intermediates
from ..nets.ema import EMADecay, WarmupDecay
from ..policy import Policy
from .algorithm import Algorithm, Net, loss
from .optimizer import OptimizerConfig
from .sample_weights import LearnedWeightFunction, SampleWeights, UniformWeights

AuxiliaryLossFunction = Callable[[Policy, Batch, Generator, Mapping[str, Tensor]], Tensor]
"""`function(policy, batch, rng, captured)` returns the loss of each window, (B,), not reduced. `captured` has the
activations of this forward pass that `AuxiliaryLoss.captures` names."""


class AuxiliaryLoss(ABC):
    """Config that builds a further term of the training loss, such as a regularizer. A frozen dataclass.

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
        """Builds the loss function. If it is a module, it is trained with the policy, and its state is saved."""

    def build_for(self, policy: Policy, data: Dataset) -> AuxiliaryLossFunction:
        """Builds the loss function for a training on these episodes, from which it may read further columns."""
        return self.build(policy)


class LaggedAuxiliaryLoss(nn.Module, ABC):
    """Base class of auxiliary losses that keep a slowly updated copy of a part of the policy."""

    @abstractmethod
    def after_update(self, policy: Policy) -> None:
        """Updates the copy. Called after each update of the policy."""


def update_lagged(losses: Iterable[AuxiliaryLossFunction], policy: Policy) -> None:
    """Updates the slowly updated copies that auxiliary losses keep: see `LaggedAuxiliaryLoss`."""
    for function in losses:
        if isinstance(function, LaggedAuxiliaryLoss):
            function.after_update(policy)


@part
class BehaviorCloning(Algorithm):
    """Behavior cloning: minimizes the weighted loss of the policy's head over all steps, plus auxiliary losses.

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

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if self.optimizer.compile and (readers := [loss for loss in self.auxiliary_losses if loss.captures]):
            raise Unsupported(f"{type(readers[0]).__name__} captures {readers[0].captures[0]!r}, and compiled networks "
                              "offer no activations", where="BehaviorCloning",
                              hint="set optimizer.compile to False")
        losses = tuple(loss.build_for(policy, data) for loss in self.auxiliary_losses)
        head, weights = policy.config.head, self.sample_weights.build(policy, data)
        return {"policy": Net(policy, self.optimizer, average=self.ema,
                              target=head.target_decay if isinstance(head, TargetNetworkHead) else None),
                "auxiliary_losses": Net(losses, trained_with="policy"),
                "weights": Net(weights, weights.optimizer if isinstance(weights, LearnedWeightFunction) else None)}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler | None:
        if self.sampling_column is None:
            return None
        return policy.training_windows(data, extra=self.extra, next_obs=self.next_obs,
                                       sampling_weights=ColumnSamplingWeights(self.sampling_column))

    def new_data(self, nets: Any, data: Dataset) -> None:
        nets.weights.fit(data)

    def end_update(self, nets: Any) -> None:
        nets.weights.after_update(nets.policy)
        update_lagged(nets.auxiliary_losses, nets.policy)

    @loss("weights")
    def weights_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of learned sample weights."""
        return nets.weights.loss(batch, nets.policy, rng)

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> Tensor | None:
        """Returns the sample weights of windows or steps. None if all count the same."""
        return None if isinstance(nets.weights, UniformWeights) else nets.weights(batch, nets.policy)

    @loss("policy", weights="weight")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, ...]:
        """Returns the loss of the head, (B, H), then the loss of each auxiliary loss, (B,), not reduced."""
        captures = {name: loss for loss in self.auxiliary_losses for name in loss.captures}
        target = nets.target.policy if isinstance(nets.policy.config.head, TargetNetworkHead) else None
        with capture_intermediates(captures) as captured:
            loss = nets.policy.loss(batch, rng, target, self.n_noise_samples)
        for name, auxiliary_loss in captures.items():
            if name not in captured:
                raise UserError(f"{type(auxiliary_loss).__name__} needs the activation {name!r}, which this policy "
                                "does not record", where="BehaviorCloning",
                                hint="use networks that record it, or another auxiliary loss")
        return loss, *(f(nets.policy, batch, rng, captured) for f in nets.auxiliary_losses)
