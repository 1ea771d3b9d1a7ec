"""Encodes messages with msgpack and NumPy arrays, as openpi does. Nothing in a message can run code.

An array is a map with the binary keys ``__ndarray__``, ``data`` (bytes in C order), ``dtype`` (such as ``<f4``) and
``shape``. A NumPy scalar has ``__npgeneric__`` instead, and its number in ``data``. This module does not import
PyTorch.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Mapping, Sequence

import msgpack
import numpy as np

MAX_ITEMS = 4096  # of a list or a map; arrays are bytes and are not limited by it
MAX_DIMENSIONS = 16
MAX_DEPTH = 16
_DTYPE = re.compile(r"[<>|=]?(?:b1|i[1248]|u[1248]|f[248])")


class WireError(ValueError):
    """Raised when a message cannot be read or written. The text says which part of it, and why."""


def pack(value: Mapping[str, object]) -> bytes:
    """Encodes a message as bytes.

    Args:
        value: A mapping with text as keys. Values are numbers, text, bytes, None, lists, mappings, arrays and NumPy
            scalars of numbers and flags.

    Raises:
        WireError: It contains something else, such as an array of objects.
    """
    try:
        return msgpack.packb(value, default=_pack_array)
    except WireError as error:
        raise WireError(f"{_find_unwritable(value)}: {error}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"{_find_unwritable(value)}: cannot be written as msgpack ({error})") from None


def unpack(message: bytes) -> dict[str, object]:
    """Decodes a message. Arrays are copies in the byte order of this machine.

    Raises:
        WireError: The bytes are not a complete message, or an array in it is invalid.
    """
    if not isinstance(message, bytes):
        raise WireError(f"a message is bytes, but this is {type(message).__name__}")
    try:
        value = msgpack.unpackb(message, raw=False, object_hook=_unpack_map, ext_hook=_refuse_extension,
                                max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # some of msgpack's errors have no text
        raise WireError(f"this is not a complete msgpack message ({error or type(error).__name__})") from None
    if not isinstance(value, dict):
        raise WireError(f"a message is a map with names as keys, but this is {_describe(value)}")
    _check_names(value, "", 0)
    return value


def as_array(value: object, name: str) -> np.ndarray:
    """Returns a value of a message as an array of numbers or flags. Lists of numbers are allowed.

    Raises:
        WireError: It is something else, such as text or a list of unequal lists.
    """
    if not isinstance(value, np.ndarray):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WireError(f"{name!r} is not an array of numbers ({error})") from None
    if value.dtype.kind not in "biuf":
        raise WireError(f"{name!r} is not an array of numbers but {_describe(value)}")
    return value


# -- frames of a stream -----------------------------------------------------------------------------------------------


def send_frame(connection: socket.socket, value: Mapping[str, object]) -> None:
    """Sends a message over a stream, after its length in 8 bytes."""
    message = pack(value)
    connection.sendall(len(message).to_bytes(8, "big") + message)


def receive_frame(connection: socket.socket) -> dict[str, object] | None:
    """Receives what `send_frame` sent. None if the other side has closed the stream.

    Raises:
        TimeoutError: It takes longer than the timeout of the connection.
    """
    length = _receive_bytes(connection, 8)
    message = _receive_bytes(connection, int.from_bytes(length, "big"))
    return unpack(message) if length and message else None


def _receive_bytes(connection: socket.socket, length: int) -> bytes:
    """Receives so many bytes. Empty if the stream ends before."""
    parts, missing = [], length
    while missing:
        part = connection.recv(min(missing, 2**20))
        if not part:
            return b""
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


# -- arrays ---------------------------------------------------------------------------------------------------------


def _pack_array(value):
    if not isinstance(value, (np.ndarray, np.generic)):
        raise WireError(f"{type(value).__name__} cannot be written; give numbers, text, arrays, lists and mappings")
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise WireError(f"an array of dtype {value.dtype} cannot be written; give numbers of at most 64 bits")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _unpack_map(value: dict):
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        dtype, number = _dtype(value), value.get(b"data")
        if not isinstance(number, (bool, int, float)):
            raise WireError(f"a NumPy scalar holds {_describe(number)} instead of a number")
        try:
            return dtype.type(number)
        except (OverflowError, ValueError) as error:
            raise WireError(f"{number!r} is not a {dtype.name} ({error})") from None
    return value


def _array(value: dict) -> np.ndarray:
    dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
    if not isinstance(data, bytes):
        raise WireError(f"the data of an array are {_describe(data)} instead of bytes")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape) or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"{str(shape)[:80]} is not the shape of an array")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array of shape {tuple(shape)} and dtype {dtype.str} has {math.prod(shape)} x "
                        f"{dtype.itemsize} bytes, but {len(data)} came")
    if 0 in shape and math.prod(n for n in shape if n) > 2**40:
        raise WireError(f"{tuple(shape)} is not the shape of an array")
    array = np.frombuffer(data, dtype).reshape(shape)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise WireError("an array of flags has bytes other than 0 and 1")
    return array.astype(dtype.newbyteorder("="))


def _dtype(value: dict) -> np.dtype:
    text = value.get(b"dtype")
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise WireError(f"{str(text)[:80]!r} is not the dtype of an array of numbers or flags")
    return np.dtype(text)


def _refuse_extension(code: int, data: bytes):
    raise WireError(f"a msgpack extension (code {code}) is not part of this protocol")


def _check_names(value: object, place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise WireError(f"{place[:80]} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise WireError(f"{str(name)[:80]!r} in {place or 'the message'} is not text, and names are")
            if isinstance(inner, (dict, list)):
                _check_names(inner, f"{place}.{name}" if place else name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, (dict, list)):
                _check_names(inner, f"{place}[]", depth + 1)


def _find_unwritable(value: object, place: str = "the message", depth: int = 0) -> str:
    """Returns where in a value the first part is that cannot be written."""
    inner: Sequence[tuple[str, object]] = ()
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            inner = [(repr(name), part) for name, part in value.items()]
        elif isinstance(value, (list, tuple)):
            inner = [(f"item {i}", part) for i, part in enumerate(value)]
    for name, part in inner:
        try:
            msgpack.packb(part, default=_pack_array)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return _find_unwritable(part, name if depth == 0 else f"{place}, {name}", depth + 1)
    return place


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"
