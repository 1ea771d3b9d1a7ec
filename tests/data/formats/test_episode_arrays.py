"""Arrays without a row for each step, in the files of every format: they are metadata, for the reader and the audit."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from understudy.audit import audit, check_usable
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.opening.column_selection import open_columns, parse_columns

STATE, ACTION, STEPS = "observation.state", "action", 30
K = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
STARTS = np.array([0, 12, 20])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def wave(e) -> np.ndarray:
    t = np.arange(STEPS) * 0.05 + 0.4 * e
    return np.stack([np.sin(t), np.cos(2 * t)], 1).astype(np.float32)


def waves() -> Dataset:
    return Dataset([Episode({STATE: wave(e), ACTION: wave(e + 1)}) for e in range(3)])


def robomimic(path):
    with h5py.File(path / "a.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Stack", "type": 2})
        file["data"].attrs["total"] = 3 * STEPS
        for e in range(3):
            group = file.create_group(f"data/demo_{e}")
            group.attrs["num_samples"], group["actions"], group["obs/state"] = STEPS, wave(e + 1), wave(e)
            group["initial_state/robot/joint_position"] = wave(e)[:1]
            group["camera/K"], group["starts"] = K, STARTS
    return path / "a.hdf5"


def act(path):
    write_dataset(waves(), path / "act", "act")
    for file in (path / "act").glob("*.hdf5"):
        with h5py.File(file, "r+") as f:
            f["camera/K"], f["starts"] = K, STARTS
    return path / "act"


def d4rl(path):
    write_dataset(waves(), path / "a.h5", "d4rl")
    with h5py.File(path / "a.h5", "r+") as f:
        f["camera/K"], f["starts"] = K, STARTS
    return path / "a.h5"


def minari(path):
    write_dataset(waves(), path / "minari", "minari")
    with h5py.File(path / "minari/data/main_data.hdf5", "r+") as f:
        for e in range(3):
            f[f"episode_{e}/camera/K"], f[f"episode_{e}/starts"] = K, STARTS
    return path / "minari"


def npz(path):
    np.savez(path / "a.npz", observations=np.concatenate(list(map(wave, range(3)))), camera=K[:2],
             actions=np.concatenate(list(map(wave, range(1, 4)))), episode_ends=[30, 60, 90], starts=STARTS[:2])
    return path / "a.npz"


def npz_folder(path):
    (path / "npz").mkdir()
    for e in range(3):
        np.savez(path / f"npz/{e}.npz", state=wave(e), action=wave(e + 1), camera=K, starts=STARTS)
    return path / "npz"


def zarr(path):
    zarr = pytest.importorskip("zarr")
    write_dataset(waves(), path / "a.zarr")
    (path / "a.zarr/understudy.npz").unlink(missing_ok=True)  # which has the metadata of a file of ours
    group = zarr.open_group(str(path / "a.zarr"), mode="r+")
    for key, values in (("camera", K), ("starts", STARTS)):
        group.create_array(f"data/{key}", shape=values.shape, dtype=values.dtype)[...] = values
    return path / "a.zarr"


@pytest.mark.parametrize("write", [robomimic, act, d4rl, minari, npz, npz_folder, zarr])
def test_arrays_without_a_row_for_each_step_are_metadata(tmp_path, write):
    path = write(tmp_path)
    data = open_dataset(path)
    assert [len(e) for e in data] == [STEPS] * 3 and set(data.features()) - {"next.reward"} == {STATE, ACTION}
    for e, episode in enumerate(data):
        np.testing.assert_array_equal(episode.steps[STATE], wave(e))
        values = {**episode.metadata, **episode.metadata.get("metadata", {})}
        camera = values.get("camera", values.get("camera.K"))
        assert np.array_equal(camera, K[:2] if write is npz else K)
        assert values["starts"] == STARTS[:len(values["starts"])].tolist() and len(values["starts"]) > 1
        assert write is not robomimic or np.array_equal(values["initial_state.robot.joint_position"], wave(e)[:1])
    assert not [f for f in audit(path).findings if f.severity == "error"], audit(path).findings
    write_dataset(data, tmp_path / "copy")
    copied = open_dataset(tmp_path / "copy")[1].metadata
    assert {**copied, **copied.get("metadata", {})}["starts"] == values["starts"]


def test_observations_and_large_arrays_still_need_a_row_for_each_step(tmp_path):
    path = robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        file["data/demo_1/obs/extra"] = np.zeros((29, 2))
    with pytest.raises(UserError, match="demo_1/obs/extra: it has 29 rows instead of 30"):
        open_dataset(path)
    assert "lengths-disagree" in {f.code for f in audit(path).findings}
    np.savez(tmp_path / "b.npz", observations=wave(0), actions=wave(0), episode_ends=[30], rewards=np.zeros(29))
    with pytest.raises(UserError, match="rewards: it has 29 rows"):
        open_dataset(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", observations=wave(0), actions=wave(0), episode_ends=[30], force=np.zeros((29, 40)))
    with pytest.raises(UserError, match="force: it has 29 rows"):
        open_dataset(tmp_path / "c.npz")


COLUMNS = parse_columns(["state=obs/state", "action=actions"])


def test_columns_have_their_names_in_the_file(tmp_path):
    for path, columns in ((robomimic(tmp_path), COLUMNS),
                          (act(tmp_path), parse_columns(["state=observations/qpos", "goal=action"])),
                          (d4rl(tmp_path), parse_columns(["state=observations", "action=actions"]))):
        data = open_columns(path, columns)
        assert data.metadata["format"] != "hdf5" and [len(e) for e in data] == [STEPS] * 3
        np.testing.assert_array_equal(data[2].steps[STATE], wave(2))


def test_columns_override_a_layout_that_cannot_be_read(tmp_path):
    path = robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        file["data/demo_1/obs/extra"], file["data"].attrs["total"] = np.zeros((29, 2)), 7
    with pytest.raises(UserError, match="29 rows"):
        open_dataset(path)
    data = open_columns(path, COLUMNS)
    assert [len(e) for e in data] == [STEPS] * 3 and any("obs/extra" in w or "29 rows" in w
                                                         for w in data.metadata["warnings"])
    for e, episode in enumerate(data):
        np.testing.assert_array_equal(episode.steps[STATE], wave(e))
        np.testing.assert_array_equal(episode.steps[ACTION], wave(e + 1))
    assert not check_usable(data, path) and not [f for f in audit(path, columns=COLUMNS).findings
                                                 if f.severity == "error"]
    with pytest.raises(UserError, match="29 rows"):  # a name that no array has tells of the first error
        open_columns(path, parse_columns(["state=obs/other", "action=actions"]))


def test_an_npz_of_a_known_format_is_cut_where_the_user_says(tmp_path):
    both = np.concatenate([wave(0), wave(1)])
    np.savez(tmp_path / "a.npz", obs=both, acts=both, indices=[20], terminal=[True, False], n=[30, 30])
    data = open_columns(tmp_path / "a.npz", parse_columns(["state=obs", "action=acts", "episode_lengths=n"]))
    assert [len(e) for e in data] == [30, 30]
    np.testing.assert_array_equal(data[1].steps[STATE], wave(1))


@pytest.mark.parametrize("folder", [False, True])
def test_named_arrays_say_how_many_steps_there_are(tmp_path, folder):
    (tmp_path / "npz").mkdir()
    path = tmp_path / "npz" if folder else tmp_path / "npz/0.npz"
    np.savez(tmp_path / "npz/0.npz", q=wave(0), u=wave(1), camera=K, starts=STARTS)
    data = open_columns(path, parse_columns(["state=q", "action=u"]))
    assert len(data) == 1 and data[0].metadata["starts"] == STARTS.tolist()
    np.testing.assert_array_equal(data[0].steps[STATE], wave(0))
