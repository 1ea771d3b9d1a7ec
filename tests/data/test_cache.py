"""Columns on disk, and the cache of what was decoded."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from fixtures.lerobot_files import CAMERA, ENDS, closed, flat_arrays, write_npz

from understudy.core import UserError
from understudy.data import cache
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset
from understudy.data.packed_columns import PackedColumns
from understudy.data.window import Window


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """A file of 1,000,000 steps in 1,000 episodes: 120 MB of numbers, of which float32 `observations` count upward."""
    path = tmp_path_factory.mktemp("million") / "data.npz"
    count = np.arange(1_000_000, dtype=np.float64)
    np.savez(path, observations=np.repeat(count.astype(np.float32)[:, None], 20, 1),
             actions=np.repeat(count.astype(np.float32)[:, None], 10, 1), episode_ends=np.arange(1000, 1_000_001, 1000))
    return path


def test_a_million_steps_stay_on_disk_and_are_gathered_where_they_lie(million):
    tracemalloc.start()
    data = open_dataset(million)
    pack = PackedColumns.from_episodes(data, ["observation.state", "action"])
    windows = Window(n_obs_steps=2, horizon=8).windows(data, ("observation.state",), "action")
    batch = windows.batch(4096, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6 < 120e6  # of 120 MB; mapped pages are not counted, copies would be
    for name, column in pack.columns.items():
        assert np.shares_memory(column.array, data[0].steps[name]) and len(column.array) == 1_000_000
        assert np.shares_memory(column.array, data[999].steps[name])
    at = batch.extra["index"][:, 0].numpy()
    expected = at[:, None] + np.arange(8)
    inside = batch.mask.numpy()
    np.testing.assert_array_equal(batch.action[..., 0].numpy()[inside], expected.astype(np.float32)[inside])
    np.testing.assert_array_equal(batch.obs["observation.state"][:, 1, 0].numpy(), at.astype(np.float32))


def test_no_python_runs_per_sample(million):
    windows = Window(n_obs_steps=2, horizon=8).windows(open_dataset(million), ("observation.state",), "action")

    def calls(size):
        count = 0

        def see(frame, event, argument):
            nonlocal count
            count += event == "call"
        sys.setprofile(see)
        windows.batch(size, 0)
        sys.setprofile(None)
        return count
    calls(8)
    assert calls(8192) == calls(8)


def test_last_rows_are_gathered_where_they_lie_too(tmp_path):
    lerobot.write(closed(), tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    pack = PackedColumns.from_episodes(data, ["observation.state", "action"])
    assert len(pack.columns["observation.state"].array) == 22 + 4 and len(pack.columns["action"].array) == 22
    assert all(np.shares_memory(c.array, data[0].steps[n]) for n, c in pack.columns.items())
    assert not pack.columns["action"].array.flags.writeable


@pytest.mark.parametrize("numbers", [range(4), [2, 0], [3, 3, 1]])
@pytest.mark.parametrize("size", [None, 16])
def test_windows_of_stored_episodes_are_those_of_copies(numbers, size, tmp_path):
    """Gathered where they lie, from all of the data set or from some of it, in another order."""
    lerobot.write(closed(images=True), tmp_path / "out", images="png")
    stored = open_dataset(tmp_path / "out", image_size=size).select(numbers)
    copies = Dataset([Episode({k: np.array(v) for k, v in e.steps.items()}, e.metadata) for e in stored])
    assert stored.fingerprint() == copies.fingerprint() and stored.steps == copies.steps
    window = Window(n_obs_steps=2, horizon=3, action_offset=-1)
    for name in ("observation.state", CAMERA):
        a, b = (next(window.windows(d, (name,), "action").scan()) for d in (stored, copies))
        assert torch.equal(a.obs[name], b.obs[name]) and torch.equal(a.action, b.action) and torch.equal(a.mask, b.mask)
    if size is not None:  # of the episodes that were picked, too, nothing is copied
        pack = PackedColumns.from_episodes(stored, ["action", CAMERA])
        assert all(np.shares_memory(c.array, stored[0].steps[n]) for n, c in pack.columns.items())


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "data"
    lerobot.write(closed(), path)
    first = open_dataset(path).fingerprint()
    lerobot.append(path, closed(numbers=[3]))
    assert len(open_dataset(path)) == 5 and open_dataset(path).fingerprint() != first
    flat = flat_arrays()
    npz = write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS)
    old = open_dataset(npz)[0].steps["action"].copy()
    write_npz(npz, observations=flat["state"], actions=flat["action"] + 1, episode_ends=ENDS)
    np.testing.assert_array_equal(open_dataset(npz)[0].steps["action"], old + 1)


def _entry(key, n, value=0):
    def build(part):
        cache.create_array(part, "a/b", (n,), np.uint8)[:] = value
    return cache.memmap_arrays(key, n, build, "test")["a/b"]


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.001")
    monkeypatch.setattr(cache, "_mapped_entries", set())
    for i, key in enumerate("abc"):
        _entry(key * 32, 300_000, i)
        os.utime(tmp_path / "cache" / (key * 32), (1000 + i, 1000 + i))
    assert _entry("a" * 32, 300_000)[0] == 0  # used again: now the youngest
    cache._mapped_entries.clear()
    _entry("d" * 32, 300_000)
    remaining = {p.name[0] for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")}
    assert remaining == {"a", "c", "d"}
    with pytest.raises(UserError, match="needs 0.00 GB of cache, which may hold 0.00 GB|UNDERSTUDY_CACHE_GB"):
        _entry("e" * 32, 2_000_000)
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "lots")
    with pytest.raises(UserError, match="must be a positive number of gigabytes, not 'lots'"):
        _entry("f" * 32, 10)


def test_what_this_process_reads_is_not_removed(monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.0005")
    a = _entry("1" * 32, 400_000, 5)
    _entry("2" * 32, 400_000, 6)
    assert cache.contains("1" * 32) and a[0] == 5


def test_a_damaged_or_half_built_entry_is_made_again(tmp_path):
    flat = flat_arrays()
    path = write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS)
    whole = open_dataset(path).fingerprint()
    file = next((tmp_path / "cache").glob("*/action.npy"))
    file.write_bytes(file.read_bytes()[:150])
    assert open_dataset(path).fingerprint() == whole
    entry = file.parent
    entry.rename(entry.with_name(f".{entry.name}.killed.part"))  # as a killed builder leaves it
    assert open_dataset(path).fingerprint() == whole
    assert not list((tmp_path / "cache").glob(".*.part"))


_TOGETHER = """
import sys, time
import numpy as np
from understudy.data import cache
from understudy.data.formats import open_dataset
def build(part):
    print("built")
    time.sleep(0.5)
    cache.create_array(part, "x", (1000,), np.uint8)[:] = 7
print("ready", flush=True)
sys.stdin.readline()
assert (cache.memmap_arrays("0" * 32, 1000, build, "test")["x"] == 7).all()
print(open_dataset(sys.argv[1], image_size=16).fingerprint())
"""


@pytest.mark.slow
def test_processes_that_want_the_same_at_once_make_it_once(tmp_path):
    lerobot.write(closed(images=True), tmp_path / "out", images="png")
    runs = [subprocess.Popen([sys.executable, "-c", _TOGETHER, str(tmp_path / "out")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [r.stdout.readline() for r in runs] == ["ready\n"] * 3
    for r in runs:
        r.stdin.write("go\n")
        r.stdin.flush()
    output = [line for r in runs for line in r.communicate(timeout=120)[0].split()]
    assert sorted(output) == sorted(["built", *3 * [open_dataset(tmp_path / "out", image_size=16).fingerprint()]])
    assert len([p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]) == 3
