"""Files of pretrained networks: where they are, and what a checkpoint keeps of them.

A checkpoint has the weights of a pretrained network among its own. To build the network again without the network's
folder, it also needs a few small files: the configuration, the preprocessing, the tokenizer. A `PretrainedNet` holds
them, and `save_pretrained_files` writes them into the checkpoint.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn

from ...core import UserError
from ...files import read_json
from ..vision import given_weights

T = TypeVar("T")

FOLDER = "pretrained"  # in a checkpoint, with a folder for each pretrained network
_SMALL_FILES = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
_WEIGHTS = "*.safetensors"


class PretrainedNet(nn.Module, ABC):
    """A module that is built from the files of a pretrained network."""

    files: PretrainedFiles


@dataclass(frozen=True)
class PretrainedFiles:
    """The files of a pretrained network. Files other than weights are in memory.

    Args:
        weights: The address: a folder, or ``"hf://OWNER/NAME[@REVISION]"``.
        small_files: Content of the files that are not weights, by their path in the folder.
    """

    weights: str
    folder: Path
    small_files: Mapping[str, bytes]

    @staticmethod
    def open(weights: str, where: str) -> PretrainedFiles:
        """Finds the files of a pretrained network: in the checkpoint that is being loaded, in a folder, or on the hub.

        Args:
            weights: A folder, or ``"hf://OWNER/NAME[@REVISION]"``, which huggingface_hub downloads.
        """
        checkpoint = given_weights()
        stored = None if checkpoint is None or checkpoint.folder is None else _stored_folder(checkpoint.folder, weights)
        if stored is not None and stored.is_dir():
            folder = stored
        elif weights.startswith("hf://"):
            folder = _download(weights, _SMALL_FILES if checkpoint is not None else (*_SMALL_FILES, _WEIGHTS))
        else:
            folder = Path(weights)
            if not folder.is_dir():
                raise UserError("There is no such folder.", where=f"{where}, {weights}",
                                hint="Name the folder of a pretrained network (with config.json and "
                                     "model.safetensors), or hf://OWNER/NAME[@REVISION].")
        small_files = {path.relative_to(folder).as_posix(): path.read_bytes() for pattern in _SMALL_FILES
                       for path in sorted(folder.rglob(pattern)) if not path.name.endswith(".index.json")}
        if "config.json" not in small_files:
            raise UserError("There is no config.json, which says what kind of network this is.",
                            where=f"{where}, {folder}", hint="Name the folder of a pretrained network, as "
                                                             "save_pretrained of transformers writes it.")
        if checkpoint is None and not any(folder.rglob(_WEIGHTS)):
            raise UserError("There are no weights (model.safetensors).", where=f"{where}, {folder}",
                            hint="Only safetensors are read. Convert other files with the library that wrote them.")
        return PretrainedFiles(weights, folder, small_files)

    def json(self, *names: str):
        """Returns the content of the first of some JSON files that exists. None if there is none."""
        return next((read_json(self.folder / name) for name in names if name in self.small_files), None)


def save_pretrained_files(module: nn.Module, folder: Path | str) -> None:
    """Writes the files of all pretrained networks in a module into the folder of a checkpoint."""
    for part in module.modules():
        if isinstance(part, PretrainedNet):
            for name, content in part.files.small_files.items():
                path = _stored_folder(Path(folder), part.files.weights) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def import_extra(package: str, extra: str, purpose: str) -> ModuleType:
    """Imports a package that an extra installs. Raises UserError if it is not installed; `purpose` is what needs it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise UserError(f"{purpose} needs the package {package}, which is not installed.",
                        hint=f"pip install 'understudy[{extra}]'") from None


def transformers_model(auto, files: PretrainedFiles, architecture, unused: tuple[str, ...] = ()) -> nn.Module:
    """Returns a network of transformers with its weights, or with random ones if a checkpoint supplies them.

    Missing weights, which the library would replace by random ones, raise UserError.

    Args:
        auto: The class that chooses the network, such as ``transformers.AutoModel``.
        unused: Beginnings of the names of weights that may be missing, because nothing reads what they compute.
    """
    if given_weights() is not None:
        return auto.from_config(architecture, dtype=torch.float32)
    logging = import_module("transformers.utils.logging")
    has_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, loading_info = auto.from_pretrained(files.folder, config=architecture, use_safetensors=True,
                                                   dtype=torch.float32, output_loading_info=True)
    finally:
        if has_bar:
            logging.enable_progress_bar()
    if missing := sorted(name for name in loading_info["missing_keys"] if not name.startswith(unused)):
        raise UserError(f"The weights lack {len(missing)} tensors of the network, such as {missing[0]}.",
                        where=files.weights, hint='If they are of its pooler, use pool="patches". Otherwise name a '
                                                  "network whose files are complete.")
    return model


def load_pretrained(build: Callable[[], T], weights: str, where: str) -> T:
    """Returns what `build` reads with another library, whose errors become errors that name the weights."""
    try:
        return build()
    except UserError:
        raise
    except Exception as error:  # whatever the library raises for a file that it cannot read
        raise UserError(f"The pretrained network cannot be read ({type(error).__name__}: {error}).",
                        where=f"{where}, {weights}", hint="Check that it is a network of this kind, and that its files "
                                                          "are complete.") from error


def _stored_folder(checkpoint: Path, weights: str) -> Path:
    return checkpoint / FOLDER / hashlib.sha256(weights.encode()).hexdigest()[:16]


def _download(weights: str, patterns: tuple[str, ...]) -> Path:
    owner, _, name = weights.removeprefix("hf://").partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name or "/" in name:
        raise UserError("The address does not name a repository.", where=weights,
                        hint="Write hf://OWNER/NAME[@REVISION], or the path of a local folder.")
    hub = import_extra("huggingface_hub", "hub", "Downloading from the hub")
    try:
        return Path(hub.snapshot_download(f"{owner}/{name}", revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:
        raise UserError(f"The pretrained network could not be downloaded ({type(error).__name__}: {error}).",
                        where=weights, hint="Check the address and the network, or give a local folder.") from error
