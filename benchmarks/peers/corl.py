"""Opens CORL's single files (github.com/tinkoff-ai/CORL, at 6afec90) without what they import for environments and
logging, which is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

ABSENT = ("d4rl", "gym", "pyrallis", "wandb", "tqdm", "tqdm.auto")


def opened(path: Path) -> ModuleType:
    """The module of a single file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where its dataclasses look for their annotations
    wrap = SimpleNamespace(wrap=lambda: lambda function: function)
    with mock.patch.dict(sys.modules, {**{name: mock.MagicMock() for name in ABSENT}, "pyrallis": wrap}):
        spec.loader.exec_module(module)
    return module
