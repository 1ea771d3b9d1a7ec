"""Prints the help page of a command, from its options and the texts below them."""

from __future__ import annotations

import contextlib
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, make_dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO, cast, get_args, get_origin, get_type_hints

from tyro.conf import arg

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

NAME_WIDTH, TEXT_WIDTH = 16, 28  # characters of columns in narrow terminals


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
    """A stream that wraps long lines in the description of a command, which tyro prints."""

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


@dataclass(frozen=True)
class OptionTable:
    """A table of options, their defaults and perhaps their meanings, as `rich` prints them.

    Names stay whole: what follows a name that is wider than its column begins in the next line.

    Args:
        rows: The header, and the texts of each option.
    """

    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        names, defaults, *texts = ([*map(len, column)] for column in zip(*self.rows, strict=True))
        default_width = min(max(defaults), options.max_width // 4)
        other_widths = default_width + 2 + (TEXT_WIDTH + 2 if texts else 0)
        name_width = min(max(names), max(options.max_width - other_widths, NAME_WIDTH))
        text_width = max(options.max_width - name_width - default_width - 4, 1)
        for i, (name, *cells) in enumerate(self.rows):
            columns = [textwrap.wrap(cell, width, break_on_hyphens=False)
                       for cell, width in zip(cells, (default_width, text_width)[:len(cells)], strict=True)]
            lines = [*zip_longest([name] if len(name) <= name_width else [], *columns, fillvalue="")]
            for line in lines if len(name) <= name_width else [(name,), *lines]:
                padded = map(str.ljust, line, (name_width, default_width, text_width))
                yield Text("  ".join(padded).rstrip(), "" if i else "bold")


def option_texts(options: Any) -> dict[str, str]:
    """Returns the text of each option, which stands below it in the source, in one line."""
    from docstring_parser import parse_from_object

    return {option.arg_name: " ".join((option.description or "").split())
            for cls in reversed(options.__mro__[:-1]) for option in parse_from_object(cls).params}


def options_for_help(options: Any) -> type:
    """Returns a copy of the options for the help page, with their texts."""
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
