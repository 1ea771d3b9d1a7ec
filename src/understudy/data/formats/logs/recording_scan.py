"""Reads the messages of one recording once: their times, and the values of each column of a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....core import Feature, UserError
from ... import cache
from . import message_logs as streams
from . import topic_mapping as maps
from .message_logs import MessageLog
from .topic_mapping import ColumnMapping

CORRECT_COLUMN = "correct field, names or indices of the mapping"


class MappingMismatch(UserError):
    """Raised when messages do not have what the mapping says of a column."""

    def __init__(self, column: str, problem: str, **more):
        super().__init__(problem, **more)
        self.column = column


@dataclass(frozen=True)
class RecordingScan:
    """The times and values of the messages of a recording, in their order.

    Attributes:
        times: Log time of each message, ns, by topic.
        stamps: Time by which each message is joined, ns, by topic.
        begins: Which packets are key frames, by topic of video.
        values: Values of each column that is not an image.
        has_names: Which messages name all components of a column, by column for which the mapping has names.
    """

    times: Mapping[str, np.ndarray]
    stamps: Mapping[str, np.ndarray]
    begins: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    has_names: Mapping[str, np.ndarray]

    @staticmethod
    def from_log(log: MessageLog, topics: list[str], columns: Mapping[str, ColumnMapping] | None = None,
                 schema: Mapping[str, Feature] | None = None, by: str = "header",
                 paths: Mapping[str, tuple[str, ...]] | None = None) -> RecordingScan:
        """Reads the recording once, or its entry in the cache. Raises MappingMismatch."""
        columns, schema, paths = columns or {}, schema or {}, paths or {}
        columns = {n: c for n, c in columns.items() if c.topic in topics and schema[n].kind != "image"}
        topics = sorted(t for t in topics if log.counts.get(t))
        key = cache.json_digest("bags", 4, log.key, topics, by, {n: c.to_json() for n, c in columns.items()},
                                {n: [f.dtype, f.shape] for n, f in schema.items()}, paths)
        size = sum((17 + len(columns)) * log.counts[t] for t in topics) + sum(
            log.counts.get(c.topic, 0) * (schema[n].size * 8 if schema[n].kind != "string" else 256)
            for n, c in columns.items()) + 8
        arrays = cache.memmap_arrays(key, size, lambda part: _build(log, topics, columns, schema, by, paths, part),
                                     str(log.path))
        kinds = {k: {n.partition("/")[2]: a for n, a in arrays.items() if n.startswith(f"{k}/")}
                 for k in ("time", "stamp", "begin", "value", "names")}
        return RecordingScan(*kinds.values())


def _build(log: MessageLog, topics, columns, schema, by, paths, part: Path) -> None:
    counts = {t: log.counts[t] for t in topics}
    times = {t: cache.create_array(part, f"time/{t}", (n,), np.int64) for t, n in counts.items()}
    stamps = {t: cache.create_array(part, f"stamp/{t}", (n,), np.int64) for t, n in counts.items()}
    begins = {t: cache.create_array(part, f"begin/{t}", (n,), np.bool_) for t, n in counts.items()
              if streams.is_video(log.types[t])}
    cache.create_array(part, "nothing", (1,), np.int64)  # an entry has at least one array
    texts = {n: [] for n in columns if schema[n].kind == "string"}
    values = {n: cache.create_array(part, f"value/{n}", (counts.get(c.topic, 0), *schema[n].shape), schema[n].dtype)
              for n, c in columns.items() if n not in texts}
    has_names = {n: cache.create_array(part, f"names/{n}", (counts.get(c.topic, 0),), np.bool_)
                 for n, c in columns.items() if c.names is not None}
    of_topic = {t: [n for n, c in columns.items() if c.topic == t] for t in topics}
    n_read, headed = dict.fromkeys(topics, 0), dict.fromkeys(topics, by == "header")
    for topic, time, message in log.messages(topics):
        i, stamp = n_read[topic], streams.message_time(message) if headed[topic] else None
        if i == counts[topic]:
            raise UserError(f"there are more than the {counts[topic]} messages of the index",
                            where=f"{log.path}, topic {topic}", hint="rebuild the index (ros2 bag reindex)")
        headed[topic] = stamp is not None
        times[topic][i], stamps[topic][i], n_read[topic] = time, stamp or 0, i + 1
        if topic in begins:
            begins[topic][i] = streams.is_key_frame(message)
        for name in of_topic[topic]:
            try:
                column_value = _message_value(log, name, columns[name], schema[name], message, i, paths.get(name))
            except maps.NamesMissing:
                continue
            if name in has_names:
                has_names[name][i] = True
            if name in texts:
                texts[name].append(column_value)
            else:
                values[name][i] = column_value
    for topic, n in n_read.items():
        if n < counts[topic]:
            raise UserError(f"there are {n} messages, but the index says {counts[topic]}",
                            where=f"{log.path}, topic {topic}", hint="rebuild the index (ros2 bag reindex)")
        if not headed[topic]:  # never two clocks in one topic
            stamps[topic][:] = times[topic]
    for name, column_texts in texts.items():
        array = np.array(column_texts or [""], np.str_)
        cache.create_array(part, f"value/{name}", array.shape, array.dtype)[:] = array


def read_value(log, name, column, message, i, order=None):
    """Returns the value of a column in one message. Raises MappingMismatch."""
    try:
        return maps.column_value(message, name, column, order)
    except maps.NamesMissing:
        raise
    except maps.MessageMismatch as error:
        raise MappingMismatch(name, str(error), where=f"{log.path}, topic {column.topic}, message {i}",
                              hint=CORRECT_COLUMN) from None


def _message_value(log, name, column, feature, message, i, order):
    """Returns the value of a column in one message, in the shape of the first message. Raises MappingMismatch."""
    location = f"{log.path}, topic {column.topic}, message {i}"
    column_value = read_value(log, name, column, message, i, order)
    if isinstance(column_value, str) != (feature.kind == "string"):
        kinds = ("text", "numbers") if isinstance(column_value, str) else ("numbers", "text")
        raise MappingMismatch(name, "the message has {}, but the first message has {}".format(*kinds), where=location,
                              hint="leave the column out")
    if not isinstance(column_value, str) and column_value.shape != feature.shape:
        raise MappingMismatch(name, f"the shape is {column_value.shape}, but {feature.shape} in the first message",
                              where=location, hint="choose components that are always there, by names or indices")
    return column_value


def first_message(log: MessageLog, topic: str, names: tuple[str, ...] | None = None):
    """Returns the first message of a topic, and of a video the first key frame. None if there are no messages.

    With names, it is the first one that has all of them, or the first one of all if there is none.
    """
    first = next((m for _, _, m in log.messages([topic])), None)
    if names is not None:
        return next((m for _, _, m in log.messages([topic]) if set(names) <= set(maps.message_names(m))), first)
    if first is None or not streams.is_video(log.types[topic]):
        return first
    return next((m for _, _, m in log.messages([topic]) if streams.is_key_frame(m)), first)
