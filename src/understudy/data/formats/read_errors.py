"""Errors about files that cannot be read."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core import DataError, UserError
from ...files import read_json

ExceptionTypes = tuple[type[BaseException], ...]

# What zipfile raises. RuntimeError: an entry that calls itself encrypted, or packed in a way that nobody knows.
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
    """The error for a file that is cut short, changed or incomplete.

    Args:
        problem: What is wrong.
        where: The file, and the key or row in it.
    """
    return DataError(problem, where=where, hint="the file is damaged or incomplete: take it from a copy")


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, or the type of the error if it has no message."""
    text = str(error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # a KeyError quotes its message
        text = text[1:-1]
    return text.partition("\n")[0][:200] or type(error).__name__


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
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
    """Raises what a library raises about a damaged file as a `UserError`.

    Args:
        what: What is read, such as "the HDF5 file".
        where: The file, and the key in it.
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
