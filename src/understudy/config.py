"""Frozen dataclasses to JSON and back, by import path. No registry: a new head needs no entry.

A checkpoint names code, so loading one may import only from packages that the caller trusts.
"""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from dataclasses import MISSING, fields, is_dataclass

from .core import UserError


class UntrustedCode(UserError, PermissionError):
    """The file names code outside the trusted packages."""


def dump(value):
    """Plain JSON data. Raises TypeError for anything that is not numbers, text, tuples and frozen dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        kept = {f.name: dump(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"$": f"{cls.__module__}:{cls.__qualname__}", **kept}
    if isinstance(value, (tuple, list)):
        return [dump(v) for v in value]
    if isinstance(value, dict):
        return {k: dump(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{value} cannot be written as JSON: a recipe holds finite numbers only")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if callable(value) and getattr(value, "__module__", None) and "<" not in getattr(value, "__qualname__", "<"):
        return {"$": f"{value.__module__}:{value.__qualname__}", "call": False}
    raise TypeError(f"{type(value).__name__} is not plain data: a recipe holds only numbers, text, tuples, "
                    "module-level functions and frozen dataclasses")


def load(data, trust: tuple[str, ...] = ("understudy",), where: str = ""):
    """The value that `dump` wrote. Raises Untrusted, or UserError naming the key that is wrong."""
    if isinstance(data, list):
        return tuple(load(v, trust, f"{where}[{i}]") for i, v in enumerate(data))
    if not isinstance(data, dict):
        return data
    if "$" not in data:
        return {k: load(v, trust, f"{where}.{k}") for k, v in data.items()}
    path, _, name = data["$"].partition(":")
    package = path.split(".")[0]
    if package not in trust:
        raise UntrustedCode(f"names {data['$']}, which is outside the trusted packages ({', '.join(trust)})",
                        where=where or None, hint=f"add --trust {package} if you trust that code to run")
    found = getattr(_import_module(path, where), name, None)
    if data.get("call") is False:
        # Only functions defined at the top of that very module: what a module merely imports is not its own.
        if not callable(found) or isinstance(found, type) or found.__module__ != path:
            raise UntrustedCode(f"{data['$']} is not a function of that module", where=where or None)
        return found
    # Only frozen dataclasses: otherwise "os:system" of a trusted package's imports would do.
    if not (isinstance(found, type) and is_dataclass(found) and found.__dataclass_params__.frozen
            and found.__module__ == path):
        raise UntrustedCode(f"{data['$']} is not a frozen dataclass of that module", where=where or None)
    known = [f.name for f in fields(found) if f.init]
    given = {k: load(v, trust, f"{where}.{k}" if where else k) for k, v in data.items() if k != "$"}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UserError(f"{name} has no field {key!r}; it has {', '.join(known)}",
                            where=f"{where}.{key}" if where else key,
                            hint=f"did you mean {near[0]!r}?" if near else "remove the key")
    for f in fields(found):
        if f.init and f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{name} needs a field {f.name!r}, found {', '.join(given) or 'none'}",
                            where=where or None, hint="add it: it has no default")
    return found(**given)


def _import_module(path: str, where: str):
    if path in sys.modules:
        return sys.modules[path]
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no module {error.name}", where=where or path,
                        hint="install the package that defines it") from error
