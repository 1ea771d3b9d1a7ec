"""Compiled updates, against those of other libraries and without compilation: python benchmarks/compiled_updates.py

Networks, data and batches are those of benchmarks/offline_rl.py. All sides take turns in one process with one thread.
d3rlpy's updates are not compiled, and OGBench's are, by JAX. The note has the processor time of the first updates,
which compile, without what the cache of PyTorch has from before.

OGBench's agents need OGBENCH_IMPLS, as in benchmarks/offline_rl.py. `d3rlpy` or `ogbench` after the command measures
against that library alone, and keeps the other lines.
"""

from __future__ import annotations

import measure

measure.one_thread()

import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

import offline_rl  # noqa: E402

AGAINST_D3RLPY, WITHOUT_AVX512, AGAINST_JAX = 2.5, 2.2, 1.2


def lines_of_d3rlpy() -> list[measure.Line]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    import torch

    goal = AGAINST_D3RLPY if torch.backends.cpu.get_cpu_capability() == "AVX512" else WITHOUT_AVX512
    lines = []
    for name in ("IQL", "TD3+BC"):
        compiled = offline_rl.ours(name, compiled=True)
        note = f"compilation: {measure.cpu(compiled):.0f} s"
        sides = {"compiled": compiled, "not compiled": offline_rl.ours(name), "d3rlpy": offline_rl.peer(name)}
        seconds = measure.interleaved(sides, repeats=7)
        lines += [measure.compared(f"{name}, compiled updates, against {other}", seconds, "compiled", peer,
                                   amount=offline_rl.UPDATES, unit="1/s", goal=least, note=note)
                  for other, peer, least in (("d3rlpy", "d3rlpy", goal), ("the same without", "not compiled", 1.0))]
    return lines


def lines_of_ogbench() -> list[measure.Line]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    return [offline_rl.against_jax(name, compiled=True, goal=AGAINST_JAX) for name in offline_rl.AGENTS]


if __name__ == "__main__":
    parts = {"d3rlpy": lines_of_d3rlpy, "ogbench": lines_of_ogbench}
    measured = measure.beside(parts, ("torch", "numpy", "d3rlpy", "jax", "flax"))
    if len(sys.argv) > 1:
        measured = measure.with_stored("compiled_updates", *measured)
    measure.save("compiled_updates", measured[0], packages=(), more={"versions": measured[1]})
