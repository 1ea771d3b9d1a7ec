"""Every command in the source that a message may propose has only options that the command has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from folders import REPOSITORY

from understudy.commands.parts.command_list import COMMANDS, options_class
from understudy.commands.parts.options import options_of

FILES = sorted((REPOSITORY / "src" / "understudy").rglob("*.py"))
COMMAND = re.compile(r"understudy ([a-z]+)((?: (?:[^\n;:()`\"',.]|[.,](?! ))*)?)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*(?:\.[a-zA-Z0-9_.-]*\w)?")
NESTED = {"train": ("--policy.", "--learner.", "--method.", "--executor.", "--augmentation."),
          "choose": ("--policy.", "--learner.")}


def flags_of(command: str) -> set[str]:
    return {option.flag for option in options_of(options_class(command))} | {"--help", "--debug"}


def text_of(node: ast.AST) -> str:
    """A text with X in place of its values. Empty for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def proposed(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """The commands that a file builds or writes: command, option, line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "command_line" and node.args and (
                command := text_of(node.args[0])) in COMMANDS:
            for part in (p for argument in node.args[1:] for p in ast.walk(argument) if isinstance(p, ast.Constant)):
                for option in OPTION.findall(text_of(part)):
                    yield command, option, part.lineno
        for command, words in COMMAND.findall(text_of(node)):
            if command in COMMANDS:
                for option in OPTION.findall(words):
                    yield command, option, node.lineno


def test_proposed_commands_have_the_options_that_they_are_given():
    unknown, n_options = [], 0
    for path in FILES:
        for command, option, line in proposed(ast.parse(path.read_text(encoding="utf-8"))):
            n_options += 1
            nested = NESTED.get(command, ("--robot.", "--teleop."))
            if option not in flags_of(command) and not option.startswith(nested):
                unknown.append(f"{path.relative_to(REPOSITORY)}:{line}: understudy {command} has no {option}")
    assert not unknown, "\n".join(unknown)
    assert n_options > 100
    example = "print(f'try understudy eval {run} --episodes 3, or --no'), command_line('act', run, *['--fps', 3])"
    assert {part[:2] for part in proposed(ast.parse(example))} == {("eval", "--episodes"), ("act", "--fps")}
