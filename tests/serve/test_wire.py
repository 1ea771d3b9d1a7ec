"""Messages of the policy server: round trips, openpi's own bytes, and bytes that are no message."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

msgpack = pytest.importorskip("msgpack", reason="extra serve not installed")
pytest.importorskip("websockets", reason="extra serve not installed")

from understudy.serve.schema import SchemaMismatch, check_schema, differences  # noqa: E402
from understudy.serve.wire import WireError, as_array, pack, unpack  # noqa: E402

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
          "float64", ">f4", ">i2")
numbers = st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats() | st.text(max_size=20)
values = st.recursive(
    numbers | st.sampled_from(DTYPES).flatmap(lambda d: arrays(d, array_shapes(min_dims=0, min_side=0, max_side=4))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)


def same(a, b):
    if isinstance(a, (np.ndarray, np.generic)):
        native = a.dtype.newbyteorder("=")
        return type(a) is type(b) and b.dtype == native and np.array_equal(
            np.asarray(a, native).reshape(-1).view(np.uint8), np.asarray(b).reshape(-1).view(np.uint8)
        ) and a.shape == b.shape
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_what_is_written_is_read(message):
    assert same(message, unpack(pack(message)))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_by_name(raw):
    with contextlib.suppress(WireError):
        assert isinstance(unpack(raw), dict)


GOOD = pack({"observation.state": np.arange(6, dtype="<f4").reshape(2, 3), "n": np.int64(3), "prompt": "go"})


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_a_damaged_message_is_read_as_a_message_or_refused(at, byte, cut):
    damaged = bytearray(GOOD)
    damaged[at] = byte
    for raw in (bytes(damaged), bytes(damaged[:cut])):
        try:
            unpacked = unpack(raw)
        except WireError:
            continue
        assert all(isinstance(k, str) for k in unpacked)


def array(**changes):
    whole = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"a": {**whole, **{k.encode(): v for k, v in changes.items()}}})


@pytest.mark.parametrize("raw, says", [
    (array(dtype="|O"), "'|O' is not the dtype"), (array(dtype="|V8"), "not the dtype"),
    (array(dtype="<c8"), "not the dtype"), (array(dtype=7), "not the dtype"),
    (array(shape=[3]), "has 3 x 4 bytes, but 8"),
    (array(shape=[-2]), "not the shape"), (array(shape=[2**40, 2**40]), "but 8 came"),
    (array(shape=[0, 2**60], data=b""), "not the shape"), (array(shape=True), "not the shape"),
    (array(data="text"), "instead of bytes"), (array(dtype="|b1", data=b"\x02\x00"), "flags"),
    (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "not a uint8"),
    (msgpack.packb({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "|u1"}}), "instead of a number"),
    (msgpack.packb([1]), "but this is a list"), (msgpack.packb({1: 2}), "not a complete msgpack message"),
    (msgpack.packb({b"a": 2}), "is not text"), (msgpack.packb({"a": msgpack.ExtType(4, b"x")}), "msgpack"),
    (msgpack.packb({"a": msgpack.Timestamp(1)}), "msgpack"), (b"\xdd\xff\xff\xff\xff" * 3000, "not a complete"),
    (b"\x91" * 100_000, "not a complete"), (b"", "not a complete"),
    (msgpack.packb({"a": {"b": {"c": [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]}}}), "nested deeper")])
def test_errors_name_what_is_wrong(raw, says):
    with pytest.raises(WireError, match=says.replace("|", r"\|").replace("(", r"\(")):
        unpack(raw)


@pytest.mark.parametrize("value", [np.array([object()]), np.array([1j]), np.zeros(2, "i4,i4"), object(), {1, 2}, 2**70,
                                   np.array(["a"]), np.datetime64("2026-01-01")])
def test_nothing_but_numbers_and_text_is_written(value):
    with pytest.raises(WireError, match="'images'.*'front'"):
        pack({"state": 1, "images": {"front": value}})


def test_lists_of_numbers_are_arrays_and_others_are_not():
    assert as_array([[1, 2], [3, 4]], "a").shape == (2, 2)
    for bad in ([[1], [2, 3]], "text", None, ["a"], {"b": 1}, [None]):
        with pytest.raises(WireError, match="'a' is not an array of numbers"):
            as_array(bad, "a")


def test_frames_of_openpi_are_read_and_written_byte_by_byte(shared):
    folder = shared / "fixtures" / "openpi_wire"
    for name in sorted(folder.glob("*.msgpack")):
        assert pack(unpack(name.read_bytes())) == name.read_bytes(), name
    first = unpack((folder / "01_client.msgpack").read_bytes())
    assert first["observation/state"].tolist() == [0, 0.25, 0.5] and first["observation/image"].shape == (8, 8, 3)


SERVED = {"observations": {"observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"], "unit": "m"},
                           "observation.images.top": {"dtype": "uint8", "shape": [96, 96, 3], "kind": "image"}},
          "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"], "unit": None}, "fps": 10,
          "normalization": "none", "action_convention": "absolute"}


def test_equal_schemas_agree_and_a_client_may_leave_out_what_it_does_not_know():
    for client_schema in ({}, SERVED, {"fps": 10}, {"action": {"shape": [2]}}):
        assert not differences(SERVED, client_schema)
    own = {"observations": {"observation.state": {"dtype": "float64", "shape": (2,)}, "observation.more": {},
                            "observation.images.top": {"shape": [480, 640, 3]}}}
    assert not differences(SERVED, own)  # doubles are converted, frames resized


@pytest.mark.parametrize("mine, line", [
    ({"observations": {"state": {"shape": [2]}, "observation.images.top": {}}},
     "observation.state: the policy reads it, the client sends observation.images.top, state"),
    ({"observations": {"observation.state": {"shape": [3]}, "observation.images.top": {}}},
     "observation.state, shape: the policy has (2,), the client (3,)"),
    ({"observations": {"observation.state": {"dtype": "int64"}, "observation.images.top": {}}},
     "observation.state, dtype: the policy has float32, the client int64"),
    ({"observations": {"observation.state": {}, "observation.images.top": {"shape": [96, 96, 1]}}},
     "observation.images.top, shape: the policy has (96, 96, 3), the client (96, 96, 1)"),
    ({"action": {"names": ["y", "x"]}}, "action, names: the policy has ('x', 'y'), the client ('y', 'x')"),
    ({"fps": 30}, "fps: the policy has 10, the client 30"),
    ({"normalization": "min-max"}, "normalization: the policy has none, the client min-max"),
    ({"action_convention": "delta"}, "action_convention: the policy has absolute, the client delta")])
def test_differences_show_both_sides(mine, line):
    assert differences(SERVED, mine) == [line]
    with pytest.raises(SchemaMismatch, match="do not agree"):
        check_schema(SERVED, mine)


def test_a_client_needs_no_torch():
    code = ("import sys, understudy.serve.client, understudy.serve.schema; "
            "print([m for m in ('torch', 'pyarrow', 'scipy') if m in sys.modules])")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
