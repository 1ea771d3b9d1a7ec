"""robomimic, ACT/ALOHA, Minari, D4RL and imitation: files that we did not write are read right, what is written is
read by their own libraries, and what is damaged is refused by name."""

import json
import os
import shutil
import subprocess
from multiprocessing import get_context
from unittest.mock import patch

import h5py
import numpy as np
import pyarrow as pa
import pytest
from fixtures import closed_form
from folders import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.formats.test_format_contract import demonstrations
from understudy import Window
from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import conversion_losses, format_of, hdf5, open_dataset, sidecar, write_dataset
from understudy.testing import check_format

HDF5 = ("robomimic", "act", "minari", "d4rl")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(shared):
    return shared / "fixtures"


@pytest.fixture
def expected(files):
    return lambda name: json.loads((files / f"expected/{name}.json").read_text())["episodes"]


def refused(path, *parts, **options):
    """The message of the error with which all of it is refused to be read; it names all of `parts`."""
    with pytest.raises(UserError) as error:
        everything(path, **options)
    for part in parts:
        assert part in str(error.value), error.value
    return str(error.value)


def everything(path, **options):
    data = open_dataset(path, **options)
    return data, [({name: np.asarray(e.steps[name]) for name in e.steps}, dict(e.metadata)) for e in data]


def state(e, rows):
    return np.stack([closed_form.state(e, t) for t in range(rows)])


def images(e, rows):
    return np.stack([closed_form.image(e, t) for t in range(rows)])


def outcomes(e):
    n = closed_form.LENGTHS[e]
    ends = np.arange(n) == n - 1
    return np.arange(n) / 4, ends & (closed_form.ENDINGS[e] == "terminated"), ends & (
        closed_form.ENDINGS[e] == "truncated")


def agrees(values, said, what, lossy=False):
    """With the sums that the format's own library printed."""
    values = np.asarray(values)
    if said["dtype"] == "text":
        assert sorted(set(map(str, values.tolist()))) == said["values"], what
        return
    flat = values.reshape(len(values), -1).astype(np.float64)
    each = (flat.sum(), (flat.sum(1) * np.arange(1, len(flat) + 1)).sum())
    pixels = flat.shape[1] * len(flat) * 2 if lossy else 0  # two grey levels
    np.testing.assert_allclose(each[0], said["sum"], rtol=1e-6, atol=pixels, err_msg=what)
    np.testing.assert_allclose(each[1], said["tsum"], rtol=1e-6, atol=pixels * len(flat), err_msg=what)
    assert (len(values), list(values.shape[1:])) == (said["n"], said["shape"]), what


@pytest.mark.parametrize("pattern, kind", [
    ("robomimic/*.hdf5", "robomimic"), ("robosuite/*.hdf5", "robomimic"), ("act_aloha/raw/*.hdf5", "act"),
    ("act_aloha/*w", "act"), ("d4rl/*.hdf5", "d4rl"), ("minari/closed/*-v*", "minari"),
    ("imitation/*rewards", "imitation"), ("imitation/discrete", "imitation"),
    ("imitation/upstream_testdata/*.npz", "imitation")])
def test_each_is_recognised(pattern, kind, files):
    paths = list(files.glob(pattern))
    assert paths and {format_of(path) for path in paths} == {kind}


# -- robomimic and robosuite ----------------------------------------------------------------------------------------


def test_robomimic(files, expected):
    data, episodes = everything(files / "robomimic/low_dim_image.hdf5")
    assert (data.metadata["format"], data.metadata["version"], data.fps, data.metadata["robot_type"]) == (
        "robomimic", "1.4.1", 20.0, "Panda")
    assert data.metadata["warnings"] == [] and [len(e) for e in data] == closed_form.LENGTHS  # demo_10 comes last
    for e, ((columns, meta), said) in enumerate(zip(episodes, expected("robomimic"), strict=True)):
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
        assert said["demo"] == meta.get("demo", f"demo_{e}")
        for key, value in said.items():
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


# -- ACT ------------------------------------------------------------------------------------------------------------


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


# -- Minari ---------------------------------------------------------------------------------------------------------


MINARI = ["box-v0", "box-arrow-v0", "box-parquet-v0", "discrete-v1", "dict-v0", "dict-arrow-v0", "image-v0",
          "raw-images-v0"]
_MINARI = {"actions": "action", "rewards": "next.reward", "terminations": "next.terminated",
           "truncations": "next.truncated"}


@pytest.mark.parametrize("name", MINARI)
def test_minari(name, files, expected):
    data, episodes = everything(files / "minari/closed" / name)
    assert data.metadata["format"] == "minari" and data.metadata["version"] == "0.5.4" and not data.metadata["warnings"]
    nested, jpeg = name.startswith(("dict", "raw")), name.startswith(("dict", "image"))
    for e, ((columns, meta), said) in enumerate(zip(episodes, expected(f"minari_{name}"), strict=True)):
        n, (reward, terminated, truncated) = closed_form.LENGTHS[e], outcomes(e)
        assert meta["seed"] == 1000 + e and meta["minari"]["author"] == ["understudy"]
        np.testing.assert_array_equal(columns["next.reward"], reward)
        np.testing.assert_array_equal(columns["next.terminated"], terminated)
        np.testing.assert_array_equal(columns["next.truncated"], truncated)
        np.testing.assert_array_equal(columns["infos.pose.xy"], state(e, n + 1)[:, :2])
        np.testing.assert_array_equal(columns["infos.success"], np.append(np.zeros(n, bool), terminated[-1]))
        action = [closed_form.action(e, t) for t in range(n)]
        if name == "discrete-v1":
            action = (e + np.arange(n)) % 3
            assert data.features()["action"].num_classes == (3,)
        np.testing.assert_array_equal(columns["action.arm" if nested else "action"], action)
        if nested:
            np.testing.assert_array_equal(columns["action.grip"], np.arange(n) % 2)
            np.testing.assert_array_equal(columns["observation.nested.goal"], -state(e, n + 1))
            assert set(columns["observation.mission"]) == {closed_form.task(e)}
        if name != "image-v0":
            np.testing.assert_array_equal(columns["observation.state"], state(e, n + 1))
        if nested or jpeg:
            column = columns["observation.images.pixels" if nested else "observation.images.image"]
            off = np.abs(column.astype(int) - images(e, n + 1)).mean(axis=(1, 2, 3))
            assert off.max() <= (2.5 if jpeg else 0)
        for key, value in said.items():
            top, _, rest = key.partition("/")
            rest = rest.replace("/", ".")
            if top == "observations":
                image = f"observation.images.{rest or 'image'}"
                agrees(columns.get(image, columns.get(f"observation.{rest or 'state'}")), value, key, image in columns)
            elif value["dtype"] != "text":  # infos that Minari itself does not read back
                agrees(columns[_MINARI.get(top, top) + f".{rest}" * bool(rest)], value, key)


def test_minari_before_it_had_metadata(files, tmp_path):
    """Before 0.5.0 the facts were attributes of the file; before 0.5.3 images were not JPEG, whatever is not said."""
    shutil.copy(files / "minari/closed/raw-images-v0/data/main_data.hdf5", tmp_path / "main_data.hdf5")
    about = json.loads((files / "minari/closed/raw-images-v0/data/metadata.json").read_text())
    with h5py.File(tmp_path / "main_data.hdf5", "a") as file:
        for key in ("total_episodes", "total_steps", "dataset_id"):
            file.attrs[key] = about[key]
        file.attrs["minari_version"] = "0.4.3"
    for path in (tmp_path, tmp_path / "main_data.hdf5"):
        data, episodes = everything(path)
        assert data.metadata["version"] == "0.4.3" and not data.metadata["warnings"]
        np.testing.assert_array_equal(episodes[3][0]["observation.images.pixels"], images(3, 13))
    with h5py.File(tmp_path / "main_data.hdf5", "a") as file:
        file.attrs["total_steps"] = 23
        del file["episode_1"]
    assert open_dataset(tmp_path).metadata["warnings"] == [
        "metadata, total_episodes: 4, but there are 3", "metadata, total_steps: 23, but there are 21"]


def test_jpeg_of_equal_lengths_and_grey_pictures(tmp_path):
    """Equal frames make rows of bytes of one length; a space of two axes is grey."""
    from understudy.data.video import encode_png
    grey = np.full((3, 40, 32), 7, np.uint8)
    rows = np.stack([np.frombuffer(encode_png(g[..., None]), np.uint8) for g in grey])
    about = {"data_format": "hdf5", "observation_space": json.dumps({"type": "Dict", "subspaces": {
        "coded": {"type": "Box", "dtype": "uint8", "shape": [40, 32]},
        "plain": {"type": "Box", "dtype": "uint8", "shape": [40, 32]},
        "bytes": {"type": "Box", "dtype": "uint8", "shape": [rows.shape[1]]}}})}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        for key, values in {"observations/coded": rows, "observations/plain": grey, "observations/bytes": rows,
                            "actions": np.zeros((2, 1)), "rewards": np.zeros(2), "terminations": np.zeros(2, bool),
                            "truncations": np.array([0, 1], bool)}.items():
            file[f"episode_0/{key}"] = values
    data, [(columns, _)] = everything(tmp_path)
    np.testing.assert_array_equal(columns["observation.images.coded"][..., 0], grey)
    np.testing.assert_array_equal(columns["observation.images.plain"][..., 0], grey)
    np.testing.assert_array_equal(columns["observation.bytes"], rows)
    assert data.features()["observation.bytes"].kind == "vector"


# -- D4RL -----------------------------------------------------------------------------------------------------------


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


# -- imitation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with_rewards", "without_rewards", "discrete"])
def test_imitation(name, files, expected):
    data, episodes = everything(files / "imitation" / name)
    assert data.metadata["format"] == "imitation" and len(data) == 4
    for e, ((columns, _), said) in enumerate(zip(episodes, expected(f"imitation_{name}"), strict=True)):
        n, (reward, terminated, truncated) = closed_form.LENGTHS[e], outcomes(e)
        np.testing.assert_array_equal(columns["observation.state"], state(e, n + 1))
        np.testing.assert_array_equal(columns["next.terminated"], terminated)
        np.testing.assert_array_equal(columns["next.truncated"], truncated)
        action = (e + np.arange(n)) % 3 if name == "discrete" else [closed_form.action(e, t) for t in range(n)]
        np.testing.assert_array_equal(columns["action"], action)
        assert columns["observation.state"].dtype == np.float32  # upstream makes it float64
        assert json.loads(columns["infos"][n - 1]) == {"t": n - 1, "task": closed_form.task(e)}
        agrees(columns["observation.state"], said["obs"], "obs")
        agrees(columns["action"], said["acts"], "acts")
        assert said["terminal"] == terminated[-1] and ("next.reward" in columns) == (name != "without_rewards")
        if "rews" in said:
            np.testing.assert_array_equal(columns["next.reward"], reward)
            agrees(columns["next.reward"], said["rews"], "rews")


@pytest.mark.parametrize("name, episodes, steps", [("cartpole_0_final", 57, 26964), ("pendulum_0_final", 56, 11200)])
def test_imitation_of_old(name, episodes, steps, files):
    path = files / f"imitation/upstream_testdata/{name}.npz"
    data, read = everything(path)
    assert (len(data), data.steps) == (episodes, steps)
    assert data.metadata["warnings"] == ["infos: a pickle, which could run any code, is left out"]
    with np.load(path) as arrays:  # split as the library does it
        for key, name in (("acts", "action"), ("rews", "next.reward")):
            for part, (columns, _) in zip(np.split(arrays[key], arrays["indices"]), read, strict=True):
                np.testing.assert_array_equal(part, columns[name])
        cut = arrays["indices"] + np.arange(len(arrays["indices"])) + 1
        for part, (columns, _) in zip(np.split(arrays["obs"], cut), read, strict=True):
            np.testing.assert_array_equal(part, columns["observation.state"])
        assert [c["next.terminated"][-1] for c, _ in read] == arrays["terminal"].tolist()


def test_imitation_that_does_not_fit(files, tmp_path):
    shutil.copytree(files / "imitation/with_rewards", tmp_path / "d")
    file = tmp_path / "d/data-00000-of-00001.arrow"
    with pa.ipc.open_stream(file.read_bytes()) as stream:
        table = stream.read_all()

    def write(table):
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
    obs = table.column("obs").to_pylist()
    obs[2] = obs[2][:-1]
    write(table.set_column(table.column_names.index("obs"), "obs", pa.array(obs, table.schema.field("obs").type)))
    refused(tmp_path / "d", "it has 4 rows instead of 5, for 4 actions", "obs, trajectory 2")
    obs[2] = obs[2] + [[1.0]]
    write(table.set_column(table.column_names.index("obs"), "obs", pa.array(obs, table.schema.field("obs").type)))
    refused(tmp_path / "d", "the rows have from 1 to 3 values", "obs, trajectory 2")
    write(table.drop_columns(["terminal"]))
    refused(tmp_path / "d", "there is no column terminal; there are obs, acts, infos, rews")
    (tmp_path / "d/state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    refused(tmp_path / "d", "these are not different names of files in this folder", "state.json, _data_files")


# -- reading where it lies ------------------------------------------------------------------------------------------


SOURCES = ["robomimic/low_dim_image.hdf5", "act_aloha/raw", "minari/closed/dict-v0", "minari/closed/dict-arrow-v0",
           "d4rl/with_next.hdf5", "imitation/with_rewards"]


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_read_before_it_is_asked_for(name, files, cache, monkeypatch):
    """Numbers come from the cache, once; where they do not fit there, from the file, and they are the same."""
    data = open_dataset(files / name)
    assert not cache.exists()
    numbers = [n for n, f in data.features().items() if f.kind in ("vector", "discrete")]
    action = next(n for n in numbers if n.startswith("action"))
    seen = next(n for n in numbers if n.startswith("observation."))
    there = [{n: e.steps[n].copy() for n in numbers} for e in data]
    assert len([p for p in cache.iterdir() if not p.name.startswith(".")]) == 1
    whole, first, rows = data.column(seen)
    for e, at, n in zip(data, first, rows, strict=True):
        np.testing.assert_array_equal(e.steps[seen], whole[at: at + n])
    batch = Window(1, 3).windows(data, [seen], action).batch(8, 0, 0)
    assert len(batch.action) == 8
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(cache / "small"))
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "1e-9")
    again = open_dataset(files / name)
    for e, columns in zip(again, there, strict=True):
        for n in numbers:
            np.testing.assert_array_equal(e.steps[n], columns[n])
            assert e.steps[n].dtype == columns[n].dtype
    with pytest.raises(UserError, match="UNDERSTUDY_CACHE_GB"):
        again.column(seen)


@pytest.mark.parametrize("name", ["robomimic/low_dim_image.hdf5", "act_aloha/compressed", "minari/closed/dict-v0",
                                  "minari/closed/dict-arrow-v0"])
def test_cameras_are_decoded_once_and_in_pieces(name, files, monkeypatch):
    from understudy.data import sources
    monkeypatch.setattr(sources, "_PIECE", 3 * 64 * 64 * 3)  # three frames at a time
    plain, framed = open_dataset(files / name), open_dataset(files / name, image_size=64)
    camera = next(n for n, f in plain.features().items() if f.kind == "image")
    for one, other in zip(plain, framed, strict=True):
        np.testing.assert_array_equal(one.steps[camera], other.steps[camera])


def test_a_file_that_changes_is_read_anew(tmp_path):
    def data(value):
        return Dataset([Episode({"observation.state": np.full((3, 1), value), "action": np.zeros((3, 1))})])
    for value in (1.0, 2.0):
        (tmp_path / "a.hdf5").unlink(missing_ok=True)
        write_dataset(data(value), tmp_path / "a.hdf5", "robomimic")
        assert open_dataset(tmp_path / "a.hdf5")[0].steps["observation.state"][0] == value


# -- what is damaged or odd -----------------------------------------------------------------------------------------


def test_broken_fixtures(files):
    """Every one of these formats in broken/MANIFEST.json: refused with file and key, or the fault is there to see."""
    broken, names = files / "broken", json.loads((files / "broken/MANIFEST.json").read_text())
    mine = {n for n in names if n.startswith(("robomimic", "act", "minari", "d4rl", "imitation"))}
    refused(broken / "robomimic_truncated.hdf5", "robomimic_truncated.hdf5", "truncated")
    refused(broken / "robomimic_lengths.hdf5", "data/demo_0/obs/object: it has 4 rows instead of 5, as actions has")
    refused(broken / "act_short_qpos.hdf5", "observations/qpos: it has 4 rows instead of 5, as action has")
    refused(broken / "d4rl_no_end.hdf5", "d4rl_no_end.hdf5: there is no array timeouts")
    data, episodes = everything(broken / "robomimic_nan_action.hdf5")
    assert np.argwhere(np.isnan(episodes[3][0]["action"])).tolist() == [[2, 0]]
    data, _ = everything(broken / "robomimic_total.hdf5")
    assert data.metadata["warnings"] == ["data, attribute total: 99, but the demos have 22 steps"]
    assert mine == {"robomimic_truncated.hdf5", "robomimic_lengths.hdf5", "act_short_qpos.hdf5", "d4rl_no_end.hdf5",
                    "robomimic_nan_action.hdf5", "robomimic_total.hdf5"}


def changed(files, tmp_path, name, change):
    path = tmp_path / "changed.hdf5"
    path.unlink(missing_ok=True)
    shutil.copyfile(files / name, path)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def _replace(key, values, **options):
    def change(file):
        del file[key]
        file.create_dataset(key, data=values, **options)
    return change


def _attribute(key, name, value):
    def change(file):
        file[key].attrs[name] = value
    return change


def _without(key):
    def change(file):
        del file[key]
    return change


def _link(key, link):
    def change(file):
        file[key] = link
    return change


def _ragged(key, rows, dtype):
    def change(file):
        del file[key]
        array = file.create_dataset(key, (len(rows),), h5py.vlen_dtype(dtype))
        for i, row in enumerate(rows):
            array[i] = np.array(row, dtype)
    return change


def _virtual(file):
    layout = h5py.VirtualLayout((5, 2), float)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (5, 2))
    del file["data/demo_0/actions"]
    file.create_virtual_dataset("data/demo_0/actions", layout)


ODD = {
    "compound": (_replace("data/demo_0/obs/object", np.zeros(5, [("a", "f4")])), "data/demo_0/obs/object",
                 "compound or opaque"),
    "references": (_replace("data/demo_0/states", [None] * 5, dtype=h5py.ref_dtype), "data/demo_0/states",
                   "references"),
    "opaque": (_replace("data/demo_0/rewards", np.zeros(5, "V8")), "data/demo_0/rewards", "compound or opaque"),
    "ragged": (_ragged("data/demo_1/rewards", [[1, 2, 3]], float), "data/demo_1/rewards", "objects of varying length"),
    "complex": (_replace("data/demo_1/actions", np.zeros((1, 2), complex)), "data/demo_1/actions", "complex128"),
    "scalar": (_replace("data/demo_1/actions", 3.0), "data/demo_1", "there is no array actions"),
    "width": (_replace("data/demo_1/actions", np.zeros((1, 3))), "demo_1/actions",
              "it is float64 (3,), but float64 (2,) in the first episode"),
    "nothing": (_replace("data/demo_1/obs/object", np.zeros((1, 0))), "demo_1/obs/object", "has no components"),
    "next": (_replace("data/demo_0/next_obs/object", np.zeros((5, 2))), "demo_0/next_obs/object", "it is float64 (2,)"),
    "no actions": (_without("data/demo_2/actions"), "data/demo_2", "there is no array actions"),
    "no observation": (_without("data/demo_2/obs/object"), "data/demo_2", "obs/object is missing, but other"),
    "num_samples": (_attribute("data/demo_2", "num_samples", 7), "data/demo_2", "num_samples is 7, but actions has"),
    "array for a number": (_attribute("data/demo_2", "num_samples", [4, 4]), "data/demo_2", "num_samples is"),
    "odd attribute": (_attribute("data/demo_2", "color", np.zeros(1, "V3")), "demo_2, attribute color",
                      "neither a number nor text"),
    "env_args": (_attribute("data", "env_args", 3), "data, attribute env_args", "this is not JSON text"),
    "flags": (_replace("data/demo_0/dones", [0, 0, 2, 0, 1]), "demo_0/dones, row 2", "a flag must be 0 or 1, not 2"),
    "mask": (_replace("mask/valid", [1, 2]), "mask/valid", "it must be names of demos"),
    "another file": (_link("data/demo_0/obs/more", h5py.ExternalLink("/etc/passwd", "x")), "demo_0/obs/more",
                     "a link to another file"),
    "round": (_link("data/demo_0/obs/more", h5py.SoftLink("/data/demo_0")), "data/demo_0", "nested without end"),
    "dangling": (_link("data/demo_0/obs/more", h5py.SoftLink("/nowhere")), "demo_0/obs/more", "damage"),
    "virtual": (_virtual, "demo_0/actions", "stored in another file"),
    "text": (_replace("data/demo_0/obs/object", np.array([b"\xff\xfe"] * 5, object), dtype=h5py.string_dtype()),
             "data/demo_0/obs/object"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_hdf5_is_refused_by_file_and_key(name, files, tmp_path):
    change, *parts = ODD[name]
    refused(changed(files, tmp_path, "robomimic/low_dim_image.hdf5", change), "changed.hdf5", *parts)


def test_what_was_never_written_is_said(files, tmp_path):
    def change(file):
        del file["data/demo_0/states"]
        file["data/demo_0"].create_dataset("states", (5, 3), float, chunks=(2, 3))[:2] = 1
    path = changed(files, tmp_path, "robomimic/low_dim_image.hdf5", change)
    assert open_dataset(path).metadata["warnings"] == ["demo_0: parts of states were never written, and read as zeros"]


def test_next_observations_that_do_not_follow_are_said(files, tmp_path):
    def change(file):
        file["data/demo_0/next_obs/object"][3] += 1
    path = changed(files, tmp_path, "robomimic/low_dim_image.hdf5", change)
    assert "demo_0/next_obs/object is not the next row" in open_dataset(path).metadata["warnings"][0]

    def shifted(file):
        file["next_observations"][0] += 1
    path = changed(files, tmp_path, "d4rl/with_next.hdf5", shifted)
    assert "not the next rows of observations" in open_dataset(path).metadata["warnings"][0]


@pytest.mark.parametrize("name, change, parts", [
    ("act_aloha/raw/episode_0.hdf5", _without("action"), ["HDF5 file of an unknown kind, which holds observations"]),
    ("act_aloha/compressed/episode_0.hdf5", _replace("observations/images/cam_high", np.ones((5, 40), np.uint8)),
     ["observations/images/cam_high, row 0", "the value is not a PNG or JPEG image"]),
    ("d4rl/with_next.hdf5", _without("terminals"), ["there is no array terminals"]),
    ("d4rl/with_next.hdf5", _replace("terminals", np.full(22, 0.5)), ["terminals", "0 or 1, but it is (22,) with 0.5"]),
    ("d4rl/with_next.hdf5", _replace("infos/qpos", np.zeros(21)), ["infos/qpos: it has 21 rows instead of 22"]),
    ("d4rl/with_next.hdf5", _replace("next_observations", np.zeros((22, 2))),
     ["next_observations: the shape is"]),
    ("minari/closed/box-v0/data/main_data.hdf5", _replace("episode_2/observations", np.zeros((4, 3), np.float32)),
     ["episode_2, observations: it has 4 rows instead of 5, for 4 steps"]),
    ("minari/closed/box-v0/data/main_data.hdf5", _without("episode_2/actions"),
     ["episode_2, actions: actions is missing, but other episodes have it"]),
    ("minari/closed/box-v0/data/main_data.hdf5", _attribute("episode_2", "total_steps", 9),
     ["episode_2: total_steps is"]),
    ("minari/closed/image-v0/data/main_data.hdf5",
     _ragged("episode_1/observations", [[1] * 9, [2] * 8], np.uint8),
     ["episode_1/observations, row 0", "PNG or JPEG"])])
def test_others_that_are_odd(name, change, parts, files, tmp_path):
    refused(changed(files, tmp_path, name, change), "changed.hdf5", *parts)


@pytest.mark.parametrize("name", ["robomimic/low_dim_image.hdf5", "d4rl/with_next.hdf5",
                                  "act_aloha/compressed/episode_1.hdf5"])
def test_a_file_cut_anywhere_is_refused(name, files, tmp_path):
    whole = (files / name).read_bytes()
    for part in range(1, 12):
        (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) * part // 12])
        refused(tmp_path / "cut.hdf5", "cut.hdf5", "copy")


def test_a_minari_episode_that_is_gone(files, tmp_path):
    shutil.copytree(files / "minari/closed/box-arrow-v0", tmp_path / "d")
    shutil.rmtree(tmp_path / "d/data/2")
    assert open_dataset(tmp_path / "d").metadata["warnings"][0] == "metadata, total_episodes: 4, but there are 3"
    own = tmp_path / "d/data/1/metadata.json"
    said = json.loads(own.read_text())
    for steps in (2**70, True, 0, "4"):
        own.write_text(json.dumps({**said, "total_steps": steps}))
        refused(tmp_path / "d", "1/metadata.json: total_steps must be")
    own.write_text(json.dumps(said))
    (tmp_path / "d/data/1/part-0.arrow").write_bytes(b"ARROW1")
    refused(tmp_path / "d", "1/part-0.arrow", "damage")
    (tmp_path / "d/data/1/part-0.arrow").unlink()
    refused(tmp_path / "d", "1/part-0.arrow: the file is missing")
    (tmp_path / "d/data/metadata.json").write_text('{"data_format": "zarr"}')
    refused(tmp_path / "d", "data_format 'zarr' is not read")


# -- writing --------------------------------------------------------------------------------------------------------


NAMES = st.sampled_from([f"observation.{k}" for k in ("state", "qpos", "a.b", "images.x", "infos", "é")]
                        + ["count", "obs", "next.done", "next.terminated", "next.truncated", "next.reward", "states",
                           "infos.x", "timestamp", "observations", "id", "."])
KINDS = st.sampled_from([("float32", (2,)), ("float64", ()), ("int64", ()), ("uint8", (5,)), ("bool", ()),
                         ("uint8", (8, 9, 3)), ("int16", (2, 2)), ("float32", (1,)), ("U", ())])
TEXTS = st.sampled_from(["", "a", "öffne", "a b", "x\0y", "ﬀ"])
FACTS = st.dictionaries(st.sampled_from(["seed", "demo", "masks", "ep_meta", "fps", "sim", "total_steps", "a/b", "x"]),
                        st.one_of(st.integers(-2**70, 2**70), st.booleans(), st.floats(allow_nan=False), TEXTS,
                                  st.none(), st.just(["train"]), st.just({"lang": "x"}), st.just("demo_7")), max_size=3)


@st.composite
def any_data(draw):
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    columns = {"observation.state": ("float32", (3,)),
               "action": draw(st.sampled_from([("float32", (2,)), ("int64", ())])),
               **draw(st.dictionaries(NAMES, KINDS, max_size=4))}
    if columns["observation.state"][0] in ("U", "bool"):  # which no observation may be alone: see the test below
        columns["observation.x"] = ("float32", (3,))
    if draw(st.booleans()):
        columns["task"] = ("U", ())
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    more = {n: draw(st.booleans()) for n in columns}
    episodes = []
    for n in lengths:
        steps = {}
        for name, (dtype, shape) in columns.items():
            rows = n + (more[name] and name != "action" and draw(st.booleans()))
            if dtype == "U":
                values = np.empty(rows, object)
                values[:] = [draw(TEXTS)] * rows if draw(st.booleans()) else [draw(TEXTS) for _ in range(rows)]
            elif dtype == "bool":
                values = rng.random((rows, *shape)) < 0.3
            else:
                values = (rng.normal(size=(rows, *shape)) * 50 + 50).astype(dtype)
            steps[name] = values
        episodes.append(Episode(steps, draw(FACTS), n))
    facts = {"fps": draw(st.sampled_from([None, 10.0, 29.97])), "robot_type": draw(st.sampled_from([None, "arm"]))}
    return Dataset(episodes, facts)


@pytest.mark.slow
@pytest.mark.parametrize("to", HDF5)
@given(data=any_data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_anything_comes_back(to, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    with patch("os.fsync"):  # which takes most of the time, and nothing here depends on it
        check_format(to, data, folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("to", HDF5)
def test_what_was_not_recorded_is_not_read(to, tmp_path):
    """Formats demand more than the data have: rewards, ends, velocities. That is filled for others, not for us."""
    data = Dataset([Episode({"observation.state": np.ones((n, 2)), "action": np.ones((n, 1))}) for n in (3, 2)])
    write_dataset(data, tmp_path / "d", to)
    assert not conversion_losses(data, to) and open_dataset(tmp_path / "d").fingerprint() == data.fingerprint()


@pytest.mark.parametrize("to", HDF5)
def test_no_action_and_nothing_seen_cannot_be_written(to, tmp_path):
    only = Dataset([Episode({"count": np.zeros(3), "task": np.array(["a"] * 3)})])
    with pytest.raises(UserError, match="needs .*action.*; there are count, task"):
        write_dataset(only, tmp_path / "d", to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["robomimic", "d4rl"])
def test_a_side_file_of_an_earlier_file_is_neither_taken_for_its_own_nor_removed(to, tmp_path):
    data = demonstrations(cameras=False)
    write_dataset(data, tmp_path / "a.hdf5", to)
    kept = sidecar.sidecar_path(tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").unlink()
    plain = Dataset([Episode({"observation.state": np.ones((3, 2)), "action": np.ones((3, 1))})])
    with pytest.raises(UserError, match="belongs to another data set of the same name"):
        write_dataset(plain, tmp_path / "a.hdf5", to)
    assert sidecar.sidecar_path(tmp_path / "a.hdf5").read_bytes() == kept and not (tmp_path / "a.hdf5").exists()
    write_dataset(plain, tmp_path / "b.hdf5", to)
    with pytest.raises(UserError, match="there is already a file or folder"):
        write_dataset(data, tmp_path / "b.hdf5", to)
    assert open_dataset(tmp_path / "b.hdf5").fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("to", HDF5)
def test_a_writer_that_fails_leaves_nothing(to, tmp_path):
    data = demonstrations(cameras=False)
    bad = data.map(lambda e: e.replace({"action": 1 / 0}) if e.metadata["seed"] == 3 else e)
    with pytest.raises(ZeroDivisionError):
        write_dataset(bad, tmp_path / "d", to)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


# -- their own readers ----------------------------------------------------------------------------------------------


def upstream(name, path, shared):
    python = REPOSITORY / f".venv-peers/{name}/bin/python"
    if not python.exists():
        pytest.skip("no .venv-peers")
    ran = subprocess.run([python, shared / "tools/check_with_upstream.py", name, path], capture_output=True, text=True,
                         env={"OMP_NUM_THREADS": "1", "HOME": str(path.parent), "PATH": "/usr/bin:/bin"})
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_robomimic_itself_reads_what_is_written(shared, tmp_path):
    data = demonstrations()
    write_dataset(data, tmp_path / "a.hdf5", "robomimic")
    said = upstream("robomimic", tmp_path / "a.hdf5", shared)["episodes"]
    for e, (one, read) in enumerate(zip(data, said, strict=True)):
        n, c = len(one), one.steps
        agrees(c["action"], read["actions"], "actions")
        agrees(c["next.reward"], read["rewards"], "rewards")
        agrees(c["next.terminated"] | c["next.truncated"], read["dones"], "dones")
        agrees(c["observation.state"][:n], read["obs/state"], f"obs/state of {e}")
        agrees(c["observation.state"][1:], read["next_obs/state"], f"next_obs/state of {e}")
        agrees(c["observation.images.front"], read["obs/front"], "front")


@pytest.mark.slow
def test_minari_itself_reads_what_is_written(shared, tmp_path):
    data = demonstrations()
    write_dataset(data, tmp_path / "written-v3", "minari")
    read = upstream("minari", tmp_path / "written-v3", shared)
    assert read["extra"] == {"total_steps": 22, "id": "written-v3"}
    for one, said in zip(data, read["episodes"], strict=True):
        c = one.steps
        agrees(c["observation.state"], said["observations/state"], "state")
        agrees(c["action"], said["actions"], "actions")
        agrees(c["next.reward"], said["rewards"], "rewards")
        agrees(c["next.terminated"], said["terminations"], "terminations")
        agrees(c["next.truncated"], said["truncations"], "truncations")
        images = np.concatenate([c["observation.images.front"], c["observation.images.front"][-1:]])
        agrees(images, said["observations/front"], "front")


def test_features_of_words_and_bytes():
    """Bytes in a row are numbers when they come from other files: only ours say that they are words."""
    from understudy.data.formats.key_map import stored_feature
    assert stored_feature("observation.ram", (128,), np.dtype("uint8")) == Feature("uint8", (128,))
    assert stored_feature("observation.x", (9, 9, 3), np.dtype("uint8")).kind == "image"
    assert stored_feature("next.reward", (1,), np.dtype(">f8")) == Feature("float64", ())


@pytest.mark.parametrize("state", [np.array(["x\0y"] * 3), np.zeros(3, bool)], ids=["text", "flags"])
def test_minari_has_no_place_for_data_without_an_observed_number(state, tmp_path):
    data = Dataset([Episode({"observation.state": state, "action": np.zeros((3, 2), np.float32)})])
    with pytest.raises(UserError, match="minari: Minari needs an action and an observation"):
        write_dataset(data, tmp_path / "d", "minari")
    assert not (tmp_path / "d").exists()


def test_a_heap_with_zeros_in_it_is_refused_and_does_not_hang(tmp_path):
    """At an object of no size the HDF5 library looks for the next one for ever; in a process that can be ended."""
    path = tmp_path / "texts.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(2):
            group = file.create_group(f"episode_{i}")
            group["rewards"], group["actions"] = np.zeros(3), np.ones((3, 2))
            group["observations/mission"] = ["go left", "stay", "go right", "stop"]
    assert minari_texts(path) == ["go left", "stay", "go right", "stop"]
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    for change in (bytes(16), (2).to_bytes(8, "little") + (2**64 - 16).to_bytes(8, "little")):
        path.write_bytes(data[:heap + 16] + change + data[heap + 32:])  # the first text's number and size
        child = get_context("fork").Process(target=_refused_heap, args=(path, heap))
        child.start()
        child.join(30)
        child.kill()
        assert child.exitcode == 0


def minari_texts(path):
    return [str(t) for t in open_dataset(path)[1].steps["observation.mission"]]


def _refused_heap(path, heap):
    with pytest.raises(UserError, match=f"texts.hdf5.*of .* bytes in the heap at byte {heap}"):
        minari_texts(path)
