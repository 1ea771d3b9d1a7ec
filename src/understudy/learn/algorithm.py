"""Base class of methods that learn by gradient descent, and the engine that trains any of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor, nn

from ..checkpoint import CheckpointModule
from ..core import Batch, ConfigError, unknown_name
from ..data.batch_sampler import BatchSampler
from ..data.episode import Dataset, Episode
from ..data.window import SamplingWeights
from ..nets.ema import EMADecay
from ..policy import Policy
from .fit import LearnerConfig
from .gradient_learner import GradientLearner
from .optimizer import OptimizerConfig
from .targets import ReturnBound

F = TypeVar("F", bound=Callable)


@dataclass(frozen=True)
class Net:
    """A network of a method, and how it is trained.

    Args:
        module: The network, or several parts as a tuple. Losses read it as `nets.NAME`. Networks that one optimizer
            trains and averages together are an `nn.ModuleDict`: losses read each by its own name, and a checkpoint
            stores each. Anything else that losses read is neither trained nor stored.
        optimizer: Optimizer of its weights. None for a network without weights or with frozen ones, whose losses are
            left out, or one that is only stored.
        target: Decay of a slowly updated copy, which losses read as `nets.target.NAME`. None for no copy.
        average: Decay of averaged weights, which act and are stored in place of the network's. Without a `target`,
            losses read them as `nets.target.NAME`. None for none.
        trained_with: Name of the network whose optimizer trains this one, too.
        stored: Whether checkpoints have it, for planners and later stages.
    """

    module: Any
    optimizer: OptimizerConfig | None = None
    target: float | EMADecay | None = None
    average: EMADecay | None = None
    trained_with: str | None = None
    stored: bool = True


class MetricBound(Protocol):
    """Check that raises `Diverged` if the mean of a logged value is beyond what it can be."""

    def check(self, value: float, batch: Batch, update: int, /) -> None: ...


class Updates(Protocol):
    """Interface of what makes the updates of an `Engine`, such as compiled graphs."""

    def update(self, batch: Batch) -> dict[str, float]: ...

    def read_state(self) -> None:
        """Reads weights and moments after the engine was restored."""


@dataclass(frozen=True)
class Step:
    """One part of a training update, which the decorators `prepare` and `loss` store on a function.

    Args:
        name: The function.
        of: Name of the network that the loss trains. None for `prepare`.
        weights, normalize, when, times: See `loss`.
        first: Whether the step is made before the steps of base classes.
    """

    name: str
    of: str | None = None
    weights: str | None = None
    normalize: Literal["weights", "rows"] = "weights"
    when: Callable[[Any, int, int], bool] | None = None
    times: str | None = None
    first: bool = False


def prepare(function: Any = None, *, when: Callable[[Any, int, int], bool] | None = None) -> Any:
    """Decorator of ``function(self, nets, batch, rng)``, which returns the batch with columns that later steps read.

    It is called without gradients. It may return a tuple of the batch and a dict of tensors, whose means are logged. It
    may update buffers of a network, such as running statistics, by what is the same in every process. Numbers drawn
    from `rng` differ between processes.

    Args:
        when: Whether it is due, as for `loss`.
    """
    if function is None:
        return partial(prepare, when=when)
    function.step = Step(function.__name__, when=when)
    return function


def loss(of: str, *, weights: str | None = None, normalize: Literal["weights", "rows"] = "weights",
         when: Callable[[Any, int, int], bool] | None = None, times: str | None = None) -> Callable[[F], F]:
    """Marks a method ``function(self, nets, batch, rng)`` as a loss, which an optimizer minimizes in each update.

    The function returns one number for each window, (B,), or for each step, (B, H), and never their mean. A tuple adds
    further terms, (B,) each, which are not weighted. A dict at its end has tensors whose means are logged. The function
    is pure: it reads its arguments and the fields of the method, and changes nothing.

    Args:
        of: Name of the network that it trains. No other network gets gradients.
        weights: Name of ``function(self, nets, batch, rng)``, the weights of windows, (B,), or of steps, (B, H). It is
            called without gradients, and the mean of its result is logged under its name. It may return None: then all
            count the same.
        normalize: What the weighted sum is divided by: see `GradientLearner.minimize`.
        when: ``when(method, n_updates, steps)`` says whether the step is due, given the numbers of updates made and of
            all that will be. None: in each update.
        times: Name of the field that says how many steps are made in each update. None: one.
    """
    def store(function: F) -> F:
        function.step = Step(function.__name__, of, weights, normalize, when, times)  # ty: ignore[missing-attribute]
        return function
    return store


def first(step: F) -> F:
    """Decorator above `loss` or `prepare` that makes this step come before the steps of base classes."""
    step.step = replace(step.step, first=True)  # ty: ignore[missing-attribute]
    return step


class Algorithm(LearnerConfig):
    """Base class of methods that learn by gradient descent: a frozen dataclass whose fields are the options.

    A subclass declares its networks, and steps: functions with the decorator `loss` or `prepare`. The method itself
    holds nothing that changes in training: `Engine` holds all of it.

    An update makes the steps in the order in which they are defined, with the steps of base classes first (but see
    `first`). A function that overrides a step of a base class is made in the place of that step. Without a decorator it
    keeps the decorator of the overridden step. A step is left out if the subclass sets its name to None.

    docs/own-method.md has an example, advantage-weighted regression.
    """

    @abstractmethod
    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        """Returns the networks by name, in the order in which they are built. "policy" is the one that acts."""

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        """Returns bounds of metrics that are checked after each update, by name, such as "critic/score"."""
        return {}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler | None:
        """Returns the sampler of batches. None for windows with the columns that the class attributes name."""
        return None

    def added_columns(self, policy: Policy) -> dict[str, Callable[[Episode], Episode]]:
        """Returns functions that add columns to episodes before they are sampled, by the names of the columns."""
        return {}

    def new_data(self, nets: Any, data: Dataset) -> None:
        """Called with the episodes that batches are drawn from, in each collection round and when training resumes."""

    def end_update(self, nets: Any) -> None:
        """Called at the end of each update, for parts that have a state of their own. It changes tensors in place."""

    @classmethod
    def steps_of_update(cls) -> list[Step]:
        """Returns the steps (preparations and losses) of an update in their order."""
        steps: dict[str, Step] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                if isinstance(step := getattr(value, "step", steps.get(name)), Step):
                    steps[name] = step
        return sorted((step for name, step in steps.items() if getattr(cls, name) is not None),
                      key=lambda step: not step.first)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> Engine:
        return Engine(self, policy, seed, steps, data)


class Engine(GradientLearner):
    """The learner that trains any `Algorithm`.

    Attributes:
        nets: The networks by name, as losses read them. `nets.target` has the slowly updated copies.
        captured: What makes the steps in place of the engine, if updates are captured (see `learn.captured`).
    """

    config: Algorithm

    def __init__(self, config: Algorithm, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        self.declared = config.networks(policy, data)
        self.register_networks(data)
        for name, net in self.declared.items():
            if net.target is not None:
                self.target_network(name, net.target)
            if net.average is not None:
                self.average_weights(name, net.average)
        networks = {**self.networks, **{name: net.module for name, net in self.declared.items()}}
        for net in self.declared.values():
            networks |= net.module if isinstance(net.module, nn.ModuleDict) else {}
        targets = {name: ema.module for name, ema in {**self.averages, **self.targets}.items()}
        self.nets = SimpleNamespace(**networks, target=SimpleNamespace(**targets))
        self.metric_bounds = config.bounds(policy, data)
        self._bounds = [bound for bound in self.metric_bounds.values() if isinstance(bound, ReturnBound)]
        self._check_steps()
        self._steps = [s for s in config.steps_of_update() if s.of is None or self.declared[s.of].optimizer is not None]
        self.captured: Updates | None = None
        trained = [step.of for step in self._steps if step.of is not None]
        if trained and "policy" not in trained:
            self.main = trained[0]

    def register_networks(self, data: Dataset) -> None:
        """Registers the networks that the method declares."""
        for name, net in self.declared.items():
            if net.trained_with is None and isinstance(net.module, nn.Module):
                others = [other.module for other in self.declared.values() if other.trained_with == name]
                parts = [part for other in others for part in (other if isinstance(other, tuple) else (other,))]
                self.register(name, net.module, net.optimizer,
                              auxiliary=[part for part in parts if isinstance(part, nn.Module)])

    def _check_steps(self) -> None:
        """Raises ConfigError if a step names a network or field that is missing, or a network without an optimizer."""
        for step in self.config.steps_of_update():
            place = f"{type(self.config).__name__}.{step.name}"
            if step.of is not None and step.of not in self.declared:
                raise unknown_name("network", step.of, self.declared, place, owner="the method",
                                   hint="name one of its `networks`")
            if step.of is not None and step.of not in self.optimizers and _has_weights(self.declared[step.of].module):
                raise ConfigError(f"the network {step.of!r} has weights, but no optimizer", where=place,
                                  hint="give Net an optimizer, or freeze the weights (requires_grad_(False))")
            for name in filter(None, (step.weights, step.times)):
                if getattr(self.config, name, None) is None:
                    raise ConfigError(f"the method has no {name!r}", where=place,
                                      hint="write a function or a field of this name")

    @property
    def batch_columns(self):
        return (*super().batch_columns, *self.config.added_columns(self.policy))

    def batch_sampler(self, data, sampling_weights=None):
        for add in self.config.added_columns(self.policy).values():
            data = data.map(add)
        sampler = self.config.sampler(self.policy, data, sampling_weights)
        if sampler is None:
            sampler = super().batch_sampler(data, sampling_weights)
        self.config.new_data(self.nets, data)
        return sampler

    @property
    def trained_policy(self) -> Policy:
        trained: Any = super().trained_policy
        return trained["policy"] if isinstance(trained, nn.ModuleDict) else trained

    @property
    def modules(self) -> dict[str, CheckpointModule]:
        modules: Any = {name: module for name, module in super().modules.items()
                        if name not in self.declared or self.declared[name].stored}
        together: Any = super().trained_policy
        return {**modules, **together} if isinstance(together, nn.ModuleDict) else modules

    def due_steps(self, n_updates: int) -> list[Step]:
        """Returns the steps of the update that follows `n_updates` others."""
        return [s for s in self._steps if s.when is None or s.when(self.config, n_updates, self.steps)]

    @property
    def n_calls(self) -> int:
        """Number of calls of `minimize` in this update so far."""
        return self._n_calls

    def restore(self, tensors, metadata):
        super().restore(tensors, metadata)
        if self.captured is not None:
            self.captured.read_state()

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        captured = {}
        if self.captured is None:
            batch = self.make_steps(batch)
        else:
            captured = self.captured.update(batch)
            self._check_metrics(captured)
        self.config.end_update(self.nets)
        metrics = {**self.end_update(moves_copies=self.captured is None), **captured}
        for name, bound in self.metric_bounds.items():
            if name in metrics:  # else its step was not due
                bound.check(metrics[name], batch, self.n_updates)
        return metrics

    def _check_metrics(self, metrics: dict[str, float]) -> None:
        """Raises Diverged if a loss or gradient of an update is not finite, and adds the learning rates."""
        for name, optimizer in self.optimizers.items():
            prefix = "" if name == self.main else f"{name}/"
            if f"{prefix}loss" in metrics:
                self._check_finite(optimizer, name, **{k: metrics[prefix + k] for k in ("loss", "gradient")})
                metrics[f"{prefix}rate"] = optimizer.rate(self.n_updates)

    def make_steps(self, batch: Batch) -> Batch:
        """Makes the steps of an update, and returns the batch with the columns that preparations have added."""
        rng = None
        for step in self.due_steps(self.n_updates):
            function, weights = getattr(self.config, step.name), None
            if (prepares := step.name if step.of is None else step.weights) is not None:
                if rng is None:  # all preparations of an update share it
                    rng = self.generator(self.processes.rank)
                with self.evaluation():
                    result, values = _divided(getattr(self.config, prepares)(self.nets, batch, rng))
                if step.of is None:
                    batch = result
                else:
                    weights, values = result, values if result is None else {prepares: result, **values}
                self._record(step.of or self.main, **{k: v.float().mean() for k, v in values.items()})
            if step.of is None:
                continue
            for _ in range(1 if step.times is None else getattr(self.config, step.times)):
                self.minimize(step.of, lambda part, rng, function=function: self._logged_terms(
                    function(self.nets, part, rng)), batch, weights, normalize=step.normalize)
        return batch

    def _logged_terms(self, result: Any) -> Any:
        terms, values = _divided(result)
        self.log(**values)
        return terms


def _has_weights(module: Any) -> bool:
    """Returns whether a network has weights that can be trained."""
    return isinstance(module, nn.Module) and any(p.requires_grad for p in module.parameters())


def _divided(result: Any) -> tuple[Any, dict[str, Tensor]]:
    """Splits what a step returned into the result and the dict of metrics at its end."""
    if not isinstance(result, tuple) or not isinstance(result[-1], dict):
        return result, {}
    *others, values = result
    return (others[0] if len(others) == 1 else tuple(others)), values
