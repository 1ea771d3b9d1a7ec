"""Builds errors about files that cannot be read."""

from __future__ import annotations

import importlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ....core import DataError, UserError
from ....files import read_json

DAMAGED_HINT = "the file is damaged or incomplete: take it from a copy"
ExceptionTypes = tuple[type[BaseException], ...]

# What zipfile raises. RuntimeError: an entry that is marked as encrypted, or has an unknown compression.
ZIP_ERRORS: ExceptionTypes = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)


def damaged(problem: str, where: object) -> DataError:
    """Builds the error for a file that is cut short, changed or incomplete."""
    return DataError(problem, where=where, hint=DAMAGED_HINT)


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of an error, or the type of the error if it has no message."""
    text = str(error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # a KeyError quotes its message
        text = text[1:-1]
    return text.partition("\n")[0][:200] or type(error).__name__


def first_true(is_wrong: np.ndarray) -> int | None:
    """Returns the index of the first True of (n,) bools, so that an error can name it. None if there is none."""
    return int(np.argmax(is_wrong)) if is_wrong.any() else None


def import_optional(module: str, need: str, extra: str) -> ModuleType:
    """Imports a module that is an optional dependency.

    Args:
        need: What needs which package, such as "HDF5 files need h5py".
        extra: The extra of understudy that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{need}, which is not installed", hint=f"pip install 'understudy[{extra}]'") from None


def read_json_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise damaged(f"this is not a JSON object but a {type(value).__name__}", file)
    return value


@contextmanager
def as_user_error(
    what: str,
    where: object,
    exceptions: ExceptionTypes = (Exception,),
    *,
    passed_through: ExceptionTypes = (),
    named: bool = False,
) -> Iterator[None]:
    """Turns the errors that a library raises about a damaged file into `UserError`. A context manager.

    Args:
        what: What is read, such as "the HDF5 file".
        exceptions: The errors that mean damage.
        passed_through: Errors that are raised as they are, as each `UserError` is.
        named: Whether the message has the type of the error.
    """
    try:
        yield
    except (UserError, *passed_through):
        raise
    except exceptions as error:
        kind = f"{type(error).__name__}: " if named else ""
        raise damaged(f"{what} cannot be read ({kind}{first_line(error)})", where) from None
