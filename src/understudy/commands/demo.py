"""The command understudy demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from .parts.common import Output, parse, progress_bar
from .parts.groups import DeviceName, DeviceOption, command_options


@command_options
class DemoOptions(DeviceOption):
    """Run the whole workflow on a toy task, from demonstrations to evaluated policies, in a few minutes on a CPU.

    Records a scripted expert that has two equally good ways around an obstacle, and trains three policies: one that
    chooses between the ways, one that averages them, and the plainest baseline. All are rolled out from the same starts
    and compared with intervals. After Ctrl-C the same command continues.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("understudy-demo")
    """the folder to write"""
    device: DeviceName = "cpu"
    """where to compute; networks as small as these are fastest on a CPU"""


def main(args: list[str]) -> None:
    o = parse(DemoOptions, "demo", args)
    from ..learn.devices import choose_device

    choose_device(o.device)  # before anything is recorded
    out = Output()
    out.print(f"understudy demo: everything goes to {o.out}; Ctrl-C at any point, and the same command continues.\n")
    from ..demo import commands, demo

    demo(o.out, device=o.device, say=out.print, bar=progress_bar)
    out.print(f"Look at it: {o.out / 'report.html'}")
    out.suggest(*(command for command, what in commands(o.out)))
