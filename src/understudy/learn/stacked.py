"""Trains a method with several seeds at once, which is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..core import Batch, Unsupported, UserError, replaced
from ..data.episode import Dataset
from ..heads.base import MemoryHead
from .algorithm import Algorithm, Engine
from .behavior_cloning import BehaviorCloning
from .fit import fit
from .fit_method import FitResult, acting_policy, fit_method, part_of
from .gradient_learner import GradientLearner
from .method import Method
from .rewards.reward_models import RewardedConfig
from .sample_weights import FixedWeights
from .stacked_updates import StackedUpdates

MAX_WEIGHTS = 100_000  # trained weights of one seed; more are hardly faster in a batch (benchmarks/stacked_seeds.py)
MIN_UPDATES = 500  # fewer take less time than to capture one, which are some seconds


def fit_seeds(method: Method, data: Dataset | Sequence[Dataset], seeds: Sequence[int], *,
              stages: Sequence[Mapping[str, FitResult]] | None = None, env: Any = None, compile: bool = False,
              log: Callable[[str], None] = lambda text: None) -> tuple[FitResult, ...]:
    """Trains a method with several seeds on the CPU, at once where that is faster.

    Each seed has the result of `fit_method` with this seed, except for rounding, which long trainings magnify. Initial
    weights, order of the data, noise, gradient clipping and averaged weights are the same as in `fit_method`.

    The updates of all seeds are one graph if `train --compile` can compile updates of the method (see
    `StackedUpdates`). Five seeds of `iql` with networks of width 64 then take three fifths of the time, and compiled a
    quarter.

    The seeds are trained one after another if the networks have more than 100,000 weights and are not compiled, if
    there are less than 500 updates, if the method has a reward model or collects episodes, or if its updates cannot be
    captured or computed at once.

    Args:
        method: The method. Its stages are trained first, with the same seeds.
        data: Demonstrations for all seeds, or a data set for each.
        seeds: Seeds, as `fit_method` uses them.
        stages: For each seed, stages that are already trained, by name.
        env: The environment in which the method collects episodes.
        compile: Whether PyTorch compiles the graph of the seeds, which takes about 30 seconds of `iql` and pays from
            about 6,000 updates on. It needs a C++ compiler.
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
        results = fit_seeds(stage.method, parts, seeds, stages=stages_of_seeds, env=env, compile=compile, log=log)
        for trained, result in zip(stages_of_seeds, results, strict=True):
            trained.setdefault(stage.name, result)
    trainings = list(zip(data_sets, seeds, stages_of_seeds, strict=True))
    reason = reason_against_stacking(method) if len(seeds) > 1 else "there is one seed"
    if reason is None:
        prepared = [prepare_training(method, *training) for training in trainings]
        reason = _train_at_once(prepared, compile)
        if reason is None:
            return tuple(training.result() for training in prepared)
    if len(seeds) > 1:
        log(f"The {len(seeds)} seeds are trained one after the other: {reason}.")
    return tuple(fit_method(method, episodes, seed, stages=trained, env=env) for episodes, seed, trained in trainings)


def reason_against_stacking(method: Method) -> str | None:
    """Returns why several seeds of a method cannot be trained at once, or not faster. None if they may be."""
    learner, head = method.learner, method.policy.head
    if method.collection is not None:
        return "the method collects episodes while it trains"
    if isinstance(head, MemoryHead):
        return f"{type(head).__name__} keeps its training data"
    if not isinstance(learner, Algorithm):
        return f"{type(learner).__name__} is not an `Algorithm`"
    if isinstance(learner, RewardedConfig) and learner.reward is not None:
        return "there is a reward model"
    if type(learner).end_update is not Algorithm.end_update and not _ends_without_change(learner):
        return "what an update changes at its end, such as sample weights, is not in its graph"
    if learner.steps < MIN_UPDATES:
        return f"fewer than {MIN_UPDATES} updates take less time than to capture one"
    return None


def _ends_without_change(learner: Algorithm) -> bool:
    """Returns whether this is cloning with fixed sample weights and without further losses."""
    return isinstance(learner, BehaviorCloning) and type(learner).end_update is BehaviorCloning.end_update \
        and isinstance(learner.sample_weights, FixedWeights) and not learner.auxiliary_losses


@dataclass(frozen=True)
class _Prepared:
    """A training of `fit_method` that is prepared up to its first update."""

    learner: GradientLearner
    batch: Callable[[int], Batch]
    steps: int
    untrained: FitResult
    data: Dataset

    def result(self) -> FitResult:
        """Returns the result, once the learner has been trained."""
        modules = {**self.learner.modules, "policy": acting_policy(self.learner, self.data)}
        return FitResult(self.untrained.method, modules, self.untrained.features)


def prepare_training(method: Method, data: Dataset, seed: int, stages: Mapping[str, FitResult]) -> _Prepared:
    """Does what `fit_method` does before the first update."""
    calls: list[tuple[Any, Callable[[int], Batch], int]] = []

    def keep(learner, batch, steps, **options):
        calls.append((learner, batch, steps))
    with replaced({fit: keep}):
        untrained = fit_method(method, data, seed, stages=stages)
    learner, batch, steps = calls[0]
    return _Prepared(learner, batch, steps, untrained, data)


def _train_at_once(trainings: Sequence[_Prepared], compile: bool) -> str | None:
    """Trains several learners by common graphs. Otherwise returns the reason why it cannot."""
    if not compile and (reason := _too_large(trainings[0].learner)):
        return reason
    try:
        updates = StackedUpdates([cast(Engine, training.learner) for training in trainings], compiled=compile)
        for number in range(trainings[0].steps):
            updates.update([training.batch(number) for training in trainings])
    except Unsupported as error:
        return error.problem
    updates.write_state()
    return None


def _too_large(learner: GradientLearner) -> str | None:
    n_weights = sum(p.numel() for optimizer in learner.optimizers.values() for p in optimizer.parameters)
    return f"networks of {n_weights:,} weights are hardly faster in a batch" if n_weights > MAX_WEIGHTS else None
