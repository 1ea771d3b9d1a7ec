"""What the process in which a policy of LeRobot plans adds to a plan: a part of python benchmarks/serving.py."""

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


def lines(seconds: float) -> list[measure.Line]:
    """What the process adds to a plan, from a state and from pictures."""
    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    from fixtures.lerobot_stand_in import write_checkpoint, write_python

    measured, what = [], {"direct": "a state", "cameras": "a state and two pictures of 640×480"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = write_python(folder / "python", "fixtures.lerobot_stand_in.install")
        for kind, observation in what.items():
            process = LeRobotProcess(str(write_checkpoint(folder / kind, kind)), python)
            planner, added, within = RemotePlanner(process), [], []
            request = process.request

            def noted(message, request=request, within=within):
                reply = request(message)
                within.append(reply["seconds"])
                return reply
            process.request = noted
            rng = np.random.default_rng(0)
            obs = {n: torch.from_numpy(rng.integers(0, 256, (1, 1, *f.shape)).astype(f.dtype))
                   for n, f in planner.features.items() if n in planner.inputs}
            noise = planner.noise(keys(0, [0]), torch.zeros(1, dtype=torch.int64))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                began = time.perf_counter()
                planner.plan(obs, noise)
                added.append(1000 * (time.perf_counter() - began - within[-1]))
            process.close()
            what_adds = f"a process for LeRobot, {observation}: what it adds to a plan"
            measured += [measure.milliseconds(f"{what_adds}, p50", added, 50, 2.0, f"{len(added):,} plans"),
                         measure.milliseconds(f"{what_adds}, p95", added, 95)]
    return measured
