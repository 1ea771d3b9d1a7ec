"""Reader and writer of RLDS episodes in TFDS folders: features.json, dataset_info.json and tfrecord shards.

A record is one episode, a serialized tf.train.Example: named lists of bytes, float32 or int64, with the values of all
steps end to end. TensorFlow is not needed to read it. A general parser of Protocol Buffers is not used because it would
copy all images of a folder when it is opened. Checksums of lengths are checked when the folder is opened, the checksum
of a record before it is used.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core import DataError, Feature, UserError, role
from ...files import write_json
from .. import cache, video
from ..episode import Dataset
from ..sources import MemmapSource
from .parts import sidecar
from .parts.column_names import FLAG_COLUMNS, format_list, is_plain_flag, shortest_keys, standard_name, text_column
from .parts.file_kinds import kind_of_start
from .parts.key_map import add_column, metadata
from .parts.read_errors import damaged, import_optional, read_json_object
from .parts.sidecar import ColumnEncoding, FormatCapability

_SHARD = 256 << 20  # bytes after which a new shard is begun
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_AS_LISTS = ("float32", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")  # nothing is rounded
_FIRST_AND_LAST = ("steps/is_first", "steps/is_last")  # they follow from the number of steps


@dataclass(frozen=True)
class TfdsFeature:
    """One feature in features.json of a TFDS folder.

    Args:
        key: Its path in the records, joined by "/".
        kind: Kind of the values. "unreadable" if they are not supported.
        shape: Shape of one step.
        encoding: How the values of a step are stored: "none" (as numbers), "bytes" or "zlib" (compressed bytes).
        num_classes: Number of classes, if it is a class label.
    """

    key: str
    kind: Literal["tensor", "image", "text", "unreadable"]
    dtype: str = "string"
    shape: tuple[int, ...] = ()
    encoding: str = "none"
    num_classes: int | None = None

    @property
    def is_step_feature(self) -> bool:
        return self.key.startswith("steps/")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_bytes(self) -> bool:
        """Whether a step of the feature is one value of bytes instead of `size` numbers."""
        return self.kind != "tensor" or self.encoding != "none"

    @property
    def column(self) -> str:
        """Name of the column that the feature is read as."""
        head, _, subkey = self.key.removeprefix("steps/").partition("/")
        subkey, kind = subkey.replace("/", "."), self.feature.kind
        if head == "observation":
            if kind == "string" and subkey.endswith("instruction"):
                return "task"
            return f"observation.images.{subkey or 'image'}" if kind == "image" else f"observation.{subkey or 'state'}"
        if head == "is_terminal":
            return "next.terminated"
        name = f"{head}.{subkey}" if subkey else head
        return name if head == "action" else standard_name(name, "vector" if kind == "image" else kind)

    @property
    def feature(self) -> Feature:
        if self.kind == "text":
            return Feature("string", (), "string")
        plain_feature = Feature.from_array(np.empty((0, *self.shape), self.dtype))
        return replace(plain_feature, num_classes=(self.num_classes,) if self.num_classes else None)


_METADATA = {bool: TfdsFeature("", "tensor", "bool"), int: TfdsFeature("", "tensor", "int64"),
             float: TfdsFeature("", "tensor", "float64", encoding="bytes"), str: TfdsFeature("", "text")}
_TERMINAL = TfdsFeature("steps/is_terminal", "tensor", "bool")


class RldsSource(MemmapSource):
    """Reader of an RLDS folder: all splits, one after another. `metadata["split"]` of an episode names its split.

    Args:
        final_step: Meaning of the last step of a record, which the files do not store. ``"action"``: a step like all
            other steps, as in Open X-Embodiment (2023). ``"observation"``: only the observation after the last action,
            as in RLDS itself. There is a warning if the last actions are all zero.
    """

    flags = frozenset(FLAG_COLUMNS)

    def __init__(self, path: Path, final_step: Literal["action", "observation"] = "action"):
        if final_step not in ("action", "observation"):
            raise UserError(f"final_step must be action or observation, not {final_step!r}", where=path,
                            hint="leave it out, unless the last actions are all zero: then \"observation\"")
        self.path, self._shift = path, final_step == "observation"
        self._info = read_json_object(path / "dataset_info.json")
        warnings: list[str] = []
        document = read_json_object(path / "features.json")
        try:
            described = list(_leaves(document, "", warnings))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(f"these are not the features of a TFDS data set ({error!r})",
                          path / "features.json") from None
        leaves = [leaf for leaf in described if leaf.kind != "unreadable"]
        if not any(leaf.is_step_feature for leaf in leaves):
            raise UserError("there are no steps with features", where=path / "features.json",
                            hint="RLDS data sets have a feature steps; convert others with their own library")
        shards = _shards(path, self._info)
        files = [file for file, _, _ in shards]
        if unlisted := unlisted_files(path, files):
            warnings.append(f"{', '.join(unlisted[:4])}{', ...' if len(unlisted) > 4 else ''}: not named by "
                            "dataset_info.json, and left out")
        self.key = cache.files_digest([path / "features.json", *files], "rlds", final_step)
        self._maps_of: dict[Path, mmap.mmap | bytes] = {}
        self._checked: set[int] = set()
        self._last_record: tuple[int, _Example] | None = None  # the record that was read last
        self._locations: list[tuple[Path, int, int, int, str]] = []  # file, number in it, first byte, bytes, split
        for shard in shards:
            self._scan(*shard)
        if not self._locations:
            raise damaged("there are no episodes", path)
        self._count(leaves)
        self._assign_features(leaves, warnings)
        self._warn_of_doubts(warnings, [leaf.key for leaf in described])
        self.metadata = metadata("rlds", path, warnings, str(self._info.get("version", "")))

    # -- where the records are --------------------------------------------------------------------------------------

    def _map(self, file: Path):
        if file not in self._maps_of:
            self._maps_of[file] = map_file(file)
        return self._maps_of[file]

    def _scan(self, file: Path, n_expected: int, split: str):
        records = [(file, number, at, length, split)
                   for number, (at, length) in enumerate(scan_records(self._map(file), file))]
        if len(records) != n_expected:
            raise damaged(f"it has {len(records)} records, but dataset_info.json says {n_expected}", file)
        self._locations += records

    def _record(self, episode: int) -> _Example:
        """Reads a record and verifies its checksum."""
        if self._last_record is not None and self._last_record[0] == episode:
            return self._last_record[1]
        file, _, at, length, _ = self._locations[episode]
        data = self._map(file)
        if episode not in self._checked:
            if masked_crc32c(data[at: at + length]) != struct.unpack_from("<I", data, at + length)[0]:
                raise damaged("the checksum of the record is wrong", self._where(episode))
            self._checked.add(episode)
        self._last_record = episode, self._unchecked_record(episode)
        return self._last_record[1]

    def _unchecked_record(self, episode: int) -> _Example:
        """Returns a record without verifying its checksum, to read a little of all records."""
        file, _, at, length, _ = self._locations[episode]
        return _Example(self._map(file), at, at + length, self._where(episode))

    def _where(self, episode: int, key: str = "") -> str:
        file, number, *_ = self._locations[episode]
        return f"{file}, record {number}" + (f", {key}" if key else "")

    def _count(self, leaves):
        """Counts the steps of each record by a feature with one value a step, and reads only this feature."""
        fixed = [leaf for leaf in leaves if leaf.is_step_feature and leaf.size > 0]
        leaf = min(fixed, key=lambda f: (f.key != "steps/is_first", f.kind != "tensor", f.size))
        steps = []
        for e in range(len(self._locations)):
            values = self._unchecked_record(e)[leaf.key]
            count, each = (len(values.parts()), 1) if leaf.is_bytes else (len(values.numbers()), leaf.size)
            if count % each or count < each:
                raise damaged(f"{leaf.key} must have {each} values for each step, but has {count}", self._where(e))
            if count // each <= self._shift:
                raise UserError("there is a single step, and no observation after it", where=self._where(e),
                                hint="its last steps hold actions: leave out final_step='observation'")
            steps.append(count // each)
        self._steps = np.array(steps, np.int64)
        self.lengths = self._steps - self._shift

    def _assign_features(self, leaves, warnings):
        self.schema: dict[str, Feature] = {}
        self._leaf: dict[str, TfdsFeature] = {}
        keys: dict[str, str] = {}
        self._meta_leaves = [leaf for leaf in leaves if not leaf.is_step_feature and leaf.kind != "image"]
        self._has_end_flags = any(leaf.key == _TERMINAL.key for leaf in leaves)
        for leaf in leaves:
            if not leaf.is_step_feature or leaf.key in _FIRST_AND_LAST:
                continue
            sized_leaf = self._camera(leaf, warnings) if leaf.kind == "image" else leaf
            if sized_leaf is None:
                continue
            column = sized_leaf.column
            if column == "task" and "task" in keys:
                warnings.append(f"{leaf.key} is left out: task is {keys['task']}")
                continue
            add_column(keys, column, leaf.key, self.path / "features.json")
            self.schema[column], self._leaf[column] = sized_leaf.feature, sized_leaf
        if self._has_end_flags:
            self.schema["next.terminated"] = self.schema["next.truncated"] = Feature("bool", ())
        self.row_counts = {n: self.lengths + (self._shift and n.startswith("observation.")) for n in self.schema}

    def _camera(self, leaf: TfdsFeature, warnings) -> TfdsFeature | None:
        """The camera with its frame size, from the first frame if features.json lacks it. Cameras without any image
        are left out; missing frames are black."""
        episodes = range(len(self._locations))
        missing = [e for e in episodes if not self._unchecked_record(e)[leaf.key].first()]
        if len(missing) == len(episodes):
            warnings.append(f"{leaf.key} is left out: it has no image in any episode")
            return None
        if missing:
            warnings.append(f"{leaf.key} has no image in episodes {format_list(missing)}: its frames there are black")
        if -1 not in leaf.shape and len(leaf.shape) == 3:
            return leaf
        channels = leaf.shape[2] if len(leaf.shape) == 3 and leaf.shape[2] > 0 else 3
        e = next(e for e in episodes if e not in missing)
        frame = self._unchecked_record(e)[leaf.key].first()
        return replace(leaf, shape=video.decode_image(frame, channels, f"{self._where(e, leaf.key)}, frame 0").shape)

    def _warn_of_doubts(self, warnings, described):
        """Warns of inconsistent flags, zero last actions, and keys that features.json does not describe."""
        inconsistent_episodes, ends_in_zeros, has_motion, keys = [], True, False, set()
        actions = [leaf for name, leaf in self._leaf.items() if role(name) == "action" and not leaf.is_bytes]
        for e in range(len(self._locations)):
            record = self._unchecked_record(e)
            keys |= record.keys()
            last = int(self._steps[e]) - 1
            for key, row in zip(_FIRST_AND_LAST, (0, last), strict=True):
                flags = record[key].numbers()
                if len(flags) and np.flatnonzero(flags).tolist() != [row]:
                    inconsistent_episodes.append(e)
            for leaf in actions:
                values = record[leaf.key].numbers()
                tail = values[-leaf.size:]
                ends_in_zeros &= bool(((tail == 0) | np.isnan(tail)).all())
                has_motion |= bool(np.any(values[:-leaf.size] != 0))
        if unknown := sorted(k for k in keys if not any(f"{k}/".startswith(f"{d}/") for d in described)):
            warnings.append(f"features.json does not describe {format_list(unknown)}, which the records hold: left out")
        if inconsistent_episodes:
            warnings.append("is_first or is_last are not those of the first and last step in episodes "
                            f"{format_list(inconsistent_episodes)}")
        if actions and ends_in_zeros and has_motion and not self._shift:
            warnings.append("the last action of every episode is zero: if the last step holds only what was seen last, "
                            "as RLDS has it, open it with open_dataset(path, final_step='observation')")

    # -- reading ----------------------------------------------------------------------------------------------------

    def iter_chunks(self):
        for e in range(len(self.lengths)):
            self._record(e)
            for name in self.numeric_columns:
                yield name, int(self._first[name][e]), self._numbers(name, e)

    def _numbers(self, name, e) -> np.ndarray:
        if name in ("next.terminated", "next.truncated") and self._has_end_flags:
            ends = self._tensor(_TERMINAL, e).astype(bool)
            ends = np.append(ends[:-2], ends[-1]) if self._shift else ends  # the last step says how it ended
            return _truncation_flags(ends) if name == "next.truncated" else ends
        values = self._tensor(self._leaf[name], e)
        return values[: int(self.rows(name)[e])]

    def _tensor(self, leaf: TfdsFeature, e: int) -> np.ndarray:
        """Returns the values of a feature in a record, (steps, *shape)."""
        return _tensor(leaf, self._record(e)[leaf.key], int(self._steps[e]))

    def read_text(self, name, episode):
        location = self.location(name, episode)
        try:
            return text_column([p.decode() for p in self._parts(name, episode)])
        except UnicodeDecodeError as error:
            raise damaged(f"the text is not UTF-8: {error.object[:20]!r}", location) from None

    def _parts(self, name, e) -> list[bytes]:
        """Returns the byte values of a column in an episode, one for each of its rows."""
        parts = self._record(e)[self._leaf[name].key].parts()
        if len(parts) != self._steps[e]:
            raise damaged(f"there are {len(parts)} values for {self._steps[e]} steps", self.location(name, e))
        return parts[: int(self.rows(name)[e])]

    def frames(self, name, episode):
        leaf, shape = self._leaf[name], self.schema[name].shape
        if leaf.kind != "image":
            yield from enumerate(self._tensor(leaf, episode)[: int(self.rows(name)[episode])])
            return
        for row, data in enumerate(self._parts(name, episode)):
            location = f"{self.location(name, episode)}, frame {row}"
            yield row, video.decode_frame(data, shape, location) if data else np.zeros(shape, np.uint8)

    def location(self, name, episode):
        return self._where(episode, self._leaf[name].key if name in self._leaf else name)

    def episode_metadata(self, episode):
        values: dict[str, Any] = {"split": self._locations[episode][-1]} if len(self._info["splits"]) > 1 else {}
        for leaf in self._meta_leaves:
            record = self._record(episode)
            name = leaf.key.removeprefix("episode_metadata/").replace("/", ".")
            if leaf.kind == "text":
                values[name] = record[leaf.key].first().decode(errors="replace")
            elif leaf.key in record:
                values[name] = _tensor(leaf, record[leaf.key], 1)[0].tolist()
        return values


def _tensor(leaf: TfdsFeature, values: _Values, rows: int) -> np.ndarray:
    dtype = np.dtype(leaf.dtype)
    try:
        if leaf.encoding == "none":
            numbers = values.numbers().astype(dtype)
        else:
            unpack = zlib.decompress if leaf.encoding == "zlib" else bytes
            data = b"".join(unpack(p) for p in values.parts())
            numbers = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    except (zlib.error, ValueError) as error:
        raise damaged(f"the numbers cannot be read ({error})", values.where) from None
    if len(numbers) != rows * leaf.size:
        raise damaged(f"there are {len(numbers)} numbers instead of {rows} times {leaf.size}", values.where)
    return numbers.reshape(rows, *leaf.shape)


# -- features.json and dataset_info.json ----------------------------------------------------------------------------


def _leaves(node: Mapping, key: str, warnings: list[str]) -> Iterator[TfdsFeature]:
    left_out = ""
    if "featuresDict" in node:
        for name, child in (node["featuresDict"].get("features") or {}).items():
            yield from _leaves(child, f"{key}/{name}" if key else name, warnings)
    elif key == "steps" and "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], key, warnings)
    elif key == "steps":
        raise ValueError("steps are not a sequence")
    elif "tensor" in node:
        tensor = node["tensor"]
        dtype, shape = tensor["dtype"], _shape(tensor)
        encoding = tensor.get("encoding", "none") or "none"
        if dtype in ("string", "object") and not shape:
            yield TfdsFeature(key, "text")
        elif -1 in shape or dtype in ("string", "object", "bfloat16") or encoding not in ("none", "bytes", "zlib"):
            left_out = f"{dtype} {shape} {encoding} has no one shape of numbers"
        elif np.dtype(dtype).name != dtype:  # NumPy takes short names too, "?" for one
            raise ValueError(f"{key} of dtype {dtype!r}")
        else:
            yield TfdsFeature(key, "tensor", dtype, shape, encoding)
    elif "image" in node:
        image = node["image"]
        if image.get("dtype", "uint8") != "uint8" or image.get("encodingFormat", "png") not in ("png", "jpeg", ""):
            left_out = f"images of {image.get('dtype')} {image.get('encodingFormat')} are not read"
        else:
            yield TfdsFeature(key, "image", "uint8", _shape(image) or (-1, -1, 3))
    elif "text" in node:
        yield TfdsFeature(key, "text")
    elif "classLabel" in node:
        count = int(node["classLabel"].get("numClasses") or 0)
        yield TfdsFeature(key, "tensor", "int64", (), num_classes=count or None)
    else:
        kind = next((k for k in node if k != "pythonClassName"), "nothing")
        left_out = f"a feature of kind {kind} has no fixed shape a step"
    if left_out:
        warnings.append(f"{key} is left out: {left_out}")
        yield TfdsFeature(key, "unreadable")


def _shape(node) -> tuple[int, ...]:
    return tuple(int(n) for n in (node.get("shape") or {}).get("dimensions", ()))


def _shards(path: Path, info: Mapping) -> list[tuple[Path, int, str]]:
    """Returns the shard files, with the number of records that each should have, and the split of each."""
    info_path, splits = path / "dataset_info.json", info.get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(s, dict) for s in splits):
        raise damaged("there are no splits", info_path)
    name, out = str(info.get("name") or path.parent.name), []
    for split in splits:
        try:
            files = shard_files(path, name, split)
        except (TypeError, ValueError):
            raise damaged(f"these are not numbers of records: {split.get('shardLengths')}",
                          f"{info_path}, shardLengths") from None
        for i, (file, _) in enumerate(files):
            if not file.is_file():
                raise damaged(f"shard {i} of split {split.get('name')} is missing", file)
        out += [(file, count, str(split.get("name"))) for file, count in files]
    return out


def shard_files(path: Path, name: str, split: Mapping, kind: str = "tfrecord") -> list[tuple[Path, int]]:
    """Returns the files of a split of dataset_info.json, with the number of records that each should have."""
    shard_lengths, files = [int(n) for n in split.get("shardLengths") or ()], []
    for i, count in enumerate(shard_lengths):
        template = str(split.get("filepathTemplate") or SHARD_TEMPLATE)
        tokens = {"{DATASET}": name, "{SPLIT}": str(split.get("name")), "{FILEFORMAT}": kind,
                  "{SHARD_X_OF_Y}": f"{i:05d}-of-{len(shard_lengths):05d}", "{SHARD_INDEX}": f"{i:05d}",
                  "{NUM_SHARDS}": f"{len(shard_lengths):05d}"}
        for token, text in tokens.items():
            template = template.replace(token, text)
        files.append((path / Path(template).name, count))
    return files


def unlisted_files(path: Path, files: Iterable[Path]) -> list[str]:
    """Returns the names of files of records in the folder that are not among `files`."""
    return sorted({p.name for p in path.glob("*.tfrecord*")} - {f.name for f in files})


def map_file(file: Path) -> mmap.mmap | bytes:
    """Maps a file into memory. An empty one cannot be mapped."""
    with open(file, "rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""


def scan_records(data: mmap.mmap | bytes, file: Path) -> Iterator[tuple[int, int]]:
    """Yields the first byte and the number of bytes of each record of a file. A checksum follows each record.

    Raises:
        UserError: The file is cut short, or the checksum of a length is wrong.
    """
    at = number = 0
    while (n_bytes := len(data) - at) > 0:
        location = f"{file}, record {number}"
        if n_bytes < 16:
            raise damaged(f"the file is cut short: it ends after {n_bytes} bytes of the record", location)
        length, crc = struct.unpack_from("<QI", data, at)
        if masked_crc32c(data[at: at + 8]) != crc:
            if at == 0 and kind_of_start(data[:2]) == "gzip":
                raise UserError("the file is compressed with gzip", where=location, hint="unpack the file (gunzip)")
            raise damaged("the checksum of the record's length is wrong", location)
        if length > n_bytes - 16:
            raise damaged(f"the file is cut short: {n_bytes - 16} of {length} bytes of the record", location)
        yield at + 12, length
        at, number = at + 16 + length, number + 1


# -- tf.train.Example, by the encoding of Protocol Buffers ----------------------------------------------------------


class _Values:
    """One list of values in a TensorFlow Example. Its bytes are at `start` to `end` of `data`."""

    def __init__(self, data, start: int, end: int, where: str):
        self._data, self.where = data, where
        self._kind = 0  # 1 bytes, 2 float32, 3 int64; 0 for none
        self._start = self._end = start
        for field, wire, a, b in _fields(data, start, end, where):
            if field in (1, 2, 3) and wire == 2:
                self._kind, self._start, self._end = field, a, b

    def _items(self) -> Iterator[tuple[int, int, int]]:
        """Yields (wire type, first byte, end) of each value, or of all values that are packed together."""
        fields = _fields(self._data, self._start, self._end, self.where)
        return ((wire, a, b) for field, wire, a, b in fields if field == 1)

    def _iter_parts(self) -> Iterator[bytes]:
        if self._kind not in (0, 1):
            raise damaged("these are numbers, not text or bytes", self.where)
        return (self._data[a:b] for wire, a, b in self._items() if wire == 2)

    def parts(self) -> list[bytes]:
        return list(self._iter_parts())

    def first(self) -> bytes:
        """The first of the byte values, or b"" if there are none."""
        return next(self._iter_parts(), b"")

    def numbers(self) -> np.ndarray:
        """Returns the values as float32 or int64, whether they are packed (as usual) or stored one by one."""
        if self._kind == 1:
            raise damaged("this is text or bytes, not numbers", self.where)
        if self._kind == 2:
            out = [self._floats(a, b) for wire, a, b in self._items() if wire in (2, 5)]
        else:
            out = [_varints(self._data[a:b], self.where) for wire, a, b in self._items() if wire in (2, 0)]
        return np.concatenate(out) if out else np.zeros(0, np.float32 if self._kind == 2 else np.int64)

    def _floats(self, start, end):
        if (end - start) % 4:
            raise _broken(self.where)
        return np.frombuffer(self._data, "<f4", (end - start) // 4, start)


class _Example(dict[str, _Values]):
    """A TensorFlow Example: the lists of values of a record, by key. A missing list is empty."""

    def __init__(self, data, start: int, end: int, where: str):
        super().__init__()
        self._where = where
        for a, b in _messages(data, start, end, where):
            for c, d in _messages(data, a, b, where):
                key, value = "", (0, 0)
                for field, wire, e, f in _fields(data, c, d, where):
                    if (field, wire) == (1, 2):
                        key = data[e:f].decode(errors="replace")
                    elif (field, wire) == (2, 2):
                        value = e, f
                self[key] = _Values(data, *value, f"{where}, {key}")

    def __missing__(self, key: str) -> _Values:
        return _Values(b"", 0, 0, f"{self._where}, {key}")


def _messages(data, start: int, end: int, where: str) -> Iterator[tuple[int, int]]:
    """Yields (first byte, end) of each sub-message that is field 1 of a protocol buffer message."""
    return ((a, b) for field, wire, a, b in _fields(data, start, end, where) if (field, wire) == (1, 2))


def _fields(data, at: int, end: int, where: str) -> Iterator[tuple[int, int, int, int]]:
    """Yields (number, wire type, first byte, end) of each field of a protocol buffer message."""
    while at < end:
        tag, at = _varint(data, at, end, where)
        field, wire, begin = tag >> 3, tag & 7, at
        if wire == 0:
            _, at = _varint(data, at, end, where)
        elif wire == 2:
            length, begin = _varint(data, at, end, where)
            at = begin + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise _broken(where)
        if at > end or field == 0:
            raise _broken(where)
        yield field, wire, begin, at


def _varint(data, at: int, end: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise _broken(where)


def _varints(data: bytes, where: str) -> np.ndarray:
    """Decodes packed variable-length integers of a protocol buffer to (n,) int64, seven bits per byte."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64)
    last = raw < 128
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    if not last[-1] or np.diff(np.append(first, len(raw))).max() > 10:
        raise _broken(where)
    place = np.arange(len(raw)) - np.repeat(first, np.diff(np.append(first, len(raw))))
    bits = (raw & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, first).view(np.int64)


def _broken(where) -> DataError:
    return damaged("this is not a tf.train.Example", where)


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum of tfrecord: CRC-32C (Castagnoli), rotated by 15 bits, plus a constant."""
    package = "reading tfrecord needs the package google-crc32c"
    crc = import_optional("google_crc32c", package, "formats").value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# -- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StoragePlan:
    """Plan of how a data set is stored in RLDS: the feature of each column and of the metadata.

    Attributes:
        leaves: The feature of each column. is_first and is_last are added.
        metadata: The feature of each key of the metadata of episodes.
        has_end_flags: Whether is_terminal stores next.terminated and next.truncated.
    """

    leaves: Mapping[str, TfdsFeature]
    metadata: Mapping[str, TfdsFeature]
    has_end_flags: bool

    def document(self) -> dict:
        """Returns the contents of features.json."""
        document = _features_dict()
        flags = [TfdsFeature(key, "tensor", "bool") for key in _FIRST_AND_LAST]
        for leaf in (*self.leaves.values(), *flags, *self.metadata.values()):
            node, (*groups, name) = document, leaf.key.split("/")
            for group in groups:
                empty = _features_dict()
                if group == "steps":
                    empty = _json("dataset_feature.Dataset", "sequence", {"feature": empty, "length": "-1"})
                node = node["featuresDict"]["features"].setdefault(group, empty)
                node = node["sequence"]["feature"] if group == "steps" else node
            node["featuresDict"]["features"][name] = _leaf_json(leaf)
        return document


def _json(name: str, key: str, value: dict) -> dict:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{name}", key: value}


def _features_dict() -> dict:
    return _json("features_dict.FeaturesDict", "featuresDict", {"features": {}})


def _leaf_json(leaf: TfdsFeature) -> dict:
    shape = {"dimensions": [str(n) for n in leaf.shape]} if leaf.shape else {}
    if leaf.kind == "text":
        return _json("text_feature.Text", "text", {})
    if leaf.kind == "image":
        return _json("image_feature.Image", "image", {"shape": shape, "dtype": "uint8", "encodingFormat": "png"})
    return _json("tensor_feature.Tensor", "tensor",
                 {"shape": shape, "dtype": leaf.dtype, "encoding": leaf.encoding})


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    plan = _plan(data)
    columns = {n: ColumnEncoding(leaf.column, "string" if leaf.kind == "text" else leaf.dtype, leaf.shape)
               for n, leaf in plan.leaves.items()}
    if plan.has_end_flags:
        columns["next.truncated"] = ColumnEncoding("next.truncated", "bool", ())
    reads = [leaf.column for leaf in _leaves(plan.document(), "", []) if leaf.is_step_feature
             and leaf.key not in _FIRST_AND_LAST]
    if "next.terminated" in reads:
        reads.append("next.truncated")
    return FormatCapability(columns, metadata_keys=frozenset(plan.metadata), read_columns=tuple(reads))


def _plan(data: Dataset) -> _StoragePlan:
    features, ends = data.features(), _has_standard_end_flags(data)
    leaves = {}
    actions = {n: f for n, f in features.items() if role(n) == "action" and f.size and f.kind != "string"}
    if "action" in actions:
        actions = {"action": actions["action"]}
    for name, f in actions.items():
        if re.fullmatch(r"action(\.[\w\-][\w.\-]*)?", name):
            leaves[name] = _step_feature(f, "steps/" + name.replace(".", "/", 1))
    plain = {n: f for n, f in features.items() if n not in ("next.terminated", "next.truncated")
             and role(n) != "action" and f.size and (f.kind != "string" or not f.shape) and is_plain_flag(data, n)}
    reserved = {"is_first", "is_last", "is_terminal", "action", "observation"}
    for group in ("observation/", ""):  # observations have their own namespace

        def leaf(key, f, group=group):
            return _step_feature(f, f"steps/{group}{'language_instruction' if key == 'task' else key}")

        group_columns = {n: f for n, f in plain.items() if (role(n) == "observation") == bool(group)}
        for name, short in shortest_keys(group_columns, lambda key, f: leaf(key, f).column).items():
            step_feature = leaf(short, group_columns[name])
            taken = {"next.terminated", "next.truncated", *(at.column for at in leaves.values())}
            if step_feature.column not in taken and (group or short not in reserved):
                leaves[name] = step_feature
    if ends:
        leaves["next.terminated"] = _TERMINAL
    return _StoragePlan({n: leaves[n] for n in features if n in leaves}, _metadata_features(data), ends)


def _step_feature(f: Feature, key: str) -> TfdsFeature:
    if f.kind == "string":
        return TfdsFeature(key, "text")
    if f.kind == "image" and f.shape[2] in (1, 3, 4) and key.startswith("steps/observation/"):
        return TfdsFeature(key, "image", "uint8", f.shape)
    return TfdsFeature(key, "tensor", f.dtype, f.shape, "none" if f.dtype in _AS_LISTS else "bytes")


def _has_standard_end_flags(data) -> bool:
    """Returns whether RLDS can store the flags: an episode that did not terminate was truncated at its end."""
    names, features = ("next.terminated", "next.truncated"), data.features()
    if not all(n in features and (features[n].dtype, features[n].shape) == ("bool", ()) for n in names):
        return False
    flags = ((np.asarray(e.steps[n])[: len(e)] for n in names) for e in data)
    return all(np.array_equal(cut, _truncation_flags(ended)) for ended, cut in flags)


def _truncation_flags(ends: np.ndarray) -> np.ndarray:
    """Computes the flags next.truncated of an episode from its flags next.terminated."""
    return (np.arange(len(ends)) == len(ends) - 1) & ~ends


def _metadata_features(data: Dataset) -> dict[str, TfdsFeature]:
    """Returns the metadata that all episodes have, as one kind of plain value."""
    return {key: replace(_METADATA[type(values[0])], key=f"episode_metadata/{key}")
            for key, values in sidecar.plain_metadata(data).items() if key != "split" and re.fullmatch(r"\w+", key)}


def write(data: Dataset, path: str | Path) -> None:
    """Writes a folder that tfds.builder_from_directory opens, with one split, train, in shards of tfrecord.

    Every step has an action. The row after the last action is kept in the sidecar file.
    """
    path = Path(path)
    masked_crc32c(b"")  # says what to install before anything is written
    plan, name = _plan(data), re.sub(r"\W+", "_", path.stem.lower()).strip("_") or "demonstrations"
    name = name if name[0].isalpha() else f"d_{name}"
    with sidecar.new_folder(path, data, capability(data)) as part:
        counts, size, out = [], 0, None
        with ExitStack() as shard:
            for episode, length in zip(data, data.lengths.tolist(), strict=True):
                if out is None or out.tell() >= _SHARD:
                    shard.close()
                    out = shard.enter_context(open(part / f"{len(counts)}.tfrecord", "wb"))
                    counts.append(0)
                record = _encode(plan, episode, length)
                for piece in (struct.pack("<Q", len(record)), record):
                    out.write(piece + struct.pack("<I", masked_crc32c(piece)))
                counts[-1] += 1
                size += len(record) + 16
        for i in range(len(counts)):
            (part / f"{i}.tfrecord").rename(part / f"{name}-train.tfrecord-{i:05d}-of-{len(counts):05d}")
        write_json(part / "features.json", plan.document())
        write_json(part / "dataset_info.json", {
            "name": name, "version": "1.0.0", "description": "Written by understudy.", "fileFormat": "tfrecord",
            "splits": [{"name": "train", "numBytes": str(size), "shardLengths": [str(n) for n in counts],
                        "filepathTemplate": SHARD_TEMPLATE}]})


def _encode(plan: _StoragePlan, episode, length: int) -> bytes:
    entries = {leaf.key: _list_of(leaf, np.asarray(episode.steps[name])[:length])
               for name, leaf in plan.leaves.items()}
    for key, row in zip(_FIRST_AND_LAST, (0, length - 1), strict=True):
        entries[key] = _ints(np.arange(length) == row)
    for key, leaf in plan.metadata.items():
        entries[leaf.key] = _list_of(leaf, np.array([episode.metadata[key]]))
    body = b"".join(_field(1, _field(1, key.encode()) + _field(2, entries[key])) for key in sorted(entries))
    return _field(1, body)


def _list_of(leaf: TfdsFeature, column: np.ndarray) -> bytes:
    if leaf.kind == "text":
        return _strings(str(v).encode() for v in column)
    if leaf.kind == "image":
        return _strings(video.encode_png(frame) for frame in column)
    if leaf.encoding == "bytes":
        raw = np.ascontiguousarray(column, np.dtype(leaf.dtype).newbyteorder("<"))
        return _strings(row.tobytes() for row in raw)
    if leaf.dtype == "float32":
        return _field(2, _field(1, np.ascontiguousarray(column, "<f4").tobytes()))
    return _ints(column)


def _strings(parts: Iterable[bytes]) -> bytes:
    return _field(1, b"".join(_field(1, p) for p in parts))


def _ints(column: np.ndarray) -> bytes:
    return _field(3, _field(1, _packed(np.asarray(column).reshape(-1).astype(np.int64).view(np.uint64))))


def _packed(values: np.ndarray) -> bytes:
    """Encodes (n,) uint64 as variable-length integers of a protocol buffer."""
    sevens = values[:, None] >> np.arange(0, 70, 7, dtype=np.uint64)
    count = np.maximum((sevens > 0).sum(1), 1)
    used = np.arange(10) < count[:, None]
    more = np.where(np.arange(10) < count[:, None] - 1, 128, 0)
    return ((sevens & np.uint64(127)).astype(np.uint8) | more.astype(np.uint8))[used].tobytes()


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _packed(np.array([len(content)], np.uint64)) + content
