"""Numbers of dtypes that tensors do not have: long doubles are read as float64, and others are refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from fixtures.array_files import refused

from understudy.core import DataError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.opening.column_selection import open_columns, parse_columns

STATE, ACTION = "observation.state", "action"
T = np.arange(60) * 0.05
WAVE = np.stack([np.sin(T), np.cos(T)], 1)
LONG = WAVE.astype(np.longdouble)
pytestmark = pytest.mark.skipif(np.longdouble(0).itemsize == 8, reason="long doubles are float64 here")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def is_the_wave(data, tmp_path):
    assert {data.features()[name].dtype for name in (STATE, ACTION)} == {"float64"}
    for name in (STATE, ACTION):
        column = np.concatenate([e.steps[name] for e in data])
        assert column.dtype == np.float64
        np.testing.assert_array_equal(column, WAVE)
    write_dataset(data, tmp_path / "copy")
    np.testing.assert_array_equal(open_dataset(tmp_path / "copy")[0].steps[STATE], data[0].steps[STATE])


def write_npz(folder):
    path = folder / "a.npz"
    np.savez(path, observations=LONG, actions=np.asfortranarray(LONG), episode_ends=[30, 60], fps=np.longdouble(20),
             weight=np.longdouble([0.5, 2]))
    return path, ()


def write_npz_folder(folder):
    for i in range(2):
        (folder / "a").mkdir(exist_ok=True)
        rows = slice(30 * i, 30 * i + 30)
        np.savez(folder / f"a/{i}.npz", state=LONG[rows], action=LONG[rows], weight=np.longdouble([0.5, 2][i]),
                 fps=np.longdouble(20))
    return folder / "a", ()


def write_robomimic(folder):
    with h5py.File(folder / "a.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_kwargs": {"control_freq": 20}}'
        for i in range(2):
            group, rows = file.create_group(f"data/demo_{i}"), slice(30 * i, 30 * i + 30)
            group.attrs["num_samples"], group.attrs["weight"] = 30, np.longdouble([0.5, 2][i])
            group["obs/q"], group["actions"] = LONG[rows], LONG[rows]
    return folder / "a.hdf5", ("state=observation.q",)


def write_own_hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs["fps"] = np.longdouble(20)
        for i in range(2):
            group, rows = file.create_group(f"run_{i}"), slice(30 * i, 30 * i + 30)
            group["q"], group["u"], group.attrs["weight"] = LONG[rows], LONG[rows], np.longdouble([0.5, 2][i])
    return folder / "a.h5", ("state=q", "action=u")


@pytest.mark.parametrize("write", [write_npz, write_npz_folder, write_robomimic, write_own_hdf5])
def test_long_doubles_are_read_as_float64(tmp_path, write):
    path, columns = write(tmp_path)
    data = open_columns(path, parse_columns(columns))
    is_the_wave(data, tmp_path)
    assert data.fps == 20 and [e.metadata["weight"] for e in data] == [0.5, 2.0]


def test_numbers_in_the_byte_order_of_another_machine_are_read(tmp_path):
    big = WAVE.astype(">f8")
    np.savez(tmp_path / "a.npz", observations=big, actions=big, episode_ends=[30, 60])
    is_the_wave(open_dataset(tmp_path / "a.npz"), tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["q"], file["u"], file["n"] = big, big, np.array([30, 30], ">i4")
    data = open_columns(tmp_path / "a.h5", parse_columns(["state=q", "action=u", "episode_lengths=n"]))
    assert [len(e) for e in data] == [30, 30] and data[1].steps[STATE].dtype.isnative


@pytest.mark.parametrize("values", [
    WAVE + 1j * WAVE, (1e3 * WAVE).astype("datetime64[ms]"), (1e3 * WAVE).astype("timedelta64[ms]"),
    np.zeros(60, [("a", "f4"), ("b", "f4")]), WAVE.astype(object), WAVE.astype(np.clongdouble)])
@pytest.mark.parametrize("key", ["observations", "actions", "other"])
def test_what_is_no_number_is_refused_with_its_dtype(tmp_path, values, key):
    np.savez(tmp_path / "a.npz", **{"observations": WAVE, "actions": WAVE, "episode_ends": [30, 60], key: values})
    refused(tmp_path / "a.npz", f"a.npz, {key}: it contains", "save the array again with numbers or text only")


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex128, "datetime64[s]"])
def test_episodes_in_memory_have_columns_that_can_be_tensors(dtype):
    with pytest.raises(DataError, match="must be an array of numbers"):
        Dataset([Episode({STATE: WAVE.astype(dtype), ACTION: WAVE})])
