"""A run's folder: checkpoints that are there whole or not at all, and the lines of its metrics.

RUN/run.json               {"last": "checkpoints/000500", "best": "checkpoints/000400"}
RUN/checkpoints/NNNNNN/    policy.json features.json weights.safetensors checksums.json
                           method.json provenance.json
                           modules/NAME/ of each further module: module.json, weights.safetensors, checksums.json, ...
                           train/learner.safetensors train/checksums.json train/state.json
RUN/stages/NAME/           a run of each stage of the method
RUN/collection/NNNNNN/     the episodes of each collection round: episodes.npz, round.json
RUN/metrics.jsonl          one line a measurement; CARD.md for people
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..checkpoint import CheckpointModule, save_module
from ..core import UserError
from ..files import check_checksum, read_json, replace_nonfinite, whole_folder, write_checksums, write_json, write_text
from .fit import Learner

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, of a quota, of a limit on files


@dataclass(frozen=True)
class Run:
    folder: Path

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def saved_steps(self) -> list[int]:
        """The updates after which there are checkpoints, in order. Half-written ones have other names."""
        found = (self.folder / "checkpoints").glob("[0-9]*")
        return sorted(int(f.name) for f in found if f.name.isdigit())

    def checkpoint_path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"{step:06d}"

    def save_checkpoint(self, step: int, learner: Learner, modules: Mapping[str, CheckpointModule],
                        facts: Mapping[str, Any], documents: Mapping[str, Any]) -> None:
        """Writes a checkpoint, complete or not at all.

        Args:
            step: Number of updates so far.
            learner: Its state is what training needs to go on.
            modules: Modules by name. "policy" is the one that acts.
            facts: What training needs besides the learner's state, as JSON.
            documents: JSON files beside the weights, by name.

        Raises:
            UserError: The disk is full. Earlier checkpoints are untouched.
        """
        tensors, said = learner.state()
        with disk_space_errors(self.folder, "the checkpoints before are whole: make room, and give the same command"):
            with open(self.folder / "metrics.jsonl", "a") as measured:
                os.fsync(measured.fileno())  # what was measured before a checkpoint lasts as long as it
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
                write_json(part / "train" / "state.json", {**facts, "step": step, "learner": said})
        self.name_checkpoints(last=step)

    def resume(self, step: int, learner: Learner) -> dict[str, Any]:
        """Gives the learner its state after `step` updates back; returns the facts that were saved with it."""
        folder = self.checkpoint_path(step) / "train"
        facts = read_json(folder / "state.json")
        do = (
            f"remove {folder.parent}, and training goes on from the checkpoint before"
            if self.saved_steps()[0] < step
            else f"remove {folder.parent}, and training starts again"
        )
        try:
            check_checksum(folder / "learner.safetensors", do)
            learner.restore(load_file(folder / "learner.safetensors"), facts["learner"])
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise UserError(f"expected the state of a learner, found {error}", where=folder, hint=do) from None
        return facts

    def read_checkpoint_json(self, step: int, name: str):
        return read_json(self.checkpoint_path(step) / name)

    @staticmethod
    def fingerprint(checkpoint: Path) -> str:
        """16 hex digits of a checkpoint's weights and method: of which policy it is, and how it acts."""
        digest = hashlib.sha256()
        for path in (checkpoint / "weights.safetensors", checkpoint / "method.json",
                     *sorted(checkpoint.glob("modules/*/weights.safetensors"))):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    # -- names ----------------------------------------------------------------------------------------------------

    def named_checkpoints(self) -> dict[str, str]:
        """The named checkpoints that are there."""
        path = self.folder / "run.json"
        known = read_json(path) if path.exists() else {}
        return {k: v for k, v in known.items() if (self.folder / v).is_dir()}

    def name_checkpoints(self, **steps: int) -> None:
        """name(last=500, best=400): what "RUN/last" and "RUN/best" mean. Checkpoints without a name are removed."""
        places = {**self.named_checkpoints(), **{k: f"checkpoints/{v:06d}" for k, v in steps.items()}}
        with disk_space_errors(self.folder, "the checkpoints are whole: make room, and give the same command"):
            write_json(self.folder / "run.json", places)
        for step in self.saved_steps():
            if f"checkpoints/{step:06d}" not in places.values():
                # never half a checkpoint under its name
                doomed = self.checkpoint_path(step).with_name(f".{step:06d}.part")
                shutil.rmtree(doomed, ignore_errors=True)
                os.rename(self.checkpoint_path(step), doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    # -- metrics --------------------------------------------------------------------------------------------------

    def log_metrics(self, **line) -> None:
        """Adds a line. What is not finite (the gradient of a skipped fp16 update, say) is null in it."""
        with disk_space_errors(self.folder, "the checkpoints are whole: make room, and give the same command"), \
                open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(replace_nonfinite(line), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """What was measured, up to the first line that was cut off."""
        try:
            text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        found = []
        for line in text.split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def truncate_metrics(self, step: int) -> None:
        """Forgets what was measured after `step`: training from there measures it again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        with disk_space_errors(self.folder, "make room, and give the same command"):
            write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    # -- the folder -----------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[Run]:
        """For one process at a time. Clears away what a power cut left half done, and a new folder where nothing was
        written in the end."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError("expected a folder, found a file", where=self.folder, hint="choose another --out")
        ours = {"run.json", "checkpoints", "stages", "collection", "metrics.jsonl", "CARD.md", "tensorboard", ".lock"}
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        strange = sorted(f.name for f in self.folder.iterdir() if f.name not in ours and not f.name.endswith(".part"))
        begun = (self.folder / "checkpoints").exists() or (self.folder / "stages").exists()
        if strange and not begun:
            raise UserError(f"expected a run, or nothing, found {', '.join(strange[:3])}", where=self.folder,
                            hint="choose another --out")
        with open(self.folder / ".lock", "w") as lock:
            if not _try_lock(lock):
                raise UserError("another process is training into this folder", where=self.folder,
                                hint="wait for it, or choose another --out")
            for part in (*self.folder.glob(".*.part"), *self.folder.glob("c*/.*.part")):  # checkpoints, collection
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            try:
                yield self
            finally:
                if new and [f.name for f in self.folder.iterdir()] == [".lock"]:
                    with suppress(OSError):  # Windows keeps what is open
                        (self.folder / ".lock").unlink()
                        self.folder.rmdir()


@contextmanager
def disk_space_errors(where: Path, do: str) -> Iterator[None]:
    """A full disk is the user's to mend."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # A SafetensorError has the number of the system's error in its text alone.
        number = next(
            (n for n in NO_SPACE_ERRORS if n == getattr(error, "errno", None) or f"os error {n})" in str(error)), None
        )
        if number is None:
            raise
        raise UserError(f"no room to write: {os.strerror(number).lower()}", where=where, hint=do) from error


def _try_lock(file) -> bool:
    """Given back by the system when the process ends, however it ends."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
