"""Measures how much longer a plan takes because LeRobot plans in another process: a part of benchmarks/serving.py."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import torch

from understudy.core import keys
from understudy.serve.lerobot_process import LeRobotProcess
from understudy.serve.remote import RemotePlanner

KINDS = {"direct": "a state", "cameras": "a state and two pictures of 640×480"}  # of the policy that stands in


def lines(seconds: float) -> list[measure.Line]:
    """What the process adds to a plan, measured for so long with each kind of policy."""
    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    from fixtures.lerobot_stand_in import write_checkpoint, write_python

    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = write_python(folder / "python", "fixtures.lerobot_stand_in.install")
        for kind, observation in KINDS.items():
            process = LeRobotProcess(str(write_checkpoint(folder / kind, kind)), python)
            added = _added(process, seconds)
            process.close()
            what = f"a process for LeRobot, {observation}: what it adds to a plan"
            measured += [measure.milliseconds(f"{what}, p50", added, 50, 2.0, f"{len(added):,} plans"),
                         measure.milliseconds(f"{what}, p95", added, 95)]
    return measured


def _added(process: LeRobotProcess, seconds: float) -> list[float]:
    """The time of each plan, less that in which the process plans (ms)."""
    added, within, request = [], [], process.request

    def noted(message):
        reply = request(message)
        within.append(reply["seconds"])
        return reply
    process.request = noted
    planner, rng = RemotePlanner(process), np.random.default_rng(0)
    obs = {name: torch.from_numpy(rng.integers(0, 256, (1, 1, *planner.features[name].shape)).astype(
        planner.features[name].dtype)) for name in planner.inputs}
    noise = planner.noise(keys(0, [0]), torch.zeros(1, dtype=torch.int64))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        planner.plan(obs, noise)
        added.append(1000 * (time.perf_counter() - began - within[-1]))
    return added
