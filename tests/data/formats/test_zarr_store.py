"""zarr: replay buffers of others, chunks that are lost, and what is written."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
from fixtures.array_files import agrees, is_closed, read_all, refused
from fixtures.contract_data import demonstrations
from fixtures.lerobot_files import ENDS

from understudy.data.formats import open_dataset, write_dataset

STATE, ACTION = "observation.state", "action"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


ZARRS = ["blosc.zarr", "blosc.zarr.zip", "by_replay_buffer.zarr", "consolidated.zarr", "raw.zarr", "v2_by_zarr3.zarr",
         "v3.zarr", "v3_sharded.zarr", "zstd.zarr"]


@pytest.mark.parametrize("name", ZARRS)
def test_replay_buffers_are_read(name, fixtures):
    data = open_dataset(fixtures / "diffusion_policy_zarr" / name)
    recorded = json.loads((fixtures / "expected" / f"zarr_{name}.json").read_text())
    for e, episode in enumerate(data):
        is_closed(episode, e, {STATE: "state", ACTION: "action", "observation.images.img": "image"})
        for column, key in ((STATE, "state"), (ACTION, "action"), ("observation.images.img", "img"),
                            ("observation.keypoint", "keypoint")):
            if key in recorded["episodes"][e]:
                agrees(episode.steps[column], recorded["episodes"][e][key])
    assert data.metadata["version"] == ("3" if "v3" in name else "2") and "keypoint" in str(
        list(data.features())
    ) + name + ("keypoint" if "replay" in name else "")
    pixels = [w for w in data.metadata["warnings"] if "float32 pixels" in w]
    assert len(pixels) == ("replay" not in name)  # those of ReplayBuffer are uint8


def _zarr(tmp_path, suffix=""):
    write_dataset(demonstrations(), tmp_path / f"d.zarr{suffix}", "zarr")
    return tmp_path / f"d.zarr{suffix}"


def test_zarr_ends_that_leave_the_data(fixtures):
    refused(fixtures / "broken/zarr_episode_ends", "it has 22 rows, but meta/episode_ends ends with 30")


def test_a_chunk_that_is_lost_is_said(tmp_path):
    path = _zarr(tmp_path)
    assert not read_all(path).metadata["warnings"]
    (path / "data/state/0.0").unlink()
    (path / "understudy.npz").unlink()
    warned = read_all(path).metadata["warnings"]
    assert len(warned) == 1 and "data/state: 1 chunks are not there and read as 0.0: " in warned[0]


def test_a_chunk_of_another_length_and_an_array_without_its_description_are_refused(tmp_path):
    path = _zarr(tmp_path)
    chunk = path / "data/state/0.0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3])
    refused(path, "data/state/0.0", "which is not the length in its header")
    chunk.write_bytes(whole)
    (path / "data/state/.zarray").unlink()
    refused(path, "data/state", "the file .zarray, which describes the chunks, is missing")


def test_zarr_codecs_that_could_run_code_or_are_unknown_are_left_out(tmp_path):
    path = _zarr(tmp_path)
    (path / "understudy.npz").unlink()
    for codec in ("pickle", "imagecodecs_jpegxl"):
        file = path / "data/front/.zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "filters": [{"id": codec}]}))
        data = read_all(path)
        assert "observation.images.front" not in data.features()
        assert f"data/front is left out: it is stored with {codec}" in str(data.metadata["warnings"])


def test_float_pixels_that_are_none_are_refused(fixtures, tmp_path):
    shutil.copytree(fixtures / "diffusion_policy_zarr/raw.zarr", tmp_path / "z")
    chunk = tmp_path / "z/data/img/1.0.0.0"
    values = np.frombuffer(chunk.read_bytes(), "<f4").copy()
    values[5] = 0.5
    chunk.write_bytes(values.tobytes())
    refused(tmp_path / "z", "data/img, row 7", "pixels must be whole numbers from 0 to 255")


def _by_hand(folder, key):
    """An array of format 2, by its documents alone (zarr v2 specification): no zarr package."""
    from numcodecs import get_codec

    about = json.loads((folder / key / ".zarray").read_text())
    assert about["zarr_format"] == 2 and about["order"] == "C" and about["filters"] is None
    codec, (rows, *row_shape) = get_codec(about["compressor"]), about["chunks"]
    assert row_shape == about["shape"][1:]
    parts = []
    for i in range(-(-about["shape"][0] // rows)):
        raw = codec.decode((folder / key / ".".join(map(str, [i] + [0] * len(row_shape)))).read_bytes())
        parts.append(np.frombuffer(raw, about["dtype"]).reshape(rows, *row_shape))
    return np.concatenate(parts)[: about["shape"][0]]


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_what_is_written_is_a_replay_buffer_of_format_2(suffix, tmp_path, monkeypatch):
    from understudy.data.formats import zarr_store

    monkeypatch.setattr(zarr_store, "_CHUNK", 1000)  # several chunks, the last one filled up
    data, path = demonstrations(), _zarr(tmp_path, suffix)
    assert read_all(path).fingerprint() == data.fingerprint()
    if suffix:
        with zipfile.ZipFile(path) as archive:
            assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
            archive.extractall(tmp_path / "unpacked")
        path = tmp_path / "unpacked"
    assert json.loads((path / ".zgroup").read_text()) == {"zarr_format": 2}
    np.testing.assert_array_equal(_by_hand(path, "meta/episode_ends"), ENDS)
    for key, name in (("state", STATE), ("action", ACTION), ("front", "observation.images.front"),
                      ("task", "task"), ("terminated", "next.terminated")):
        expected = np.concatenate([np.asarray(e.steps[name])[: len(e)] for e in data])
        np.testing.assert_array_equal(_by_hand(path, f"data/{key}"), expected)
