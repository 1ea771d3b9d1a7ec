"""Builds a method from its name and the changes on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from ...core import ConfigError, Schema, UserError
from ...data.text_columns import TaskText
from ...hints import command_line
from ...learn.method import Method, with_steps
from ...methods import find_function, find_method, method_parameters
from .options import (
    arity,
    change_fields,
    errors_name_options,
    flag_of,
    parse_changes,
    parse_value,
    settable_fields,
)


def build_method(name: str, options: Sequence[str], changes: Sequence[str], features: Schema | None,
                 trust: tuple[str, ...], say: TaskText | None = None, executor: str | None = None,
                 steps: int | None = None, flags: Sequence[str] = ()) -> Method:
    """Builds the method that a command names.

    Args:
        name: The name of a method, "module:function", or the path of a method.json or a run.
        options: Options of the method: ["--horizon", "8"]. What its function has no argument for is a field of its
            learner.
        changes: New values of fields of its parts: ["--policy.head.n_steps", "5"].
        executor: What takes the place of the method's executor: see `with_executor`.
        steps: Number of updates, in place of the method's: see `learn.method.with_steps`.
        flags: Options of the command, which an error may suggest in place of an unknown one.
    """
    options, fields = _divide(options, method_options(name, trust))
    changes = [*fields, *changes]
    function_options = _parse_options(find_function(name, trust), options)
    with errors_name_options({key: flag_of(key) for key in function_options}):
        method = find_method(name, features, trust, **function_options)
    chosen = {path: value for path, _, value in settable_fields(method)}
    if say is not None and task_relabel(method) is None:
        method = _with_words(method, name, say)
    if executor is not None:
        method = with_executor(method, executor, trust)
    if steps is not None:
        if function_options:
            _check_update_options(method, function_options, find_method(name, features, trust))
        method = with_steps(method, steps)
    if not changes:
        return method
    changed = change_fields(method, changes, command_line("train", name),
                            [*flags, *(flag_of(option) for option in method_options(name, trust))])
    if function_options:
        _check_fields_are_set_once(chosen, find_method(name, features, trust), changed, options)
    return changed


def given_options_of_method(method: Method, name: str, args: Sequence[str], trust: tuple[str, ...]) -> dict[str, Any]:
    """Returns the options of a method that a command gives, as JSON data.

    Args:
        method: What `build_method` made of them.
    """
    options, changes = _divide(args, method_options(name, trust))
    return method_options_to_json({**_parse_options(find_function(name, trust), options),
                                   **parse_changes(method, changes, command_line("train", name))})


def method_options_to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of a method as JSON data, such as {"optimizer.lr": 0.001}.
    """
    return {key.removeprefix("learner."): type(value).__name__ if is_dataclass(value) else
            list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _with_words(method: Method, name: str, say: TaskText) -> Method:
    if method.policy.inputs and say.into not in method.policy.inputs:
        raise ConfigError(f"{name} reads {', '.join(method.policy.inputs)}, and no words", where="--language",
                          hint="leave it out, or train a method that reads all observations, such as bc-gmm")
    return replace(method, transforms=(*method.transforms, say))


def _check_fields_are_set_once(chosen: Mapping[str, Any], usual: Method, changed: Method,
                               options: Sequence[str]) -> None:
    """Refuses changes of fields that options of the method's function have set to another value."""
    before, now = ({path: value for path, _, value in settable_fields(m)} for m in (usual, changed))
    for path in (p for p in chosen if p in before and p in now and chosen[p] not in (before[p], now[p])):
        raise ConfigError(f"contradicts {' '.join(options)}, which sets this field to {chosen[path]}",
                          where=flag_of(path), hint="leave one of the two out")


def _divide(args: Sequence[str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """Splits options, with their values, into options of these names and all other options."""
    named, others = [], []
    into = others
    for word in args:
        if word.startswith("--"):
            into = named if word[2:].partition("=")[0].replace("-", "_") in names else others
        into.append(word)
    return named, others


def _check_update_options(method: Method, function_options: Collection[str], usual: Method) -> None:
    """Refuses options of a method's function that say how many updates a round has, together with --steps."""
    updates, usual_updates = (getattr(m.collection, "updates", None) for m in (method, usual))
    if updates is not None and updates != usual_updates:
        options = " ".join(map(flag_of, function_options))
        raise ConfigError(f"is the number of all updates, and {options} sets that of each round to "
                          f"{updates.describe()}", where="--steps", hint="leave one of the two out")


def with_executor(method: Method, text: str, trust: tuple[str, ...] = ()) -> Method:
    """Returns the method with another executor.

    Args:
        text: Name of an execution scheme or "module:Class", and possibly options of the executor after it, such as
            "real-time-chunking --executor.delay 3".
    """
    from ...learn.execution import with_execution_scheme

    name, *changes = shlex.split(text)
    method = with_execution_scheme(method, name, trust)
    return change_fields(method, changes, f"--executor {name}") if changes else method


def task_relabel(method: Method) -> TaskText | None:
    """Returns the transform that gives the method the task in words. None if there is none."""
    return next((relabel for relabel in method.transforms if isinstance(relabel, TaskText)), None)


def method_options(name: str, trust: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the options of a method that are not fields of its parts, with their defaults.

    Args:
        name: The name of a method, "module:function", or the path of a method.json or a run.
    """
    function = find_function(name, trust)
    parameters = {} if function is None else method_parameters(function, fields=False)
    return {name: p.default for name, p in parameters.items()}


def method_option_texts(name: str, method: Method, trust: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns the texts of options from the docstrings of a method's function or class, and of its learner."""
    from docstring_parser import DocstringStyle, parse

    function: Any = find_function(name, trust)
    documented = [getattr(function, "method", function), *type(method.learner).__mro__]
    described = [p for each in reversed(documented) for p in parse(each.__doc__ or "", DocstringStyle.GOOGLE).params]
    return {p.arg_name: " ".join((p.description or "").split()) for p in described}


def _parse_options(function, args: Sequence[str]) -> dict[str, Any]:
    """Parses the words of options as the types of the method function's annotations, or else of its defaults.

    `find_method` refuses unknown names.
    """
    parameters = {} if function is None else method_parameters(function)
    hints = {name: type(p.default) if p.annotation is p.empty else p.annotation for name, p in parameters.items()
             if p.annotation is not p.empty or type(p.default) in (bool, int, float)}
    settings, pending = {}, [part for a in args for part in (a.split("=", 1) if a.startswith("--") else [a])]
    while pending:
        key, words = pending.pop(0).removeprefix("--").replace("-", "_"), []
        option = flag_of(key)
        while pending and not pending[0].startswith("--"):  # an option may have several numbers or names
            words.append(pending.pop(0))
        if not words and hints.get(key) is not bool:  # --every-step alone is true
            raise UserError("has no value", where=option, hint=f"such as {option} VALUE")
        kind = hints.get(key, str)
        if (most := arity(kind)[1]) is not None and len(words) > max(most, 1):
            raise ConfigError(f"unexpected argument {words[max(most, 1)]!r}", where="understudy train",
                              hint="name METHOD and DATA first, and then the options of the method")
        settings[key] = parse_value(kind, words, option, "understudy train")
    return settings
