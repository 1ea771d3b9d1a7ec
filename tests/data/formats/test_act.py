"""ACT and ALOHA: files in numeric order, as their loader reads them."""

import shutil

import h5py
import numpy as np
import pytest
from fixtures import closed_form
from fixtures.contract_data import demonstrations
from fixtures.hdf5_files import everything, images, state

from understudy.data.formats import open_dataset, write_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_act(kind, files):
    data, episodes = everything(files / "act_aloha" / kind)
    camera = "observation.images." + ("top" if kind == "raw" else "cam_high")
    assert data.metadata["format"] == "act" and data.fps is None and len(data) == 3
    for (columns, meta), e in zip(episodes, (0, 2, 3), strict=True):
        n = closed_form.LENGTHS[e]
        qpos = np.tile(state(e, n), 5)[:, :14]
        np.testing.assert_array_equal(columns["observation.state"], qpos)
        np.testing.assert_array_equal(columns["observation.qvel"], qpos / 4)
        np.testing.assert_array_equal(columns["action"], qpos + 0.5)
        off = np.abs(columns[camera].astype(int) - images(e, n)).mean(axis=(1, 2, 3))
        assert off.max() <= (0 if kind == "raw" else 2.5) and meta == {"sim": kind == "raw"}
        assert ("observation.effort" in columns) == (kind == "compressed")
    assert open_dataset(files / "act_aloha" / kind / "episode_2.hdf5").steps == 12  # one file is a data set, too


def test_act_in_numeric_order_and_a_missing_number_is_said(files, tmp_path):
    for number, source in ((0, 0), (2, 1), (10, 2)):
        shutil.copy(files / f"act_aloha/raw/episode_{source}.hdf5", tmp_path / f"episode_{number}.hdf5")
    data = open_dataset(tmp_path)
    assert [len(e) for e in data] == [5, 4, 12]
    assert data.metadata["warnings"] == ["no file of number 1, 3, 4, 5, 6, ..., but episode_10.hdf5"]


def test_act_as_its_loader_reads_it(tmp_path):
    """tonyzhaozh/act utils.py: the attribute sim, qpos, qvel and a camera at one row, actions from there on."""
    data = demonstrations()
    write_dataset(data, tmp_path / "act", "act")
    for i, e in enumerate(data):
        with h5py.File(tmp_path / f"act/episode_{i}.hdf5") as root:
            assert root.attrs["sim"] and root["/action"].shape == (len(e), 2)
            np.testing.assert_array_equal(root["/observations/qpos"][()], e.steps["observation.state"][:len(e)])
            assert root["/observations/qvel"].shape == root["/observations/qpos"].shape
            np.testing.assert_array_equal(root["/observations/images/front"][len(e) - 1],
                                          e.steps["observation.images.front"][-1])
    assert "observation.qvel" not in open_dataset(tmp_path / "act").features()  # it is a filling
