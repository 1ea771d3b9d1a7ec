"""Reads the command options with which a run was made, and finds its data.

The entry "options" of a provenance.json has the name of the "command", the value of each of its options by the name of
the field, and "method_options": the options of the method that were given.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ...core import ConfigError
from .common import command_line, option_words, read_provenance, recorded_data_of, unused_path
from .improve_options import ImproveOptions
from .options import (
    flag_of,
    flag_words,
    is_option,
    options_from_json,
    options_of,
    options_to_json,
)
from .policies import run_folder
from .train_options import TrainOptions

T = TypeVar("T")


def run_options(command: str, o: Any, method_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the options of a command as JSON data, for `learn.train.train` to store in the run.

    Args:
        method_options: Options of the method that were given: see `parts.method.given_options_of_method`.
    """
    more = {} if method_options is None else {"method_options": dict(method_options)}
    return {"command": command, **options_to_json(o), **more}


def stored_options(run: Path) -> dict[str, Any]:
    """Returns the options of the command that made a run, as JSON data. Empty for a run without a command."""
    if (stored := read_provenance(run).get("options")) is None:
        return {}
    entries = stored if isinstance(stored, dict) else {}
    for key, value, kind in (("options", stored, dict), ("options.command", entries.get("command"), str),
                             ("options.method_options", entries.get("method_options", {}), dict)):
        if not isinstance(value, kind):
            raise ConfigError(f"{value!r} is not {'text' if kind is str else 'an object'}",
                              where=f"{_provenance_file(run)}: {key}", hint="take the file from a copy")
    return stored


def option_texts(words: Sequence[str]) -> dict[str, Any]:
    """Returns options of methods with unknown types as JSON data: {"batch_size": "64", "some_flag": True}."""
    texts: dict[str, list[str]] = {}
    key = ""
    for word in words:
        if is_option(word):
            flag, equals, text = word.partition("=")
            key = flag.removeprefix("--").replace("-", "_")
            texts[key] = [text] if equals else []
        else:
            texts[key].append(word)
    return {key: values[0] if len(values) == 1 else values or True for key, values in texts.items()}


def train_options_of(run: Path) -> TrainOptions | None:
    """Returns the options of the command train that made a run. None if another command did."""
    return _options_of(run, "train", TrainOptions)


def improve_options_of(run: Path) -> ImproveOptions | None:
    """Returns the options of the command improve that made a run. None if another command did."""
    if (o := _options_of(run, "improve", ImproveOptions)) is None:
        return None
    return replace(o, run=_seen_from_here(run, o.out, o.run),
                   data=None if o.data is None else _seen_from_here(run, o.out, o.data))


def _options_of(run: Path, command: str, owner: type[T]) -> T | None:
    stored = stored_options(run)
    if stored.get("command") != command:
        return None
    values = {name: value for name, value in stored.items() if name not in ("command", "method_options")}
    return options_from_json(owner, values, f"{_provenance_file(run)}: options")


def _provenance_file(run: Path) -> Path:
    from ...checkpoint import find_checkpoint

    return find_checkpoint(run) / "provenance.json"


def train_arguments(run: Path, data: Path | str | None = None, without: Collection[str] = ()) -> list[object] | None:
    """Returns the arguments of the command train that made a run. None if another command did.

    Args:
        data: The path of other data.
        without: Names of options that are left out.
    """
    if (o := train_options_of(run)) is None:
        return None
    defaults = {f.name: f.default for f in fields(o)}
    words = [word for option in options_of(TrainOptions) if not option.is_positional and option.name not in without
             and (value := getattr(o, option.name)) != defaults[option.name] for word in option_words(option, value)]
    for name, value in stored_options(run).get("method_options", {}).items():
        values = value if isinstance(value, list) else () if value is True else (value,)
        words += flag_words(flag_of(name), [str(v).lower() if v is None or isinstance(v, bool) else v for v in values])
    return ["train", o.method, *filter(None, [data or o.data]), *words]


def reseeded_command(run: Path) -> tuple[str, str] | None:
    """Returns the command that trains a run again with another seed, and its output folder.

    None if another command than train made the run, or if the command would mean something else in this folder.
    """
    from ...checkpoint import find_checkpoint

    o = train_options_of(run)
    if o is None or not find_checkpoint(run).resolve().is_relative_to(o.out.resolve()):
        return None
    other = unused_path(f"{o.out}-seed{o.seed + 1}")
    arguments = train_arguments(run, without=("out", "seed")) or ()
    return command_line(*arguments, "--out", other, "--seed", o.seed + 1), other


def learns_interrupted(run: Path) -> bool:
    """Returns whether a run was asked to learn from episodes with an interrupted recording."""
    improve = improve_options_of(run)
    if improve is not None:
        return improve.run.exists() and learns_interrupted(improve.run)
    o = train_options_of(run)
    return o is not None and o.include_interrupted


# -- data -------------------------------------------------------------------------------------------------------------


def trained_on(run: Path) -> Path | None:
    """Returns the path of the data that a run was trained on.

    For a run that was improved, this is the path of the data that the first run was trained on.
    """
    improve = improve_options_of(run)
    if improve is not None:
        return improve.data or (trained_on(improve.run) if improve.run.exists() else None)
    stored, o = stored_path(run), train_options_of(run)
    if o is None:
        return stored
    path = _seen_from_here(run, o.out, o.out / "random" / "episodes.npz" if o.data is None else o.data)
    return path if path.exists() or stored is None or not stored.exists() else stored


def _seen_from_here(run: Path, out: Path, path: Path) -> Path:
    """Returns a path in the options of a run as seen from here, since it may be relative to another folder.

    Args:
        out: The folder of the run, as its options name it.
    """
    folder, n_parts = run_folder(run).resolve(), len(out.parts)
    if out.is_absolute() or folder.parts[-n_parts:] != out.parts:
        return path
    source = folder.parents[n_parts - 1] / path
    return source if source.exists() and source.resolve() != path.resolve() else path


def stored_path(run: Path) -> Path | None:
    """Returns the path of the data that a run stores, relative to its folder. None if it stores none."""
    from ...data.formats.remote import url_of

    path = recorded_data_of(run).get("path")
    if path is None:
        return None
    return Path(path if url_of(path) is not None else os.path.relpath(run_folder(run).resolve() / path))


def missing_data(path: Path | None) -> str:
    """Says in words that the data of a run are not there, and where they were looked for."""
    if path is None:
        return "the data that it was trained on are not named: its data had no path"
    place = "" if path.is_absolute() else f" ({path.absolute()})"
    return f"the data that it was trained on are gone: {path}{place}"
