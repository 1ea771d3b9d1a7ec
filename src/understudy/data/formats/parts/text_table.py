"""Reads tables of text (CSV): finds the separator, the column names, and the cells.

Columns are separated by commas, semicolons, tabs, bars or blanks. If line 1 has numbers in place of names, the columns
are called 0, 1, 2, ..., as in pandas.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....core import DataError, UserError
from .read_errors import damaged

# The first that fits separates the columns. A comma comes late, because it may be the decimal point of a number.
_SEPARATORS = {";": "a semicolon", "\t": "a tab", "|": "a bar", ",": "a comma", " ": "a blank"}
MAX_CELL_BYTES = 1 << 24  # a JSON document of a step fits into a cell
_LINE = 1 << 16  # characters of a line that are read for the names of the columns
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class TextTable:
    """The column names and the cells of a text table.

    Args:
        cells: The cells of each row, as many as there are names.
        lines: The line on which each row ends.
        note: What is unusual about line 1. Empty if it has names.
    """

    names: list[str]
    cells: list[list[str]]
    lines: list[int]
    note: str


def read_names(file: Path) -> list[str]:
    """Reads the names of the columns from the first two lines of a table."""
    try:
        with _open(file) as handle:
            lines = [handle.readline(_LINE), handle.readline(_LINE)]
        rows = [row for row in _reader(lines, _find_separator(lines)) if row]
    except UnicodeDecodeError:
        raise not_utf8(file) from None
    except csv.Error as error:
        raise damaged(f"this is not a table of text ({error})", file) from None
    return _names(rows)[0] if rows else []


def read_table(file: Path) -> TextTable:
    """Reads all cells of a table."""
    csv.field_size_limit(MAX_CELL_BYTES)
    try:
        with _open(file) as handle:
            lines = handle.readlines()
        separator = _find_separator(lines)
        reader = _reader(lines, separator, strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError:
        raise not_utf8(file) from None
    except csv.Error as error:
        raise damaged(f"this is not a table of text ({error})", file) from None
    if any(CONTROL_CHARACTERS.search(text) for _, row in rows for text in row):
        raise damaged("the text contains control characters", file)
    names, has_line_of_names, note = _names([row for _, row in rows[:2]]) if rows else ([], True, "")
    rows = rows[1:] if has_line_of_names else rows
    if not rows:
        raise damaged(f"there is no line of {'values' if names else 'names'}", file)
    if len(set(names)) < len(names) or "" in names:
        invalid_name = next(n for n in names if names.count(n) > 1 or not n)
        raise UserError(f"a column has no name, or that of another column: {invalid_name!r}", where=f"{file}, line 1",
                        hint="give each column its own name. The first column that pandas writes has none: "
                             "table.to_csv(FILE, index=False)")
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f"there are {len(row)} values for {len(names)} names", where=f"{file}, line {line}",
                            hint="line 1 must have the name of each column, and each row a value for each; a value "
                                 f"with {_SEPARATORS[separator]} needs quotes")
        if separator != "," and (cell := next((c for c in row if _DECIMAL_COMMA.fullmatch(c.strip())), None)):
            raise DataError(f"a number has a comma in place of the point: {cell!r}", where=f"{file}, line {line}",
                            hint="write points (1.5), such as with pandas.read_csv(FILE, sep=None, engine='python', "
                                 "decimal=',').to_csv(NEW, index=False)")
    return TextTable(names, [row for _, row in rows], [line for line, _ in rows], note)


def _open(file: Path):
    return open(file, encoding="utf-8-sig", newline="")


def _reader(lines: Sequence[str], separator: str, strict: bool = False):
    """Returns a csv reader of the lines. Line 1 may be a comment, and several blanks separate columns like one."""
    def plain() -> Iterator[str]:
        for number, line in enumerate(lines):
            text = line.lstrip("#") if number == 0 else line
            yield f"{' '.join(text.split())}\n" if separator == " " else text
    return csv.reader(plain(), delimiter=separator, strict=strict)


def _find_separator(lines: Sequence[str]) -> str:
    """Returns the separator that gives the first two lines equally many cells, or else one from the first line."""
    lines = [line for line in lines[:8] if line.strip()][:2]
    counts = {s: [len(row) for row in _reader(lines, s)] for s in _SEPARATORS}
    alike = [s for s, n in counts.items() if n and n[0] > 1 and len(set(n)) == 1]
    return next(iter([*alike, *(s for s in (",", ";", "\t", "|") if counts[s][:1] > [1])]), ",")


def _names(rows: Sequence[Sequence[str]]) -> tuple[list[str], bool, str]:
    """Returns the column names, whether they are in line 1, and what is unusual about it, from the first two rows.

    A line of names has a word over a value, or no value at all.
    """
    first, second = [cell.strip() for cell in rows[0]], rows[-1] if len(rows) > 1 else ()
    numbers = [str(i) for i in range(len(first))]
    if not any(map(_is_value, first)) or any(
            not _is_value(a) and _is_value(b) for a, b in zip(first, second, strict=False)):
        return first, True, ""
    if first == numbers and len(first) > 1 and second:
        return first, True, "line 1 is 0, 1, ..., which are read as names of columns, as pandas writes them"
    return numbers, False, f"line 1 has values and no names, so that the columns are called 0 to {numbers[-1]}"


def _is_value(cell: str) -> bool:
    """Returns whether a cell has a number or a flag."""
    try:
        return cell.strip().lower() in ("true", "false") or "_" not in cell and float(cell) is not None
    except ValueError:
        return False


def not_utf8(file: Path) -> DataError:
    """Returns the error for a table that is not UTF-8. It names the line and the column of the first wrong byte."""
    text = file.read_bytes()
    try:
        text.decode("utf-8")
        at = 0
    except UnicodeDecodeError as error:
        at = error.start
    names = text.split(b"\n", 1)[0].decode("latin-1").strip().split(",")
    line, column = text.count(b"\n", 0, at) + 1, text[text.rfind(b"\n", 0, at) + 1: at].count(b",")
    problem = f"byte 0x{text[at]:02x}, which is {text[at:at + 1].decode('latin-1')!r} in Latin-1"
    location, encoding = f"line {line}, column {names[min(column, len(names) - 1)]}", "LATIN1"
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problem, location, encoding = "it is UTF-16", "line 1", "UTF-16"
    command = shlex.join(["iconv", "-f", encoding, "-t", "UTF-8", str(file)])
    return DataError(f"the text is not UTF-8: {problem}", where=f"{file}, {location}",
                     hint=f"save the table as UTF-8 (in a spreadsheet: CSV UTF-8), or convert it: {command} > NEW.csv")
