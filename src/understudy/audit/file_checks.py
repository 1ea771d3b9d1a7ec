"""Checks of the files of a data set. They also work if it cannot be opened, and name the damaged file.

`check_files` recognizes the format from the content of the files, not from their names, and yields the findings of the
checks for this format.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import struct
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..core import UserError
from ..data.formats import act, d4rl, rlds, robomimic
from ..data.formats.parts import file_kinds, hdf5, read_errors
from ..data.formats.parts.column_names import format_list, number_sort_key, sort_numbered, standard_name
from ..data.formats.parts.key_map import is_metadata
from ..data.formats.parts.npz_arrays import npy_header
from ..data.opening import views
from ..hints import pluralize
from . import lerobot_checks
from .base import Finding, Location, finding_from_error

_COPY = "take it from a copy"


def check_files(path: Path, checksums: bool = True) -> Iterator[Finding]:
    """Finds damage in the files of a data set, without opening the data set. A path of unknown kind has no findings.

    Args:
        checksums: Also verify the checksums in the files. This takes as long as reading every byte.
    """
    try:
        if path.is_dir():
            yield from _folder(path, checksums)
        elif path.is_file():
            yield from _file(path, path.name, checksums)
    except UserError as error:
        yield finding_from_error(error, path)


def _error(code: str, message: str, where: Location, remedy: str = _COPY) -> Finding:
    return Finding(code, "error", message, remedy, where)


def _damaged(problem: str, error: BaseException, where: Location) -> Finding:
    return _error("damaged-file", f"{problem} ({read_errors.first_line(error)})", where)


def _folder(path, deep):
    kind = file_kinds.folder_kind(path)
    if kind == "lerobot":
        yield from lerobot_checks.check_files(path)
    elif kind == "rlds":
        yield from _records(path, deep)
    elif kind == "zarr":
        yield from _zarr({p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()})
    elif kind == "ros2":
        yield from _ros2(path, deep)
    else:
        data = file_kinds.minari_folder(path)
        if data is not None and (data / "metadata.json").exists():
            yield from _minari(data)
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
            yield from _file(file, file.relative_to(path).as_posix(), deep)


def _file(path, name, deep):
    first = file_kinds.read_start(path)
    kind = file_kinds.kind_of_start(first)
    if kind == "view":
        view = views.read_view(path)
        for parent in view.parents:
            yield from (f for f in check_files(view.parent_path(parent), deep) if f.code != "frames-missing")
    elif kind == "hdf5":
        yield from _hdf5(path, name)
    elif kind == "zip":
        yield from _zip(path, name, deep)
    elif kind == "mcap":
        yield from _mcap(path, name, deep)
    elif kind == "bag":
        yield from _bag(path, name)
    elif path.suffix == ".npz":
        yield _error("damaged-file", "the name ends in .npz, but the file is not a zip of arrays: "
                     f"it starts with {first[:8]!r}", Location(name))


# -- HDF5 -----------------------------------------------------------------------------------------------------------


def _hdf5(path, name):
    try:
        import h5py
    except ImportError:  # its reader says which extra it takes
        return
    try:
        with hdf5.open_file(path) as file:
            yield from _check_opaque(file, name, h5py)
            data = file.get("data")
            if data is not None and "env_args" in data.attrs:
                yield from _robomimic(file, name, h5py)
            elif "observations" in file and "action" in file and isinstance(file["observations"], h5py.Group):
                yield from _check_equal_lengths(_arrays(file, h5py), name, "action", keys=act.KEYS)
            elif episodes := sort_numbered(file, "episode_"):
                for key in episodes:
                    yield from _episode(file[key], name, key, h5py)
            elif {"observations", "actions"} <= set(file):
                arrays = {k: v for k, v in _arrays(file, h5py).items() if not k.startswith(("metadata", "virtual"))}
                yield from _check_equal_lengths(arrays, name, "actions", keys=d4rl.KEYS)
    except Exception as error:  # h5py raises errors of any type at damaged bytes
        yield _damaged("the HDF5 file is cut short or damaged", error, Location(name))


def _arrays(group, h5py) -> dict:
    arrays = {}
    group.visititems(lambda key, item: arrays.update({key: item}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def _check_opaque(file, name, h5py):
    """Finds arrays of opaque bytes, such as Python's pickles. They are never loaded."""
    for key, array in _arrays(file, h5py).items():
        if array.dtype.kind == "V" and array.dtype.names is None:
            yield _error("pickled-array", f"the values are opaque bytes ({array.dtype}), which are never loaded",
                         Location(name, feature=key), "store numbers or text only")


def _check_equal_lengths(arrays, name, of, episode=None, more=(0,), keys=None):
    """Finds arrays with another number of rows than the array `of`. `more` lists the allowed surpluses."""
    n_rows = arrays[of].shape[0]
    for key, array in arrays.items():
        is_other = "compress_len" in key or keys and is_metadata(keys.column(key), array.shape, (n_rows,))
        if array.ndim and array.shape[0] - n_rows not in more and not is_other:
            yield _error("lengths-disagree", f"{key} has {array.shape[0]} rows, but {of} has {n_rows}",
                         Location(name, episode, None, key), "correct it, or leave the episode out")


def _robomimic(file, name, h5py):
    data = file["data"]
    demos = sort_numbered(data, "demo_")
    steps = 0
    for e, key in enumerate(demos):
        demo = data[key]
        if "actions" not in demo:
            yield _error("names-disagree", f"{key} has no actions", Location(name, e))
            continue
        rows = demo["actions"].shape[0]
        steps += rows
        if int(demo.attrs.get("num_samples", rows)) != rows:
            yield _error("counts-disagree",
                         f"num_samples of {key} is {demo.attrs['num_samples']}, but its actions have {rows} rows",
                         Location(name, e, None, key), "correct the attribute")
        arrays = {k: v for k, v in _arrays(demo, h5py).items() if robomimic.is_step_array(k)}
        yield from _check_equal_lengths(arrays, name, "actions", e)
        for k in arrays:
            if k.startswith("next_obs/") and (obs_name := k.removeprefix("next_")) in arrays and rows > 1 \
                    and arrays[k].ndim < 3 and arrays[k].shape == arrays[obs_name].shape:
                differs = arrays[k][:-1] != arrays[obs_name][1:]
                if differs.any() and not np.allclose(arrays[k][:-1], arrays[obs_name][1:], equal_nan=True):
                    t = int(np.argwhere(differs)[0][0])
                    yield _error("next-disagrees", f"the value is not the next row of {obs_name}",
                                 Location(name, e, t, k), "leave next_obs out, or take the file from a copy")
    if "total" in data.attrs and int(data.attrs["total"]) != steps:
        yield _error("counts-disagree",
                     f"total is {data.attrs['total']}, but the lengths of the demos add up to {steps}",
                     Location(name, None, None, "data.attrs[total]"), "correct the attribute")
    for key in file.get("mask", {}):
        named = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in file["mask"][key][()].ravel()]
        if unknown := sorted(set(named) - set(demos)):
            yield _error("mask-unknown", f"the filter names demos that are not in the file: {format_list(unknown)}",
                         Location(name, None, None, f"mask/{key}"), "correct the filter, or leave it out")


def _episode(group, name, key, h5py):
    """Checks the arrays of one episode in a Minari file."""
    arrays, e = _arrays(group, h5py), number_sort_key(key)[0]
    if isinstance(actions := group.get("actions"), h5py.Dataset):
        arrays["actions"] = actions  # it may be a link, and is then not listed
        flat = ("actions", "rewards", "terminations", "truncations")
        yield from _check_equal_lengths({k: arrays[k] for k in flat if k in arrays}, name, "actions", e)
        observed = {k: v for k, v in arrays.items() if k.startswith("observations") or k == "actions"}
        yield from _check_equal_lengths(observed, name, "actions", e, (0, 1))
        n_actions = len(actions)
        if int(group.attrs.get("total_steps", n_actions)) != n_actions:
            yield _error("counts-disagree", f"total_steps is {group.attrs['total_steps']}, but there are {n_actions} "
                         "actions", Location(name, e), "correct the attribute")


def _minari(path):
    try:
        about = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield _damaged("the file cannot be read as JSON", error, Location("metadata.json"))
        return
    n_episodes = steps = None
    if (path / "main_data.hdf5").exists():
        try:
            with hdf5.open_file(path / "main_data.hdf5") as file:
                groups = [file[k] for k in file if k.startswith("episode_")]
                n_episodes, steps = len(groups), sum(int(g.attrs.get("total_steps", 0)) for g in groups)
        except (UserError, OSError, RuntimeError):
            return  # said of the file
    else:
        each = [p for p in path.iterdir() if p.is_dir() and p.name.isdigit()]
        n_episodes, steps = len(each), 0
        for folder in each:
            try:
                steps += json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["total_steps"]
            except (OSError, ValueError, KeyError, TypeError):
                yield _error("missing-file", "the episode has no metadata.json with total_steps",
                             Location(folder.name, int(folder.name)))
                return
    for key, number in (("total_episodes", n_episodes), ("total_steps", steps)):
        if isinstance(about.get(key), (int, float)) and number is not None and about[key] != number:
            yield _error("counts-disagree", f"{key} is {about[key]}, but the episodes add up to {number}",
                         Location("metadata.json"), "correct the metadata, or look for lost episodes")


# -- zip and npz ----------------------------------------------------------------------------------------------------


def _zip(path, name, deep):
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {i.filename: i for i in archive.infolist()}
            for key in inside:
                if key.endswith(".npy"):
                    yield from _header(archive, key, name)
            if file_kinds.is_zarr(inside):
                yield from _zarr({k: (archive, i) for k, i in inside.items()})
            if deep and (bad := archive.testzip()) is not None:
                yield _error("checksum", f"the checksum of {bad} is wrong", Location(name, feature=bad))
    except read_errors.ZIP_ERRORS as error:
        yield _damaged("the zip of arrays is cut short or damaged", error, Location(name))


def _header(archive, key, name):
    try:
        with archive.open(key) as handle:
            _, _, dtype = npy_header(handle)
    except ValueError as error:
        yield _damaged(f"{key} is not a NumPy array", error, Location(name, feature=key[:-4]))
        return
    if dtype.hasobject and key != "infos.npy":  # imitation's infos are; its other arrays load without
        yield _error("pickled-array", "the array holds Python objects (a pickle), which are never loaded",
                     Location(name, feature=key[:-4]), "save the array again with numbers or text only")


# -- zarr -----------------------------------------------------------------------------------------------------------


def _read(entry) -> bytes:
    return entry.read_bytes() if isinstance(entry, Path) else entry[0].read(entry[1])


def _size(entry) -> int:
    return entry.stat().st_size if isinstance(entry, Path) else entry[1].file_size


@dataclass(frozen=True)
class _ZarrArray:
    """The shape, chunks and type of a zarr array, as its metadata state them."""

    node: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fill_value: Any
    chunk_files: list[str]
    chunk_bytes: int | None  # None if chunks are compressed

    @staticmethod
    def parse(node: str, about: dict[str, Any], is_v3: bool) -> _ZarrArray:
        """Parses the metadata of a zarr array. Raises ValueError, KeyError, TypeError or AttributeError if invalid."""
        shape = about["shape"]
        chunks = about["chunk_grid"]["configuration"]["chunk_shape"] if is_v3 else about["chunks"]
        is_raw = not is_v3 and about.get("compressor") is None and not about.get("filters")
        dtype = np.dtype(about["data_type"] if is_v3 else about["dtype"])
        separator = about.get("dimension_separator", ".")
        if is_v3:
            separator = about["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
        prefix = f"{node}/{'c' + separator if is_v3 else ''}"
        grid = [math.ceil(n / c) for n, c in zip(shape, chunks, strict=True)]
        files = [prefix + separator.join(map(str, at)) for at in np.ndindex(*grid)]
        return _ZarrArray(node, tuple(shape), dtype, about.get("fill_value"), files,
                          math.prod(chunks) * dtype.itemsize if is_raw else None)


def _zarr(stored):
    """Finds missing chunks of zarr arrays. They would be read as the fill value: zeros that were never recorded."""
    ends, rows = None, {}
    for file in sorted(k for k in stored if k.rsplit("/", 1)[-1] in (".zarray", "zarr.json")):
        node = file.rsplit("/", 1)[0] if "/" in file else ""
        try:
            about = json.loads(_read(stored[file]))
            if about.get("node_type") == "group":
                continue
            array = _ZarrArray.parse(node, about, is_v3=file.endswith("zarr.json"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield _damaged("the file does not describe an array", error, Location(file))
            continue
        rows[node] = array.shape
        yield from _check_chunks(array, stored)
        if node.endswith("meta/episode_ends"):
            ends = node
    if ends is not None:
        yield from _check_ends(stored, ends, rows)


def _check_chunks(array: _ZarrArray, stored):
    node, names = array.node, array.chunk_files
    missing = [n for n in names if n not in stored]
    if missing:
        # zarr leaves out chunks of nothing but the fill value: likely for flags, not for what was measured.
        flags = array.dtype.kind in "bi" or len(array.shape) < 2 or len(missing) == len(names)
        yield Finding("missing-chunk", "warning" if flags else "error",
                      f"{node}: {pluralize(len(missing), 'chunk')} of "
                      f"{len(names)} not there, which read as {array.fill_value}: {format_list(missing, 3)}",
                      _COPY, Location(missing[0], feature=node))
    for n in names if array.chunk_bytes is not None else ():
        if n in stored and _size(stored[n]) != array.chunk_bytes:
            yield _error("damaged-file", f"the chunk has {_size(stored[n])} bytes instead of {array.chunk_bytes}",
                         Location(n, feature=node))
            break


def _check_ends(stored, ends: str, rows):
    """Finds episode ends that do not increase, and arrays with another number of steps than the last episode end."""
    try:
        values = _ends(stored, ends)
    except (UserError, ImportError, ValueError, OSError, RuntimeError, KeyError):
        return  # its reader says so
    steps = {n: shape[0] for n, shape in rows.items() if f"/{n}".rsplit("/", 2)[-2] == "data" and shape
             and not is_metadata(standard_name(n.rpartition("/")[2]), shape, ())}
    last = int(values[-1]) if len(values) else 0
    if (np.diff(values, prepend=0) < 1).any():
        e = int(np.argmax(np.diff(values, prepend=0) < 1))
        yield _error("ends-disagree", f"episode {e} ends at {values[e]}, which is not after the "
                     "end of the episode before it", Location(ends, e), "correct meta/episode_ends")
    if other_lengths := {node: n for node, n in steps.items() if n != last}:
        yield _error("ends-disagree", f"the last episode ends at {last}, which is not the number of rows: "
                     f"{format_list(f'{n} of {node}' for node, n in other_lengths.items())}",
                     Location(ends, feature=next(iter(other_lengths))),
                     "correct meta/episode_ends, or leave the array out")


def _ends(stored, node) -> np.ndarray:
    import zarr
    from zarr.storage import LocalStore, ZipStore

    entry = stored[file := next(k for k in stored if k.startswith(node))]
    is_folder = isinstance(entry, Path)
    store = LocalStore(entry.parents[file.count("/")], read_only=True) if is_folder else ZipStore(entry[0].filename)
    with closing(store):
        group: Any = zarr.open_group(store, mode="r")
        return np.asarray(group[node][:])


# -- records of TensorFlow ------------------------------------------------------------------------------------------


def _records(path, deep):
    """Checks every shard that dataset_info.json names: its number of records and, if `deep`, their checksums."""
    try:
        about = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
        name, kind = about["name"], about.get("fileFormat", "tfrecord")
        splits = [(s["name"], rlds.shard_files(path, name, s, kind)) for s in about.get("splits", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield _damaged("the file does not describe the shards", error, Location("dataset_info.json"))
        return
    for split, shards in splits:
        for file, n_records in shards:
            if not file.is_file():
                yield _error("missing-file", f"the shard with {pluralize(n_records, 'episode')} of {split} is missing",
                             Location(file.name))
            elif kind == "tfrecord":
                yield from _shard(file, file.name, n_records, deep)
    if unlisted := rlds.unlisted_files(path, [file for _, shards in splits for file, _ in shards]):
        yield _error("counts-disagree",
                     f"{pluralize(len(unlisted), 'file')} of records that dataset_info.json does not name: "
                     f"{format_list(unlisted)}",
                     Location("dataset_info.json"), "take dataset_info.json from a copy, or move the files elsewhere")


def _shard(path, name, n_expected, deep):
    has_crc = find_spec("google_crc32c") is not None
    n_read, size = 0, path.stat().st_size
    with open(path, "rb") as handle:
        if file_kinds.kind_of_start(handle.read(2)) == "gzip":
            return  # compressed as a whole: its reader looks
        handle.seek(0)
        while head := handle.read(12):
            length, check = struct.unpack("<QI", head) if len(head) == 12 else (0, 0)
            if len(head) < 12 or (has_crc and rlds.masked_crc32c(head[:8]) != check):
                is_whole = len(head) == 12
                yield _error("checksum" if is_whole else "damaged-file", f"record {n_read}: the length is "
                             f"{'wrong by its checksum' if is_whole else 'cut short'}", Location(name))
                return
            if handle.tell() + length + 4 > size:
                yield _error("damaged-file", f"record {n_read} is cut short", Location(name))
                return
            if deep and has_crc:
                if rlds.masked_crc32c(handle.read(length)) != struct.unpack("<I", handle.read(4))[0]:
                    yield _error("checksum", f"record {n_read}: the checksum is wrong", Location(name))
            else:
                handle.seek(length + 4, 1)
            n_read += 1
    if n_read != n_expected:
        yield _error("counts-disagree",
                     f"dataset_info.json says {pluralize(n_expected, 'record')}, but the shard has {n_read}",
                     Location(name))


# -- bags -----------------------------------------------------------------------------------------------------------


def _mcap(path, name, deep):
    size = path.stat().st_size
    with open(path, "rb") as handle:
        handle.seek(max(0, size - 8))
        if handle.read() != file_kinds.MCAP_MAGIC:
            yield _error("damaged-file", "the MCAP log has no end: it is cut short",
                         Location(name), "what comes before can be read: understudy repair, or mcap recover")
            return
        if not deep:
            return
        try:
            from mcap.reader import make_reader
        except ImportError:
            return
        handle.seek(0)
        try:
            reader = make_reader(handle, validate_crcs=True)
            summary, n_messages = reader.get_summary(), 0
            for _ in reader.iter_messages(log_time_order=False):
                n_messages += 1
            stated_count = summary.statistics.message_count if summary and summary.statistics else n_messages
            if stated_count != n_messages:
                yield _error("counts-disagree", f"its statistics say {stated_count} messages, but the log "
                             f"has {n_messages}", Location(name))
        except Exception as error:  # mcap, lz4 and zstandard raise errors of any type at damaged bytes
            yield _error("checksum" if "crc" in str(error).lower() else "damaged-file",
                         f"a record cannot be read ({read_errors.first_line(error)})", Location(name))


def _bag(path, name):
    """Checks that a ROS 1 bag was closed and is complete, by the index position and record count in its header."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        handle.seek(len(file_kinds.BAG_MAGIC))
        head = handle.read(4096)

        def stored_number(key, form):
            at = head.find(key + b"=") + len(key) + 1
            return struct.unpack_from(form, head, at)[0] if at > len(key) and at + struct.calcsize(form) <= len(head) \
                else 0
        place, n_found = stored_number(b"index_pos", "<Q"), 0
        n_expected = stored_number(b"conn_count", "<I") + stored_number(b"chunk_count", "<I")
        while 0 < place < size:  # header and data of a record, each after its length
            for _ in range(2):
                handle.seek(place)
                length = handle.read(4)
                place = place + 4 + struct.unpack("<I", length)[0] if len(length) == 4 else size + 1
            n_found += place <= size
    if n_found == 0 or n_found < n_expected:
        yield _error("damaged-file",
                     f"the index at the end of the bag has {n_found} instead of {pluralize(n_expected, 'record')}: "
                     "the bag was not closed, or is cut short", Location(name), "rosbag reindex recovers what is there")


def _ros2(path, deep):
    text = (path / "metadata.yaml").read_text(encoding="utf-8", errors="replace")
    # Only the names of files are needed, and lines hold them; no YAML is loaded.
    block = re.search(r"relative_file_paths:\s*\n((?:\s*-\s*.+\n?)+)", text)
    for file in re.findall(r"-\s*['\"]?([^'\"\n]+?)['\"]?\s*$", block[1], re.MULTILINE) if block else ():
        target = path / file
        if not target.is_file():
            yield _error("missing-file", "metadata.yaml names this file, but it is missing", Location(file))
        elif target.suffix == ".db3":
            yield from _database(target, file, text)
        else:
            yield from _file(target, file, deep)


def _database(path, name, text):
    try:
        with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as base:
            n_messages = base.execute("select count(*) from messages").fetchone()[0]
    except sqlite3.Error as error:
        yield _damaged("the SQLite file of messages is damaged", error, Location(name))
        return
    stated_count = re.search(r"^  message_count:\s*(\d+)", text, re.MULTILINE)
    if stated_count and text.count(".db3") <= 2 and int(stated_count[1]) != n_messages:
        yield _error("counts-disagree", f"metadata.yaml says {stated_count[1]} messages, but the file has {n_messages}",
                     Location(name))
