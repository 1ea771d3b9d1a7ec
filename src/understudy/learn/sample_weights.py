"""Sample weights: how much each step of a batch counts in the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ..checkpoint import FromStage, Scorer
from ..core import Above, AtLeast, Batch, Below, ConfigError, Unsupported, UserError, part
from ..data.episode import Dataset
from ..heads.base import LikelihoodHead
from ..heads.likelihood.regression import Regression
from ..policy import Policy
from .optimizer import OptimizerConfig


class WeightFunction(ABC):
    """Function that weighs the steps of a batch in the loss.

    A weight function that is an `nn.Module` is saved and restored with the learner. A weight function that trains
    networks is a `LearnedWeightFunction`.
    """

    @abstractmethod
    def __call__(self, batch: Batch, policy: Policy) -> Tensor:
        """Returns the weights. No gradients are computed, and networks that are read are in evaluation mode.

        Args:
            batch: A batch, on the policy's device. `extra` has the columns that `SampleWeights.columns` names.
            policy: The policy that trains, with its newest weights.

        Returns:
            Weight of each window, (B,) or (B, 1), or of each step, (B, H). At least 0. Padded steps never count.
        """

    def fit(self, data: Dataset) -> None:
        """Computes what depends on the episodes that batches are drawn from. Does nothing by default.

        Called before the first update on these episodes, also when a training resumes.
        """

    def after_update(self, policy: Policy) -> None:
        """Updates copies that follow the policy with a lag, after each update. Does nothing by default."""


class LearnedWeightFunction(nn.Module, WeightFunction):
    """A weight function with networks that train next to the policy.

    In each update the learner first minimizes `loss` with respect to this module's parameters, then weighs the batch.
    """

    optimizer: OptimizerConfig

    @abstractmethod
    def loss(self, batch: Batch, policy: Policy, rng: Generator) -> Tensor:
        """Returns the loss of each window, (B,), or of each step, (B, H), not reduced.

        Args:
            policy: The policy that trains. Its weights receive no gradient.
            rng: Source of all randomness but dropout.
        """

    @abstractmethod
    def forward(self, batch: Batch, policy: Policy) -> Tensor:
        """Returns the weights of windows, (B,) or (B, 1), or steps, (B, H), at least 0: see `WeightFunction`."""


class SampleWeights(ABC):
    """Config of sample weights, which builds a weight function. Subclasses are frozen dataclasses.

    Attributes:
        columns: Columns that batches need in `extra`.
    """

    columns: tuple[str, ...] = ()

    @abstractmethod
    def build(self, policy: Policy, data: Dataset) -> WeightFunction:
        """Builds the weight function.

        Args:
            data: The training data, for statistics. What is computed from them must depend on the data alone, or be
                in the state of a module, because a resumed run builds the function again before it restores the
                learner.
        """


class FixedWeights(SampleWeights, WeightFunction):
    """Sample weights that depend on the batch alone. The config is the weight function."""

    def build(self, policy, data):
        return self


@dataclass(frozen=True)
class UniformWeights(FixedWeights):
    """Sample weights by which all steps count the same."""

    def __call__(self, batch, policy):
        return torch.ones(len(batch), device=batch.action.device)


@part
class ColumnWeights(FixedWeights):
    """Sample weights by the value of a column. In Sirius, for example, interventions count more.

    Args:
        column: A column with one number per step.
        weight: Weight of the steps where the column is above 0.
        other_weight: Weight of the other steps.
    """

    column: str = "intervention"
    weight: Annotated[float, AtLeast(0)] = 3.0
    other_weight: Annotated[float, AtLeast(0)] = 1.0

    @property
    def columns(self):
        return (self.column,)

    def __call__(self, batch, policy):
        if self.column not in batch.extra:
            raise UserError(f"the batch has no column {self.column!r} in extra; it has {', '.join(batch.extra)}",
                            where="ColumnWeights", hint=f"draw batches with extra=({self.column!r},)")
        value = batch.extra[self.column].reshape(*batch.mask.shape, -1)
        if value.shape[-1] != 1:
            raise UserError(f"the column has {value.shape[-1]} numbers per step, but a weight needs one",
                            where=f"column {self.column!r}", hint="name a column with one number per step")
        return torch.where(value[..., 0] > 0, self.weight, self.other_weight)


@part
class StoredWeights(FixedWeights):
    """Sample weights that are a column of the data, such as those of `ProgressWeights`.

    Args:
        column: A column with one number per step, at least 0.
    """

    column: str

    @property
    def columns(self):
        return (self.column,)

    def fit(self, data):
        for number, episode in enumerate(data):
            weights = np.asarray(episode.steps[self.column][:len(episode)])
            if weights.size != len(episode) or not (weights >= 0).all() or not np.isfinite(weights).all():
                raise UserError("a weight is one finite number per step, at least 0",
                                where=f"episode {number}, column {self.column!r}", hint="name a column of weights")

    def __call__(self, batch, policy):
        steps = batch.mask.shape[1]
        return batch.extra[self.column].reshape(-1, steps)[:, min(max(-policy.window.action_offset, 0), steps - 1)]


@part
class ClassBalancedWeights(SampleWeights):
    """Sample weights that give each class of steps a share of the total weight.

    The mean weight of all steps is 1.

    The weight of a class is its target share divided by its share of the steps. Shares that would be negative are 0.
    Classes without steps have no share, and the remaining shares are then scaled to a sum of 1.

    Args:
        targets: Target share of class 0, 1, and so on. None keeps its share of the steps, so that its weight is 1.
        remainder: The class that gets what remains of 1 after the targets of all other classes. Its own target does not
            count.
        column: The number of the class of each step.

    References:
        Liu et al. (2023), Robot Learning on the Job: Human-in-the-Loop Autonomy and Learning During Deployment,
        arXiv:2211.08416.
    """

    targets: Annotated[tuple[float | None, ...], AtLeast(0)]
    remainder: Annotated[int, AtLeast(0)]
    column: str = "intervention_class"

    def __post_init__(self):
        if self.remainder >= len(self.targets):
            raise ConfigError(f"class {self.remainder} is none of the {len(self.targets)} with a target",
                              where="ClassBalancedWeights.remainder", hint="give a target for each class, from 0 on")

    @property
    def columns(self):
        return (self.column,)

    def build(self, policy, data):
        return ClassBalancedWeightFunction(self)

    def of_classes(self, counts: np.ndarray) -> np.ndarray:
        """Returns the weight of each class, given its number of steps."""
        shares = counts / counts.sum()
        targets = np.array([share if target is None else target
                            for target, share in zip(self.targets, shares, strict=True)])
        targets[self.remainder] = max(1 - np.delete(targets, self.remainder).sum(), 0)
        targets = np.where(counts > 0, targets, 0)
        if not targets.sum():  # there are only steps of classes that count nothing
            return np.ones(len(counts))
        return np.divide(targets / targets.sum(), shares, out=np.zeros(len(counts)), where=counts > 0)


class ClassBalancedWeightFunction(WeightFunction):
    """The weight function that `ClassBalancedWeights` builds."""

    def __init__(self, config: ClassBalancedWeights):
        self.config, self.weights = config, torch.ones(len(config.targets))

    def fit(self, data):
        classes = np.concatenate([np.asarray(e.steps[self.config.column][:len(e)], np.int64).reshape(-1) for e in data])
        if classes.min() < 0 or classes.max() >= len(self.weights):
            raise UserError(f"there are classes from {classes.min()} to {classes.max()}, but those from 0 to "
                            f"{len(self.weights) - 1} have a target", where=f"column {self.config.column!r}",
                            hint="give ClassBalancedWeights.targets one for each class; None keeps its share")
        counts = np.bincount(classes, minlength=len(self.weights))
        self.weights = torch.from_numpy(self.config.of_classes(counts)).float()

    def __call__(self, batch, policy):
        classes = batch.extra[self.config.column].reshape(batch.mask.shape).long()
        return self.weights.to(classes.device)[classes]


@part
class PastTargetWeights(FixedWeights):
    """Sample weights of target steps before the current one, which `Window(action_offset)` below 0 adds.

    With uniform weights, the policy also learns to recall the actions that it has executed (past-token prediction).

    Args:
        weight: Weight of these steps. 0 trains the same network on the other steps alone.
        n_steps: Number of past steps, nearest to the current one, that have this weight. Earlier ones do not count.
            None for all.

    References:
        Torne et al. (2025), Learning Long-Context Diffusion Policies via Past-Token Prediction, arXiv:2505.09561.
    """

    weight: Annotated[float, AtLeast(0)] = 0.0
    n_steps: Annotated[int | None, AtLeast(0)] = None

    def __call__(self, batch, policy):
        step = torch.arange(batch.mask.shape[1], device=batch.mask.device) + policy.window.action_offset
        weight = torch.where(step < 0, self.weight, 1.0)
        if self.n_steps is not None:
            weight = weight * (step >= -self.n_steps)
        return weight.expand(batch.mask.shape)


@dataclass(frozen=True)
class CriticAdvantage:
    """Computes the advantage of stored actions by trained critics: their score minus the value of the observation.

    Args:
        critic: Scores plans.
        value: Scores observations.

    Example:
        >>> advantage = CriticAdvantage(FromStage("critic", "critic"), FromStage("critic", "value"))
        >>> weights = AdvantageWeights(advantage, beta=3.0)
    """

    critic: FromStage | Scorer
    value: FromStage | Scorer

    def __call__(self, batch: Batch) -> Tensor:
        return self._score("critic", batch) - self._score("value", batch)

    def _score(self, name: str, batch: Batch) -> Tensor:
        scorer = getattr(self, name)
        if not isinstance(scorer, Scorer):
            raise UserError(f"{type(scorer).__name__} scores nothing", where=f"CriticAdvantage.{name}",
                            hint="give FromStage(STAGE, MODULE) of a stage that trains critics, as iql does")
        return scorer(batch.obs, batch.action)


@part
class AdvantageWeights(FixedWeights):
    """Sample weights exp(beta * advantage), bounded above (advantage-weighted cloning).

    Args:
        advantage: Advantage of each window, (B,), in units of return: `CriticAdvantage` for the advantage by a stage's
            critic, or a function at the top of a module.
        beta: Inverse temperature.
        max_weight: Upper bound of a weight.

    References:
        Peng et al. (2019), Advantage-Weighted Regression, arXiv:1910.00177.
        Wang et al. (2020), Critic Regularized Regression, arXiv:2006.15134.
        Kostrikov et al. (2022), Offline Reinforcement Learning with Implicit Q-Learning, arXiv:2110.06169.
    """

    advantage: Callable[[Batch], Tensor]
    beta: float = 3.0
    max_weight: Annotated[float, Above(0)] = 100.0

    @torch.no_grad()
    def __call__(self, batch, policy):
        return (self.beta * self.advantage(batch)).exp().clamp(max=self.max_weight)


@part
class CurriculumWeights(SampleWeights, WeightFunction):
    """Sample weights by which a policy may ignore windows with large losses, which it cannot represent (a curriculum).

    The curriculum maximizes the expected log-likelihood of a window plus `temperature` times the entropy of the
    distribution over windows: a weight is proportional to ``exp(-loss / temperature)``. Where demonstrations go two
    ways and the policy can go only one, it settles on one of them, in place of their mean. This is Information
    Maximizing Curriculum with a single expert. Its mixture of experts is not here.

    Args:
        temperature: In units of the loss of the head, which is a mean over the steps of a chunk. Large values weigh all
            windows equally. Small ones also ignore windows that are merely not learned yet.

    References:
        Blessing et al. (2023), Information Maximizing Curriculum: A Curriculum-Based Approach for Imitating Diverse
        Skills, arXiv:2303.15349, whose code subtracts the largest log-likelihood of each window: a single expert then
        ignores nothing. Here a constant is subtracted, so that the ratio of two weights does not change.
    """

    temperature: Annotated[float, Above(0)] = 0.1

    def build(self, policy, data):
        head = policy.config.head
        if not (isinstance(head, LikelihoodHead) or (isinstance(head, Regression) and head.norm == "l2")):
            raise Unsupported(f"the loss of {type(head).__name__} is not a log-likelihood of a window",
                              where="CurriculumWeights", hint="use Regression() or a head with a density, such as GMM")
        return self

    def __call__(self, batch, policy):
        loss = loss_per_window(policy, batch)
        return ((loss.min() - loss) / self.temperature).exp()


@part
class TrimmedWeights(SampleWeights, WeightFunction):
    """Sample weights that are 0 for the windows with the largest losses of each batch (trimmed loss).

    Args:
        fraction: Fraction of the windows that do not count. It should be above the fraction of wrong windows.

    References:
        Rousseeuw (1984), Least Median of Squares Regression, Journal of the American Statistical Association 79.
    """

    fraction: Annotated[float, AtLeast(0), Below(1)] = 0.2

    def build(self, policy, data):
        return self

    def __call__(self, batch, policy):
        loss = loss_per_window(policy, batch)
        n_kept = len(loss) - int(self.fraction * len(loss))
        return torch.zeros_like(loss).index_fill(0, loss.argsort(stable=True)[:n_kept], 1.0)


def loss_per_window(policy: Policy, batch: Batch) -> Tensor:
    """Returns the mean loss of each window, (B,), with the same draws of noise in every update."""
    loss = policy.loss(batch, torch.Generator(batch.action.device).manual_seed(0)).sum(1)
    return loss / batch.mask.sum(1).clamp(min=1)
