"""Decoder of Protocol Buffers messages by the descriptors in the file. No code is generated or run.

A schema is a FileDescriptorSet with the file of the message and all that it imports (MCAP registry, foxglove/mcap,
website/docs/spec/registry.md). A field with presence that was not set is left out of a message. A field without
presence has its default value, as in proto3 (protobuf.dev, Field Presence).
"""

from __future__ import annotations

from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np

from ..parts.read_errors import first_line, import_optional


class Message(dict):
    """The fields of a decoded Protocol Buffers message by name.

    Values are numbers and text, arrays of repeated numbers and of bytes, messages, and lists of them. Times and
    durations are `Timestamp`.
    """


class Timestamp(float):
    """A google.protobuf.Timestamp or Duration, in s.

    Attributes:
        ns: The time or duration in ns, an integer.
    """

    ns: int

    def __new__(cls, ns: int) -> Timestamp:
        out = super().__new__(cls, ns / 1e9)
        out.ns = ns
        return out


_TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")


def make_decoder(name: str, descriptors: bytes) -> Callable[[bytes], Message]:
    """Returns the decoder of a message type.

    Args:
        name: Full name of the message type.

    Raises:
        ValueError: The descriptors are invalid or lack the message type.
    """
    import_optional("google.protobuf", "reading messages in protobuf needs the package protobuf", "bags")
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

    try:
        files = {f.name: f for f in descriptor_pb2.FileDescriptorSet.FromString(bytes(descriptors)).file}
    except message.DecodeError:
        raise ValueError("descriptors that are damaged") from None
    imports = {name: list(file.dependency) for name, file in files.items()}
    for file, others in imports.items():
        if missing := set(others) - files.keys():
            raise ValueError(f"descriptors without {min(missing)}, which {file} imports")
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in TopologicalSorter(imports).static_order():  # files of a set are in any order
            pool.AddSerializedFile(files[file].SerializeToString())
    except CycleError as error:
        raise ValueError(f"descriptors of {error.args[1][0]}, which imports itself") from None
    except Exception as error:  # TypeError here, another error in other versions of protobuf
        raise ValueError(f"descriptors that do not fit together ({first_line(error)[:160]})") from None
    try:
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    except KeyError:
        raise ValueError(f"descriptors without {name or 'a name'}") from None
    return lambda data: _plain(kind.FromString(bytes(data)))


def _plain(message) -> Any:
    from google.protobuf.unknown_fields import UnknownFieldSet

    kind = message.DESCRIPTOR
    for unknown in UnknownFieldSet(message):
        if unknown.field_number in kind.fields_by_number:  # it has another type, and a parser silently skips it
            raise ValueError(f"field {unknown.field_number} of {kind.full_name} is not "
                             f"{kind.fields_by_number[unknown.field_number].name}, as its descriptor says")
    if kind.full_name in _TIMES:
        return Timestamp(message.seconds * 10**9 + message.nanos)
    out = Message()
    for f in kind.fields:
        value = getattr(message, f.name)
        entry = f.message_type if f.message_type is not None and f.message_type.GetOptions().map_entry else None
        if entry is not None:
            deep = entry.fields_by_name["value"].message_type is not None
            out[f.name] = Message((str(k), _plain(value[k]) if deep else _one(value[k])) for k in sorted(value))
        elif f.is_repeated:
            out[f.name] = ([_plain(v) for v in value] if f.message_type is not None else
                           [_one(v) for v in value] if f.cpp_type == f.CPPTYPE_STRING else
                           np.array(value, _DTYPES[f.cpp_type]))
        elif not f.has_presence or message.HasField(f.name) or f.has_default_value:
            out[f.name] = _plain(value) if f.message_type is not None else _one(value)
    return out


def _one(value) -> Any:
    return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value


# FieldDescriptor.CPPTYPE_...: INT32, INT64, UINT32, UINT64, DOUBLE, FLOAT, BOOL, ENUM
_DTYPES = {1: np.int32, 2: np.int64, 3: np.uint32, 4: np.uint64, 5: np.float64, 6: np.float32, 7: np.bool_, 8: np.int32}
