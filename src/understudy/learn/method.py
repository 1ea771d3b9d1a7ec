"""A whole experiment as one value, and the actor that it deploys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from .. import config
from ..checkpoint import CheckpointModule, FromStage, load_module
from ..core import UserError
from ..data.operations import Operation
from ..data.relabel import Relabel
from ..execute.actor import Actor, PolicyActor
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.planner_config import PlannerConfig
from ..execute.planners import FixedBatch
from ..execute.wrappers import ActionWrapper
from ..files import read_json
from ..policy import Planner, Policy, PolicyConfig, camera_sizes, find_checkpoint, read_checkpoint_json
from .behavior_cloning import BehaviorCloning
from .data_collection import DataCollection
from .fit import LearnerConfig


@dataclass(frozen=True)
class Method:
    """A whole experiment. It is written to `method.json` in every checkpoint.

    Args:
        policy: The policy's parts.
        executor: How plans become actions.
        learner: How the policy learns.
        transforms: Changes of the episodes before training, in order.
        stages: Training runs that are finished before the method's own run starts, in order. Fields of a stage's
            method may refer to stages before it.
        initialize_from: Initial weights from stages.
        inference: How the method plans: guidance, best of n, hierarchies. Applied in order to the policy.
        wrapper: What the policy's actions mean, where they are not those of the environment.
        collection: How new episodes are collected while the policy trains.

    Example:
        >>> base = Method(PolicyConfig(Flow()))
        >>> tuned = Method(base.policy, stages=(Stage("base", base),),
        ...                initialize_from=(InitializeFrom(FromStage("base"), train=("net",)),))
    """

    policy: PolicyConfig
    executor: Executor = field(default_factory=RecedingHorizon)
    learner: LearnerConfig = field(default_factory=BehaviorCloning)
    transforms: tuple[Relabel | Operation, ...] = ()
    stages: tuple[Stage, ...] = ()
    initialize_from: tuple[InitializeFrom, ...] = ()
    inference: tuple[PlannerConfig, ...] = ()
    wrapper: ActionWrapper | None = None
    collection: DataCollection | None = None

    @staticmethod
    def load(path: Path | str, trust: tuple[str, ...] = ()) -> Method:
        """Reads a method from a `method.json`, or from the folder of a checkpoint or a run.

        Args:
            path: The file or folder.
            trust: Packages besides understudy whose code may be loaded.

        Raises:
            UserError: The file is missing or damaged, or holds something else.
            UntrustedCode: It names code of a package that is not trusted.
        """
        path = Path(path)
        folder = None if path.is_file() else find_checkpoint(path)
        found = read_json(path) if folder is None else read_checkpoint_json(folder, "method.json")
        path = path if folder is None else folder / "method.json"
        method = config.load(found, ("understudy", *trust), str(path))
        if not isinstance(method, Method):
            raise UserError(f"expected a Method, found {type(method).__name__}", where=path,
                            hint="give a method.json as training writes it")
        return method


@dataclass(frozen=True)
class Stage:
    """A training run of its own that is finished before the method's run starts.

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
    """Initial weights of a policy from a stage. Submodules that are not in `train` are frozen.

    Args:
        source: The stage, and which of its policies.
        load: Submodules whose weights are taken over: "codec" (the statistics of the data), "encoder", "net", or one
            inside these, such as "encoder.maps". Statistics that are not loaded are fitted to the new data.
        train: Submodules that stay trainable.
    """

    source: FromStage
    load: tuple[str, ...] = ("codec", "encoder", "net")
    train: tuple[str, ...] = ("codec", "encoder", "net")


# -- references -----------------------------------------------------------------------------------------------------


ACTING = ("executor", "inference", "wrapper")  # the fields of a method that an actor is built from


def find_references(value: Any) -> Iterator[FromStage]:
    """Every `FromStage` in a value made of frozen dataclasses, tuples and dicts. Of a method, those in its stages and
    in `initialize_from` are left out: the stages' methods are resolved by themselves."""
    if isinstance(value, FromStage):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from find_references(part)
    elif isinstance(value, Mapping):
        yield from find_references(tuple(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from find_references(tuple(getattr(value, f.name) for f in _resolvable(value)))


def resolve_references(method: Method, modules: Mapping[FromStage, CheckpointModule]) -> Method:
    """Replaces each `FromStage` in a method by the module that the stage trained.

    Args:
        method: A method with references. It stays as it is, and is what `method.json` holds.
        modules: The module of each reference.

    Returns:
        A method without references, except in `stages` and `initialize_from`.

    Raises:
        UserError: A reference has no module.
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
    """All modules of a checkpoint by name, in evaluation mode.

    Args:
        run: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's.
        trust: Packages besides understudy whose code may be loaded.
        device: Where the weights go.

    Raises:
        UserError: A file is missing or damaged.
        UntrustedCode: A module is code of a package that is not trusted.
    """
    folder = find_checkpoint(run)
    names = ["policy", *(p.name for p in sorted((folder / "modules").glob("[!.]*")))]
    return {name: _load_module(folder, name, trust, device) for name in names}


def stage_folder(run: Path, name: str) -> Path:
    """The run of a stage: of the run's own stages, or, where the run is a stage itself, one that was trained before it.

    Raises:
        UserError: There is no such run.
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
    """The modules that references stand for, in evaluation mode.

    Args:
        references: References of the run's method.
        run: The run's folder.
        trust: Packages besides understudy whose code may be loaded.
        device: Where the weights go.

    Raises:
        UserError: A stage is missing, or has no such module.
    """
    found: dict[FromStage, CheckpointModule] = {}
    for reference in references:
        if reference not in found:
            folder = find_checkpoint(stage_folder(run, reference.stage))
            found[reference] = _load_module(folder, reference.module, trust, device)
    return found


def _load_module(folder: Path, name: str, trust: tuple[str, ...], device) -> CheckpointModule:
    """One module of a checkpoint by its name."""
    if name == "policy":
        return Policy.load(folder, trust, device)
    if not (path := folder / "modules" / name).is_dir():
        names = ["policy", *(p.name for p in sorted((folder / "modules").glob("*")))]
        raise UserError(f"the checkpoint has no module {name!r}; it has {', '.join(names)}", where=folder,
                        hint="refer to one of these")
    return load_module(path, trust, device)


# -- acting ---------------------------------------------------------------------------------------------------------


def build_planner(method: Method, modules: Mapping[str, CheckpointModule], rows: int | None = None) -> Planner:
    """Builds what the executor of a method asks for plans.

    Args:
        method: A method without references (see `resolve_references`).
        modules: The modules of a checkpoint by name. "policy" must be a `Policy`.
        rows: The networks always see batches of this many rows, so that a plan does not depend on how many
            environments run side by side. None to plan for as many rows as there are.
    """
    planner: Planner = cast(Policy, modules["policy"])
    for part in method.inference:
        planner = part.build(planner, modules)
    return planner if rows is None else FixedBatch(planner, rows)


def build_actor(method: Method, modules: Mapping[str, CheckpointModule], rows: int | None = None) -> Actor:
    """Builds the actor that a method deploys. Training, evaluation, comparison and export all act through it.

    Args:
        method: A method without references (see `resolve_references`).
        modules: The modules of a checkpoint by name. "policy" must be a `Policy`.
        rows: See `build_planner`.
    """
    planner = build_planner(method, modules, rows)
    return PolicyActor(planner, method.executor, camera_sizes(planner.features))


@dataclass(frozen=True)
class TrainedRun:
    """What a checkpoint holds, ready to plan and to act.

    Args:
        method: The method. What acting takes of it has no references left.
        modules: The checkpoint's modules by name.
    """

    method: Method
    modules: Mapping[str, CheckpointModule]

    @staticmethod
    def load(run: Path | str, trust: tuple[str, ...] = (), device: str | torch.device = "cpu") -> TrainedRun:
        """Reads a run's checkpoint, and of its stages what acting needs.

        Args:
            run: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's.
            trust: Packages besides understudy whose code may be loaded.
            device: Where the weights go.

        Raises:
            UserError: A file is missing or damaged.
            UntrustedCode: It names code of a package that is not trusted.
        """
        folder = find_checkpoint(run)
        method = Method.load(folder, trust)
        acting = {name: getattr(method, name) for name in ACTING}
        references = find_references(tuple(acting.values()))
        home = folder.parents[1] if folder.parent.name == "checkpoints" else folder
        known = load_references(references, home, trust, device)
        resolved = replace(method, **{name: _resolved(value, known) for name, value in acting.items()})
        return TrainedRun(resolved, load_modules(folder, trust, device))

    def planner(self, rows: int | None = None) -> Planner:
        """See `build_planner`."""
        return build_planner(self.method, self.modules, rows)

    def actor(self, rows: int | None = None) -> Actor:
        """See `build_actor`."""
        return build_actor(self.method, self.modules, rows)


def load_actor(run: Path | str, *, device: str | torch.device = "cpu", rows: int | None = None,
          trust: tuple[str, ...] = ()) -> Actor:
    """What was trained, ready to act: `state = a.start(obs, key)`, then `action, state = a.act(obs, state)`.

    Args:
        run: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's.
        device: Where to compute.
        rows: The networks always see batches of this many rows, so that results do not depend on how many environments
            run side by side. None for one robot, where that would cost time.
        trust: Packages besides understudy whose code may be loaded.

    Raises:
        UserError: A file is missing or damaged.
        UntrustedCode: It names code of a package that is not trusted.
    """
    return TrainedRun.load(run, trust, device).actor(rows)
