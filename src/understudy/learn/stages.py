"""Stages of a method: runs of their own in RUN/stages/NAME, and the weights that are taken over from them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import config
from ..checkpoint import CheckpointModule, FromStage, find_checkpoint, load_tensors
from ..core import ConfigError, DataError, DataWarning, Schema, UserError
from ..data.episode import Dataset
from ..files import read_json, whole_folder, write_json
from ..heads.likelihood.categorical import Categorical
from ..policy import Policy
from .critic import Critic
from .critics.action_values import ActionValues
from .fit import Learner
from .method import InitializeFrom, Method, Stage, find_references, module_names
from .rewards.reward_models import RewardModel
from .run import Run, disk_space_errors


def check_stages(method: Method, before: tuple[str, ...] = ()) -> None:
    """Checks that each reference of a method, and of its stages' methods, is to a stage that is trained before.

    Args:
        before: Stages of an enclosing method that are trained before this one.

    Raises:
        UserError: A stage is named twice, or a reference is to no stage, to a later one, or stands in the policy,
            whose file must be complete without it.
    """
    stage_names = list(before)
    for i, stage in enumerate(method.stages):
        if stage.name in (s.name for s in method.stages[:i]):
            raise UserError(f"two stages are called {stage.name!r}", where="Method.stages", hint="rename one of them")
        check_stages(stage.method, tuple(stage_names))
        stage_names.append(stage.name)
    if policy_reference := next(find_references(method.policy), None):
        raise UserError(f"a policy cannot hold {policy_reference}, since its file must be complete without the stage's",
                        where="Method.policy", hint="take its weights over with InitializeFrom")
    for reference in (*find_references(method), *(part.source for part in method.initialize_from)):
        if reference.stage not in stage_names:
            raise UserError(f"there is no stage {reference.stage!r} before it"
                            + (f"; there are {', '.join(stage_names)}" if stage_names else ""), where="FromStage",
                            hint=f"add Stage({reference.stage!r}, method) to the stages of the method")


def packages_of(part: object) -> tuple[str, ...]:
    """Returns the packages whose code a value of configuration uses, such as a method."""
    return config.packages_in(config.dump(part))


def stages_before(run: Path) -> tuple[str, ...]:
    """Returns names of the stages that the run of a stage may refer to, from the folders of the enclosing runs."""
    names: list[str] = []
    while run.parent.name == "stages":
        names += sorted(p.name for p in run.parent.glob("[!.]*") if p != run)
        run = run.parent.parent
    return tuple(names)


# -- runs that are there already ------------------------------------------------------------------------------------


def use_run(method: Method, name: str, run: Path | str, trust: tuple[str, ...] = ()) -> Method:
    """Returns the method with the method of an existing run or checkpoint in place of one of its stages."""
    if name not in (names := [s.name for s in method.stages]):
        raise UserError(f"the method has no stage {name!r}" + (f"; it has {', '.join(names)}" if names else ""),
                        where="stage", hint="name one of its stages, or take the run with --from")
    there = module_names(find_checkpoint(run))
    for reference in (*find_references(method), *(part.source for part in method.initialize_from)):
        if reference.stage == name and reference.module not in there:
            raise UserError(f"the run has no module {reference.module!r}, which the method reads of its stage "
                            f"{name!r}; it has {', '.join(there)}", where=run,
                            hint="name a run whose learner trains it, or leave it out to train the stage first")
    trained = Method.load(run, trust)
    return replace(method, stages=tuple(replace(s, method=trained) if s.name == name else s for s in method.stages))


def continue_from(method: Method, run: Path | str, load: tuple[str, ...] = InitializeFrom.load,
                  train: tuple[str, ...] = InitializeFrom.train, frozen: tuple[str, ...] = (),
                  trust: tuple[str, ...] = ()) -> Method:
    """Returns a method that starts from the weights of an existing run, which becomes its stage "from".

    Stages that only gave initial weights before are dropped: the run's weights take their place. If the learner is of
    the same kind and the whole policy is loaded, the critic, value and reward model of the run are trained on too.

    Args:
        run: A run's folder (its last checkpoint, or "RUN/best"), or a checkpoint's.
        load: Submodules whose weights are taken over. Without "codec", statistics are fitted to the new data.
    """
    used = {reference.stage for reference in find_references(method)}
    stages = tuple(s for s in method.stages if s.name in used)
    source = Method.load(run, trust)
    parts = [InitializeFrom(FromStage("from"), tuple(load), tuple(train), tuple(frozen))]
    if type(source.learner) is type(method.learner) and tuple(load) == InitializeFrom.load:
        names = [name for name in module_names(find_checkpoint(run)) if name in ("critic", "value", "reward")]
        changed = [name for name in names if getattr(source.learner, name, None) != getattr(method.learner, name, None)]
        if changed:
            warnings.warn(f"the {changed[0]} of {run} is not taken over, since --{changed[0]} is another here. "
                          "All but the policy starts from scratch, and its first scores may spoil the policy",
                          DataWarning, stacklevel=2)
        else:
            parts += [InitializeFrom(FromStage("from", name), into=name) for name in names]
    return replace(method, stages=(*stages, Stage("from", source)), initialize_from=tuple(parts))


def copy_run(source: Path | str, folder: Path) -> None:
    """Copies the checkpoint of a run, and its stages, into the folder of a new run. The copy is complete or not made at
    all.

    The copy can act and give initial weights. It cannot be trained on, since the state of its learner is not copied.

    Args:
        source: A run's folder (its last checkpoint; "RUN/best" for its best), or a checkpoint's.
        folder: The folder of the new run. If it exists, it must be a copy of the same weights.
    """
    if folder.is_dir():
        try:
            original = find_checkpoint(source)
        except UserError:  # the original is gone, and the copy is enough
            return
        if Run.fingerprint(original) != Run.fingerprint(find_checkpoint(folder)):
            raise UserError(f"the stage was copied from other weights than those of {source}", where=folder,
                            hint="choose another --out")
        return
    place = find_checkpoint(source)
    inside = place.parent.name == "checkpoints"
    name = f"checkpoints/{place.name if inside else '000000'}"
    with disk_space_errors(folder, "make room, and give the same command"), whole_folder(folder) as part:
        _copy_without_learner(place, part / name)
        if inside and (place.parents[1] / "stages").is_dir():
            _copy_without_learner(place.parents[1] / "stages", part / "stages")
        write_json(part / "run.json", {"last": name})


def _copy_without_learner(source: Path, folder: Path) -> None:
    """Copies the folder of a checkpoint without the state of the learner."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name == "train" or path.name.startswith("."):
            continue
        if path.is_dir():
            _copy_without_learner(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name)


def stage_provenances(run: Path) -> dict[str, dict[str, Any]]:
    """Returns the provenance.json of the stages of a run, and of their stages, by names such as "from/from".

    The weights of the run were initialized from the stage, or the run uses the weights of the stage.
    """
    out: dict[str, dict[str, Any]] = {}
    for stage in sorted((run / "stages").glob("[!.]*")):
        file = find_checkpoint(stage) / "provenance.json"
        out |= {stage.name: read_json(file)} if file.exists() else {}
        out |= {f"{stage.name}/{name}": provenance for name, provenance in stage_provenances(stage).items()}
    return out


def learned_digests(provenance: Mapping[str, Any]) -> set[str]:
    """Returns the digests of the episodes that a training learned from: see `episode_fingerprints`."""
    excluded = {*provenance.get("held_out", ()), *provenance.get("left_out", ())}
    digests = provenance.get("episodes", {}).get("digests", ())
    return {digest for i, digest in enumerate(digests) if i not in excluded}


def is_finished(run: Run, method: Method) -> bool:
    """Returns whether a stage is finished: trained completely with a model card, or copied."""
    last = max(run.saved_steps(), default=None)
    if last is None:
        return False
    complete = method.collection is not None or last >= method.learner.steps  # rounds make any number of updates
    judged = complete and (run.folder / "CARD.md").exists()  # which is written at the very end
    return judged or not (run.checkpoint_path(last) / "train").is_dir()


def check_stage_columns(method: Method, modules: Mapping[FromStage, CheckpointModule], schema: Schema) -> None:
    """Raises an error if modules of stages read columns with other shapes, orders or units than the data.

    The data must not have been transformed yet.
    """
    as_recorded = not method.transforms and method.wrapper is None
    referenced = tuple(find_references(method))
    began = tuple(part.source for part in method.initialize_from if as_recorded)
    for reference in (*referenced, *began):
        module = modules[reference]
        features: Schema = getattr(module, "features", {})
        target = module.about.target if isinstance(module, (Critic, RewardModel)) else \
            module.config.target if isinstance(module, Policy) and reference in began else ""
        for name in filter(None, (*getattr(module, "inputs", ()), target if as_recorded else "")):
            trained, present = features[name], schema.get(name, features[name])
            problem = trained.disagreement(present)
            if reference in referenced and trained.shape != present.shape:
                problem = f"the shape {trained.shape}, and {name} has the shape {present.shape} in these data"
            if problem is not None:
                option = {"from": "--from", "learned-reward": "--reward", "learned-progress": "--progress"}.get(
                    reference.stage, "--stage")
                another = f", or leave {option} out to train another" if option in ("--from", "--stage") else ""
                raise DataError(f"{reference.module!r} was trained with {problem}",
                                where=f"stage {reference.stage!r}, column {name!r}",
                                hint=f"take a run ({option}) that was trained on data with the same columns{another}")


# -- initial weights ------------------------------------------------------------------------------------------------


SUBMODULES = ("codec", "encoder", "net")


def of_policy(parts: Iterable[InitializeFrom]) -> tuple[InitializeFrom, ...]:
    """Returns those initial weights that are for the policy, and not for another module of the learner."""
    return tuple(part for part in parts if part.into == "policy")


def build_learner(method: Method, policy: Policy, seed: int, data: Dataset,
                  modules: Mapping[FromStage, CheckpointModule]) -> Learner:
    """Builds the learner of a method for a policy that has its initial weights, and gives the other modules theirs."""
    freeze(policy, method.initialize_from)
    head = policy.config.head
    if isinstance(head, Categorical) and head.draw_levels and not isinstance(method.learner, ActionValues):
        raise ConfigError(f"{type(method.learner).__name__} learns no quantiles of returns, at whatever levels",
                          where="Categorical.draw_levels", hint="leave it out, or train values, as dqn does")
    learner = method.learner.build(policy, seed, method.learner.steps, data)
    for part in method.initialize_from:
        if part.into != "policy":
            learner.initialize(part.into, modules[part.source])
    return learner


def load_weights_from(policy: Policy, parts: Iterable[InitializeFrom],
                      modules: Mapping[FromStage, CheckpointModule]) -> None:
    """Loads the initial weights of submodules of a policy from trained modules."""
    for part in of_policy(parts):
        source = modules[part.source]
        for name in part.load:
            place = f"InitializeFrom.load, {name!r}"
            if name.partition(".")[0] == "codec" and isinstance(source, Policy):
                _check_columns(policy, source, place)
            try:
                module, weights = submodule(policy, name, place), submodule(source, name, place).state_dict()
                if name.partition(".")[0] == "codec":  # each column has statistics, which must keep their shape
                    _check_shapes(module, weights)
                load_tensors(module, weights)
            except RuntimeError as error:
                raise UserError(f"the weights of the stage {part.source.stage!r} do not fit: {error}", where=place,
                                hint="leave it out of `load`, or give the policy the parts and columns of the "
                                   "stage's") from None


def _check_columns(policy: Policy, source: Policy, where: str) -> None:
    """Raises UserError if a column of the data has another shape than in the policy that weights are taken from."""
    for name, feature in policy.features.items():
        source_feature = source.features.get(name)
        if source_feature is not None and feature.kind != "image" and source_feature.shape != feature.shape:
            raise UserError(
                f"{name} has the shape {feature.shape} in these data, but the policy whose weights are taken was "
                f"trained with {source_feature.shape}", where=where,
                hint="take data with the same columns, or leave codec out of `load`: its statistics are of the columns")


def _check_shapes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise RuntimeError(f"{name} is {tuple(tensors[name].shape)} in the place of {tuple(tensor.shape)}")


def freeze(policy: Policy, parts: Iterable[InitializeFrom]) -> None:
    """Freezes the loaded submodules that are not to be trained."""
    for part in of_policy(parts):
        trained, frozen = ({id(p) for name in getattr(part, field)
                            for p in submodule(policy, name, f"InitializeFrom.{field}, {name!r}").parameters()}
                           for field in ("train", "frozen"))
        for name in part.load:
            for p in submodule(policy, name, f"InitializeFrom.load, {name!r}").parameters():
                if id(p) not in trained - frozen:
                    p.requires_grad_(False)


def submodule(policy: nn.Module, name: str, where: str) -> nn.Module:
    """Returns a submodule of a policy: "codec", "encoder", "net", or one inside these, such as "net.layers"."""
    first = name.partition(".")[0]
    try:
        if first not in SUBMODULES:
            raise AttributeError
        return policy.get_submodule(name)
    except AttributeError:
        valid_names = SUBMODULES if first not in SUBMODULES else [
            f"{first}.{child}" for child, _ in policy.get_submodule(first).named_children()]
        raise UserError(f"the policy has no submodule {name!r}; it has {', '.join(valid_names)}", where=where,
                        hint="name one of these, or one inside them") from None
