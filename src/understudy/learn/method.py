"""A method: a whole experiment as one value, and the actor that it deploys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from .. import config
from ..checkpoint import (
    CheckpointModule,
    FromStage,
    find_checkpoint,
    is_lerobot_checkpoint,
    load_module,
    read_checkpoint_json,
)
from ..core import ConfigError, Feature, Schema, Unsupported, UserError
from ..data.column_changes import ColumnChange, EpisodeTransform, changed_features
from ..data.episode import Dataset
from ..data.operations import Operation
from ..execute.actor import Actor, PolicyActor, TransformedActor
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.planners import FixedBatch, PlannerWrapper
from ..execute.wrappers import ActionWrapper, SkillWrapper, WrappedActor, is_wrapped
from ..files import read_json
from ..heads.base import MemoryHead
from ..policy import Planner, Policy, PolicyConfig, camera_sizes, check_parts
from .behavior_cloning import BehaviorCloning
from .data_collection import DataCollection
from .fit import LearnerConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """A whole experiment. It is written to `method.json` in every checkpoint.

    Args:
        transforms: Changes of the episodes before training, in order. Each `ColumnChange` is also computed while
            acting.
        stages: Training runs that are finished before the method's own run starts, in order. Fields of a stage's
            method may refer to stages before it.
        inference: How the method plans: guidance, best of n, hierarchies. Applied in order to the policy, with
            `PlannerWrapper.over`.
        wrapper: What the policy's actions mean, if they are not actions of the environment. Recorded episodes are
            converted for training (`ActionWrapper.transform_episode`) after the operations of `transforms` and before
            the column changes that follow them. Episodes that were recorded in `WrappedEnv` stay as they are.

    Example:
        >>> base = Method(PolicyConfig(Flow()))
        >>> tuned = Method(base.policy, stages=(Stage("base", base),),
        ...                initialize_from=(InitializeFrom(FromStage("base"), train=("net",)),))
    """

    policy: PolicyConfig
    executor: Executor = field(default_factory=RecedingHorizon)
    learner: LearnerConfig = field(default_factory=BehaviorCloning)
    transforms: tuple[EpisodeTransform | Operation, ...] = ()
    stages: tuple[Stage, ...] = ()
    initialize_from: tuple[InitializeFrom, ...] = ()
    inference: tuple[PlannerWrapper, ...] = ()
    wrapper: ActionWrapper | None = None
    collection: DataCollection | None = None

    def __post_init__(self):
        check_parts(self, {
            "policy": PolicyConfig, "executor": Executor, "learner": LearnerConfig, "transforms": Sequence,
            "stages": Sequence, "initialize_from": Sequence, "inference": Sequence,
        }, "such as Method(PolicyConfig(Flow()), transforms=(LastAction(),))")

    @staticmethod
    def load(path: Path | str, trust: tuple[str, ...] = ()) -> Method:
        """Reads a method from a `method.json`, or from the folder of a checkpoint or a run, also one of LeRobot.

        Raises:
            UserError: The file is missing or damaged, or holds something else.
            UntrustedCode: It names code of a package that is not trusted.
        """
        path = Path(path)
        folder = None if path.is_file() else find_checkpoint(path)
        if folder is not None and is_lerobot_checkpoint(folder):
            from .lerobot_policies import read_method

            return Method(*read_method(folder))
        document = read_json(path) if folder is None else read_checkpoint_json(folder, "method.json")
        path = path if folder is None else folder / "method.json"
        method = config.load(document, ("understudy", *trust), str(path))
        if not isinstance(method, Method):
            raise UserError(f"the file holds a {type(method).__name__} instead of a Method", where=path,
                            hint="give a method.json as training writes it")
        return method


def with_steps(method: Method, steps: int, unchanged: Collection[str] = ()) -> Method:
    """Returns a method that makes another number of updates.

    The updates of its stages change by the same factor, but to no fewer than 1. If the method collects episodes, the
    updates before the first round change by this factor too, and the remaining updates are divided equally among the
    rounds.

    Args:
        steps: Number of updates of the method itself, or of its last stage if that trains it (`play-lmp`).
        unchanged: Names of the stages that keep their numbers, because they are not trained.
    """
    own, in_stage = method.learner.steps, is_trained_in_stage(method)
    default = method.stages[-1].method.learner.steps if in_stage else own
    scaled = _scale_steps(method, steps / default if default else 1.0, unchanged)
    return replace(scaled, learner=replace(method.learner, steps=own if in_stage else steps))


def is_trained_in_stage(method: Method) -> bool:
    """Returns whether a method trains nothing itself: its policy stays as a stage left it, or keeps the data."""
    is_kept = any({"encoder", "net"} <= {*part.load} - {*part.train} for part in method.initialize_from)
    return method.learner.steps == 1 and bool(method.stages) and (
        is_kept or isinstance(method.policy.head, MemoryHead))


def _scale_steps(method: Method, factor: float, unchanged: Collection[str]) -> Method:
    steps = method.learner.steps
    stages = tuple(stage if stage.name in unchanged else replace(stage, method=_scale_steps(stage.method, factor, ()))
                   for stage in method.stages)
    learner = replace(method.learner, steps=max(round(steps * factor), min(steps, 1)))
    collection = None if method.collection is None else method.collection.scaled(factor, learner.steps)
    return replace(method, learner=learner, stages=stages, collection=collection)


@dataclass(frozen=True)
class Stage:
    """A separate training run that is finished before the method's run starts.

    Args:
        name: Its name in `FromStage`. Its run is the folder RUN/stages/NAME.
        method: What it trains. Only its policy and other modules are used afterwards.
        dataset: The part of a mixture that it trains on; None for all data.
    """

    name: str
    method: Method
    dataset: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w-]*", self.name):
            raise UserError(f"a stage cannot be called {self.name!r}", where="Stage.name",
                            hint="its name is that of a folder: letters, digits, '_' and '-'")


@dataclass(frozen=True)
class InitializeFrom:
    """Initial weights of a policy, or of another module of the learner, from a stage.

    Args:
        source: The stage, and which of its modules.
        load: Submodules of the policy whose weights are taken over: "codec" (the statistics of the data), "encoder",
            "net", or one inside these, such as "encoder.maps". Statistics that are not loaded are fitted to new data.
        train: Submodules of the policy that are trained. What is loaded and not trained is frozen.
        frozen: Submodules of the submodules in `train` that are nevertheless not trained, such as "encoder.maps".
        into: Name of the module that receives the weights: "policy", or another module of the learner, such as
            "critic". A module other than the policy takes over all weights and statistics, and is trained further.
    """

    source: FromStage
    load: tuple[str, ...] = ("codec", "encoder", "net")
    train: tuple[str, ...] = ("codec", "encoder", "net")
    frozen: tuple[str, ...] = ()
    into: str = "policy"

    def __post_init__(self):
        parts = self.load, self.train, self.frozen
        if self.into != "policy" and parts != (InitializeFrom.load, InitializeFrom.train, InitializeFrom.frozen):
            raise ConfigError(f"parts to load or train are of the policy, but the weights are for {self.into!r}",
                              where="InitializeFrom", hint="leave load, train and frozen out: it takes all weights")


# -- references -----------------------------------------------------------------------------------------------------


ACTING = ("executor", "inference", "wrapper")  # the fields of a method that an actor is built from


def find_references(value: Any) -> Iterator[FromStage]:
    """Yields every `FromStage` in a value: see `find_parts`."""
    return find_parts(value, FromStage)


def find_parts(value: Any, kind: type[T]) -> Iterator[T]:
    """Yields every part of a kind in a value made of frozen dataclasses, tuples, lists and mappings.

    The fields `stages` and `initialize_from` of a method are skipped, because the methods of stages are resolved by
    themselves.
    """
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from find_parts(part, kind)
    elif isinstance(value, Mapping):
        yield from find_parts(tuple(value.values()), kind)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from find_parts(tuple(getattr(value, f.name) for f in _resolvable(value)), kind)


def resolve_references(method: T, modules: Mapping[FromStage, CheckpointModule]) -> T:
    """Replaces each `FromStage` in a method, or in a part of one, by the module that the stage trained.

    Args:
        method: A method with references. It stays as it is, and is what `method.json` holds.

    Returns:
        A method without references, except in `stages` and `initialize_from`.
    """
    return _resolved(method, modules)


def _resolved(value, modules):
    if isinstance(value, FromStage):
        if value not in modules:
            raise UserError(f"there is no module {value.module!r} of a stage {value.stage!r}", where="FromStage",
                            hint="refer to a stage of the method, and to a module that its learner trains")
        return modules[value]
    if isinstance(value, tuple):
        parts = tuple(_resolved(part, modules) for part in value)
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if isinstance(value, dict):
        return {k: _resolved(v, modules) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: new for f in _resolvable(value)
                   if (new := _resolved(old := getattr(value, f.name), modules)) is not old}
        return replace(value, **changes) if changes else value
    return value


def _resolvable(value):
    skipped = ("stages", "initialize_from") if isinstance(value, Method) else ()
    return [f for f in fields(value) if f.init and f.name not in skipped]


# -- loading ---------------------------------------------------------------------------------------------------------


def load_modules(run: Path | str, trust: tuple[str, ...] = (),
                 device: str | torch.device = "cpu") -> dict[str, CheckpointModule]:
    """Loads all modules of a run (last checkpoint; "RUN/best" for the best) or checkpoint, by name."""
    folder = find_checkpoint(run)
    return {name: _load_module(folder, name, trust, device) for name in module_names(folder)}


def module_names(checkpoint: Path) -> list[str]:
    """Returns the names of the modules of a checkpoint, the policy first."""
    return ["policy", *(p.name for p in sorted((checkpoint / "modules").glob("[!.]*")))]


def stage_folder(run: Path, name: str) -> Path:
    """Returns the folder of the run of a stage that the method of `run` names.

    If `run` is itself the run of a stage, stages that the enclosing run trained before are found too.
    """
    inside = run
    while not (folder := inside / "stages" / name).is_dir():
        if inside.parent.name != "stages":
            raise UserError(f"the run of the stage {name!r} is missing", where=run / "stages" / name,
                            hint="copy the whole folder of the run, its stages included")
        inside = inside.parent.parent
    return folder


def load_references(references: Iterable[FromStage], run: Path, trust: tuple[str, ...] = (),
                    device: str | torch.device = "cpu") -> dict[FromStage, CheckpointModule]:
    """Loads the modules that references stand for, in evaluation mode."""
    modules: dict[FromStage, CheckpointModule] = {}
    for reference in references:
        if reference not in modules:
            folder = find_checkpoint(stage_folder(run, reference.stage))
            modules[reference] = _load_module(folder, reference.module, trust, device)
    return modules


def _load_module(folder: Path, name: str, trust: tuple[str, ...], device) -> CheckpointModule:
    """Loads one module of a checkpoint by its name."""
    if name == "policy":
        if is_lerobot_checkpoint(folder):
            from .lerobot_policies import load_lerobot_policy

            return load_lerobot_policy(folder, device)
        return Policy.load(folder, trust, device)
    if not (path := folder / "modules" / name).is_dir():
        raise UserError(f"the checkpoint has no module {name!r}; it has {', '.join(module_names(folder))}",
                        where=folder, hint="refer to one of these")
    return load_module(path, trust, device)


# -- acting ---------------------------------------------------------------------------------------------------------


def build_planner(method: Method, modules: Mapping[str, CheckpointModule], rows: int | None = None) -> Planner:
    """Builds the planner that the executor of a method uses: the policy, possibly inside other planners.

    Args:
        method: A method without references (see `resolve_references`).
        modules: The modules of a checkpoint by name. "policy" must be a `Policy`.
        rows: The networks always see batches of this many rows, so that a plan does not depend on how many
            environments run side by side. None to plan for as many rows as there are.
    """
    planner: Planner = cast(Policy, modules["policy"])
    for part in method.inference:
        planner = part.over(planner, modules)
    return planner if rows is None else FixedBatch(planner, rows)


def build_actor(method: Method, modules: Mapping[str, CheckpointModule], rows: int | None = None, *,
                features: Schema | None = None) -> Actor:
    """Builds the actor that a method deploys. Training, evaluation, comparison and export all act through it.

    To learn in `WrappedEnv(env, method.wrapper)`, build the actor of ``replace(method, wrapper=None)``.

    Args:
        method: A method without references (see `resolve_references`).
        modules: The modules of a checkpoint by name. "policy" must be a `Policy`.
        rows: See `build_planner`. It also holds for the policies of the wrapper.
        features: The columns of the environment. Methods that pad actions (`ColumnPadding`) need them.
    """
    planner, policy = build_planner(method, modules, rows), modules["policy"]
    assert isinstance(policy, Policy)
    actor: Actor = PolicyActor(planner, method.executor, camera_sizes(planner.features))
    if changes := online_changes(method):
        for change in changes:
            change.check_online()
        env_features = {} if features is None else _wrapped_features(method, features)
        target = env_features.get(policy.config.target)
        size = None if target is None else target.size
        actor = TransformedActor(actor, tuple(changes), policy.target, size)
    if method.wrapper is None:
        return actor
    return WrappedActor(actor, method.wrapper if rows is None else _with_fixed_batches(method.wrapper, rows))


def _with_fixed_batches(wrapper: ActionWrapper, rows: int) -> ActionWrapper:
    """Wraps the policies of an action wrapper so that they get batches of a fixed size."""
    planners = {f.name: FixedBatch(value, rows) for f in fields(wrapper) if f.init
                and isinstance(value := getattr(wrapper, f.name), Planner)}
    return replace(wrapper, **planners)


def has_latent_actions(method: Method) -> bool:
    """Returns whether the policy chooses skills, such as latents or codes, which a low-level policy turns into actions.

    Its errors on recorded episodes are then errors of skills, and not of actions.
    """
    return isinstance(method.wrapper, SkillWrapper)


def policy_features(method: Method, features: Schema) -> dict[str, Feature]:
    """Returns the columns that the policy of a method sees of an environment, and those of its actions.

    The wrapper of the method must be without references.
    """
    return changed_features(_wrapped_features(method, features), online_changes(method))


def _wrapped_features(method: Method, features: Schema) -> dict[str, Feature]:
    """Returns the columns of an environment as the wrapper of a method shows them."""
    return dict(features if method.wrapper is None else method.wrapper.features(features))


def online_changes(method: Method) -> list[ColumnChange]:
    """Returns the column changes of a method that are computed while acting too, in order."""
    before = [part for part in method.transforms[: _last_operation(method)] if isinstance(part, ColumnChange)]
    if before and method.wrapper is not None:
        raise Unsupported(f"{type(before[0]).__name__} stands before an operation, so that it would change recorded "
                          f"episodes before {type(method.wrapper).__name__}, but what the policy observes after it",
                          where="Method.transforms", hint="put the column change after the last operation")
    return [part for part in method.transforms if isinstance(part, ColumnChange)]


def _last_operation(method: Method) -> int:
    """Returns the number of transforms of a method up to the last operation."""
    return max((i for i, part in enumerate(method.transforms) if isinstance(part, Operation)), default=-1) + 1


def training_data(data: Dataset, method: Method) -> Dataset:
    """Returns the episodes that the policy of a method is trained on.

    The operations of `method.transforms`, and the column changes before them, are applied first. The wrapper converts
    the episodes next, except episodes that were recorded in `WrappedEnv`. The remaining column changes are applied
    last. Without a wrapper, nothing is computed before a column is asked for.

    Args:
        data: Recorded episodes of the environment, or of `WrappedEnv`, as their metadata "env" says.
        method: A method without references in its wrapper and its transforms.
    """
    last = _last_operation(method)
    data = apply_transforms(data, method.transforms[:last])
    if method.wrapper is not None:
        online_changes(method)  # column changes must stand behind the wrapper
        data = Dataset([episode if is_wrapped(episode, method.wrapper) else method.wrapper.transform_episode(episode)
                        for episode in data], data.metadata)
    return apply_transforms(data, method.transforms[last:])


def without_made_episodes(method: Method) -> Method:
    """Returns the method without generated training episodes, so that a policy is judged on recorded ones."""
    kept = tuple(part for part in method.transforms if not (isinstance(part, Operation) and part.makes_episodes))
    return method if kept == method.transforms else replace(method, transforms=kept)


def apply_transforms(data: Dataset, transforms: Iterable[EpisodeTransform | Operation]) -> Dataset:
    """Applies operations and column changes to episodes, in order. The episodes given are not changed."""
    for transform in transforms:
        data = transform.apply(data) if isinstance(transform, Operation) else data.map(transform)
    return data


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, loaded from a checkpoint, ready to plan and to act.

    Args:
        method: The method. What acting takes of it has no references left.
    """

    method: Method
    modules: Mapping[str, CheckpointModule]

    @staticmethod
    def load(run: Path | str, trust: tuple[str, ...] = (), device: str | torch.device = "cpu", *,
             transforms: bool = False) -> TrainedRun:
        """Loads a run's checkpoint, and from its stages what acting needs.

        Args:
            run: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's.
            transforms: Also read what `training_data` needs of the stages.
        """
        folder = find_checkpoint(run)
        method = Method.load(folder, trust)
        needed = [part for part in method.transforms if transforms or isinstance(part, ColumnChange)]
        acting = {name: getattr(method, name) for name in ACTING}
        references = find_references((*acting.values(), tuple(needed)))
        home = folder.parents[1] if folder.parent.name == "checkpoints" else folder
        modules = load_references(references, home, trust, device)
        changes = {name: _resolved(value, modules) for name, value in acting.items()}
        changes["transforms"] = tuple(_resolved(part, modules) if part in needed else part
                                      for part in method.transforms)
        return TrainedRun(replace(method, **changes), load_modules(folder, trust, device))

    @property
    def policy(self) -> Policy:
        """The trained policy, the module "policy"."""
        policy = self.modules["policy"]
        assert isinstance(policy, Policy)
        return policy

    def planner(self) -> Planner:
        """The planner of the method with the trained modules: see `build_planner`."""
        return build_planner(self.method, self.modules)

    def actor(self, rows: int | None = None, *, features: Schema | None = None) -> Actor:
        """The actor that the method deploys: see `build_actor`."""
        return build_actor(self.method, self.modules, rows, features=features)


def load_policy(run: Path | str, *, device: str | torch.device = "cpu", trust: tuple[str, ...] = ()) -> Policy:
    """Loads the policy of a run or checkpoint, without its executor.

    Args:
        run: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's. LeRobot's ACT and
            Diffusion Policy are read as well: the folder of a run (its last checkpoint), or `pretrained_model`.

    Raises:
        UserError: A file is missing or damaged.
        Unsupported: LeRobot policies of this kind cannot be loaded.
        UntrustedCode: A file names code of a package that is not trusted.
    """
    policy = _load_module(find_checkpoint(run), "policy", trust, device)
    assert isinstance(policy, Policy)
    return policy


def load_actor(run: Path | str, *, device: str | torch.device = "cpu", rows: int | None = None,
               trust: tuple[str, ...] = (), features: Schema | None = None) -> Actor:
    """Loads the actor of a run or checkpoint. Use it as ``state = a.start(obs, key)``, then ``action, state =
    a.act(obs, state)``.

    Args:
        run: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's. LeRobot's ACT and
            Diffusion Policy are read as well: see `load_policy`.
        rows: The networks always see batches of this many rows, so that results do not depend on how many environments
            run side by side. None for one robot, where that would cost time.
        features: The columns of the environment (`env.features`). Methods that pad actions need them.

    Raises:
        UserError: A file is missing or damaged.
        UntrustedCode: A file names code of a package that is not trusted.
    """
    return TrainedRun.load(run, trust, device).actor(rows, features=features)
