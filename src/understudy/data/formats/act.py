"""The HDF5 files of ACT and ALOHA: a folder of episode_0.hdf5, episode_1.hdf5, ...

Layout: tonyzhaozh/act record_sim_episodes.py and utils.py (ACT, Zhao et al. 2023), tonyzhaozh/aloha; compressed images
as in mobile-aloha: rows of JPEG bytes padded with zeros. `observations/qpos` is observation.state. Actions are joint
targets of the same row, as the file has them; ACT itself trains on those of real robots (`sim` false) from one row
earlier on, which here is a window of ahead=-1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError
from ...files import whole_folder
from .. import cache, video
from ..episode import Dataset
from . import hdf5, sidecar
from .base import SourceEpisodes
from .chunked_source import ChunkedSource
from .sidecar import FormatCapability

_METADATA_KEYS = {"fps", "robot_type"}  # of the data set, which ACT keeps nowhere: attributes that it does not look at


def open_act(path: Path) -> Dataset:
    source = ActSource(path)
    return Dataset(SourceEpisodes(source), source.metadata)


class ActSource(ChunkedSource):
    def __init__(self, path: Path):
        self.path, warnings = path, []
        self.files = _files(path, warnings)
        self.key = cache.json_digest(*(hdf5.file_digest(file) for file in self.files))
        found = []
        with hdf5.OpenFiles() as files:
            for file in self.files:
                with hdf5.hdf5_errors(file):
                    found.append(self._episode(files[file], file, warnings))
            self.lengths = np.array([steps for steps, _, _ in found], np.int64)
            self._build_schema([arrays for _, arrays, _ in found], files, warnings)
            with hdf5.hdf5_errors(self.files[0]):
                self.schema = hdf5.restore_column_order(self.schema, files[self.files[0]])
        self._episode_metadata = [facts for _, _, facts in found]
        rates, robots = ({facts.pop(key, None) for facts in self._episode_metadata} for key in ("fps", "robot_type"))
        rate, robot = (next(iter(v)) if len(v) == 1 else None for v in (rates, robots))
        number = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < float("inf")
        self.metadata = {"format": "act", "version": "", "path": str(path), "fps": float(rate) if number else None,
                      "robot_type": robot if isinstance(robot, str) else None, "warnings": warnings}

    def _episode(self, file, path, warnings) -> tuple[int, dict[str, tuple[Feature, bool]], dict[str, Any]]:
        """Steps, (feature, whether rows are encoded images) of each array, facts."""
        arrays = hdf5.arrays(file, str(path))
        if "action" not in arrays or not arrays["action"].shape:
            raise UserError(f"expected an array action, found {', '.join(arrays) or 'nothing'}", where=path,
                            hint="leave the file out, or take it from a copy")
        steps = arrays["action"].shape[0]
        if not steps:
            raise UserError("expected at least one step, found none", where=f"{path}, action", hint="remove the file")
        found, holes = {}, []
        for key, array in arrays.items():
            where = f"{path}, {key}"
            if array.has_unwritten_chunks:
                holes.append(key)
            if key == "compress_len" or array.filled_marker == "all":
                continue
            encoded = key.startswith("observations/images/") and (
                hdf5.is_variable_bytes(array) or array.ndim == 2 and array.dtype == np.uint8)
            f = Feature("uint8", (0, 0, 3), "image") if encoded else hdf5.array_feature(_name(key, None), array, where)
            if array.shape[0] != steps:
                raise UserError(f"expected {steps} rows, as action has, found {array.shape[0]}", where=where,
                                hint="leave the file out, or take it from a copy")
            found[key] = f, encoded
        if holes:
            warnings.append(f"{path.name}: parts of {', '.join(holes)} were never written, and read as zeros")
        facts = hdf5.read_attributes(file, str(path))
        facts.pop("compress", None)
        for key in str(facts.pop(f"{hdf5.FILLED_ATTRIBUTE}_facts", "")).split():
            facts.pop(key, None)
        return steps, found, facts

    def _build_schema(self, found, files, warnings):
        self.schema, self._keys, self._encoded, self.row_counts = {}, {}, set(), {}
        for key in dict.fromkeys(k for arrays in found for k in arrays):
            without = [file for file, arrays in zip(self.files, found, strict=True) if key not in arrays]
            if without and key.startswith("observations/"):
                raise UserError(f"expected an array {key} as in the other files, found none", where=without[0],
                                hint="leave the file out, or the array out of all")
            if without:
                warnings.append(f"{key}: {without[0].name} does not have it: left out")
                continue
            f, encoded = found[0][key]
            for file, arrays in zip(self.files, found, strict=True):
                if arrays[key] != (f, encoded):
                    other, _ = arrays[key]
                    raise UserError(f"expected {f.dtype} {f.shape} as in {self.files[0].name}, found {other.dtype} "
                                    f"{other.shape}", where=f"{file}, {key}", hint="leave the file out")
            name = _name(key, f)
            if name in self.schema:
                raise UserError(f"expected one array for {name}, found {self._keys[name]} and {key}", where=self.path,
                                hint="remove one of them")
            self._keys[name], self.row_counts[name], self.schema[name] = key, self.lengths, f
            if encoded:
                self._encoded.add(name)
                image = self.read_rows(files, name, 0, 0, 1)
                self.schema[name] = Feature("uint8", image.shape[1:], "image")

    def open_files(self):
        return hdf5.OpenFiles()

    def location(self, name, episode):
        return f"{self.files[episode]}, {self._keys[name]}"

    def read_rows(self, files, name, episode, first, stop):
        where = self.location(name, episode)
        with hdf5.hdf5_errors(where):
            values = hdf5.read_rows(files[self.files[episode]][self._keys[name]], first, stop, where)
        if name not in self._encoded:
            return values
        images = [video.decode_image(bytes(v).rstrip(b"\0"), 3, f"{where}, row {row}")
                  for row, v in enumerate(values, first)]
        odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            raise UserError(f"expected images of {images[0].shape}, found {images[odd].shape}",
                            where=f"{where}, row {first + odd}", hint="leave the file out")
        return np.stack(images)

    def episode_metadata(self, episode) -> Mapping[str, Any]:
        return self._episode_metadata[episode]


def _files(path: Path, warnings) -> list[Path]:
    if path.is_file():
        return [path]
    files = [p for p in path.iterdir() if p.suffix in (".hdf5", ".h5") and p.is_file() and not p.name.startswith(".")]
    number = {p: int(n[-1]) if (n := re.findall(r"\d+", p.stem)) else -1 for p in files}
    files.sort(key=lambda p: (number[p], p.name))
    gone = sorted(set(range(number[files[-1]] + 1)) - set(number.values())) if files else []
    if gone and len(files) > 1:
        warnings.append(f"no file of number {', '.join(map(str, gone[:5]))}{', ...' if len(gone) > 5 else ''}, but "
                        f"{files[-1].name}")
    return files


def _name(key: str, f: Feature | None) -> str:
    """The column of an array."""
    if key == "observations/qpos":
        return "observation.state"
    if key.startswith("observations/images/") and f is not None and f.kind == "image":
        return f"observation.images.{key[20:].replace('/', '.')}"
    if key.startswith("observations/"):
        return f"observation.{key[13:].replace('/', '.')}"
    return key.replace("/", ".")


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    return _plan(data)[0]


def write(data: Dataset, path: Path) -> None:
    """A new folder, there whole or not at all, that ACT's loader reads; images as they are, uncompressed. What the
    loader demands and the data do not have (`qvel`, the attribute `sim`) is filled, and marked as such."""
    h5py = hdf5.import_h5py()
    holds, keys = _plan(data)
    with cache.disk_errors(path), whole_folder(path) as part:
        for i, e in enumerate(data):
            with h5py.File(part / f"episode_{i}.hdf5", "w") as file:
                hdf5.store_column_order(file, data, holds)
                for name, key in keys.items():
                    hdf5.write_column(file, key, e.steps[name][:len(e)])
                if "observations/qvel" not in file and "observations/qpos" in file and not hdf5.is_text(
                        file["observations/qpos"]):
                    hdf5.write_column(
                        file, "observations/qvel", np.zeros_like(file["observations/qpos"][:]), filled="all"
                    )
                file.require_group("observations/images")
                facts = {k: e.metadata[k] for k in holds.metadata_keys if k in e.metadata}
                facts |= {k: v for k, v in (("fps", data.fps), ("robot_type", data.metadata.get("robot_type")))
                          if v is not None}
                if "sim" not in facts:  # false means to ACT that actions lag behind by one row
                    facts |= {"sim": True, f"{hdf5.FILLED_ATTRIBUTE}_facts": "sim"}
                for key, value in facts.items():
                    file.attrs[key] = value
        sidecar.write_sidecar(part, data, holds)


def _plan(data: Dataset) -> tuple[FormatCapability, dict[str, str]]:
    def key(name, f):
        if name == "observation.state":
            return "observations/qpos"
        if name.startswith("observation.images.") and f.kind == "image":
            return f"observations/images/{name[19:]}"
        if name.startswith("observation."):
            return None if name in ("observation.qpos", "observation.images") else f"observations/{name[12:]}"
        return None if name in ("observations", "compress_len") else name

    keys, places = hdf5.column_encodings(data, key, _name)
    if "action" not in keys or not any(n.startswith("observation.") for n in data.features()):
        raise UserError(f"expected a column action and observations, found {', '.join(data.features())}", where="act",
                        hint="choose another format, or name the columns action and observation.state")
    facts = hdf5.storable_metadata(data, _METADATA_KEYS | {"compress", f"{hdf5.FILLED_ATTRIBUTE}_facts"})
    robot = data.metadata.get("robot_type")
    return FormatCapability(
        places, fps=True, robot_type=robot is None or hdf5.is_storable_name(robot), metadata_keys=facts
    ), keys
