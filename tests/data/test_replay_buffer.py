"""The replay buffer holds what a data set holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.collections import (
    numbered,
)

from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.data.replay_buffer import ReplayBuffer
from understudy.data.window import Window

STATE = "observation.state"


def test_a_replay_buffer_holds_what_a_dataset_holds():
    parts = [numbered(0, 3), numbered(3, 500), numbered(503, 2)]
    buffer = ReplayBuffer()
    for part in parts:
        buffer = buffer.extend(part)
    assert buffer.fingerprint() == Dataset(sum(parts, [])).fingerprint()
    assert buffer.features() == Dataset(parts[0]).features()
    chosen = [7, 504, 0, -1]
    assert buffer.select(chosen).fingerprint() == Dataset([sum(parts, [])[i] for i in chosen]).fingerprint()
    window = Window(2, 3)
    plain, packed = (window.windows(d, (STATE,), "action", next_obs=True)
                     for d in (Dataset(sum(parts, [])), buffer))
    for n in range(5):
        one, other = plain.batch(64, n), packed.batch(64, n)
        assert torch.equal(one.obs[STATE], other.obs[STATE]) and torch.equal(one.action, other.action)
        assert torch.equal(one.mask, other.mask) and torch.equal(one.next[STATE], other.next[STATE])


def test_windows_over_a_replay_buffer_copy_nothing_and_do_not_change_when_it_grows():
    buffer = ReplayBuffer(numbered(0, 4))
    windows = Window(1, 2).windows(buffer, (STATE,), "action")
    assert np.shares_memory(windows.packed.columns[STATE].array, buffer.column(STATE)[0])
    some = Window(1, 2).windows(buffer[1:3], (STATE,), "action")
    assert np.shares_memory(some.packed.columns[STATE].array, buffer.column(STATE)[0]) and len(some) == 4 + 5
    before = windows.batch(16, 0)
    grown = buffer.extend(numbered(4, 1000))
    assert len(buffer) == 4 and len(grown) == 1004 and len(windows) == 3 + 4 + 5 + 6
    assert torch.equal(windows.batch(16, 0).obs[STATE], before.obs[STATE])
    with pytest.raises(ValueError, match="read-only"):
        grown[0].steps[STATE][0] = 1


def test_growing_copies_each_row_a_constant_number_of_times(monkeypatch):
    allocated, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda shape, *rest: allocated.append(shape[0]) or empty(shape, *rest))
    buffer = ReplayBuffer()
    for n in range(1000):
        buffer = buffer.extend(numbered(n, 1, width=1))
    rows = int(buffer.column(STATE)[2].sum())
    assert sum(allocated) < 2 * 4 * rows  # two columns


def test_columns_of_a_replay_buffer():
    flag = {"flag": lambda rows: np.ones(rows, bool)}
    buffer = ReplayBuffer(numbered(0, 2)).extend(numbered(2, 2, **flag))
    assert buffer.column("flag") is None and "flag" not in buffer[0].steps and buffer[2].steps["flag"].all()
    assert len(buffer.select([2, 3]).column("flag")[1]) == 2
    with pytest.raises(UserError, match=r"episode 4, column 'observation.state': it is float32 of shape \(3,\)"):
        buffer.extend(numbered(4, 1, width=3))
    with pytest.raises(UserError, match="episode 4, column 'flag': it is <U1"):
        buffer.extend(numbered(4, 1, flag=lambda rows: np.full(rows, "x")))
    assert len(buffer.extend(numbered(4, 1))) == 5  # what was refused left nothing
    wide = buffer.extend(numbered(4, 1, flag=lambda rows: np.zeros(rows, bool), text=lambda rows: np.full(rows, "a")))
    wide = wide.extend(numbered(5, 1, text=lambda rows: np.full(rows, "abc")))
    assert wide[4].steps["text"][0] == "a" and wide[5].steps["text"][0] == "abc"
