"""Converts frozen dataclasses to JSON and back, by import path. There is no registry of classes.

A checkpoint names code, so loading one may import only from packages that the caller trusts.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .core import ConfigError, UserError, unknown_name
from .hints import trust_hint
from .user_code import import_module

T = TypeVar("T")


class UntrustedCode(UserError, PermissionError):
    """Raised when a file names code outside the trusted packages."""


def dump(value):
    """Converts a value to plain JSON data.

    Args:
        value: Finite numbers, text, None, tuples, dictionaries, frozen dataclasses, or functions of a module.

    Raises:
        TypeError: The value contains something else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        if not cls.__dataclass_params__.frozen or not _is_top_level(cls):
            raise TypeError(f"{cls.__qualname__} cannot be written: it must be a frozen dataclass at the top of its "
                            "module, since nothing else can be loaded again")
        dumped_fields = {f.name: dump(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"$": f"{cls.__module__}:{cls.__qualname__}", **dumped_fields}
    if isinstance(value, (tuple, list)):
        return [dump(v) for v in value]
    if isinstance(value, dict):
        if invalid_keys := [k for k in value if not isinstance(k, str) or k == "$"]:
            raise TypeError(f"{invalid_keys[0]!r} cannot be written as a key: keys are text other than '$'")
        return {k: dump(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{value} cannot be written as JSON: a config holds finite numbers only")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if callable(value) and not isinstance(value, type) and _is_top_level(value):
        return {"$": f"{value.__module__}:{value.__qualname__}", "call": False}
    raise TypeError(f"{type(value).__name__} is not plain data: a config holds only numbers, text, tuples, "
                    "module-level functions and frozen dataclasses")


def _is_top_level(value) -> bool:
    """Returns whether a class or function is found under its name in its module, where `load` searches."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    return module is not None and getattr(module, getattr(value, "__qualname__", "."), None) is value


def packages_in(data) -> tuple[str, ...]:
    """Returns the packages whose code JSON data name, in alphabetical order."""
    pending, packages = [data], set()
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if isinstance(path := part.get("$"), str):
                packages.add(path.partition(":")[0].split(".")[0])
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return tuple(sorted(packages))


def load(data, trust: tuple[str, ...] = ("understudy",), where: str = ""):
    """Converts JSON data that `dump` wrote to the value.

    Args:
        trust: Packages whose code may be loaded.

    Raises:
        UntrustedCode: The data name code of another package.
        ConfigError: A field is unknown or invalid. The message names its key.
    """
    try:
        return _load(data, trust, where)
    except RecursionError:
        raise ConfigError("the values are nested too deeply", where=where or None, hint="take it from a copy") from None


def _load(data, trust: tuple[str, ...], where: str):
    if isinstance(data, list):
        return tuple(_load(v, trust, f"{where}[{i}]") for i, v in enumerate(data))
    if not isinstance(data, dict):
        return data
    if "$" not in data:
        return {k: _load(v, trust, f"{where}.{k}") for k, v in data.items()}
    if not isinstance(data["$"], str):
        raise ConfigError(f"names code by {str(data['$'])[:80]!r}, which is not text", where=where or None,
                          hint="take it from a copy")
    data = current_document(data)
    path, definition = _find(data["$"], trust, where)
    if data.get("call") is False:
        # Only functions defined at the top of that very module: what a module merely imports is not its own.
        if not callable(definition) or isinstance(definition, type) or definition.__module__ != path:
            raise UntrustedCode(f"{data['$']} is not a function of that module", where=where or None)
        return definition
    # Only frozen dataclasses: otherwise "os:system" of a trusted package's imports would do.
    if not (isinstance(definition, type) and is_dataclass(definition) and definition.__dataclass_params__.frozen
            and definition.__module__ == path):
        raise UntrustedCode(f"{data['$']} is not a frozen dataclass of that module", where=where or None)
    name, field_names = definition.__name__, [f.name for f in fields(definition) if f.init]
    arguments = {k: _load(v, trust, f"{where}.{k}" if where else k) for k, v in data.items() if k != "$"}
    for key in arguments:
        if key not in field_names:
            raise unknown_name("field", key, field_names, f"{where}.{key}" if where else key, owner=name,
                               hint="remove the key")
    for f in fields(definition):
        if f.init and f.name not in arguments and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{name} needs a field {f.name!r}, but has {', '.join(arguments) or 'none'}",
                              where=where or None, hint="add it: it has no default")
    for key, value in arguments.items():
        if not _fits(value, _field_types(definition).get(key)):
            raise ConfigError(f"{name}.{key} cannot be {str(value)[:80]!r}", where=f"{where}.{key}" if where else key,
                              hint="take it from a copy")
    return definition(**arguments)


@cache
def _field_types(definition: type) -> dict[str, object]:
    """Returns the types of the fields. Empty if a module imports the names of its types for type checkers only."""
    with suppress(NameError):
        return get_type_hints(definition, include_extras=True)
    return {}


def _fits(value, kind) -> bool:
    """Whether a value read from JSON may stand in a field of this type. Some types are not compared, and everything
    fits them. One of them is Literal: `core.part` checks its values and proposes the nearest one."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        kinds = repeat(parts[0]) if parts[-1:] == (...,) else parts
        return isinstance(value, tuple) and all(map(_fits, value, kinds))
    kind = origin or kind
    if kind in (int, float):  # True is an int of Python, and 1 is a float of JSON
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind is None:  # not known
        return True
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol
        return True


def find_class(name: str, base: type[T], trust: tuple[str, ...] = ("understudy",), where: str = "") -> type[T]:
    """Finds the class that "package.module:Class" names, a subclass of `base`.

    Raises:
        UntrustedCode: The package is not trusted, or the name does not lead to a subclass of `base` that is defined in
            this module.
        UserError: There is no such module.
    """
    path, named_class = _find(name, trust, where)
    if not (isinstance(named_class, type) and issubclass(named_class, base) and named_class.__module__ == path):
        raise UntrustedCode(f"{name} is not a {base.__name__} of that module", where=where or None)
    return named_class


def _find(name: str, trust: tuple[str, ...], where: str):
    """Returns the module path of "package.module:name", and the object or None, if the package is trusted."""
    path, _, attribute = current_name(name).partition(":")
    package = path.split(".")[0]
    if package not in trust:
        raise UntrustedCode(f"names {name}, which is outside the trusted packages ({', '.join(trust)})",
                            where=where or None, hint=trust_hint(package))
    try:
        definition = getattr(import_module(path, where or path), attribute, None)
    except UserError:
        if package != "understudy":
            raise
        definition = None
    if definition is None:
        raise ConfigError(f"names {name}, which does not exist", where=where or None,
                          hint=_version_hint(package, where))
    return path, definition


def _version_hint(package: str, where: str) -> str:
    """Returns the hint for a file whose code no longer exists: which version wrote it, if that is known."""
    from . import __version__

    named = re.match(r".*?\.json", where)
    folders = () if named is None else (Path(named[0]).parent, Path(named[0]).parent.parent.parent)  # modules/NAME/
    if package != "understudy":
        return f"install the version of {package} with which it was written, or correct the name"
    version = next(filter(None, map(written_version, folders)), None)
    if version is not None and version != __version__:
        return (f"it was written by understudy {version}, and this is {__version__}: install {version} "
                f"(pip install understudy=={version}), or train it again")
    return f"this is understudy {__version__}: install the version that wrote the file, or correct the name"


def written_version(checkpoint: Path) -> str | None:
    """Returns the version of understudy that wrote the checkpoint in a folder. None if it is not stored."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        version = json.loads((checkpoint / "provenance.json").read_text(encoding="utf-8"))["versions"]["understudy"]
        return version if isinstance(version, str) else None
    return None


# -- names and fields of earlier versions ------------------------------------------------------------------------------

# A file names code by its import path. If you move or rename something that a file of version 0.3 or later can name,
# or change its fields, add an entry here. An entry names the present place, never an old place that has an entry
# itself.
MOVED: dict[str, str] = {  # old "module" or "module:Name": the present one
    # limits of robots, which people write for their arms: limits in files of version 0.2 are read too
    f"understudy.robots.safety:{name}": f"understudy.robots.limits:{name}"
    for name in ("Link", "SafetyLimits", "SafetyState", "Workspace")
}
# old or present "module:Name": function of its JSON, without "$", that returns the present fields
UPGRADES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {}


def current_name(name: str) -> str:
    """Returns the present "module:Name" of a class or function that may have moved."""
    module, _, attribute = name.partition(":")
    return MOVED.get(name) or f"{MOVED.get(module, module)}:{attribute}"


def current_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a dataclass with its present name and fields. Nested dataclasses stay as they are."""
    old = document["$"]
    field_values = {name: value for name, value in document.items() if name != "$"}
    upgrade = UPGRADES.get(old) or UPGRADES.get(current_name(old), dict)
    return {"$": current_name(old), **upgrade(field_values)}
