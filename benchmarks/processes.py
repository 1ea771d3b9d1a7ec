"""Two processes that train one policy, beside one process with the same batch: python benchmarks/processes.py

The same updates of a diffusion policy (U-Net of 5 M weights) on *fork*, in fp32: by one process, and by two under
torchrun (gloo, one thread each), in turns. What they learn must agree to rounding. The time is that of the wall, since
two cores at once are the point, and starting is left out. Where two cores are threads of one, or busy otherwise,
little is gained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

STEPS, WARM, BATCH, TURNS, NEAR = 40, 5, 256, 5, 1e-4


def work(out: Path) -> None:
    """One of the processes."""
    from dataclasses import replace

    import torch

    from understudy import make, rollout
    from understudy.learn import devices
    from understudy.learn.fit_method import fit_method
    from understudy.methods import find_method

    torch.set_num_threads(1)
    env = make("fork", 50)
    data = rollout(env.expert(), env, 50, seed=1)
    method = find_method("diffusion-policy", data.features())
    # The noise of a batch belongs to its parts: two parts in any number of processes are the same two.
    optimizer = replace(method.learner.optimizer, precision="fp32", accumulation_steps=2)
    method = replace(method, learner=replace(method.learner, steps=STEPS, batch_size=BATCH, optimizer=optimizer))
    with devices.process_group(torch.device("cpu")) as processes:
        times, learners = [], []

        def look(step, learner, metrics):
            if step in (WARM, STEPS):
                processes.wait()
                times.append(time.perf_counter())
                learners.append(learner)
        fit_method(method, data, 0, callbacks=(look,))
        seconds = times[1] - times[0]
        if processes.first:
            weights = torch.cat([p.detach().flatten() for p in learners[0].policy.parameters()])
            torch.save(weights, out.with_suffix(".pt"))
            out.write_text(json.dumps({"seconds": seconds / (STEPS - WARM), "processes": processes.count}))


def run(count: int, out: Path) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    subprocess.run([sys.executable, *launcher, __file__, "--work", str(out)], check=True, capture_output=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(out.read_text())


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one.json"), Path(folder, "two.json")
        time_pairs = [(run(1, one), run(2, two)) for _ in range(TURNS)]
        assert [(a["processes"], b["processes"]) for a, b in time_pairs] == [(1, 2)] * TURNS
        a, b = (torch.load(f.with_suffix(".pt"), weights_only=True) for f in (one, two))
    gap = float((a - b).abs().max())
    assert gap < NEAR, f"weights differ by {gap} after {STEPS} updates"
    seconds = {"one": [a["seconds"] for a, _ in time_pairs], "two": [b["seconds"] for _, b in time_pairs]}
    line = measure.compared(f"two processes; one, batches of {BATCH}", seconds, "two", "one", amount=BATCH,
                            unit="samples/s (wall)", note=f"after {STEPS} updates weights differ by {gap:.1e} at most")
    measure.save("processes", [line])


if __name__ == "__main__":
    work(Path(sys.argv[2])) if sys.argv[1:2] == ["--work"] else main()
