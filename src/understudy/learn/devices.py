"""Chooses the device, and lets several processes share every batch."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import Batch, UserError


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Chooses a device of PyTorch. "auto" is CUDA if available, then Apple's GPU (mps), then the CPU.

    With several processes, each gets its own GPU (LOCAL_RANK of torchrun).
    """
    if isinstance(name, str) and name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    is_available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    try:
        device = torch.device(name)
    except RuntimeError:
        usable = " and ".join(kind for kind, is_usable in is_available.items() if is_usable())
        raise UserError(f"there is no device {name!r}; use auto, cpu, cuda, cuda:1 or mps", where="device",
                        hint=f"on this machine PyTorch can use {usable}, and auto takes a GPU if there is one"
                        ) from None
    if device.type not in is_available or not is_available[device.type]():
        raise UserError(f"this machine has no {device.type} device that PyTorch can use", where="device",
                        hint="use 'auto' or 'cpu', or install a PyTorch built for that device (pytorch.org)")
    if device.type == "cuda":
        number = device.index
        if number is None:
            number = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
        if number >= torch.cuda.device_count():
            raise UserError(f"there is no CUDA device {number}; their number is "
                            f"{torch.cuda.device_count()}", where="device",
                            hint="choose an existing one, or start fewer processes")
        return torch.device("cuda", number)
    return device


def keep_freed_memory() -> None:
    """Makes the C library keep up to 1 GB of freed memory for the next tensors, which is faster (glibc).

    Each update needs the same memory again. What was returned to the system in between is mapped and cleared page by
    page, which takes a quarter of the time of an update of `diffusion-policy`.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # glibc raises it up to this number by itself, but then no more
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Processes:
    """The processes that train one policy together, numbered from 0.

    Each computes the rows `row_slice(B)` of every batch of B rows.
    """

    rank: int = 0
    count: int = 1

    @staticmethod
    def current() -> Processes:
        """All processes that joined torch.distributed (torchrun, accelerate); a single one otherwise."""
        if dist.is_available() and dist.is_initialized():
            return Processes(dist.get_rank(), dist.get_world_size())
        return Processes()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def row_slice(self, rows: int) -> slice:
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def all_reduce(self, tensors: list[Tensor]) -> None:
        """Sums tensors in place over all processes."""
        if self.count > 1 and tensors:
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
            for t, new in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                t.copy_(new.view_as(t))

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Copies the tensors of the first process in place."""
        if self.count > 1:
            for t in tensors:
                dist.broadcast(t, 0)

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set in any process."""
        if self.count == 1:
            return flag
        device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
        count = torch.tensor(float(flag), device=device)
        dist.all_reduce(count)
        return bool(count > 0)

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Joins the other processes that torchrun or accelerate started, unless the program has already done so."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield Processes.current()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Training imports this module at some point, and its functions then keep the group as a default argument. The
    # threads of such a group outlive it, and may access the interpreter after its end: SIGABRT.
    importlib.import_module("torch.distributed.nn")
    # The others wait while the first process runs rollouts, which may take hours.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield Processes.current()
    finally:
        dist.destroy_process_group()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context manager that seeds PyTorch's global generators, and restores them, that of a CUDA device too, afterwards.

    Modules draw their initial weights and their dropout from these generators. `torch.random.fork_rng` does the same,
    but takes several times as long.
    """
    state = torch.default_generator.get_state()
    state_of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    seed_generators(seed, device)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
        if state_of_device is not None:
            torch.cuda.set_rng_state(state_of_device, device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds PyTorch's global generators of the CPU and of one device.

    `torch.manual_seed` gives these generators the same state. It also visits every other kind of device, which takes 2
    to 6 % of the time of a small update.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Context manager that makes results bit-identical, also on CUDA, where some operations otherwise add in random
    order.

    Operations without a deterministic implementation warn. Attention does not use the memory-efficient kernel, which
    is only deterministic where such operations are errors.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    attention = torch.backends.cuda.mem_efficient_sdp_enabled()
    filling: Any = torch.utils.deterministic  # its setting is a property of the module
    filled = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    filling.fill_uninitialized_memory = False  # it would show errors of PyTorch, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cuda.enable_mem_efficient_sdp(attention)
        filling.fill_uninitialized_memory = filled


def prefetch(batch: Callable[[int], Batch], device: torch.device, steps: int) -> Callable[[int], Batch]:
    """Prepares the next batch in a thread while a GPU computes the current one. On the CPU, returns `batch` itself.

    Args:
        batch: `batch(n)` returns batch number n.
        steps: Number of batches in all. None is prepared beyond the last.
    """
    if device.type == "cpu":
        return batch
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    pending: dict[int, Future[Batch]] = {}

    def draw(n: int) -> Batch:
        current = pending.pop(n, None) or pool.submit(batch, n)
        pending.clear()
        if n + 1 < steps:
            pending[n + 1] = pool.submit(batch, n + 1)
        return current.result()
    return draw

