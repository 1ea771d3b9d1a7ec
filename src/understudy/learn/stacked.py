"""Trains a method with several seeds at once, as one batched network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core import Batch, UserError, key, replaced
from ..data.batch_sampler import join_batches
from ..data.episode import Dataset
from ..heads.base import MemoryHead
from .behavior_cloning import BehaviorCloning
from .critics.sac import SAC
from .critics.td3 import TD3
from .devices import Processes
from .fit import fit
from .fit_method import FitResult, acting_policy, fit_method, part_of
from .gradient_learner import GradientLearner, Weighting, _step_weights
from .method import Method
from .optimizer import OptimizerState
from .sample_weights import FixedWeights

MAX_WEIGHTS = 100_000  # trained weights of one seed; more are hardly faster in a batch (benchmarks/stacked_seeds.py)
TRIAL_UPDATES = 2  # made both ways before a training
TRIAL_TOLERANCE = 1e-4  # largest relative difference of losses and gradient norms in them


def fit_seeds(method: Method, data: Dataset | Sequence[Dataset], seeds: Sequence[int], *,
              stages: Sequence[Mapping[str, FitResult]] | None = None, env: Any = None,
              log: Callable[[str], None] = lambda text: None) -> tuple[FitResult, ...]:
    """Trains a method with several seeds on the CPU, at once where that is faster.

    The result of each seed is that of `fit_method` with that seed, except for rounding, which long trainings magnify:
    initial weights, order of the data, noise, gradient clipping and averaged weights are those of the seed.

    Networks of up to 100,000 weights train as one batched network. Five seeds take about two thirds of the time at
    width 64. Larger networks train one after the other, and so do methods that cannot be stacked (see
    `reason_against_stacking`), networks with dropout, and all whose first two updates do not give the same losses and
    gradient norms both ways.

    Args:
        method: The method. Its stages are trained first, with the same seeds.
        data: Demonstrations for all seeds, or a data set for each.
        seeds: Seeds, as `fit_method` uses them.
        stages: For each seed, stages that are already trained, by name.
        env: The environment in which the method collects episodes.
        log: Called with a sentence if the seeds are trained one after the other.

    Raises:
        UserError: There are not as many data sets as seeds, or `fit_method` raises it.

    Example:
        >>> results = fit_seeds(method, data, seeds=range(5))
        >>> rates = [evaluate(result.actor, make("fork", rows=50), episodes=100).success for result in results]
    """
    data_sets = (data,) * len(seeds) if isinstance(data, Dataset) else tuple(data)
    if len(data_sets) != len(seeds) or stages is not None and len(stages) != len(seeds):
        raise UserError(f"there are {len(seeds)} seeds, but {len(data_sets)} data sets and "
                        f"{len(seeds) if stages is None else len(stages)} sets of stages", where="fit_seeds",
                        hint="give one data set for all seeds, or one for each")
    stages_of_seeds = [dict(trained) for trained in stages or [{}] * len(seeds)]
    for stage in method.stages:
        if all(stage.name in trained for trained in stages_of_seeds):
            continue
        parts = [episodes.select(part_of(episodes, stage.dataset)) for episodes in data_sets]
        results = fit_seeds(stage.method, parts, seeds, stages=stages_of_seeds, env=env, log=log)
        for trained, result in zip(stages_of_seeds, results, strict=True):
            trained.setdefault(stage.name, result)
    trainings = list(zip(data_sets, seeds, stages_of_seeds, strict=True))
    reason = reason_against_stacking(method) if len(seeds) > 1 else "there is one seed"
    if reason is None:
        prepared = [_prepare(method, *training) for training in trainings]
        reason = _train_stacked(prepared)
        if reason is None:
            return tuple(training.result() for training in prepared)
    if len(seeds) > 1:
        log(f"The {len(seeds)} seeds are trained one after the other: {reason}.")
    return tuple(fit_method(method, episodes, seed, stages=trained, env=env) for episodes, seed, trained in trainings)


def reason_against_stacking(method: Method) -> str | None:
    """Why several seeds of a method cannot be trained as one batched network. None if they may be.

    They can where an update consists of losses of networks and of nothing else that reads them.
    """
    learner, head = method.learner, method.policy.head
    if method.collection is not None:
        return "the method collects episodes while it trains"
    if isinstance(head, MemoryHead):
        return f"{type(head).__name__} keeps its training data"
    if not isinstance(learner, (BehaviorCloning, TD3, SAC)):
        return f"{type(learner).__name__} reads networks outside of its losses"
    if isinstance(learner, BehaviorCloning) and not isinstance(learner.sample_weights, FixedWeights):
        return f"{type(learner.sample_weights).__name__} reads networks outside of the loss"
    if isinstance(learner, BehaviorCloning) and learner.auxiliary_losses:
        return "there are auxiliary losses"
    if isinstance(learner, (TD3, SAC)) and learner.reward is not None:
        return "there is a reward model"
    optimizers = (learner.optimizer, getattr(learner, "policy_optimizer", None) or learner.optimizer)
    if any(optimizer.accumulation_steps > 1 or optimizer.compile for optimizer in optimizers):
        return "batches are split, or networks compiled"
    if Processes.current().count > 1:
        return "several processes share the batches"
    return None


@dataclass(frozen=True)
class _Prepared:
    """A training of `fit_method` before its first update."""

    learner: GradientLearner
    batch: Callable[[int], Batch]
    steps: int
    untrained: FitResult
    data: Dataset

    def result(self) -> FitResult:
        """The result, once the learner has been trained."""
        modules = {**self.learner.modules, "policy": acting_policy(self.learner, self.data)}
        return FitResult(self.untrained.method, modules, self.untrained.features)


def _prepare(method: Method, data: Dataset, seed: int, stages: Mapping[str, FitResult]) -> _Prepared:
    calls: list[tuple[Any, Callable[[int], Batch], int]] = []

    def keep(learner, batch, steps, **options):
        calls.append((learner, batch, steps))
    with replaced({fit: keep}):
        untrained = fit_method(method, data, seed, stages=stages)
    learner, batch, steps = calls[0]
    return _Prepared(learner, batch, steps, untrained, data)


def _train_stacked(trainings: Sequence[_Prepared]) -> str | None:
    """Trains the learners as one batched network. Otherwise returns the reason, and no learner has changed."""
    learners = [training.learner for training in trainings]
    n_weights = sum(p.numel() for optimizer in learners[0].optimizers.values() for p in optimizer.parameters)
    if n_weights > MAX_WEIGHTS:
        return f"networks of {n_weights:,} weights are hardly faster in a batch"

    def batches(number: int) -> list[Batch]:
        return [training.batch(number) for training in trainings]
    alone, first_batches = copy.deepcopy(learners), [batches(n) for n in range(min(TRIAL_UPDATES, trainings[0].steps))]
    separate = [[learner.update(batch) for learner, batch in zip(alone, rows, strict=True)] for rows in first_batches]
    try:
        trial = _StackedLearner(copy.deepcopy(learners))
        together = [trial.update(rows) for rows in first_batches]
    except Exception as error:  # noqa: BLE001  (whatever it is, separate trainings do without it)
        return _cannot_batch(error)
    for metrics_alone, metrics in zip(separate, together, strict=True):
        for name, values in metrics.items():
            for i, value in enumerate(values):
                if not math.isclose(value, metrics_alone[i][name], rel_tol=TRIAL_TOLERANCE, abs_tol=1e-6):
                    return f"the {name} of seed {learners[i].seed} would be {value} instead of {metrics_alone[i][name]}"
    stacked = _StackedLearner(copy.deepcopy(learners))
    try:
        for number in range(trainings[0].steps):
            stacked.update(batches(number))
    except UserError:  # it diverges
        raise
    except Exception as error:  # noqa: BLE001  (a loss that the first updates did not have)
        return _cannot_batch(error)
    stacked.copy_to(learners)
    return None


def _cannot_batch(error: Exception) -> str:
    return f"PyTorch cannot batch the networks ({type(error).__name__}: {str(error).strip().splitlines()[0]})"


@dataclass(frozen=True)
class _Place:
    """Where a module keeps a parameter or a buffer, and the number of that tensor: modules may share one."""

    tensors_of_module: dict[str, Any]
    name: str
    number: int


def _places(learner: GradientLearner, *, averages: bool = True) -> tuple[list[_Place], list[Tensor]]:
    """The parameters and buffers of all networks of a learner, and where they are.

    Args:
        averages: Whether to include averaged weights, which losses do not read.
    """
    copies = [*learner.targets.values(), *(learner.averages.values() if averages else ())]
    networks = nn.ModuleList([*(n.trained for n in learner._networks.values()), *(copy.module for copy in copies)])
    numbers: dict[int, int] = {}
    tensors, places = [], []
    for module in networks.modules():
        for tensors_of_module in (module._parameters, module._buffers):
            for name, tensor in tensors_of_module.items():
                if tensor is not None:
                    if id(tensor) not in numbers:
                        numbers[id(tensor)] = len(tensors)
                        tensors.append(tensor)
                    places.append(_Place(tensors_of_module, name, numbers[id(tensor)]))
    return places, tensors


class _StackedLearner:
    """Learners of several seeds as one: each weight and buffer of the first gets an axis of seeds in front.

    Optimizer, averages and target networks work entry by entry, so that they need no change. Losses are computed with
    `vmap` over the seeds.

    Args:
        learners: They are used up.
    """

    def __init__(self, learners: Sequence[GradientLearner]):
        self.learners, self.first = learners, learners[0]
        self.tensors = _places(self.first)[1]
        self.read_places, self.read_tensors = _places(self.first, averages=False)
        tensors_of_seeds = [_places(learner)[1] for learner in learners]
        for tensor, *of_seeds in zip(self.tensors, *tensors_of_seeds, strict=True):
            tensor.data = torch.stack([t.detach() for t in of_seeds])
        vars(self.first)["minimize"] = self.minimize
        self.metrics: dict[str, list[float]] = {}

    def update(self, batches: Sequence[Batch]) -> dict[str, list[float]]:
        """Makes one update. Returns loss and gradient norm of each network, for each seed."""
        self.metrics = {}
        self.first.update(join_batches(batches))
        for learner in self.learners[1:]:
            learner.n_updates = self.first.n_updates
        return self.metrics

    def minimize(self, name: str, loss: Callable, batch: Batch, weights: Tensor | None = None, *,
                 normalize: str = "weights") -> None:
        """`GradientLearner.minimize` for all seeds, whose rows of the batch come one after the other."""
        first, optimizer, n_seeds = self.first, self.first._networks[name].optimizer, len(self.learners)
        assert optimizer is not None and normalize == "weights"
        noise_seeds = [key(learner.loss_key(first._n_calls), 0) for learner in self.learners]
        first._n_calls += 1
        step_weights = _step_weights(weights, batch)
        row_weights = step_weights.sum(1) / batch.mask.sum(1).clamp(min=1)
        step_weights, row_weights = (x.unflatten(0, (n_seeds, -1)) for x in (step_weights, row_weights))
        sums = torch.stack([step_weights.sum((1, 2)), row_weights.sum(1),
                            row_weights.new_full((n_seeds,), row_weights.shape[1])], 1)
        draws = _DrawsOfSeeds(noise_seeds)

        def loss_of_seed(seed_number, tensors, columns, row_weights, step_weights, sums):
            draws.seed_number, first._logged = seed_number, {}
            with self._networks_with(tensors):
                terms = loss(Batch(**columns), draws.rng)
            weighting = Weighting(step_weights, row_weights, *sums[:2].clamp(min=1e-8), sums[2])
            return weighting.reduce(name, terms, slice(None), tuple(step_weights.shape)), first._logged
        with draws, optimizer.autocast():
            values, logged = torch.func.vmap(loss_of_seed)(
                torch.arange(n_seeds), self.read_tensors, _columns_of(batch, n_seeds), row_weights, step_weights, sums)
        optimizer.backward(values.sum())
        norms = _clip_each(optimizer, n_seeds)
        losses = values.detach().tolist()
        first._check_finite(optimizer, name, loss=sum(losses), gradient=sum(norms))
        first._record(name, loss=sum(losses) / n_seeds, gradient=sum(norms) / n_seeds,
                      rate=optimizer.step(first.n_updates))
        first._record(name, **{k: (total.sum() / count.sum()).item() for k, (total, count) in logged.items()})
        prefix = "" if name == "policy" else f"{name}/"
        self.metrics |= {f"{prefix}loss": losses, f"{prefix}gradient": norms}

    @contextmanager
    def _networks_with(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """A context in which the networks that losses read have other tensors."""
        for place in self.read_places:
            place.tensors_of_module[place.name] = tensors[place.number]
        try:
            yield
        finally:
            for place in self.read_places:
                place.tensors_of_module[place.name] = self.read_tensors[place.number]

    def copy_to(self, learners: Sequence[GradientLearner]) -> None:
        """Gives learners the weights and buffers of their seeds."""
        with torch.no_grad():
            for i, learner in enumerate(learners):
                for tensor, stacked in zip(_places(learner)[1], self.tensors, strict=True):
                    tensor.copy_(stacked[i])


def _clip_each(optimizer: OptimizerState, n_seeds: int) -> list[float]:
    """Clips the gradient of each seed. Returns the norms before clipping."""
    gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
    if not gradients:
        return [0.0] * n_seeds
    norms = torch.cat([g.reshape(n_seeds, -1) for g in gradients], 1).norm(dim=1)
    limit = optimizer.config.grad_clip_norm
    if limit is not None and bool((norms > limit).any()):
        factors = (limit / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms.tolist()


def _columns_of(batch: Batch, n_seeds: int) -> dict[str, Any]:
    """The fields of a batch that are not empty, each with an axis of seeds in front."""
    def unflatten(value):
        return value.unflatten(0, (n_seeds, -1)) if isinstance(value, Tensor) else \
            {k: unflatten(v) for k, v in value.items()}
    return {f.name: unflatten(value) for f in fields(batch) if (value := getattr(batch, f.name)) is not None}


class _DrawsOfSeeds(TorchFunctionMode):
    """Within `vmap` over seeds, gives each seed the random numbers that its own generator would give it.

    Args:
        seeds: For each seed, that of its generator.

    Attributes:
        rng: Stands for the generators.
        seed_number: The number of the seed, whose axis `vmap` hides.
    """

    def __init__(self, seeds: Sequence[int]):
        self.rng, self.seed_number = Generator(), torch.zeros((), dtype=torch.int64)
        self.generators = [Generator().manual_seed(seed) for seed in seeds]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is nn.functional.linear:
            return _linear(*args, **kwargs)
        if kwargs.get("generator") is not self.rng:
            return function(*args, **kwargs)

        def draw(i: int, *tensors: Tensor) -> Tensor:
            tensors_of_seed = iter(tensors)
            own_args = [next(tensors_of_seed) if isinstance(a, Tensor) else a for a in args]
            return function(*own_args, **{**kwargs, "generator": self.generators[i]})
        return _Draw.apply(draw, self.seed_number, *(a for a in args if isinstance(a, Tensor)))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer as one product of matrices. That of PyTorch copies batched weights for each row of `x`."""
    product = torch.mm(x.reshape(-1, x.shape[-1]), weight.t()).view(*x.shape[:-1], -1)
    return product if bias is None else product + bias


class _Draw(torch.autograd.Function):
    """A random tensor of each seed."""

    @staticmethod
    def forward(draw, seed_number, *tensors):
        raise NotImplementedError("numbers are drawn within vmap alone")

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims, *args):
        def row(tensor, axis, i):
            return tensor if axis is None else tensor.select(axis, i)
        draw, _, *tensors = args
        return torch.stack([draw(i, *(row(t, axis, i) for t, axis in zip(tensors, in_dims[2:], strict=True)))
                            for i in range(info.batch_size)]), 0
