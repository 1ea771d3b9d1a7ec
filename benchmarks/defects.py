"""Defects seeded in clean data, how many the audit finds, and what it says of clean data: python benchmarks/defects.py

Prints the tables behind the figures of docs/audit.md. A value is spoilt in demonstrations of the bundled toys, and of
people and experts in UNDERSTUDY_DATA where that is set; files are spoilt in copies of the fixtures, which other
libraries have written (`--fixtures ../shared/fixtures`). A defect counts as found where the audit says one of its codes
and did not before. `--seeds N`: trials of each kind in each source, 3 by default.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from understudy import make, rollout
from understudy.audit import audit, find_problems
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, preview_dataset

STATE, ACTION, CAMERA = "observation.state", "action", "observation.images.front"


# -- clean data -----------------------------------------------------------------------------------------------------


def toy(name: str, episodes: int = 40) -> Dataset:
    """Demonstrations with what a recorder adds: times that jitter by a hundredth of a step, a task and a camera."""
    env = make(name, 20)
    data, rng = rollout(env.expert(), env, episodes, seed=3), np.random.default_rng(1)
    env.close()
    return dressed(Dataset(list(data), {"fps": 10}), rng)


def dressed(data: Dataset, rng: np.random.Generator) -> Dataset:
    fps = data.fps or 10

    def dress(e: Episode) -> Episode:
        n = len(e)
        time = np.arange(n) / fps + np.cumsum(rng.normal(0, 0.002 / fps, n))
        steps = {k: np.asarray(e.steps[k]) for k in e.steps}
        return Episode({**steps, "timestamp": time, "task": np.full(n, "do it"), CAMERA: pictures(steps[STATE][:n])},
                       dict(e.metadata))
    return Dataset([dress(e) for e in data], {"fps": fps})


def pictures(state: np.ndarray) -> np.ndarray:
    """(T, 24, 24, 3): a light whose place is that of the first two numbers of the state, with noise as sensors have."""
    rng = np.random.default_rng(len(state))
    y, x = np.mgrid[:24, :24]
    at = 12 + 8 * np.tanh(state[:, :2].astype(float))
    light = np.exp(-(np.square(x - at[:, :1, None]) + np.square(y - at[:, 1:2, None])) / 20)
    return np.clip(40 + 180 * light[..., None] + rng.normal(0, 2, (len(state), 24, 24, 3)), 0, 255).astype(np.uint8)


def absolute(data: Dataset) -> Dataset:
    """With the positions that were reached as actions."""
    k = min(data[0].steps[ACTION].shape[1], data[0].steps[STATE].shape[1])

    def change(e):
        state = np.asarray(e.steps[STATE])
        after = state[1:] if len(state) > len(e) else np.concatenate([state[1:], state[-1:]])
        return replace(e, steps={**e.steps, ACTION: after[:len(e), :k].copy()})
    return Dataset([change(e) for e in data], data.metadata)


def recorded() -> Iterator[tuple[str, Dataset]]:
    """By people and experts, with their first 40 episodes of at most 300 steps."""
    folder = Path(os.environ.get("UNDERSTUDY_DATA", ""))
    for name in ("hand_dapg/adroit_door_human", "imitation/pendulum_expert",
                 "ogbench/pointmaze-medium-navigate-v0-val"):
        if os.environ.get("UNDERSTUDY_DATA") and (file := folder / f"{name}.npz").exists():
            try:
                opened = open_dataset(file)
            except UserError as error:
                print(error)
                continue
            few = [Episode({k: np.asarray(e.steps[k])[:300 + (len(e.steps[k]) > len(e))] for k in e.steps
                            if not k.startswith("next.t")}, dict(e.metadata)) for e in opened[:40]]
            yield name.split("/")[1], dressed(Dataset(few, {"fps": 50}), np.random.default_rng(1))


# -- values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    name: str
    codes: tuple[str, ...]
    spoil: Callable[[np.random.Generator, Dataset], Dataset | None]  # None: these data have nothing to spoil
    of: Callable[[Dataset], Dataset] = lambda data: data  # what is clean


def but(data: Dataset, e: int, **columns) -> Dataset:
    """Episode e with other columns ("__" for "."), None leaves one out."""
    steps = {**data[e].steps, **{k.replace("__", "."): v for k, v in columns.items()}}
    episodes = list(data)
    episodes[e] = replace(data[e], steps={k: v for k, v in steps.items() if v is not None})
    return Dataset(episodes, data.metadata)


def every(data: Dataset, name: str, change) -> Dataset:
    return Dataset([replace(e, steps={**e.steps, name: change(np.array(e.steps[name]))}) for e in data], data.metadata)


def one(rng, data, least: int = 10) -> int:
    return int(rng.choice([e for e in range(len(data)) if len(data[e]) >= least]))


def put(data: Dataset, e: int, name: str, at, value) -> Dataset:
    column = np.array(data[e].steps[name])
    column[at] = value
    return but(data, e, **{name.replace(".", "__"): column})


def some_step(rng, data, e) -> int:
    return int(rng.integers(2, len(data[e]) - 3))


def nan(name, value):
    def spoil(rng, data):
        e = one(rng, data)
        return put(data, e, name, (some_step(rng, data, e), rng.integers(data[e].steps[name].shape[1])), value)
    return spoil


def end_inside(rng, data):
    if "next.terminated" not in data[0].steps:
        return None
    e = one(rng, data)
    return put(data, e, "next.terminated", some_step(rng, data, e), True)


def end_missing(rng, data):
    if not {"next.terminated", "next.truncated"} <= set(data[0].steps):
        return None
    e = one(rng, data)
    return put(put(data, e, "next.terminated", -1, False), e, "next.truncated", -1, False)


def back(rng, data):
    e = one(rng, data)
    t = some_step(rng, data, e)
    time = np.array(data[e].steps["timestamp"])
    time[t:] -= 3 / data.fps
    return but(data, e, timestamp=time)


def gap(rng, data):
    e = one(rng, data)
    time = np.array(data[e].steps["timestamp"])
    time[some_step(rng, data, e):] += 4 / data.fps
    return but(data, e, timestamp=time)


def jitter(rng, data):
    return every(data, "timestamp", lambda t: np.sort(t + rng.uniform(-0.35, 0.35, t.shape) / data.fps))


def cut(rng, data):
    e = int(np.argmax([len(x) for x in data]))
    n = max(2, int(0.15 * np.median([len(x) for x in data])))
    steps = {k: np.array(v[:n]) for k, v in data[e].steps.items()}
    for name in ("next.terminated", "next.success"):
        if name in steps:
            steps[name][:] = False
    episodes = list(data)
    episodes[e] = Episode(steps, {k: v for k, v in data[e].metadata.items() if k != "success"})
    return Dataset(episodes, data.metadata)


def twice(rng, data):
    a, b = rng.choice(len(data), 2, replace=False)
    episodes = list(data)
    episodes[b] = data[int(a)]
    return Dataset(episodes, data.metadata)


def camera_late(rng, data):
    """By 3 to 5 frames, or early; the toy of 14 steps is too short to tell."""
    if np.median([len(e) for e in data]) < 30:
        return None
    k = int(rng.integers(3, 6)) * int(rng.choice([-1, 1]))

    def change(frames):
        ends = np.repeat(frames[:1] if k > 0 else frames[-1:], abs(k), 0)
        return np.concatenate([ends, frames[:-k]] if k > 0 else [frames[-k:], ends])[:len(frames)]
    return every(data, CAMERA, change)


def dead(rng, data):
    i = rng.integers(data[0].steps[STATE].shape[1])

    def change(s):
        s[:, i] = 0.5
        return s
    return every(data, STATE, change)


def copied(rng, data):
    if data[0].steps[STATE].shape[1] < 2:
        return None
    live = np.flatnonzero(np.ptp(np.concatenate([e.steps[STATE] for e in data]), axis=0) > 0)
    i, j = rng.choice(live, 2, replace=False)

    def change(s):
        s[:, j] = s[:, i]
        return s
    return every(data, STATE, change)


def leaked(rng, data):
    def change(e):
        states = np.array(e.steps[STATE])[:len(e)]
        return replace(e, steps={**e.steps, STATE: np.concatenate([states, e.steps[ACTION][:len(e)]], 1)})
    return Dataset([change(e) for e in data], data.metadata)


def teleport(rng, data):
    e = one(rng, data)
    t, state = some_step(rng, data, e), np.array(data[e].steps[STATE])
    spread = np.std(np.concatenate([x.steps[STATE] for x in data]), axis=0)
    state[t:] = state[t:] + (3 * spread + 0.1).astype(state.dtype)
    return but(data, e, **{STATE.replace(".", "__"): state})


def lose_rows(rng, data):
    """A quarter of the rows, where most happens."""
    e = one(rng, data, 12)
    n = len(data[e])
    k = max(4, n // 4)
    state = np.asarray(data[e].steps[STATE])
    t = int(np.argmax([np.linalg.norm(state[s + k] - state[s - 1]) for s in range(2, n - k - 1)])) + 2
    keep = np.r_[0:t, t + k:n]
    steps = {name: (v[np.r_[keep, n]] if len(v) > n else v[keep]) for name, v in data[e].steps.items()}
    steps["timestamp"] = np.arange(len(keep)) / data.fps
    episodes = list(data)
    episodes[e] = replace(data[e], steps=steps)
    return Dataset(episodes, data.metadata)


def mirrored(rng, data):
    e = one(rng, data)
    return but(data, e, action=-np.array(data[e].steps[ACTION]))


def other_actions(rng, data):
    e = one(rng, data)
    a = np.array(data[e].steps[ACTION])
    return but(data, e, action=a[rng.permutation(len(a))])


def late(rng, data):
    k = int(rng.integers(3, 6))
    return every(data, ACTION, lambda a: np.concatenate([np.repeat(a[:1], k, 0), a[:-k]]) if len(a) > k else a)


def mixed(rng, data):
    out = data
    for e in rng.choice(len(data), max(1, len(data) // 5), replace=False):
        a = np.asarray(data[int(e)].steps[ACTION])
        now = np.asarray(data[int(e)].steps[STATE])[:len(a), :a.shape[1]]
        out = but(out, int(e), action=(a - now).astype(a.dtype))
    return out


def degrees(name):
    def spoil(rng, data):
        e = one(rng, data)
        value = np.array(data[e].steps[name]) * np.float32(57.29578)
        return but(data, e, **{name.replace(".", "__"): value})
    return spoil


def clipped(rng, data):
    values = np.concatenate([e.steps[ACTION] for e in data])
    low, high = np.quantile(values, 0.25, axis=0), np.quantile(values, 0.75, axis=0)
    return every(data, ACTION, lambda a: np.clip(a, low, high).astype(a.dtype))


def frozen_sensor(rng, data):
    e = one(rng, data)
    state = np.array(data[e].steps[STATE])
    state[len(state) // 4:] = state[len(state) // 4]
    return but(data, e, **{STATE.replace(".", "__"): state})


def still(rng, data):
    e = one(rng, data)
    state = np.array(data[e].steps[STATE])
    state[:] = state[0]
    return but(data, e, **{STATE.replace(".", "__"): state})


def label(rng, data):
    if "next.success" not in data[0].steps:
        return None
    e = one(rng, data)
    return Dataset([replace(x, metadata={**x.metadata, "success": not x.metadata["success"]}) if i == e else x
                    for i, x in enumerate(data)], data.metadata)


def label_and_column(rng, data):
    """Sparse rewards, and both labels of one episode against them."""
    if "next.success" not in data[0].steps:
        return None
    data = sparse(data)
    e = int(rng.choice([i for i, x in enumerate(data) if x.metadata["success"]]))
    mislabeled = but(data, e, next__success=np.zeros(len(data[e]), bool))
    return Dataset(
        [replace(x, metadata={**x.metadata, "success": False}) if i == e else x for i, x in enumerate(mislabeled)],
        data.metadata,
    )


def sparse(data: Dataset) -> Dataset:
    """A reward of 1 at success and 0 else, and three episodes that failed."""
    if "next.success" not in data[0].steps:
        return data

    def change(i, e):
        won = np.array(e.steps["next.success"]) & (i > 2)
        return replace(e, steps={**e.steps, "next.success": won, "next.reward": won.astype(np.float32)},
                       metadata={**e.metadata, "success": bool(won.any())})
    return Dataset([change(i, e) for i, e in enumerate(data)], data.metadata)


def sentinel(rng, data):
    e = one(rng, data)
    return put(data, e, STATE, (some_step(rng, data, e), rng.integers(data[e].steps[STATE].shape[1])), -9999999)


def whole_numbers(rng, data):
    return every(data, ACTION, lambda a: (a * 1000).astype(np.int64))


def dark(rng, data):
    e = one(rng, data)
    t = some_step(rng, data, e)
    return put(data, e, CAMERA, slice(t, t + 2), 0)


def hung(rng, data):
    e = one(rng, data, 12)
    frames = np.array(data[e].steps[CAMERA])
    n = len(frames)
    frames[n // 3: n // 3 + max(6, n // 2)] = frames[n // 3]
    return but(data, e, **{CAMERA.replace(".", "__"): frames})


def fractions(rng, data):
    return every(data, CAMERA, lambda f: np.round(f / 255).astype(np.uint8))


def short_column(rng, data):
    e = one(rng, data)
    return but(data, e, **{STATE.replace(".", "__"): np.array(data[e].steps[STATE])[:len(data[e]) - 1]})


def other_shape(rng, data):
    e = one(rng, data)
    return but(data, e, action=np.array(data[e].steps[ACTION])[:, :-1] if data[e].steps[ACTION].shape[1] > 1
               else np.repeat(data[e].steps[ACTION], 2, 1))


def column_lost(rng, data):
    return but(data, one(rng, data), next__reward=None) if "next.reward" in data[0].steps else None


def silent(rng, data):
    e = one(rng, data)
    return but(data, e, task=np.full(len(data[e]), ""))


def wrong_fps(rng, data):
    return Dataset(list(data), {**data.metadata, "fps": data.fps * 3})


VALUES = (
    Kind("NaN in an action", ("not-finite",), nan(ACTION, np.nan)),
    Kind("infinity in an observation", ("not-finite",), nan(STATE, np.inf)),
    Kind("sentinel (-9999999) in an observation", ("range", "scale", "jump"), sentinel),
    Kind("terminated inside an episode", ("end-inside",), end_inside),
    Kind("an end without a flag", ("end-missing",), end_missing),
    Kind("one column a row short", ("rows-disagree",), short_column),
    Kind("an episode with other components", ("shape-disagrees",), other_shape),
    Kind("an episode without a column", ("names-disagree",), column_lost),
    Kind("timestamps that go back", ("timestamps-backwards",), back),
    Kind("a gap in the timestamps", ("timestamp-gap",), gap),
    Kind("timestamps that jitter", ("timestamps-uneven", "timestamp-gap"), jitter),
    Kind("fps three times too high", ("fps-disagrees",), wrong_fps),
    Kind("a recording that broke off", ("early-end",), cut),
    Kind("rows lost inside an episode", ("jump",), lose_rows),
    Kind("a state that jumps", ("jump", "scale"), teleport),
    Kind("an episode stored twice", ("duplicate-episode",), twice),
    Kind("a dead component", ("constant",), dead),
    Kind("a component copied over another", ("duplicate-component",), copied),
    Kind("the action in the observation", ("duplicate-component",), leaked),
    Kind("actions in another order", ("action-unrelated", "jump"), other_actions),
    Kind("actions of the other sign", ("action-unrelated", "jump"), mirrored),
    Kind("actions stored 3 to 5 steps late", ("action-lag",), late),
    Kind("positions and differences mixed", ("convention-mixed",), mixed, absolute),
    Kind("an episode's state in degrees", ("scale", "jump"), degrees(STATE)),
    Kind("an episode's actions in degrees", ("scale", "jump"), degrees(ACTION)),
    Kind("clipped actions", ("saturated",), clipped),
    Kind("integer actions of a quantity", ("dtype",), whole_numbers),
    Kind("a sensor that hangs", ("idle", "no-motion"), frozen_sensor),
    Kind("an episode without motion", ("no-motion",), still),
    Kind("success against its column", ("success-disagrees",), label),
    Kind("success against the rewards", ("success-reward",), label_and_column, sparse),
    Kind("black frames", ("image-black",), dark),
    Kind("a camera that hangs", ("image-frozen",), hung),
    Kind("pictures stored 3 to 5 steps late or early", ("camera-lag",), camera_late),
    Kind("frames of 0 to 1", ("image-range",), fractions),
    Kind("an episode without its task", ("task-missing",), silent),
)


def codes(data: Dataset) -> set[str]:
    return {f.code for f in find_problems(data, frames=True)}


def trials(sources: dict[str, Dataset], seeds: int) -> dict[str, tuple[int, int, list[str]]]:
    """By kind: (found, of, sources where it was missed)."""
    before: dict[tuple[int, str], set[str]] = {}
    out = {}
    for kind in VALUES:
        n_reported, of, missed = 0, 0, []
        for name, source in sources.items():
            clean = kind.of(source)
            for seed in range(seeds):
                spoilt = kind.spoil(np.random.default_rng(seed), clean)
                if spoilt is None:
                    continue
                key = (id(kind.of), name)
                if key not in before:
                    before[key] = codes(clean)
                of += 1
                hit = bool((codes(spoilt) - before[key]) & set(kind.codes))
                n_reported += hit
                missed += [] if hit else [name]
        out[kind.name] = n_reported, of, missed
    return out


# -- files ----------------------------------------------------------------------------------------------------------


def edit(file: Path, change) -> None:
    """A JSON file."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def rows(file: Path, name: str, at: int, value) -> None:
    """One value of a parquet column."""
    table = pq.read_table(file)
    column = table[name].to_pylist()
    column[at] = value
    pq.write_table(table.set_column(table.column_names.index(name), table.schema.field(name),
                                    [type_of(table, name, column)]), file)


def type_of(table, name, column):
    import pyarrow as pa

    return pa.array(column, table.schema.field(name).type)


def hdf5(file: Path, change) -> None:
    import h5py

    with h5py.File(file, "r+") as opened:
        change(opened)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    file.write_bytes(raw)


def cut_file(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[:int(file.stat().st_size * share)])


def _data(path):
    return path / "data/chunk-000/file-000.parquet"


def stats(path, change):
    edit(path / "meta/stats.json", lambda s: change(s["action"]))


def _masks(opened):
    key = next(iter(opened["mask"]))
    names = [b"demo_99", *opened["mask"][key][()][1:]]
    del opened["mask"][key]
    opened["mask"][key] = np.array(names)


def _next(opened):
    key = sorted(k for k in opened["data"] if len(opened[f"data/{k}/actions"]) > 2)[0]
    group = opened[f"data/{key}/next_obs"]
    name = next(k for k in group if group[k].ndim == 2)
    group[name][0] = group[name][0] + 5


FILES = {  # name: (codes, fixture, spoil)
    "LeRobot: index counts wrong": (("indices-disagree",), "lerobot/v3.0/images",
                                    lambda p: rows(_data(p), "index", 8, 3)),
    "LeRobot: frame_index out of order": (("indices-disagree",), "lerobot/v3.0/images",
                                          lambda p: rows(_data(p), "frame_index", 8, 0)),
    "LeRobot: a task that is not in the table": (("task-unknown",), "lerobot/v3.0/images",
                                                 lambda p: rows(_data(p), "task_index", 8, 7)),
    "LeRobot: names of other components": (("names-disagree",), "lerobot/v3.0/images", lambda p: edit(
        p / "meta/info.json", lambda i: i["features"]["action"].update(names=["a", "b", "c"]))),
    "LeRobot: floats declared as integers": (("dtype-disagrees",), "lerobot/v3.0/images", lambda p: edit(
        p / "meta/info.json", lambda i: i["features"]["action"].update(dtype="int64"))),
    "LeRobot: NaN statistics": (("stats-disagree",), "lerobot/v3.0/images",
                                lambda p: stats(p, lambda a: a.update(std=[float("nan")] * 2))),
    "LeRobot: stale minimum": (("stats-disagree",), "lerobot/v3.0/images",
                               lambda p: stats(p, lambda a: a.update(min=[-99.0, -99.0]))),
    "LeRobot: quantiles of other data": (("quantiles-disagree",), "lerobot/v3.0/images",
                                         lambda p: stats(p, lambda a: a.update(q50=[90.0, 90.0]))),
    "LeRobot: a data file that no episode names": (("unused-file",), "lerobot/v3.0/images", lambda p: shutil.copy(
        _data(p), p / "data/chunk-000/file-009.parquet")),
    "LeRobot: tasks table gone": (("cannot-be-read",), "lerobot/v3.0/images",
                                  lambda p: (p / "meta/tasks.parquet").unlink()),
    "LeRobot: info.json cut short": (("cannot-be-read",), "lerobot/v2.1/images",
                                     lambda p: cut_file(p / "meta/info.json", 0.5)),
    "robomimic: a mask that names no demo": (("mask-unknown",), "robomimic/low_dim_image.hdf5",
                                             lambda p: hdf5(p, _masks)),
    "robomimic: next_obs of other steps": (("next-disagrees",), "robomimic/low_dim_image.hdf5",
                                           lambda p: hdf5(p, _next)),
    "robomimic: num_samples wrong": (("counts-disagree",), "robomimic/low_dim_image.hdf5", lambda p: hdf5(
        p, lambda f: f["data/demo_0"].attrs.__setitem__("num_samples", 9))),
    "zarr: a chunk is gone": (("missing-chunk",), "diffusion_policy_zarr/raw.zarr",
                              lambda p: sorted((p / "data/action").glob("[0-9]*"))[0].unlink()),
    "zarr: a chunk cut short": (("damaged-file", "cannot-be-read"), "diffusion_policy_zarr/raw.zarr",
                                lambda p: cut_file(sorted((p / "data/action").glob("[0-9]*"))[0], 0.5)),
    "RLDS: a shard is gone": (("missing-file",), "rlds/tfrecord/closed_form/1.0.0",
                              lambda p: sorted(p.glob("*train*"))[0].unlink()),
    "RLDS: shards of other lengths": (("counts-disagree",), "rlds/tfrecord/closed_form/1.0.0", lambda p: edit(
        p / "dataset_info.json", lambda i: i["splits"][0].update(
            shardLengths=[str(int(n) + 1) for n in i["splits"][0]["shardLengths"]]))),
    "Minari: total_steps wrong": (("counts-disagree",), "minari/closed/box-v0", lambda p: edit(
        p / "data/metadata.json", lambda m: m.update(total_steps=99))),
    "ROS 1 bag without its index": (("damaged-file",), "rosbag/ros1/episode_3.bag", lambda p: cut_file(p, 0.9)),
    "MCAP: a byte changed": (("checksum", "damaged-file"), "mcap/json_zstd_3.mcap", flip),
    "OGBench npz: a byte changed": (("checksum", "damaged-file"), "ogbench/closed-v0.npz", flip),
}


def files(fixtures: Path) -> Iterator[tuple[str, bool | None]]:
    """(kind, found), of the broken fixtures and of those that are broken here; None where a fixture is not there."""
    broken = fixtures / "broken"
    for name, about in json.loads((broken / "MANIFEST.json").read_text()).items():
        try:
            yield f"fixture {name.removesuffix('.hdf5')}: {about['an_audit_should_say']}", not audit(
                broken / name, scores=False).ok
        except UserError:
            yield f"fixture {name}: {about['an_audit_should_say']}", False
    for name, (code, fixture, spoil) in FILES.items():
        source = fixtures / fixture
        if not source.exists():
            yield name, None
            continue
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / source.name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
            for file in (copy, *copy.rglob("*")) if copy.is_dir() else (copy,):
                file.chmod(0o755 if file.is_dir() else 0o644)
            spoil(copy)
            try:
                yield name, bool({f.code for f in audit(copy, scores=False).findings} & set(code))
            except UserError:
                yield name, False


# -- clean data in files --------------------------------------------------------------------------------------------


def clean_files(fixtures: Path, place: Path) -> Iterator[tuple[str, str, Path]]:
    """(format, name, path): fixtures, and toys written in each format that is written."""
    from understudy.data.formats import WRITERS, write_dataset

    for format, pattern in {"LeRobot": "lerobot/*/*/meta/info.json", "robomimic": "robomimic/*.hdf5",
                            "Minari": "minari/**/data/metadata.json", "zarr": "diffusion_policy_zarr/*.zarr*",
                            "RLDS": "rlds/tfrecord/**/dataset_info.json", "npz": "ogbench/*.npz",
                            "ACT": "act_aloha/*/episode_0.hdf5", "D4RL": "d4rl/with_*.hdf5", "MCAP": "mcap/*.mcap",
                            "ROS bag": "rosbag/ros1/*.bag"}.items():
        for file in sorted(fixtures.glob(pattern)):
            up = {"LeRobot": 2, "Minari": 2, "RLDS": 1, "ACT": 1}.get(format, 0)
            yield format, file.relative_to(fixtures).parts[-1 - up], file.parents[up - 1] if up else file
    folder = Path(os.environ.get("UNDERSTUDY_DATA", ""))
    if os.environ.get("UNDERSTUDY_DATA"):
        for file in sorted(folder.glob("*/*expert.npz")) + sorted(folder.glob("hand_dapg/*.npz")) \
                + sorted(folder.glob("ogbench/*val*.npz")):
            yield "npz", file.stem, file
    for name in ("fork", "particle", "push"):
        env = make(name, 20)
        data = rollout(env.expert(), env, 30, seed=5)
        for format in WRITERS:
            path = place / f"{name}-{format}{'.hdf5' if format in ('robomimic', 'd4rl') else ''}"
            path = path.with_suffix(".npz") if format in ("npz", "ogbench") else path
            try:
                write_dataset(data, path, format)
            except UserError as error:
                print(f"{name} as {format}: {error}")
                continue
            yield f"{format} by understudy", name, path


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--fixtures", type=Path, default=Path(__file__).parents[2] / "shared/fixtures")
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    warnings.simplefilter("ignore")
    sources = {**{name: toy(name) for name in ("fork", "particle", "push")}, **dict(recorded())}
    print(f"Values, in {', '.join(sources)}:\n\n| defect | found |\n|---|---|")
    tried = trials(sources, arguments.seeds)
    for name, (n_caught, of, missed) in tried.items():
        missed_note = f", missed in {', '.join(sorted(set(missed)))}" if missed else ""
        print(f"| {name} | {n_caught} of {of}{missed_note} |")
    print(f"\nIn all {sum(f for f, _, _ in tried.values())} of {sum(n for _, n, _ in tried.values())}.")
    if not arguments.fixtures.is_dir():
        return
    print("\nFiles:\n\n| defect | found |\n|---|---|")
    hits = [(name, hit) for name, hit in files(arguments.fixtures) if hit is not None]
    print(*(f"| {name} | {'yes' if hit else 'no'} |" for name, hit in hits), sep="\n")
    print(f"\nIn all {sum(hit for _, hit in hits)} of {len(hits)}.")
    print("\nClean:\n\n| format | data sets | episodes | errors | warnings | notes | the warnings |\n"
          + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as place:
        table: dict[str, list] = {}
        for format, name, path in clean_files(arguments.fixtures, Path(place)):
            row = table.setdefault(format, [0, 0, 0, 0, 0, []])
            try:
                report, episodes = audit(path, scores=False), len(preview_dataset(path))
            except UserError as error:
                print(f"{path}: {str(error).splitlines()[0]}")
                continue
            row[0], row[1] = row[0] + 1, row[1] + episodes
            for i, severity in enumerate(("error", "warning", "note"), 2):
                row[i] += sum(f.severity == severity for f in report.findings)
            row[5] += [f"{f.code} ({name})" for f in report.findings if f.severity != "note"]
    for format, (*counts, notes) in table.items():
        print(f"| {format} | {' | '.join(map(str, counts))} | {', '.join(notes)} |")


if __name__ == "__main__":
    main()
