"""Links in folders of data: those that lead out of the folder are not followed."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
from fixtures.array_files import read_all, refused
from fixtures.contract_data import demonstrations
from fixtures.foreign_lerobot import check_episode, times_of, write_v3, write_v21
from fixtures.lerobot_files import LEROBOT

from understudy import cli
from understudy.audit import audit
from understudy.core import UserError
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.opening.column_selection import open_columns
from understudy.data.opening.stream import ShardStream
from understudy.data.recording.recovery import recover

LENGTHS = [5, 7]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def move_out(path, outside):
    """Moves a file or folder elsewhere, and leaves a link to it."""
    outside.mkdir(exist_ok=True)
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)
    return outside / path.name


def folder_of_arrays(path):
    path.mkdir()
    for episode in range(2):
        np.savez(path / f"{episode}.npz", state=np.ones((4, 2), np.float32), action=np.ones((4, 1), np.float32))
    return path


def zarr_store(path):
    write_dataset(demonstrations(), path, "zarr")
    return path


def lerobot_with_video(path):
    return write_v3(path, LENGTHS, video_times=times_of(LENGTHS))


@pytest.mark.parametrize(("make", "link"), [
    (lerobot_with_video, "videos"), (lerobot_with_video, "videos/*/*/*.mp4"), (lerobot_with_video, "data/*/*.parquet"),
    (lerobot_with_video, "meta/info.json"), (zarr_store, "data/action"), (zarr_store, "data/action/0.0"),
    (zarr_store, "meta/episode_ends/.zarray"), (folder_of_arrays, "1.npz")])
def test_a_link_that_leads_out_of_the_data_is_not_followed(make, link, tmp_path):
    path = make(tmp_path / "d.zarr" if make is zarr_store else tmp_path / "d")
    read_all(path)
    file = next(path.glob(link))
    target = move_out(file, tmp_path / "private")
    refused(path, str(file), f"leads out of the data set, to {target}", f"cp -rL {path} COPY")
    refused(tmp_path if make is lerobot_with_video else path, str(file))  # a folder with one data set in it
    for read in (audit, open_columns, lambda path: open_columns(path, {"action": ("action",)}),
                 lambda path: recover(path).__enter__(), lambda path: ShardStream(str(path))):
        with pytest.raises(UserError, match=f"leads out of the data set, to {re.escape(str(target))}"):
            read(path)
    shutil.copytree(path, tmp_path / "copy", symlinks=False)  # which cp -rL does
    read_all(tmp_path / "copy")


@pytest.mark.parametrize("target", ["..", "../d", ".", "/dev/zero", "../d-2/1.npz", "nowhere/../../d-2/1.npz", "../no"])
def test_where_a_link_may_not_lead(target, tmp_path):
    path = folder_of_arrays(tmp_path / "d")
    folder_of_arrays(tmp_path / "d-2")
    (path / "2.npz").symlink_to(target)
    refused(path, f"{path / '2.npz'}: it is a link that leads out of the data set, to ")


def test_a_link_to_a_link_that_leads_out_is_not_followed(tmp_path):
    path = folder_of_arrays(tmp_path / "d")
    move_out(path / "1.npz", tmp_path / "private")
    (path / "0.npz").unlink()
    (path / "0.npz").symlink_to("1.npz")
    refused(path, "it is a link that leads out of the data set, to ", "private/1.npz")


def test_links_within_the_folder_and_to_the_folder_are_followed(tmp_path):
    path = folder_of_arrays(tmp_path / "d")
    (path / "2.npz").symlink_to("0.npz")
    (path / "3.npz").symlink_to(path / "1.npz")
    (tmp_path / "link").symlink_to(path)
    assert len(read_all(path)) == len(read_all(tmp_path / "link")) == 4


def test_the_cache_of_the_hub_is_read(tmp_path):
    """Its files are links to blobs of the same repository, and its snapshots may be reached by a link too."""
    repository = tmp_path / "hub/datasets--somebody--closed_form"
    snapshot, blobs = repository / "snapshots/0a1b", repository / "blobs"
    shutil.copytree(LEROBOT / "v3.0/video_h264", snapshot)
    blobs.mkdir()
    for number, file in enumerate(p for p in sorted(snapshot.rglob("*")) if p.is_file()):
        shutil.move(file, blobs / f"{number:040x}")
        file.symlink_to(os.path.relpath(blobs / f"{number:040x}", file.parent))
    (tmp_path / "latest").symlink_to(snapshot)
    assert len(read_all(snapshot)) == len(read_all(tmp_path / "latest")) == 3
    assert not [f for f in audit(snapshot).findings if f.severity == "error"]
    file = snapshot / "meta/info.json"
    secret = move_out(blobs / file.readlink().name, tmp_path / "private")
    refused(snapshot, f"{file}: it is a link that leads out of the data set, to {secret}")


def test_data_that_were_repaired_are_read(tmp_path):
    """Repair makes a copy that has links to the videos and files that are whole."""
    path = write_v21(tmp_path / "d", LENGTHS, [5, 6])
    with recover(path) as recovered:
        for number, episode in enumerate(recovered.data):
            check_episode(episode, number, [5, 6][number])
    assert cli.main(["repair", str(path), "--out", str(tmp_path / "out")]) == 0
    assert [len(e) for e in read_all(tmp_path / "out")] == [5, 6]
    arrays = folder_of_arrays(tmp_path / "arrays")
    np.savez(arrays / "2.npz", state=np.ones((4, 2), np.float32), action=np.ones((4, 1), np.float32))
    (arrays / "1.npz").write_bytes((arrays / "1.npz").read_bytes()[:100])
    with recover(arrays) as recovered:
        assert [len(e) for e in recovered.data] == [4, 4]
        assert open_dataset(recovered.data.metadata["path"]).lengths.tolist() == [4, 4]
