"""RLDS episodes in TFDS folders (Ramos et al. 2021): features.json, dataset_info.json and shards of tfrecord.

A record is one episode, a serialized tf.train.Example: named lists of bytes, float32 or int64, with the values of all
steps end to end. TensorFlow is not needed to read it. A general parser of Protocol Buffers is not used because it would
copy all images of a folder when it is opened. Checksums of lengths are checked when the folder is opened, the checksum
of a record before it is used.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core import DataError, Feature, UserError
from ...files import write_json
from .. import cache, video
from ..episode import Dataset
from ..sources import MemmapSource
from . import sidecar
from .column_names import FLAG_COLUMNS, format_list, is_plain_flag, shortest_keys, standard_name
from .key_map import add_column, metadata
from .read_errors import damaged, read_json_object
from .sidecar import ColumnEncoding, FormatCapability

_SHARD = 256 << 20  # bytes after which a new shard is begun
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_AS_LISTS = ("float32", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")  # nothing is rounded
_CLASSES = "tensorflow_datasets.core.features."


@dataclass(frozen=True)
class TfdsFeature:
    """One feature of features.json. `key` is its path, joined by "/", as in the records."""

    key: str
    kind: Literal["tensor", "image", "text"]
    dtype: str = "string"
    shape: tuple[int, ...] = ()
    encoding: str = "none"
    num_classes: int | None = None

    @property
    def is_step_feature(self) -> bool:
        return self.key.startswith("steps/")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def column(self) -> str:
        """What it is called here."""
        head, _, rest = self.key.removeprefix("steps/").partition("/")
        rest, kind = rest.replace("/", "."), {"image": "image", "text": "string"}.get(self.kind, self._kind)
        if head == "observation":
            if kind == "string" and rest.endswith("instruction"):
                return "task"
            return f"observation.images.{rest or 'image'}" if kind == "image" else f"observation.{rest or 'state'}"
        if head == "is_terminal":
            return "next.terminated"
        name = f"{head}.{rest}" if rest else head
        return name if head == "action" else standard_name(name, "vector" if kind == "image" else kind)

    @property
    def _kind(self) -> str:
        return Feature.from_array(np.empty((0, *self.shape), self.dtype)).kind if self.dtype != "string" else "string"

    @property
    def feature(self) -> Feature:
        if self.kind == "text":
            return Feature("string", (), "string")
        found = Feature.from_array(np.empty((0, *self.shape), self.dtype))
        kind = "image" if self.kind == "image" else found.kind
        return Feature(found.dtype, found.shape, kind, num_classes=self.num_classes and (self.num_classes,))


class RldsSource(MemmapSource):
    """All splits, one after another. If there are several, `metadata["split"]` of an episode names its split.

    Args:
        path: The folder.
        final_step: Whether the last step of a record is one as the others ("action", as in Open X-Embodiment, 2023),
            or holds only what was seen last ("observation", as RLDS itself has it). The files do not say. There is a
            warning where the last actions are all zero.
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
            leaves = list(_leaves(document, "", warnings))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(f"these are not the features of a TFDS data set ({error!r})",
                          path / "features.json") from None
        if not any(leaf.is_step_feature for leaf in leaves):
            raise UserError("there are no steps with features", where=path / "features.json",
                            hint="RLDS data sets have a feature steps; convert others with their own library")
        self._splits = _shards(path, self._info)
        files = [file for _, shards in self._splits for file, _ in shards]
        if left := unlisted_files(path, files):
            warnings.append(f"{', '.join(left[:4])}{', ...' if len(left) > 4 else ''}: not named by dataset_info.json, "
                            "and left out")
        self.key = cache.files_digest([path / "features.json", *files], "rlds", final_step)
        self._maps_of: dict[Path, mmap.mmap] = {}
        self._checked: set[int] = set()
        self._held: tuple[int, dict[str, _Values]] = (-1, {})
        self._locations: list[tuple[Path, int, int, int, str]] = []  # file, number in it, first byte, bytes, split
        for split, shards in self._splits:
            for file, said in shards:
                self._scan(file, said, split)
        if not self._locations:
            raise damaged("there are no episodes", path)
        self._count(leaves)
        self._assign_features(leaves, warnings)
        self._doubts(warnings, tuple(_described(document, "")))
        self.metadata = metadata("rlds", path, warnings, str(self._info.get("version", "")))

    # -- where the records are --------------------------------------------------------------------------------------

    def _map(self, file: Path):
        if file not in self._maps_of:
            with open(file, "rb") as handle:
                self._maps_of[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps_of[file]

    def _scan(self, file: Path, said: int | None, split: str):
        size, at, number = file.stat().st_size, 0, 0
        data = self._map(file) if size else b""
        while at < size:
            where = f"{file}, record {number}"
            if size - at < 16:
                raise damaged(f"the file is cut short: it ends after {size - at} bytes of the record", where)
            length, crc = struct.unpack_from("<QI", data, at)
            if masked_crc32c(data[at: at + 8]) != crc:
                if at == 0 and data[:2] == b"\x1f\x8b":
                    raise UserError("the file is compressed with gzip", where=where, hint="unpack the file (gunzip)")
                raise damaged("the checksum of the record's length is wrong", where)
            if length > size - at - 16:
                raise damaged(f"the file is cut short: {size - at - 16} of {length} bytes of the record", where)
            self._locations.append((file, number, at + 12, length, split))
            at, number = at + 16 + length, number + 1
        if said is not None and number != said:
            raise damaged(f"it has {number} records, but dataset_info.json says {said}", file)

    def _record(self, episode: int) -> dict[str, _Values]:
        """What is in a record, by key; its checksum is right."""
        if self._held[0] == episode:
            return self._held[1]
        file, _, at, length, _ = self._locations[episode]
        data = self._map(file)
        if episode not in self._checked:
            if masked_crc32c(_pieces(data, at, length)) != struct.unpack_from("<I", data, at + length)[0]:
                raise damaged("the checksum of the record is wrong", self._where(episode))
            self._checked.add(episode)
        self._held = episode, self._unchecked_record(episode)
        return self._held[1]

    def _unchecked_record(self, episode: int) -> dict[str, _Values]:
        """What is in a record, by key, without its checksum: for what looks into all records and reads little."""
        file, _, at, length, _ = self._locations[episode]
        return _example(self._map(file), at, at + length, self._where(episode))

    def _where(self, episode: int, key: str = "") -> str:
        file, number, *_ = self._locations[episode]
        return f"{file}, record {number}" + (f", {key}" if key else "")

    def _count(self, leaves):
        """Steps of each record, from a feature that has one value a step, without reading the others."""
        fixed = [leaf for leaf in leaves if leaf.is_step_feature and leaf.size > 0]
        leaf = min(fixed, key=lambda f: (f.key != "steps/is_first", f.kind != "tensor", f.size))
        steps = []
        for e in range(len(self._locations)):
            values = self._unchecked_record(e).get(leaf.key)
            count = 0 if values is None else len(values.parts() if leaf.kind != "tensor" or leaf.encoding != "none"
                                                 else values.numbers())
            each = 1 if leaf.kind != "tensor" or leaf.encoding != "none" else leaf.size
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
        self._ends = any(leaf.key == "steps/is_terminal" for leaf in leaves)
        for leaf in leaves:
            if not leaf.is_step_feature or leaf.key in ("steps/is_first", "steps/is_last"):
                continue
            if leaf.kind == "image":
                leaf = self._camera(leaf, warnings)
                if leaf is None:
                    continue
            if leaf.column == "task" and "task" in keys:
                warnings.append(f"{leaf.key} is left out: task is {keys['task']}")
                continue
            add_column(keys, leaf.column, leaf.key, self.path / "features.json")
            self.schema[leaf.column], self._leaf[leaf.column] = leaf.feature, leaf
        if self._ends:
            self.schema["next.terminated"] = self.schema["next.truncated"] = Feature("bool", ())
        self.row_counts = {n: self.lengths + (self._shift and n.startswith("observation.")) for n in self.schema}

    def _camera(self, leaf: TfdsFeature, warnings) -> TfdsFeature | None:
        """With its size, from the first frame where features.json does not say. Cameras that were absent in all
        episodes are left out; in some, their frames are black."""
        there, first = [], None
        for e in range(len(self._locations)):
            values = self._unchecked_record(e).get(leaf.key)
            frame = b"" if values is None else values.first()
            there.append(bool(frame))
            first = first or (frame and (e, frame))
        if first is None or not first:
            warnings.append(f"{leaf.key} is left out: it has no image in any episode")
            return None
        if not all(there):
            missing = [e for e, yes in enumerate(there) if not yes]
            warnings.append(f"{leaf.key} has no image in episodes {format_list(missing)}: its frames there are black")
        if -1 not in leaf.shape and len(leaf.shape) == 3:
            return leaf
        channels = leaf.shape[2] if len(leaf.shape) == 3 and leaf.shape[2] > 0 else 3
        image = video.decode_image(first[1], channels, f"{self._where(first[0], leaf.key)}, frame 0")
        return TfdsFeature(leaf.key, "image", leaf.dtype, image.shape)

    def _doubts(self, warnings, described):
        """What the flags, the last actions and the names of what is recorded say."""
        odd, still, moved, keys = [], True, False, set()
        actions = [self._leaf[n] for n in self.schema if n.split(".")[0] == "action" and n in self._leaf
                   and self._leaf[n].encoding == "none" and self._leaf[n].kind == "tensor"]
        for e in range(len(self._locations)):
            found = self._unchecked_record(e)
            keys |= found.keys()
            last = int(self._steps[e]) - 1
            for key, row in (("steps/is_first", 0), ("steps/is_last", last)):
                flags = found[key].numbers() if key in found else None
                if flags is not None and len(flags) and np.flatnonzero(flags).tolist() != [row]:
                    odd.append(e)
            for leaf in actions:
                values = found[leaf.key].numbers() if leaf.key in found else np.zeros(0)
                tail = values[-leaf.size:]
                still &= bool(((tail == 0) | np.isnan(tail)).all())
                moved |= bool(np.any(values[:-leaf.size] != 0))
        if unknown := sorted(k for k in keys if not any(f"{k}/".startswith(f"{d}/") for d in described)):
            warnings.append(f"features.json does not describe {format_list(unknown)}, which the records hold: left out")
        if odd:
            warnings.append(
                f"is_first or is_last are not those of the first and last step in episodes {format_list(odd)}"
            )
        if actions and still and moved and not self._shift:
            warnings.append("the last action of every episode is zero: if the last step holds only what was seen last, "
                            "as RLDS has it, open it with open_dataset(path, final_step='observation')")

    # -- reading ----------------------------------------------------------------------------------------------------

    def iter_chunks(self):
        for e in range(len(self.lengths)):
            self._record(e)
            for name in self.numeric_columns:
                yield name, int(self._first[name][e]), self._numbers(name, e)

    def _numbers(self, name, e) -> np.ndarray:
        if name in ("next.terminated", "next.truncated") and self._ends:
            ends = self._tensor(self._terminal, e).astype(bool)
            ends = np.append(ends[:-2], ends[-1]) if self._shift else ends  # the last step says how it ended
            if name == "next.truncated":
                return (np.arange(len(ends)) == len(ends) - 1) & ~ends
            return ends
        values = self._tensor(self._leaf[name], e)
        return values[: int(self.rows(name)[e])]

    @cached_property
    def _terminal(self) -> TfdsFeature:
        return TfdsFeature("steps/is_terminal", "tensor", "bool")

    def _tensor(self, leaf: TfdsFeature, e: int) -> np.ndarray:
        """(steps of the record, *shape)."""
        return _tensor(leaf, self._record(e).get(leaf.key), int(self._steps[e]), self._where(e, leaf.key))

    def read_text(self, name, episode):
        leaf, rows = self._leaf[name], int(self.rows(name)[episode])
        texts = self._texts(leaf, episode)[:rows]
        if len(set(texts)) == 1:
            return np.broadcast_to(np.array(texts[:1], np.str_), (rows,))
        return np.array(texts, np.str_)

    def _texts(self, leaf, e) -> list[str]:
        parts = self._parts(leaf, e)
        try:
            return [p.decode() for p in parts]
        except UnicodeDecodeError as error:
            raise damaged(f"the text is not UTF-8: {error.object[:20]!r}", self._where(e, leaf.key)) from None

    def _parts(self, leaf, e) -> list[bytes]:
        values = self._record(e).get(leaf.key)
        parts = [] if values is None else values.parts()
        if len(parts) != self._steps[e]:
            raise damaged(f"there are {len(parts)} values for {self._steps[e]} steps", self._where(e, leaf.key))
        return parts

    def frames(self, name, episode):
        leaf, shape = self._leaf[name], self.schema[name].shape
        if leaf.kind != "image":
            yield from enumerate(self._tensor(leaf, episode)[: int(self.rows(name)[episode])])
            return
        for row, data in enumerate(self._parts(leaf, episode)[: int(self.rows(name)[episode])]):
            where = f"{self._where(episode, leaf.key)}, frame {row}"
            image = video.decode_image(data, shape[2], where) if data else np.zeros(shape, np.uint8)
            if image.shape != shape:
                raise damaged(f"the image has the shape {image.shape} instead of {shape}", where)
            yield row, image

    def location(self, name, episode):
        return self._where(episode, self._leaf[name].key if name in self._leaf else name)

    def episode_metadata(self, episode):
        facts: dict[str, Any] = {"split": self._locations[episode][-1]} if len(self._splits) > 1 else {}
        for leaf in self._meta_leaves:
            values = self._record(episode).get(leaf.key)
            name = leaf.key.removeprefix("episode_metadata/").replace("/", ".")
            if leaf.kind == "text":
                parts = [] if values is None else values.parts()
                facts[name] = parts[0].decode(errors="replace") if parts else ""
            elif values is not None:
                facts[name] = _tensor(leaf, values, 1, self._where(episode, leaf.key))[0].tolist()
        return facts


def _tensor(leaf: TfdsFeature, values: _Values | None, rows: int, where: str) -> np.ndarray:
    dtype = np.dtype(leaf.dtype)
    try:
        if leaf.encoding == "none":
            found = np.zeros(0, dtype) if values is None else values.numbers().astype(dtype)
        else:
            unpack = zlib.decompress if leaf.encoding == "zlib" else bytes
            data = b"".join(unpack(p) for p in ([] if values is None else values.parts()))
            found = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    except (zlib.error, ValueError) as error:
        raise damaged(f"the numbers cannot be read ({error})", where) from None
    if len(found) != rows * leaf.size:
        raise damaged(f"there are {len(found)} numbers instead of {rows} times {leaf.size}", where)
    return found.reshape(rows, *leaf.shape)


# -- features.json and dataset_info.json ----------------------------------------------------------------------------


def _leaves(node: Mapping, key: str, warnings: list[str]) -> Iterator[TfdsFeature]:
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
            warnings.append(f"{key} is left out: {dtype} {shape} {encoding} has no one shape of numbers")
        elif np.dtype(dtype).name != dtype:  # NumPy takes short names too, "?" for one
            raise ValueError(f"{key} of dtype {dtype!r}")
        else:
            yield TfdsFeature(key, "tensor", dtype, shape, encoding)
    elif "image" in node:
        image = node["image"]
        if image.get("dtype", "uint8") != "uint8" or image.get("encodingFormat", "png") not in ("png", "jpeg", ""):
            warnings.append(f"{key} is left out: images of {image.get('dtype')} {image.get('encodingFormat')} are not "
                            "read")
        else:
            yield TfdsFeature(key, "image", "uint8", _shape(image) or (-1, -1, 3))
    elif "text" in node:
        yield TfdsFeature(key, "text")
    elif "classLabel" in node:
        count = int(node["classLabel"].get("numClasses") or 0)
        yield TfdsFeature(key, "tensor", "int64", (), num_classes=count or None)
    else:
        kind = next((k for k in node if k != "pythonClassName"), "nothing")
        warnings.append(f"{key} is left out: a feature of kind {kind} has no fixed shape a step")


def _described(node: Mapping, key: str) -> Iterator[str]:
    """The keys of all features, of those that are left out too."""
    if "featuresDict" in node:
        for name, child in (node["featuresDict"].get("features") or {}).items():
            yield from _described(child, f"{key}/{name}" if key else name)
    elif key == "steps":
        yield from _described(node["sequence"]["feature"], key)
    else:
        yield key


def _shape(node) -> tuple[int, ...]:
    return tuple(int(n) for n in (node.get("shape") or {}).get("dimensions", ()))


def _shards(path: Path, info: Mapping) -> list[tuple[str, list[tuple[Path, int | None]]]]:
    """(split, its files with the number of records that each should have)."""
    where, kind = path / "dataset_info.json", info.get("fileFormat") or "tfrecord"
    if kind != "tfrecord":
        raise UserError(f"files of format {kind} are not read, only tfrecord", where=where,
                        hint="tfds convert_format --dataset_dir=SRC --out_file_format=tfrecord --out_path=DST")
    splits = info.get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(s, dict) for s in splits):
        raise damaged("there are no splits", where)
    name, out = str(info.get("name") or path.parent.name), []
    for split in splits:
        try:
            files = shard_files(path, name, split)
        except (TypeError, ValueError):
            raise damaged(f"these are not numbers of records: {split.get('shardLengths')}",
                          f"{where}, shardLengths") from None
        for i, (file, _) in enumerate(files):
            if not file.is_file():
                raise damaged(f"shard {i} of split {split.get('name')} is missing", file)
        out.append((str(split.get("name")), files))
    return out


def shard_files(path: Path, name: str, split: Mapping, kind: str = "tfrecord") -> list[tuple[Path, int]]:
    """The files that a split has, by its template, with the number of records that each should have."""
    said, files = [int(n) for n in split.get("shardLengths") or ()], []
    for i, count in enumerate(said):
        template = str(split.get("filepathTemplate") or SHARD_TEMPLATE)
        tokens = {"{DATASET}": name, "{SPLIT}": str(split.get("name")), "{FILEFORMAT}": kind,
                  "{SHARD_X_OF_Y}": f"{i:05d}-of-{len(said):05d}", "{SHARD_INDEX}": f"{i:05d}",
                  "{NUM_SHARDS}": f"{len(said):05d}"}
        for token, text in tokens.items():
            template = template.replace(token, text)
        files.append((path / Path(template).name, count))
    return files


def unlisted_files(path: Path, files: Iterable[Path]) -> list[str]:
    """Files of records in the folder that are none of these."""
    return sorted({p.name for p in path.glob("*.tfrecord*")} - {f.name for f in files})


# -- tf.train.Example, by the encoding of Protocol Buffers ----------------------------------------------------------


class _Values:
    """One list of an Example: where its bytes are."""

    def __init__(self, data, at: int, end: int, where: str):
        self._data, self._at, self._end, self._where = data, at, end, where

    @cached_property
    def _list(self) -> tuple[int, int, int]:
        """(kind, first byte, end): 1 bytes, 2 float32, 3 int64; 0 for none."""
        found = (0, 0, 0)
        for field, wire, at, end in _fields(self._data, self._at, self._end, self._where):
            if field in (1, 2, 3) and wire == 2:
                found = field, at, end
        return found

    def parts(self) -> list[bytes]:
        kind, at, end = self._list
        if kind not in (0, 1):
            raise damaged("these are numbers, not text or bytes", self._where)
        return [self._data[a:b] for f, w, a, b in _fields(self._data, at, end, self._where) if (f, w) == (1, 2)]

    def first(self) -> bytes:
        kind, at, end = self._list
        ranges = _fields(self._data, at, end, self._where) if kind == 1 else ()
        return next((self._data[a:b] for _, _, a, b in ranges), b"")

    def numbers(self) -> np.ndarray:
        """float32 or int64, packed (as everybody writes them) or one by one."""
        kind, at, end = self._list
        if kind == 1:
            raise damaged("this is text or bytes, not numbers", self._where)
        out = []
        for field, wire, a, b in _fields(self._data, at, end, self._where):
            if field == 1 and wire == 2:
                out.append(self._floats(a, b) if kind == 2 else _varints(self._data[a:b], self._where))
            elif field == 1 and (kind, wire) == (2, 5):
                out.append(self._floats(a, b))
            elif field == 1 and (kind, wire) == (3, 0):
                out.append(_varints(self._data[a:b], self._where))
        return np.concatenate(out) if out else np.zeros(0, np.float32 if kind == 2 else np.int64)

    def _floats(self, at, end):
        if (end - at) % 4:
            raise _broken(self._where)
        return np.frombuffer(self._data, "<f4", (end - at) // 4, at)


def _example(data, at: int, end: int, where: str) -> dict[str, _Values]:
    out = {}
    for field, wire, a, b in _fields(data, at, end, where):
        if (field, wire) != (1, 2):
            continue
        for entry, kind, c, d in _fields(data, a, b, where):
            if (entry, kind) != (1, 2):
                continue
            key, value = "", (0, 0)
            for f, w, e, g in _fields(data, c, d, where):
                if (f, w) == (1, 2):
                    key = data[e:g].decode(errors="replace")
                elif (f, w) == (2, 2):
                    value = e, g
            out[key] = _Values(data, *value, f"{where}, {key}")
    return out


def _fields(data, at: int, end: int, where: str) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, first byte, end) of each field of a message; a varint's bytes are given as they are."""
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
    """(n,) int64 of packed variable-length numbers: seven bits a byte, the last byte of each below 128."""
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


def _pieces(data, at: int, length: int) -> Iterator[bytes]:
    for begin in range(at, at + length, 1 << 20):
        yield data[begin: min(begin + (1 << 20), at + length)]


def masked_crc32c(pieces: bytes | Iterable[bytes]) -> int:
    """The checksum of tfrecord: CRC-32C (Castagnoli), rotated by 15 bits, plus a constant."""
    try:
        import google_crc32c
    except ImportError:
        raise UserError("reading tfrecord needs the package google-crc32c, which is not installed",
                        hint="pip install 'understudy[formats]'") from None
    crc = 0
    for piece in [pieces] if isinstance(pieces, bytes) else pieces:
        crc = google_crc32c.extend(crc, piece)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# -- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StoragePlan:
    """How data are stored.

    Attributes:
        leaves: The feature of each column. is_first and is_last are added.
        metadata: The feature of each key of the metadata of episodes.
        has_end_flags: Whether is_terminal stores next.terminated and next.truncated.
    """

    leaves: Mapping[str, TfdsFeature]
    metadata: Mapping[str, TfdsFeature]
    has_end_flags: bool

    def document(self) -> dict:
        tree: dict[str, Any] = {}
        for leaf in (
            *self.leaves.values(),
            *(TfdsFeature(f"steps/{k}", "tensor", "bool") for k in ("is_first", "is_last")),
            *self.metadata.values(),
        ):
            *groups, name = leaf.key.split("/")
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = leaf
        return _group(tree)


def _group(tree: Mapping) -> dict:
    features = {}
    for name, node in tree.items():
        if isinstance(node, TfdsFeature):
            features[name] = _leaf(node)
        elif name == "steps":
            features[name] = {"pythonClassName": _CLASSES + "dataset_feature.Dataset",
                              "sequence": {"feature": _group(node), "length": "-1"}}
        else:
            features[name] = _group(node)
    return {"pythonClassName": _CLASSES + "features_dict.FeaturesDict", "featuresDict": {"features": features}}


def _leaf(leaf: TfdsFeature) -> dict:
    shape = {"dimensions": [str(n) for n in leaf.shape]} if leaf.shape else {}
    if leaf.kind == "text":
        return {"pythonClassName": _CLASSES + "text_feature.Text", "text": {}}
    if leaf.kind == "image":
        return {"pythonClassName": _CLASSES + "image_feature.Image",
                "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"}}
    return {"pythonClassName": _CLASSES + "tensor_feature.Tensor",
            "tensor": {"shape": shape, "dtype": leaf.dtype, "encoding": leaf.encoding}}


def capability(data: Dataset) -> FormatCapability:
    plan = _plan(data)
    columns = {n: ColumnEncoding(leaf.column, "string" if leaf.kind == "text" else leaf.dtype, leaf.shape)
               for n, leaf in plan.leaves.items()}
    if plan.has_end_flags:
        columns["next.truncated"] = ColumnEncoding("next.truncated", "bool", ())
    read = [leaf.column for leaf in _leaves(plan.document(), "", []) if leaf.is_step_feature
            and leaf.key not in ("steps/is_first", "steps/is_last")]
    reads = read + ["next.truncated"] if plan.has_end_flags or "next.terminated" in read else read
    return FormatCapability(columns, metadata_keys=frozenset(plan.metadata), read_columns=tuple(reads))


def _plan(data: Dataset) -> _StoragePlan:
    features = data.features()
    ends = _ends(data, features)
    leaves = {}
    plain = {n: f for n, f in features.items() if n not in ("next.terminated", "next.truncated", "action")
             and not n.startswith("action.") and f.size and (f.kind != "string" or not f.shape)
             and is_plain_flag(data, n)}

    def leaf(name, f, key):
        if f.kind == "string":
            return TfdsFeature(key, "text")
        if f.kind == "image" and f.shape[2] in (1, 3, 4) and name.startswith("observation."):
            return TfdsFeature(key, "image", "uint8", f.shape)
        return TfdsFeature(key, "tensor", f.dtype, f.shape, "none" if f.dtype in _AS_LISTS else "bytes")

    def path(name, short):
        if name.startswith("observation."):
            return f"steps/observation/{short}"
        return f"steps/{'language_instruction' if name == 'task' else short}"

    actions = {n: f for n, f in features.items() if n.startswith("action.") and f.size and f.kind != "string"}
    if "action" in features and features["action"].size and features["action"].kind != "string":
        actions = {"action": features["action"]}
    for name, f in actions.items():
        if re.fullmatch(r"action(\.[\w\-][\w.\-]*)?", name):
            leaves[name] = leaf("action", f, "steps/" + name.replace(".", "/", 1))
    reserved = {"is_first", "is_last", "is_terminal", "action", "observation"}
    for group in (True, False):  # those of observations have a namespace of their own
        some = {n: f for n, f in plain.items() if n.startswith("observation.") == group}
        for name, short in shortest_keys(some, lambda key, f, g=group: _read_as(key, f, g, leaf)).items():
            made = leaf(name, some[name], path(name, short))
            taken = {"next.terminated", "next.truncated", *(at.column for at in leaves.values())}
            if made.column not in taken and (group or short not in reserved):
                leaves[name] = made
    if ends:
        leaves["next.terminated"] = TfdsFeature("steps/is_terminal", "tensor", "bool")
    return _StoragePlan({n: leaves[n] for n in features if n in leaves}, _metadata_features(data), ends)


def _read_as(key, f, observed, leaf) -> str:
    prefix = "steps/observation/" if observed else "steps/"
    name = "observation." if observed else ""
    return leaf(name, f, prefix + ("language_instruction" if key == "task" else key)).column


def _ends(data, features) -> bool:
    """Whether the flags are those that RLDS can say: an episode that did not terminate was truncated at its end."""
    names = ("next.terminated", "next.truncated")
    if not all(n in features and (features[n].dtype, features[n].shape) == ("bool", ()) for n in names):
        return False
    return all(np.array_equal(np.asarray(e.steps[names[1]])[: len(e)],
                              (np.arange(len(e)) == len(e) - 1) & ~np.asarray(e.steps[names[0]])[: len(e)])
               for e in data)


def _metadata_features(data: Dataset) -> dict[str, TfdsFeature]:
    """Facts that all episodes have, as one kind of plain value."""
    first, out = dict(data[0].metadata), {}
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
    for key, value in first.items():
        kind = kinds.get(type(value))
        if kind is None or key == "split" or not re.fullmatch(r"\w+", key) or not all(
                type(e.metadata.get(key)) is type(value) for e in data):
            continue
        if kind == "int64" and not all(-2**63 <= e.metadata[key] < 2**63 for e in data):
            continue
        path = f"episode_metadata/{key}"
        out[key] = TfdsFeature(path, "text") if kind == "string" else TfdsFeature(
            path, "tensor", kind, (), "bytes" if kind == "float64" else "none")
    return out


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
        lengths = data.lengths
        try:
            for e, episode in enumerate(data):
                if out is None or out.tell() >= _SHARD:
                    if out is not None:
                        out.close()
                    out = open(part / f"{len(counts)}.tfrecord", "wb")  # noqa: SIM115
                    counts.append(0)
                record = _encode(plan, episode, int(lengths[e]))
                head = struct.pack("<Q", len(record))
                out.write(
                    head + struct.pack("<I", masked_crc32c(head)) + record + struct.pack("<I", masked_crc32c(record))
                )
                counts[-1], size = counts[-1] + 1, size + len(record) + 16
        finally:
            if out is not None:
                out.close()
        for i in range(len(counts)):
            (part / f"{i}.tfrecord").rename(part / f"{name}-train.tfrecord-{i:05d}-of-{len(counts):05d}")
        write_json(part / "features.json", plan.document())
        write_json(part / "dataset_info.json", {
            "name": name, "version": "1.0.0", "description": "Written by understudy.", "fileFormat": "tfrecord",
            "splits": [{"name": "train", "numBytes": str(size), "shardLengths": [str(n) for n in counts],
                        "filepathTemplate": SHARD_TEMPLATE}]})


def _encode(plan: _StoragePlan, episode, length: int) -> bytes:
    entries = {}
    for name, leaf in plan.leaves.items():
        entries[leaf.key] = _list_of(leaf, np.asarray(episode.steps[name])[:length])
    for key, row in (("is_first", 0), ("is_last", length - 1)):
        entries[f"steps/{key}"] = _ints(np.arange(length) == row)
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
    """(n,) uint64 as variable-length numbers."""
    sevens = values[:, None] >> np.arange(0, 70, 7, dtype=np.uint64)
    count = np.maximum((sevens > 0).sum(1), 1)
    used = np.arange(10) < count[:, None]
    more = np.where(np.arange(10) < count[:, None] - 1, 128, 0)
    return ((sevens & np.uint64(127)).astype(np.uint8) | more.astype(np.uint8))[used].tobytes()


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _packed(np.array([len(content)], np.uint64)) + content
