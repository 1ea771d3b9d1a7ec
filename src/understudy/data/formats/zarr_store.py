"""Reader and writer of zarr stores like the replay buffers of diffusion_policy (formats 2 and 3; written in 2).

The group data/ has arrays over all steps of all episodes, and meta/episode_ends the exclusive ends. A store is a folder
or a .zip file. A missing chunk reads as the fill value. Writers leave out chunks that have no other value, and a lost
file looks the same, so `ZarrSource` counts missing chunks.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError
from .. import cache
from ..episode import Dataset
from ..sources import MemmapSource
from .parts import read_errors, sidecar
from .parts.column_names import FLAG_COLUMNS, format_list, is_plain_flag, shortest_keys, standard_name, text_column
from .parts.key_map import add_column, encoded_image_feature, is_metadata, lengths_from_ends, metadata
from .parts.npz_arrays import column_pieces, split_rows, stored_dtype
from .parts.read_errors import damaged
from .parts.sidecar import ColumnEncoding, FormatCapability

_CHUNK = 2_000_000  # bytes, before compression: diffusion_policy's own size
_CODECS = {"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "crc32", "crc32c", "adler32",
           "fletcher32", "fixedscaleoffset", "quantize", "packbits", "bitround", "vlen-utf8", "bytes", "transpose",
           "sharding_indexed"}  # codecs that decode bytes; "pickle" would run what is in the file
_CHUNK_NAME = re.compile(r"c|(c/)?\d+([./]\d+)*")


class ZarrSource(MemmapSource):
    """Reader of a zarr store in a folder or a .zip file."""

    flags = frozenset(FLAG_COLUMNS)

    def __init__(self, path: Path):
        self.path = path
        self._files = _files(path)
        self.key = cache.json_digest("zarr", str(path.resolve()), sorted(self._files.items()))
        warnings: list[str] = []
        self._arrays, self._small = {}, {}
        self._codecs: dict[str, list[str]] = {}
        for key in self._keys():
            document = self._json(f"data/{key}")
            if unread := unknown_codecs(document):
                warnings.append(f"data/{key} is left out: it is stored with {unread}, which cannot be read here")
                continue
            self._codecs[key] = codec_names(document)
            self._arrays[key] = self._array(f"data/{key}", f"{path}, data/{key}")
        self.lengths = self._episode_lengths()
        self._last: dict[str, tuple[int, np.ndarray]] = {}  # number and frames of the last chunk read of each camera
        self._assign_arrays(warnings)
        self.row_counts = dict.fromkeys(self.schema, self.lengths)
        self.metadata = metadata("zarr", path, warnings, str(self._version))

    # -- what is there ----------------------------------------------------------------------------------------------

    @cached_property
    def _version(self) -> int:
        return 3 if "zarr.json" in self._files else 2

    def _keys(self) -> list[str]:
        name = "zarr.json" if self._version == 3 else ".zarray"
        inside = [p.split("/") for p in self._files if p.startswith("data/")]
        keys = [p[1] for p in inside if p[2:] == [name]]
        deeper = sorted({p[1] for p in inside if len(p) > 3 and p[-1] == name} - set(keys))
        if deeper or not keys:
            groups = f"{format_list(deeper)} (groups)" if deeper else "none"
            raise UserError(f"the group data/ must have arrays, but has {groups}", where=self.path,
                            hint="a replay buffer has one array a column there")
        if undescribed_keys := sorted({p[1] for p in inside if len(p) > 2} - set(keys)):
            raise damaged(f"the file {name}, which describes the chunks, is missing",
                          f"{self.path}, data/{undescribed_keys[0]}")
        return sorted(k for k in keys if self._version == 2 or self._json(f"data/{k}").get("node_type") == "array")

    def _json(self, node) -> dict:
        name = f"{node}/{'zarr.json' if self._version == 3 else '.zarray'}"
        if name not in self._files:
            raise UserError(f"there is no array {node}", where=self.path,
                            hint="a replay buffer has data/ with one array a column, and meta/episode_ends")
        try:
            document = json.loads(self._bytes(name))
        except ValueError as error:
            raise damaged(f"this is not JSON ({error})", f"{self.path}, {name}") from None
        if not isinstance(document, dict):
            raise damaged(f"this is not a JSON object but a {type(document).__name__}", f"{self.path}, {name}")
        return document

    def _bytes(self, name) -> bytes:
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        with zarr_errors(f"{self.path}, {name}"), zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    @cached_property
    def _store(self):
        zarr = _zarr()
        with zarr_errors(self.path):
            if self.path.is_dir():
                return zarr.storage.LocalStore(self.path, read_only=True)
            return zarr.storage.ZipStore(self.path, mode="r")

    def _array(self, node, where):
        with zarr_errors(where):
            return _zarr().open_array(self._store, path=node, mode="r", zarr_format=self._version)

    def _episode_lengths(self) -> np.ndarray:
        location = f"{self.path}, meta/episode_ends"
        if unread := unknown_codecs(self._json("meta/episode_ends")):
            raise damaged(f"it is stored with {unread}, which cannot be read here", location)
        array = self._array("meta/episode_ends", location)
        if self._absent("meta/episode_ends", array):
            raise damaged("a chunk of it is missing", location)
        with zarr_errors(location):
            ends = np.asarray(array[:])
        hint = "correct episode_ends, the exclusive ends of the episodes, or take the store from a copy"
        lengths = lengths_from_ends(ends, location, hint)
        for key, data in list(self._arrays.items()):
            rows = data.shape[0] if data.ndim else 0
            if is_metadata(standard_name(key), data.shape, (int(ends[-1]),)):
                self._small[key] = self._arrays.pop(key)
            elif rows != int(ends[-1]):
                raise UserError(f"it has {rows} rows, but meta/episode_ends ends with {ends[-1]}",
                                where=f"{self.path}, data/{key}", hint=hint)
        return lengths

    def _assign_arrays(self, warnings):
        self.schema: dict[str, Feature] = {}
        self._from: dict[str, str] = {}
        self._pixels: set[str] = set()  # cameras stored as float
        for key, array in self._arrays.items():
            if 0 in array.shape[1:] or array.dtype.kind not in "biufUTO":
                warnings.append(f"data/{key} is left out: {array.dtype} {array.shape} holds neither numbers nor text")
                continue
            feature, pixels = self._feature(key, array)
            name = column_name(key, feature)
            add_column(self._from, name, key, self.path)
            if pixels:
                self._pixels.add(name)
                warnings.append(f"data/{key}: {array.dtype} pixels from 0 to 255 are read as uint8")
            self.schema[name] = feature
            if absent := self._absent(f"data/{key}", array):
                warnings.append(f"data/{key}: {absent} chunks are not there and read as {array.fill_value}: "
                                "they held nothing else, or are lost")
        if not any(n.split(".")[0] == "action" for n in self.schema):
            warnings.append(f"no array is called action; there are {format_list(self._from.values(), 12)}")
        if not any(n.startswith("observation.") for n in self.schema) and not warnings:
            warnings.append("nothing was observed")

    def _feature(self, key, array) -> tuple[Feature, bool]:
        if array.dtype.kind in "UTO":
            return Feature("string", tuple(array.shape[1:]), "string"), False
        if array.dtype == np.uint8 and array.ndim == 2:
            location = f"{self.path}, data/{key}"
            with zarr_errors(location):
                first = np.asarray(array[:16])
            if encoded := encoded_image_feature(first, location):
                return encoded, False
        feature = Feature.from_array(np.empty((0, *array.shape[1:]), array.dtype.newbyteorder("=")))
        if array.dtype.kind != "f" or array.ndim != 4 or array.shape[3] not in (1, 3, 4) or not _looks_like_image(key):
            return feature, False
        with zarr_errors(f"{self.path}, data/{key}"):
            first = np.asarray(array[:1])
        pixels = bool((first == first.astype(np.uint8)).all()) and first.max() > 1
        return (Feature("uint8", feature.shape, "image"), True) if pixels else (feature, False)

    def _absent(self, node, array) -> int:
        """Returns the number of chunks (or shards) of an array that are missing in the store."""
        edges = array.shards or array.chunks
        n_chunks = int(np.prod([-(-n // c) for n, c in zip(array.shape, edges, strict=True)]))
        n_present = sum(p.startswith(f"{node}/") and bool(_CHUNK_NAME.fullmatch(p[len(node) + 1:]))
                        for p in self._files)
        return max(n_chunks - n_present, 0)

    # -- reading ----------------------------------------------------------------------------------------------------

    def iter_chunks(self):
        for name in self.numeric_columns:
            key, array = self._from[name], self._arrays[self._from[name]]
            rows = array.chunks[0] * max(1, (1 << 24) // max(1, array.chunks[0] * self.schema[name].size * 8))
            for row in range(0, array.shape[0], rows):
                yield name, row, self._rows(key, row, min(row + rows, array.shape[0]))

    def _rows(self, key, begin, end) -> np.ndarray:
        self._check_blosc(key, begin, end)
        with zarr_errors(f"{self.path}, data/{key}, rows {begin} to {end - 1}"):
            return np.asarray(self._arrays[key][begin:end])

    def _check_blosc(self, key, begin, end):
        """Checks the declared length of a chunk before it is decoded."""
        codecs = self._codecs[key]
        if not self.path.is_dir() or codecs[-1:] != ["blosc"]:  # zip files have checksums
            return
        size = self._arrays[key].chunks[0]
        for chunk in range(begin // size, -(-end // size)):
            for name in self._chunks[key].get(chunk, ()):
                with open(self.path / name, "rb") as handle:
                    head, length = handle.read(16), self._files[name][0]
                if len(head) < 16 or int.from_bytes(head[12:16], "little") != length:
                    raise damaged(f"the chunk has {length} bytes, which is not the length in its header",
                                  self.path / name)

    @cached_property
    def _chunks(self) -> dict[str, dict[int, list[str]]]:
        """Files of each chunk of rows."""
        out: dict[str, dict[int, list[str]]] = {key: {} for key in self._arrays}
        for name in self._files:
            group, key, *chunk_path = (*name.split("/", 2), "")
            if group == "data" and key in out and _CHUNK_NAME.fullmatch(chunk_path[0]):
                first = re.split(r"[./]", chunk_path[0].removeprefix("c/"))[0]
                out[key].setdefault(int(first) if first.isdigit() else 0, []).append(name)
        return out

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """Reads the small arrays that have no row for each step, as metadata."""
        values = {}
        for key, array in self._small.items():
            with zarr_errors(f"{self.path}, data/{key}"):
                values[key] = np.asarray(array[...]).tolist()
        return values

    def episode_metadata(self, episode):
        return self._metadata

    def location(self, name, episode):
        return f"{self.path}, data/{self._from[name]}, episode {episode}"

    def read_text(self, name, episode):
        begin = int(self._first[name][episode])
        return text_column(self._rows(self._from[name], begin, begin + int(self.lengths[episode])))

    def frames(self, name, episode):
        key, begin = self._from[name], int(self._first[name][episode])
        chunk, end = self._arrays[key].chunks[0], begin + int(self.lengths[episode])
        for row in range(begin, end):
            if name not in self._last or row // chunk != self._last[name][0]:
                first = row // chunk * chunk
                frames = self._rows(key, first, min(first + chunk, int(self.lengths.sum())))
                self._last[name] = row // chunk, frames
            number, frames = self._last[name]
            image = frames[row - number * chunk]
            if image.ndim == 1:  # PNG or JPEG bytes
                image = self.cast_to_schema(image[None], name, 1, row)[0]
            if name in self._pixels:
                whole = np.clip(np.nan_to_num(image), 0, 255).astype(np.uint8)
                if not (whole == image).all():
                    raise UserError("pixels must be whole numbers from 0 to 255, as in the first frame, but are from "
                                    f"{image.min()} to {image.max()}",
                                    where=f"{self.path}, data/{key}, row {row}",
                                    hint="store pixels as uint8, or under a name that is not one of a camera")
                image = whole
            yield row - begin, image


def column_name(key: str, feature: Feature) -> str:
    """Returns the column of an array. An array with an unknown name is an observation."""
    return standard_name(key, feature.kind, "observation.")


def unknown_codecs(document: dict) -> str:
    """Returns the codecs of an array that are not supported. Empty if there are none."""
    return format_list(n for n in codec_names(document) if n not in _CODECS)


def codec_names(document: dict) -> list[str]:
    """Returns the codecs of an array in the order in which they encode, including codecs inside shards."""
    filters = document.get("filters")
    codecs = [*(filters if isinstance(filters, list) else ()), document.get("compressor"),
              *_nested(document.get("codecs"))]
    named = [str(c.get("id") or c.get("name")) if isinstance(c, dict) else str(c) for c in codecs if c]
    return [n.removeprefix("numcodecs.") for n in named]


def _nested(codecs) -> Iterator[Any]:
    """Lists the codecs of a format 3 array, including codecs inside shards."""
    for codec in codecs if isinstance(codecs, list) else ():
        yield codec
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        for key in ("codecs", "index_codecs"):
            yield from _nested(inner.get(key) if isinstance(inner, dict) else None)


def _looks_like_image(key: str) -> bool:
    return any(part in key.lower() for part in ("img", "image", "rgb", "cam"))


def _files(path: Path) -> dict[str, tuple]:
    """Lists the files of the store by name: (size, time or checksum)."""
    if path.is_dir():
        return {p.relative_to(path).as_posix(): (s.st_size, s.st_mtime_ns) for p in path.rglob("*")
                if not p.is_dir() and p.name != sidecar.SIDECAR_NAME for s in [p.stat()]}
    with zarr_errors(path), zipfile.ZipFile(path) as archive:
        return {i.filename: (i.file_size, i.CRC) for i in archive.infolist() if not i.is_dir()}


def _zarr():
    return read_errors.import_optional("zarr", "reading zarr needs the package zarr", "formats")


def zarr_errors(where: object) -> AbstractContextManager[None]:
    """Turns any error that zarr and its codecs raise about damage into `UserError`. Returns a context manager."""
    return read_errors.as_user_error("the zarr array", where, passed_through=(ImportError, MemoryError), named=True)


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    features, names = data.features(), _names(data)
    columns = {name: ColumnEncoding(column_name(key, features[name]), features[name].dtype, features[name].shape)
               for name, key in names.items()}
    by_key = sorted(names, key=names.__getitem__)
    return FormatCapability(columns, read_columns=tuple(columns[name].name for name in by_key))


def _names(data: Dataset) -> dict[str, str]:
    kept = {n: f for n, f in data.features().items() if f.size and is_plain_flag(data, n) and not (
        f.kind == "vector" and f.dtype[:5] == "float" and len(f.shape) == 3 and _looks_like_image(n))}
    return shortest_keys(kept, column_name)


def write(data: Dataset, path: str | Path) -> None:
    """Writes a store in format 2, which the ReplayBuffer of diffusion_policy opens.

    Args:
        path: The new store: a zip file if the name ends with .zip, otherwise a folder.
    """
    path = Path(path)
    if path.suffix == ".zip":
        with (
                sidecar.new_file_with_sidecar(path, data, capability(data)) as part,
                zipfile.ZipFile(part, "w") as archive,
            ):
            _write(data, archive.writestr)
        return
    with sidecar.new_folder(path, data, capability(data)) as part:
        def put(name, content):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        _write(data, put)


def _write(data: Dataset, put: Callable[[str, bytes | str], None]) -> None:
    for group in ("", "data/", "meta/"):
        put(f"{group}.zgroup", '{"zarr_format": 2}')
    lengths, features = data.lengths, data.features()
    for name, key in _names(data).items():
        f, pieces = features[name], partial(column_pieces, data, name, lengths)
        dtype = stored_dtype(f, pieces).newbyteorder("<")
        rows = max(1, _CHUNK // max(f.size * dtype.itemsize, 1))
        _put_array(put, f"data/{key}", (int(lengths.sum()), *f.shape), dtype, rows, pieces())
    ends = np.cumsum(lengths)
    _put_array(put, "meta/episode_ends", ends.shape, np.dtype("<i8"), len(ends), iter([ends]))


def _put_array(put, node, shape, dtype, rows, pieces) -> None:
    """Writes an array in chunks of `rows` rows, the last one filled up, so that a missing chunk means damage."""
    _zarr()
    from numcodecs import Blosc

    codec, chunk = Blosc("lz4", 5, Blosc.SHUFFLE), (min(rows, shape[0]), *shape[1:])
    fill = "" if dtype.kind == "U" else False if dtype.kind == "b" else 0 if dtype.kind in "iu" else 0.0
    put(f"{node}/.zarray", json.dumps({
        "zarr_format": 2, "shape": shape, "chunks": chunk, "dtype": dtype.str, "compressor": codec.get_config(),
        "filters": None, "order": "C", "fill_value": fill}, indent=4))
    sizes = [min(chunk[0], shape[0] - row) for row in range(0, shape[0], max(chunk[0], 1))]
    for number, values in enumerate(split_rows(pieces, sizes)):
        if missing := chunk[0] - len(values):
            values = np.concatenate([values, np.zeros((missing, *chunk[1:]), dtype)])
        raw = np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8)  # as bytes: Blosc shuffles by item size
        put(f"{node}/{number}{'.0' * (len(shape) - 1)}", codec.encode(raw))
