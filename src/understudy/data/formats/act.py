"""HDF5 files of ACT and ALOHA: a folder of episode_0.hdf5, episode_1.hdf5, ...

Layout: tonyzhaozh/act record_sim_episodes.py and utils.py (ACT, Zhao et al. 2023), tonyzhaozh/aloha. Compressed images
are as in mobile-aloha: rows of JPEG bytes padded with zeros. `observations/qpos` is observation.state. Actions are
joint targets of the same row, as in the file. For real robots (`sim` false), ACT itself trains on actions from one row
earlier, which here is a window with action_offset=-1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core import DataError, Feature, UserError
from .. import cache
from ..episode import Dataset
from ..sources import ChunkedSource
from .parts import hdf5, sidecar
from .parts.column_names import number_sort_key
from .parts.episode_table import boundary_hint
from .parts.file_kinds import episode_files
from .parts.key_map import KeyMap, common_arrays, decoded_images, is_metadata, metadata
from .parts.padded_arrays import MAX_LABEL_VALUES, padded_hint
from .parts.sidecar import FormatCapability

KEYS = KeyMap({"observations/qpos": "observation.state"}, group="observations/", images="images/",
              reserved=frozenset({"observation.qpos", "observation.images", "observations", "compress_len"}))
# Attributes that are not metadata of an episode, but of the data set, which ACT does not read, or of the file.
_RESERVED = {"fps", "robot_type", "compress", f"{hdf5.FILLED_ATTRIBUTE}_facts"}
_ENCODED = Feature("uint8", (0, 0, 3), "image")


class ActSource(ChunkedSource):
    """Reader of HDF5 files of ACT: a folder with one file per episode, or one file."""

    def __init__(self, path: Path):
        self.path, warnings = path, []
        self.files = _files(path, warnings)
        self.key = cache.files_digest(self.files, "act")
        with hdf5.OpenFiles() as files:
            episodes = []
            for file in self.files:
                with hdf5.hdf5_errors(file):
                    episodes.append(self._episode(files[file], file, warnings))
            lengths, arrays, self._episode_metadata = zip(*episodes, strict=True)
            self.lengths = np.array(lengths, np.int64)
            self._build_schema(arrays, files, warnings)
            with hdf5.hdf5_errors(self.files[0]):
                self.schema = hdf5.restore_column_order(self.schema, files[self.files[0]])
        rates, robots = ({m.pop(key, None) for m in self._episode_metadata} for key in ("fps", "robot_type"))
        fps, robot_type = (next(iter(v)) if len(v) == 1 else None for v in (rates, robots))
        self.metadata = metadata("act", path, warnings, fps=fps, robot_type=robot_type)

    def _episode(self, file, path, warnings) -> tuple[int, dict[str, Feature], dict]:
        """Reads number of steps, features of the arrays and metadata of one episode."""
        arrays = hdf5.arrays(file, str(path))
        steps, features, small = hdf5.count_steps(arrays, "action", str(path)), {}, {}
        numeric = {key: arrays[key].shape for key in ("action", "observations/qpos") if key in arrays}
        if hint := padded_hint(numeric, {key: array[()] for key, array in arrays.items() if len(array.shape) in (1, 2)
                                         and len(numeric["action"]) > 2 and 0 < array.size < MAX_LABEL_VALUES}):
            raise DataError("nothing says where its episodes end", where=path, hint=hint)
        for key, array in arrays.items():
            if key == "compress_len" or array.filled_marker == "all":
                continue
            if is_metadata(column := KEYS.column(key), array.shape, (steps,)):
                values = array[()]
                lists = {key: values} if len(array.shape) == 1 and array.dtype.kind in "iuf" else {}
                if hint := boundary_hint(lists, steps):
                    raise DataError(f"it has {len(values)} rows instead of {steps}, as action has",
                                    where=f"{path}, {key}", hint=hint)
                small[column] = hdf5.to_json_value(values, f"{path}, {key}")
                continue
            encoded = key.startswith("observations/images/") and (
                hdf5.is_variable_bytes(array) or len(array.shape) == 2 and array.dtype == np.uint8)
            features[key] = _ENCODED if encoded else hdf5.array_feature(column, array, f"{path}, {key}")
            hdf5.check_rows(array, steps, "as action has", f"{path}, {key}")
        hdf5.warn_of_holes(arrays, path.name, warnings)
        attributes = hdf5.read_attributes(file, str(path), ("compress",))
        for key in str(attributes.pop(f"{hdf5.FILLED_ATTRIBUTE}_facts", "")).split():
            attributes.pop(key, None)
        return steps, features, {**small, **attributes}

    def _build_schema(self, arrays, files, warnings):
        features = common_arrays(
            arrays, lambda f: (f.dtype, f.shape), lambda e, key: f"{self.files[e]}, {key}",
            lambda key: not key.startswith("observations/"),
            lambda key, e: warnings.append(f"{key}: {self.files[e].name} does not have it: left out"))
        self.schema, self.keys = KEYS.schema(features, self.path)
        self.row_counts = dict.fromkeys(self.schema, self.lengths)
        self._encoded = {name for name, f in self.schema.items() if f == _ENCODED}
        for name in self._encoded:
            self.schema[name] = Feature("uint8", self.read_rows(files, name, 0, 0, 1).shape[1:], "image")

    open_files = staticmethod(hdf5.OpenFiles)

    def location(self, name, episode):
        return f"{self.files[episode]}, {self.keys[name]}"

    def read_rows(self, files, name, episode, first, stop):
        location = self.location(name, episode)
        values = files.read_rows(self.files[episode], self.keys[name], first, stop, location)
        return decoded_images(values, 3, first, location) if name in self._encoded else values

    def episode_metadata(self, episode):
        return self._episode_metadata[episode]


def _files(path: Path, warnings) -> list[Path]:
    files = episode_files(path, "hdf5")
    numbers = {number_sort_key(p.stem)[0] for p in files}
    missing_numbers = sorted(set(range(max(numbers, default=0) + 1)) - numbers)
    if missing_numbers and len(files) > 1:
        warnings.append(f"no file of number {', '.join(map(str, missing_numbers[:5]))}"
                        f"{', ...' if len(missing_numbers) > 5 else ''}, but {files[-1].name}")
    return files


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    return _plan(data)[0]


def write(data: Dataset, path: Path) -> None:
    """Writes a folder that ACT's loader reads, completely or not at all.

    Images are stored without compression. What the loader needs and the data do not have (`qvel`, the attribute `sim`)
    is filled in, marked, and not read again.
    """
    h5py = hdf5.import_h5py()
    holds, keys = _plan(data)
    hdf5.check_space(path, data, len(data) * (len(keys) + 8))
    features = data.features()
    with sidecar.new_folder(path, data, holds) as part:
        for i, e in enumerate(data):
            with h5py.File(part / f"episode_{i}.hdf5", "w") as file:
                hdf5.store_column_order(file, features, holds)
                for name, key in keys.items():
                    hdf5.write_column(file, key, e.steps[name][:len(e)])
                state = file.get("observations/qpos")
                if "observations/qvel" not in file and state is not None and not hdf5.is_text(state):
                    hdf5.write_column(file, "observations/qvel", np.zeros_like(state[:]), filled="all")
                file.require_group("observations/images")
                hdf5.write_metadata(file, e, holds, data)
                if "sim" not in file.attrs:  # false means to ACT that actions lag behind by one row
                    file.attrs["sim"], file.attrs[f"{hdf5.FILLED_ATTRIBUTE}_facts"] = True, "sim"


def _plan(data: Dataset) -> tuple[FormatCapability, dict[str, str]]:
    holds, keys = hdf5.plan(data, KEYS, _RESERVED)
    if "action" not in keys or not any(n.startswith("observation.") for n in data.features()):
        raise UserError(f"ACT needs a column action and observations; there are {', '.join(data.features())}",
                        where="act", hint="choose another format, or name the columns action and observation.state")
    return holds, keys
