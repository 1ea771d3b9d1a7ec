"""MCAP files and ROS 1 and 2 bags as streams of decoded messages, without ROS.

They are read with mcap (foxglove/mcap, website/docs/spec), rosbags and protobuf. No code from the file is run. A
recording that was cut short is read up to the cut: every complete chunk of MCAP, and of a ROS 1 bag without an index.
"""

from __future__ import annotations

import base64
import bz2
import io
import json
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import av
import numpy as np

from ....core import UserError
from ... import cache, video
from ..parts import read_errors
from ..parts.file_kinds import file_kind, file_order
from ..parts.read_errors import damaged
from . import protobuf

_RGB = {"rgb8": (3, slice(None)), "bgr8": (3, slice(None, None, -1)), "8UC3": (3, slice(None, None, -1)),
        "rgba8": (4, slice(None)), "bgra8": (4, [2, 1, 0, 3]), "mono8": (1, slice(None)), "8UC1": (1, slice(None))}
_CODECS = {"h264": "h264", "h265": "hevc", "vp9": "vp9", "av1": "libdav1d"}  # ours in PyAV
_SCHEMAS = {"protobuf": ("protobuf",), "cdr": ("ros2msg", "ros2idl"), "ros1": ("ros1msg",)}  # names in MCAP's registry


class MessageLog(ABC):
    """Base class of a recording of messages on topics.

    Attributes:
        undecoded: Why the messages of a topic cannot be decoded, to complete "the topic has ...".
        truncation: How the recording was cut short. Empty if it is complete.
        metadata: Records of text, by name.
    """

    kind: str
    truncation: str = ""

    def __init__(self, path: Path, files: Iterable[Path]):
        self.path, self.files = path, tuple(files)
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.undecoded: dict[str, str] = {}
        self.metadata: dict[str, Mapping[str, str]] = {}

    @property
    def key(self) -> str:
        """Digest of the recording's files, which changes if they change."""
        return cache.files_digest(self.files, "log")

    def messages(self, topics: Collection[str], begin: int | None = None, end: int | None = None) \
            -> Iterator[tuple[str, int, Any]]:
        """Decodes the messages of some topics. The messages of one topic are always in the same order.

        Args:
            begin: Log time of the first message, ns.
            end: Log time of the last message, ns, inclusive.

        Yields:
            Topic, log time in ns, decoded message.
        """
        with _readable(self.path):
            for file, topic, time, decode in self._encoded(topics, begin, end):
                if topic not in topics or begin is not None and time < begin or end is not None and time > end:
                    continue
                if topic in self.undecoded:
                    raise UserError(f"the topic has {self.undecoded[topic]}", where=f"{file}, topic {topic}",
                                    hint="leave the topic out")
                with _readable(f"{file}, topic {topic}, message logged at {time} ns", "message"):
                    message = decode()
                yield topic, time, message

    @abstractmethod
    def _encoded(self, topics: Collection[str], begin: int | None, end: int | None) \
            -> Iterator[tuple[Path, str, int, Callable[[], Any]]]:
        """Yields file, topic, log time and decoder of each message, including messages that `messages` passes over."""


def is_image(type: str) -> bool:
    """Returns whether messages of a type are images or packets of a video."""
    return _short(type) in ("CompressedImage", "Image", "RawImage") or is_video(type)


def is_video(type: str) -> bool:
    """Returns whether messages of a type are packets of a video. Most need the packets before them for decoding."""
    return _short(type) == "CompressedVideo"


def _short(type: str) -> str:
    return type.rsplit("/", 1)[-1].rsplit(".", 1)[-1]


def message_time(message) -> int | None:
    """Returns header.stamp or Foxglove's timestamp of a message, in ns. None if the message has neither, or 0."""
    stamp = _get(_get(message, "header"), "stamp")
    stamp = _get(message, "timestamp") if stamp is None else stamp
    if isinstance(stamp, protobuf.Timestamp):
        return stamp.ns or None
    seconds, nanoseconds = (next((v for n in names if isinstance(v := _get(stamp, n), (int, np.integer))), None)
                            for names in (("sec", "secs"), ("nanosec", "nsec", "nsecs")))
    return None if seconds is None or nanoseconds is None else int(seconds) * 10**9 + int(nanoseconds) or None


def decode_image(message, where: str) -> np.ndarray:
    """Decodes an image message (PNG, JPEG or padded rows of pixels) to uint8 (H, W, C) with 1, 3 or 4 channels."""
    with _readable(where, "image"):
        data = _data(message)
        if (encoding := _get(message, "encoding")) is None:
            image_format = str(_get(message, "format") or "")
            has_16_bits = video.is_16_bit_gray(data)
            if has_16_bits or re.search("compressedDepth|16UC1|32FC1", image_format):
                raise UserError(f"depth images are not read ({image_format}{', 16 bits' * has_16_bits})", where=where,
                                hint="leave the topic out")
            return video.decode_image(data, 3, where)
        if encoding not in _RGB:
            raise UserError(f"images of {encoding} are not read, only {', '.join(_RGB)}", where=where,
                            hint="leave the topic out, or record it as rgb8")
        (channels, order), (height, width) = _RGB[encoding], (int(_get(message, k) or 0) for k in ("height", "width"))
        step, pixels = int(_get(message, "step") or width * channels), np.frombuffer(data, np.uint8)
        if min(height, width) < 1 or step < width * channels or len(pixels) < height * step:
            raise damaged(f"{height} rows of {step} bytes, with {width} pixels each, do not fit into {len(pixels)} "
                          "bytes", where)
        rows = pixels[: height * step].reshape(height, step)[:, : width * channels]
        return np.ascontiguousarray(rows.reshape(height, width, channels)[..., order])


def _data(message) -> bytes:
    data = _get(message, "data")
    return base64.b64decode(data) if isinstance(data, str) else bytes(data)


def is_key_frame(message) -> bool:
    """Returns whether a packet of a video can be decoded without the packets before it.

    That is an IDR picture of H.264, an IRAP picture of H.265 (ITU-T H.264 and H.265, table 7-1 of each), a sequence
    header of AV1 (5.5), or a key frame of VP9 (6.2).
    """
    video_format, data = _get(message, "format"), _data(message)
    if video_format in ("h264", "h265"):  # Annex B: units after 00 00 01
        units = [data[m.end()] for m in re.finditer(b"\0\0\1(?=.)", data, re.DOTALL)]
        return any(u & 31 == 5 if video_format == "h264" else 16 <= u >> 1 & 63 <= 23 for u in units)
    if video_format == "av1":
        return any(kind == 1 for kind in _units(data))
    if video_format == "vp9" and data:  # marker, profile, show_existing_frame, frame_type
        return not data[0] >> (2 if data[0] & 0x30 != 0x30 else 1) & 3
    return False


def _units(data: bytes) -> Iterator[int]:
    """Yields the types of the open bitstream units in AV1 data (AV1 specification 5.3)."""
    at = 0
    while at < len(data):
        head, at = data[at], at + 1 + (data[at] >> 2 & 1)
        yield head >> 3 & 15
        if not head & 2:  # without a size it goes to the end
            return
        size = shift = 0
        while at < len(data):
            size, shift, at = size | (data[at] & 127) << shift, shift + 7, at + 1
            if not data[at - 1] & 128:
                break
        at += size


def decode_video(packets: Iterable[tuple[int, Any]], where: str) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes consecutive packets of a video.

    Args:
        packets: Number and message of each packet. The first is a key frame.

    Yields:
        Number of the packet, and its frame, uint8 (H, W, 3).
    """
    codec: av.VideoCodecContext | None = None
    with _readable(where, "video"):
        for number, message in packets:
            video_format = _get(message, "format")
            if video_format not in _CODECS:
                raise UserError(f"video in {video_format!r} is not read, only {', '.join(_CODECS)}", where=where,
                                hint="leave the topic out")
            if codec is None:
                codec = cast(av.VideoCodecContext, av.CodecContext.create(_CODECS[video_format], "r"))
            packet = av.Packet(_data(message))
            packet.pts = number
            yield from _decoded_frames(codec.decode(packet))
        if codec is not None:
            yield from _decoded_frames(codec.decode(None))


def decode_key_frame(message, where: str) -> np.ndarray:
    """Decodes the frame of a single key frame packet, uint8 (H, W, 3)."""
    for _, image in decode_video([(0, message)], where):
        return image
    raise UserError("there is no key frame, so the video cannot be decoded", where=where,
                    hint="leave the topic out")


def _decoded_frames(frames) -> Iterator[tuple[int, np.ndarray]]:
    for frame in frames:
        if frame.is_corrupt:
            raise ValueError(f"frame {frame.pts} lacks what it is made of")
        yield frame.pts, frame.to_ndarray(format="rgb24")


def _get(value, name: str):
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _readable(where: object, what: str = "recording") -> AbstractContextManager[None]:
    """Turns the errors that a reader raises about a damaged file into `UserError` with the place. A context manager."""
    return read_errors.as_user_error(f"the {what}", where, passed_through=(ModuleNotFoundError,), named=True)


def import_reader(module: str) -> ModuleType:
    """Imports a module of the packages that read recordings, which are optional."""
    return read_errors.import_optional(module, f"reading bags needs the package {module.partition('.')[0]}", "bags")


# -- MCAP -------------------------------------------------------------------------------------------------------------


class McapLog(MessageLog):
    """Reader of one recording in one MCAP file, or in several consecutive ones."""

    kind = "mcap"

    def __init__(self, path: Path, files: Collection[Path]):
        super().__init__(path, files)
        import_reader("mcap.reader")
        self._indexed: dict[Path, bool] = {}
        cut = []
        for file in self.files:
            with _readable(file):
                truncation = self._scan_file(file)
            if truncation:
                cut.append(f"{file.name} {truncation}")
        self.truncation = "; ".join(cut)

    def _scan_file(self, file: Path) -> str:
        """Lists topics and metadata from the file's summary, or from all messages if it is damaged. Returns how the
        file was truncated."""
        summary = self._summary(file)
        self._indexed[file] = summary is not None
        if summary is not None:
            counts = summary.statistics.channel_message_counts
            for number, channel in summary.channels.items():
                self._add_topic(summary.schemas.get(channel.schema_id), channel, counts.get(number, 0))
            if summary.metadata_indexes:
                from mcap.reader import make_reader

                with open(file, "rb") as handle:
                    self._add_metadata({m.name: m.metadata for m in make_reader(handle).iter_metadata()})
            return ""
        state = McapStream()
        for schema, channel, _ in state.records(file):
            self._add_topic(schema, channel, 1)
        for channel in state.channels.values():
            if channel.topic not in self.types:
                self._add_topic(state.schemas.get(channel.schema_id), channel, 0)
        self._add_metadata(state.metadata)
        return state.cut

    def _add_metadata(self, records: Mapping[str, Mapping[str, str]]) -> None:
        self.metadata.update({n: r for n, r in records.items() if n != "rosbag2"})  # metadata.yaml once more

    @staticmethod
    def _summary(file: Path):
        """Reads the summary of an MCAP file. None if it cannot locate the messages."""
        from mcap.reader import make_reader

        try:
            with open(file, "rb") as handle:
                summary = make_reader(handle).get_summary()
        except Exception:  # a file that was cut short has something else there
            return None
        if summary is None or summary.statistics is None or not summary.chunk_indexes:
            return None
        channels = [summary.channels.get(n) for n in summary.statistics.channel_message_counts]
        whole = all(c is not None and (c.schema_id == 0 or c.schema_id in summary.schemas) for c in channels)
        return summary if whole else None

    def _add_topic(self, schema, channel, count: int) -> None:
        topic = channel.topic
        self.types.setdefault(topic, schema.name if schema else channel.message_encoding)
        self.counts[topic] = self.counts.get(topic, 0) + count
        encoding, by = channel.message_encoding, schema.encoding if schema is not None else ""
        if encoding != "json" and by not in _SCHEMAS.get(encoding, ()):
            self.undecoded[topic] = f"messages in {encoding or 'an unknown encoding'}{f' ({by})' if by else ''}, " \
                                    "which is not read (json, protobuf, ROS 1 and ROS 2 are)"
        elif encoding == "protobuf":
            try:
                _decoder(schema.name, by, schema.data)
            except ValueError as error:
                self.undecoded[topic] = f"messages in protobuf, and {error}"

    def _encoded(self, topics, begin, end):
        from mcap.reader import make_reader

        for file in self.files:
            with _readable(file), open(file, "rb") as handle:
                if self._indexed[file]:
                    records = make_reader(handle, validate_crcs=True).iter_messages(
                        list(topics), log_time_order=False, starting_at=begin, ending_at=end)
                else:
                    records = McapStream().records(file)
                for schema, channel, message in records:
                    yield file, channel.topic, message.log_time, partial(self._decode, schema, channel, message)

    def _decode(self, schema, channel, message):
        if channel.message_encoding == "json":
            return json.loads(message.data)
        return _decoder(schema.name, schema.encoding, schema.data)(message.data)


class McapStream:
    """Reader that goes through an MCAP file from its start to its end, without its index.

    Attributes:
        cut: How the recording was cut short, once it is read. Empty if it is complete.
    """

    def __init__(self):
        self.schemas, self.channels, self.metadata, self.cut = {}, {}, {}, ""

    def records(self, file: Path) -> Iterator[tuple[Any, Any, Any]]:
        """Yields schema, channel and message record of each message."""
        from mcap.exceptions import EndOfFile, McapError, RecordLengthLimitExceeded
        from mcap.records import Channel, Chunk, DataEnd, Message, Metadata, Schema
        from mcap.stream_reader import StreamReader, breakup_chunk

        done, size = False, file.stat().st_size
        with open(file, "rb") as handle:
            try:
                for record in StreamReader(handle, emit_chunks=True, record_size_limit=size).records:
                    inside = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
                    for part in inside:
                        if isinstance(part, Schema):
                            self.schemas[part.id] = part
                        elif isinstance(part, Channel):
                            self.channels[part.id] = part
                        elif isinstance(part, Metadata):
                            self.metadata[part.name] = part.metadata
                        elif isinstance(part, Message) and not done:
                            channel = self.channels[part.channel_id]
                            yield self.schemas.get(channel.schema_id), channel, part
                    done = done or isinstance(record, DataEnd)
            except (EndOfFile, McapError, struct.error) as error:
                if not done and not isinstance(error, (EndOfFile, RecordLengthLimitExceeded)):
                    raise  # damage, and no end
                self.cut = "ends without its summary" + ("" if done else ", in the middle of the data") + \
                    ": the recording was cut short"


@lru_cache(1024)  # a recording has thousands of messages of a few types
def _decoder(name: str, encoding: str, schema: bytes) -> Callable[[bytes], Any]:
    """Returns a function that decodes the bytes of a message to an object with its fields."""
    if encoding == "protobuf":
        return protobuf.make_decoder(name, schema)
    typesys = import_reader("rosbags.typesys")
    store, text = typesys.get_typestore(typesys.Stores.EMPTY), schema.decode()
    name = name if name.count("/") > 1 else name.replace("/", "/msg/")
    if encoding == "ros2idl":
        parts = [p.split("\n", 1)[1] for p in text.split("=" * 80 + "\n") if p.startswith("IDL: ")] or [text]
        store.register({k: v for p in parts for k, v in typesys.get_types_from_idl(p).items()})
    else:
        store.register(typesys.get_types_from_msg(text, name))
    read = store.deserialize_ros1 if encoding == "ros1msg" else store.deserialize_cdr
    return lambda data: read(data, name)


# -- ROS --------------------------------------------------------------------------------------------------------------


class RosbagLog(MessageLog):
    """Reader of a ROS 1 bag with an index, or of a ROS 2 bag, by the package rosbags."""

    def __init__(self, path: Path):
        super().__init__(path, sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path])
        import_reader("rosbags.highlevel")
        self.kind = "ros2" if path.is_dir() else "ros1"
        with _readable(path), self._open() as reader:
            for c in reader.connections:
                if self.types.setdefault(c.topic, c.msgtype) != c.msgtype:
                    self.undecoded[c.topic] = f"messages of {self.types[c.topic]} and of {c.msgtype}"
                elif c.msgtype not in reader.typestore.fielddefs:
                    self.undecoded[c.topic] = f"messages of {c.msgtype}, whose definition the bag does not have"
                self.counts[c.topic] = self.counts.get(c.topic, 0) + c.msgcount

    def _open(self):
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore

        return AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))

    def _encoded(self, topics, begin, end):
        with self._open() as reader:
            connections = [c for c in reader.connections if c.topic in topics]
            stop = None if end is None else end + 1
            for c, time, data in reader.messages(connections, begin, stop) if connections else ():
                if c.topic not in topics:
                    raise damaged(f"the index is wrong: among the messages of {', '.join(sorted(topics))} is one of "
                                  f"{c.topic}", self.path)
                yield self.path, c.topic, time, partial(reader.deserialize, data, c.msgtype)


class UnindexedRosbag(MessageLog):
    """Reader of a ROS 1 bag without an index, because its recording was interrupted.

    Its chunks are read in order, up to the cut.

    Records: wiki.ros.org/Bags/Format/2.0.
    """

    kind = "ros1"

    def __init__(self, path: Path):
        super().__init__(path, [path])
        self._connections: dict[int, tuple[str, str, bytes]] = {}
        with _readable(path):
            for topic, _, _ in self._records():
                self.counts[topic] = self.counts.get(topic, 0) + 1
        for topic, type, _ in self._connections.values():
            self.types.setdefault(topic, type)
            self.counts.setdefault(topic, 0)
        self.truncation = f"{path.name} has no whole index: the recording was cut short (rosbag reindex makes one)"

    def _encoded(self, topics, begin, end):
        for topic, time, message in self._records():
            yield self.path, topic, time, partial(self._decode, *message)

    @staticmethod
    def _decode(type: str, text: bytes, data: bytes):
        return _decoder(type, "ros1msg", text)(data)

    def _records(self):
        with open(self.path, "rb") as handle:
            handle.readline()
            for header, data in _ros1(handle, part=True):
                if header.get("op") != b"\x05":  # a chunk; all else in the file is its index
                    continue
                for head, body in _ros1(io.BytesIO(_unpacked(header.get_string("compression"), data))):
                    number = head.get_uint32("conn")
                    if head["op"] == b"\x07":
                        about = _header(body)
                        self._connections[number] = (head.get_string("topic"), about.get_string("type"),
                                                     about.get_string("message_definition").encode())
                    elif head["op"] == b"\x02":
                        topic, type, text = self._connections[number]
                        yield topic, head.get_time("time"), (type, text, body)


def _unpacked(how: str, data: bytes) -> bytes:
    """Decompresses the part of a bag's chunk that is present in a cut file."""
    if how == "bz2":
        return bz2.BZ2Decompressor().decompress(data)
    if how == "lz4":
        return import_reader("lz4.frame").LZ4FrameDecompressor().decompress(data)
    if how != "none":
        raise ValueError(f"compression {how}")
    return data


def _ros1(handle, part: bool = False):
    """Yields (header, data) of each whole record of a ROS 1 bag. part: also of the last one if its data are cut off."""
    while True:
        header, whole = _sized(handle)
        if not whole:
            return
        data, whole = _sized(handle)
        if whole or part and data:
            yield _header(header), data
        if not whole:
            return


def _sized(handle) -> tuple[bytes, bool]:
    size = handle.read(4)
    length = int.from_bytes(size, "little")
    data = handle.read(length) if len(size) == 4 else b""
    return data, len(size) == 4 and len(data) == length


def _header(fields: bytes):
    from rosbags.rosbag1.reader import Header

    return Header.read(io.BytesIO(len(fields).to_bytes(4, "little") + fields))


# -- which ------------------------------------------------------------------------------------------------------------


def open_log(path: Path) -> MessageLog:
    """Opens a recording of messages: a file, or the folder of a ROS 2 bag."""
    if path.is_dir():
        films = sorted(path.glob("*.mcap"), key=file_order)
        return McapLog(path, films) if films else RosbagLog(path)
    if file_kind(path) != "bag":
        return McapLog(path, [path])
    try:
        return RosbagLog(path)
    except UserError:
        return UnindexedRosbag(path)
