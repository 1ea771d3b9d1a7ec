"""Processes in which probes compute the same numbers on every x86-64 processor, but for the last bit of roots.

PyTorch, NumPy and the libraries of linear algebra choose their code by the processor when they are loaded. These
processes begin with settings that choose the same code on all. MKL's square root still begins with the processor's own
approximation.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from .folder import NAME, open_claims

R = TypeVar("R")
SETTINGS = {
    "ATEN_CPU_CAPABILITY": "default",  # PyTorch without vector instructions
    "MKL_CBWR": "COMPATIBLE",  # the mode that is the same on processors of all makers
    "OPENBLAS_CORETYPE": "Haswell",
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}


def run_portably(function: Callable[[str], R], names: Iterable[str]) -> Iterator[R]:
    """Calls a function with each name, in one process for each CPU that this process may use.

    Args:
        function: A function of a module, or a `functools.partial` of one.

    Yields:
        The results, in the order of the names.
    """
    waiting = list(names)
    n_workers = max(1, min(len(waiting), _n_cpus()))
    open_claims()  # what this process trusts, the others trust
    with _environment(), ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), open_claims, ((NAME,),)
                                             ) as pool:
        yield from pool.map(function, waiting)


def _n_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment() -> Iterator[None]:
    """A context in which new processes begin with `SETTINGS`, and NumPy in them with its common instructions alone."""
    vector_instructions = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    settings = {**SETTINGS, "NPY_DISABLE_CPU_FEATURES": " ".join(vector_instructions)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
