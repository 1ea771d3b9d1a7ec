"""From a recipe and what the command line changes in it to a method."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..core import Schema, UserError
from ..data.relabel import TaskText
from ..learn.method import Method
from ..methods import METHODS, find_function, find_method
from .common import parse_into


def build_method(name: str, options: Sequence[str], changes: Sequence[str], features: Schema | None,
              trust: tuple[str, ...], command: str, say: TaskText | None = None) -> Method:
    """`options` go to the recipe's function, `changes` to any field of what it returns; `say` gives it the task
    in words. Raises UserError with the nearest right name for a field that is not there."""
    method = find_method(name, features, trust, **_parse_options(find_function(name, trust), options))
    if say is not None and task_relabel(method) is None:
        method = replace(method, transforms=(*method.transforms, say))
    return parse_into(Method, changes, command, method) if changes else method


def task_relabel(method: Method) -> TaskText | None:
    """What gives the method the task in words, if anything does."""
    return next((relabel for relabel in method.transforms if isinstance(relabel, TaskText)), None)


def method_options(name: str) -> dict[str, Any]:
    """The options of a named method's function, with their defaults."""
    known = inspect.signature(METHODS[name]).parameters.values()
    return {p.name: p.default for p in known if p.name != "features"}


def _parse_options(function, args: Sequence[str]) -> dict[str, Any]:
    """The values are read as the types that the function's annotations say; `find` knows which names there are."""
    hints = typing.get_type_hints(function) if function is not None else {}
    found, pending = {}, [part for a in args for part in (a.split("=", 1) if a.startswith("--") else [a])]
    while pending:
        key = pending.pop(0).removeprefix("--method.").replace("-", "_")
        if not pending or pending[0].startswith("--method."):
            raise UserError("expected a value, found none", where=f"--method.{key}",
                            hint=f"such as --method.{key} VALUE")
        text = pending.pop(0)
        found[key] = _parse_value(hints.get(key, str), text, f"--method.{key}")
    return found


def _parse_value(kind, text: str, where: str) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if typing.get_origin(kind) is typing.Literal and text in typing.get_args(kind):
        return text
    try:
        if kind in (int, float, str):
            return kind(text)
    except ValueError:
        pass
    wanted = " or ".join(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else kind.__name__
    raise UserError(f"expected {'true or false' if kind is bool else wanted}, found {text!r}", where=where,
                    hint="understudy methods NAME says what can be set")


def method_settings(value, at: str = "") -> Iterator[tuple[str, Any]]:
    """("policy.head.steps", 10), ...: every field that `method_of` can change, in order."""
    for f in fields(value):
        path, now = f"{at}.{f.name}" if at else f.name, getattr(value, f.name)
        if is_dataclass(now):
            yield from method_settings(now, path)
        elif isinstance(now, tuple) and any(map(is_dataclass, now)):
            for i, part in enumerate(now):
                yield from method_settings(part, f"{path}.{i}")
        elif now is None or isinstance(now, (bool, int, float, str)) or now and isinstance(now, tuple):
            yield path, " ".join(map(str, now)) if isinstance(now, tuple) else now
