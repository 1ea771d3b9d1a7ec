"""Checks of the files of a LeRobot data set, v2.0 to v3.0.

They test whether the files agree with each other, and whether the stored statistics agree with the data. `check_files`
also works if the data set cannot be opened, and continues after the first fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..core import UserError
from ..data import video
from ..data.episode import Dataset, episode_starts
from ..data.formats import remote
from ..data.formats.describe import lerobot_source
from ..data.formats.lerobot_read import (
    UNDERSTUDY_FOLDER,
    LeRobotSource,
    open_parquet,
    read_info,
    read_json_lines,
    read_tasks_v3,
)
from ..data.formats.lerobot_stats import QUANTILES
from ..data.formats.parts.column_names import format_list
from ..data.formats.parts.path_pattern import fill_pattern
from ..files import read_json
from ..hints import pluralize, repair_hint
from .base import Finding, Location, finding_from_error

_META = "write the data set again, so that the metadata come from the data"
_MAY_DIFFER = 0.02  # fraction of the standard deviation; float32 sums over a large set stay well below
_BLOCK = 1 << 20  # numbers that are worked through at once


def check_files(path: Path) -> Iterator[Finding]:
    """Checks counts, lengths, indices, data files and videos."""
    try:
        info = read_info(path)
        episodes = sorted(_episodes(path, info), key=lambda e: e["episode_index"])
    except UserError as error:
        yield finding_from_error(error, path)
        return
    ours = (path / UNDERSTUDY_FOLDER).is_dir()
    if ours and not info["total_episodes"]:  # a recording that has only begun
        return
    if ours:  # the last step of an append is info.json
        episodes = [e for e in episodes if e["episode_index"] < info["total_episodes"]]
    numbers, lengths = [e["episode_index"] for e in episodes], [e["length"] for e in episodes]
    if (info["total_episodes"], info["total_frames"]) != (len(episodes), sum(lengths)):
        yield Finding("counts-disagree", "error", f"meta/info.json says {info['total_episodes']} episodes and "
                      f"{info['total_frames']} frames, the episode tables say {len(episodes)} and {sum(lengths)}",
                      _META, Location("meta/info.json"))
    if numbers != list(range(len(numbers))):
        position = next(i for i, number in enumerate(numbers) if i != number)
        yield Finding("indices-disagree", "error",
                      f"the episodes are numbered {format_list(numbers)} instead of 0 to {len(numbers) - 1}",
                      "number them without gaps, in the tables and in the data", Location("meta/episodes", position))
    for name, f in info["features"].items():
        names = f.get("names")
        if isinstance(names, list) and len(f["shape"]) == 1 and len(names) != f["shape"][0]:
            yield Finding("names-disagree", "error",
                          f"it has {f['shape'][0]} components, but {len(names)} names",
                          "name each component, or none", Location("meta/info.json", feature=name))
    try:
        tasks = (set(read_tasks_v3(path)) if info["codebase_version"] == "v3.0"
                 else {r.get("task_index") for r in read_json_lines(path / "meta/tasks.jsonl")})
    except UserError as error:
        tasks = None
        yield finding_from_error(error, path)
    yield from _check_data_files(path, info, episodes, tasks)
    yield from _check_videos(path, info, episodes)


def _episodes(path, info) -> list[dict[str, Any]]:
    """Reads the metadata of the episodes, one row each, with the names of v3.0. Unreadable rows are left out."""
    if info["codebase_version"] != "v3.0":
        return [r for r in read_json_lines(path / "meta/episodes.jsonl")
                if isinstance(r.get("episode_index"), int) and isinstance(r.get("length"), int)]
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index",
             "data/file_index"]
    cameras = [k for k, f in info["features"].items() if f.get("dtype") == "video"]
    names += [f"videos/{c}/{k}" for c in cameras for k in ("chunk_index", "file_index")]
    rows = []
    for file in sorted((path / "meta/episodes").glob("*/*.parquet")):
        source = open_parquet(file)
        if missing := set(names) - set(source.schema_arrow.names):
            raise UserError(f"there is no column {sorted(missing)[0]!r}", where=file, hint=_META)
        try:
            rows += source.read(columns=names).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"the columns cannot be read ({error})", where=file, hint=repair_hint(path)) from None
    return rows


def _episode_file(info, key, e, **more) -> str | None:
    """Returns the file that holds an episode, or None if the path pattern of the metadata is invalid."""
    chunks = max(1, int(info.get("chunks_size") or 1000))
    prefix = f"videos/{more['video_key']}" if more else "data"
    try:
        if info["codebase_version"] == "v3.0":
            return fill_pattern(info[key], chunk_index=e[f"{prefix}/chunk_index"],
                                file_index=e[f"{prefix}/file_index"], **more)
        episode = e["episode_index"]
        return fill_pattern(info[key], episode_chunk=episode // chunks, episode_index=episode, **more)
    except (KeyError, TypeError, ValueError):
        return None


def _check_indices(name: str, columns: Mapping[str, np.ndarray], members: list[dict], row: int | None, tasks):
    """Finds index columns of a data file (episode, frame, task) that disagree with the metadata."""
    if "episode_index" in columns:
        which, counted = np.unique(columns["episode_index"], return_counts=True)
        n_rows = dict(zip(which.tolist(), counted.tolist(), strict=True))
        for m in members:
            e = m["episode_index"]
            if n_rows.get(e, 0) != m["length"]:
                yield Finding("lengths-disagree", "error", f"the tables say {m['length']} rows for episode {e}, "
                              f"but the file has {n_rows.get(e, 0)}", _META, Location(name, e))
                break
    if {"episode_index", "frame_index"} <= set(columns) and len(columns["frame_index"]):
        begins = np.diff(columns["episode_index"], prepend=columns["episode_index"][0] - 1) != 0
        start = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
        off = np.flatnonzero(columns["frame_index"] != np.arange(len(begins)) - start)
        if len(off):
            t = int(off[0])
            yield Finding("indices-disagree", "error", f"frame_index is {columns['frame_index'][t]} instead of "
                          f"{t - int(start[t])}", "sort the rows, or number them again",
                          Location(name, int(columns["episode_index"][t]), t - int(start[t]), "frame_index"))
    if "index" in columns and row is not None:
        off = np.flatnonzero(columns["index"] != row + np.arange(len(columns["index"])))
        if len(off):
            t = int(off[0])
            yield Finding("indices-disagree", "error", f"index is {columns['index'][t]} instead of {row + t}, "
                          "the number of the row", "number the rows of all files without gaps",
                          Location(name, None, None, "index"))
    if "task_index" in columns and tasks is not None:
        unknown = np.flatnonzero(~np.isin(columns["task_index"], list(tasks)))
        if len(unknown):
            yield Finding("task-unknown", "error", f"task_index {columns['task_index'][unknown[0]]} is not in "
                          "meta/tasks", "add the task, or correct the row",
                          Location(name, None, int(unknown[0]), "task_index"))


def _check_data_files(path, info, episodes, tasks):
    """Finds data files that are missing or damaged, or have rows that disagree with the metadata."""
    within: dict[str, list[dict]] = {}
    for e in episodes:
        within.setdefault(_episode_file(info, "data_path", e) or "", []).append(e)
    row = 0
    for name, members in sorted(within.items(), key=lambda item: item[1][0]["episode_index"]):
        if not (path / name).is_file():
            yield Finding("missing-file", "error", f"the file of {pluralize(len(members), 'episode')} "
                          f"({format_list(m['episode_index'] for m in members)}) is missing",
                          repair_hint(path), Location(name))
            row = None
            continue
        try:
            source = open_parquet(path / name)
            stored = [n for n in ("episode_index", "frame_index", "index", "task_index")
                      if n in source.schema_arrow.names]
            table = source.read(columns=stored)
            columns = {n: table[n].to_numpy() for n in stored}
        except (pa.ArrowException, OSError, ValueError) as error:
            yield finding_from_error(error, path, code="damaged-file") if isinstance(error, UserError) else Finding(
                "damaged-file", "error", f"the rows cannot be read ({str(error)[:160]})", repair_hint(path),
                Location(name))
            row = None
            continue
        yield from _check_types(info, source.schema_arrow, name)
        yield from _check_indices(name, columns, members, row, tasks)
        row = None if row is None else row + table.num_rows
    stray = {p.relative_to(path).as_posix() for p in (path / "data").rglob("*.parquet")} - set(within)
    if stray:
        yield Finding(
            "unused-file",
            "warning",
            f"{pluralize(len(stray), 'data file')} that no episode names: {format_list(sorted(stray))}",
            "an unfinished recording: add its episodes to the tables, or remove it",
            Location(sorted(stray)[0]),
        )


def _check_types(info, schema, file):
    """Finds columns that have another type in a file than in info.json: a reader casts them, and may lose data."""
    for name, f in info["features"].items():
        if name not in schema.names:
            if f["dtype"] != "video":
                yield Finding("names-disagree", "error", "meta/info.json names this column, but the file has none",
                              _META, Location(file, feature=name))
            continue
        kind = schema.field(name).type
        while isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind) and hasattr(kind, "value_type"):
            kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
        try:
            declared, stored = np.dtype(f["dtype"]), np.dtype(kind.to_pandas_dtype())
        except (TypeError, NotImplementedError):
            continue
        if declared.kind in "biuf" and stored.kind in "biuf" and declared != stored:
            lossy = not np.can_cast(stored, declared, "same_kind")
            yield Finding("dtype-disagrees", "error" if lossy else "warning",
                          f"the file has {stored}, but "
                          f"meta/info.json says {declared}", _META, Location(file, feature=name))


def _check_videos(path, info, episodes):
    """Finds videos that are missing, or that have more or fewer frames than their episodes have rows."""
    for camera in [k for k, f in info["features"].items() if f.get("dtype") == "video"]:
        within: dict[str, list[dict]] = {}
        for e in episodes:
            within.setdefault(_episode_file(info, "video_path", e, video_key=camera) or "", []).append(e)
        for name, members in within.items():
            first, n_expected = members[0]["episode_index"], sum(m["length"] for m in members)
            if not remote.exists(path / name):
                yield Finding("missing-file", "error", f"the video of {pluralize(len(members), 'episode')} "
                              f"({format_list(m['episode_index'] for m in members)}) is missing",
                              repair_hint(path), Location(name, first, None, camera))
            # else not fetched yet
            elif (path / name).is_file() and (n_frames := len(video.frame_times(path / name))) != n_expected:
                short = n_frames < n_expected
                yield Finding("frames-missing" if short else "frames-left-over", "error" if short else "warning",
                              f"{name}: the video has {n_frames} frames instead of {n_expected}"
                              + (": it is damaged, and cannot be trained on" if short else ""),
                              repair_hint(path) if short else "look whether frames and rows still go together",
                              Location(name, None if short else first, None, camera))


def check_frame_times(data: Dataset) -> Iterator[Finding]:
    """Finds videos with frames at other times than the metadata say. Files that are not fetched are not checked."""
    source = lerobot_source(data)
    for camera, (files, _) in source.index.videos.items() if source is not None else ():
        latest, shifted, contradicted = 0.0, [], {}
        for e, file in enumerate(files):
            if not (source.path / file).is_file():
                continue
            matched = source.videos.match(camera, e)
            late = (matched.times - matched.expected)[matched.has_frame] * source.info["fps"]
            if matched.problem:
                contradicted.setdefault(file, matched.problem)
            elif len(late) and np.abs(late).max() > 1 / 3:
                shifted.append(e)
                latest = max(latest, late.min(), late.max(), key=abs)
        for file, problem in contradicted.items():
            yield Finding("frame-times", "error", problem, "take the file from a copy, or write the video again",
                          Location(file, None, None, camera))
        if shifted:
            yield Finding("frame-times", "warning", f"{camera}: frames are up to {abs(latest):.2g} frames "
                          f"{'later' if latest > 0 else 'earlier'} than the metadata say, in "
                          f"{pluralize(len(shifted), 'episode')}; understudy reads them in order", "lerobot refuses "
                          "them, or reads frames of other rows: understudy convert writes the data set again",
                          Location(files[shifted[0]], feature=camera))


# -- statistics -----------------------------------------------------------------------------------------------------


def is_foreign(data: Dataset) -> bool:
    """Whether this is a LeRobot data set that understudy has not written."""
    return isinstance(data.source, LeRobotSource) and not (data.source.path / UNDERSTUDY_FOLDER).is_dir()


def check_stats(data: Dataset) -> Iterator[Finding]:
    """Finds statistics in meta/stats.json or of single episodes that disagree with the data."""
    source = lerobot_source(data)
    if source is None:
        return
    stored, each = _read_stats(source.path), _read_episode_stats(source.path)
    for name, f in source.schema.items():
        if f.kind != "vector" or name == "timestamp" or not f.size:
            continue
        total, squares = np.zeros(f.shape), np.zeros(f.shape)
        low, high = np.full(f.shape, np.inf), np.full(f.shape, -np.inf)
        shift, off = data[0].steps[name][0].astype(np.float64), None
        for first, raw, n in _blocks(data, name):
            values, begins = raw - shift, episode_starts(n)
            total, squares = total + values.sum(0), squares + np.square(values).sum(0)
            below, above = np.minimum.reduceat(raw, begins), np.maximum.reduceat(raw, begins)
            low, high = np.minimum(low, below.min(0)), np.maximum(high, above.max(0))
            per = n.reshape(-1, *[1] * (raw.ndim - 1))
            middle = np.add.reduceat(values, begins) / per
            spread = np.sqrt(np.add.reduceat(np.square(values - np.repeat(middle, n, 0)), begins) / per)
            for i in range(len(n)) if off is None else ():
                moments = _stored_moments(each.get(first + i, {}), name, f)
                if _differs(moments, middle[i] + shift, spread[i], below[i], above[i]):
                    off = first + i
                    break
        if not (np.isfinite(total).all() and np.isfinite(squares).all()):
            continue  # said by the check for NaN
        mean = total / data.steps + shift
        std = np.sqrt(np.maximum(squares / data.steps - np.square(total / data.steps), 0))
        if _differs(_stored_moments(stored, name, f), mean, std, low, high):
            yield Finding(
                "stats-disagree",
                "error",
                f"{name}: meta/stats.json disagrees with the data; understudy does not use it",
                "other programs normalize with it: compute it again",
                Location("meta/stats.json", None, None, name),
            )
        if off is not None:
            yield Finding("stats-disagree", "error", f"{name}: the statistics of episode {off} disagree with its data",
                          "compute them again", Location("meta/episodes", off, None, name))


def check_quantiles(data: Dataset) -> Iterator[Finding]:
    """Finds quantiles in meta/stats.json that differ from the quantiles computed from the data.

    lerobot stores the means of the quantiles of episodes, which do not have the width of the data. This is a note.
    """
    source = lerobot_source(data)
    if source is None:
        return
    stored = _read_stats(source.path)
    for name, f in source.schema.items():
        quantiles = {q: np.asarray(stored[name][q], np.float64).reshape(-1) for q in QUANTILES
                     if f.kind == "vector" and q in stored.get(name, {}) and np.size(stored[name][q]) == f.size}
        if not quantiles or not f.size:
            continue
        blocks = list(_blocks(data.select(range(0, len(data), 1 + data.steps // 1_000_000)), name))
        n = np.concatenate([lengths for _, _, lengths in blocks])
        pooled = np.concatenate([values.reshape(len(values), -1) for _, values, _ in blocks])
        if not np.isfinite(pooled).all():
            continue
        # Quantiles may come from histograms, and of large data sets only some episodes are read here.
        relative = 0.01 if data.steps <= 1_000_000 else 0.05
        tolerance = relative * np.ptp(pooled, axis=0) + 1e-5 * np.abs(pooled).max(0) + 1e-8
        is_ordered = (np.diff([quantiles[q] for q in QUANTILES if q in quantiles], axis=0) >= -tolerance).all()
        for q, of in quantiles.items():
            exact = [np.quantile(pooled, QUANTILES[q], axis=0, method=m) for m in ("lower", "higher")]
            if is_ordered and _is_between(of, exact, tolerance):
                continue
            averaged = is_ordered and _is_between(of, [*exact, *_episode_quantiles(pooled, n, QUANTILES[q])],
                                                  5 * tolerance)
            place = Location("meta/stats.json", None, None, name)
            yield Finding("quantiles-averaged", "note", f"{name}: {q} of meta/stats.json is the mean of the quantiles "
                          "of the episodes, and not the quantile of the data", "policies that normalize with it see "
                          "too narrow a range: understudy convert writes exact quantiles", place) if averaged else (
                  Finding("quantiles-disagree", "warning", f"{name}: {q} of meta/stats.json disagrees with the data",
                          "compute it again: understudy convert writes exact quantiles", place))
            break


def _is_between(values: np.ndarray, bounds: list[np.ndarray], tolerance: np.ndarray) -> bool:
    return bool((values >= np.min(bounds, 0) - tolerance).all() and (values <= np.max(bounds, 0) + tolerance).all())


def _episode_quantiles(values: np.ndarray, lengths: np.ndarray, share: float) -> list[np.ndarray]:
    """Returns the average over episodes of their quantiles (lower and upper estimate), and of their means."""
    episode, first = np.repeat(np.arange(len(lengths)), lengths), episode_starts(lengths)
    ordered = np.stack([c[np.lexsort((c, episode))] for c in values.T], 1)  # within each episode
    weights = (lengths / lengths.sum())[:, None]
    return [*((ordered[first + to(share * (lengths - 1)).astype(int)] * weights).sum(0) for to in (np.floor, np.ceil)),
            values.mean(0)]  # the average for episodes of one frame


def _blocks(data: Dataset, name: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields blocks of whole episodes: first episode, rows as float64, and number of rows of each episode."""
    first, rows, n_values = 0, [], 0
    for e, episode in enumerate(data):
        rows.append(np.asarray(episode.steps[name][:len(episode)], np.float64))
        n_values += rows[-1].size
        if n_values > _BLOCK or e + 1 == len(data):
            yield first, np.concatenate(rows), np.array([len(r) for r in rows])
            first, rows, n_values = e + 1, [], 0


def _read_stats(path) -> dict[str, Any]:
    file = path / "meta/stats.json"
    stats = read_json(file) if file.exists() else {}
    return {k: v for k, v in stats.items() if isinstance(v, dict)} if isinstance(stats, dict) else {}


def _read_episode_stats(path) -> dict[int, dict[str, Any]]:
    """Reads the statistics of each episode, with the structure of stats.json."""
    file = path / "meta/episodes_stats.jsonl"
    if file.exists():
        return {r["episode_index"]: r["stats"] for r in read_json_lines(file) if isinstance(r.get("stats"), dict)}
    out: dict[int, dict[str, Any]] = {}
    for file in sorted((path / "meta/episodes").glob("*/*.parquet")):
        source = open_parquet(file)
        names = [n for n in source.schema_arrow.names if n.startswith("stats/")
                 and n.rsplit("/", 1)[1] in ("mean", "std", "min", "max")]
        for row in source.read(columns=["episode_index", *names]).to_pylist():
            kept = out.setdefault(row["episode_index"], {})
            for name in names:
                _, feature, key = name.split("/")
                kept.setdefault(feature, {})[key] = row[name]
    return out


def _stored_moments(stored, name, f) -> dict[str, np.ndarray]:
    """Returns the stored mean, std, min and max of a column. Empty if none has the shape of the column."""
    row, out = stored.get(name), {}
    for key in ("mean", "std", "min", "max"):
        if row and row.get(key) is not None:
            try:
                values = np.asarray(row[key], np.float64)
            except (TypeError, ValueError):
                return {}
            if values.size != f.size:
                return {}
            out[key] = values.reshape(f.shape)
    return out


def _differs(stored, mean, std, low, high) -> bool:
    tolerance = _MAY_DIFFER * std + 1e-5 * np.abs(mean) + 1e-8
    actual = {"mean": mean, "std": std, "min": low, "max": high}
    return any(not np.all(np.abs(stored[k] - v) <= tolerance) for k, v in actual.items() if k in stored)


