"""The help page of a command, made of its options and the texts below them."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import shutil
import sys
import textwrap
from dataclasses import fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NoReturn, TextIO, cast, get_args, get_origin, get_type_hints

from tyro.conf import arg


def print_help(options: type, prog: str) -> NoReturn:
    """Prints the help page of a command and ends the process with status 0.

    Args:
        prog: The command as the user writes it, such as "understudy train".
    """
    import tyro

    with contextlib.redirect_stdout(cast(TextIO, _Wrapped(sys.stdout))):
        tyro.cli(options_for_help(options), prog=prog, args=["--help"], config=(tyro.conf.FlagCreatePairsOff,))
    raise SystemExit(0)


class _Wrapped:
    """A stream that wraps the description of a command, which tyro prints in lines of any length."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, page: str) -> int:
        width = shutil.get_terminal_size().columns
        lines = re.sub("\n{3,}", "\n\n", page).split("\n")
        return self._stream.write("\n".join(
            line if len(line) <= width or "\x1b" in line else textwrap.fill(line, width, break_on_hyphens=False)
            for line in lines))


def option_texts(options: Any) -> dict[str, str]:
    """The text of each option, which stands below it in the source, in one line."""
    texts: dict[str, str] = {}
    for cls in reversed(options.__mro__[:-1]):
        texts |= {ast.unparse(option.target): " ".join(ast.literal_eval(text.value).split())
                  for definition in ast.parse(inspect.getsource(cls)).body if isinstance(definition, ast.ClassDef)
                  for option, text in pairwise(definition.body)
                  if isinstance(option, ast.AnnAssign) and isinstance(text, ast.Expr)}
    return texts


def options_for_help(options: Any) -> type:
    """These options with the text of each in one line, and without None as a choice, or beside "by default"."""
    texts, parts = option_texts(options), []
    annotated, hints = get_type_hints(options, include_extras=True), get_type_hints(options)
    for f in fields(options):
        literals = [get_args(kind) for kind in get_args(hints[f.name]) if get_origin(kind) is Literal]
        changes = arg(help=texts[f.name], help_behavior_hint="" if "by default" in texts[f.name] else None,
                      metavar=f"{{{','.join(literals[0])}}}" if literals and f.default is None else None)
        parts.append((f.name, Annotated[annotated[f.name], changes], f))  # ty: ignore[invalid-type-form]  # computed
    paragraphs = inspect.cleandoc(options.__doc__ or "").split("\n\n")
    description = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    return make_dataclass(options.__name__, parts, namespace={"__doc__": description}, kw_only=True)
