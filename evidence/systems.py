"""The table of systems: what a user types, the test that shows it right, and where it is compared with a plain rival.

`systems.tsv` has one line for each row of the ledger. `status` is computed from its entries.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import importlib
import inspect
import io
import re
import shlex
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from understudy.audit.scores.registry import ENV_SCORES, SCORES
from understudy.cli import main
from understudy.commands.parts.command_list import COMMANDS
from understudy.commands.parts.method import method_options
from understudy.core import UserError, unknown_name
from understudy.learn.execution import EXECUTION_SCHEMES
from understudy.methods import method_files

from .tables import Comparison, find_table

FILE = Path(__file__).parent / "systems.tsv"
ROOT = Path(__file__).parents[1]
COLUMNS = ("row", "name", "family", "title", "arxiv", "use", "right", "works", "note")
Status = Literal["works", "no gain", "not at this scale", "experiment only", "missing"]
STATUSES: tuple[Status, ...] = ("works", "no gain", "not at this scale", "experiment only", "missing")
NOT_AT_THIS_SCALE = "not at this scale: "
TEST = re.compile(r"(tests/\S+\.py)::(\w+)(?:\[[^\]]*\])?(?: \((.+)\))?")
PYTHON = re.compile(r"(understudy(?:\.\w+)*):(\w+(?:\.\w+)*)(?:\(([\w, ]*)\))?")


@dataclass(frozen=True)
class System:
    """A published system.

    Attributes:
        row: Its number in the ledger, three digits.
        use: Commands and names of Python, separated by "; ": `understudy train hiql`, `understudy.module:Name(field)`.
        right: Tests, separated by "; ": `tests/test_file.py::test_name (what it compares with)`.
        works: "TABLE | ARM | RIVAL | MEASURE | lower COST", the last two optional; or "not at this scale: " and why.
        note: Why something is missing, or what is left out.
    """

    row: str
    name: str
    family: str
    title: str
    arxiv: str
    use: str
    right: str
    works: str
    note: str

    @property
    def comparison(self) -> Comparison | None:
        """The comparison with the plainest rival that `works` names."""
        if not self.works or self.works.startswith(NOT_AT_THIS_SCALE):
            return None
        table, arm, rival, *options = self.works.split(" | ")
        return find_table(table).compare(arm, rival, options[0] if options and options[0] else "success")

    @property
    def shows_nothing(self) -> bool:
        """Whether the table says that no comparison can be read from it."""
        return bool(find_table(self.works.split(" | ")[0]).shows_nothing)

    @property
    def status(self) -> Status:
        """The status by the rules of the table."""
        comparison = self.comparison
        if not self.use or not self.right:
            return "experiment only" if comparison is not None else "missing"
        if comparison is None or self.shows_nothing:
            return "not at this scale" if self.works else "missing"
        is_cheaper = len(self.works.split(" | ")) > 4
        if comparison.word == "better" or comparison.word == "equal" and is_cheaper:
            return "works"
        return "not at this scale" if comparison.word == "open" else "no gain"


def systems() -> list[System]:
    """All systems, in the order of the file.

    Raises:
        UserError: A line has too few columns, or a number that is used twice.
    """
    with FILE.open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if tuple(head) != COLUMNS:
        raise UserError(f"the columns must be {', '.join(COLUMNS)}", where=f"{FILE}, line 1",
                        hint="separate them by tabs")
    rows: dict[str, System] = {}
    for number, line in enumerate(lines, 2):
        if len(line) != len(COLUMNS) or not re.fullmatch(r"\d{3}", line[0]) or line[0] in rows:
            raise UserError(f"the line has {len(line)} columns, or its number is not three digits or used twice",
                            where=f"{FILE}, line {number}", hint=f"columns: {', '.join(COLUMNS)}")
        rows[line[0]] = System(*line)
    return list(rows.values())


def table() -> list[dict[str, str]]:
    """The table as `python -m evidence systems --json` prints it."""
    return [{**{key: value for key, value in asdict(system).items() if key not in ("title", "arxiv")},
             "status": system.status} for system in systems()]


def problems(system: System) -> list[str]:
    """What the entries of a system name and does not exist."""
    wrong_entries = [problem for use in filter(None, system.use.split("; ")) if (problem := _wrong_use(use))]
    wrong_entries += [problem for test in filter(None, system.right.split("; ")) if (problem := _wrong_test(test))]
    try:
        system.comparison  # noqa: B018
    except (UserError, ValueError) as error:
        wrong_entries.append(f"works: {error}")
    return wrong_entries


def _wrong_use(use: str) -> str | None:
    if match := PYTHON.fullmatch(use):
        module, path, arguments = match.groups()
        try:
            value: Any = importlib.import_module(module)
            for name in path.split("."):
                value = getattr(value, name)
            parameters = inspect.signature(value).parameters if arguments else {}
        except (ImportError, AttributeError) as error:
            return f"use: {use}: {error}"
        unknown = [name for name in re.findall(r"\w+", arguments or "") if name not in parameters]
        return f"use: {use} has no argument {', '.join(unknown)}" if unknown else None
    if not use.startswith("understudy "):
        return f"use: {use} is neither a command nor understudy.module:Name"
    return _wrong_command(shlex.split(use)[1:])


def _wrong_command(words: list[str]) -> str | None:
    command, *arguments = words
    if command not in COMMANDS:
        return str(unknown_name("command", command, COMMANDS))
    text = output_of(command, "--help")
    if command == "train" and arguments and not arguments[0].isupper():
        if arguments[0] not in method_files():
            return str(unknown_name("method", arguments[0], method_files()))
        own = " ".join(f"--{name}" for name in method_options(arguments[0])).replace("_", "-")
        text += output_of("methods", arguments[0]) + own
    for option, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if not option.startswith("--"):
            continue
        if not re.search(rf"{re.escape(option)}(?![\w-])", text):
            return f"use: understudy {' '.join(words[:2])} has no option {option}"
        values = {"--score": {**SCORES, **ENV_SCORES}, "--executor": EXECUTION_SCHEMES}.get(option, text)
        if re.fullmatch(r"[a-z][a-z0-9-]*", value) and value not in values:
            return f"use: understudy {command} {option} does not know {value}"
    return None


@cache
def output_of(*words: str) -> str:
    """What a command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(list(words))
    return printed.getvalue()


def _wrong_test(test: str) -> str | None:
    match = TEST.fullmatch(test)
    if match is None:
        return f"right: {test} is not tests/file.py::test_name (what it compares with)"
    file, name, _ = match.groups()
    if not (ROOT / file).is_file():
        return f"right: {file} does not exist"
    return None if name in _tests_of(file) else f"right: {file} has no {name}"


@cache
def _tests_of(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)}
