"""Minari: metadata, images and old files."""

import json
import shutil

import h5py
import numpy as np
import pytest
from fixtures import closed_form
from fixtures.hdf5_files import agrees, everything, images, outcomes, refused, state

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    for e, ((columns, meta), recorded) in enumerate(zip(episodes, expected(f"minari_{name}"), strict=True)):
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
        for key, value in recorded.items():
            top, _, name_in_group = key.partition("/")
            name_in_group = name_in_group.replace("/", ".")
            if top == "observations":
                image = f"observation.images.{name_in_group or 'image'}"
                agrees(columns.get(image, columns.get(f"observation.{name_in_group or 'state'}")), value, key,
                       image in columns)
            elif value["dtype"] != "text":  # infos that Minari itself does not read back
                agrees(columns[_MINARI.get(top, top) + f".{name_in_group}" * bool(name_in_group)], value, key)


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
    """Equal frames make rows of bytes of one length; a space of two axes is grey. In a space of one axis, bytes that
    make an image are one in color, and others are numbers.
    """
    from understudy.data.video import encode_png
    grey = np.full((3, 40, 32), 7, np.uint8)
    rows = np.stack([np.frombuffer(encode_png(g[..., None]), np.uint8) for g in grey])
    about = {"data_format": "hdf5", "observation_space": json.dumps({"type": "Dict", "subspaces": {
        "coded": {"type": "Box", "dtype": "uint8", "shape": [40, 32]},
        "plain": {"type": "Box", "dtype": "uint8", "shape": [40, 32]},
        "color": {"type": "Box", "dtype": "uint8", "shape": [rows.shape[1]]},
        "bytes": {"type": "Box", "dtype": "uint8", "shape": [rows.shape[1]]}}})}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        for key, values in {"observations/coded": rows, "observations/plain": grey, "observations/color": rows,
                            "observations/bytes": rows[:, ::-1], "actions": np.zeros((2, 1)), "rewards": np.zeros(2),
                            "terminations": np.zeros(2, bool), "truncations": np.array([0, 1], bool)}.items():
            file[f"episode_0/{key}"] = values
    data, [(columns, _)] = everything(tmp_path)
    np.testing.assert_array_equal(columns["observation.images.coded"][..., 0], grey)
    np.testing.assert_array_equal(columns["observation.images.plain"][..., 0], grey)
    np.testing.assert_array_equal(columns["observation.images.color"], np.repeat(grey[..., None], 3, axis=3))
    np.testing.assert_array_equal(columns["observation.bytes"], rows[:, ::-1])
    assert data.features()["observation.bytes"].kind == "vector"


# -- what is damaged or odd -----------------------------------------------------------------------------------------


def test_a_minari_episode_that_is_gone(files, tmp_path):
    shutil.copytree(files / "minari/closed/box-arrow-v0", tmp_path / "d")
    shutil.rmtree(tmp_path / "d/data/2")
    assert open_dataset(tmp_path / "d").metadata["warnings"][0] == "metadata, total_episodes: 4, but there are 3"
    own = tmp_path / "d/data/1/metadata.json"
    metadata = json.loads(own.read_text())
    for steps in (2**70, True, 0, "4"):
        own.write_text(json.dumps({**metadata, "total_steps": steps}))
        refused(tmp_path / "d", "1/metadata.json: total_steps must be")
    own.write_text(json.dumps(metadata))
    (tmp_path / "d/data/1/part-0.arrow").write_bytes(b"ARROW1")
    refused(tmp_path / "d", "1/part-0.arrow", "damage")
    (tmp_path / "d/data/1/part-0.arrow").unlink()
    refused(tmp_path / "d", "1/part-0.arrow: the file is missing")
    (tmp_path / "d/data/metadata.json").write_text('{"data_format": "zarr"}')
    refused(tmp_path / "d", "data_format 'zarr' is not read")


# -- their own readers ----------------------------------------------------------------------------------------------


def test_features_of_words_and_bytes():
    """Bytes in a row are numbers when they come from other files: only ours say that they are words."""
    from understudy.data.formats.parts.key_map import stored_feature
    assert stored_feature("observation.ram", (128,), np.dtype("uint8")) == Feature("uint8", (128,))
    assert stored_feature("observation.x", (9, 9, 3), np.dtype("uint8")).kind == "image"
    assert stored_feature("next.reward", (1,), np.dtype(">f8")) == Feature("float64", ())
    assert stored_feature("next.reward", (), np.dtype(">i8")) == Feature("int64", ())  # quantities, and not classes


@pytest.mark.parametrize("state", [np.array(["x\0y"] * 3), np.zeros(3, bool)], ids=["text", "flags"])
def test_minari_has_no_place_for_data_without_an_observed_number(state, tmp_path):
    data = Dataset([Episode({"observation.state": state, "action": np.zeros((3, 2), np.float32)})])
    with pytest.raises(UserError, match="minari: Minari needs an action and an observation"):
        write_dataset(data, tmp_path / "d", "minari")
    assert not (tmp_path / "d").exists()
