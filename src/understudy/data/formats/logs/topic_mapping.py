"""Mappings from the topics of a log to columns on one clock: read from a JSON file, checked, or proposed.

docs/formats.md describes the file. Ages and gaps are in seconds. A path names a part of a message: "pose.position",
"points[0].positions", or "joints[elbow].position" in a list of structures that have a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....core import UserError, role, unknown_name
from ....files import read_json
from ..parts.key_map import is_rate

JOIN_RULES = ("last", "next", "nearest", "interpolate")
_SKIPPED = {"header", "stamp", "timestamp", "layout"}  # no numbers of the robot's
_MAX_NUMBERS = 1024  # a message with more numbers is not a state and is not proposed
MAPPING_HINT = "correct the mapping: docs/formats.md describes it, and understudy inspect BAG --json proposes one"


@dataclass(frozen=True)
class ColumnMapping:
    """Where one column of episodes comes from: a topic, a record of metadata, or a constant value.

    Args:
        field: Paths of the parts of a message that the column has. Empty for the whole message.
        indices: Numbers of the components that are kept. None for all.
        join: Which message gives the value of a row: "last", "next", "nearest" or "interpolate".
        max_age: Largest time between row and message, in s. None for no limit.
        metadata: Name of the record of metadata.
    """

    topic: str | None = None
    field: tuple[str, ...] = ()
    indices: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    join: str = "last"
    max_age: float | None = None  # s
    metadata: str | None = None
    value: Any = None

    def to_json(self) -> dict[str, Any]:
        """Returns the mapping as JSON values."""
        if self.topic is None:
            return {"value": self.value} if self.metadata is None else {"metadata": self.metadata,
                                                                        "field": self.field[0]}
        out = {"topic": self.topic, "field": self.field[0] if len(self.field) == 1 else list(self.field),
               "indices": self.indices and list(self.indices), "names": self.names and list(self.names),
               "join": self.join, "age": self.max_age}
        return {k: v for k, v in out.items() if k == "age" or v not in (None, [])}


@dataclass(frozen=True)
class TopicMapping:
    """Mapping from the topics of a recording (MCAP file or ROS bag) to the columns of episodes.

    Args:
        clock: Topic. Each of its messages is a row. None for rows at the fixed rate `fps`.
        fps: Rows per second, or the nominal rate of the clock topic.
        max_gap: Time without a complete row after which a new episode begins, in s.
        time_source: "header" for the time stamps in messages, "log" for the times at which they were logged.
        episodes: Topic. Each of its messages begins a new episode.
    """

    columns: Mapping[str, ColumnMapping]
    clock: str | None = None  # a topic
    fps: float | None = None  # rate of the clock, or the rate that the clock topic is meant to have
    max_gap: float = 1.0  # s
    time_source: str = "header"
    episodes: str | None = None  # a topic

    @property
    def topics(self) -> list[str]:
        """All topics that must be read."""
        named = [c.topic for c in self.columns.values()] + [self.clock, self.episodes]
        return list(dict.fromkeys(t for t in named if t is not None))

    def to_json(self) -> dict[str, Any]:
        """Returns the mapping as JSON values."""
        clock = {k: v for k, v in (("topic", self.clock), ("fps", self.fps)) if v is not None}
        return {
            "clock": clock,
            "gap": self.max_gap,
            **({"stamp": self.time_source} if self.time_source != "header" else {}),
            **({"episodes": {"topic": self.episodes}} if self.episodes else {}),
            "features": {name: c.to_json() for name, c in self.columns.items()},
        }


# -- as it is written -------------------------------------------------------------------------------------------------


def read_mapping(source: str | Path | Mapping[str, Any]) -> TopicMapping:
    """Reads a mapping from JSON values or a JSON file. The output of `understudy inspect --json` is accepted too."""
    location = "mapping" if isinstance(source, Mapping) else str(source)
    document = source if isinstance(source, Mapping) else read_json(Path(source).expanduser())
    if isinstance(document, Mapping) and isinstance(document.get("mapping"), Mapping):
        document = document["mapping"]
    document = _object(document, location, ("clock", "gap", "stamp", "episodes", "features"))
    clock = _object(document.get("clock"), f"{location}, clock", ("topic", "fps"))
    if not clock:
        raise UserError("it needs a topic or fps", where=f"{location}, clock", hint=MAPPING_HINT)
    features = document.get("features")
    if not isinstance(features, Mapping) or not features:
        raise UserError(f"this is not an object with columns and where each comes from: {_shorten(features)}",
                        where=f"{location}, features", hint=MAPPING_HINT)
    columns = {name: _column(name, c, f"{location}, features.{name}") for name, c in features.items()}
    episodes = _object(document.get("episodes") or {}, f"{location}, episodes", ("topic",))
    stamp = document.get("stamp", "header")
    _require(stamp in ("header", "log"), "header or log", stamp, f"{location}, stamp")
    return TopicMapping(columns, _text(clock, "topic", f"{location}, clock"),
                        _positive(clock, "fps", f"{location}, clock"), _positive(document, "gap", location) or 1.0,
                        stamp, _text(episodes, "topic", f"{location}, episodes"))


def _column(name: str, entry, where: str) -> ColumnMapping:
    keys = ("topic", "field", "indices", "names", "join", "age", "metadata", "value")
    entry = _object(entry, where, keys)
    if name.startswith("timestamp") or "/" in name or role(name) == "index":
        raise UserError("a column cannot have this name: timestamp and the index columns are made from the clock, and "
                        "a name has no /", where=where, hint=MAPPING_HINT)
    if sum(entry.get(k) is not None for k in ("topic", "metadata", "value")) != 1:
        raise UserError("it needs exactly one of topic, metadata and value", where=where, hint=MAPPING_HINT)
    field = entry.get("field", [])
    field = [field] if isinstance(field, str) else field
    _require(_is_list_of_text(field), "a path or a list of paths", field, f"{where}.field")
    indices, names, join = entry.get("indices"), entry.get("names"), entry.get("join", "last")
    if indices is not None and not (isinstance(indices, list) and indices and all(
            isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices)):
        raise UserError(f"they must be integers from 0, not {_shorten(indices)}", where=f"{where}.indices",
                        hint=MAPPING_HINT)
    _require(names is None or names and _is_list_of_text(names), "a list of names", names, f"{where}.names")
    _require(join in JOIN_RULES, f"{', '.join(JOIN_RULES[:-1])} or {JOIN_RULES[-1]}", join, f"{where}.join")
    if entry.get("metadata") is not None and len(field) != 1:
        raise UserError("it must be the key of the record", where=f"{where}.field", hint=MAPPING_HINT)
    value = entry.get("value")
    _require(isinstance(value, (str, int, float, list, type(None))), "text or numbers", value, f"{where}.value")
    return ColumnMapping(
        _text(entry, "topic", where),
        tuple(field),
        indices and tuple(indices),
        names and tuple(names),
        join,
        _positive(entry, "age", where),
        _text(entry, "metadata", where),
        value)


def _require(is_valid: object, requirement: str, value, where: str) -> None:
    if not is_valid:
        raise UserError(f"it must be {requirement}, not {_shorten(value)}", where=where, hint=MAPPING_HINT)


def _is_list_of_text(value) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _object(entry, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    _require(isinstance(entry, Mapping), f"an object with {', '.join(keys)}", entry, where)
    for key in entry:
        if key not in keys:
            raise unknown_name("key", key, keys, where, hint=MAPPING_HINT)
    return entry


def _text(entry: Mapping, key: str, where: str) -> str | None:
    value = entry.get(key)
    _require(isinstance(value, (str, type(None))), "text", value, f"{where}.{key}")
    return value


def _positive(entry: Mapping, key: str, where: str) -> float | None:
    value = entry.get(key)
    _require(value is None or is_rate(value), "a number above 0", value, f"{where}.{key}")
    return value


def _shorten(value) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) < 80 else text[:77] + "..."


# -- values of a message ----------------------------------------------------------------------------------------------


class MessageMismatch(ValueError):
    """Raised when a message does not have the field that a mapping names."""


class NamesMissing(MessageMismatch):
    """Raised when a message lacks names of components. It may be of another publisher on the topic."""


def value_at(message, path: str):
    """Returns the part of a decoded message at a path, or the whole message if the path is empty.

    Raises:
        MessageMismatch: The message has no such part.
    """
    value = message
    for part in re.findall(r"[^.\[\]]+", path):
        inside = _inside(value)
        if inside is not None and part in inside:
            value = inside[part]
        elif (named := _named(value)) is not None and part in named:
            value = named[part]
        elif part.isdigit() and isinstance(value, (list, tuple, np.ndarray)) and int(part) < len(value):
            value = value[int(part)]
        else:
            alternatives = f"there are {', '.join(inside)}" if inside else f"there is {_shorten(value)}"
            raise MessageMismatch(f"there is no field {path!r}; {alternatives}")
    return value


def numeric_fields(value, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the path and the value of each number or array in a part of a message, in order.

    Text, headers and layouts are skipped. `path` is the path of the part itself.
    """
    if (inside := _inside(value)) is not None:
        for name, part in inside.items():
            if name not in _SKIPPED:
                yield from numeric_fields(part, f"{path}.{name}" if path else name)
    elif isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        yield path, np.asarray(value)
    elif isinstance(value, (list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.empty(0, object)
        if array.dtype.kind in "biuf" and len(value):
            yield path, array
        elif array.dtype.kind not in "US":
            for i, part in (_named(value) or dict(enumerate(value))).items():
                yield from numeric_fields(part, f"{path}[{i}]")


def _named(value) -> Mapping[str, Any] | None:
    """Converts a list of structures with a field `name` to a dict by that name. None for anything else."""
    if not isinstance(value, (list, tuple)):
        return None
    inside = {name: v for v in value if isinstance(name := (_inside(v) or {}).get("name"), str) and name
              and not re.search(r"[.\[\]]", name)}
    return inside if inside and len(inside) == len(value) else None


def _inside(value) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value) if not f.name.startswith("__")}
    return None


def column_numbers(message, column: ColumnMapping) -> list[tuple[str, np.ndarray]]:
    """Returns the path and the value of all numbers of a message that a column has.

    Raises:
        MessageMismatch: The message has no such part.
    """
    return [part for p in column.field or ("",) for part in numeric_fields(value_at(message, p), p)]


def column_value(message, name: str, column: ColumnMapping, order: tuple[str, ...] | None = None) -> np.ndarray | str:
    """Returns the value of a column in a message.

    Args:
        order: The paths of the numbers of the first message, which later messages must have. None for the first one.

    Returns:
        Text, or numbers: (n,), the shape of the field if it is an array, or () for an outcome that is a single number.

    Raises:
        MessageMismatch: The message does not have what the mapping says.
    """
    fields = column.field or ("",)
    value = value_at(message, fields[0])
    if len(fields) == 1 and isinstance(value, str):
        return value
    numbers = column_numbers(message, column)
    if not numbers:
        raise MessageMismatch(f"there are neither numbers nor text in {', '.join(map(repr, fields))}")
    arrays = _reordered(numbers, order)
    array = arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(-1) for a in arrays])
    if array.dtype.kind not in "biuf":
        raise MessageMismatch(f"this is neither numbers nor text: {_shorten(value)}")
    array = _cast(_selected(message, array, column), is_json=type(message) is dict)
    if array.ndim == 0 and role(name) in ("observation", "action"):
        return array.reshape(1)
    return array.reshape(()) if array.shape == (1,) and role(name) == "outcome" else array


def _reordered(numbers: list[tuple[str, np.ndarray]], order: tuple[str, ...] | None) -> list[np.ndarray]:
    """Brings numbers into the order of the first message, for fields that come in any order."""
    paths, by_path = tuple(path for path, _ in numbers), dict(numbers)
    if order is None or order == paths:
        return [a for _, a in numbers]
    if sorted(order) != sorted(paths):
        raise MessageMismatch(f"the numbers are {', '.join(paths)}, but {', '.join(order)} in the first message")
    return [by_path[path] for path in order]


def _selected(message, array: np.ndarray, column: ColumnMapping) -> np.ndarray:
    """Selects the components that the mapping names, and then the components at its indices."""
    if column.names is not None:
        array = array.reshape(-1)[_order(message, column.names, array.size)]
    if column.indices is None:
        return array
    if max(column.indices) >= array.size:
        raise MessageMismatch(f"there are {array.size} numbers, but indices needs {max(column.indices) + 1}")
    return array.reshape(-1)[list(column.indices)]


def _cast(array: np.ndarray, is_json: bool) -> np.ndarray:
    """Casts whole numbers to int64, or from JSON to float64, because JSON may write 1.0 as 1."""
    if array.dtype.kind not in "iu":
        return array
    if is_json:
        return array.astype(np.float64)
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise MessageMismatch(f"integers must be below 2**63, but one is {array.max()}")
    return array.astype(np.int64)


def message_names(message) -> list[str]:
    """Returns the component names in a message, such as sensor_msgs/JointState. Empty without names."""
    return list(map(str, names)) if isinstance(names := (_inside(message) or {}).get("name"), (list, tuple)) else []


def _order(message, names: tuple[str, ...], size: int) -> list[int]:
    """Returns the position of each component name in this message, or all positions in order if it has no names."""
    own_names = message_names(message)
    if not own_names:
        if size != len(names):
            raise MessageMismatch(f"there are {size} numbers for the names {', '.join(names)}")
        return list(range(size))
    if missing := [n for n in names if n not in own_names]:
        raise NamesMissing(f"there is no component {missing[0]!r}; there are {', '.join(own_names)}")
    order = [own_names.index(n) for n in names]
    if max(order) >= size:
        raise MessageMismatch(f"there are {size} numbers for the components {', '.join(own_names)}")
    return order


def component_names(message, column: ColumnMapping) -> tuple[str, ...] | None:
    """Returns the names of the components of a column, if the mapping or the message has them."""
    if column.names is not None:
        names = list(column.names)
    else:
        names = [n for path, a in column_numbers(message, column)
                 for n in ([path] if a.ndim == 0 else [f"{path}[{i}]" for i in range(a.size)])]
        if len(names) < 2 or all(re.search(r"\[\d+\]", n) for n in names):
            return None
    return tuple(names[i] for i in column.indices) if column.indices is not None else tuple(names)


# -- joining ----------------------------------------------------------------------------------------------------------


def align_messages(stamps: np.ndarray, ticks: np.ndarray, rule: str, max_age: float | None) \
        -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the messages from which the value of each row is made.

    Args:
        stamps: Times of the messages in ns, ascending, (n,).
        ticks: Times of the rows in ns, ascending, (T,).
        rule: "last", "next", "nearest" or "interpolate".
        max_age: Largest time between row and message, in s. None for no limit.

    Returns:
        Number of the message before and after each row, (T,) each, and whether the row has a value, (T,) bool. The two
        numbers differ for "interpolate" only.
    """
    if not len(stamps):
        none = np.zeros(len(ticks), np.int64)
        return none, none, none.astype(bool)
    limit = np.iinfo(np.int64).max if max_age is None else round(max_age * 1e9)
    last, first_after = np.searchsorted(stamps, ticks, "right") - 1, np.searchsorted(stamps, ticks, "left")
    below, above = last.clip(0), first_after.clip(max=len(stamps) - 1)
    before, after = ticks - stamps[below], stamps[above] - ticks
    has_last, has_next = (last >= 0) & (before <= limit), (first_after < len(stamps)) & (after <= limit)
    if rule == "last":
        return below, below, has_last
    if rule == "next":
        return above, above, has_next
    if rule == "interpolate":
        return below, above, has_last & has_next
    nearest = np.where((last >= 0) & ((first_after >= len(stamps)) | (before <= after)), below, above)
    return nearest, nearest, np.abs(stamps[nearest] - ticks) <= limit


# -- a proposal -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)  # arrays cannot be compared
class TopicSummary:
    """What is known of a topic when a mapping is proposed: its type, times and first message.

    Args:
        stamps: Times of the messages, in s, ascending.
        message: The first message, decoded.
        image: Whether the messages are images or packets of a video.
        undecoded: Why there is no decoded message. Empty if there is one.
    """

    name: str
    type: str
    count: int
    stamps: np.ndarray
    message: Any
    image: bool
    undecoded: str = ""


_ACTIONS = re.compile(r"action|command|cmd|leader|control_input|joint_trajectory|target", re.I)
_NO_STATE = re.compile(r"rosout|/tf(_static)?$|diagnostics|parameter_events|^/clock$|camera_info")
_PLAIN = {"image", "image_raw", "image_rect", "image_color", "compressed", "data", "state", "joint_states", "value"}
MAX_FPS = 100.0  # messages per second; rows of a faster clock would hardly differ


def propose_mapping(
    topics: list[TopicSummary], metadata: Mapping[str, Mapping[str, str]]
) -> tuple[TopicMapping, list[str]]:
    """Proposes a mapping of all topics that can be columns, and gives a reason for each topic that is left out.

    Actions and rewards are joined with the next message, other columns with the last one. The largest age is three
    periods of the topic, and at least 0.1 s.
    """
    columns: dict[str, ColumnMapping] = {}
    notes = []
    states = [t for t in topics if re.search(r"state|position|pose|odom", t.name, re.I)]
    for topic in sorted(topics, key=lambda t: t not in states):  # topics with a state in their name come first
        if why := _unusable(topic):
            notes.append(f"topic {topic.name} ({topic.type}): {why}; it is left out")
        else:
            _propose_columns(topic, columns)
    if "task" not in columns:
        for name, record in metadata.items():
            if isinstance(record.get("task"), str):
                columns["task"] = ColumnMapping(metadata=name, field=("task",))
    order = {n: i for i, n in enumerate(("observation", "action", "outcome", "task", "other"))}
    columns = dict(sorted(columns.items(), key=lambda c: (order.get(role(c[0]), 4), ".images." in c[0])))
    clock = next((columns[n].topic for n in ("observation.state", "action", *columns) if n in columns
                  and columns[n].topic), None)
    by_name = {t.name: t for t in reversed(topics)}
    period = None if clock is None else _period(by_name[clock].stamps)
    fps = None if period is None else _rate(1 / period)
    if fps is not None and fps > MAX_FPS:
        films = [_period(by_name[c.topic].stamps) for n, c in columns.items() if c.topic and ".images." in n]
        clock, fps = None, _rate(max([1 / p for p in films if p] or [30.0]))
    if clock is None or sum(t.name == clock for t in topics) > 1:  # no rows at the messages of several publishers
        clock, fps = None, fps or 10.0
    return TopicMapping(columns, clock, fps, max(1.0, round(5 / fps, 3)) if fps else 1.0), notes


def _unusable(topic: TopicSummary) -> str:
    if topic.message is None:
        return f"it has {topic.undecoded}" if topic.undecoded else "it has no messages"
    if topic.image:
        return ""
    if _NO_STATE.search(topic.name):
        return "it is about the robot's software"
    if isinstance(_only_text(topic.message), str):
        return ""
    size = sum(a.size for _, a in numeric_fields(topic.message))
    if 0 < size <= _MAX_NUMBERS:
        return ""
    return f"it has {size} numbers a message" if size else "it has no numeric fields"


def _only_text(message) -> str | None:
    inside = _contents(message)
    value = next(iter(inside.values()), None)
    return value if len(inside) == 1 and isinstance(value, str) else None


def _contents(message) -> dict[str, Any]:
    """Returns the fields of a message, without headers, time stamps and layouts."""
    return {k: v for k, v in (_inside(message) or {}).items() if k not in _SKIPPED}


def _propose_columns(topic: TopicSummary, columns: dict[str, ColumnMapping]) -> None:
    def free(name: str) -> str:
        return next(n for i in range(1, 10**6) if (n := name if i == 1 else f"{name}_{i}") not in columns)

    period = _period(topic.stamps)
    age = None if period is None else max(0.1, round(3 * period, 3))
    parts = [re.sub(r"\W", "_", p) for p in topic.name.split("/") if p]
    short = "_".join(p for p in parts if p.lower() not in _PLAIN)
    if topic.image:
        columns[free(f"observation.images.{short or 'camera'}")] = ColumnMapping(topic.name, max_age=age)
        return
    inside = _contents(topic.message)
    if (text := _only_text(topic.message)) is not None:
        task = re.search(r"task|instruction|prompt|language", topic.name, re.I)
        columns[free("task" if task else short or "text")] = ColumnMapping(
            topic.name, (next(k for k, v in inside.items() if v is text),),
            join="nearest" if topic.count == 1 else "last")  # sent once, just before or after the first row
        return
    is_action = bool(_ACTIONS.search(topic.name))
    first = "action" if is_action else "next.reward" if re.search("reward", topic.name, re.I) else "observation.state"
    name = first if first not in columns else free(f"{'action' if is_action else 'observation'}.{short or 'state'}")
    rule = "next" if is_action or name == "next.reward" else "last"
    if _is_list_of_text(inside.get("name")) and np.ndim(inside.get("position", 0)) == 1:  # sensor_msgs/JointState
        kinds = [k for k in ("position", "velocity", "effort") if len(inside.get(k, ()))]
        for k in kinds[:1] if is_action else kinds:
            names = tuple(map(str, inside["name"])) if len(inside["name"]) == len(inside[k]) else None
            column = ColumnMapping(topic.name, (k,), names=names, join=rule, max_age=age)
            columns[name if k == kinds[0] else free(f"observation.{'_'.join(filter(None, (short, k)))}")] = column
        return
    numeric_keys = [k for k in inside if any(True for _ in numeric_fields(inside[k], k))]
    field = tuple(numeric_keys) if len(numeric_keys) == 1 else ()
    columns[name] = ColumnMapping(topic.name, field, join=rule, max_age=age)


def _period(stamps: np.ndarray) -> float | None:
    intervals = np.diff(stamps)
    intervals = intervals[intervals > 0]
    return float(np.median(intervals)) if len(intervals) else None


def _rate(fps: float) -> float:
    """Returns the rate of messages, rounded to an integer if it is within 1 % of one."""
    return float(round(fps)) if round(fps) and abs(fps / round(fps) - 1) < 0.01 else round(fps, 3)
