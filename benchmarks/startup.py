"""How long the command line takes to answer: python benchmarks/startup.py

Help needs no PyTorch, and is promised in under 0.5 s of processor time; the medians of 5 starts are printed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

STARTS, PROMISED = 5, 0.5
COMMANDS = (["--help"], ["--version"], ["train", "--help"], ["eval", "--help"], ["record", "--help"], ["methods"])


def seconds(args: list[str]) -> tuple[float, float]:
    """(wall, processor) of one start."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "understudy", *args], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (time.perf_counter() - began,
            after.children_user + after.children_system - before.children_user - before.children_system)


def main() -> int:
    slow = []
    print(f"{'understudy ...':20s} {'wall s':>8s} {'processor s':>12s}")
    for args in COMMANDS:
        wall, cpu = (statistics.median(column) for column in zip(*(seconds(args) for _ in range(STARTS)), strict=True))
        print(f"{' '.join(args):20s} {wall:8.2f} {cpu:12.2f}", flush=True)
        if args[-1] in ("--help", "--version") and cpu >= PROMISED:
            slow.append(args)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
