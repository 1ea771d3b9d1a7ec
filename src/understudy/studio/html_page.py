"""A page about a data set, which opens from disk: episodes, plots, images, a map, statistics and findings.

A small data set is one file. For larger data, the file contains what lists and maps need, and a folder next to it has
pieces of episodes. Each piece is a script, because browsers do not let a page from disk load anything else. Nothing is
loaded from the network. The content security policy of the page allows only its own code, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import Any

import av
import numpy as np

from .. import __version__
from ..audit.base import AuditReport
from ..core import Feature, UserError, role
from ..data import video
from ..data.episode import Dataset, Episode
from ..data.formats.describe import episode_tasks
from ..data.tasks import decode_text
from ..evaluate import plots
from ..files import replace_nonfinite, whole_folder, write_text

Progress = Callable[[int, int], None]  # (episodes done, of)

MAX_INLINE_BYTES = 6_000_000  # bytes of episodes up to which one file holds them
_PIECE_BYTES = 1_000_000  # approximate bytes of a piece
_MAX_VALUES = 16_000_000  # numbers that plots show; with more, only every k-th row
_MAX_COMPONENTS = 32  # shown components of a column
# thumbnails in total, and per camera of an episode that has any
_MAX_THUMBNAILS, _MAX_PER_EPISODE, _MIN_PER_EPISODE = 4_000, 40, 6
_THUMBNAIL_SIZE = 160, 120  # largest width and height of a thumbnail in pixels
_MAX_MAP_POINTS = 4_000  # points of a map
_MAX_FINDINGS = 2_000
_SPARKLINE_POINTS, _MAX_SPARKLINES = 32, 3  # points and lines of a sparkline
_BINS = 24


@dataclass(frozen=True)
class _ShownColumn:
    """A column as the page shows it: `size` components, every `every`-th row."""

    name: str
    feature: Feature
    size: int
    labels: tuple[str, ...]

    @property
    def text(self) -> bool:
        return self.feature.kind in ("text", "string")


def write_dataset_page(file: Path | str, data: Dataset, report: AuditReport | None = None, *, title: str | None = None,
                       progress: Progress | None = None) -> Path:
    """Writes the page of a data set. Reads every number once, and some camera frames.

    If an episode cannot be read, the page shows the reason in its place.

    Args:
        file: The page. Nothing may exist there, nor at the folder next to it.
        progress: Called with the number of finished episodes and their total.
    """
    file = Path(file)
    folder = file.with_name(f"{file.stem}-data")
    for path in (file, folder):
        if path.exists():
            raise UserError("this file or folder already exists", where=path,
                            hint="choose another name, or remove it first")
    pages = _EpisodePages(data, report or AuditReport(()))
    with nullcontext() if pages.inline else whole_folder(folder) as part:
        pieces = _write_pieces(pages, part, progress)
    index = pages.index(title or f"{data.metadata.get('path', 'Demonstrations')}", folder.name, pieces)
    write_text(file, _html(index, pieces if pages.inline else []))
    return file


def _write_pieces(pages: _EpisodePages, part: Path | None, progress: Progress | None) -> list[tuple[int, str]]:
    """Writes the episodes in pieces. Returns (first episode, JSON) of each; in a folder, the JSON is a script."""
    out, pending, size, first = [], [], 0, 0
    for e in range(pages.count):
        pending.append(_script_json(pages.episode(e)))
        size += len(pending[-1])
        if size >= _PIECE_BYTES or e + 1 == pages.count:
            text = f"[{','.join(pending)}]"
            if part is not None:
                (part / f"{len(out)}.js").write_text(f"understudyPiece({len(out)},{text});\n", encoding="utf-8")
                text = ""
            out.append((first, text))
            pending, size, first = [], 0, e + 1
        if progress is not None:
            progress(e + 1, pages.count)
    return out


class _EpisodePages:
    """Collects what the page shows of each episode, in order, and then of the whole data set."""

    def __init__(self, data: Dataset, report: AuditReport):
        self.data, self.report, self.count = data, report, len(data)
        self.lengths = np.asarray(data.lengths, np.int64) if self.count else np.zeros(0, np.int64)
        features = data.features() if self.count else {}
        kept = {n: f for n, f in features.items() if role(n) != "index" or n == "timestamp"}
        self.columns = [_column(n, f) for n, f in kept.items() if f.kind != "image"]
        self.cameras = [n for n, f in kept.items() if f.kind == "image"]
        self.numbers = [c for c in self.columns if not c.text]
        values = int((self.lengths + 1).sum()) * sum(c.size for c in self.numbers)
        self.row_interval = max(1, math.ceil(values / _MAX_VALUES))
        self.marked: dict[int, list[int]] = {}  # steps with findings
        for f in report.findings:
            if f.where.episode is not None and f.where.step is not None:
                self.marked.setdefault(f.where.episode, []).append(f.where.step)
        self.pictures = self._thumbnails_per_episode()
        frames = sum(self.pictures.values())
        self.inline = values / self.row_interval * 5.4 + frames * 4_500 + self.count * 500 <= MAX_INLINE_BYTES
        self.tasks: dict[str, int] = {}
        self.task, self.success = np.full(self.count, -1), [None] * self.count
        spark = next((c for c in self.numbers if role(c.name) == "action"), next(iter(self.numbers), None))
        self.spark = spark
        self.lines = np.full(
            (self.count, min(spark.size, _MAX_SPARKLINES) if spark else 0, _SPARKLINE_POINTS), np.nan, np.float32
        )
        self.maps = [_ProjectionMap(title, [c for c in self.numbers if role(c.name) == kind]) for title, kind in
                     (("States", "observation"), ("Actions", "action"))]
        self.maps = [m for m in self.maps if m.columns]
        steps = int(self.lengths.sum())
        # steps between points of a map, counted over all episodes
        self.outlier_scores = max(1, math.ceil(steps / _MAX_MAP_POINTS))
        self.before = np.cumsum(self.lengths) - self.lengths
        self.totals = {c.name: _RunningStatistics(c.size) for c in self.numbers}
        self.sampled: dict[str, list[np.ndarray]] = {c.name: [] for c in self.numbers}
        self.unread: list[int] = []

    def _thumbnails_per_episode(self) -> dict[int, int]:
        """Returns how many thumbnails of each camera each episode has, so that they are not too many."""
        if not self.cameras or not self.count:
            return {}
        each = min(_MAX_PER_EPISODE, _MAX_THUMBNAILS // (len(self.cameras) * self.count))
        if each >= _MIN_PER_EPISODE:
            return dict.fromkeys(range(self.count), each)
        many = max(1, _MAX_THUMBNAILS // (len(self.cameras) * _MIN_PER_EPISODE))
        spread = np.unique(np.linspace(0, self.count - 1, many // 2).round().astype(int)).tolist()
        named = list(self.marked)[:many - len(spread)]
        return dict.fromkeys(sorted({*spread, *(e for e in named if e < self.count)}), _MIN_PER_EPISODE)

    # -- one episode -----------------------------------------------------------------------------------------------

    def episode(self, e: int) -> dict[str, Any]:
        """{"columns": {name: {"type", "rows", "data"}}, "text": {name: [[row, text], ...]}, "frames", "meta",
        "unread": {name: why}}"""
        episode, n = self.data[e], int(self.lengths[e])
        out: dict[str, Any] = {k: {} for k in ("columns", "text", "frames", "unread")}
        out["meta"] = replace_nonfinite(dict(episode.metadata))
        picked = np.arange((-self.before[e]) % self.outlier_scores, n, self.outlier_scores)
        points: dict[str, np.ndarray] = {}
        for c in self.columns:
            try:
                values = np.asarray(episode.steps[c.name])
                if c.text:
                    out["text"][c.name] = text_runs(decode_texts(values))
                    continue
                values = values.reshape(len(values), -1)[:, :c.size]
            except (UserError, KeyError, ValueError) as error:
                out["unread"][c.name] = error.problem if isinstance(error, UserError) else "it is not there"
                continue
            if values.shape[1] != c.size or values.dtype.kind not in "biuf":
                out["unread"][c.name] = f"its shape {values.shape} or type {values.dtype} is not that of the others"
                continue
            out["columns"][c.name] = _encode_values(values[::self.row_interval])
            self.totals[c.name].add(values)
            if len(values) >= n:
                points[c.name] = values[picked].astype(np.float64)
                self.sampled[c.name].append(points[c.name])
            if c is self.spark and len(values):
                at = np.linspace(0, len(values) - 1, _SPARKLINE_POINTS).round().astype(int)
                self.lines[e] = values[at, :len(self.lines[e])].T
        for m in self.maps:
            if all(c.name in points for c in m.columns):
                m.add(e, picked, np.concatenate([points[c.name] for c in m.columns], 1))
        for name in self.cameras if e in self.pictures else ():
            try:
                out["frames"][name] = self._thumbnails(e, name)
            except UserError as error:
                out["unread"][name] = error.problem
        if out["unread"]:
            self.unread.append(e)
        try:
            tasks = episode_tasks(episode)
        except UserError:  # a column that cannot be read is named above
            tasks = []
        if tasks:
            self.task[e] = self.tasks.setdefault(tasks[0], len(self.tasks))
        self.success[e] = episode_success(episode)
        return out

    def _thumbnails(self, e: int, name: str) -> dict[str, Any] | None:
        """Builds one JPEG of all thumbnails: {"rows", "high", "wide", "across", "src"}, `across` in a row."""
        rows, many = int(self.data[e:e + 1].rows(name)[0]), self.pictures[e]
        row_numbers = np.linspace(0, rows - 1, min(many, rows)).round().astype(int).tolist() if rows else []
        row_numbers = sorted({*row_numbers, *(s for s in self.marked.get(e, ())[:_MIN_PER_EPISODE] if 0 <= s < rows)})
        at, thumbnails = set(row_numbers), {}
        for row, image in self.data.frames(name, e):  # in any order
            for r in np.atleast_1d(row).tolist():
                if r in at:
                    thumbnails[r] = _thumbnail(image)
            if len(thumbnails) == len(at):
                break
        if not thumbnails:
            return None
        row_numbers = sorted(thumbnails)
        high, wide = thumbnails[row_numbers[0]].shape[:2]
        across = max(1, min(len(row_numbers), 4096 // wide))
        sheet = np.zeros((-(-len(row_numbers) // across) * high, across * wide, 3), np.uint8)
        for i, r in enumerate(row_numbers):
            y, x = i // across * high, i % across * wide
            sheet[y:y + high, x:x + wide] = thumbnails[r]
        src = f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(sheet)).decode()}"
        return {"rows": row_numbers, "of": rows, "high": high, "wide": wide, "across": across, "src": src}

    # -- the whole data set ----------------------------------------------------------------------------------------

    def index(self, title: str, folder: str, pieces: Sequence[tuple[int, str]]) -> dict[str, Any]:
        metadata, listed_findings = self.data.metadata, self.report.findings[:_MAX_FINDINGS]
        robot = metadata.get("robot_type")
        return {
            "title": title,
            "version": __version__,
            "about": {
                "format": f"{metadata.get('format', 'memory')} {metadata.get('version', '')}".strip(),
                "robot": None if robot is None else str(robot),
                "fps": metadata.get("fps"),
            },
            "columns": [
                {
                    "name": c.name,
                    "role": role(c.name),
                    "kind": c.feature.kind,
                    "dtype": c.feature.dtype,
                    "shape": list(c.feature.shape),
                    "unit": c.feature.unit,
                    "labels": list(c.labels),
                    "every": self.row_interval,
                }
                for c in self.columns
            ],
            "cameras": [{"name": n, "shape": list(self.data[0].features()[n].shape)} for n in self.cameras],
            "lengths": self.lengths.tolist(),
            "success": self.success,
            "tasks": list(self.tasks),
            "task": self.task.tolist(),
            "spark": None
            if self.spark is None
            else {
                "of": self.spark.name,
                "lines": self.lines.shape[1],
                "points": _SPARKLINE_POINTS,
                "data": _scale_to_bytes(self.lines),
            },
            "scores": {
                name: replace_nonfinite(np.asarray(v, float).tolist())
                for name, v in self.report.scores.items()
                if len(v) == self.count
            },
            "findings": [{"code": f.code, "severity": f.severity, "message": f.message, "remedy": f.remedy,
                          **asdict(f.where)} for f in listed_findings],
            "statistics": [row for c in self.numbers for row in self._statistics(c)],
            "maps": [m.to_json() for m in self.maps if m.points],
            "pieces": {"folder": None if self.inline else folder, "first": [first for first, _ in pieces]},
            "notes": list(self._notes(len(self.report.findings) - len(listed_findings))),
        }

    def _statistics(self, c: _ShownColumn) -> Iterator[dict[str, Any]]:
        t, sample = self.totals[c.name], np.concatenate([*self.sampled[c.name], np.zeros((0, c.size))])
        for i, label in enumerate(c.labels):
            low, high = float(t.min[i]), float(t.max[i])
            v = sample[:, i]
            v = v[np.isfinite(v)]
            # relative to the minimum: timestamps of 10**18 ns would lose precision
            ends = (0, high - low) if low < high else (-0.5, 0.5)
            counts = np.histogram(v - low, _BINS, ends)[0].tolist() if len(v) and math.isfinite(high - low) else []
            yield replace_nonfinite(
                {
                    "column": c.name,
                    "label": label if c.feature.shape else "",
                    "min": low,
                    "max": high,
                    "mean": float(t.mean[i]),
                    "std": float(t.std[i]),
                    "odd": int(t.n_non_finite[i]),
                    "counts": counts,
                }
            )

    def _notes(self, unlisted: int) -> Iterator[str]:
        """Lists what the page leaves out."""
        for c in self.columns:
            if not c.text and c.feature.size > c.size:
                yield f"{c.name}: the first {c.size} of {c.feature.size} components are shown."
        if self.row_interval > 1:
            yield f"Plots show one row in {self.row_interval}; statistics are of all rows."
        if self.cameras:
            most = max(self.pictures.values(), default=0)
            coverage = "every episode" if len(self.pictures) == self.count else \
                f"{len(self.pictures)} of {self.count} episodes"
            yield (f"Of each camera at most {most} frames of {coverage}, evenly over it and where findings are, no "
                   f"larger than {_THUMBNAIL_SIZE[0]} x {_THUMBNAIL_SIZE[1]} pixels.")
        if self.outlier_scores > 1 and (self.maps or self.numbers):
            yield f"Maps and histograms are of one step in {self.outlier_scores}."
        if unlisted > 0:
            yield f"{unlisted} more findings: understudy audit --json lists all."
        if self.unread:
            listed = ", ".join(map(str, self.unread[:8])) + (", ..." if len(self.unread) > 8 else "")
            yield f"What could not be read is said in these episodes: {listed}."


class _RunningStatistics:
    """Minimum, maximum, mean and standard deviation of the finite values of each component, in one pass."""

    def __init__(self, size: int):
        self.min, self.max = np.full(size, np.inf), np.full(size, -np.inf)
        self.mean, self.squares, self.n, self.n_non_finite = (np.zeros(size) for _ in range(4))

    def add(self, values: np.ndarray) -> None:
        """Adds values by the method of Chan, Golub and LeVeque (1979), which is exact for large means too."""
        if not len(values):
            return
        v = values.astype(np.float64)
        is_finite = np.isfinite(v)
        n = is_finite.sum(0)
        mean = np.divide(np.where(is_finite, v, 0).sum(0), n, out=np.zeros(len(n)), where=n > 0)
        squares = np.square(np.where(is_finite, v - mean, 0)).sum(0)
        total = self.n + n
        share = np.divide(n, total, out=np.zeros(len(n)), where=total > 0)
        off = mean - self.mean
        self.squares += squares + np.square(off) * self.n * share
        self.mean += off * share
        self.n, self.n_non_finite = total, self.n_non_finite + len(v) - n
        self.min = np.minimum(self.min, np.where(is_finite, v, np.inf).min(0))
        self.max = np.maximum(self.max, np.where(is_finite, v, -np.inf).max(0))

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(np.divide(self.squares, self.n, out=np.full(len(self.n), np.nan), where=self.n > 0))


class _ProjectionMap:
    """Projects standardized rows onto their two directions of largest variance (Pearson 1901)."""

    def __init__(self, title: str, columns: Sequence[_ShownColumn]):
        self.title, self.columns = title, columns
        self.points: list[np.ndarray] = []
        self.at: list[np.ndarray] = []

    def add(self, episode: int, steps: np.ndarray, rows: np.ndarray) -> None:
        is_finite = np.isfinite(rows).all(1)
        self.points.append(rows[is_finite])
        self.at.append(np.stack([np.full(int(is_finite.sum()), episode), steps[is_finite]], 1))

    def to_json(self) -> dict[str, Any]:
        """Returns the map as JSON. `share` is the fraction of variance in each direction.

        The page also computes x = (row - mean) @ axes.
        """
        rows, at = np.concatenate(self.points), np.concatenate(self.at).astype(np.int32)
        mean, axes, share = principal_components(rows)
        x, y = ((rows - mean) @ axes).T
        return {"title": self.title, "columns": [c.name for c in self.columns], "share": share.tolist(),
                "mean": mean.tolist(), "axes": axes.T.tolist(), "episode": _base64(at[:, 0]), "step": _base64(at[:, 1]),
                "x": _base64(x.astype(np.float32)), "y": _base64(y.astype(np.float32)), "count": len(rows)}


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes principal components of standardized data: each column is divided by its standard deviation.

    Args:
        rows: The data, (N, D). Constant columns do not count.

    Returns:
        Mean, (D,). Axes, (D, 2): the map of a row is ``(row - mean) @ axes``. Fractions of the variance, (2,).
    """
    mean = rows.mean(0) if len(rows) else np.zeros(rows.shape[1])
    std = rows.std(0) if len(rows) else np.zeros(rows.shape[1])
    moves = std > 1e-9 * np.maximum(np.abs(mean), 1e-30)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=moves)
    axes, share = np.zeros((rows.shape[1], 2)), np.zeros(2)
    if moves.any():
        _, s, v = np.linalg.svd((rows - mean) * scale, full_matrices=False)
        v, s = v[:2], np.square(s)
        v = v * np.sign(v[np.arange(len(v)), np.abs(v).argmax(1)])[:, None]  # otherwise signs are random
        axes[:, :len(v)], share[:len(v)] = (v * scale).T, s[:2] / s.sum()
    return mean, axes, share


# -- small things ------------------------------------------------------------------------------------------------------


def _column(name: str, f: Feature) -> _ShownColumn:
    size = min(f.size, _MAX_COMPONENTS)
    names = f.names if f.names and len(f.names) == f.size else tuple(map(str, range(f.size)))
    return _ShownColumn(name, f, size, tuple(map(str, names[:size])) if f.shape else (name,))


def episode_success(episode: Episode) -> bool | None:
    """Returns whether the episode succeeded. None if success was not recorded or cannot be read."""
    try:
        return plots._outcome(episode)
    except UserError:
        return None


def decode_texts(column: np.ndarray) -> Sequence[str]:
    """Returns the text of each row of a column of strings or of UTF-8 bytes."""
    if len(column) > 1 and column.strides[0] == 0:  # the same text in all rows
        return [*decode_texts(column[:1])] * len(column)
    if column.dtype.kind in "UO":
        return [str(v) for v in column] if column.ndim == 1 else [", ".join(map(str, v.reshape(-1))) for v in column]
    return [decode_text(v.reshape(-1)) for v in column]


def text_runs(texts: Sequence[str]) -> list[list]:
    """Finds runs of equal texts, as a list of [first row, text]."""
    return [[i, w] for i, w in enumerate(texts) if not i or w != texts[i - 1]]


def _encode_values(values: np.ndarray) -> dict[str, Any]:
    """Encodes values in the first of these types that holds all of them exactly, except for integers beyond 2^53."""
    for kind in ("u1", "i2", "f4", "f8"):
        with np.errstate(all="ignore"):
            small = values.astype(f"<{kind}")
            if np.array_equal(small, values, equal_nan=values.dtype.kind == "f"):
                break
    return {"type": kind, "rows": len(values), "data": _base64(small)}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def _scale_to_bytes(lines: np.ndarray) -> str:
    """Encodes lines (E, L, P) as bytes: 0 to 254 over the range of each line, 255 for missing values."""
    out = np.full(lines.shape, 255, np.uint8)
    for i in range(lines.shape[1]):
        is_finite = np.isfinite(lines[:, i])
        if is_finite.any():
            v = lines[:, i].astype(np.float64)
            low, high = v[is_finite].min(), v[is_finite].max()
            scaled = (v - low) / (high - low) * 254 if high > low else np.full(v.shape, 127.0)
            out[:, i][is_finite] = scaled[is_finite].round()
    return _base64(out)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrinks a frame to (h, w, 3) within the box, with the same aspect ratio."""
    image = _to_rgb(np.asarray(image))
    high, wide = image.shape[:2]
    scale = min(1.0, _THUMBNAIL_SIZE[0] / wide, _THUMBNAIL_SIZE[1] / high)
    return video.resize(image, (max(round(high * scale), 1), max(round(wide * scale), 1)))


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts a frame of gray, color or more channels to (h, w, 3)."""
    return image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, -1)


def encode_jpeg(frame: np.ndarray) -> bytes:
    """Encodes a frame as JPEG at about quality 90.

    Args:
        frame: Image of dtype uint8, (H, W, C), with any number of channels.
    """
    frame = _to_rgb(np.asarray(frame))
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = *frame.shape[:2], "yuvj420p", Fraction(1, 1)
    codec.options = {"qmin": "3", "qmax": "3"}
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(p) for p in (*codec.encode(picture), *codec.encode(None)))


def _script_json(value: Mapping[str, Any]) -> str:
    """Encodes JSON for a script element, so that no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _html(index: Mapping[str, Any], pieces: Sequence[tuple[int, str]]) -> str:
    here = Path(__file__)
    script, style, body = ((here.with_name(f"inspect.{k}")).read_text(encoding="utf-8") for k in ("js", "css", "html"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # 'self' and file: are for the pieces next to the page. No other code, image or style is loaded.
    policy = (f"default-src 'none';style-src 'unsafe-inline';img-src data:;script-src 'sha256-{digest}'"
              + ("" if index["pieces"]["folder"] is None else " 'self' file:"))
    data = [f'<script type="application/json" id="facts">{_script_json(index)}</script>',
            *(f'<script type="application/json" id="piece-{i}">{text}</script>' for i, (_, text) in enumerate(pieces))]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(index['title'])}</title>"
        f"<style>{plots.STYLE}\n{style.replace('FONT', plots.FONT)}</style></head>\n"
        f"<body>\n{body}" + "\n".join(data) + f"\n<script>{script}</script></body></html>\n")
