"""What a path holds, by what is in it: names of files, first bytes, keys. Nothing is decoded or unpickled."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from ...core import UserError
from . import logs
from .npz import ENDS, renamed

READ = "LeRobot v3.0, v2.1, v2.0, MCAP, ROS bags and plain .npz (observations, actions, episode_ends)"
_CONVERT = (f"this version reads {READ}: convert it, for example with its own library into arrays and "
            "numpy.savez(observations=..., actions=..., rewards=..., episode_ends=...)")


def sniff(path: Path) -> str:
    """"lerobot", "npz" or "bags". Raises UserError that says what it is where it is anything else."""
    path = Path(path)
    if not path.exists():
        if name := _hub(path):
            raise UserError("expected a data set, found nothing; it looks like the address of one on the Hugging Face "
                            "hub", where=path.as_posix().replace("hf:/", "hf://", 1),
                            do="download it first, and name the folder: pip install 'understudy[hub]' && "
                            f"hf download {name} --repo-type dataset --local-dir "
                            f"{name.partition('/')[2]}")
        raise UserError("expected a data set, found nothing", where=path,
                        do="check the path; understudy record ENV --out DATA makes a data set")
    kind = _folder(path) if path.is_dir() else _file(path)
    if kind in ("lerobot", "npz", "bags"):
        return kind
    raise UserError(f"expected a data set that can be read, found {kind}", where=path, do=_CONVERT)


def _hub(path: Path) -> str:
    """OWNER/NAME, if that is what it looks like and nothing here has the owner's name; else ""."""
    name = re.sub(r"^hf:/+(datasets/)?", "", path.as_posix())
    here = name == path.as_posix() and path.parent.exists()
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not path.suffix and not here else ""


def _folder(path: Path) -> str:
    def has(name):
        return (path / name).exists()

    if has("meta/info.json"):
        return "lerobot"
    if has("meta_data/info.json"):
        raise UserError("found LeRobot 1.x, which is not read", where=path,
                        do="convert it with lerobot to v2.1 or v3.0, which are read")
    if has("data/metadata.json") or "data_format" in _json(path / "metadata.json") or has("data/main_data.hdf5"):
        return "Minari, which cannot be read yet"
    if has("features.json") and has("dataset_info.json"):
        return "RLDS (TensorFlow Datasets), which cannot be read yet"
    if has(".zgroup") or has("zarr.json"):
        replay = has("meta/episode_ends") or has("meta/episode_ends/.zarray")
        return f"zarr{' (a diffusion_policy replay buffer)' if replay else ''}, which cannot be read yet"
    if has("state.json") and has("dataset_info.json") and any(path.glob("*.arrow")):
        return "an imitation or Hugging Face data set in Arrow files, which cannot be read yet"
    if logs.places(path):
        return "bags"
    inside = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if not inside:
        return "an empty folder"
    within = [p.name for p in sorted(path.iterdir()) if p.is_dir() and (p / "meta" / "info.json").exists()]
    if within:
        raise UserError(f"expected one data set, found a folder of {len(within)}: {', '.join(within[:5])}", where=path,
                        do=f"name one of them, such as {path / within[0]}")
    if all(n.endswith((".hdf5", ".h5")) for n in inside):
        return f"a folder of HDF5 files ({_hdf5(path / inside[0])})"
    return f"a folder without meta/info.json, which holds {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}"


def _file(path: Path) -> str:
    with open(path, "rb") as handle:
        first = handle.read(64)
    if not first:
        return "an empty file"
    if first.startswith(b"\x89MCAP0\r\n"):
        return "bags"
    if first.startswith(b"#ROSBAG V2.0\n"):
        return "bags"
    if first.startswith(b"\x89HDF\r\n\x1a\n"):
        return _hdf5(path)
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # the second has nothing in it
        return _zip(path)
    if first.startswith(b"PAR1"):
        return "a single parquet file; a LeRobot data set is the folder that holds meta/ and data/"
    if first.startswith(b"\x93NUMPY"):
        return "a single NumPy array (.npy)"
    if first[:1] == b"\x80" and path.suffix in (".pkl", ".pickle", ".p", ".pt", ""):
        return "a pickle, which could run any code and is never loaded"
    if first.startswith(b"SQLite format 3"):
        return "an SQLite file; a ROS 2 bag is the folder that holds it and metadata.yaml (ros2 bag reindex makes one)"
    try:
        first.decode("utf-8")
        return "a text file"
    except UnicodeDecodeError as error:
        cut = error.start >= len(first) - 4  # a character that goes on after the first bytes
        return "a text file" if cut else f"a file of an unknown kind (it begins {first[:8]!r})"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except zipfile.BadZipFile as error:
        raise UserError(f"expected an .npz file, found a zip that is cut short or damaged ({error})", where=path,
                        do="take it from a copy") from None
    if any(n.rsplit("/", 1)[-1] in (".zgroup", "zarr.json") for n in names):
        return "a zipped zarr store, which cannot be read yet"
    keys = {n[:-4] for n in names if n.endswith(".npy")}
    if "episode_ends" in keys:
        return "npz"
    if {"observations", "actions", "terminals"} <= keys:
        return "an OGBench .npz (no episode_ends), which cannot be read yet"
    if {"obs", "acts", "indices"} <= keys:
        return "trajectories of an old version of imitation (.npz), which cannot be read yet"
    if names := renamed(keys):
        raise UserError(f"expected an array episode_ends, found {', '.join(sorted(keys))}", where=path,
                        do=names + ("" if "episode_ends" in names else f", and {ENDS}"))
    if keys:
        return f"an .npz without episode_ends; it holds {', '.join(sorted(keys)[:8])}"
    return "a zip file without arrays"


def _hdf5(path: Path) -> str:
    try:
        import h5py
    except ImportError:
        return "an HDF5 file, which cannot be read yet"
    try:
        with h5py.File(path) as file:
            keys = set(file)
            attributes = set(file["data"].attrs) if "data" in keys else set()
    except OSError:
        return "an HDF5 file that is cut short or damaged"
    if "env_args" in attributes:
        kind = "robomimic"
    elif attributes & {"env", "env_info"}:
        kind = "robosuite"
    elif {"observations", "action"} <= keys:
        kind = "ACT/ALOHA"
    elif {"observations", "terminals"} <= keys:
        kind = "D4RL"
    elif any(k.startswith("episode_") for k in keys):
        kind = "Minari"
    else:
        return "an HDF5 file of an unknown kind"
    return f"{kind} (HDF5), which cannot be read yet"


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}
