"""What the commands share: parsing, and where words, progress and JSON go."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

T = TypeVar("T")

Env = Annotated[str, Positional, arg(metavar="ENV")]
Trust = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PACKAGE")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Count = Annotated[int, arg(metavar="N")]


def parse(options: type[T], command: str, args: Sequence[str]) -> T:
    """Ends the process with status 2 and an explanation if these are not its options."""
    found = tyro.cli(options, prog=f"understudy {command}", args=list(args), config=(tyro.conf.FlagCreatePairsOff,))
    if getattr(found, "trust", ()) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # one's own file beside one, which an installed script does not see; last
    return found


class Out:
    """Words for people on standard output, or, with --json, one document there and nothing else."""

    def __init__(self, json: bool = False):
        self.json, self.stdout = json, sys.stdout
        wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
        self.console = Console(quiet=json, markup=False, highlight=False, emoji=False, soft_wrap=True, width=wide)

    def __enter__(self) -> Out:
        if self.json:
            sys.stdout = sys.stderr  # libraries greet there
        return self

    def __exit__(self, *error) -> None:
        sys.stdout = self.stdout

    def say(self, *things) -> None:
        for thing in things or ("",):
            self.console.print(thing)

    def next(self, *commands: str) -> None:
        """The sensible things to do now."""
        self.say("\nnext:", *(f"  {c}" for c in commands))

    def answer(self, document) -> None:
        if self.json:
            self.stdout.write(json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what is not finite is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
