"""Devices, shares of a batch, and batches made ahead."""

from __future__ import annotations

import pytest
import torch
from fixtures.learning import CPU

from understudy.core import UserError
from understudy.data.window import Window
from understudy.learn import devices


def test_devices():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert devices.choose_device("auto").type == best
    assert devices.choose_device("cpu") == CPU
    with pytest.raises(UserError, match="no device 'gpu'") as error:
        devices.choose_device("gpu")
    assert ("PyTorch can use cuda" in str(error.value)) == torch.cuda.is_available()
    absent = "mps" if best != "mps" else "cuda"
    with pytest.raises(UserError, match=f"no {absent} device that PyTorch can use"):
        devices.choose_device(absent)


def test_shares_make_up_the_batch():
    for count in (1, 2, 3, 7):
        rows = [i for rank in range(count) for i in range(32)[devices.Processes(rank, count).row_slice(32)]]
        assert rows == list(range(32))


def test_a_share_is_those_rows_of_the_batch(data):
    from understudy.data.window import Goal

    for window in (Window(2, 4), Window(2, 4, goals=(Goal("observation.state"),))):
        windows = window.windows(data, ("observation.state", *(g.into for g in window.goals)), "action")
        whole, part = windows.batch(16, 5, 1), windows.batch(16, 5, 1, slice(4, 9))
        assert torch.equal(part.action, whole.action[4:9])
        assert all(torch.equal(part.obs[k], whole.obs[k][4:9]) for k in whole.obs)
        assert torch.equal(part.extra["index"], whole.extra["index"][4:9])


def test_seeds_hold_within_the_block_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError), devices.seeded(5, CPU):
        drawn = torch.rand(2)
        _ = 1 / 0
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), drawn)


def test_batches_made_ahead_are_the_same_batches():
    batch_numbers = []

    def batch(n):
        batch_numbers.append(n)
        return n * n
    draw = devices.prefetch(batch, torch.device("cuda"), 6)
    assert [draw(n) for n in (0, 1, 2)] == [0, 1, 4]
    assert [draw(n) for n in (5, 0)] == [25, 0]  # out of turn, as after a resume
    assert max(batch_numbers) == 5  # none beyond the last
    assert devices.prefetch(batch, CPU, 6) is batch
