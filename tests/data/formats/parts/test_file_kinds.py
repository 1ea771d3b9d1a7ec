"""What files and folders are, by their first bytes and by names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from understudy.audit.file_checks import check_files
from understudy.data.formats.parts import file_kinds
from understudy.data.opening.source_parts import find_parts


@pytest.mark.parametrize("start, kind", [
    (b"\x89HDF\r\n\x1a\n", "hdf5"), (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "empty zip"), (b"#ROSBAG V2.0\n", "bag"),
    (b"\x89MCAP0\r\n", "mcap"), (b'{"understudy": "view"', "view"), (b'{"understudy": "run"', ""), (b"", "")])
def test_a_file_is_known_by_its_first_bytes(tmp_path, start, kind):
    (tmp_path / "a.csv").write_bytes(start + b"..." * bool(start))
    assert file_kinds.file_kind(tmp_path / "a.csv") == kind


@pytest.mark.parametrize("names, kind", [
    (["meta/info.json", "data/metadata.json"], "lerobot"), (["data/main_data.hdf5"], "minari"),
    (["features.json", "dataset_info.json"], "rlds"), (["zarr.json"], "zarr"), (["metadata.yaml"], ""),
    (["state.json", "dataset_info.json", "data.arrow"], "imitation"), (["metadata.json"], "")])
def test_a_folder_is_known_by_the_names_in_it(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert file_kinds.folder_kind(tmp_path) == kind


def test_metadata_of_something_else_hide_no_damage(tmp_path):
    (tmp_path / "metadata.yaml").write_text("author: me\n")
    (tmp_path / "metadata.json").write_text(json.dumps({"total_episodes": 7}))
    np.savez(tmp_path / "episode_0.npz", action=np.zeros((3, 1)))
    assert not list(check_files(tmp_path))
    (tmp_path / "episode_1.npz").write_bytes(b"\0" * 100)
    assert [f.code for f in check_files(tmp_path)] == ["damaged-file"]


def test_the_files_of_episodes_are_in_the_order_of_their_numbers(tmp_path):
    names = ["e_10.tsv", "e_2.csv", ".e_3.csv", "e_1.understudy.npz", "e_1.h5"]
    for name in names:
        (tmp_path / name).write_text("action\n0\n")
    (tmp_path / "e_4.csv").mkdir()
    assert [p.name for p in file_kinds.episode_files(tmp_path, "csv")] == ["e_2.csv", "e_10.tsv"]
    assert find_parts(tmp_path).names == ["e_2.csv", "e_10.tsv"]
    assert not file_kinds.episode_files(tmp_path, "npz")
    assert not file_kinds.episode_files(tmp_path / "e_1.h5", "hdf5") and file_kinds.episode_files(
        tmp_path / "e_1.h5", "csv") == []
