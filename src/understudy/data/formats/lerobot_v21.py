"""Writing of LeRobot v2.1 data sets, for lerobot before 0.4: one parquet file and one video per camera for each
episode.

What LeRobot cannot store is kept in meta/understudy, as in v3.0 (see `lerobot`), and is read from there again. Source:
huggingface/lerobot v0.3.3, src/lerobot/datasets/{utils,lerobot_dataset}.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from ...files import write_text
from .. import video
from ..episode import Dataset
from .lerobot_stats import plain_lists, pool_statistics
from .lerobot_write import (
    _LeRobotWriter,
    _plan,
    capability,
    check_images,
    split_for_lerobot,
)
from .parts import sidecar
from .parts.path_pattern import fill_pattern

__all__ = ["capability", "write"]

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_INFO = (  # keys of info.json, in order
    "codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks", "total_videos", "total_chunks",
    "chunks_size", "fps", "splits", "data_path", "video_path", "features")
_STATS = ("min", "max", "mean", "std", "count")


def write(dataset: Dataset, path: str | Path, *, images: Literal["video", "av1", "h264", "png"] = "video") -> None:
    """Writes a LeRobot v2.1 data set, which lerobot 0.1 to 0.3 opens unchanged.

    In all else it is like `lerobot_write.write`.
    """
    check_images(images)
    own, kept = split_for_lerobot(dataset)
    with sidecar.new_folder(path, dataset, kept) as part:
        plan = _plan(own.features(), dataset.fps, dataset.metadata.get("robot_type"), images)
        video_path = VIDEO_PATH if plan.info["video_path"] else None
        info = {**plan.info, "codebase_version": "v2.1", "total_videos": 0, "total_chunks": 0, "data_path": DATA_PATH,
                "video_path": video_path}
        plan = replace(plan, info={key: info[key] for key in _INFO})
        _LeRobotV21Writer(part, plan, dataset.fps is not None).add(own)


class _LeRobotV21Writer(_LeRobotWriter):
    """Writer of LeRobot v2.1. Only the files differ from the files of v3.0."""

    def _file_path(self, pattern: str, e: int, **more) -> Path:
        chunk = e // self.plan.info["chunks_size"]
        path = self.root / fill_pattern(pattern, episode_chunk=chunk, episode_index=e, **more)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_data(self, columns, frames, lengths, first):
        starts = np.cumsum(lengths) - lengths
        for at, tables in zip(starts, self._row_groups(columns, frames, lengths), strict=True):
            file = self._file_path(DATA_PATH, int(columns["episode_index"][at]))
            with pq.ParquetWriter(file.absolute(), self._schema) as writer:
                for table in tables:
                    writer.write_table(table)
        return [{} for _ in lengths]

    def _write_videos(self, number, films, times):
        for camera, frames in films.items():
            file = self._file_path(VIDEO_PATH, number, video_key=camera)
            writer = video.VideoWriter(file, self.plan.codec, frames.shape[1:], self.plan.fps)
            try:
                writer.add(frames[:len(times)], times)
                writer.close()
            except BaseException:
                writer.abort()
                raise
        return {}

    def _close(self):
        pass

    def _commit(self):
        meta, total = self.root / "meta", len(self._rows)
        statistics = pool_statistics(self._stats)
        by_episode = [{n: {k: s[k][e] for k in _STATS} for n, s in statistics.items()} for e in range(total)]
        stats = [{"episode_index": e, "stats": plain_lists(each)} for e, each in enumerate(by_episode)]
        tasks = [{"task_index": i, "task": t} for i, t in self._task_rows]
        for name, rows in (("tasks", tasks), ("episodes", self._rows), ("episodes_stats", stats)):
            write_text(meta / f"{name}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        self._write_understudy_folder()
        size = self.plan.info["chunks_size"]
        info = {**self.plan.info, "total_episodes": total, "total_frames": self._steps, "total_tasks": len(tasks),
                "total_videos": total * len(self.plan.cameras), "total_chunks": -(-total // size),
                "splits": {"train": f"0:{total}"}}
        write_text(meta / "info.json", json.dumps(info, indent=4, ensure_ascii=False))
