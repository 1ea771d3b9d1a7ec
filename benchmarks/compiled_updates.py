"""Compiled updates, against those of other libraries and without compilation: python benchmarks/compiled_updates.py

Networks, data and batches are those of benchmarks/offline_rl.py. All sides take turns in one process with one thread.
Updates of d3rlpy and imitation are not compiled, and OGBench's are, by JAX. The note has the processor time of the
first updates, which compile, without what the cache of PyTorch has from before.

OGBench's agents need OGBENCH_IMPLS, as in benchmarks/offline_rl.py. `d3rlpy`, `imitation` or `ogbench` after the
command measures against that library alone, and keeps the other lines.
"""

from __future__ import annotations

import measure

measure.one_thread()

import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402

import offline_rl  # noqa: E402

AGAINST_D3RLPY, WITHOUT_AVX512, AGAINST_JAX = 2.5, 2.2, 1.2
AGAINST_IMITATION = {32: 4.0, 256: 6.0}


def compared(what: str, ours: Callable[..., Callable[[], object]], peer: str, work: Callable[[], object], goal: float,
             updates: int) -> list[measure.Line]:
    """The lines of compiled updates, `ours(compiled=True)`, against those of a peer and against ours without."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    compiled = ours(compiled=True)
    note = f"compilation: {measure.cpu(compiled):.0f} s"
    seconds = measure.interleaved({"compiled": compiled, "without": ours(), peer: work}, repeats=7)
    return [measure.compared(f"{what}, compiled updates, against {other}", seconds, "compiled", side, amount=updates,
                             unit="1/s", goal=least, note=note)
            for other, side, least in ((peer, peer, goal), ("the same without", "without", 1.0))]


def lines_of_d3rlpy() -> list[measure.Line]:
    import torch

    goal = AGAINST_D3RLPY if torch.backends.cpu.get_cpu_capability() == "AVX512" else WITHOUT_AVX512
    return [line for name in ("IQL", "TD3+BC") for line in compared(
        name, partial(offline_rl.ours, name), "d3rlpy", offline_rl.peer(name), goal, offline_rl.UPDATES)]


def lines_of_imitation() -> list[measure.Line]:
    return [line for batch, goal in AGAINST_IMITATION.items() for line in compared(
        f"BC, batches of {batch}", partial(offline_rl.small_cloning, batch), "imitation", offline_rl.imitation(batch),
        goal, offline_rl.UPDATES_OF_IMITATION)]


def lines_of_ogbench() -> list[measure.Line]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    return [offline_rl.against_jax(name, compiled=True, goal=AGAINST_JAX) for name in offline_rl.AGENTS]


if __name__ == "__main__":
    parts = {"d3rlpy": lines_of_d3rlpy, "imitation": lines_of_imitation, "ogbench": lines_of_ogbench}
    measured = measure.beside(parts, ("torch", "numpy", "d3rlpy", "imitation", "stable-baselines3", "jax", "flax"))
    if len(sys.argv) > 1:
        measured = measure.with_stored("compiled_updates", *measured)
    measure.save("compiled_updates", measured[0], packages=(), more={"versions": measured[1]})
