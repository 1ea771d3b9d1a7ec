"""Conditions on the command line: a desired return, a number of steps, a goal, a task in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Schema
    from ..data.episode import Dataset
    from ..learn.method import Method
    from .eval_options import RolloutOptions

EXAMPLE = "such as --condition return_to_go=100 goal=0.2,0.5"


def parse_conditions(texts: Sequence[str], features: Schema) -> dict[str, Tensor]:
    """Parses the arguments of --condition.

    Args:
        texts: One text per column: its name with or without "observation.", "=", and its numbers with commas.
        features: The columns of the environment.

    Returns:
        The values by column, (n,) float32.

    Raises:
        ConfigError: A text does not have this form, a column is named twice, or the environment shows it.
    """
    import torch

    from ..core import ConfigError

    found: dict[str, Tensor] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        try:
            numbers = [float(part) for part in rest.split(",")]
        except ValueError:
            numbers = []
        if not name or not numbers or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"{text!r} is not of the form NAME=NUMBER or NAME=NUMBER,NUMBER,...", where="--condition",
                              hint=EXAMPLE)
        name = name if name.startswith("observation.") else f"observation.{name}"
        if name in found:
            raise ConfigError(f"{name!r} is given twice", where="--condition", hint="give each column once")
        if name in features:
            raise ConfigError(f"the environment shows {name!r} itself", where="--condition", hint="leave it out")
        found[name] = torch.tensor(numbers)
    return found


def given_conditions(o: RolloutOptions) -> list[str]:
    """The options --task and --condition as they were given, to repeat them in another command."""
    return [*(("--task", o.task) if o.task else ()), *(("--condition", *o.condition) if o.condition else ())]


def open_conditions(method: Method, features: Schema) -> list[str]:
    """The columns whose first value must be given while a method acts, because neither it nor the environment does.

    Args:
        method: The method.
        features: The columns of the environment.
    """
    from ..learn.method import runtime_relabels

    return [name for part in runtime_relabels(method) if (name := part.open_condition) and name not in features]


def example_conditions(data: Dataset, method: Method) -> list[str]:
    """The option --condition with what the episode of the largest return had, for a method that needs conditions.

    Args:
        data: The demonstrations.
        method: The method.
    """
    from ..learn.method import apply_transforms, runtime_relabels

    parts = [part for part in runtime_relabels(method) if part.open_condition]
    names = open_conditions(method, {})
    first = [[float(e.steps[name].ravel()[0]) for name in names] for e in apply_transforms(data, parts)
             if len(e)] if names else []
    return ["--condition", *(f"{name.removeprefix('observation.')}={value:g}"
                             for name, value in zip(names, max(first), strict=True))] if first else []
