"""What is written for many episodes at once, and read through once, is what each alone would be."""

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import UserError
from understudy.data import cache
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, lerobot_stats, open_dataset, write_dataset

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(1, 3), st.integers(0, 99),
       st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"]), st.booleans())
def test_statistics_of_episodes_of_any_lengths_are_numpys(lengths, width, seed, dtype, finite):
    rng = np.random.default_rng(seed)
    values = rng.normal(scale=3, size=(sum(lengths), width)).astype(dtype)
    if not finite and values.dtype.kind == "f":
        values[rng.random(values.shape) < 0.2] = np.nan
    was = values.copy()
    statistics = lerobot_stats.grouped_statistics(values, np.array(lengths))
    assert values.tobytes() == was.tobytes()
    for e, part in enumerate(np.split(values, np.cumsum(lengths)[:-1])):
        for w in range(width):
            numbers = part[:, w].astype(np.float64)
            numbers = numbers[np.isfinite(numbers)] if np.isfinite(numbers).any() else np.zeros(1)
            expected = {"min": numbers.min(), "max": numbers.max(), "mean": numbers.mean(), "std": numbers.std(),
                        **{name: np.quantile(numbers, q) for name, q in QUANTILES.items()}}
            assert {k: v[e, w] for k, v in statistics.items()} == pytest.approx(expected, rel=1e-9, abs=1e-12)


def some(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset([Episode({
        "observation.state": rng.normal(size=(n + 1, 3)).astype(np.float32), "action": rng.normal(size=(n, 2)),
        "next.reward": rng.random(n).astype(np.float32), "next.terminated": np.arange(n) == n - 1,
        "next.truncated": np.zeros(n, bool)}) for n in lengths], {"fps": 10.0})


@pytest.mark.parametrize("form", ["robomimic", "minari", "d4rl", "npz", "zarr", "lerobot"])
def test_reading_through_is_reading_each_and_leaves_the_cache_alone(form, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    if form in ("robomimic", "minari", "d4rl"):
        monkeypatch.setattr("understudy.data.sources._AT_ONCE", 300)  # bytes: several pieces
    monkeypatch.setattr("understudy.data.formats.npz._AT_ONCE", 100)
    episodes = some((3, 1, 8, 5, 2))
    write_dataset(episodes, tmp_path / "data", form)
    data = open_dataset(tmp_path / "data")
    for part in (data, data[1:4], data[2:], data[:2], data.select([3, 0])):
        through = [{n: np.array(e.steps[n]) for n in e.steps} for e in part.iterate_once()]
        if part is data and form not in ("zarr", "lerobot"):
            assert not cache.contains(data.source.key)
            for read, e in zip(through, episodes, strict=True):
                assert all(np.array_equal(read[name], column) for name, column in e.steps.items() if name in read)
        assert len(through) == len(part)
        for read, e in zip(through, part, strict=True):  # by way of the cache, from here on
            for name, column in read.items():
                assert column.dtype == e.steps[name].dtype and column.tobytes() == e.steps[name].tobytes()


def test_numbers_in_another_order_of_bytes_and_in_chunks_are_read_as_they_are(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 6, 3))
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        group = file.create_group("data")
        for i, rows in enumerate(values):
            demo = group.create_group(f"demo_{i}")
            demo["actions"] = rows.astype(">f8")
            demo.create_dataset("obs/state", data=rows.astype(np.float32), chunks=(2, 3), compression="gzip")
            demo["obs/flag"] = rows[:, 0] > 0
            small = h5py.h5t.IEEE_F32LE.copy()
            small.set_fields(31, 25, 6, 0, 25)  # a float that NumPy has not: 6 bits of exponent
            small.set_ebias(31)
            space = h5py.h5s.create_simple((6,))
            h5py.h5d.create(demo["obs"].id, b"odd", small, space).write(h5py.h5s.ALL, h5py.h5s.ALL, rows[:, 1].copy())
    for episode, rows in zip(open_dataset(tmp_path / "data.hdf5").iterate_once(), values, strict=True):
        assert np.array_equal(episode.steps["action"], rows)
        assert np.array_equal(episode.steps["observation.state"], rows.astype(np.float32))
        assert np.array_equal(episode.steps["observation.flag"], rows[:, 0] > 0)
        assert np.asarray(episode.steps["observation.odd"]) == pytest.approx(rows[:, 1], rel=1e-6)


def test_a_wrong_flag_is_named_by_its_episode(tmp_path):
    write_dataset(some((3, 4, 5)), tmp_path / "data", "minari")
    with h5py.File(tmp_path / "data" / "data" / "main_data.hdf5", "r+") as file:
        ends = file["episode_1"]["terminations"][:].astype(np.int64)
        ends[2] = 7
        del file["episode_1"]["terminations"]
        file["episode_1"]["terminations"] = ends
    for read in (lambda d: [dict(e.steps) for e in d.iterate_once()], lambda d: d[0].steps["next.terminated"]):
        with pytest.raises(UserError, match=r"episode_1/terminations, row 2.*\n?.*must be 0 or 1, not 7"):
            read(open_dataset(tmp_path / "data"))


def test_times_that_do_not_grow_are_named_by_their_episode(tmp_path):
    data = Dataset([Episode({"action": np.zeros((4, 1), np.float32), "timestamp": np.array(t, np.float32)})
                    for t in ([0, 0.1, 0.2, 0.3], [0, 0.1, 0.1, 0.3], [0, 1, 2, 3])], {"fps": 10.0})
    with pytest.raises(UserError, match="episode 1"):
        lerobot.append(tmp_path / "new", data[:1])
        lerobot.append(tmp_path / "new", Dataset(tuple(data), data.metadata))


def test_pictures_of_short_episodes_are_numbered_within_each(tmp_path):
    data = Dataset([Episode({"observation.images.front": np.zeros((n, 8, 8, 3), np.uint8),
                             "action": np.zeros((n, 1), np.float32)}) for n in (2, 3)], {"fps": 10.0})
    write_dataset(data, tmp_path / "data", "lerobot", images="png")
    file = pq.ParquetFile(tmp_path / "data" / "data" / "chunk-000" / "file-000.parquet")
    names = [row["path"] for row in file.read()["observation.images.front"].to_pylist()]
    assert names == [f"frame-{i:06d}.png" for i in (0, 1, 0, 1, 2)] and file.num_row_groups == 2
