"""Trains a method in memory, and the steps that it shares with `train`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from ..checkpoint import CheckpointModule, FromStage
from ..core import Unsupported, UserError
from ..data.episode import Dataset
from ..data.operations import Operation
from ..data.relabel import Relabel
from ..data.window import SamplingWeights
from ..execute.actor import Actor
from ..heads.base import MemoryHead
from ..policy import Policy
from . import devices
from .devices import Processes
from .fit import Callback, Learner, fit
from .method import InitializeFrom, Method, build_actor, find_references, load_modules, resolve_references
from .stages import check_stages, freeze, load_weights_from, packages_of


@dataclass(frozen=True)
class FitResult:
    """What `fit_method` trained.

    Attributes:
        method: The method, without references to stages in what acts and learns.
        modules: The trained modules by name, in evaluation mode. "policy" is the one that acts.
    """

    method: Method
    modules: Mapping[str, CheckpointModule]

    @property
    def policy(self) -> Policy:
        """`modules["policy"]`."""
        return self.modules["policy"]

    @property
    def actor(self) -> Actor:
        """The actor that the method deploys: see `method.build_actor`."""
        return build_actor(self.method, self.modules)


def fit_method(method: Method, data: Dataset, seed: int, *, stages: Mapping[str, FitResult | Path | str] | None = None,
               policy: Policy | None = None, sampling_weights: SamplingWeights | None = None,
               callbacks: Iterable[Callback] = (), device: str | torch.device = "cpu") -> FitResult:
    """Train a method in memory, on all of the data.

    The numbers are those of `understudy.train` with the same seed and without held-out episodes. No file is written.
    All processes of `torch.distributed` train one policy together.

    Args:
        method: The method. `method.learner.steps` updates are made. Its stages are trained first, with the same seed.
        data: Demonstrations. The method's transforms are applied first.
        seed: Seed of the first weights, the order of the data, noise and dropout.
        stages: Stages that are already trained, by name: results of `fit_method`, or folders of runs. They take the
            place of the stages of `method`.
        policy: Start from a copy of this policy, whose statistics stay as they are, instead of a new one.
        sampling_weights: How often each step starts a window.
        callbacks: Called after each update of the method itself.
        device: "cpu", "cuda", "mps" or "auto".

    Returns:
        The trained modules and the actor.

    Raises:
        Unsupported: The method collects data.
        UserError: A stage is missing, or the data do not fit the method.

    Example:
        >>> result = fit_method(method, data, seed=0)
        >>> evaluate(result.actor, make("fork", rows=50), episodes=100)
    """
    if method.collection is not None:
        raise Unsupported("fit_method learns from episodes that are there and collects none", where="Method.collection",
                          hint="leave it out")
    where = devices.choose_device(device)
    stages = dict(stages or {})
    check_stages(method, tuple(stages))
    for stage in method.stages:
        if stage.name not in stages:
            part = data.select(part_of(data, stage.dataset))
            earlier = sampling_weights if stage.dataset is None else None
            stages[stage.name] = fit_method(stage.method, part, seed, stages=stages, sampling_weights=earlier,
                                            device=where)
    known = _known_modules(method, stages, where)
    method = resolve_references(method, known)
    config, data = method.learner, apply_transforms(data, method.transforms)
    with devices.deterministic(where):
        with devices.seeded(seed, where):
            if policy is None:
                policy = Policy(method.policy, data.features()).to(where)
                fit_policy(policy, data, method.initialize_from, known)
            else:
                policy = copy.deepcopy(policy).requires_grad_(True).to(where)
            freeze(policy, method.initialize_from)
            learner = config.build(policy, seed, config.steps, data)
        sampler = learner.batch_sampler(data, sampling_weights)
        size, share = config.batch_size, Processes.current().row_slice(config.batch_size)
        fit(learner, lambda n: sampler.batch(size, n, seed, share), config.steps, callbacks=callbacks)
        return FitResult(method, {**learner.modules, "policy": acting_policy(learner, data)})


def _known_modules(method: Method, stages: Mapping[str, FitResult | Path | str],
                   device: torch.device) -> dict[FromStage, CheckpointModule]:
    """The module of each reference of a method."""
    modules: dict[str, Mapping[str, CheckpointModule]] = {}
    known = {}
    for reference in (*find_references(method), *(part.source for part in method.initialize_from)):
        stage = stages[reference.stage]
        if reference.stage not in modules:
            modules[reference.stage] = stage.modules if isinstance(stage, FitResult) else load_modules(
                stage, packages_of(method), device)
        if reference.module not in modules[reference.stage]:
            raise UserError(f"the stage {reference.stage!r} has no module {reference.module!r}; it has "
                            f"{', '.join(modules[reference.stage])}", where="FromStage",
                            hint="refer to a module that its learner trains")
        known[reference] = modules[reference.stage][reference.module]
    return known


def acting_policy(learner: Learner, data: Dataset) -> Policy:
    """The learner's policy, in evaluation mode and ready to act.

    A `MemoryHead` is filled again with what the trained encoder gives. The policy that trains is never changed: if it
    is the one that acts, or its memory has to be filled, a copy is returned.

    Args:
        learner: The learner.
        data: The training data, with the method's transforms applied.
    """
    policy = learner.trained_policy
    if isinstance(policy.config.head, MemoryHead):
        return copy.deepcopy(policy).fit_statistics(data, refit_codec=False).eval()
    return copy.deepcopy(policy).eval() if policy is learner.policy else policy.eval()


def apply_transforms(data: Dataset, transforms: Iterable[Relabel | Operation]) -> Dataset:
    """The episodes after a method's transforms, in order. Nothing is computed before a column is asked for."""
    for transform in transforms:
        data = transform.apply(data) if isinstance(transform, Operation) else data.map(transform)
    return data


def part_of(data: Dataset, name: str | None) -> list[int]:
    """The numbers of the episodes of one part of a mixture (see `data.mixture`); None for all.

    Raises:
        UserError: No episode is of this part.
    """
    if name is None:
        return list(range(len(data)))
    parts = [episode.metadata.get("dataset") for episode in data]
    if name not in parts:
        known = ", ".join(sorted({str(p) for p in parts if p is not None})) or "no named parts"
        raise UserError(f"the data have no part {name!r}; they have {known}", where="Stage.dataset",
                        hint="name the parts of a mixture: mix(demos=(data, 0.5), play=(more, 0.5))")
    return [i for i, part in enumerate(parts) if part == name]


def fit_policy(policy: Policy, data: Dataset, parts: Iterable[InitializeFrom] = (),
               known: Mapping[FromStage, CheckpointModule] = MappingProxyType({})) -> None:
    """Gives a new policy its statistics and its initial weights.

    Args:
        policy: The policy.
        data: The episodes it trains on.
        parts: What is taken over from stages. Everything else is fitted to the data.
        known: The stages' policies.

    Raises:
        UserError: A submodule does not exist, or is of another shape than the stage's.
    """
    loaded = {name for part in parts for name in part.load}
    keeps_data = isinstance(policy.config.head, MemoryHead)  # its memory is that of the new data
    load_weights_from(policy, parts, known)
    policy.fit_statistics(data, refit_codec="codec" not in loaded, refit_head=keeps_data or "net" not in loaded)
    if not keeps_data:
        load_weights_from(policy, parts, known)  # fitting the head may have replaced a part of its network
