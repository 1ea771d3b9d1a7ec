"""Parses a command's arguments into its options, and changes of single fields into a new method.

Options are a frozen dataclass with tyro's annotations, and tyro prints the help page from them. Arguments are parsed
here, so that each error is a `ConfigError` in the words of the user.
"""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional, UseAppendAction, arg

from ...core import ConfigError, Limit, is_of_kind, unknown_name
from ...hints import did_you_mean, path_text

T = TypeVar("T")

_NEGATIVE_NUMBER = re.compile(r"-(\d|\.\d|inf)")  # a value, not an option
_TYPE_NAMES = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("text", "texts"),
               Path: ("a path", "paths")}
_SYNONYMS = {"gpu": "cuda"}  # values that people write, and how they are spelled here
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Advice:
    """Hint for a number outside the limits of an option, given in the option's type."""

    text: str


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        flag: How the user writes it: "--image-size", or the metavar of a positional argument.
        kind: The type of its value; of a repeatable option, the type of one occurrence.
        is_repeatable: Each occurrence adds one element.
        metavar: What stands for its value in messages.
        limits: Limits of its numbers: ``Annotated[int, AtLeast(1)]``.
        advice: The hint for a number outside them.
    """

    name: str
    flag: str
    kind: Any
    is_positional: bool
    is_repeatable: bool
    is_required: bool
    metavar: str
    limits: tuple[Limit, ...]
    advice: str


@cache
def options_of(owner: Any) -> tuple[Option, ...]:
    """Returns the options that a dataclass declares, in order."""
    options, hints, annotated = [], get_type_hints(owner), get_type_hints(owner, include_extras=True)
    for f in fields(owner):
        kind, hint = hints[f.name], annotated[f.name]
        markers = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        config: Any = next((m for m in markers if isinstance(m, type(arg()))), arg())
        is_positional, is_repeatable = Positional in markers, UseAppendAction in markers
        flag = config.metavar if is_positional and config.metavar else "--" + (config.name or f.name).replace("_", "-")
        is_required = f.default is MISSING and f.default_factory is MISSING
        usual = f"such as {flag} {f.default if isinstance(f.default, (int, float)) else 100}"
        options.append(Option(f.name, flag, get_args(kind)[0] if is_repeatable else kind, is_positional, is_repeatable,
                              is_required, config.metavar or "", tuple(m for m in markers if isinstance(m, Limit)),
                              next((m.text for m in markers if isinstance(m, Advice)), usual)))
    return tuple(options)


def split_arguments(args: Sequence[str], options: type) -> tuple[list[str], list[str], list[str]]:
    """Splits the arguments of a command by their receiver.

    An option that is none of the command, and the values after it, belong to the method.

    Args:
        options: The options of the command.

    Returns:
        The command's own arguments, options of the method ("--expectile 0.9"), and changes of fields of its parts
        ("--policy.head.n-steps 5"). Names of these fields have a dot.
    """
    flags = {"--help", *(option.flag for option in options_of(options))}
    own, of_method, changes = [], [], []
    into = own
    for word in args:
        if word.startswith("--"):
            name = word.partition("=")[0]
            is_own = name.replace("_", "-") in flags or f"{name.partition('.')[0]}.NAME" in flags  # a field of LeRobot
            into = own if is_own else changes if "." in name else of_method
        (own if word == "-h" else into).append(word)
    return own, of_method, changes


def explain_missing(options: Sequence[str], error: ConfigError) -> None:
    """Raises a better ConfigError if METHOD is missing because options of the method come before it."""
    if options and "missing METHOD" in str(error):
        raise ConfigError(f"{options[0].partition('=')[0]} comes before METHOD", where="understudy train",
                          hint="name METHOD and DATA first, and then the options of the method") from None


def present_names(args: Sequence[str]) -> list[str]:
    """Returns arguments with --NAME in place of --learner.NAME and --method.NAME, as earlier versions called it."""
    return [re.sub(r"^--(?:(?:learner|method)\.)+", "--", word) for word in args]


def flag_of(path: str) -> str:
    """Returns the option that sets a field of a method, such as "--policy.head.n-steps"."""
    return "--" + path.removeprefix("learner.").replace("_", "-")


def flag_words(flag: str, values: Sequence[object]) -> list[object]:
    """Returns an option and its values as words of a command."""
    return [f"{flag}={values[0]}"] if len(values) == 1 and is_option(path_text(values[0])) else [flag, *values]


def options_to_json(o: Any) -> dict[str, Any]:
    """Returns the options of a command as JSON data, by the names of their fields."""
    def plain(value: Any) -> Any:
        return [*map(plain, value)] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return {option.name: plain(getattr(o, option.name)) for option in options_of(type(o))}


def options_from_json(owner: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds options from the JSON data of `options_to_json`. What is missing has its default.

    Args:
        where: File and key of the data, for errors.
    """
    kinds, read = get_type_hints(owner), {}
    for name, value in values.items():
        if name not in kinds:
            raise unknown_name("option", name, list(kinds), f"{where}.{name}", hint="remove the key")
        is_path = isinstance(value, str) and Path in _members(kinds[name])
        read[name] = Path(value) if is_path else tuple(value) if isinstance(value, list) else value
        if not is_of_kind(read[name], kinds[name]):
            raise ConfigError(f"{value!r} is not {_describe(kinds[name])}", where=f"{where}.{name}",
                              hint="take the file from a copy")
    if missing := [o.name for o in options_of(owner) if o.is_required and o.name not in read]:
        raise ConfigError(f"has no {missing[0]}", where=where, hint="take the file from a copy")
    return owner(**read)


@contextmanager
def errors_name_options(flags: Mapping[str, str]) -> Iterator[None]:
    """Replaces names of fields in errors by the options that set them. A context manager.

    Args:
        flags: The options that the user gave, by the names of the fields that they set.
    """
    try:
        yield
    except ConfigError as error:
        if (flag := flags.get(str(error.where).rpartition(".")[2])) is None:
            raise
        raise ConfigError(error.problem, where=flag, hint=error.hint) from None


def _suggest_option(flag: str, flags: Iterable[str]) -> str:
    """Returns the question "did you mean '--optimizer.lr'?" for --lr, or "" if no option is near.

    Options with the same last part come first. Among these, options that also begin with the same part come first.
    """
    first, _, last = flag.removeprefix("--").rpartition(".")
    same = sorted((f for f in flags if f.rpartition(".")[2].removeprefix("--") == last),
                  key=lambda f: (not f.startswith(f"--{first.partition('.')[0]}."), f.count(".")))
    return did_you_mean(same[0], same) if same else did_you_mean(flag, flags, cutoff=0.75)


def parse_options(owner: type[T], args: Sequence[str], prog: str) -> T:
    options = options_of(owner)
    flags = {o.flag: o for o in options if not o.is_positional}
    values: dict[str, Any] = {}
    loose, named = _split(args, {flag: arity(o.kind) for flag, o in flags.items()}, prog)
    for flag, words in named:
        option = flags[flag]
        value = parse_value(option.kind, words, flag, prog)
        earlier = values.get(option.name, ())
        takes_several = arity(option.kind)[1] is None  # --freeze net --freeze encoder is --freeze net encoder
        values[option.name] = ((*earlier, value) if option.is_repeatable else
                               (*earlier, *value) if takes_several else value)
    for option in (o for o in options if o.is_positional):
        count = arity(option.kind)[1]
        taken, loose = loose[:count], loose[count:] if count is not None else []
        if taken:
            values[option.name] = parse_value(option.kind, taken, prog, prog)
    if loose:
        raise ConfigError(f"unexpected argument {loose[0]!r}", where=prog, hint=_help_hint(prog))
    if missing := [o for o in options if o.is_required and o.name not in values]:
        names = ", ".join(o.flag if o.is_positional else f"{o.flag} {o.metavar}".strip() for o in missing)
        raise ConfigError(f"missing {names}", where=prog, hint=_help_hint(prog))
    for option in options:
        if option.limits and isinstance(number := values.get(option.name), (int, float)):
            _check_limits(option, number)
    return owner(**values)


def _check_limits(option: Option, number: float) -> None:
    """Raises ConfigError for a number outside the limits of an option. NaN is outside."""
    if not all(limit.holds(number, limit.limit) for limit in option.limits):
        limits = " and ".join(f"{limit.word} {limit.limit}" for limit in option.limits)
        raise ConfigError(f"must be {limits}, but is {number:g}", where=option.flag, hint=option.advice)


def split_pair(option: str, text: str, example: str) -> tuple[str, str]:
    """Splits an argument such as OLD=NEW into its two sides."""
    first, equals, second = text.partition("=")
    if not (equals and first and second):
        raise ConfigError(f"{text!r} is not two names with = between them", where=option,
                          hint=f"such as {option} {example}")
    return first, second


def split_pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    """Parses the arguments of an option such as OLD=NEW. Raises ConfigError if one OLD is given twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        first, second = split_pair(option, text, example)
        if first in pairs:
            raise ConfigError(f"{first!r} is given twice, as {pairs[first]} and {second}", where=option,
                              hint="give each name once")
        pairs[first] = second
    return pairs


def refuse_given(o: Any, names: Iterable[str], problem: str, hint: str = "leave it out") -> None:
    """Raises ConfigError for the first option of these names that does not have its default value."""
    defaults = {f.name: f.default for f in fields(o)}
    for option in options_of(type(o)):
        if option.name in names and getattr(o, option.name) != defaults[option.name]:
            raise ConfigError(problem, where=option.flag, hint=hint)


def change_fields(value: T, args: Sequence[str], prog: str, more_flags: Iterable[str] = ()) -> T:
    """Returns a copy of a nested frozen dataclass with some fields changed: see `parse_changes`."""
    changes: dict[str, Any] = {}
    for path, changed in parse_changes(value, args, prog, more_flags).items():
        *parents, last = path.split(".")
        node = changes
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = _Changed(changed)
    return _with_changes(value, changes)


def parse_changes(value: Any, args: Sequence[str], prog: str, more_flags: Iterable[str] = ()) -> dict[str, Any]:
    """Parses new values of fields of a nested frozen dataclass, by their paths.

    Args:
        value: The dataclass, such as a method.
        args: Pairs of an option and its values, such as ["--policy.head.n_steps", "5"].
        more_flags: Further options of the command, which an error may suggest in place of an unknown one.
    """
    kinds = {flag_of(path): (path, kind) for path, kind, _ in settable_fields(value)}
    for flag in (word.partition("=")[0].replace("_", "-") for word in args if is_option(word)):
        if inside := [option for option in kinds if option.startswith(f"{flag}.")]:
            raise ConfigError(
                f"there is no option {flag}: a part is not exchanged on the command line, only its fields are set, "
                f"such as {inside[0]}", where=prog,
                hint="to exchange the part, write a function that returns the method, and train module:function")
    arities = {flag: (0, 1) if kind is bool else arity(kind) for flag, (_, kind) in kinds.items()}
    loose, named = _split(args, arities, prog, more_flags)
    if loose:
        raise ConfigError(f"unexpected argument {loose[0]!r}", where=prog, hint=_help_hint(prog))
    return {kinds[flag][0]: parse_value(kinds[flag][1], words, flag, prog) for flag, words in named}


@dataclass(frozen=True)
class _Changed:
    value: Any


def _with_changes(value, changes, prefix: str = ""):
    if isinstance(changes, _Changed):
        return changes.value
    if isinstance(value, tuple):
        return tuple(_with_changes(v, changes.get(str(i), {}), f"{prefix}{i}.") for i, v in enumerate(value))
    if not changes:
        return value
    changed_fields = {k: _with_changes(getattr(value, k), c, f"{prefix}{k}.") for k, c in changes.items()}
    with errors_name_options({k: flag_of(f"{prefix}{k}") for k, c in changes.items() if isinstance(c, _Changed)}):
        return replace(value, **changed_fields)


@dataclass(frozen=True)
class PartChoice:
    """The type of a field that holds one of several parts without fields, such as a solver. Users write its class."""

    classes: tuple[type, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.__name__ for part in self.classes)


def _part_choice(kind: Any) -> PartChoice | None:
    """Returns the choice among dataclasses without fields that implement abstract classes of a field."""
    if not all(inspect.isclass(k) and inspect.isabstract(k) for k in _members(kind)):
        return None
    parts: list[type] = []
    pending = [(part, k.__module__) for k in _members(kind) for part in k.__subclasses__()]
    while pending:
        part, module = pending.pop(0)
        pending += [(p, module) for p in part.__subclasses__()]
        if part.__module__ == module and not inspect.isabstract(part) and is_dataclass(part) and not fields(part):
            parts.append(part)
    return PartChoice(tuple(parts)) if len(parts) > 1 else None


_field_types = cache(get_type_hints)


def settable_fields(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Lists every field of a nested dataclass that the command line can change, in order.

    Yields:
        The path of the field, its type, and its value.
    """
    hints = _field_types(type(value))
    for f in fields(value):
        path, now = f"{prefix}{f.name}", getattr(value, f.name)
        if is_dataclass(now) and not fields(now) and (choice := _part_choice(hints[f.name])) is not None:
            yield path, choice, type(now).__name__
        elif is_dataclass(now):
            yield from settable_fields(now, f"{path}.")
        elif isinstance(now, tuple) and any(map(is_dataclass, now)):
            for i, part in enumerate(now):
                if is_dataclass(part):
                    yield from settable_fields(part, f"{path}.{i}.")
        elif _is_readable(hints[f.name]):
            yield path, hints[f.name], now


# -- values -----------------------------------------------------------------------------------------------------------


def parse_value(kind: Any, words: Sequence[str], where: str, prog: str) -> Any:
    """Parses the words that the user gave for one option."""
    low, _ = arity(kind)
    if not words and low:
        several = arity(kind)[1] is None
        raise ConfigError("needs at least one value, but has none" if several else
                          f"needs {'a value' if low == 1 else f'{low} values'}, but has none", where=where,
                          hint=f"name them, or leave {where} out" if several else _help_hint(prog))
    if len(words) < low:
        raise ConfigError(f"needs {low} values, but has only {' '.join(words)}", where=where, hint=_help_hint(prog))
    try:
        return _read(kind, words)
    except (ValueError, KeyError):
        choices = [c for k in _members(kind) if get_origin(k) is Literal for c in get_args(k)]
        choices += kind.names if isinstance(kind, PartChoice) else ()
        value = " ".join(words)
        raise ConfigError(f"{value!r} is not {_describe(kind)}", where=where,
                          hint=_help_hint(prog, did_you_mean(_SYNONYMS.get(value.lower(), value), choices))) from None


def _help_hint(prog: str, suggestion: str = "") -> str:
    return f"{suggestion} {prog} --help says what can be set".strip()


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_readable(kind: Any) -> bool:
    """Returns whether values of this type can be written on a command line."""
    if get_origin(kind) is tuple:
        return all(_is_readable(k) for k in get_args(kind) if k is not Ellipsis)
    return all(k in (*_TYPE_NAMES, bool, type(None)) or get_origin(k) is Literal
               or get_origin(k) is tuple and _is_readable(k) for k in _members(kind))


def arity(kind: Any) -> tuple[int, int | None]:
    """Returns the smallest and the largest number of words that make a value; None for any number."""
    if kind is bool:
        return 0, 0
    if kind is type(None):
        return 1, 1
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return (1, None) if Ellipsis in parts else (len(parts), len(parts))
    if len(members := _members(kind)) > 1:
        counts = [arity(k) for k in members]
        highs = [high for _, high in counts if high is not None]
        most = max(highs) if len(highs) == len(counts) else None
        return min(low for low, _ in counts), most
    return 1, 1


def _read(kind: Any, words: Sequence[str]) -> Any:
    """Converts words to a value of type `kind`. Raises ValueError or KeyError if they are not such a value."""
    if len(members := _members(kind)) > 1:
        for member in sorted(members, key=lambda k: k in (str, Path)):  # text is what nothing else is
            try:
                return _read(member, words)
            except (ValueError, KeyError):
                continue
        raise ValueError
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if Ellipsis in parts:
            return tuple(_read(parts[0], [w]) for w in words)
        if len(parts) != len(words):
            raise ValueError
        return tuple(_read(k, [w]) for k, w in zip(parts, words, strict=True))
    if kind is bool and not words:
        return True
    if len(words) != 1:
        raise ValueError
    word = words[0]
    if kind is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if kind is type(None) and word.lower() == "none":
        return None
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[word]
    if isinstance(kind, PartChoice):
        return {part.__name__.lower(): part for part in kind.classes}[word.lower()]()
    if kind in _TYPE_NAMES:
        return kind(os.path.expanduser(word) if kind is Path else word)  # no shell expands the ~ of --out=~/run
    raise ValueError


def _describe(kind: Any) -> str:
    """Describes a type in words: "an integer or two integers"."""
    if len(members := _members(kind)) > 1:
        return " or ".join(dict.fromkeys(_describe(k) for k in members if k is not type(None)))
    if get_origin(kind) is Literal or isinstance(kind, PartChoice):
        *choices, last = kind.names if isinstance(kind, PartChoice) else map(str, get_args(kind))
        return f"{', '.join(choices)} or {last}" if choices else last
    if get_origin(kind) is tuple:
        part, *other_parts = get_args(kind)
        plural = _TYPE_NAMES[part][1] if part in _TYPE_NAMES else "values"
        return plural if Ellipsis in other_parts else f"{_COUNTS[1 + len(other_parts)]} {plural}"
    return "true or false" if kind is bool else _TYPE_NAMES[kind][0] if kind in _TYPE_NAMES else str(kind)


# -- words ------------------------------------------------------------------------------------------------------------


def _split(args: Sequence[str], arities: dict[str, tuple[int, int | None]], prog: str,
           more_flags: Iterable[str] = ()) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Splits arguments into words that belong to no option, and (flag, its words) of each option.

    Args:
        more_flags: Further options, which an error may suggest.
    """
    loose: list[str] = []
    named: list[tuple[str, list[str]]] = []
    pending = list(args)
    while pending:
        word = pending.pop(0)
        if not is_option(word):
            loose.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if flag not in arities:
            raise ConfigError(f"there is no option {name}", where=prog,
                              hint=_help_hint(prog, _suggest_option(flag, [*arities, *more_flags])))
        words, most = [value] if equals else [], arities[flag][1]
        while pending and not equals and (most is None or len(words) < most) and not is_option(pending[0]):
            words.append(pending.pop(0))
        named.append((flag, words))
    return loose, named


def is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NEGATIVE_NUMBER.match(word)
