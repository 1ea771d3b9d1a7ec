"""Detection of the format of a path from file names, first bytes and keys. Nothing is decoded or unpickled."""

from __future__ import annotations

import re
import zipfile
from contextlib import suppress
from pathlib import Path

from ...core import UserError, role
from ...hints import columns_option, command_line
from . import folder, overcooked
from .npz import EPISODE_ENDS_HINT, episodes_hint, rename_hint, says_ends
from .ogbench import is_ogbench
from .parts import file_kinds, read_errors, text_table
from .parts.column_names import format_list, number_sort_key, standard_name
from .parts.links import check_links
from .parts.npz_arrays import NpzArrays, PickledArray, zip_errors

FORMATS = ("lerobot", "npz", "npz-folder", "csv", "zarr", "rlds", "ogbench", "robomimic", "act", "minari", "d4rl",
           "imitation", "bags", "overcooked", "view")  # formats that are read
READABLE_FORMATS = (
    "LeRobot v3.0, v2.1, v2.0, robomimic, zarr, ACT/ALOHA, RLDS, Minari, D4RL, OGBench, imitation, MCAP, ROS bags, "
    "trials of Overcooked, plain .npz (observations, actions, episode_ends) and folders of one .npz or .csv an "
    "episode"
)
_REPLAY = "(a replay buffer of diffusion_policy has it)"
_COMPANION_SUFFIXES = (".json", ".md", ".txt", ".mp4", ".png", ".npz")  # what may be next to the files of episodes
_TABLE, _ARRAYS = "a table without a column action", "an .npz without episode_ends"
_UNKNOWN_HDF5 = "an HDF5 file of an unknown kind"
_BELOW, _MOST = 3, 2000  # levels that are searched, and largest number of files and folders in them
_CONVERT = (f"this version reads {READABLE_FORMATS}: convert it, for example with its own library into arrays and "
            "numpy.savez(observations=..., actions=..., rewards=..., episode_ends=...)")


class UnknownFormat(UserError):
    """Raised when a file or folder is in no format that can be read. `open_columns` may still open it."""


def format_of(path: Path) -> str:
    """Returns the format of a path, one of `FORMATS`."""
    return detect_format(path)[1]


def detect_format(path: Path) -> tuple[Path, str]:
    """Returns the path of a data set and its format.

    Args:
        path: The data set, or a folder with one data set in it, up to three levels down.
    """
    path = Path(path)
    if not path.exists():
        if name := _hub_name(path):
            raise UserError("there is no such file or folder; this looks like the name of a data set on the Hugging "
                            "Face hub", where=path, hint=f"name its address: hf://datasets/{name}")
        raise UserError("there is no such file or folder", where=path,
                        hint="check the path; understudy record ENV --out DATA makes a data set")
    kind = _folder_format(path) if path.is_dir() else _file_format(path)
    if kind in FORMATS:
        check_links(path)
        return path, kind
    below = _datasets_below(path) if path.is_dir() else []
    if len(below) == 1:
        check_links(below[0][0])
        return below[0]
    if below:
        names = [p.relative_to(path).as_posix() for p, _ in below]
        raise UserError(f"this is a folder of {len(below)} data sets: {format_list(names, 20)}", where=path,
                        hint=f"name one of them, such as {below[0][0]}")
    raise UnknownFormat(f"this is not a data set that can be read: {kind}", where=path, hint=_how_to_read(path, kind))


def _how_to_read(path: Path, kind: str) -> str:
    """Builds the hint for a path in no known format."""
    if kind.startswith("an empty"):
        return "check the path, or take it from a copy; understudy record ENV --out DATA makes a data set"
    if kind.startswith(_TABLE) or _UNKNOWN_HDF5 in kind:
        return (f"say what its columns are: {command_line('convert', path, 'DATA')} "
                f"{columns_option('state=A,B', 'action=C,D')}, and also episode=E if a column E numbers the episodes")
    if kind.startswith(_ARRAYS):
        return episodes_hint(path) or (
            "save observations, actions and episode_ends with numpy.savez. episode_ends has the exclusive end of "
            "each episode, counted in steps; for a single episode it is [number of steps]")
    return _CONVERT


def _datasets_below(path: Path) -> list[tuple[Path, str]]:
    """Finds the data sets in a folder that is not a data set itself, down to three levels."""
    datasets, level, n_paths = [], [path], 0
    for _ in range(_BELOW):
        inside = [p for folder in level for p in sorted(folder.iterdir(), key=lambda p: number_sort_key(p.name))
                  if not p.name.startswith((".", "__")) and not p.name.endswith(file_kinds.SIDECAR_NAME)]
        level, n_paths = [], n_paths + len(inside)
        if n_paths > _MOST:
            break
        for place in inside:
            try:
                kind = _folder_format(place) if place.is_dir() else _file_format(place)
            except (UserError, OSError):  # not a data set
                continue
            if kind in FORMATS:
                datasets.append((place, kind))
            elif place.is_dir():
                level.append(place)
    return datasets


def _hub_name(path: Path) -> str:
    """Returns OWNER/NAME if the path looks like a hub name and there is no folder OWNER here, and otherwise ""."""
    name = path.as_posix()
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not path.suffix and not path.parent.exists() else ""


def _folder_format(path: Path) -> str:
    kind = file_kinds.folder_kind(path)
    if kind == "lerobot-1.x":
        raise UserError("this is LeRobot 1.x, which is not read", where=path,
                        hint="convert it with lerobot to v2.1 or v3.0, which are read")
    if kind == "rlds" and (records := _json(path / "dataset_info.json").get("fileFormat") or "tfrecord") != "tfrecord":
        raise UserError(f"this is RLDS in files of format {records}, which is not read", where=path,
                        hint="tfds convert_format --dataset_dir=SRC --out_file_format=tfrecord --out_path=DST")
    if kind == "zarr" and not (path / "meta/episode_ends").exists():
        return f"a zarr store without meta/episode_ends {_REPLAY}"
    if kind in FORMATS:
        return kind
    if file_kinds.recording_paths(path):
        return "bags"
    inside = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if not inside:
        return "an empty folder"
    if kind := _episodes(path):
        return kind
    files = [n for n in inside if n != file_kinds.SIDECAR_NAME]
    if files and all(n.endswith(file_kinds.SUFFIXES["hdf5"]) for n in files):
        kind = _hdf5_format(path / files[0])
        return kind if kind == "act" else f"a folder of HDF5 files ({kind})"
    return f"a folder without meta/info.json, which holds {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}"


def _episodes(path: Path) -> str:
    """Returns the format of a folder with one file per episode and little else, and otherwise ""."""
    endings = {p.suffix for p in path.iterdir() if p.is_file() and not p.name.startswith(".")}
    if tables := file_kinds.episode_files(path, "csv"):
        plain = endings <= {*file_kinds.SUFFIXES["csv"], *_COMPANION_SUFFIXES} and _table_format(tables[0]) == "csv"
        return "csv" if plain or (path / folder.DATASET_JSON).exists() else ""
    if arrays := file_kinds.episode_files(path, "npz"):
        keys = _keys(arrays[0])
        acts = any(_is_action(k) for k in keys) and not {"episode_ends", "terminals"} & keys
        return "npz-folder" if acts and endings <= {".npz", *_COMPANION_SUFFIXES} else ""
    return ""


def _file_format(path: Path) -> str:
    first = file_kinds.read_start(path)
    if kind := _FILES.get(file_kinds.kind_of_start(first)):
        return kind if isinstance(kind, str) else kind(path)
    if not first:
        return "an empty file"
    if first[:1] == b"\x80" and path.suffix in (".pkl", ".pickle", ".p", ".pt", ""):
        return "a pickle, which could run any code and is never loaded"
    if path.suffix.lower() in file_kinds.SUFFIXES["csv"]:
        return _table_format(path)
    try:
        first.decode("utf-8")
        return "a text file"
    except UnicodeDecodeError as error:
        cut = error.start >= len(first) - 4  # a character that continues after the first bytes
        return "a text file" if cut else f"a file of an unknown kind (it begins {first[:8]!r})"


def _table_format(path: Path) -> str:
    """Returns the format of a CSV file, from the names of its columns."""
    names = text_table.read_names(path)
    if set(names) >= overcooked.COLUMNS:
        return "overcooked"
    if any(_is_action(re.sub(r"_\d+$", "", name)) for name in folder.underscored(names)):
        return "csv"
    return f"{_TABLE}; it holds {format_list(names, 8)}"


def _parquet_format(path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with suppress(pa.ArrowInvalid, OSError):
        if set(pq.read_schema(path.absolute()).names) >= overcooked.COLUMNS:
            return "overcooked"
    return "a single parquet file; a LeRobot data set is the folder that holds meta/ and data/"


def _is_action(key: str) -> bool:
    return role(standard_name(key)) == "action"


def _keys(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {n[:-4] for n in archive.namelist() if n.endswith(".npy")}
    except read_errors.ZIP_ERRORS:
        return set()


def _zip_format(path: Path) -> str:
    with zip_errors("the zip file", path), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    if file_kinds.is_zarr(names):
        replay = any(n.startswith("meta/episode_ends/") for n in names)
        return "zarr" if replay else f"a zipped zarr store without meta/episode_ends at its top {_REPLAY}"
    keys = {n[:-4] for n in names if n.endswith(".npy")}
    if "episode_ends" in keys or {"observations", "actions"} <= keys and says_ends(keys):
        return "npz"
    if is_ogbench(keys):
        return "ogbench"
    if {"obs", "acts", "indices"} <= keys:
        return "imitation"
    _refuse_pickles(path)
    hint = rename_hint(keys)
    if {"observations", "actions", "terminals"} <= keys:
        hint = ("terminals do not say where episodes are cut off, nor whether their row is a step: "
                f"{episodes_hint(path) or f'add timeouts (1 at a time limit), or {EPISODE_ENDS_HINT}, in a copy'}; or "
                "save qpos as well if it is of OGBench")
    elif hint and "episode_ends" not in hint and "as timeouts" not in hint:
        hint += f", and {episodes_hint(path) or EPISODE_ENDS_HINT}"
    if hint:
        raise UserError(f"there is no array episode_ends; there are {', '.join(sorted(keys))}", where=path, hint=hint)
    if keys:
        return f"{_ARRAYS}; it holds {', '.join(sorted(keys)[:8])}"
    return "a zip file without arrays"


def _refuse_pickles(path: Path) -> None:
    """Raises UserError if an array of a file is a pickle, which is never loaded."""
    try:
        NpzArrays(path)
    except PickledArray:
        raise
    except UserError:
        pass


def _hdf5_format(path: Path) -> str:
    from .parts.hdf5 import OpenFiles, hdf5_errors, import_h5py

    with OpenFiles() as files, hdf5_errors(path):
        file = files[path]
        keys = {k for k in file if isinstance(k, str)}
        inside = {str(k) for k in file["data"]} if isinstance(file.get("data"), import_h5py().Group) else set()
    if any(re.fullmatch(r"demo_\d+", k) for k in inside):
        return "robomimic"
    if {"observations", "action"} <= keys:
        return "act"
    if {"observations", "actions"} <= keys:
        return "d4rl"
    if any(re.fullmatch(r"episode_\d+", k) for k in keys):
        return "minari"
    return f"{_UNKNOWN_HDF5}, which holds {', '.join(sorted(keys)[:8]) or 'nothing'}"


def _json(path: Path) -> dict:
    try:
        return read_errors.read_json_object(path)
    except (UserError, OSError):
        return {}


_FILES = {  # kind of a file: its format, a function that returns its format, or a description
    "mcap": "bags",
    "bag": "bags",
    "view": "view",
    "hdf5": _hdf5_format,
    "zip": _zip_format,
    "empty zip": _zip_format,
    "parquet": _parquet_format,
    "npy": "a single NumPy array (.npy)",
    "sqlite": "an SQLite file; a ROS 2 bag is the folder that holds it and metadata.yaml (ros2 bag reindex makes one)",
}
