"""The folder of a training run: complete checkpoints, and metrics.

RUN/run.json               {"last": "checkpoints/000500", "best": "checkpoints/000400"}
RUN/checkpoints/NNNNNN/    policy.json features.json weights.safetensors checksums.json
                           method.json provenance.json
                           modules/NAME/ of each further module: module.json, weights.safetensors, checksums.json, ...
                           train/learner.safetensors train/checksums.json train/state.json
RUN/stages/NAME/           a run of each stage of the method
RUN/collection/NNNNNN/     the episodes of each collection round: episodes.npz, round.json
RUN/collection/unfinished-NNNNNN/  episodes of a supervised round that is not complete yet, each in its folder
RUN/metrics.jsonl          one line per measurement; CARD.md is the model card
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..checkpoint import CheckpointModule, check_version, is_lerobot_checkpoint, save_module
from ..core import DataWarning, UserError
from ..files import (
    check_checksum,
    read_json,
    replace_nonfinite,
    try_lock,
    whole_folder,
    write_checksums,
    write_json,
    write_text,
)
from .fit import Learner

IS_SUCCESS = "score/is_success"  # metric: whether the score is a success rate, and not a return
NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, a limit of file size


def comparable_scores(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns lines of metrics. A return that was the score before an environment first reported success is score 0."""
    by_success = any(line.get(IS_SUCCESS) for line in lines)
    return [{**line, "score": 0.0} if by_success and line.get(IS_SUCCESS) == 0 else line for line in lines]


@dataclass(frozen=True)
class Run:
    """The folder of a training run, which need not exist yet."""

    folder: Path

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def saved_steps(self) -> list[int]:
        """Returns the numbers of updates of the complete checkpoints, in order."""
        folders = (self.folder / "checkpoints").glob("[0-9]*")
        return sorted(int(f.name) for f in folders if f.name.isdigit())

    def checkpoint_path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"{step:06d}"

    def save_checkpoint(self, step: int, learner: Learner, modules: Mapping[str, CheckpointModule],
                        training_state: Mapping[str, Any], documents: Mapping[str, Any]) -> None:
        """Writes a checkpoint, complete or not at all.

        Args:
            modules: Modules by name. "policy" is the one that acts.
            training_state: What training needs besides the learner's state, as JSON.
            documents: JSON files to store next to the weights, by name.

        Raises:
            UserError: The disk is full. Earlier checkpoints are untouched.
        """
        tensors, learner_metadata = learner.state()
        with disk_space_errors(self.folder, "the checkpoints before are whole: make room, and give the same command"):
            with open(self.folder / "metrics.jsonl", "a") as measured:
                os.fsync(measured.fileno())  # the metrics before a checkpoint must be as safe as the checkpoint
            with whole_folder(self.checkpoint_path(step)) as part:
                modules["policy"].save(part)
                for name, module in modules.items():
                    if name != "policy":
                        save_module(module, part / "modules" / name)
                for name, value in documents.items():
                    write_json(part / name, value)
                (part / "train").mkdir()
                save_file({k: v.cpu().contiguous().clone() for k, v in tensors.items()},
                          part / "train" / "learner.safetensors")
                write_checksums(part / "train", "learner.safetensors")
                write_json(part / "train" / "state.json", {**training_state, "step": step, "learner": learner_metadata})
        self.name_checkpoints(last=step)

    def resume(self, step: int, learner: Learner) -> dict[str, Any]:
        """Restores the state of a learner from a checkpoint. Returns the `training_state` that was saved with it."""
        folder = self.checkpoint_path(step) / "train"
        training_state = read_json(folder / "state.json")
        hint = f"remove {folder.parent}, and training " + (
            "continues from the checkpoint before it" if self.saved_steps()[0] < step else "starts again")
        try:
            check_checksum(folder / "learner.safetensors", hint)
            learner.restore(load_file(folder / "learner.safetensors"), training_state["learner"])
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise UserError(f"the state of the learner is damaged: {error}", where=folder, hint=hint) from None
        return training_state

    def read_checkpoint_json(self, step: int, name: str):
        """Reads a JSON file of a checkpoint. Raises UserError if an earlier version wrote it."""
        check_version(self.checkpoint_path(step))
        return read_json(self.checkpoint_path(step) / name)

    @staticmethod
    def fingerprint(checkpoint: Path) -> str:
        """Returns 16 hex digits that identify the weights and the method of a checkpoint."""
        digest = hashlib.sha256()
        paths = (checkpoint / "weights.safetensors", checkpoint / "method.json",
                 *sorted(checkpoint.glob("modules/*/weights.safetensors")))
        if is_lerobot_checkpoint(checkpoint):
            paths = (checkpoint / "config.json", *sorted(checkpoint.glob("policy_*.json")),
                     *sorted(checkpoint.glob("*.safetensors")))
        for path in paths:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    # -- names ----------------------------------------------------------------------------------------------------

    def named_checkpoints(self) -> dict[str, str]:
        """Returns the folders of named checkpoints, "last" and "best", relative to the run."""
        path = self.folder / "run.json"
        folders = read_json(path) if path.exists() else {}
        return {k: v for k, v in folders.items() if (self.folder / v).is_dir()}

    def name_checkpoints(self, **steps: int) -> None:
        """Names checkpoints by number of updates: ``last=500, best=400`` sets "RUN/last" and "RUN/best".

        Checkpoints without a name are removed.
        """
        places = {**self.named_checkpoints(), **{k: f"checkpoints/{v:06d}" for k, v in steps.items()}}
        with disk_space_errors(self.folder, "the checkpoints are whole: make room, and give the same command"):
            write_json(self.folder / "run.json", places)
        for step in self.saved_steps():
            if f"checkpoints/{step:06d}" not in places.values():
                # an incomplete checkpoint never has its final name
                incomplete = self.checkpoint_path(step).with_name(f".{step:06d}.part")
                shutil.rmtree(incomplete, ignore_errors=True)
                os.rename(self.checkpoint_path(step), incomplete)
                shutil.rmtree(incomplete, ignore_errors=True)

    # -- metrics --------------------------------------------------------------------------------------------------

    def log_metrics(self, **line) -> None:
        """Appends a line to metrics.jsonl. NaN and infinity (the gradient of a skipped fp16 update, for example) become
        null."""
        with disk_space_errors(self.folder, "the checkpoints are whole: make room, and give the same command"), \
                open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(replace_nonfinite(line), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Reads the metrics, up to the first incomplete line."""
        try:
            text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        measurements = []
        for line in text.split("\n")[:-1]:
            try:
                measurements.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return measurements

    def truncate_metrics(self, step: int) -> None:
        """Removes metrics after `step`, because training from there measures them again."""
        lines = [line for line in self.read_metrics() if line["step"] <= step]
        with disk_space_errors(self.folder, "make room, and give the same command"):
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    # -- the folder -----------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[Run]:
        """Locks the run for one process. Removes incomplete files, and the folder if nothing was written in the end."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError("this is a file, not a folder", where=self.folder, hint="choose another --out")
        run_files = {"run.json", "checkpoints", "stages", "collection", "random", "metrics.jsonl", "CARD.md",
                     "tensorboard", ".lock"}
        is_new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [f.name for f in self.folder.iterdir() if not f.name.endswith(".part")]
        other_files = sorted(set(names) - run_files)
        has_started = (self.folder / "checkpoints").exists() or (self.folder / "stages").exists()
        if other_files and not has_started:
            raise UserError(f"the folder is not a run; it contains {', '.join(other_files[:3])}", where=self.folder,
                            hint="choose another --out")
        with open(self.folder / ".lock", "w") as lock:
            if not try_lock(lock.fileno()):
                raise UserError("another process is training into this folder", where=self.folder,
                                hint="wait for it, or choose another --out")
            for part in (*self.folder.glob(".*.part"), *self.folder.glob("[cs]*/.*.part")):  # checkpoints, stages, ...
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            try:
                yield self
            finally:
                stages = self.folder / "stages"
                if is_new and {f.name for f in self.folder.iterdir()} <= {".lock", "stages"} and not any(
                        stages.glob("*/checkpoints/*/train")):  # copies alone: nothing was trained
                    with suppress(OSError):  # Windows does not remove open files
                        shutil.rmtree(stages, ignore_errors=True)
                        (self.folder / ".lock").unlink()
                        self.folder.rmdir()


@contextmanager
def disk_space_errors(where: Path, do: str) -> Iterator[None]:
    """Turns errors of a full disk into a `UserError` with the hint `do`. A context manager."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # A SafetensorError has the number of the system's error only in its text.
        number = next(
            (n for n in NO_SPACE_ERRORS if n == getattr(error, "errno", None) or f"os error {n})" in str(error)), None)
        if number is None:
            raise
        raise UserError(f"no room to write: {os.strerror(number).lower()}", where=where, hint=do) from error


def warn_of_other_arithmetic(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warns if a run continues on hardware or software whose results may differ in the last bits."""
    def facts(provenance: dict[str, Any]) -> dict[str, Any]:
        device = provenance["device"]
        return {"PyTorch": provenance["versions"]["torch"], "the device": device["name"],
                "--compile": device.get("compiled", False)}
    others = [name for name, value in facts(now).items() if facts(before)[name] != value]
    if others:
        warnings.warn(f"this run was trained so far with another setting of {' and '.join(others)}. Its results may "
                      "differ in the last bits from those without the interruption.", DataWarning, stacklevel=3)


def describe_differences(was: Any, now: Any, at: str = "") -> Iterator[str]:
    """Describes where two JSON values differ."""
    if isinstance(was, dict) and isinstance(now, dict) and was.get("$") == now.get("$"):
        for key in dict.fromkeys((*was, *now)):
            yield from describe_differences(was.get(key), now.get(key), f"{at}.{key}" if at else key)
    elif was != now:
        yield f"{at} was {_describe_value(was)}, is {_describe_value(now)}"


def _describe_value(value) -> str:
    """Describes JSON in words; a part is represented by its name."""
    if isinstance(value, dict):
        return str(value["$"]).rpartition(":")[2] if "$" in value else ", ".join(value) or "none"
    if isinstance(value, list):
        return ", ".join(map(_describe_value, value)) or "none"
    return "none" if value is None else str(value)
