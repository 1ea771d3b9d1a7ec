"""What libraries raise over damaged files, as mistakes that their reader can mend."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from ...core import UserError

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


@contextmanager
def as_user_error(
    problem: str,
    where: object,
    fix: str,
    exceptions: ExceptionTypes = (Exception,),
    *,
    passed_through: ExceptionTypes = (),
    named: bool = False,
) -> Iterator[None]:
    """Whatever of these kinds is raised within becomes a UserError with the first line of what was said, after its type
    where it is `named`. UserErrors and what is `spared` pass."""
    try:
        yield
    except (UserError, *passed_through):
        raise
    except exceptions as error:
        kind, said = type(error).__name__, str(error) if named else str(error).strip("'\"")
        said = said.partition("\n")[0]
        said = f"{kind}: {said[:200]}" if named else said or kind
        raise UserError(f"expected {problem}, found damage ({said})", where=where, hint=fix) from None
