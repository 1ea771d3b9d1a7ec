"""Checks that a run continues only with its original settings, or with more updates at a constant rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import config
from ..core import UserError
from .run import Run, describe_differences

MAX_DIFFERENCES = 3  # differences that are listed

# Fields of learners that make the first or last updates of a training special. Each value says how.
_PHASES = {"cloning_fraction": "is a fraction of all of them", "warmup_fraction": "is a fraction of all of them",
           "label_noise": "is 0 in the last tenth of them"}
Documents = Mapping[str, Any]  # of a checkpoint, by file name


def check_same_run(run: Run, step: int, documents: Documents) -> None:
    """Checks that a call continues the run whose checkpoint of update `step` is stored.

    Args:
        documents: "method.json" and "provenance.json" of the call.

    Raises:
        UserError: The method, the data or the seed is another one, or the number of updates cannot be changed.
    """
    stored = {name: run.read_checkpoint_json(step, name) for name in documents}
    trust = config.packages_in(documents["method.json"])
    differences = list(describe_differences(_identity(stored, trust), _identity(documents, trust)))
    if _adds_updates(stored, documents, differences):
        _check_longer_run(stored["method.json"]["learner"]["steps"], documents["method.json"]["learner"], run.folder)
    elif differences:
        raise _other_settings(stored, documents, differences, run.folder)


def present_document(document: dict[str, Any], trust: tuple[str, ...]) -> dict[str, Any]:
    """Returns the JSON of a value as this version writes it. Unchanged if this version cannot load it."""
    try:
        return config.dump(config.load(document, trust))
    except UserError:
        return document


def _identity(documents: Documents, trust: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings that must stay as they are while a run continues."""
    provenance = documents["provenance.json"]
    return {"seed": provenance["seed"], "data": provenance["data"]["fingerprint"],
            "sampling_weights": provenance.get("sampling_weights", provenance.get("draw")),  # "draw" of old versions
            "stages": provenance.get("stages", {}), "environment": provenance.get("collected_in"),
            "held-out episodes": provenance["held_out"], "left-out episodes": provenance["left_out"],
            "method": present_document(documents["method.json"], trust)}


def _adds_updates(stored: Documents, documents: Documents, differences: Sequence[str]) -> bool:
    """Returns whether only the number of updates differs, and is larger."""
    before, after = (some["method.json"]["learner"].get("steps") for some in (stored, documents))
    only_steps = [line.startswith("method.learner.steps ") for line in differences] == [True]
    return only_steps and after > before and documents["method.json"].get("collection") is None


def _check_longer_run(before: int, learner: dict[str, Any], folder: Path) -> None:
    """Raises an error if the updates made so far would have been others in a longer run.

    Args:
        before: The number of updates of the run.
        learner: The document of the learner, with more updates.
    """
    if _ignores_number_of_updates(learner):
        return
    after = learner["steps"]
    phases = [name for name in _PHASES if learner.get(name)]
    reason = (f"{phases[0]} {_PHASES[phases[0]]}" if phases else
              "its learning rate decreases towards the last of them")
    raise UserError(f"this run has {before} updates, and {reason}, so it cannot be continued to {after}",
                    where=folder,
                    hint=f"train on from its weights into another folder, with --from {folder} --steps "
                         f"{after - before} and another --out, or train all {after} updates there" + ("" if phases
                         else ". Runs with --optimizer.lr-schedule constant can be continued"))


def _ignores_number_of_updates(learner: dict[str, Any]) -> bool:
    """Returns whether a learner's updates are the same whatever their total number is."""
    if not isinstance(name := learner.get("$"), str) or not name.startswith("understudy."):
        return False
    if any(learner.get(name) for name in _PHASES):
        return False
    parts: list[Any] = [learner]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("lr_schedule", "constant") != "constant":
                return False
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return True


def _other_settings(stored: Documents, documents: Documents, differences: Sequence[str], folder: Path) -> UserError:
    """Builds the error about a call with other settings than those of the run."""
    old_command, new_command = (some["provenance.json"].get("command") for some in (stored, documents))
    old_name, new_name = ((some["provenance.json"].get("options") or {}).get("method") for some in (stored, documents))
    method_change = [f"was {old_name}, is {new_name}"] if old_name and new_name and old_name != new_name else []
    is_longer = all(line.startswith("method.collection.") for line in differences)
    from_weights = f"where --from {folder} starts from the weights of this run, " if is_longer else ""
    return UserError("this run was started with other settings: "
                     + "; ".join([*method_change, *differences[:MAX_DIFFERENCES]])
                     + ("; ..." if len(differences) > MAX_DIFFERENCES else ""), where=folder,
                     hint=f"choose another --out, {from_weights}or " + (
                         "restore the data, or the version of understudy, with which the same command began it"
                         if old_command and old_command == new_command else
                         "give the command it was begun with" + (f": {old_command}" if old_command else "")))
