"""What libraries raise over damaged files, as mistakes that their reader can mend."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from ...core import UserError

Kinds = tuple[type[BaseException], ...]

# What zipfile raises. RuntimeError: an entry that calls itself encrypted, or packed in a way that nobody knows.
ZIP: Kinds = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, UnicodeDecodeError)


@contextmanager
def found(expected: str, where: object, do: str, kinds: Kinds = (Exception,), *, spared: Kinds = (),
          named: bool = False) -> Iterator[None]:
    """Whatever of these kinds is raised within becomes a UserError with the first line of what was said, after its type
    where it is `named`. UserErrors and what is `spared` pass."""
    try:
        yield
    except (UserError, *spared):
        raise
    except kinds as error:
        kind, said = type(error).__name__, str(error) if named else str(error).strip("'\"")
        said = said.partition("\n")[0]
        said = f"{kind}: {said[:200]}" if named else said or kind
        raise UserError(f"expected {expected}, found damage ({said})", where=where, do=do) from None
