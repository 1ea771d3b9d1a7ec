"""D4RL: ends of episodes, flags and texts."""

import json
import os

import h5py
import numpy as np
import pytest
from fixtures import closed_form
from fixtures.contract_data import demonstrations
from fixtures.hdf5_files import everything, outcomes, refused, state

from understudy.data.formats import open_dataset, write_dataset
from understudy.data.formats.parts import hdf5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["with_timeouts", "with_next"])
def test_d4rl(name, files):
    data, episodes = everything(files / f"d4rl/{name}.hdf5")
    more = name == "with_next"
    assert data.metadata["format"] == "d4rl" and len(data) == 4 and not data.metadata["warnings"]
    for e, (columns, meta) in enumerate(episodes):
        n, (reward, terminated, truncated) = closed_form.LENGTHS[e], outcomes(e)
        np.testing.assert_array_equal(columns["observation.state"], state(e, n + more))
        np.testing.assert_array_equal(columns["action"], [closed_form.action(e, t) for t in range(n)])
        np.testing.assert_array_equal(columns["infos.qpos"], state(e, n))
        np.testing.assert_array_equal(columns["next.reward"], reward)
        np.testing.assert_array_equal(columns["next.terminated"], terminated)
        np.testing.assert_array_equal(columns["next.truncated"], truncated)
        assert meta == ({"metadata": {"algorithm": "closed form"}} if more else {})


def test_d4rl_without_timeouts_needs_the_limit(files):
    path = files / "d4rl/without_timeouts.hdf5"
    refused(path, str(path), "there is no array timeouts", "max_episode_steps=1000")
    # terminals end episodes 0 and 3; the 17 rows between are cut at the limit
    assert [len(e) for e in open_dataset(path, max_episode_steps=5)] == [5, 5, 5, 5, 2]
    assert [len(e) for e in open_dataset(path, max_episode_steps=100)] == [5, 17]
    assert "next.truncated" not in open_dataset(path, max_episode_steps=5).features()
    for limit in (0, 2.5, True):
        refused(path, "it must be a number of steps", max_episode_steps=limit)


def test_the_limit_is_an_option_of_commands(files, tmp_path, capsys):
    from understudy.cli import main

    path = str(files / "d4rl/without_timeouts.hdf5")
    assert main(["inspect", path]) == 2 and "--max-episode-steps 1000" in capsys.readouterr().err
    assert main(["inspect", path, "--max-episode-steps", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 5
    assert main(["convert", path, str(tmp_path / "out"), "--max-episode-steps", "5"]) == 0
    assert [len(e) for e in open_dataset(tmp_path / "out")] == [5, 5, 5, 5, 2]


@pytest.mark.parametrize("chunks", [None, (64,)])
def test_the_cost_of_text_in_d4rl_is_proportional_to_the_rows(tmp_path, monkeypatch, chunks):
    """Counts the reads of the file, their bytes, and the bytes of the heaps that are checked. A heap has 64 KB, so that
    reading each episode alone would read most of a small file again.
    """
    counts = np.zeros(3, np.int64)
    readinto, walk = hdf5._CheckedFile.readinto, hdf5._CheckedFile._walk

    def counted_read(file, buffer):
        counts[:2] += 1, len(buffer)
        return readinto(file, buffer)

    def counted_walk(file, begin):
        counts[2] += int.from_bytes(os.pread(file._file, 8, begin + 8), "little")
        return walk(file, begin)
    monkeypatch.setattr(hdf5._CheckedFile, "readinto", counted_read)
    monkeypatch.setattr(hdf5._CheckedFile, "_walk", counted_walk)
    costs = []
    for steps in (1000, 4000):
        with h5py.File(path := tmp_path / f"{steps}.hdf5", "w") as file:
            file["observations"], file["actions"] = np.zeros((steps, 2), np.float32), np.zeros((steps, 1), np.float32)
            file["rewards"], file["terminals"] = np.zeros(steps, np.float32), np.arange(steps) % 50 == 49
            file["timeouts"] = np.zeros(steps, bool)
            words = np.array([f"push block {i}" for i in range(steps)], object)
            file.create_dataset("infos/words", data=words, dtype=h5py.string_dtype(), chunks=chunks)
        counts[:] = 0
        data = open_dataset(path)
        episodes = [np.asarray(e.steps["infos.words"]) for e in data]
        for e in (7, 3, 4, 0):  # in any order
            np.testing.assert_array_equal(data[e].steps["infos.words"], words[50 * e: 50 * (e + 1)])
        assert np.concatenate(episodes).tolist() == words.tolist() and counts.all()
        costs.append(counts.copy())
    assert (costs[1] <= 4.4 * costs[0]).all()


def test_d4rl_flags_in_columns_and_an_unfinished_end(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"], file["actions"] = np.arange(6.0)[:, None], np.zeros((6, 1))
        file["rewards"], file["terminals"] = np.arange(6.0)[:, None], np.array([[0], [1], [0], [0], [0], [0]], float)
        file["timeouts"] = np.array([0, 0, 0, 1, 0, 0], np.uint8)
    data, episodes = everything(tmp_path / "a.hdf5")
    assert [len(e) for e in data] == [2, 2, 2] and "the recording stopped" in data.metadata["warnings"][0]
    assert [c["next.terminated"].tolist() for c, _ in episodes] == [[False, True], [False, False], [False, False]]
    assert episodes[2][0]["next.reward"].tolist() == [4, 5]


def test_d4rl_as_its_loader_reads_it(tmp_path):
    """rail-berkeley/d4rl offline_env.py: four arrays of as many rows must be there; every array is loaded."""
    data = demonstrations(cameras=False)
    write_dataset(data, tmp_path / "a.hdf5", "d4rl")
    with h5py.File(tmp_path / "a.hdf5") as file:
        keys = []
        file.visititems(lambda n, x: keys.append(n) if isinstance(x, h5py.Dataset) else None)
        assert {"observations", "actions", "rewards", "terminals", "timeouts", "next_observations"} <= set(keys)
        assert {file[k].shape[0] for k in keys} == {22} and file["rewards"].shape == (22,)
        np.testing.assert_array_equal(np.flatnonzero(file["terminals"][:] | file["timeouts"][:]), [4, 5, 9, 21])
        np.testing.assert_array_equal(file["next_observations"][21], data[3].steps["observation.state"][12])
