"""Modules that a checkpoint stores by name, and references to modules that an earlier stage trained."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import config
from .core import Feature, Schema, UserError
from .files import check_checksum, read_json, write_checksums, write_json
from .hints import command_line, path_text

FEATURES = "features.json"
WEIGHTS = "weights.safetensors"
RETRAIN = "take another checkpoint of the run, or train it again"
FIRST_LOADED_VERSION = (0, 3)  # checkpoints of earlier versions name code by paths that are gone

T = TypeVar("T")


class CheckpointModule(nn.Module, ABC):
    """A module that a checkpoint stores under a name. `Policy` is one, stored as "policy"."""

    @abstractmethod
    def save(self, folder: Path | str) -> None:
        """Writes everything that `load` needs into a folder, old or new, as JSON and safetensors."""

    @staticmethod
    @abstractmethod
    def load(folder: Path | str, trust: tuple[str, ...] = (),
             device: str | torch.device = "cpu") -> CheckpointModule:
        """Reads what `save` wrote. The module is in evaluation mode.

        Raises:
            UserError: A file is missing or damaged. The message names it.
            UntrustedCode: A file names code of another package.
        """


class Scorer(CheckpointModule):
    """Base class of scorers of plans; higher is better. Critics, reward models and success classifiers are scorers.

    Attributes:
        inputs: The observation columns that it reads.
        features: The features of these columns, and possibly of others.
    """

    inputs: tuple[str, ...]
    features: Schema

    def check_window(self, window: Any, where: str) -> None:
        """Raises UserError if the scorer was trained on plans of another `Window`. By default any window fits."""

    @abstractmethod
    def forward(self, obs: Mapping[str, Tensor], plan: Tensor) -> Tensor:
        """Scores one plan for each observation.

        Args:
            obs: Observation windows by column, (B, To, ...).
            plan: Plans in world units, (B, H, A).

        Returns:
            Scores, (B,).
        """

    def score_plans(self, obs: Mapping[str, Tensor], plans: Tensor) -> Tensor:
        """Scores several plans for each observation. By default, each has a copy of the observation.

        Args:
            plans: Plans in world units, (B, N, H, A).

        Returns:
            Scores, (B, N).
        """
        n = plans.shape[1]
        copies = {name: column.repeat_interleave(n, 0) for name, column in obs.items()}
        return self(copies, plans.flatten(0, 1)).unflatten(0, (-1, n))


class BuiltModule(CheckpointModule):
    """A module that is built again from its description and its columns. Its folder needs no other file.

    Attributes:
        kind: What the module is, such as "critic". The description is written as KIND.json.
        description: The class of `about`.

    Args:
        about: Everything but the weights and the columns that determines the module, a frozen dataclass.
        features: The columns that it is built for.
    """

    kind: ClassVar[str]
    description: ClassVar[type]

    def __init__(self, about: Any, features: Schema):
        super().__init__()
        self.about, self.features = about, dict(features)

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.kind}.json", config.dump(self.about))
        save_features(self.features, folder)
        save_weights(self, folder)

    @classmethod
    def load(cls, folder, trust=(), device="cpu"):
        path = Path(folder) / f"{cls.kind}.json"
        about = config.load(read_json(path, RETRAIN), ("understudy", *trust), str(path))
        if not isinstance(about, cls.description):
            raise UserError(f"the file describes no {cls.kind}", where=path, hint=RETRAIN)
        module = cls(about, load_features(folder, RETRAIN))
        load_weights(module, folder, RETRAIN, cls.kind)
        return module.eval().to(device)


@dataclass(frozen=True)
class FromStage:
    """A reference, in a field of a method, to a module that a stage of the method trained.

    Args:
        module: The name of the module in the stage's checkpoint: "policy", or another module of its learner.
    """

    stage: str
    module: str = "policy"


def check_trained(module: FromStage | T, kind: type[T], where: str, noun: str = "module") -> T:
    """Returns a module. Raises UserError for a reference to a stage, which is not trained."""
    if not isinstance(module, kind):
        raise UserError(f"{module} is not a trained {noun}", where=where,
                        hint=f"train a method that has this stage, or give the {noun} itself")
    return module


# -- files ----------------------------------------------------------------------------------------------------------


def save_module(module: CheckpointModule, folder: Path | str) -> None:
    """Writes a module into a folder, old or new, with its class in `module.json`, so that `load_module` finds it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    module.save(folder)
    write_json(folder / "module.json", {"$": f"{type(module).__module__}:{type(module).__qualname__}"})


def load_module(folder: Path | str, trust: tuple[str, ...] = (),
                device: str | torch.device = "cpu") -> CheckpointModule:
    """Reads what `save_module` wrote."""
    path = Path(folder) / "module.json"
    document = read_json(path)
    name = document.get("$") if isinstance(document, dict) else None
    if not isinstance(name, str):
        raise UserError("the class of the module is missing", where=path, hint=RETRAIN)
    cls = config.find_class(name, CheckpointModule, ("understudy", *trust), str(path))
    return cls.load(folder, trust, device)


def save_weights(module: nn.Module, folder: Path | str) -> None:
    """Writes parameters and buffers of a module as `weights.safetensors`, with a checksum, into an existing folder."""
    save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, Path(folder) / WEIGHTS)
    write_checksums(folder, WEIGHTS)


def load_weights(module: nn.Module, folder: Path | str, hint: str, kind: str = "policy") -> None:
    """Gives a module the weights that `save_weights` wrote.

    Args:
        kind: What the error calls the module.
    """
    weights = read_tensors(Path(folder) / WEIGHTS, hint, has_checksum=True)
    try:
        load_tensors(module, weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit this {kind}: {error}", where=folder,
                        hint=f"{kind}.json and {WEIGHTS} must come from the same run; {hint}") from None


def read_tensors(path: Path, hint: str, *, has_checksum: bool = False) -> dict[str, Tensor]:
    """Reads a safetensors file, and compares it with its checksum if it has one.

    Args:
        hint: What the user can do if it is missing or damaged.
    """
    try:
        if has_checksum:
            check_checksum(path, hint)
        return load_file(path)
    except FileNotFoundError:
        raise UserError("there is no such file", where=path, hint=hint) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"the safetensors file is damaged ({error})", where=path, hint=hint) from None


def save_features(features: Schema, folder: Path | str) -> None:
    """Writes the columns that a module was built for as `features.json`."""
    write_json(Path(folder) / FEATURES, {k: asdict(f) for k, f in features.items()})


def load_features(folder: Path | str, hint: str) -> dict[str, Feature]:
    """Reads what `save_features` wrote."""
    path = Path(folder) / FEATURES
    try:
        features = {name: Feature.from_json(feature) for name, feature in read_json(path, hint).items()}
        for name, feature in features.items():
            if not isinstance(feature.shape, tuple) or not all(type(n) is int and n >= 0 for n in feature.shape):
                raise TypeError(f"the shape of {name} is {feature.shape!r}")
        return features
    except (TypeError, AttributeError) as error:
        raise UserError(f"the columns are not stored with dtype, shape and kind ({error})", where=path,
                        hint=hint) from None


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Sets the parameters and buffers of a module. Buffers take the given shapes.

    Args:
        tensors: Parameters and buffers by name, as in `state_dict`.

    Raises:
        RuntimeError: The names or shapes do not match. The message is one line, and nothing has changed.
    """
    own, buffers = module.state_dict(), dict(module.named_buffers())
    mismatches = {"missing": [f"{k} {tuple(v.shape)}" for k, v in own.items() if k not in tensors],
                  "unexpected": [f"{k} {tuple(v.shape)}" for k, v in tensors.items() if k not in own],
                  # A memory has one row per window of the data, so buffers take the saved shape.
                  "of another shape": [f"{k} {tuple(tensors[k].shape)} in the place of {tuple(v.shape)}"
                                       for k, v in own.items() if k in tensors and k not in buffers
                                       and tensors[k].shape != v.shape]}
    if any(mismatches.values()):
        raise RuntimeError("; ".join(f"{len(names)} {kind} (the first: {names[0]})"
                                     for kind, names in mismatches.items() if names) + f"; of {len(own)} tensors")
    for name, buffer in buffers.items():
        # Clones, since safetensors gives odd addresses, from which sums differ in their last bits.
        owner, _, leaf = name.rpartition(".")
        if name in tensors:
            setattr(module.get_submodule(owner), leaf, tensors[name].to(buffer.device, copy=True))
    module.load_state_dict(tensors)


# -- where checkpoints are -------------------------------------------------------------------------------------------


def find_checkpoint(folder: Path | str) -> Path:
    """Returns the folder with the weights: the last checkpoint of a run, or the folder itself.

    "RUN/best" and "RUN/last" choose a checkpoint of a run. The best one is not the default, because it does not act
    better on average (`benchmarks/checkpoints.py`). Runs and checkpoints of LeRobot are found too: see
    `is_lerobot_checkpoint`. Raises UserError if there is no checkpoint, or if an earlier version wrote it.
    """
    checkpoint = _weights_folder(Path(folder))
    check_version(checkpoint)
    return checkpoint


def check_version(checkpoint: Path) -> None:
    """Raises UserError for a checkpoint of an understudy version whose checkpoints cannot be loaded any more."""
    from . import __version__

    version = config.written_version(checkpoint)
    if version in (None, __version__) or (numbers := re.match(r"(\d+)\.(\d+)", version)) is None:
        return
    if tuple(map(int, numbers.groups())) < FIRST_LOADED_VERSION:
        run = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint
        raise UserError(f"understudy {version} wrote this run, and understudy {__version__} loads none from before "
                        f"version {'.'.join(map(str, FIRST_LOADED_VERSION))}", where=run,
                        hint=f"train it again, into another folder; its data can be used as they are: "
                             f"{_training_command(checkpoint, run)}")


def _weights_folder(folder: Path) -> Path:
    if (folder / "weights.safetensors").exists() or (folder / "policy.json").exists():
        return folder
    is_run = (folder / "run.json").exists()  # on the hub, the files of LeRobot are next to it
    if not is_run and (lerobot_folder := find_lerobot_checkpoint(folder)) is not None:
        return lerobot_folder
    run, which = (folder.parent, folder.name) if folder.name in ("best", "last") else (folder, "last")
    has_started = (run / "checkpoints").is_dir() or (run / ".lock").exists()
    if (run / "run.json").exists():
        places = read_json(run / "run.json")
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise UserError("the file does not contain the names of checkpoints", where=run / "run.json",
                            hint=_resume_hint(run))
        if places and which not in places:
            raise UserError(f"this run has no {which!r} checkpoint; it has {', '.join(places)}", where=run,
                            hint="train with --eval ENV --save-freq N to keep the best")
        if places and (run / places[which]).is_dir():
            return run / places[which]
        has_started = True
    if has_started:
        names = ", ".join(f.name for f in _saved_checkpoints(run / "checkpoints"))
        raise UserError(f"the run was stopped before it had a checkpoint {which!r}"
                        + (f"; it has {names}" if names else ""), where=run, hint=_resume_hint(run))
    raise UserError(f"this is not a trained run or a checkpoint: {_describe_path(folder)}", where=folder, hint=(
        f"name one of these: {', '.join(map(str, checkpoints))}" if (checkpoints := _saved_checkpoints(folder)) else
        f"name the folder: {folder.parent}" if (folder.parent / "policy.json").exists() else
        "name the run it was exported from, or export it as FILE.onnx; a .pt2 file is for programs without understudy"
        if folder.suffix == ".pt2" and folder.exists() else
        f"train on them: {command_line('train', 'METHOD', folder, '--out', 'RUN')}"
        if (folder / "meta" / "info.json").exists() else
        "name the run that is served there" if "://" in path_text(folder) else
        "check the path, or train one: understudy train METHOD DATA --out RUN"))


def read_checkpoint_json(folder: Path, name: str):
    """Reads a JSON file of a checkpoint."""
    return read_json(folder / name, replacement_hint(folder))


def _describe_path(folder: Path) -> str:
    if "://" in path_text(folder):
        return "it is the address of a server"
    if not folder.exists():
        return "there is nothing here"
    if folder.is_file():
        return "it is a file"
    return "it holds demonstrations" if (folder / "meta" / "info.json").exists() else "it holds no policy"


def _saved_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints that have weights, in order."""
    return sorted((f.parent for f in folder.glob("[0-9]*/weights.safetensors")), key=lambda f: (len(f.name), f.name))


def _resume_hint(run: Path) -> str:
    """Returns advice for a run whose names do not lead to a checkpoint."""
    checkpoints = _saved_checkpoints(run / "checkpoints")
    named = f"name one of its checkpoints, {checkpoints[-1]}; or " if checkpoints else ""
    command = _training_command(checkpoints[-1] if checkpoints else None, run)
    return f"{named}continue with the command that started the run: {command}"


def replacement_hint(folder: Path) -> str:
    """Returns advice for an incomplete checkpoint."""
    if others := [f for f in _saved_checkpoints(folder.parent) if f != folder]:
        return f"take another checkpoint of the run: {others[-1]}"
    return f"remove {folder} and train again: {_training_command(folder, folder.parent.parent)}"


def _training_command(folder: Path | None, run: Path) -> str:
    """Returns the command that trains the run, as far as it is known."""
    with suppress(UserError, AttributeError):
        if folder is not None and (command := read_json(folder / "provenance.json").get("command")):
            return str(command)
    return command_line("train", "METHOD", "DATA", "--out", run if (run / "checkpoints").exists() else "RUN")


def find_lerobot_checkpoint(folder: Path) -> Path | None:
    """Returns the folder `pretrained_model` of a LeRobot checkpoint, or None.

    Args:
        folder: That folder, the folder of a checkpoint, or the folder of a run of LeRobot (its last checkpoint).
    """
    numbered = sorted(f for f in folder.glob("checkpoints/[0-9]*") if f.name.isdigit())
    places = (folder, folder / "pretrained_model", *(
        f / "pretrained_model" for f in (folder / "checkpoints" / "last", *reversed(numbered))))
    # Any model of Hugging Face may have a config.json. Where its type is missing, the loader says so.
    return next((f for f in places if (f / "config.json").is_file()
                 and ((f / "model.safetensors").is_file() or (f / "train_config.json").is_file())), None)


def is_lerobot_checkpoint(folder: Path) -> bool:
    """Returns whether a folder that `find_checkpoint` returned was written by LeRobot."""
    return (folder / "config.json").is_file() and not (folder / "policy.json").exists()
