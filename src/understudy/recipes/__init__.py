"""Named methods as data: functions of at most twenty lines, one file a family. None has a loop or a class."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data.relabel import Relabel
from ..execute.base import Executor
from ..execute.chunked import Receding
from ..learn.clone import Cloning
from ..learn.fit import Learning
from ..policy import Recipe


@dataclass(frozen=True)
class Method:
    """A whole experiment as one value, written to method.json: what the policy is, how it is run, how it learns, and
    what is done to the data first."""

    policy: Recipe
    run: Executor = field(default_factory=Receding)
    learn: Learning = field(default_factory=Cloning)
    data: tuple[Relabel, ...] = ()
