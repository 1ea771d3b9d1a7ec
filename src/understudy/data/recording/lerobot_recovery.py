"""Recovery of LeRobot data sets: rows by their own numbers, and frames by their times, whatever the tables say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import UserError
from ...files import write_json
from .. import journal, video
from ..formats import interrupted_recording
from ..formats.lerobot_read import UNDERSTUDY_FOLDER, open_parquet, read_info, read_json_lines
from ..formats.lerobot_videos import match_frames
from ..formats.parts.links import make_link
from ..formats.parts.path_pattern import fill_pattern


def _renumber(rows: pa.Table, episode: int, first: int) -> pa.Table:
    """Gives the rows of an episode a new episode number and new row indices, starting at `first`."""
    columns = {"episode_index": np.full(len(rows), episode), "index": first + np.arange(len(rows))}
    for name, values in columns.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    return rows


class LeRobotRepair:
    """Repairs a LeRobot data set by copying its numbers without the lost rows. Videos are linked.

    Which rows belong to an episode follows from the index columns of the data, because lengths in the tables may be
    wrong. The rows from the first one without a frame on are lost, because nothing can take their place.
    """

    def __init__(self, path: Path, folder: Path, report_loss: Callable[[str], None]):
        self.path, self.out, self.report_loss, self.info = path, folder / "data", report_loss, read_info(path)
        self.is_v3 = self.info["codebase_version"] == "v3.0"
        self.cameras = [c for c, f in self.info["features"].items() if f["dtype"] == "video"]
        self.chunks = max(1, int(self.info.get("chunks_size", 1000)))
        self.filmed: dict[int, tuple[int, str]] = {}  # by episode: rows with frames, and why there are no more
        self.kept: list[dict] = []  # rows of the tables of episodes, with the new numbers
        self.numbers: list[int] = []  # the old number of each kept episode
        self.cut: set[int] = set()  # numbers of episodes that have lost rows
        self.frames = 0  # number of frames of the kept episodes

    def run(self) -> Path:
        """Writes the repaired copy, and returns its folder."""
        (self.out / "meta").mkdir(parents=True)
        if self.is_v3:
            rows = _read_episode_tables(self.path, self.info, self.report_loss)
        else:
            rows = {r["episode_index"]: r for r in read_json_lines(self.path / "meta" / "episodes.jsonl")}
        files: dict[str, dict[int, dict]] = {}
        for number, row in rows.items():
            files.setdefault(self._stored_path("data_path", number, row), {})[number] = row
        if self.cameras:
            times = {n: t for file, inside in files.items() for n, t in self._row_times(file, inside).items()}
            for camera in self.cameras:
                self._match_frames(camera, rows, times)
        for file, inside in files.items():
            self._copy_numbers(file, inside)
        for number, row in zip(self.numbers, self.kept, strict=True):
            self._copy_videos(number, row)
        _write_metadata(self.path, self.out, self.info, self.kept, self.numbers, self.is_v3, self.cut)
        return self.out

    def _stored_path(self, key: str, number: int, row, **more) -> str:
        """Returns the file of an episode: by its number in v2, and by its row of the tables in v3.0."""
        if not self.is_v3:
            return fill_pattern(self.info[key], episode_chunk=number // self.chunks, episode_index=number, **more)
        at = f"videos/{more['video_key']}" if more else "data"
        return fill_pattern(self.info[key], chunk_index=row[f"{at}/chunk_index"],
                            file_index=row[f"{at}/file_index"], **more)

    def _row_times(self, file: str, rows: dict[int, dict]) -> dict[int, np.ndarray]:
        """Returns the time (s) of each row of the episodes in a data file. Times of unreadable rows are computed."""
        table = _readable_row_groups(self.path / file, lambda loss: None, ["episode_index", "frame_index", "timestamp"])
        out = {}
        for number, row in rows.items():
            part = _rows_of(table, number)
            n = len(part) or max(int(row.get("length") or 0), 1)
            out[number] = np.arange(n) / self.info["fps"]
            if len(part) and "timestamp" in part.column_names:
                out[number] = part["timestamp"].to_numpy().astype(np.float64).reshape(-1)
        return out

    def _match_frames(self, camera: str, rows: dict[int, dict], times: dict[int, np.ndarray]) -> None:
        """Finds the rows of each episode that have frames, and when its frames begin in their file."""
        key, inside = f"videos/{camera}/from_timestamp", {}
        for number, row in rows.items():
            inside.setdefault(self._stored_path("video_path", number, row, video_key=camera), []).append(number)
        for file, numbers in inside.items():
            frames = video.frame_times(self.path / file)
            begins = [float(rows[n][key]) if self.is_v3 else 0.0 for n in numbers]
            expected = [begin + times[n] for begin, n in zip(begins, numbers, strict=True)]
            for n, matched in zip(numbers, match_frames(frames, expected, self.info["fps"]), strict=True):
                whole = int(np.argmin(np.append(matched.has_frame, False)))
                if whole < self.filmed.get(n, (len(matched.times), ""))[0]:
                    self.filmed[n] = whole, f"{self.path / file}: {matched.problem or f'no frame for row {whole}'}"
                if self.is_v3 and whole:
                    rows[n][key] = float(matched.times[0] - times[n][0])

    def _copy_numbers(self, file: str, rows: dict[int, dict]) -> None:
        """Writes the intact rows of the episodes of one file."""
        losses: list[str] = []
        table = _readable_row_groups(self.path / file, losses.append)
        for loss in losses:
            self.report_loss(loss)
        parts: dict[str, list[pa.Table]] = {}  # by file
        for number, row in rows.items():
            if (part := self._intact_part(table, file, number, row, bool(losses))) is None:
                continue
            episode, length = len(self.kept), len(part)
            target = self._stored_path("data_path", episode, row)
            parts.setdefault(target, []).append(_renumber(part, episode, self.frames))
            self.kept.append({**row, "episode_index": episode, "length": length, "dataset_from_index": self.frames,
                              "dataset_to_index": self.frames + length})
            self.numbers.append(number)
            self.frames += length
        for target, tables in parts.items():
            (self.out / target).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(tables), self.out / target)

    def _intact_part(self, table: pa.Table | None, file: str, number: int, row: dict, is_damaged: bool
                     ) -> pa.Table | None:
        """Returns the rows of an episode up to the first one that is missing or has no frame, and reports it."""
        part, location = _rows_of(table, number), f"{self.path / file}, episode {number}"
        n_stored = 0 if table is None else int((table["episode_index"].to_numpy() == number).sum())
        expected = max(n_stored, int(row.get("length") or 0) if is_damaged or not n_stored else 0)
        if len(part) < expected or not expected:
            self.report_loss(f"{location}: {len(part)} of its {expected} rows can be read")
        videos = [self._stored_path("video_path", number, row, video_key=c) for c in self.cameras]
        missing = [video for video in videos if not (self.path / video).is_file()]
        if missing and len(part):
            self.report_loss(f"{self.path / missing[0]}, episode {number}: the file is missing")
            return None
        whole, problem = self.filmed.get(number, (len(part), ""))
        if whole < len(part):
            self.report_loss(f"episode {number}: {len(part) - whole} of its {len(part)} rows have no frame ({problem})")
        n = min(whole, len(part))
        self.cut |= {number} if n < expected else set()
        return part.slice(0, n) if n else None

    def _copy_videos(self, number: int, row: dict) -> None:
        for camera in self.cameras:
            source, copy = (self._stored_path("video_path", n, row, video_key=camera)
                            for n in (number, row["episode_index"]))
            target = self.out / copy
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _repair_video(self.path / source, target, self.report_loss)


def _repair_video(path: Path, to: Path, report_loss) -> None:
    """Links a video or, if it is cut off, copies the frames before the cut."""
    good = broken = 0
    try:
        with av.open(str(path), metadata_errors="replace") as source:
            for packet in source.demux(source.streams.video[0]):
                good, broken = good + (packet.size > 0 and not packet.is_corrupt), broken + packet.is_corrupt
    except (av.FFmpegError, OSError, IndexError):
        broken += 1
    if not good or not broken:  # complete, or nothing readable: reading reports it
        make_link(to, path)
        return
    report_loss(f"{path}: what follows after {good} frames")
    with av.open(str(path), metadata_errors="replace") as source, av.open(str(to), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        try:
            for packet in source.demux(source.streams.video[0]):
                if packet.size and not packet.is_corrupt:
                    packet.stream = stream
                    target.mux(packet)
        except (av.FFmpegError, OSError):
            pass


def _write_metadata(path: Path, out: Path, info: dict, kept: list[dict], numbers: list[int], v3: bool,
                    cut: set[int]) -> None:
    """Writes the metadata of the kept episodes, without the last observations of episodes that were cut."""
    write_json(out / "meta/info.json", {**info, "total_episodes": len(kept),
                                        "total_frames": sum(r["length"] for r in kept)})
    for name in ("tasks.parquet", "tasks.jsonl"):
        if (path / "meta" / name).exists():
            shutil.copy(path / "meta" / name, out / "meta" / name)
    if not v3:
        (out / "meta/episodes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    elif kept:
        names = [n for n in kept[0] if not n.startswith("stats/") and all(n in r for r in kept)]
        (out / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.table({n: [r[n] for r in kept] for n in names}),
                       out / "meta/episodes/chunk-000/file-000.parquet")
    if not (path / UNDERSTUDY_FOLDER).is_dir():
        return
    (out / UNDERSTUDY_FOLDER).mkdir()
    if (path / UNDERSTUDY_FOLDER / "schema.json").exists():
        shutil.copy(path / UNDERSTUDY_FOLDER / "schema.json", out / UNDERSTUDY_FOLDER)
    new = {old: i for i, old in enumerate(numbers)}
    if (path / UNDERSTUDY_FOLDER / "episodes.jsonl").exists():
        rows = [r for r in read_json_lines(path / UNDERSTUDY_FOLDER / "episodes.jsonl") if r["episode_index"] in new]
        (out / UNDERSTUDY_FOLDER / "episodes.jsonl").write_text("".join(
            json.dumps({**r, "episode_index": new[r["episode_index"]]}) + "\n" for r in rows))
    if (path / UNDERSTUDY_FOLDER / "last.parquet").exists():
        table = open_parquet(path / UNDERSTUDY_FOLDER / "last.parquet").read()
        episode_numbers = table["episode_index"].to_pylist()
        table = table.filter(pa.array([e in new and e not in cut for e in episode_numbers]))
        at = pa.array([new[e] for e in episode_numbers if e in new and e not in cut], pa.int64())
        pq.write_table(table.set_column(table.column_names.index("episode_index"), "episode_index", at),
                       out / UNDERSTUDY_FOLDER / "last.parquet")
    segments = [journal.read_segment(f) for f in journal.segment_files(path / journal.JOURNAL_FOLDER)]
    for segment in interrupted_recording.unpublished_segments(segments, path, info["total_episodes"]):
        (out / journal.JOURNAL_FOLDER).mkdir(exist_ok=True)
        make_link(out / journal.JOURNAL_FOLDER / segment.path.name, segment.path)


def _read_episode_tables(path: Path, info: dict, report_loss) -> dict[int, dict]:
    """Reads the readable rows of the episode tables, by number. Missing rows are computed from the data."""
    rows: dict[int, dict] = {}
    is_own = (path / UNDERSTUDY_FOLDER).is_dir()  # its last episodes may be of an append that did not finish
    for file in sorted((path / "meta/episodes").glob("*/*.parquet")):
        table = _readable_row_groups(file, report_loss)
        if table is not None:
            rows |= {r["episode_index"]: r for r in table.to_pylist()
                     if not is_own or r["episode_index"] < info["total_episodes"]}
    has_video = any(f["dtype"] == "video" for f in info["features"].values())
    if not has_video and (not is_own or len(rows) < info["total_episodes"]):
        for file in sorted((path / "data").glob("chunk-*/file-*.parquet")):
            table = _readable_row_groups(file, lambda loss: None)
            chunk, number = (int(p.rsplit("-", 1)[1]) for p in (file.parent.name, file.stem))
            for e in [] if table is None else np.unique(table["episode_index"].to_numpy()).tolist():
                rows.setdefault(e, {"episode_index": e, "data/chunk_index": chunk, "data/file_index": number})
    return dict(sorted(rows.items()))


def _rows_of(table: pa.Table | None, episode: int) -> pa.Table:
    """Returns the rows of an episode up to the first one that is missing."""
    if table is None:
        return pa.table({"frame_index": pa.array([], pa.int64())})
    part = table.filter(pa.array(table["episode_index"].to_numpy() == episode))
    is_next = part["frame_index"].to_numpy() == np.arange(len(part))
    return part.slice(0, int(np.argmin(np.append(is_next, False))))


def _readable_row_groups(file: Path, report_loss, columns: list[str] | None = None) -> pa.Table | None:
    """Reads the readable row groups of a Parquet file."""
    try:
        source = open_parquet(file)
    except UserError as error:
        report_loss(str(error).splitlines()[0])
        return None
    parts = []
    for group in range(source.metadata.num_row_groups):
        try:
            parts.append(source.read_row_group(group, columns))
        except (pa.ArrowException, OSError) as error:
            report_loss(f"{file}, row group {group}: {str(error).splitlines()[0][:160]}")
    return pa.concat_tables(parts) if parts else None
