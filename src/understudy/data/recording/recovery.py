"""Recovery of what can still be read of a damaged source, without changing the source.

Some formats need the end of a file to be opened (parquet, zip, MCAP) or check its length (HDF5). For these, a copy is
repaired in a temporary folder. Then every column of every episode is read once, and unreadable episodes are left out. A
missing part is reported as a loss and never becomes zeros.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core import UserError
from ...files import read_json, write_json
from .. import cache, video
from ..episode import Dataset
from ..formats import preview_dataset, rlds, zarr_store
from ..formats.describe import lerobot_source
from ..formats.logs import message_logs
from ..formats.parts import file_kinds, hdf5, npz_arrays, read_errors, sidecar
from ..formats.parts.links import check_links, make_link
from ..opening.source_parts import find_parts, recover_parts
from .lerobot_recovery import LeRobotRepair


@dataclass(frozen=True)
class RecoveredDataset:
    """The readable episodes that `recover` gives, and descriptions of what was lost."""

    data: Dataset
    problems: tuple[str, ...]


@contextmanager
def recover(path: str | Path, **options) -> Iterator[RecoveredDataset]:
    """Opens the readable episodes of a damaged source. A context manager: the episodes can be read inside it.

    Args:
        **options: Options of `preview_dataset`, such as the mapping of the topics of bags, or how to find the ends of
            episodes in a file that does not store them.

    Example:
        >>> with recover("damaged.hdf5") as found:
        ...     print(len(found.data), found.problems)
    """
    path = Path(path)
    check_links(path)
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        losses: list[str] = []
        with cache.disk_errors(Path(folder), "make room in the folder for temporary files (TMPDIR)"):
            data, good, mended = _recover_episodes(path, Path(folder), options, losses)
        losses = [loss.replace(str(mended), str(path)) for loss in losses]
        if not good:
            loss_lines = "".join(f"\n  {loss}" for loss in losses)
            raise UserError(f"no episode can be read{loss_lines}", where=path,
                            hint="take it from a copy")
        if sidecar.sidecar_path(path).exists() and not isinstance(data.source, sidecar.SidecarSource):
            losses.append(
                f"{sidecar.sidecar_path(path)}: what was kept next to the data cannot be assigned to the episodes "
                "that are left")
        yield RecoveredDataset(data.select(good) if len(good) < len(data) else data, tuple(losses))


def _recover_episodes(path: Path, folder: Path, options: dict, losses: list[str]) -> tuple[Dataset, list[int], Path]:
    """Repairs and opens a source. Returns the data, the numbers of the readable episodes, and the path."""
    mended, refused, data = path, None, Dataset([])
    if (mend := _repair_function(path)) is not None:
        mended = mend(path, folder, losses.append)
    try:
        data = preview_dataset(mended, **options)
    except UserError as error:
        refused = error
    error_by_episode = {e: _read_error(data, e) for e in range(len(data))}
    bad = {e: why for e, why in error_by_episode.items() if why is not None}
    if (refused is not None or bad) and mended.exists() and (of := find_parts(mended)) is not None:
        part_losses: list[str] = []
        if (whole := recover_parts(of, folder, part_losses.append, _read_error, options, path)) is not None:
            losses += part_losses or ([refused.problem] if refused is not None else [])
            return whole, list(range(len(whole))), mended
        if refused is None or len(of.names) > 1:
            losses += part_losses
            return Dataset([]), [], mended
    if refused is not None:
        if not losses:
            raise UserError(refused.problem, where=str(refused.where).replace(str(mended), str(path)),
                            hint=refused.hint) from None
        losses.append(refused.problem)
    losses += [f"episode {e}: {why}" for e, why in bad.items()]
    return data, [e for e in error_by_episode if e not in bad], mended


def check_readable(data: Dataset) -> None:
    """Raises UserError if a value of any column but images cannot be read, or if a video is too short."""
    for episode in data:
        for name, f in episode.schema.items():
            if f.kind != "image":
                episode.steps[name]
    if (source := lerobot_source(data)) is not None:
        for files, _ in source.index.videos.values():
            for file in dict.fromkeys(files):
                n_steps = sum(int(n) for n, f in zip(source.lengths, files, strict=True) if f == file)
                if (source.path / file).exists() and (n_frames := len(video.frame_times(source.path / file))) < n_steps:
                    raise UserError(f"it is damaged: {n_frames} of {n_steps} frames. It cannot be trained on",
                                    where=file, hint="take it from a copy, or leave out the episodes in it")


def _read_error(data: Dataset, index: int) -> str | None:
    """Returns the reason why an episode cannot be read, or None if it can."""
    try:
        episode = data[index]
        for name in episode.steps:
            np.asarray(episode.steps[name])
    except UserError as error:
        return str(error).splitlines()[0]
    except Exception as error:  # libraries may raise anything for a damaged file
        return f"{type(error).__name__}: {error}"
    return None


# (source, folder for the copy, function that reports losses) -> copy
RepairFunction = Callable[[Path, Path, Callable[[str], None]], Path]


def _repair_function(path: Path) -> RepairFunction | None:
    if path.is_dir():
        kind = file_kinds.folder_kind(path)
        if kind == "lerobot":
            return lambda *arguments: LeRobotRepair(*arguments).run()
        if kind in ("rlds", "zarr"):
            return _repair_rlds if kind == "rlds" else _repair_zarr
        files_folder = file_kinds.minari_folder(path) or path
        inside = [p for p in files_folder.iterdir() if p.is_file() and not p.name.startswith(".")]
        is_known = any(_repair_function(p) for p in inside)
        return (lambda _, *arguments: _repair_folder(files_folder, *arguments)) if is_known else None
    if not path.exists():
        return None
    kind = file_kinds.file_kind(path)
    if kind == "zip":
        if not _is_complete_zip(path):
            return _repair_npz
        with zipfile.ZipFile(path) as archive:
            return _repair_zarr if file_kinds.is_zarr(archive.namelist()) else None
    return {"hdf5": _repair_hdf5, "mcap": _repair_mcap}.get(kind)


def _repair_folder(path: Path, folder: Path, report_loss) -> Path:
    """Repairs each damaged file of a folder, and returns a folder with the results."""
    out = folder / path.name
    out.mkdir()
    for p in sorted(path.iterdir()):
        mend = _repair_function(p) if p.is_file() else None
        if mend is None:
            make_link(out / p.name, p)
            continue
        with tempfile.TemporaryDirectory(dir=folder) as apart:
            try:
                mended = mend(p, Path(apart), report_loss)
                if mended.is_relative_to(apart):
                    shutil.move(mended, out / p.name)
                else:  # complete; the original must not be moved
                    make_link(out / p.name, p)
            except UserError as error:
                report_loss(str(error).splitlines()[0])
    return out


# -- RLDS -----------------------------------------------------------------------------------------------------------


def _repair_rlds(path: Path, folder: Path, report_loss) -> Path:
    """Repairs an RLDS folder: copies the records with correct checksums, one file per split."""
    info = read_json(path / "dataset_info.json")
    if not isinstance(info, dict) or info.get("fileFormat", "tfrecord") != "tfrecord" or not isinstance(
            info.get("splits"), list):
        return path
    out, name, splits = folder / "data", str(info.get("name") or path.parent.name), []
    out.mkdir()
    for split in info["splits"]:
        count, called = 0, str(split.get("name"))
        with open(out / f"{name}-{called}.tfrecord-00000-of-00001", "wb") as target:
            for file, n_episodes in rlds.shard_files(path, name, split):
                if not file.is_file():
                    report_loss(f"{file}: the file is missing, with {n_episodes} episodes")
                    continue
                for record in _intact_records(file, n_episodes, report_loss):
                    target.write(record)
                    count += 1
        if count:
            splits.append({**split, "shardLengths": [str(count)], "filepathTemplate": rlds.SHARD_TEMPLATE})
    shutil.copy(path / "features.json", out)
    write_json(out / "dataset_info.json", {**info, "name": name, "splits": splits})
    return out


def _intact_records(file: Path, n_records: int, report_loss) -> Iterator[bytes]:
    """Yields the complete records with correct checksums of a tfrecord file."""
    data, number = rlds.map_file(file), 0
    try:
        for at, length in rlds.scan_records(data, file):
            record = data[at - 12: at + length + 4]
            if rlds.masked_crc32c(record[12:-4]) == int.from_bytes(record[-4:], "little"):
                yield record
            else:
                report_loss(f"{file}, record {number}: its checksum is wrong")
            number += 1
    except UserError:
        report_loss(f"{file}, record {number}: cut short or damaged, with what follows "
                    f"({n_records - number} of {n_records} episodes)")
        return
    if number < n_records:
        report_loss(f"{file}: {n_records - number} of {n_records} episodes are missing at its end")


# -- zarr -----------------------------------------------------------------------------------------------------------


def _repair_zarr(path: Path, folder: Path, report_loss) -> Path:
    """Repairs a zarr store: copies the episodes with complete and readable chunks. Returns `path` if all chunks are."""
    try:
        source = _AllRows(path)
    except UserError:
        return path  # its reader reports why
    ends, rows = source.ends, int(source.lengths[0])
    lost_episodes: dict[int, str] = {}
    good = int(np.argmax(np.append((np.diff(ends, prepend=0) < 1) | (ends > rows), True)))
    for e in range(good, len(ends)):
        lost_episodes[e] = f"meta/episode_ends says that it ends at row {ends[e]}, of {rows}"
    if good and ends[good - 1] < max(a.shape[0] for a in source.arrays.values()):
        report_loss(f"{path}: what lies behind row {ends[good - 1] - 1}, which belongs to no episode")
    for key, array in source.arrays.items():
        for begin, end, why in source.damaged(key, array):
            for e in np.flatnonzero((ends > begin) & (np.append(0, ends[:-1]) < end)):
                lost_episodes.setdefault(int(e), why)
    for e, why in sorted(lost_episodes.items()):
        report_loss(f"{path}, episode {e}: {why}")
    if not lost_episodes and (ends[-1:] == [a.shape[0] for a in source.arrays.values()]).all():
        return path
    import zarr

    kept = [e for e in range(len(ends)) if e not in lost_episodes]
    lengths = np.diff(ends, prepend=0)[kept]
    out = zarr.open_group(folder / "kept.zarr", mode="w", zarr_format=2)
    for key, array in source.arrays.items():
        to = out.create_array(f"data/{key}", shape=(int(lengths.sum()), *array.shape[1:]), dtype=array.dtype,
                              chunks=array.chunks, fill_value=None)
        at = 0
        for e, n in zip(kept, lengths, strict=True):
            to[at: at + n] = source.values(key, int(ends[e] - n), int(ends[e]))
            at += int(n)
    out.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return folder / "kept.zarr"


class _AllRows(zarr_store.ZarrSource):
    """Wraps a zarr store so that all rows are one episode, because the stored episode ends may be wrong."""

    def _episode_lengths(self):
        self.arrays = self._arrays
        array = self._array("meta/episode_ends", self.path)
        with zarr_store.zarr_errors(f"{self.path}, meta/episode_ends"):
            self.ends = np.asarray(array[:], np.int64).reshape(-1)
        if self._absent("meta/episode_ends", array) or not len(self.ends):
            raise UserError("episode_ends is missing", where=self.path, hint="take it from a copy")
        return np.array([min(a.shape[0] for a in self._arrays.values())], np.int64)

    def values(self, key, begin, end) -> np.ndarray:
        return self._rows(key, begin, end)

    def damaged(self, key, array) -> Iterator[tuple[int, int, str]]:
        """Yields the damaged rows of an array as (first row, row after the last, problem)."""
        edges = array.shards or array.chunks
        grid = [-(-n // c) for n, c in zip(array.shape, edges, strict=True)]
        missing = [at for at in np.ndindex(*grid)
                   if f"data/{key}/{array.metadata.encode_chunk_key(at)}" not in self._files]
        likely = array.dtype.kind in "bi" or array.ndim < 2 or len(missing) == int(np.prod(grid))
        for at in [] if likely else missing:
            yield at[0] * edges[0], (at[0] + 1) * edges[0], f"a chunk of data/{key} is missing"
        for begin in range(0, array.shape[0], edges[0]):
            try:
                self._rows(key, begin, min(begin + edges[0], array.shape[0]))
            except UserError as error:
                yield begin, begin + edges[0], error.problem


# -- npz ------------------------------------------------------------------------------------------------------------

_LOCAL_FILE_HEADER = struct.Struct("<4s5H3I2H")


def _is_complete_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except read_errors.ZIP_ERRORS:
        return False


def _zip_members(path: Path, data: np.ndarray, report_loss) -> Iterator[tuple[str, bytes, int, int, int]]:
    """Yields name, content, size, checksum and end of each file in a damaged zip, by its local headers."""
    at = 0
    while at + _LOCAL_FILE_HEADER.size <= len(data):
        mark, _, flags, method, _, _, check, packed, size, name_size, more_size = _LOCAL_FILE_HEADER.unpack(
            data[at: at + _LOCAL_FILE_HEADER.size].tobytes())
        if mark != b"PK\x03\x04":
            return
        begin = at + _LOCAL_FILE_HEADER.size
        name = data[begin: begin + name_size].tobytes().decode(errors="replace").removesuffix(".npy")
        more = data[begin + name_size: begin + name_size + more_size].tobytes()
        begin += name_size + more_size
        if begin > len(data):
            return
        if packed == 2**32 - 1 and more[:2] == b"\x01\x00":  # sizes beyond 4 GB, as NumPy always writes them
            size, packed = struct.unpack_from("<QQ", more, 4)
        raw = data[begin: begin + packed].tobytes()
        if method == 8:
            try:
                raw = zlib.decompressobj(-15).decompress(raw)  # also decompresses what is cut off
            except zlib.error as error:
                report_loss(f"{path}, {name}: {error}")
                raw = b""
        if flags & 8 or method not in (0, 8):  # sizes that are stored later
            raise UserError("this is not a zip as NumPy writes it", where=f"{path}, {name}",
                            hint="take it from a copy")
        at = begin + packed
        yield name, raw, size, check, at


def _repair_npz(path: Path, folder: Path, report_loss) -> Path:
    """Repairs an .npz file by the headers of its arrays.

    Without `episode_ends`, the episode of each row is not known.
    """
    arrays: dict[str, np.ndarray] = {}
    data, end = np.memmap(path, np.uint8, "r"), 0
    for name, raw, size, check, next_at in _zip_members(path, data, report_loss):
        end, is_whole = next_at, len(raw) == size and zlib.crc32(raw) == check
        if len(raw) == size and not is_whole:
            report_loss(f"{path}, {name}: its checksum is wrong")
        elif (array := _read_partial_npy(raw, path)) is not None:
            arrays[name] = array
            if not is_whole:
                report_loss(f"{path}, {name}: cut short, {len(array)} rows can be read")
        else:
            report_loss(f"{path}, {name}: cut short")
    if data[end: end + 4].tobytes() != b"PK\x01\x02":
        report_loss(f"{path}: whatever followed {', '.join(arrays) or 'its beginning'}")
    if "episode_ends" not in arrays:
        raise UserError("episode_ends is missing, or the file is cut off before it", where=path,
                        hint="restore it from a copy; the ends of its episodes are unknown")
    if not any(name.startswith("action") for name in arrays):
        raise UserError(f"the actions cannot be read; there are {', '.join(arrays)}", where=path,
                        hint="restore the file from a copy: without actions, the episode of a row is not certain")
    ends = arrays.pop("episode_ends").astype(np.int64)
    columns: dict[str, Any] = _whole_episodes(arrays, ends, path, report_loss)
    np.savez(folder / path.name, **columns)
    return folder / path.name


def _whole_episodes(arrays: dict[str, np.ndarray], ends: np.ndarray, path: Path, report_loss) -> dict[str, np.ndarray]:
    """Returns the rows of the first episodes that are complete in all arrays."""
    steps, count = int(ends[-1]) if len(ends) else 0, len(ends)
    n_whole = count
    for array in arrays.values():
        if array.ndim and len(array) not in (steps, steps + count, count):
            n_whole = min(n_whole, int(np.searchsorted(ends, len(array), side="right")))
    if n_whole < count:
        report_loss(f"{path}: episodes {n_whole} to {count - 1}")
        last = int(ends[n_whole - 1]) if n_whole else 0
        n_rows = {steps: last, steps + count: last + n_whole, count: n_whole}
        arrays = {name: a[:n_rows.get(len(a), last)] if a.ndim else a for name, a in arrays.items()}
    return {"episode_ends": ends[:n_whole], **arrays}


def _read_partial_npy(raw: bytes, path: Path) -> np.ndarray | None:
    """Reads the complete rows of an .npy file that may be cut off."""
    stream = io.BytesIO(raw)
    try:
        shape, fortran, dtype = npz_arrays.read_header(stream, path)
    except UserError:
        return None
    if fortran and len(shape) > 1:
        return None
    row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    size = len(raw) - stream.tell()
    rows = shape[0] if shape and row == 0 else min(shape[0], size // row) if shape else int(size >= dtype.itemsize)
    values = np.frombuffer(raw, dtype, (rows * row) // dtype.itemsize if shape else rows, stream.tell())
    return values.reshape((rows, *shape[1:]) if shape else ()) if rows or shape else None


# -- HDF5 -----------------------------------------------------------------------------------------------------------


def _repair_hdf5(path: Path, folder: Path, report_loss) -> Path:
    """Repairs an HDF5 file that is cut off: copies the groups of episodes before the end of the file."""
    h5py = hdf5.import_h5py()
    out, long = folder / path.name, folder / "long.hdf5"
    size, expected_size = path.stat().st_size, _stored_eof(path)
    if expected_size is None or expected_size <= size:
        return path
    report_loss(f"{path}: {expected_size - size} of {expected_size} bytes are missing")
    shutil.copyfile(path, long)
    os.truncate(long, expected_size)  # the library refuses a file that is too short; the missing part is read as zeros
    try:
        with hdf5.open_file(long) as source, h5py.File(out, "w") as target:
            for name in _copy_complete_items(source, target, size):
                report_loss(f"{path}, {name}")
            if not len(target):
                raise UserError("the index of the file was in the part that is missing",
                                where=path, hint="take it from a copy")
            _forget_missing_episodes(target)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"a part of the index is missing ({error})", where=path,
                        hint="take it from a copy") from None
    return out


def _copy_complete_items(source, target, size: int) -> Iterator[str]:
    """Copies what ends before byte `size` from an HDF5 group to another one, and yields the names of what does not."""
    target.attrs.update(source.attrs)
    for name in source:
        if _is_complete_item(source, name, size):
            source.copy(name, target)
        elif name == "data" and isinstance(source.get(name), Mapping):
            yield from _copy_complete_items(source[name], target.create_group(name), size)
        else:
            yield f"{source.name.rstrip('/')}/{name}"


def _is_complete_item(parent, name: str, size: int) -> bool:
    """Whether an item of an HDF5 group, with all that is in it, ends before byte `size` of the file."""
    try:
        item = parent[name]
        dict(item.attrs)
        if isinstance(item, Mapping):
            return all(_is_complete_item(item, k, size) for k in item)
        if item.chunks is None:
            begin = item.id.get_offset()
            return begin is None or begin + item.id.get_storage_size() <= size
        chunks = (item.id.get_chunk_info(i) for i in range(item.id.get_num_chunks()))
        return all(c.byte_offset + c.size <= size for c in chunks)
    except (OSError, RuntimeError, KeyError, ValueError):
        return False


def _forget_missing_episodes(file) -> None:
    """Takes episodes that are not there from the total and the lists of episodes of a robomimic file."""
    if "data" in file and "total" in file["data"].attrs:
        file["data"].attrs["total"] = sum(len(g["actions"]) for g in file["data"].values())
    for name in list(file.get("mask", ())):
        names = [n for n in file["mask"][name][:] if n.decode() in file["data"]]
        del file["mask"][name]
        file["mask"][name] = np.array(names, "S")


def _stored_eof(path: Path) -> int | None:
    """Returns the end of file that an HDF5 superblock stores, because the library refuses a shorter file."""
    with open(path, "rb") as handle:
        head = handle.read(96)
    version = head[8]
    if version in (0, 1):
        size, at = head[13], 24 + 4 * version
        at += 2 * size  # base address, free-space information
    elif version in (2, 3):
        size, at = head[9], 12
        at += 2 * size  # base address, superblock extension
    else:
        return None
    return int.from_bytes(head[at: at + size], "little")


# -- MCAP -----------------------------------------------------------------------------------------------------------


def _repair_mcap(path: Path, folder: Path, report_loss) -> Path:
    """Repairs an MCAP file: copies all messages before the damage, and the metadata, to a file with an index."""
    message_logs.import_reader("mcap.reader")
    from mcap.writer import Writer

    out, log, channels, count = folder / path.name, message_logs.McapStream(), {}, 0
    with open(out, "wb") as target:
        writer = Writer(target)
        writer.start()

        def register(channel) -> int:
            if channel.id not in channels:
                schema = log.schemas.get(channel.schema_id)
                schema_id = 0 if schema is None else writer.register_schema(schema.name, schema.encoding, schema.data)
                channels[channel.id] = writer.register_channel(channel.topic, channel.message_encoding, schema_id,
                                                               channel.metadata)
            return channels[channel.id]
        try:
            for _, channel, m in log.records(path):
                writer.add_message(register(channel), m.log_time, m.data, m.publish_time, m.sequence)
                count += 1
        except ImportError:
            raise
        except Exception as error:  # decoders may raise anything for a damaged chunk
            log.cut = type(error).__name__
        if log.cut:
            report_loss(f"{path}: what follows after {count} messages ({log.cut})")
        for channel in log.channels.values():
            register(channel)
        for name, record in log.metadata.items():
            writer.add_metadata(name, record)
        writer.finish()
    return out
