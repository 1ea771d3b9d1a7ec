"""Batches of five frames of one episode, with which a model learns their temporal order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...core import Batch, ConfigError, DataError
from ...data.batch_sampler import BatchSampler
from ...data.window import Windows

FRAME, N_FRAMES = "frame", 5  # the column of `Batch.extra` with the number of a row in its video, (B, 1)


class OrderedFrames(BatchSampler):
    """Windows at five steps of an episode: one early, one late, and three at any steps in temporal order.

    Episodes are drawn equally often, or by the sampling weights of their steps. The last video of a batch is incomplete
    if the size is not a multiple of five.
    """

    def __init__(self, windows: Windows):
        self.windows, self.lengths = windows, np.diff(windows.episode_bounds)
        if self.lengths.min() < 3:
            raise DataError(f"an episode has {self.lengths.min()} steps, and three ordered frames need 3",
                            where="OrderedFrames", hint="leave it out with --filter 'length>=3' (understudy view make)")
        weights = windows.cumulative_weights
        self.cumulative = np.linspace(0, 1, len(self.lengths) + 1)[1:] if weights is None else weights[
            windows.episode_ends - 1]

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns one batch: see `BatchSampler.batch`."""
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, step]))
        episode = self.cumulative.searchsorted(rng.random(-(-size // N_FRAMES)), side="right")
        length = self.lengths[episode]
        fifth, middle = 1 + length // 5, rng.integers(1, length - 1)
        frames = (rng.integers(0, fifth), length - 1 - rng.integers(0, fifth), rng.integers(0, middle), middle,
                  rng.integers(middle + 1, length))
        batch = self.windows.gather((self.windows.episode_bounds[episode] + np.stack(frames)).T.flatten()[:size], rng)
        number = torch.from_numpy(np.arange(size)[:, None] % N_FRAMES)
        return batch.replace(extra={**batch.extra, FRAME: number}).select_rows(rows)


def video_rows(batch: Batch) -> Tensor:
    """Returns the batch rows of the five frames of each complete video in a batch of `OrderedFrames`, (V, 5)."""
    if FRAME not in batch.extra:
        raise ConfigError("the batch has no ordered frames", where="OrderedFrames",
                          hint="train this objective with RepresentationLearning, and without a stream")
    first = (batch.extra[FRAME] == 0).nonzero()[:, :1]
    rows = first + torch.arange(N_FRAMES, device=first.device)
    return rows[rows[:, -1] < len(batch)]
