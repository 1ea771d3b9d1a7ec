"""Statistics of LeRobot data sets: of each episode, as lerobot computes them, and exact ones over all rows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import Feature, UserError
from ...files import read_json
from ..journal import JournalFrames
from .lerobot_read import LeRobotSource, batches, open_parquet, read_groups, to_numpy

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_SAMPLED = 100  # frames per episode that the statistics of images are computed from
_ACROSS = 150  # pixels along the longer side of such a frame
_IMAGE_STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)
_IN_MEMORY = 1 << 24  # bytes of a column of numbers
_PLACES = 1024  # values at which pooled distributions are evaluated


def episode_statistics(columns: Mapping[str, np.ndarray], lengths: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Computes the statistics of every episode by numeric column, (E, ...) each, like compute_stats of lerobot.

    They are computed over all axes but the last of a feature. Quantiles are exact. Values that are not finite are left
    out of all statistics but count.
    """
    out = {}
    for name, column in columns.items():
        values = column.reshape(-1, column.shape[-1] if column.ndim > 1 else 1)
        out[name] = {**grouped_statistics(values, lengths * (len(values) // len(column))), "count": lengths[:, None]}
    return out


def stack_statistics(statistics: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([each[name] for each in statistics]) for name in statistics[0]}


def image_statistics(column: np.ndarray | JournalFrames, length: int) -> dict[str, np.ndarray]:
    """Computes statistics of the frames of one episode, by channel: in [0, 1] for images, and in mm for depth."""
    rows = np.unique(np.linspace(0, length - 1, min(length, _SAMPLED)).astype(int)).tolist()
    stride = max(1, max(column.shape[1:3]) // _ACROSS)
    sample = np.stack([column[row: row + 1][0, ::stride, ::stride] for row in rows])
    statistics = _finite_statistics(sample.reshape(-1, 1)) if sample.dtype != np.uint8 else _pixel_statistics(sample)
    return {**{k: v[:, None, None] for k, v in statistics.items()}, "count": np.array([len(rows)])}


def _pixel_statistics(sample: np.ndarray) -> dict[str, np.ndarray]:
    """Computes statistics of frames (n, h, w, C) by channel, in [0, 1], from counts of the 256 values."""
    counts = np.stack([np.bincount(sample[..., c].reshape(-1), minlength=256) for c in range(sample.shape[-1])])
    values, n = np.arange(256) / 255, counts[0].sum()
    mean = counts @ values / n
    place = np.array(list(QUANTILES.values())) * (n - 1)
    below, above = (np.stack([np.searchsorted(c, k, side="right") for c in counts.cumsum(1)], 1) / 255
                    for k in (np.floor(place), np.ceil(place)))
    quantiles = below + (above - below) * (place % 1)[:, None]
    return {"min": (counts > 0).argmax(1) / 255, "max": (255 - (counts[:, ::-1] > 0).argmax(1)) / 255, "mean": mean,
            "std": np.sqrt((counts * np.square(values - mean[:, None])).sum(1) / n),
            **dict(zip(QUANTILES, quantiles, strict=True))}


def grouped_statistics(values: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the statistics of each of E episodes.

    Args:
        values: The episodes end to end, (R, W).
        rows: Number of rows of each episode, (E,).

    Returns:
        (E, W) by statistic.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return stack_statistics([_finite_statistics(part) for part in np.split(values, np.cumsum(rows)[:-1])])
    # A copy with the values of a component adjacent in memory, which is sorted below. Differences of float16 overflow.
    columns = np.array(values.T, np.float32 if values.dtype == np.float16 else None, order="C")
    first = np.cumsum(rows) - rows
    mean = np.add.reduceat(columns, first, 1, np.float64) / rows
    deviations = columns - np.repeat(mean, rows, 1)  # float64
    std = np.sqrt(np.add.reduceat(np.square(deviations, out=deviations), first, 1) / rows)
    for episode in np.split(columns, first[1:], 1):
        episode.sort(1)
    out = {"min": _stored_extreme(columns[:, first]), "max": _stored_extreme(columns[:, first + rows - 1]),
           "mean": mean, "std": std}
    for name, q in QUANTILES.items():
        place = q * (rows - 1)
        below = np.floor(place).astype(np.int64)
        a, b = (columns[:, first + np.minimum(k, rows - 1)].astype(np.float64) for k in (below, below + 1))
        t = place - below
        out[name] = np.where(t < 0.5, a + (b - a) * t, b - (b - a) * (1 - t))
    return {name: statistic.T for name, statistic in out.items()}


def _finite_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Computes statistics of one episode over its finite values, (W,) each. Components without any have zeros."""
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    finite[:, np.isnan(finite).all(0)] = 0.0
    quantiles = np.nanquantile(finite, list(QUANTILES.values()), axis=0)
    return {"min": np.nanmin(finite, 0), "max": np.nanmax(finite, 0), "mean": np.nanmean(finite, 0),
            "std": np.nanstd(finite, 0), **dict(zip(QUANTILES, quantiles, strict=True))}


def _stored_extreme(values: np.ndarray) -> np.ndarray:
    """Converts a minimum or maximum to the dtype in which it is stored, because float64 cannot hold all integers."""
    if values.dtype.kind in "iu":
        most = min(np.iinfo(np.int64).max, np.iinfo(values.dtype).max)  # the tables of lerobot store int64
        return np.minimum(values, most).astype(np.int64)
    return values if values.dtype.kind == "b" else values.astype(np.float64)


def number_statistics(files: Iterable[tuple[Path, np.ndarray | None]], features: Mapping[str, Mapping]) \
        -> dict[str, dict[str, np.ndarray]]:
    """Computes the exact statistics of all rows of all columns of numbers, from the data files.

    Args:
        files: Data files and the rows to read of each, (n,). None stands for all rows.
        features: The columns as info.json describes them.
    """
    opened, out = [(open_parquet(file), rows, file) for file, rows in files], {}
    for name, f in features.items():
        if f["dtype"] in ("image", "video", "string", "language") or any(
                name not in source.schema_arrow.names for source, _, _ in opened):
            continue
        feature = Feature.from_array(np.empty((0, *f["shape"]), f["dtype"]))
        n_rows = sum(source.metadata.num_rows if rows is None else len(rows) for source, rows, _ in opened)
        components = [grouped_statistics(values[:, None], np.array([len(values)]))
                      for values in _components(opened, name, feature, n_rows)]
        out[name] = {**{key: np.concatenate([c[key][0] for c in components]) for key in components[0]},
                     "count": np.array([n_rows])}
    return out


def _components(opened: Sequence[tuple[pq.ParquetFile, np.ndarray | None, Path]], name: str, feature: Feature,
                n_rows: int) -> Iterator[np.ndarray]:
    """Yields all values of the first component of a column, then all values of the second component, and so on.

    A large column is divided into its components in a temporary file, because it need not fit into memory.
    """
    width, each = feature.shape[-1], n_rows * feature.size // feature.shape[-1]
    dtype, at = np.dtype(feature.dtype), 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(opened[0][2].parent)) as scratch:
        for source, rows, file in opened:
            row = 0
            for groups in batches(source.metadata, feature.size * dtype.itemsize):
                column = read_groups(source, groups, [name], file)[name].combine_chunks()
                if rows is not None:
                    inside = rows[(rows >= row) & (rows < row + len(column))]
                    row, column = row + len(column), column.take(pa.array(inside - row))
                values = to_numpy(column, feature, f"{file}, {name}").reshape(-1, width)
                for i in range(width):
                    scratch.seek((i * each + at) * dtype.itemsize)
                    scratch.write(values[:, i].tobytes())
                at += len(values)
        for i in range(width):
            scratch.seek(i * each * dtype.itemsize)
            yield np.frombuffer(scratch.read(each * dtype.itemsize), dtype)


def image_statistics_so_far(source: LeRobotSource, cameras: Iterable[str]) -> list[dict]:
    """Returns the statistics of the cameras in the existing episodes, as `aggregate_statistics` takes them.

    They are read from the episode tables. If there are none in the tables, they are read from stats.json, provided that
    it counts all rows. If there are none in either place, frames are decoded.
    """
    total, out = source.info["total_frames"], []
    stored: dict[str, dict] = {}
    with contextlib.suppress(UserError):  # absent, or damaged by another program
        content = read_json(source.path / "meta" / "stats.json")
        stored = {n: s for n, s in content.items() if isinstance(s, dict)} if isinstance(content, dict) else {}
    counts = [np.ravel(s["count"]) for s in stored.values() if "count" in s]
    is_complete = any(len(count) == 1 and count[0] == total for count in counts)
    tables = [open_parquet(t) for t in sorted((source.path / "meta" / "episodes").glob("*/*.parquet"))]
    for camera in cameras:
        channels = source.schema[camera].shape[2]
        names = [f"stats/{camera}/{key}" for key in _IMAGE_STATISTICS]
        names = [n for n in names if all(n in t.schema_arrow.names for t in tables)]
        rows = [row for t in tables for row in t.read(columns=["episode_index", *names]).to_pylist()
                if row["episode_index"] < len(source.lengths)]
        each = [_as_image_statistics({n.rsplit("/", 1)[1]: row[n] for n in names}, channels) for row in rows]
        if not all(each) and is_complete:
            each = [_as_image_statistics(stored.get(camera) or {}, channels)]
        if not all(each):
            each = [image_statistics(source.column(camera, e), int(n)) for e, n in enumerate(source.lengths)]
        out += [{camera: {key: value[None] for key, value in one.items()}} for one in each]
    return out


def _as_image_statistics(stored: Mapping, channels: int) -> dict[str, np.ndarray]:
    """Converts stored statistics of a camera to the shapes of `image_statistics`. Empty if some of them are absent."""
    values = {key: np.asarray(value, np.float64).reshape(-1) for key, value in stored.items()
              if key in _IMAGE_STATISTICS and value is not None}
    if not {"min", "max", "mean", "std", "count"} <= values.keys() or values["count"].size != 1 or any(
            v.size != channels for key, v in values.items() if key != "count"):
        return {}
    return {key: v.astype(np.int64) if key == "count" else v[:, None, None] for key, v in values.items()}


def aggregate_statistics(parts: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Combines the statistics of several parts of a data set to statistics of all episodes, by column.

    Means and standard deviations are exact (pooled moments, Chan et al. 1983). Quantiles are computed from a
    distribution that is linear between the quantiles of each episode.

    Args:
        parts: The statistics of the episodes of each part, (E, ...) by column and statistic.
    """
    out = {}
    for name, statistics in pool_statistics(parts).items():
        count = statistics["count"].astype(np.float64)[:, 0]
        weights = count / count.sum()
        centre = np.tensordot(weights, statistics["mean"], 1)
        spread = np.tensordot(weights, np.square(statistics["std"]) + np.square(statistics["mean"] - centre), 1)
        out[name] = {"min": statistics["min"].min(0), "max": statistics["max"].max(0), "mean": centre,
                     "std": np.sqrt(spread), "count": np.array([int(count.sum())]),
                     **(_pooled_quantiles(statistics, weights) if QUANTILES.keys() <= statistics.keys() else {})}
    return out


def _pooled_quantiles(statistics: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Estimates quantiles over all episodes from the minimum, maximum and quantiles of each one, with weights (E,)."""
    knots = np.stack([statistics[key] for key in ("min", *QUANTILES, "max")], 1)
    flat = knots.reshape(*knots.shape[:2], -1).astype(np.float64)  # (E, 7, components)
    out = np.empty((len(QUANTILES), flat.shape[2]))
    for i in range(flat.shape[2]):
        values = np.unique(flat[:, :, i])
        values = values[np.unique(np.linspace(0, len(values) - 1, _PLACES).astype(int))]
        # The share below and that up to a value differ where an episode has many equal values.
        shares = np.stack([sum(w * _share(values, k, side) for w, k in zip(weights, flat[:, :, i], strict=True))
                           for side in ("left", "right")], 1)
        out[:, i] = np.interp(list(QUANTILES.values()), shares.reshape(-1), np.repeat(values, 2))
    return dict(zip(QUANTILES, out.reshape(len(QUANTILES), *knots.shape[2:]), strict=True))


def _share(values: np.ndarray, knots: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """Estimates the fraction of an episode that is below ("left") or up to ("right") each value, from its quantiles."""
    levels = np.array([0, *QUANTILES.values(), 1])
    after = np.clip(at := np.searchsorted(knots, values, side), 1, len(knots) - 1)
    width = knots[after] - knots[after - 1]
    part = np.divide(values - knots[after - 1], width, out=np.zeros_like(values), where=width > 0)
    inside = levels[after - 1] + (levels[after] - levels[after - 1]) * part
    return np.where(at == 0, 0.0, np.where(at == len(knots), 1.0, inside))


def pool_statistics(parts: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Pools the statistics of several parts by column, for the statistics that all parts with the column have."""
    out = {}
    for name in dict.fromkeys(n for part in parts for n in part):
        have = [part[name] for part in parts if name in part]
        out[name] = {statistic: np.concatenate([h[statistic] for h in have]) for statistic in have[0]
                     if all(statistic in h for h in have)}
    return out


def plain_lists(stats: Mapping) -> dict:
    return {n: {k: np.asarray(v).tolist() for k, v in s.items()} for n, s in stats.items()}
