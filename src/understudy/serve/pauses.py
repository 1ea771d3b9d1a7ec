"""Keeps the threads of a process from long pauses."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 0.0005  # s until a thread that computes lets another one run; Python's default is 0.005


def reduce_pauses() -> None:
    """Keeps a serving process from long pauses of its threads. Call it once, after loading what it serves.

    It changes the whole process. What exists now is no longer searched by the garbage collector: with PyTorch loaded,
    one full search stops all threads for more than 100 ms. What is made later is collected more often than before,
    which takes less than a millisecond then, and keeps the memory from growing between two searches.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts what is left. A full search waits until a quarter of what the last one counted is new.
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1)  # a full search after each search of the middle generation, not after ten
    sys.setswitchinterval(SWITCH_INTERVAL)
