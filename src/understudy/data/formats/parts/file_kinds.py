"""Finds out what a file or a folder is, from its first bytes and from names. Nothing is decoded.

The detection of formats, the readers, the audit of files and their repair all ask here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .column_names import number_sort_key

SIDECAR_NAME = "understudy.npz"  # the end of the name of a sidecar file, which is not an episode
SUFFIXES = {"hdf5": (".hdf5", ".h5"), "npz": (".npz",), "csv": (".csv", ".tsv")}  # of files of episodes, by their kind
MCAP_MAGIC, BAG_MAGIC = b"\x89MCAP0\r\n", b"#ROSBAG V2.0\n"
_KINDS = {  # first bytes of a file -> its kind
    MCAP_MAGIC: "mcap",
    BAG_MAGIC: "bag",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "empty zip",
    b"PAR1": "parquet",
    b"\x93NUMPY": "npy",
    b"SQLite format 3": "sqlite",
    b"\x1f\x8b": "gzip",
}
_VIEW = re.compile(rb'\s*\{\s*"understudy"\s*:\s*"view"')
_START = 64  # bytes of a file that tell its kind
_ZARR_ROOTS = (".zgroup", "zarr.json")
_ROS2_KEY = "rosbag2_bagfile_information"  # in the first bytes of the metadata of a bag


def read_start(path: Path) -> bytes:
    """Reads the first bytes of a file, for `kind_of_start`."""
    with open(path, "rb") as handle:
        return handle.read(_START)


def kind_of_start(start: bytes) -> str:
    """Returns the kind of a file by its first bytes: "hdf5", "zip", "empty zip", "mcap", "bag" (of ROS 1), "parquet",
    "npy", "sqlite", "gzip" or "view". Empty for any other file."""
    kind = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), "")
    return kind or ("view" if _VIEW.match(start) else "")


def file_kind(path: Path) -> str:
    """Returns the kind of a file: see `kind_of_start`."""
    return kind_of_start(read_start(path))


def folder_kind(path: Path) -> str:
    """Returns the kind of a folder that is one data set, by the names of its files: "lerobot", "lerobot-1.x", "minari",
    "rlds", "zarr", "imitation" or "ros2". Empty for any other, such as a folder with a file for each episode."""
    def has(name):
        return (path / name).exists()

    if is_lerobot(path):
        return "lerobot"
    if has("meta_data/info.json"):
        return "lerobot-1.x"
    if minari_folder(path) is not None:
        return "minari"
    if has("features.json") and has("dataset_info.json"):
        return "rlds"
    if any(map(has, _ZARR_ROOTS)):
        return "zarr"
    if has("state.json") and has("dataset_info.json") and any(path.glob("*.arrow")):
        return "imitation"
    return "ros2" if _is_ros2(path) else ""


def is_lerobot(path: Path) -> bool:
    """Returns whether a path is a LeRobot data set of version 2 or 3, as understudy records it."""
    return (path / "meta/info.json").exists()


def minari_folder(path: Path) -> Path | None:
    """Returns the folder with the episodes of a Minari data set: `data` in it, or the folder itself. None if the path
    is not a Minari data set."""
    if (path / "data/metadata.json").exists() or (path / "data/main_data.hdf5").exists():
        return path / "data"
    about = path / "metadata.json"
    is_described = about.is_file() and b'"data_format"' in about.read_bytes()  # also if it is damaged, and not JSON
    return path if is_described or (path / "main_data.hdf5").exists() else None


def is_zarr(names: Iterable[str]) -> bool:
    """Returns whether files of these names, in a folder or a zip file, are a zarr store or contain one."""
    return any(name.rsplit("/", 1)[-1] in _ZARR_ROOTS for name in names)


def episode_files(path: Path, kind: str) -> list[Path]:
    """Returns the files of a kind, a key of `SUFFIXES`, in a folder, ordered by the last number in their names. A file
    is returned alone if it is of this kind."""
    if not path.is_dir():
        is_of_kind = file_kind(path) == "hdf5" if kind == "hdf5" else path.suffix.lower() in SUFFIXES[kind]
        return [path] if is_of_kind else []
    files = (p for p in path.iterdir() if p.suffix in SUFFIXES[kind] and not p.name.startswith(".")
             and not p.name.endswith(SIDECAR_NAME) and not p.is_dir())
    return sorted(files, key=file_order)


def recording_paths(path: Path) -> list[Path]:
    """Returns the path of each recording of messages: a file, the folder of a ROS 2 bag, or the recordings in a folder.

    Several recordings are ordered by the last number in their names.
    """
    if path.is_file() or _is_ros2(path):
        return [path]
    inside = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=file_order)
    groups = [[p for p in inside if p.suffix == suffix and p.is_file()] for suffix in (".mcap", ".bag")]
    groups.append([p for p in inside if p.is_dir() and _is_ros2(p)])
    return max(groups, key=len)


def file_order(path: Path) -> tuple:
    """Returns a sort key that orders files by the last number in their names."""
    return number_sort_key(path.stem)


def _is_ros2(folder: Path) -> bool:
    if not (folder / "metadata.yaml").is_file():
        return False
    with open(folder / "metadata.yaml", errors="replace") as handle:
        return _ROS2_KEY in handle.read(4096)
