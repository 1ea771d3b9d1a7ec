"""Trains a method in memory, and the steps that it shares with `train`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch

from ..checkpoint import CheckpointModule, FromStage
from ..core import Schema, Unsupported, UserError, as_seed, role
from ..data.episode import Dataset
from ..data.opening.stream import ShardStream
from ..data.packed_columns import check_steps
from ..data.window import SamplingWeights
from ..execute.actor import Actor
from ..execute.chunking import RecedingHorizon
from ..heads.base import MemoryHead
from ..policy import Policy
from . import devices
from .background_updates import update_meanwhile
from .data_collection import Training
from .devices import Processes
from .fit import Callback, Learner, fit
from .method import (
    InitializeFrom,
    Method,
    build_actor,
    build_planner,
    find_references,
    load_modules,
    resolve_references,
    training_data,
)
from .preflight import demonstration_findings, episode_findings, label_findings, padding_findings, tell
from .stages import build_learner, check_stage_columns, check_stages, load_weights_from, of_policy, packages_of
from .training_episodes import TrainingEpisodes

ROWS = 16  # of every batch that the networks see while episodes are collected or a checkpoint is scored


@dataclass(frozen=True)
class FitResult:
    """The result of `fit_method`: the trained modules, and the method.

    Attributes:
        method: The method, without references to stages in what acts and learns.
        modules: The trained modules by name, in evaluation mode. "policy" is the one that acts.
        features: The columns of the data before the method's transforms. None if they are not known.
    """

    method: Method
    modules: Mapping[str, CheckpointModule]
    features: Schema | None = None

    @property
    def policy(self) -> Policy:
        """`modules["policy"]`."""
        return cast(Policy, self.modules["policy"])

    @property
    def actor(self) -> Actor:
        """The actor that the method deploys: see `method.build_actor`."""
        return build_actor(self.method, self.modules, features=self.features)


def fit_method(method: Method, data: Dataset, seed: int, *, stages: Mapping[str, FitResult | Path | str] | None = None,
               env: Any = None, person: Actor | None = None, policy: Policy | None = None,
               sampling_weights: SamplingWeights | None = None, callbacks: Iterable[Callback] = (),
               device: str | torch.device = "cpu") -> FitResult:
    """Trains a method in memory, on all of the data.

    The weights equal the weights from `understudy.train` with the same seed and without held-out episodes. No file is
    written. All processes of `torch.distributed` train one policy together.

    Args:
        method: The method. `method.learner.steps` updates are made, or, if it collects episodes, as many as its rounds
            ask for. Its stages are trained first, with the same seed.
        data: Demonstrations. The method's transforms are applied first.
        seed: Seed of the first weights, the order of the data, noise and dropout.
        stages: Stages that are already trained, by name: results of `fit_method`, or folders of runs. They take the
            place of the stages of `method`.
        env: The environment (`understudy.envs.Env`) in which the method collects episodes.
        person: The actor through which a person takes part in collecting.
        policy: Start from a copy of this policy, whose statistics stay as they are, instead of a new one.
        sampling_weights: Relative rate at which each step starts a window.
        callbacks: Called after each update of the method itself.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        UserError: A stage or the environment is missing, or the data do not fit the method.

    Example:
        >>> result = fit_method(method, data, seed=0)
        >>> evaluate(result.actor, make("fork", rows=50), episodes=100)
    """
    check_arguments(method, data)
    seed = as_seed(seed, bits=63)
    check_collection(method, env, person, sampling_weights, existing_stages=tuple(stages or ()))
    check_steps(data)
    tell(demonstration_findings(method, data))
    chosen_device = devices.choose_device(device)
    stages = dict(stages or {})
    check_stages(method, tuple(stages))
    for stage in method.stages:
        if stage.name not in stages:
            part = data.select(part_of(data, stage.dataset))
            stage_weights = sampling_weights if stage.dataset is None else None
            stages[stage.name] = fit_method(stage.method, part, seed, stages=stages, env=env, person=person,
                                            sampling_weights=stage_weights, device=chosen_device)
    stage_modules = _referenced_modules(method, stages, chosen_device)
    check_stage_columns(method, stage_modules, data.features())
    method = resolve_references(method, stage_modules)
    recorded, data = data.features(), training_data(data, method)
    if policy is None:
        tell(episode_findings(method, TrainingEpisodes(data, data)))
    else:  # the given policy was made for such columns
        tell(padding_findings(method.policy.window, data))
        tell(label_findings(method, data, data.features()))

    def new_learner(first: Dataset) -> Learner:
        with devices.seeded(seed, chosen_device):
            if policy is None:
                trained = Policy(method.policy, data.features()).to(chosen_device)
                fit_policy(trained, first, method.initialize_from, stage_modules)
            else:
                # Built again, because an average has no gradients.
                trained = policy.with_head(policy.config.head).to(chosen_device)
            return build_learner(method, trained, seed, first, stage_modules)

    with devices.deterministic(chosen_device):
        loop = _MemoryTraining(method, data, seed, env, person, new_learner, tuple(callbacks), recorded)
        if method.collection is None:
            loop.build_learner(data)
            # A model of something else does not act, and who chose no executor may want the policy alone.
            if role(method.policy.target) == "action" and method.executor != RecedingHorizon():
                method.executor.check_planner(build_planner(method, loop.learner.modules))
            sampler = loop.learner.batch_sampler(loop.annotated(data), sampling_weights)
            loop.update(sampler, method.learner.steps)
        else:
            loop.build_learner(method.collection.initial_data(data))
            method.collection.run(loop)
        return FitResult(method, loop.modules(), recorded)


class MethodTraining(Training):
    """Base class of trainings of a method. A subclass says where results are stored.

    Attributes:
        recorded: The columns of the data before the method's transforms.
    """

    method: Method
    recorded: Schema

    def modules(self) -> dict[str, CheckpointModule]:
        """The modules of a checkpoint, by name."""
        return {**self.learner.modules, "policy": acting_policy(self.learner, self.data)}

    def actor(self, policy=None):
        features = self.recorded if self.env is None else self.env.features
        modules = self.modules() if policy is None else {**self.modules(), "policy": policy}
        return build_actor(self.method, modules, ROWS, features=features)

    def transform(self, episodes):
        return training_data(episodes, self.method)


class _MemoryTraining(MethodTraining):
    """Training of a method that writes no files."""

    folder = None

    def __init__(self, method: Method, data: Dataset, seed: int, env: Any, person: Actor | None,
                 build: Callable[[Dataset], Learner], callbacks: tuple[Callback, ...], recorded: Schema):
        self.method, self.data, self.seed, self.env, self.person = method, data, seed, env, person
        self.build, self.callbacks, self.n_updates, self.recorded = build, callbacks, 0, recorded
        self.processes = Processes.current()

    def restore(self):
        pass

    def build_learner(self, data):
        self.learner = self.build(data)

    def annotated(self, data):
        return self.learner.annotate(data, None)

    def update(self, sampler, until, *, evaluate=True, meanwhile=None):
        size = self.learner.config.batch_size
        share = self.processes.row_slice(size)
        if meanwhile is not None:
            update_meanwhile(self.learner, sampler, range(self.n_updates, until), self.seed, meanwhile, self.callbacks)
            self.n_updates = until
        fit(self.learner, lambda n: sampler.batch(size, n, self.seed, share), until, start=self.n_updates,
            callbacks=self.callbacks)
        self.n_updates = until

    def log(self, **metrics):
        for callback in self.callbacks:
            callback(self.n_updates, self.learner, metrics)


def check_arguments(method: Method, data: Dataset) -> None:
    """Checks that the arguments of a training are of the right kinds."""
    if not isinstance(method, Method):
        hint = (f"find_method({method!r}) of understudy.methods finds a method by its name" if isinstance(method, str)
                else "Method(config) makes a method of a PolicyConfig")
        raise UserError(f"the method is {_describe_kind(method)}, but must be a Method", where="method", hint=hint)
    if not isinstance(data, Dataset):
        hint = (f"open the data first: understudy.open_dataset({str(data)!r})" if isinstance(data, (str, Path))
                else "Dataset(episodes) makes a data set of a list of episodes")
        raise UserError(f"the data are {_describe_kind(data)}, but must be a Dataset", where="data", hint=hint)


def _describe_kind(value: object) -> str:
    """Describes in words what somebody gave, such as "the text 'bc'" or "a list"."""
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_collection(method: Method, env: Any, person: Actor | None, sampling_weights: SamplingWeights | None = None,
                     stream: ShardStream | None = None, existing_stages: Collection[str] = ()) -> None:
    """Checks that a method's data collection, and that of its stages, can be run.

    Args:
        stream: Where the data come from, if they are not opened as a whole.
        existing_stages: Names of the stages that are not trained.
    """
    for stage in method.stages:
        if stage.name not in existing_stages:
            check_collection(stage.method, env, person)
    if method.collection is None:
        return
    can_mix = (method.learner.compares or method.collection.sampling_weights is not None
               or method.stages and not method.collection.learns_first_data)
    if stream is not None or sampling_weights is not None and not can_mix:
        raise UserError("collected episodes cannot join " + ("a stream" if stream is not None else
                        "a mixture with sampling weights, such as that of --prior"), where="Method.collection",
                        hint="open the data as a whole" if stream is not None else
                             "give one data set: understudy merge DATA PRIOR --out VIEW. "
                             "--collection.mixture-weights sets the fractions of it and of collected episodes")
    if isinstance(method.policy.head, MemoryHead):
        raise Unsupported(f"{type(method.policy.head).__name__} keeps its training data, so it cannot learn from "
                          "episodes that are collected later", where="Method.collection",
                          hint="use a head that is trained")
    method.collection.check(env, person)


def _referenced_modules(method: Method, stages: Mapping[str, FitResult | Path | str],
                   device: torch.device) -> dict[FromStage, CheckpointModule]:
    """Returns the module for each reference of a method."""
    modules: dict[str, Mapping[str, CheckpointModule]] = {}
    referenced = {}
    for reference in (*find_references(method), *(part.source for part in method.initialize_from)):
        stage = stages[reference.stage]
        if reference.stage not in modules:
            modules[reference.stage] = stage.modules if isinstance(stage, FitResult) else load_modules(
                stage, packages_of(method), device)
        if reference.module not in modules[reference.stage]:
            raise UserError(f"the stage {reference.stage!r} has no module {reference.module!r}; it has "
                            f"{', '.join(modules[reference.stage])}", where="FromStage",
                            hint="refer to a module that its learner trains")
        referenced[reference] = modules[reference.stage][reference.module]
    return referenced


def acting_policy(learner: Learner, data: Dataset) -> Policy:
    """Returns the learner's policy, in evaluation mode and ready to act.

    A `MemoryHead` is filled again with what the trained encoder makes of `data`, which have the method's transforms.
    The policy that trains is never changed: if it is the one that acts, or its memory has to be filled, a copy is
    returned.
    """
    policy = learner.trained_policy
    if isinstance(policy.config.head, MemoryHead):
        return copy.deepcopy(policy).fit_statistics(data, refit_codec=False).eval()
    return copy.deepcopy(policy).eval() if policy is learner.policy else policy.eval()


def part_of(data: Dataset, name: str | None) -> list[int]:
    """Returns the indices of the episodes of one data set of a mixture (see `data.mixture`), or all for None."""
    if name is None:
        return list(range(len(data)))
    parts = [episode.metadata.get("dataset") for episode in data]
    if name not in parts:
        part_names = ", ".join(sorted({str(p) for p in parts if p is not None})) or "no named parts"
        raise UserError(f"the data have no part {name!r}; they have {part_names}", where="Stage.dataset",
                        hint="name the parts of a mixture: mix(demos=(data, 0.5), play=(more, 0.5)); understudy train "
                             "METHOD DATA --prior MORE names them task and prior")
    return [i for i, part in enumerate(parts) if part == name]


def fit_policy(policy: Policy, data: Dataset, parts: Iterable[InitializeFrom] = (),
               modules: Mapping[FromStage, CheckpointModule] = MappingProxyType({}), *, fit_head: bool = True) -> None:
    """Gives a new policy the weights that `parts` take over from stages, and fits everything else to the data.

    Args:
        fit_head: Whether to fit the head, such as cluster centers or a memory, and not the statistics alone.
    """
    loaded = {name for part in of_policy(parts) for name in part.load}
    keeps_data = isinstance(policy.config.head, MemoryHead)  # its memory has the new data
    load_weights_from(policy, parts, modules)
    policy.fit_statistics(data, refit_codec="codec" not in loaded,
                          refit_head=fit_head and (keeps_data or "net" not in loaded))
    if not keeps_data:
        load_weights_from(policy, parts, modules)  # fitting the head may have replaced a part of its network
