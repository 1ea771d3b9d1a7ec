"""Windows on the device."""


import numpy as np
import pytest
import torch
from fixtures.windows import counted

from understudy.data.device_windows import DeviceWindows, to_device
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window


def test_goals_draws_and_shares_are_those_of_the_host():
    data = Dataset([counted(n, i) for i, n in enumerate((5, 3, 8))])
    window = Window(
        n_obs_steps=2, horizon=3, goals=(Goal("observation.x", "observation.goal", p_curgoal=0.3, p_randomgoal=0.3),)
    )
    for draw in (None, lambda e: np.arange(len(e)) + 1.0):
        host = window.windows(data, ("observation.x", "observation.goal"), "action", extra=("next.reward",),
                              next_obs=True, sampling_weights=draw)
        device = DeviceWindows(host, torch.device("cpu"))
        for step in range(20):
            a, b = (w.batch(16, step, 5, slice(4, 12)) for w in (host, device))
            assert list(a.obs) == list(b.obs) and list(a.extra) == list(b.extra)
            for x, y in ((a.action, b.action), (a.mask, b.mask), *((a.obs[k], b.obs[k]) for k in a.obs),
                         *((a.next[k], b.next[k]) for k in a.obs), *((a.extra[k], b.extra[k]) for k in a.extra)):
                assert x.dtype == y.dtype and torch.equal(x, y)


def test_names_that_coincide_keep_apart():
    """A recorded goal beside one that is drawn, and a column called as what every batch has."""
    data = Dataset([Episode({**counted(4, i).steps, "observation.goal": np.full((4, 2), 50.0 + i),
                             "index": np.arange(90, 94)[:, None]}) for i in range(2)])
    window = Window(goals=(Goal("observation.x", "observation.goal"),))
    host = window.windows(data, ("observation.goal",), "action", extra=("observation.goal", "index"))
    device = DeviceWindows(host, torch.device("cpu"))
    for rows in (slice(None), slice(0, 0)):
        a, b = (w.batch(16, 3, rows=rows) for w in (host, device))
        assert a.action.shape == b.action.shape and torch.equal(a.action, b.action)
        for k in a.extra:
            assert torch.equal(a.extra[k], b.extra[k]), k
        assert torch.equal(a.obs["observation.goal"], b.obs["observation.goal"])


def test_columns_are_copied_piece_by_piece_and_each_array_once(monkeypatch):
    monkeypatch.setattr("understudy.data.device_windows.CHUNK_BYTES", 64)
    root = np.random.default_rng(0).normal(size=(50, 2))
    data = Dataset([Episode({"observation.x": root[i: i + 20], "action": root[i: i + 20]}) for i in (3, 25)])
    windows = Window().windows(data, ("observation.x",), "action")
    device = DeviceWindows(windows, torch.device("cpu"))
    assert device.device_columns["action"] is device.device_columns["observation.x"]
    low = windows.packed.columns["action"].array
    assert np.array_equal(device.device_columns["action"].numpy(), low.astype(np.float32))


def test_what_does_not_fit_stays_where_it_is(monkeypatch):
    data = Dataset([counted(4, 0)])
    windows = Window().windows(data, ("observation.x",), "action")
    cpu, size = torch.device("cpu"), 5 * 2 * 8 + 4 * 8
    assert to_device(windows, cpu) is windows, "on the CPU they lie already"
    for free, there in ((size, True), (size - 1, False)):
        monkeypatch.setattr("understudy.data.device_windows.available_bytes", lambda device, free=free: free)
        assert isinstance(to_device(windows, cpu), DeviceWindows) == there


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_host():
    data = Dataset([counted(n, i) for i, n in enumerate((5, 3, 8))])
    host = Window(n_obs_steps=2, horizon=3).windows(data, ("observation.x",), "action")
    device = to_device(host, torch.device("cuda"))
    assert isinstance(device, DeviceWindows)
    for step in range(5):
        a, b = host.batch(16, step), device.batch(16, step)
        assert b.action.is_cuda and torch.equal(a.action, b.action.cpu()) and torch.equal(a.mask, b.mask.cpu())
        assert torch.equal(a.obs["observation.x"], b.obs["observation.x"].cpu())
