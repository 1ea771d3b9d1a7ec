"""Imports the names that packages export only when they are used, because importing PyTorch is slow."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, str]) -> tuple[
        Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` for a package whose names are imported on use.

    Args:
        modules: Exported names, with the module of the package that defines each.
    """
    def find(name: str) -> Any:
        if name in modules:
            return getattr(import_module(f".{modules[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return find, lambda: sorted({*vars(sys.modules[package]), *modules}), sorted(modules)
