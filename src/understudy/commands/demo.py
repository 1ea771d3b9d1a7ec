"""understudy demo"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from .common import Device, Out, bar, parse


@dataclass(frozen=True)
class Demo:
    """From demonstrations to a judged policy on a toy task, in a few minutes on a CPU.

    Records a scripted expert that has two equally good ways round an obstacle, trains a policy that averages and one
    that chooses, lets both act from the same starts, and says which is better, by how much and how sure that is.
    After Ctrl-C the same command goes on.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("understudy-demo")
    """the folder to write"""
    device: Device = "cpu"
    """where to compute; networks as small as these are fastest on a CPU"""


def main(args: list[str]) -> None:
    o = parse(Demo, "demo", args)
    from ..learn.devices import device

    device(o.device)  # before anything is recorded
    out = Out()
    out.say(f"understudy demo: everything goes to {o.out}; Ctrl-C at any point, and the same command goes on.\n")
    from ..demo import commands, demo

    demo(o.out, device=o.device, say=out.say, bar=bar)
    out.say(f"Look at it: {o.out / 'report.html'}")
    out.next(*(command for command, what in commands(o.out)))
