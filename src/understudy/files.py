"""Files that are there whole or not at all, whenever the power goes."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .core import UserError


def write_text(path: Path | str, text: str) -> None:
    """Replaces the file in one move; the old text stays until the new one is on the disk."""
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
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def finite(value):
    """As JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path | str):
    """Raises UserError naming the file, and the line where it stops being JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("expected a file, found none", where=path,
                        do="check the path, or take it from a copy") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"expected JSON, found something else{line} ({error})", where=path,
                        do="the file is damaged: take it from a copy, or write it anew") from None


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """A new folder: built beside its place, synced, and moved there at the end. On an error nothing is left."""
    path = Path(path)
    if path.exists():
        raise UserError("expected nothing here, found a file or folder", where=path,
                        do="choose another place, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        os.chmod(part, 0o755)
        yield part
        for file in (*part.rglob("*"), part):
            if file.is_dir():
                sync_folder(file)
                continue
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        os.rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A new file, as `whole_folder` a folder: what is yielded is where to write it meanwhile."""
    path = Path(path)
    if path.exists():
        raise UserError("expected nothing here, found a file or folder", where=path,
                        do="choose another place, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        part = folder / path.name
        yield part
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """A rename is durable only when its folder is; some systems cannot open folders and do not need it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
