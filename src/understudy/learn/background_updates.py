"""Makes training updates in another process while this one does something else, such as acting on a robot."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection

import torch
from safetensors.torch import load, save

from ..child_processes import exit_reason, spawn, watch_parent
from ..core import UserError
from ..data.batch_sampler import BatchSampler
from ..data.device_windows import to_device
from .devices import deterministic
from .fit import Callback, Learner, fit

NICENESS = 10  # of the process that trains, so that a robot does not wait for it


def update_meanwhile(learner: Learner, sampler: BatchSampler, updates: range, seed: int,
                     meanwhile: Callable[[], None], callbacks: Iterable[Callback] = ()) -> None:
    """Makes updates in another process while this one calls a function, and gives the learner their result.

    During the function the learner stays as it is. Updates in this process would give the same result, bit for bit.

    Args:
        updates: Numbers of the updates.
        meanwhile: If it raises an error, the updates are lost.
        callbacks: Called for each update after the last one, with the learner as it is then.
    """
    copied = copy.deepcopy(learner)  # tensors are sent as shared memory, which the process changes
    process, pipe = spawn(_train, copied, sampler, updates, seed, torch.get_num_threads(), name="understudy updates")
    try:
        meanwhile()
        try:
            outcome = pipe.recv()
        except EOFError:
            process.join()
            assert process.exitcode is not None  # it has been joined
            raise UserError(f"the process that makes the updates ended: {exit_reason(process.exitcode)}",
                            where=f"updates {updates.start} to {updates.stop - 1}",
                            hint="what was collected is stored: give the same command again") from None
        process.join()  # its end frees the memory of a GPU that it shares
        if isinstance(outcome, UserError):
            raise outcome
        tensors, metadata, metrics = outcome
    finally:
        process.terminate()
        process.join()
        pipe.close()
    learner.restore(load(tensors), metadata)
    for step, line in zip(updates, metrics, strict=True):
        for callback in callbacks:
            callback(step + 1, learner, line)


def _train(pipe: Connection, learner: Learner, sampler: BatchSampler, updates: range, seed: int, threads: int) -> None:
    watch_parent()
    with suppress(OSError, AttributeError):  # Windows has no nice
        os.nice(NICENESS)
    torch.set_num_threads(threads)
    size, device, metrics = learner.config.batch_size, learner.policy.device, []
    try:
        with deterministic(device):
            sampler = to_device(sampler, device)
            fit(learner, lambda n: sampler.batch(size, n, seed), updates.stop, start=updates.start,
                callbacks=[lambda step, learner, line: metrics.append(line)])
            tensors, metadata = learner.state()
    except UserError as error:
        pipe.send(error)
        return
    pipe.send((save({name: t.cpu().contiguous().clone() for name, t in tensors.items()}), metadata, metrics))
