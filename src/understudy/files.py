"""Writes files completely or not at all, even in a power cut."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .core import UserError

CHECKSUMS = "checksums.json"  # for the files in the same folder: name -> SHA-256 in hexadecimal digits


def file_name(text: object) -> str:
    """Converts a text to a file name: every character but letters, digits, "-", "_" and "." becomes "_"."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in str(text))


def write_text(path: Path | str, text: str) -> None:
    """Replaces a file atomically: the old text stays until the new is on the disk. Missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path | str, value) -> None:
    """Replaces a JSON file atomically, as `write_text` does. Missing folders are created."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def replace_nonfinite(value):
    """Returns a copy of JSON data in which NaN and infinite numbers are null."""
    if isinstance(value, dict):
        return {k: replace_nonfinite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path | str, hint: str | None = None):
    """Reads a JSON file.

    Args:
        hint: What the user can do if it is missing or damaged. None for the general advice.

    Raises:
        UserError: The file is missing or is not JSON. The message has the line of the error.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", where=path,
                        hint=hint or "check the path, or take it from a copy") from None
    except RecursionError:
        raise UserError("the values are nested too deeply", where=path, hint=hint or "take it from a copy") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"the file cannot be read as JSON{line} ({error})", where=path,
                        hint="write it as JSON: YAML is not read here" if path.suffix in (".yaml", ".yml") else
                        hint or "the file is damaged: take it from a copy, or write it again") from None


def write_checksums(folder: Path | str, *names: str) -> None:
    """Writes the SHA-256 of these files of `folder` into `checksums.json` in the same folder."""
    folder = Path(folder)
    write_json(folder / CHECKSUMS, {name: file_sha256(folder / name) for name in names})


def check_checksum(path: Path | str, do: str) -> None:
    """Compares a file with its SHA-256 in `checksums.json` in the same folder.

    Args:
        do: What the user can do if the file is damaged.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    digest = file_sha256(path)
    checksums = read_json(path.with_name(CHECKSUMS), do)
    if not isinstance(checksums, dict) or path.name not in checksums:
        raise UserError(f"the checksum of {path.name} is missing", where=path.with_name(CHECKSUMS), hint=do)
    if checksums[path.name] != digest:
        raise UserError(f"the file is damaged: its SHA-256 is not the one in {CHECKSUMS}", where=path, hint=do)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_absent(path: Path) -> None:
    """Raises UserError if something is at `path`."""
    if path.exists():
        raise UserError("there is already a file or folder", where=path,
                        hint="choose another place, or remove it first")


@contextmanager
def _part_folder(path: Path) -> Iterator[Path]:
    """Makes a temporary folder next to a path at which nothing may exist yet. A context manager.

    It is locked as long as its process lives, so that those of killed processes are recognized and removed.
    """
    check_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.part"):
        with _locked_folder(part) as is_free:
            if is_free:
                shutil.rmtree(part, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
    with _locked_folder(part):
        part = part.rename(part.with_suffix(".part"))  # not before it is locked: another writer could remove it
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked_folder(path: Path) -> Iterator[bool]:
    """Locks a folder, and yields whether that was possible. A lock ends with its process. A context manager."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, OSError):  # no locks, or another process has removed it
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = True
    except OSError:
        is_locked = False
    try:
        yield is_locked
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Builds a new folder under a temporary name, and then syncs and renames it. A context manager.

    After an error nothing is left.
    """
    path = Path(path)
    with _part_folder(path) as part:
        os.chmod(part, 0o755)
        yield part
        for file in (*part.rglob("*"), part):
            if file.is_dir():
                sync_folder(file)
                continue
            sync_file(file)
        check_absent(path)  # another process may have been faster
        os.rename(part, path)
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Writes a new file under a temporary name, and then syncs and renames it. A context manager."""
    path = Path(path)
    with _part_folder(path) as folder:
        part = folder / path.name
        yield part
        sync_file(part)
        check_absent(path)
        os.replace(part, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Syncs the contents of a file to the disk."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Syncs a folder, so that renames in it are durable. Some systems cannot and need not do it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Locks an open file. The system releases the lock when the process ends, whatever the reason."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
