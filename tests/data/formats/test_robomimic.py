"""robomimic and robosuite: masks, names, words and values of files that others wrote."""

import json

import h5py
import numpy as np
import pytest
from fixtures import closed_form
from fixtures.hdf5_files import agrees, everything, images, outcomes, refused, state

from understudy import Window
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import conversion_losses, open_dataset, write_dataset
from understudy.data.formats.parts import sidecar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_robomimic(files, expected):
    data, episodes = everything(files / "robomimic/low_dim_image.hdf5")
    assert (data.metadata["format"], data.metadata["version"], data.fps, data.metadata["robot_type"]) == (
        "robomimic", "1.4.1", 20.0, "Panda")
    assert data.metadata["warnings"] == [] and [len(e) for e in data] == closed_form.LENGTHS  # demo_10 comes last
    for e, ((columns, meta), recorded) in enumerate(zip(episodes, expected("robomimic"), strict=True)):
        n, (reward, terminated, truncated) = closed_form.LENGTHS[e], outcomes(e)
        np.testing.assert_array_equal(columns["observation.object"], state(e, n + 1))
        np.testing.assert_array_equal(columns["observation.robot0_eef_pos"], -state(e, n + 1))
        np.testing.assert_array_equal(columns["observation.images.agentview_image"], images(e, n + 1))
        np.testing.assert_array_equal(columns["action"] * 16, [closed_form.action(e, t) for t in range(n)])
        np.testing.assert_array_equal(columns["next.reward"], reward)
        np.testing.assert_array_equal(columns["next.done"], terminated | truncated)
        assert columns["action"].dtype == np.float64 and meta["model_file"] == "<mujoco/>"
        assert meta["masks"] == ["valid" if e == 2 else "train"] and meta["env_args"]["env_name"] == "Lift"
        assert meta.get("demo") == ("demo_10" if e == 3 else None)  # where the name is not the place
        assert recorded["demo"] == meta.get("demo", f"demo_{e}")
        for key, value in recorded.items():
            group, _, name = key.rpartition("/")
            if key in ("actions", "rewards", "dones"):
                agrees(columns[{"actions": "action", "rewards": "next.reward", "dones": "next.done"}[key]], value, key)
            elif group:
                column = columns.get(f"observation.{name}", columns.get(f"observation.images.{name}"))
                agrees(column[:-1] if group == "obs" else column[1:], value, key)


def test_a_mask_chooses_demos(files):
    path = files / "robomimic/low_dim_image.hdf5"
    assert [e.metadata.get("demo", "") for e in open_dataset(path, mask="train")] == ["", "", "demo_10"]
    valid = open_dataset(path, mask="valid")
    np.testing.assert_array_equal(valid[0].steps["observation.object"], state(2, 5))
    windows = Window(1, 2).windows(valid, ["observation.object"], "action")
    np.testing.assert_array_equal(np.sort(windows.batch(64, 0, 0).obs["observation.object"][:, 0, 0].unique()),
                                  np.arange(200, 204))
    refused(path, "there is no mask 'test'; there are train, valid", "mask", mask="test")
    refused(path, "robomimic data are opened without max_episode_steps", max_episode_steps=5)


def test_masks_names_and_env_args_are_written_back(files, tmp_path):
    data = open_dataset(files / "robomimic/low_dim_image.hdf5")
    write_dataset(data, tmp_path / "out.hdf5", "robomimic")
    assert not conversion_losses(data, "robomimic") and not sidecar.sidecar_path(tmp_path / "out.hdf5").exists()
    again = open_dataset(tmp_path / "out.hdf5")
    assert again.fingerprint() == data.fingerprint() and again.fps == 20 and again.metadata["robot_type"] == "Panda"
    with h5py.File(files / "robomimic/low_dim_image.hdf5") as one, h5py.File(tmp_path / "out.hdf5") as other:
        assert json.loads(one["data"].attrs["env_args"]) == json.loads(other["data"].attrs["env_args"])
        assert {k: one["mask"][k][:].tolist() for k in one["mask"]} == \
            {k: other["mask"][k][:].tolist() for k in other["mask"]}
        names = []
        one.visititems(lambda n, x: names.append(n) if isinstance(x, h5py.Dataset) and "mask" not in n else None)
        assert len(names) == 40
        for name in names:  # next_obs, dones and states among them
            assert one[name].dtype == other[name].dtype, name
            np.testing.assert_array_equal(one[name][:], other[name][:], err_msg=name)


def test_words_are_kept_in_ep_meta(tmp_path):
    words = np.array(["öffne die Tür"] * 3)
    steps = {"observation.state": np.zeros((3, 2)), "action": np.zeros((3, 1)), "task": words}
    data = Dataset([Episode(steps, {"ep_meta": {"layout": 3}})])
    write_dataset(data, tmp_path / "a.hdf5", "robomimic")
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert json.loads(file["data/demo_0"].attrs["ep_meta"]) == {"layout": 3, "lang": "öffne die Tür"}
    again = open_dataset(tmp_path / "a.hdf5")
    assert again[0].steps["task"].tolist() == words.tolist() and again[0].metadata == {"ep_meta": {"layout": 3}}
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("name, lengths", [("lift_human_3demos.hdf5", [482, 510, 392]), ("wipe/demo.hdf5", [174])])
def test_robosuite(name, lengths, files):
    data, episodes = everything(files / "robosuite" / name)
    assert data.metadata["format"] == "robosuite" and [len(e) for e in data] == lengths
    assert data.metadata["robot_type"] == "Panda" and "no observations" in data.metadata["warnings"][0]
    with h5py.File(files / "robosuite" / name) as file:
        for e, (columns, meta) in enumerate(episodes):
            group = file[f"data/demo_{e + 1}"]
            np.testing.assert_array_equal(columns["action"], group["actions"][:])
            np.testing.assert_array_equal(columns["states"], group["states"][:])
            assert meta["demo"] == f"demo_{e + 1}" and meta["model_file"] == group.attrs["model_file"]
            assert meta["env_info"]["env_name"] == file["data"].attrs["env"] == meta["env"]
    assert ("joint_torques" in episodes[0][0]) == name.startswith("wipe")
