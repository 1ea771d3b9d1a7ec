"""Reader and writer of HDF5 files of robomimic, and reader of robosuite's raw ones: a group data/demo_k per episode.

Layout: ARISE-Initiative/robomimic docs/datasets/overview.md; robosuite scripts/collect_human_demonstrations.py. `dones`
does not tell a termination from a time limit: it is the column next.done. The last row of `next_obs` is the observation
after the last action; its other rows are the next rows of `obs`. Everything else in a demo keeps its name, with "." for
"/".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core import Feature, UserError
from ...hints import columns_option, repair_hint
from .. import cache
from ..episode import Dataset, Episode
from ..sources import ChunkedSource
from .parts import hdf5, sidecar
from .parts.column_names import sort_numbered
from .parts.key_map import END_COLUMNS, MAX_METADATA_VALUES, KeyMap, common_arrays, metadata
from .parts.read_errors import damaged
from .parts.sidecar import FormatCapability

KEYS = KeyMap({"actions": "action", "rewards": "next.reward", "dones": "next.done", "ep_meta": "task"}, group="obs/",
              reserved=frozenset({"obs", "next_obs", "actions", "rewards", "dones", "ep_meta"}))
_RESERVED_METADATA = {"demo", "masks", "num_samples", "ep_meta", "env_args"}  # stored in another way
_METADATA_BATCH = 64  # number of demos of which metadata are read at once
_N_COMPARED_DEMOS = 64  # demos in which next_obs is compared with obs


class RobomimicSource(ChunkedSource):
    """Reader of a robomimic or robosuite file."""

    def __init__(self, path: Path):
        self.path, self.key, warnings = path, cache.files_digest([path], "robomimic"), []
        self._episode_metadata: dict[int, dict[str, Any]] = {}  # metadata that were asked for, by episode
        self._layouts: dict[str, hdf5.ContiguousLayout] = {}  # layouts of contiguous arrays, by key
        with self.open_files() as files, hdf5.hdf5_errors(path):
            file = files[path]
            data = file.get("data")
            self.demos = sort_numbered(list(data), "demo_")
            if not self.demos:
                raise damaged("there are no groups demo_0, demo_1, ...", f"{path}, data")
            attributes = self._of_file(hdf5.read_attributes(data, f"{path}, data"))
            total = attributes.pop("total", None)
            self._of_all = attributes
            steps, stored, self._tasks, self._small = zip(
                *(self._demo(data[d], d, warnings) for d in self.demos), strict=True)
            if total is not None and total != sum(steps):
                warnings.append(f"data, attribute total: {total}, but the demos have {sum(steps)} steps")
            self.lengths = np.array(steps, np.int64)
            self.masks = self._masks(file, warnings)
            self._check_next_obs(files, stored, warnings)
            self._join(stored, warnings)
            self.schema = hdf5.restore_column_order(self.schema, file)
        kind = "robomimic" if "env_args" in attributes or not attributes.keys() & {"env", "env_info"} else "robosuite"
        self.metadata = _metadata(self._env, kind, path, warnings)
        if _inside(self._env, "env_name") == "":  # ours, of data that had none
            attributes.pop("env_args")

    # -- what is there

    def _of_file(self, attributes: dict) -> dict[str, Any]:
        """Returns the metadata that hold for all episodes of the file."""
        for key in ("env_args", "env_info"):
            if key in attributes:
                attributes[key] = hdf5.decode_json_attribute(attributes[key], f"{self.path}, data, attribute {key}")
        self._env = attributes.get("env_args", attributes.get("env_info", {}))
        self._task = _inside(self._env, "lang") or _inside(self._env, "env_kwargs", "env_lang")
        return attributes

    def _demo(self, group, demo: str, warnings) -> tuple[int, dict[str, Feature], str | None, list[str] | None]:
        """Steps, the feature of each array by its key, the task in words, and keys of short arrays that are metadata.
        They are None if there are no metadata at all."""
        location, features, small = f"{self.path}, data/{demo}", {}, []
        arrays, hint = hdf5.arrays(group, location), repair_hint(self.path)
        steps = hdf5.count_steps(
            arrays, "actions", location, ("num_samples", group.attrs["num_samples"])
            if "num_samples" in group.attrs else None, hint if "actions" in arrays or has_actions(group.parent) else
            "no demo has it. Name the arrays that hold the actions and what is observed: "
            + columns_option("action=A", "state=B,C"))
        for key, array in arrays.items():
            if not is_step_array(key) and (not array.shape or array.shape[0] != steps):
                if array.size > MAX_METADATA_VALUES:
                    warnings.append(f"{demo}/{key}: {array.shape}, not a row for each of {steps} steps: left out")
                else:
                    small.append(key)
                continue
            f = hdf5.array_feature(KEYS.column(key), array, f"{location}/{key}", flag=key == "dones")
            hdf5.check_rows(array, steps, "as actions has", f"{location}/{key}", hint)
            if array.filled_marker != "last":
                features[key] = f
                if at := array.layout:
                    self._layouts[f"data/{demo}/{key}"] = at
        hdf5.warn_of_holes(arrays, demo, warnings)
        ep_meta = hdf5.to_json_value(group.attrs.get("ep_meta", "{}"), f"{location}, attribute ep_meta")
        task = _inside(hdf5.decode_json_attribute(ep_meta, location), "lang") or self._task
        plain = not small and list(group.attrs) == ["num_samples"]
        return steps, features, task if isinstance(task, str) else None, None if plain else small

    def _masks(self, file, warnings) -> dict[str, dict[str, None]]:
        """Returns the names of the demos under each filter key, in order."""
        masks = {}
        if "mask" in file:
            for key, array in hdf5.arrays(file["mask"], f"{self.path}, mask").items():
                location = f"{self.path}, mask/{key}"
                if len(array.shape) != 1 or not hdf5.is_text(array):
                    raise UserError(f"it must be names of demos, but is {array.dtype} {array.shape}", where=location,
                                    hint="remove the mask, or write it again")
                masks[key] = dict.fromkeys(hdf5.read_rows(array, 0, array.shape[0], location).tolist())
                if missing_demos := [d for d in masks[key] if d not in self.demos]:
                    warnings.append(f"mask/{key} names {', '.join(missing_demos[:5])}, which the file does not hold")
        return masks

    def _check_next_obs(self, files, stored, warnings):
        """Warns if next_obs is not the next row of obs, compared at the last row that has one."""
        for demo, arrays, steps in list(zip(self.demos, stored, self.lengths, strict=True))[:_N_COMPARED_DEMOS]:
            for key, f in arrays.items():
                if key.startswith("next_obs/") and key[5:] in arrays and steps > 1 and f.kind == "vector":
                    location = f"{self.path}, data/{demo}"
                    own, following = (files.read_rows(self.path, f"data/{demo}/{k}", row, row + 1, f"{location}/{k}")
                                      for k, row in ((key[5:], steps - 1), (key, steps - 2)))
                    if own.shape == following.shape and not np.allclose(own, following, 1e-5, 1e-5, equal_nan=True):
                        warnings.append(f"{demo}/{key} is not the next row of {key[5:]}: only its last row is used")
                        return

    def _join(self, stored, warnings):
        """Joins the demos: sets the columns that all demos have."""
        features = common_arrays(
            [{k: f for k, f in arrays.items() if not k.startswith("next_obs/")} for arrays in stored],
            lambda f: (f.dtype, f.shape), lambda e, key: f"{self._group(e)}/{key}",
            lambda key: not key.startswith("obs/"),
            lambda key, e: warnings.append(f"{key}: {self.demos[e]} does not have it: left out"))
        for e, arrays in enumerate(stored):
            for key in [k for k in features if k.startswith("obs/") and f"next_{k}" in arrays]:
                f, after = features[key], arrays[f"next_{key}"]
                if (after.dtype, after.shape) != (f.dtype, f.shape):
                    raise UserError(f"it is {after.dtype} {after.shape}, but {key} is {f.dtype} {f.shape}",
                                    where=f"{self._group(e)}/next_{key}", hint="remove the demo, or the array from all")
        self.schema, self.keys = KEYS.schema(features, self.path)
        self.row_counts = {}
        for name, key in self.keys.items():
            self.row_counts[name] = self.lengths + [key.startswith("obs/") and f"next_{key}" in a for a in stored]
        if "task" not in self.schema and None not in self._tasks:
            self.schema["task"], self.keys["task"] = Feature("string", (), "string"), "ep_meta"
            self.row_counts["task"] = self.lengths
        if unpaired_keys := sorted({k for a in stored for k in a if k.startswith("next_obs/") and k[5:] not in a}):
            warnings.append(f"{', '.join(unpaired_keys)}: not in obs, left out")
        if not any(n.startswith("observation.") for n in self.schema):
            warnings.append("no observations: robomimic's dataset_states_to_obs.py adds them, with the simulator")

    # -- reading

    def open_files(self):
        return hdf5.OpenFiles(self._layouts)

    def location(self, name, episode):
        return f"{self._group(episode)}/{self.keys[name]}"

    def _group(self, episode) -> str:
        return f"{self.path}, data/{self.demos[episode]}"

    def read_rows(self, files, name, episode, first, stop):
        steps, location = int(self.lengths[episode]), self.location(name, episode)
        if self.keys[name] == "ep_meta":
            return np.broadcast_to(np.array(self._tasks[episode], object), (stop - first,))
        key, at, parts = self.keys[name], f"data/{self.demos[episode]}", []
        if first < min(stop, steps):
            parts.append(files.read_rows(self.path, f"{at}/{key}", first, min(stop, steps), location))
        if stop > steps:
            parts.append(files.read_rows(self.path, f"{at}/next_{key}", steps - 1, steps, f"{location} (next_obs)"))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def episode_metadata(self, episode):
        # some at once, and once: opening the file takes as long as their numbers
        if episode not in self._episode_metadata:
            with hdf5.OpenFiles() as files:
                for e in range(episode, min(episode + _METADATA_BATCH, len(self.demos))):
                    self._episode_metadata[e] = self._read_metadata(files, e)
        return self._episode_metadata[episode]

    def _read_metadata(self, files, episode) -> dict[str, Any]:
        demo = self.demos[episode]
        shared = dict(self._of_all)
        if demo != f"demo_{episode}":
            shared["demo"] = demo
        if self.masks:
            shared["masks"] = [key for key, demos in self.masks.items() if demo in demos]
        if self._small[episode] is None:
            return shared
        location = f"{self.path}, data/{demo}"
        with hdf5.hdf5_errors(location):
            group = files[self.path][f"data/{demo}"]
            own = hdf5.read_attributes(group, location, ("num_samples",))
            if "ep_meta" in own:
                own["ep_meta"] = hdf5.decode_json_attribute(own["ep_meta"], f"{location}, attribute ep_meta")
                if isinstance(own["ep_meta"], dict) and isinstance(own["ep_meta"].get("lang"), str):
                    own["ep_meta"].pop("lang")  # the column task
                    own = own if own["ep_meta"] else {k: v for k, v in own.items() if k != "ep_meta"}
            for key in self._small[episode]:
                if key not in self.keys.values():
                    with hdf5.hdf5_errors(f"{location}/{key}"):
                        own[key.replace("/", ".")] = hdf5.to_json_value(group[key][()], f"{location}/{key}")
        return {**shared, **own}


def _metadata(env, kind: str, path: Path, warnings: list[str]) -> dict[str, Any]:
    """Returns the metadata of a data set, from env_args or env_info."""
    rate = _inside(env, "env_kwargs", "control_freq") or _inside(env, "control_freq")
    robot = _inside(env, "env_kwargs", "robots") or _inside(env, "robots")
    robot = robot[0] if isinstance(robot, list) and len(robot) == 1 else robot
    return metadata(kind, path, warnings, str(_inside(env, "env_version") or ""), rate, robot)


def is_step_array(key: str) -> bool:
    """Returns whether an array of a demo must have a row for each step, and otherwise is metadata of the episode."""
    return key in ("actions", "rewards", "dones", "states") or key.startswith(("obs/", "next_obs/"))


def has_actions(demos) -> bool:
    """Returns whether any demo of the group `data` has the array of actions. If not, the file has custom names."""
    return any(f"{demo}/actions" in demos for demo in demos)


def open_robomimic(path: Path, mask: str | None = None) -> Dataset:
    """Opens a file, or the demos of it that the filter key `mask` names."""
    source = RobomimicSource(path)
    if mask is not None and mask not in source.masks:
        raise UserError(f"there is no mask {mask!r}; there are {', '.join(source.masks) or 'no masks'}",
                        where=f"{path}, mask", hint="choose one of the file's filter keys, or leave mask out")
    numbers = None if mask is None else [e for e, d in enumerate(source.demos) if d in source.masks[mask]]
    return Dataset(source, indices=numbers)


def _inside(value, *keys):
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


# -- writing --------------------------------------------------------------------------------------------------------


def capability(data: Dataset) -> FormatCapability:
    """Returns which columns and metadata of a data set this format can store."""
    return _plan(data).capability


def write(data: Dataset, path: Path) -> None:
    """Writes a file that robomimic opens, completely or not at all.

    If an episode has no row after the last action, the last row of `next_obs` is a copy of the last row of `obs`, and
    is marked. `dones` is next.done. Without that column, it is true where an episode terminates or is truncated.
    """
    h5py = hdf5.import_h5py()
    plan = _plan(data)
    hdf5.check_space(path, data, len(data) * (2 * len(plan.keys) + 2), observations=2)
    holds = plan.capability
    with sidecar.new_file_with_sidecar(path, data, holds) as part, h5py.File(part, "w") as file:
        hdf5.store_column_order(file, data.features(), holds)
        group, masks = file.create_group("data"), {}
        group.attrs["env_args"] = json.dumps(plan.env_args, indent=4)
        group.attrs["total"] = data.steps
        for demo, e in zip(plan.demos, data, strict=True):
            _write_demo(group.create_group(demo), e, plan.keys, holds)
            if "masks" in holds.metadata_keys:
                for key in e.metadata["masks"]:
                    masks.setdefault(key, []).append(demo)
        for key, names in masks.items():
            file[f"mask/{key}"] = np.array(names, "S")


def _write_demo(group, e: Episode, keys, holds):
    steps = len(e)
    group.attrs["num_samples"] = steps
    hdf5.write_metadata(group, e, replace(holds, metadata_keys=holds.metadata_keys - _RESERVED_METADATA))
    ep_meta = dict(e.metadata["ep_meta"]) if "ep_meta" in holds.metadata_keys and "ep_meta" in e.metadata else {}
    for name, key in keys.items():
        column = e.steps[name]
        if key == "ep_meta":
            ep_meta["lang"] = str(column[0])
            continue
        hdf5.write_column(group, key, column[:steps] if key != "dones" else column[:steps].astype(np.int64))
        if key.startswith("obs/"):
            after = np.asarray(column)[np.minimum(np.arange(steps) + 1, len(column) - 1)]
            hdf5.write_column(group, f"next_{key}", after, filled="" if len(column) > steps else "last")
    if ep_meta:
        group.attrs["ep_meta"] = json.dumps(ep_meta)
    flags = [np.asarray(e.steps[n])[:steps] for n in END_COLUMNS if n in e.steps]
    flags = [f for f in flags if f.dtype == bool and f.ndim == 1]
    if flags and "dones" not in keys.values():
        hdf5.write_column(group, "dones", np.any(flags, axis=0).astype(np.int64))


@dataclass(frozen=True)
class _StoragePlan:
    capability: FormatCapability
    keys: dict[str, str]  # key of each column
    demos: list[str]
    env_args: Any


def _plan(data: Dataset) -> _StoragePlan:
    metas = [e.metadata["ep_meta"] for e in data if "ep_meta" in e.metadata]
    can_store_meta = all(isinstance(meta, dict) and "lang" not in meta for meta in metas)

    def key(name, f):
        if name == "next.done" and (f.dtype, f.shape) != ("bool", ()):
            return None
        if name == "task" and not (can_store_meta and f.kind == "string" and not f.shape and _constant(data)):
            return name
        return KEYS.key(name, f)

    holds, keys = hdf5.plan(data, KEYS, _RESERVED_METADATA, key, lambda k: k.startswith("obs/"), {"next.done"})
    if "action" not in keys:
        raise UserError(f"robomimic needs a column action; there are {', '.join(data.features())}", where="robomimic",
                        hint="choose another format, or name the column action")
    demos, env = _demo_names(data), data[0].metadata.get("env_args")
    is_stored = {
        "demo": demos is not None and all(e.metadata.get("demo") != f"demo_{i}" for i, e in enumerate(data)),
        "masks": _can_store_masks(data),
        "ep_meta": can_store_meta and all(metas) and hdf5.is_json(metas),
        "env_args": env and all(e.metadata.get("env_args") == env for e in data) and hdf5.is_json(env)}
    if not is_stored["env_args"]:
        env_kwargs = {"control_freq": data.fps, "robots": data.metadata.get("robot_type")}
        env = {"env_name": "", "env_type": 2, "env_kwargs": {k: v for k, v in env_kwargs.items() if v is not None}}
    read = _metadata(env, "robomimic", Path(), [])
    holds = replace(holds, fps=read["fps"] == data.fps,
                    robot_type=read["robot_type"] == data.metadata.get("robot_type"),
                    metadata_keys=holds.metadata_keys | {name for name, stored in is_stored.items() if stored})
    return _StoragePlan(holds, keys, demos or [f"demo_{i}" for i in range(len(data))], env)


def _demo_names(data: Dataset) -> list[str] | None:
    """Returns the names of the demos if the metadata have distinct ones in a reader's order, and otherwise None."""
    demos = [e.metadata.get("demo", f"demo_{i}") for i, e in enumerate(data)]
    is_readable = (all(isinstance(d, str) for d in demos) and sort_numbered(demos, "demo_") == demos
                   and len({int(d[5:]) for d in demos}) == len(demos))
    return demos if is_readable else None


def _can_store_masks(data: Dataset) -> bool:
    """Returns whether the filter keys (masks) can be stored: all episodes list theirs in one order."""
    masks: list[Any] = [e.metadata.get("masks") for e in data]
    if not any(masks) or not all(
            isinstance(m, list) and all(isinstance(k, str) and hdf5.is_storable_name(k) for k in m)
            and len(set(m)) == len(m) for m in masks):
        return False
    order = list(dict.fromkeys(k for m in masks for k in m))
    return all(sorted(m, key=order.index) == m for m in masks)


def _constant(data) -> bool:
    return all(len(e) == len(c) and len(set(map(str, c.tolist()))) == 1 and str(c[0])
               for e in data for c in [np.asarray(e.steps["task"])])
