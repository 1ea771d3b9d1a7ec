"""PNG and JPEG bytes in HDF5 files of any layout, in npz and in zarr are images, however the bytes are stored."""

from __future__ import annotations

from fractions import Fraction

import av
import h5py
import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.formats import open_dataset
from understudy.data.opening.column_selection import open_columns, parse_columns
from understudy.data.video import encode_png

N = 20
STATE = np.stack([np.sin(np.arange(N) / 20), np.cos(np.arange(N) / 20)], 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def jpeg(level):
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 48, 32, "yuvj420p", Fraction(1, 10)
    pixels = np.full((32, 48, 3), level, np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(p) for p in (*codec.encode(frame), *codec.encode(None)))


def png(level):
    return encode_png(np.full((32, 48, 3), level, np.uint8))


def depth_png(level):
    return encode_png(np.full((32, 48, 1), 1000 + level, np.uint16))


def store(group, key, images, how):
    width = max(map(len, images))
    if how == "vlen":
        array = group.create_dataset(key, (len(images),), dtype=h5py.vlen_dtype(np.uint8))
        for i, image in enumerate(images):
            array[i] = np.frombuffer(image, np.uint8)
    elif how == "padded":
        group[key] = np.stack([np.frombuffer(image.ljust(width, b"\0"), np.uint8) for image in images])
    else:
        group[key] = np.array(images, f"S{width}")


@pytest.mark.parametrize("how", ["vlen", "padded", "fixed"])
@pytest.mark.parametrize("encode", [jpeg, png, depth_png])
def test_images_of_ones_own_layout_and_of_robomimic(tmp_path, how, encode):
    images = [encode(10 * i) for i in range(N)]
    (tmp_path / "own").mkdir()
    with h5py.File(tmp_path / "robomimic.hdf5", "w") as demos:
        demos.create_group("data").attrs["env_args"] = "{}"
        for e in range(2):
            with h5py.File(tmp_path / f"own/episode{e}.hdf5", "w") as file:
                file["joints"], file["master"] = STATE, np.roll(STATE, -1, 0)
                store(file, "head/rgb", images, how)
            group = demos.create_group(f"data/demo_{e}")
            group["obs/q"], group["actions"], group.attrs["num_samples"] = STATE, STATE, N
            store(group, "obs/head", images, how)
    own = open_columns(tmp_path / "own", parse_columns(["state=joints", "action=master", "images.head=head/rgb"]))
    for data in (own, open_dataset(tmp_path / "robomimic.hdf5")):
        name = next(n for n, f in data.features().items() if f.kind in ("image", "depth"))
        depth = encode is depth_png
        assert (data.features()[name].kind, data.features()[name].shape) == (
            ("depth", (32, 48, 1)) if depth else ("image", (32, 48, 3))) and name.endswith("head")
        for episode in data:
            frames = np.asarray(episode.steps[name])
            levels = np.arange(N) * 10 + 1000 * depth
            np.testing.assert_allclose(frames.reshape(N, -1).astype(int), np.repeat(levels[:, None], frames[0].size, 1),
                                       atol=0 if encode is not jpeg else 2)


def test_a_frame_that_is_lost_is_named(tmp_path):
    images = [jpeg(10 * i) for i in range(N)]
    images[7] = b"\0"
    (tmp_path / "own").mkdir()
    with h5py.File(tmp_path / "own/episode0.hdf5", "w") as file:
        file["joints"], file["master"] = STATE, STATE
        store(file, "rgb", images, "padded")
    data = open_columns(tmp_path / "own", parse_columns(["state=joints", "action=master", "images.head=rgb"]))
    with pytest.raises(UserError, match="rgb, row 7: the value is not a PNG or JPEG image: it is empty"):
        data[0].steps["observation.images.head"][:]


def padded_bytes(images):
    width = max(map(len, images))
    return np.stack([np.frombuffer(image.ljust(width, b"\0"), np.uint8) for image in images])


def save_npz(path, rgb):
    np.savez(path / "a.npz", joints=STATE, master=STATE, rgb=rgb, lengths=[12, 8])
    return path / "a.npz", ["episode_lengths=lengths"]


def save_npz_folder(path, rgb):
    (path / "own").mkdir()
    for e, rows in enumerate((slice(0, 12), slice(12, 20))):
        np.savez(path / f"own/{e}.npz", joints=STATE[rows], master=STATE[rows], rgb=rgb[rows])
    return path / "own", []


def save_zarr(path, rgb):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(path / "a.zarr"), mode="w", zarr_format=2)
    for key, values in (("data/joints", STATE), ("data/action", STATE), ("data/rgb", rgb),
                        ("meta/episode_ends", np.array([12, 20]))):
        array = root.create_array(key, shape=values.shape, dtype=values.dtype, chunks=(5, *values.shape[1:]))
        array[:] = values
    return path / "a.zarr", None


@pytest.mark.parametrize("encode", [jpeg, png, depth_png])
@pytest.mark.parametrize("save", [save_npz, save_npz_folder, save_zarr])
def test_padded_images_in_npz_and_zarr(tmp_path, save, encode):
    rgb = padded_bytes([encode(10 * i) for i in range(N)])
    path, columns = save(tmp_path, rgb)
    data = open_dataset(path) if columns is None else open_columns(
        path, parse_columns(["state=joints", "action=master", "images.head=rgb", *columns]))
    depth = encode is depth_png
    name = next(n for n, f in data.features().items() if f.kind == ("depth" if depth else "image"))
    assert data.lengths.tolist() == [12, 8]
    frames = np.concatenate([np.asarray(episode.steps[name]) for episode in data])
    assert frames.shape == (N, 32, 48, 1 if depth else 3) and frames.dtype == ("uint16" if depth else "uint8")
    levels = np.arange(N)[:, None] * 10 + 1000 * depth
    np.testing.assert_allclose(frames.reshape(N, -1).astype(int), np.broadcast_to(levels, (N, frames[0].size)),
                               atol=2 if encode is jpeg else 0)
    rgb[14] = 0
    lost = tmp_path / "lost"
    lost.mkdir()
    path, columns = save(lost, rgb)
    with pytest.raises(UserError, match="rgb(.|\n)*the value is not a PNG or JPEG image: it is empty"):
        data = open_dataset(path) if columns is None else open_columns(
            path, parse_columns(["state=joints", "action=master", "images.head=rgb", *columns]))
        _ = data[1].steps[name][:]
