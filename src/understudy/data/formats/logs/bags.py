"""MCAP files and ROS 1 and 2 bags as episodes: topics joined on one clock by a mapping (see `topic_mapping`).

A recording is one episode. It is split where more than `gap` seconds pass without a complete row, and at the messages
of a topic that the mapping names. Numbers and text are decoded once, into the cache. Images are decoded when they are
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ....core import Feature, UserError, role
from ....hints import command_line
from ... import cache
from ...episode import ColumnSource, Dataset
from ...resampling import find_rotations, interpolate_rows
from ..parts.file_kinds import recording_paths
from ..parts.key_map import metadata
from ..parts.reader_warnings import MisreadingWarning
from . import message_logs as streams
from . import topic_mapping as maps
from .message_logs import MessageLog
from .recording_scan import CORRECT_COLUMN, MappingMismatch, RecordingScan, first_message, read_value
from .topic_mapping import ColumnMapping, TopicMapping

_MAX_CLOCK_DIFFERENCE = 1.0  # s between header stamps and the times logged that deserve a word
_MAX_LISTED = 5  # gaps that are said one by one


def open_bags(path: Path, mapping: str | Path | Mapping[str, Any] | None = None) -> Dataset:
    """Opens a recording, or a folder of them, by a mapping as `topic_mapping.read_mapping` takes it. It is required."""
    path = Path(path)
    if mapping is None:
        raise UserError("a recording of messages needs a mapping from topics to columns", where=path,
                        hint=f"{command_line('inspect', path, '--json')} > map.json proposes one; correct it, and "
                        "give it with --map map.json, or as open_dataset(path, mapping=...)")
    recordings, warnings = _open_recordings(path)
    source = BagSource(path, recordings, maps.read_mapping(mapping), warnings)
    if not len(source.lengths):
        raise UserError("no row has all columns of the mapping"
                        + "".join(f"\n  {w}" for w in source.warnings), where=path,
                        hint="allow a larger age, or leave the column out that is missing")
    return Dataset(source)


def preview_bags(path: Path) -> Dataset:
    """Opens recordings with the mapping that is proposed for them, which is then `metadata["mapping"]`.

    There may be no episodes. Columns that cannot be read are left out, and `metadata["warnings"]` says why.
    """
    path = Path(path)
    recordings, warnings = _open_recordings(path)
    mapping, notes = propose_mapping(recordings)
    notes = [*warnings, *notes]
    while True:
        try:
            source = BagSource(path, recordings, mapping, notes)
            return Dataset(source)
        except MappingMismatch as error:
            topic = mapping.columns[error.column].topic
            notes = [*notes, f"{error.column} of topic {topic} is left out: {error.problem}"]
            kept = {n: c for n, c in mapping.columns.items() if n != error.column}
            mapping = replace(mapping, columns=kept)


def _open_recordings(path: Path) -> tuple[list[MessageLog], list[str]]:
    """Opens the recordings that have messages, and warns of each that has none. Opens all if none has messages."""
    paths = recording_paths(path)
    logs = [streams.open_log(p) for p in paths if p.is_dir() or p.stat().st_size]
    full = [log for log in logs if any(log.counts.values())]
    if not full:
        return [streams.open_log(p) for p in paths], []
    kept = {log.path.name for log in full}
    return full, [f"{p.name} has no messages and is left out" for p in paths if p.name not in kept]


def propose_mapping(recordings: list[MessageLog]) -> tuple[TopicMapping, list[str]]:
    """Proposes a mapping of the topics of some recordings, and gives a reason for each topic that is left out.

    The time of every message is read.
    """
    topics: dict[str, list[maps.TopicSummary]] = {}
    absent = {t: log.path.name for log in recordings for g in recordings for t in g.types if t not in log.types}
    for log in recordings:
        for name, type in log.types.items():
            count = log.counts.get(name, 0)
            if name in absent or name in topics and sum(t.count for t in topics[name]) >= count:
                continue
            groups, stamps = [(None, np.zeros(0, np.int64))], np.empty(0)
            if count and name not in log.undecoded:
                groups = _publishers(log, name)
                stamps = np.asarray(RecordingScan.from_log(log, [name]).stamps[name]) / 1e9
            topics[name] = [maps.TopicSummary(name, type, len(numbers), np.sort(stamps[numbers]), message,
                                              streams.is_image(type), log.undecoded.get(name, ""))
                            for message, numbers in groups]
    records = {n: {k: v for k, v in r.items() if all(k in log.metadata.get(n, ()) for log in recordings)}
               for log in recordings[:1] for n, r in log.metadata.items()}
    mapping, notes = maps.propose_mapping([t for each in topics.values() for t in each], records)
    return mapping, [*(f"topic {t} is not in {name}; it is left out" for t, name in absent.items()), *notes]


def _publishers(log: MessageLog, topic: str) -> list[tuple[Any, np.ndarray]]:
    """Groups the messages of a topic by the names of their components.

    Returns:
        The first message and the numbers of the messages of each group, (n,). Groups with most names come first. A
        group is left out if groups before it have all of its names.
    """
    first = next((m for _, _, m in log.messages([topic])), None)
    if first is None or not maps.message_names(first):
        return [(first, np.arange(log.counts[topic]))]
    groups: dict[frozenset, tuple[Any, list[int]]] = {}
    for number, (_, _, message) in enumerate(log.messages([topic])):
        groups.setdefault(frozenset(maps.message_names(message)), (message, []))[1].append(number)
    out, covered = [], set()
    for names in sorted(groups, key=len, reverse=True):
        if names - covered:
            out.append((groups[names][0], np.array(groups[names][1])))
            covered |= names
    return out


# -- all of them ------------------------------------------------------------------------------------------------------


@dataclass
class _AlignedRecording:
    """A recording with messages that are assigned to the rows of its clock.

    Attributes:
        ticks: Times of the rows that are in an episode, (T,) ns.
        below: Number of the message of each column at a tick or before it, (T,).
        above: Number of the next message, for interpolation, (T,).
    """

    log: MessageLog
    scan: RecordingScan
    ticks: np.ndarray
    below: dict[str, np.ndarray]
    above: dict[str, np.ndarray]


class BagSource(ColumnSource):
    """Reader of recordings of messages (MCAP files and ROS bags) as episodes.

    Args:
        notes: Further warnings, such as about topics that the mapping leaves out.
    """

    def __init__(self, path: Path, recordings: list[MessageLog], mapping: TopicMapping, notes: list[str] | None = None):
        self.path, self.mapping = path, mapping
        truncations = [log.truncation for log in recordings if log.truncation]
        self.warnings: list[str] = [*(f"{text}; what is there was read" for text in truncations), *(notes or [])]
        self._check(recordings)
        self._paths: dict[str, tuple[str, ...]] = {}  # paths of the numbers of each column, if they are in a structure
        self.schema = self._features(recordings)
        self.key = cache.json_digest("bags", [log.key for log in recordings], mapping.to_json())
        self._joined: list[_AlignedRecording] = []
        parts = []  # (recording, first tick, rows, has a last row)
        for number, log in enumerate(recordings):
            joined, spans = self._join(log)
            self._joined.append(joined)
            parts += [(number, *p) for p in spans]
        table = np.array(parts, np.int64).reshape(-1, 4)
        self._log, self._first, self.lengths, has_last_row = table.T
        self._longer = self.lengths + has_last_row
        kinds = list(dict.fromkeys(log.kind for log in recordings))
        types = {topic: type for log in reversed(recordings) for topic, type in log.types.items()}
        self.metadata = {
            **metadata(kinds[0] if kinds else "mcap", path, self.warnings, fps=self._fps()),
            "mapping": mapping.to_json(),
            "topics": [{"name": topic, "type": type, "messages": sum(log.counts.get(topic, 0) for log in recordings)}
                       for topic, type in types.items()],
            "cut": [str(log.path) for log in recordings if log.truncation],
        }

    def _check(self, recordings):
        for log in recordings:
            named = [(f"features.{n}", c.topic) for n, c in self.mapping.columns.items() if c.topic is not None]
            for key, topic in [*named, ("clock", self.mapping.clock), ("episodes", self.mapping.episodes)]:
                if topic is not None and topic not in log.types:
                    topic_names = ", ".join(log.types) or "no topics"
                    raise UserError(f"there is no topic {topic!r}, which the mapping names in {key}; there are "
                                    f"{topic_names}",
                                    where=log.path, hint="correct the mapping")
                if topic is not None and topic in log.undecoded:
                    raise UserError(f"the topic has {log.undecoded[topic]}", where=f"{log.path}, topic {topic}",
                                    hint="leave the topic out of the mapping")
            for name, c in self.mapping.columns.items():
                record = log.metadata.get(c.metadata, {})
                if c.metadata is not None and c.field[0] not in record:
                    raise UserError(f"there is no record of metadata {c.metadata!r} with {c.field[0]!r}; there are "
                                    f"{', '.join(log.metadata) or 'no records'}", where=f"{log.path}, features.{name}",
                                    hint="correct the mapping")

    # -- columns ------------------------------------------------------------------------------------------------------

    def _features(self, recordings) -> dict[str, Feature]:
        """Finds the features of columns from the first message of each, in the first recording that has one."""
        out = {}
        for name, c in self.mapping.columns.items():
            if c.topic is None:
                value = c.value if c.metadata is None else ""
                kind = np.asarray(value)
                if kind.dtype.kind not in "biufU":
                    raise UserError(f"this is neither text nor numbers: {value!r}", where=f"mapping, features.{name}",
                                    hint="give numbers of one shape")
                out[name] = Feature.from_array(np.broadcast_to(kind, (1, *kind.shape)))
                continue
            log = next((log for log in recordings if log.counts.get(c.topic)), None)
            message = None if log is None else first_message(log, c.topic, c.names)
            if log is not None and message is not None:
                out[name] = self._feature(name, c, message, log)
            else:
                self.warnings.append(f"topic {c.topic} has no messages, so that {name} has no rows")
                out[name] = Feature("float64", (1,))
        return {**out, "timestamp": Feature("float64", ())}

    def _feature(self, name, c: ColumnMapping, message, log) -> Feature:
        location = f"{log.path}, topic {c.topic}, message 0"
        if streams.is_image(log.types[c.topic]) and not c.field:
            if c.join == "interpolate":
                raise MappingMismatch(name, "images cannot be interpolated", where=f"mapping, features.{name}",
                                      hint="join them by last, next or nearest")
            decode = streams.decode_key_frame if streams.is_video(log.types[c.topic]) else streams.decode_image
            try:
                return Feature("uint8", decode(message, location).shape, "image")
            except UserError as error:
                raise MappingMismatch(name, error.problem, where=error.where, hint=error.hint) from None
        try:
            first_value = read_value(log, name, c, message, 0)
        except maps.NamesMissing as error:
            raise MappingMismatch(name, str(error), where=location, hint=CORRECT_COLUMN) from None
        if isinstance(first_value, str):
            if c.join == "interpolate":
                raise MappingMismatch(name, "text cannot be interpolated", where=location, hint="join it by last")
            return Feature("string", (), "string")
        if 0 in first_value.shape:
            raise MappingMismatch(name, f"the value is empty: its shape is {first_value.shape}", where=location,
                                  hint=CORRECT_COLUMN)
        if c.join == "interpolate" and first_value.dtype.kind != "f":
            first_value = first_value.astype(np.float64)
        self._paths[name] = tuple(path for path, _ in maps.column_numbers(message, c))
        names = maps.component_names(message, c)
        feature = Feature.from_array(first_value[None])
        return replace(feature, names=names if names and len(names) == feature.size else None)

    def _join(self, log: MessageLog) -> tuple[_AlignedRecording, list[tuple[int, int, bool]]]:
        """Aligns a recording. Returns first tick, number of rows, and whether one more row is observed, by episode."""
        m = self.mapping
        scan = RecordingScan.from_log(log, m.topics, m.columns, self.schema, m.time_source, self._paths)
        order, sorted_ = {}, {}
        for topic in m.topics:
            stamps = np.asarray(scan.stamps.get(topic, np.empty(0, np.int64)))
            order[topic] = np.argsort(stamps, kind="stable")
            sorted_[topic] = stamps[order[topic]]
            self._note_times(log, topic, stamps, scan)
        ticks = self._ticks(sorted_)
        self._note_two_clocks(log, scan, ticks)
        is_complete, is_observed = np.ones(len(ticks), bool), np.ones(len(ticks), bool)
        below, above, has_value = {}, {}, {}
        for name, c in m.columns.items():
            if c.topic is not None:
                messages, stamps = order[c.topic], sorted_[c.topic]
                if self.schema[name].kind == "image" and c.topic in scan.begins:  # nothing is seen before a key frame
                    from_key_frame = messages >= np.flatnonzero([*scan.begins[c.topic], True])[0]
                    messages, stamps = messages[from_key_frame], stamps[from_key_frame]
                if name in scan.has_names and not (named := np.asarray(scan.has_names[name])[messages]).all():
                    self.warnings.append(f"{log.path.name}: {int((~named).sum())} of {len(named)} messages of {c.topic}"
                                         f" do not name all of {', '.join(c.names or ())}; {name} is read from the "
                                         "others")
                    messages, stamps = messages[named], stamps[named]
                low, high, has_value[name] = maps.align_messages(stamps, ticks, c.join, c.max_age)
                if len(messages):
                    low, high = messages[low], messages[high]
                below[name], above[name] = low, high
                is_complete &= has_value[name]
                if role(name) == "observation":
                    is_observed &= has_value[name]
        is_complete &= bool(has_value)  # a constant alone makes no row
        marks = sorted_[m.episodes] if m.episodes else np.empty(0, np.int64)
        mark = np.searchsorted(marks, ticks, "right")
        episodes = list(self._episodes(log, ticks, is_complete, is_observed, has_value, mark))
        kept = np.concatenate([rows for rows, _ in episodes]) if episodes else np.empty(0, np.int64)
        first = np.cumsum([0, *(len(rows) for rows, _ in episodes)])
        joined = _AlignedRecording(log, scan, ticks[kept], {n: i[kept] for n, i in below.items()},
                                   {n: i[kept] for n, i in above.items()})
        return joined, [(int(f), len(rows) - more, more) for f, (rows, more) in zip(first, episodes, strict=False)]

    def _note_times(self, log, topic, stamps, scan) -> None:
        if not len(stamps):
            return
        changes = np.diff(stamps)
        if (changes < 0).any():
            self.warnings.append(MisreadingWarning(
                f"{log.path.name}: messages of {topic} that are stamped before the one that they follow: "
                f"{(changes < 0).sum()}, by up to {-changes.min() / 1e9:.3g} s; they are put in order. If a clock was "
                "set back there, rows from before and after it are mixed"))
        n_repeated = len(stamps) - len(np.unique(stamps))
        if n_repeated and topic == self.mapping.clock:
            self.warnings.append(f"{log.path.name}: messages of {topic} that have the stamp of a later one: "
                                 f"{n_repeated}; they make no row")
        clock_difference = float(np.median(stamps - np.asarray(scan.times[topic]))) / 1e9
        if abs(clock_difference) > _MAX_CLOCK_DIFFERENCE:
            self.warnings.append(f"{log.path.name}: the header stamps of {topic} are {abs(clock_difference):.3g} s "
                                 f"{'after' if clock_difference > 0 else 'before'} the times logged; \"stamp\": "
                                 "\"log\" in the mapping joins by those")

    def _note_two_clocks(self, log, scan, ticks) -> None:
        """Warns if some topics are joined by header stamps, far from their log times, and some have no stamps."""
        offsets = {topic: float(np.median(stamps - np.asarray(scan.times[topic]))) / 1e9
                   for topic, stamps in scan.stamps.items() if len(stamps)}
        logged = [topic for topic in offsets if np.array_equal(scan.stamps[topic], scan.times[topic])]
        headed = max(offsets, key=lambda topic: abs(offsets[topic]), default="")
        if logged and len(ticks) > 1 and abs(late := offsets[headed]) > np.median(np.diff(ticks)) / 2e9:
            self.warnings.append(MisreadingWarning(
                f"{log.path.name}: messages of {', '.join(logged)} are joined by the times logged, but those of "
                f"{headed} by header stamps, {abs(late):.3g} s {'after' if late > 0 else 'before'} the times logged; "
                "\"stamp\": \"log\" in the mapping joins all by those"))

    def _ticks(self, stamps: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.mapping.clock is not None:
            return np.unique(stamps[self.mapping.clock])
        mapped = [stamps[c.topic] for c in self.mapping.columns.values() if c.topic is not None]
        mapped = [s for s in mapped if len(s)]
        if not mapped:
            return np.empty(0, np.int64)
        first, last = min(int(s[0]) for s in mapped), max(int(s[-1]) for s in mapped)
        first_stamps = [int(stamps[c.topic][0]) for c in self.mapping.columns.values()
                        if c.topic and c.join in ("last", "interpolate") and len(stamps[c.topic])]
        first = max([first, *first_stamps])  # the first row falls on a message, not between two
        assert self.mapping.fps is not None  # a mapping has a clock or a rate
        period = 1e9 / self.mapping.fps
        return first + np.round(np.arange(max(0, int((last - first) / period) + 1)) * period).astype(np.int64)

    def _episodes(self, log, ticks, is_complete, is_observed, has_value, mark) -> Iterator[tuple[np.ndarray, bool]]:
        """Yields the ticks of each episode, and whether the last is only observed. Warns of incomplete episodes."""
        rows, name = np.flatnonzero(is_complete), log.path.name

        def missing(begin, end):
            return ", ".join(n for n, t in has_value.items() if not t[begin:end].all()) or "the clock"

        if not has_value:
            return
        if not len(rows):
            self.warnings.append(f"{name}: no row has all columns" + (f"; missing: {missing(0, len(ticks))}"
                                                                      if len(ticks) else ", since it has no messages"))
            return
        gap, time_steps = round(self.mapping.max_gap * 1e9), np.diff(ticks[rows])
        ends = (time_steps > gap) | (np.diff(mark[rows]) > 0)
        holes = np.flatnonzero((np.diff(rows) > 1) | (time_steps > gap))
        for h in holes[:_MAX_LISTED]:
            a, b = rows[h], rows[h + 1]
            self.warnings.append(
                f"{name}: {time_steps[h] / 1e9:.3g} s without a whole row, from {(ticks[a] - ticks[0]) / 1e9:.3f} s on "
                f"({missing(a + 1, b)})" + ("; another episode begins after it" if ends[h] else ""))
        if len(holes) > _MAX_LISTED:
            self.warnings.append(f"{name}: {len(holes) - _MAX_LISTED} more such gaps")
        if rows[0] > 0:
            self.warnings.append(f"{name}: {rows[0]} ticks before the first whole row are left out "
                                 f"({missing(0, rows[0])})")
        observed = any(role(n) == "observation" for n in has_value)
        for stretch in np.split(rows, np.flatnonzero(ends) + 1):
            end = int(stretch[-1]) + 1
            more = bool(observed and end < len(ticks) and is_observed[end] and not is_complete[end]
                        and ticks[end] - ticks[end - 1] <= gap and mark[end] == mark[end - 1])
            if end > rows[-1] and (n_remaining := len(ticks) - end - more):
                self.warnings.append(f"{name}: {n_remaining} ticks after the last whole row are left out "
                                     f"({missing(end + more, len(ticks))})")
            yield np.append(stretch, end) if more else stretch, more

    def _fps(self) -> float | None:
        if self.mapping.fps is not None:
            return float(self.mapping.fps)
        periods = [np.diff(j.ticks) for j in self._joined]
        periods = np.concatenate(periods) if periods else np.empty(0)
        return maps._rate(1e9 / float(np.median(periods))) if len(periods) else None

    def rows(self, name):
        return self._longer if role(name) == "observation" and name in self.mapping.columns else self.lengths

    def episode_metadata(self, episode):
        joined = self._joined[self._log[episode]]
        origin = {"file": joined.log.path.name, "began": int(joined.ticks[self._first[episode]]) / 1e9}
        if joined.log.metadata:
            origin["metadata"] = {n: dict(r) for n, r in joined.log.metadata.items()}
        return origin

    def column(self, name, episode):
        joined, first = self._joined[self._log[episode]], int(self._first[episode])
        rows = slice(first, first + int(self.rows(name)[episode]))
        if name == "timestamp":
            return (joined.ticks[rows] - joined.ticks[first]) / 1e9
        c, feature = self.mapping.columns[name], self.schema[name]
        if c.topic is None:
            value = c.value if c.metadata is None else joined.log.metadata[c.metadata][c.field[0]]
            value = np.asarray(value)
            return np.broadcast_to(value, (rows.stop - rows.start, *value.shape))
        if feature.kind == "image":
            out = np.empty((rows.stop - rows.start, *feature.shape), np.uint8)
            for row, image in self.frames(name, episode):
                out[row] = image
            return out
        values, below, above = joined.scan.values[name], joined.below[name][rows], joined.above[name][rows]
        low = values[below]
        if c.join != "interpolate":
            return low
        stamps = np.asarray(joined.scan.stamps[c.topic])
        span = (stamps[above] - stamps[below]).clip(1)
        rotations = find_rotations(name, feature, values)
        return interpolate_rows(low, values[above], (joined.ticks[rows] - stamps[below]) / span, rotations).astype(
            feature.dtype)

    def frames(self, name, episode):
        """Yields the images of a camera in the order of their messages.

        Each message is decoded once, even if several rows have it. A video is decoded from the key frame before the
        episode.

        Yields:
            A row or several rows of the episode, and the image that they have, uint8 (H, W, C).
        """
        joined, c, first = self._joined[self._log[episode]], self.mapping.columns[name], int(self._first[episode])
        row_messages = joined.below[name][first: first + int(self.rows(name)[episode])]
        times = np.asarray(joined.scan.times[c.topic])
        topic_location = f"{joined.log.path}, topic {c.topic}"
        needed, from_ = set(row_messages.tolist()), int(row_messages.min())
        if is_video := c.topic in joined.scan.begins:
            from_ = int(np.flatnonzero(joined.scan.begins[c.topic][: from_ + 1])[-1])
        within = times[from_: int(row_messages.max()) + 1] if is_video else times[row_messages]
        begin, end = int(within.min()), int(within.max())
        numbers = np.flatnonzero((times >= begin) & (times <= end)).tolist()
        messages = ((i, m) for i, (_, _, m) in zip(numbers, joined.log.messages([c.topic], begin, end), strict=True))
        if is_video:
            numbered_images = streams.decode_video(((i, m) for i, m in messages if i >= from_), topic_location)
        else:
            numbered_images = ((i, streams.decode_image(m, f"{topic_location}, message {i}"))
                               for i, m in messages if i in needed)
        for i, image in numbered_images:
            if i not in needed:
                continue
            if image.shape != self.schema[name].shape:
                raise UserError(f"the image has the shape {image.shape}, but the first has {self.schema[name].shape}",
                                where=f"{topic_location}, message {i}", hint="leave the topic out of the mapping")
            needed.remove(i)
            yield np.flatnonzero(row_messages == i), image
        if needed:
            raise UserError("the message has no frame", where=f"{topic_location}, message {min(needed)}",
                            hint="leave the topic out of the mapping, or take the recording from a copy")
