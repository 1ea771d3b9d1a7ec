"""MCAP with messages in protobuf: descriptors made here, values in closed form, videos, and what is wrong by name."""

from __future__ import annotations

import base64
import json
from fractions import Fraction

import av
import numpy as np
import pytest

from understudy.cli import main
from understudy.core import UserError
from understudy.data.formats import open_dataset, preview_dataset
from understudy.data.formats.logs import message_logs
from understudy.data.video import encode_png

mcap = pytest.importorskip("mcap.writer", reason="extra bags not installed")
pb = pytest.importorskip("google.protobuf.descriptor_pb2", reason="extra bags not installed")
from google.protobuf import descriptor_pool, duration_pb2, message_factory, timestamp_pb2  # noqa: E402

from understudy.data.formats.logs import protobuf  # noqa: E402

F = pb.FieldDescriptorProto
ONE, MANY = F.LABEL_OPTIONAL, F.LABEL_REPEATED
TIME, SPAN = ".google.protobuf.Timestamp", ".google.protobuf.Duration"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def file(name, package, messages, imports=()):
    """A .proto file. messages: {name: [(field, type or the name of a message, label), ...]}, numbered from 1; a field
    that ends in "?" has presence."""
    out = pb.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=imports)
    for message, fields in messages.items():
        kind = out.message_type.add(name=message)
        for number, (field, type, label) in enumerate(fields, 1):
            f = kind.field.add(name=field.rstrip("?"), number=number, label=label)
            if isinstance(type, str):
                f.type, f.type_name = F.TYPE_MESSAGE, type
            else:
                f.type = type
            if field.endswith("?"):
                kind.oneof_decl.add(name=f"_{f.name}")
                f.proto3_optional, f.oneof_index = True, len(kind.oneof_decl) - 1
    return out


def known(module):
    out = pb.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(out)
    return out


TIMES = [known(timestamp_pb2), known(duration_pb2)]
POSES = file("foxglove/Pose.proto", "foxglove", {
    "Vector3": [(k, F.TYPE_DOUBLE, ONE) for k in "xyz"],
    "Quaternion": [(k, F.TYPE_DOUBLE, ONE) for k in "xyzw"],
    "Pose": [("position", ".foxglove.Vector3", ONE), ("orientation", ".foxglove.Quaternion", ONE)]})
ROBOT = file("robot.proto", "robot", {
    "Joint": [("name", F.TYPE_STRING, ONE), ("position", F.TYPE_DOUBLE, ONE), ("effort?", F.TYPE_FLOAT, ONE)],
    "State": [("timestamp", TIME, ONE), ("joints", ".robot.Joint", MANY), ("pose", ".foxglove.Pose", ONE),
              ("currents", F.TYPE_FLOAT, MANY), ("ticks", F.TYPE_INT64, ONE), ("on", F.TYPE_BOOL, ONE),
              ("took", SPAN, ONE), ("raw", F.TYPE_BYTES, ONE)],
    "Command": [("data", F.TYPE_FLOAT, MANY)], "Words": [("text", F.TYPE_STRING, ONE)]},
    ["foxglove/Pose.proto", "google/protobuf/timestamp.proto", "google/protobuf/duration.proto"])
IMAGES = file("foxglove/images.proto", "foxglove", {
    "CompressedImage": [("timestamp", TIME, ONE), ("data", F.TYPE_BYTES, ONE), ("format", F.TYPE_STRING, ONE)],
    "CompressedVideo": [("timestamp", TIME, ONE), ("data", F.TYPE_BYTES, ONE), ("format", F.TYPE_STRING, ONE)],
    "RawImage": [("timestamp", TIME, ONE), ("width", F.TYPE_FIXED32, ONE), ("height", F.TYPE_FIXED32, ONE),
                 ("encoding", F.TYPE_STRING, ONE), ("step", F.TYPE_FIXED32, ONE), ("data", F.TYPE_BYTES, ONE)]},
    ["google/protobuf/timestamp.proto"])
ALL = [ROBOT, IMAGES, POSES, *TIMES]  # what is imported comes last, as protoc never writes it, but as others may
POOL = descriptor_pool.DescriptorPool()
for _f in reversed(ALL):
    POOL.Add(_f)


def make(_kind, **fields):
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(_kind))(**fields)


def at(seconds):
    return {"seconds": int(seconds), "nanos": round(seconds % 1 * 1e9)}


def written(path, rows, files=ALL, types=None, **options):
    """rows: (seconds, topic, message), in order. types: of a topic, where its schema is to name another."""
    descriptors = files if isinstance(files, bytes) else pb.FileDescriptorSet(file=files).SerializeToString()
    with open(path, "wb") as handle:
        writer, channels = mcap.Writer(handle, **options), {}
        writer.start()
        for time, topic, message in rows:
            if topic not in channels:
                name = (types or {}).get(topic, "") or message.DESCRIPTOR.full_name
                channels[topic] = writer.register_channel(topic, "protobuf", writer.register_schema(
                    name, "protobuf", descriptors))
            data = message if isinstance(message, bytes) else message.SerializeToString()
            writer.add_message(channels[topic], round(time * 1e9), data, round(time * 1e9))
        writer.finish()
    return path


def state(t, flip=False, **fields):
    joints = [make("robot.Joint", name="shoulder", position=t + 0.25), make("robot.Joint", name="elbow", position=-t)]
    pose = {"position": {"x": t, "y": 2 * t, "z": 0}, "orientation": {"w": 1}}
    return make("robot.State", **{"timestamp": at(1000 + t / 10), "joints": joints[::-1] if flip else joints,
                                  "pose": pose, "currents": [t / 4, 1.5], "ticks": 2**60 + t, "on": t % 2 == 1,
                                  "took": {"seconds": 1, "nanos": 500_000_000}, **fields})


def run(n=5, **change):
    rows = [(1000 + t / 10, "/arm/state", state(t, **change)) for t in range(n)]
    rows += [(1000 + t / 10, "/arm/command", make("robot.Command", data=[t, t / 2])) for t in range(n)]
    return sorted(rows, key=lambda row: row[0])


def column(path, topic="/arm/state", **more):
    mapping = {"clock": {"topic": topic}, "features": {"observation.x": {"topic": topic, **more}}, "stamp": "log"}
    return open_dataset(path, mapping=mapping)[0].steps["observation.x"]


def test_every_kind_of_field(tmp_path):
    path = written(tmp_path / "a.mcap", run())
    t = np.arange(5)
    np.testing.assert_array_equal(column(path, field="joints[elbow].position").ravel(), -t)
    np.testing.assert_array_equal(column(path, field="joints"), np.stack([t + 0.25, -t], 1))
    np.testing.assert_array_equal(column(path, field="pose"),
                                  np.stack([t, 2 * t, *np.zeros((4, 5)), np.ones(5)], 1))
    currents = column(path, field="currents")
    np.testing.assert_array_equal(currents, np.stack([t / 4, np.full(5, 1.5)], 1))
    assert currents.dtype == np.float32
    ticks = column(path, field="ticks")  # beyond what a float64 can tell apart
    assert ticks.dtype == np.int64 and ticks.ravel().tolist() == [2**60 + i for i in range(5)]
    np.testing.assert_array_equal(column(path, field="took").ravel(), np.full(5, 1.5))
    assert column(path, field="on").ravel().tolist() == [False, True, False, True, False]  # proto3's default is a value


def test_the_stamps_of_messages_join_them(tmp_path):
    """Of google.protobuf.Timestamp, to the nanosecond, which a float64 of today's seconds cannot hold."""
    ns = 1_700_000_000_123_456_789
    rows = [(t / 10, "/s", state(t, timestamp={
        "seconds": ns // 10**9, "nanos": ns % 10**9 + 100 * t})) for t in range(3)]
    log = message_logs.open_log(written(tmp_path / "a.mcap", rows))
    assert [message_logs.message_time(m) for _, _, m in log.messages(["/s"])] == [ns, ns + 100, ns + 200]
    assert message_logs.message_time(protobuf.Message(timestamp=protobuf.Timestamp(0))) is None


def test_the_proposal_and_the_command_line(tmp_path, capsys):
    path = written(tmp_path / "a.mcap", run() + [(1000.45, "/task", make("robot.Words", text="fold"))])
    data = preview_dataset(path)
    assert data.metadata["mapping"]["clock"] == {"topic": "/arm/state", "fps": 10.0}
    assert set(data.features()) == {"observation.state", "action", "task", "timestamp"}
    names = data.features()["observation.state"].names
    assert names[:3] == ("joints[shoulder].position", "joints[elbow].position", "pose.position.x")
    assert len(data[0]) == 5 and list(data[0].steps["task"]) == ["fold"] * 5
    (tmp_path / "map.json").write_text(json.dumps(data.metadata["mapping"]))
    assert main(["audit", str(path)]) == 0
    assert main(["convert", str(path), str(tmp_path / "out"), "--map", str(tmp_path / "map.json")]) == 0
    again = open_dataset(tmp_path / "out")
    np.testing.assert_array_equal(again[0].steps["action"], [[t, t / 2] for t in range(5)])
    np.testing.assert_array_equal(again[0].steps["observation.state"], data[0].steps["observation.state"])
    capsys.readouterr()


def test_structures_with_names_may_change_their_order_and_what_is_absent_is_said(tmp_path):
    rows = [(t / 10, "/arm/state", state(t, flip=t % 2)) for t in range(4)]
    joints = column(written(tmp_path / "a.mcap", rows), field="joints")
    np.testing.assert_array_equal(joints, [[t + 0.25, -t] for t in range(4)])
    rows[2] = 0.2, "/arm/state", state(2, joints=[make("robot.Joint", name=n, position=1) for n in ("elbow", "wrist")])
    with pytest.raises(UserError, match=r"message 2: the numbers are .*, but joints\[shoulder\].position, .*"):
        column(written(tmp_path / "b.mcap", rows), field="joints")
    joint = make("robot.Joint", name="elbow", position=3)
    path = written(tmp_path / "c.mcap", [(0, "/j", joint)])
    assert column(path, "/j").tolist() == [[3.0]]  # its effort was not set, and is no zero
    with pytest.raises(UserError, match="there is no field 'effort'; there are name, position"):
        column(path, "/j", field="effort")
    incomplete = state(1)
    incomplete.ClearField("pose")
    with pytest.raises(UserError, match="message 1: there is no field 'pose'"):
        column(written(tmp_path / "d.mcap", [(0, "/s", state(0)), (0.1, "/s", incomplete)]), "/s", field="pose")


def test_json_whose_keys_change_their_order_is_the_same(tmp_path):
    with open(tmp_path / "a.mcap", "wb") as handle:
        writer = mcap.Writer(handle)
        writer.start()
        topic = writer.register_channel("/s", "json", writer.register_schema("s", "jsonschema", b"{}"))
        for t, text in enumerate(('{"x": 1.5, "y": 2}', '{"y": 4, "x": 3}')):
            writer.add_message(topic, t * 10**8, text.encode(), t * 10**8)
        writer.finish()
    np.testing.assert_array_equal(column(tmp_path / "a.mcap", "/s"), [[1.5, 2], [3, 4]])


def test_pictures(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    raw = make("foxglove.RawImage", width=3, height=2, encoding="bgr8", step=10,
               data=np.pad(pixels.reshape(2, 9), ((0, 0), (0, 1))).tobytes())
    packed = make("foxglove.CompressedImage", data=encode_png(pixels), format="png")
    path = written(tmp_path / "a.mcap", [(0, "/raw", raw), (0, "/packed", packed)])
    np.testing.assert_array_equal(column(path, "/raw")[0], pixels[..., ::-1])
    np.testing.assert_array_equal(column(path, "/packed")[0], pixels)


# -- video ------------------------------------------------------------------------------------------------------------


def packets(codec, n=12, gop=4):
    """n frames, number i of which is grey of 20 i; every `gop`-th is a key frame."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "yuv420p", Fraction(1, 10)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = gop, 0, 1
    encoder.options = {
        "libx264": {"tune": "zerolatency", "x264-params": f"keyint={gop}:scenecut=0:repeat-headers=1"},
        "libx265": {"x265-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:repeat-headers=1:"
                    "log-level=none:pools=none:frame-threads=1"},  # its threads have crashed a busy machine's tests
        "libsvtav1": {"svtav1-params": f"keyint={gop}:pred-struct=1:rc=0:lookahead=0", "preset": "12"},
        "libvpx-vp9": {"deadline": "realtime", "lag-in-frames": "0"}}[codec]
    out = []
    for i in range(n):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i, np.uint8), format="rgb24")
        frame.pts = i
        out += encoder.encode(frame)
    out += encoder.encode(None)
    return [bytes(p) for p in out]


def video(path, data, form, begin=0, **options):
    rows = [(i / 10, "/cam", make("foxglove.CompressedVideo", timestamp=at(1000 + i / 10), data=p, format=form))
            for i, p in enumerate(data, begin)]
    rows += [(i / 10, "/arm", make("robot.Command", data=[i])) for i in range(begin, begin + len(data))]
    return written(path, sorted(rows, key=lambda r: r[0]), **options)


MAP = {"clock": {"topic": "/arm"}, "stamp": "log", "features": {
    "observation.state": {"topic": "/arm", "field": "data"}, "observation.images.cam": {"topic": "/cam"}}}


def shown(episode):
    """Which frames an episode shows."""
    grey = np.asarray(episode.steps["observation.images.cam"], float).mean((1, 2, 3))
    return (grey / 20).round().astype(int).tolist()


@pytest.mark.parametrize("codec, form", [("libx264", "h264"), ("libx265", "h265"), ("libsvtav1", "av1"),
                                         ("libvpx-vp9", "vp9")])
def test_packets_of_video_are_frames(codec, form, tmp_path):
    data = packets(codec)
    assert len(data) == 12
    path = video(tmp_path / "a.mcap", data, form)
    log = message_logs.open_log(path)
    assert [message_logs.is_key_frame(m) for _, _, m in log.messages(["/cam"])] == [i % 4 == 0 for i in range(12)]
    reopened = open_dataset(path, mapping=MAP)
    assert shown(reopened[0]) == list(range(12)) and reopened.features()["observation.images.cam"].shape == (48, 64, 3)


def test_a_video_is_decoded_from_the_key_frame_before_and_not_seen_before_the_first(tmp_path, monkeypatch):
    data = packets("libx264")
    path = video(tmp_path / "a.mcap", data[2:], "h264", begin=2)  # the recording began within a group of pictures
    reopened = open_dataset(path, mapping=MAP)
    assert shown(reopened[0]) == reopened[0].steps["observation.state"].ravel().tolist() == list(range(4, 12))
    assert any(
        "before the first whole row are left out (observation.images.cam)" in w for w in reopened.metadata["warnings"]
    )
    rows = [(i / 10 + 5 * (i > 5), i) for i in range(12)]  # two episodes: the second begins between key frames
    path = written(tmp_path / "b.mcap", sorted(
        [(s, "/cam", make("foxglove.CompressedVideo", data=data[i], format="h264")) for s, i in rows]
        + [(s, "/arm", make("robot.Command", data=[i])) for s, i in rows], key=lambda r: r[0]))
    reopened, decoded = open_dataset(path, mapping={**MAP, "gap": 1.0}), []
    real = message_logs.decode_video
    monkeypatch.setattr(message_logs, "decode_video",
                        lambda given, where: real(((decoded.append(i) or i, m) for i, m in given), where))
    assert [len(e) for e in reopened] == [6, 6] and shown(reopened[1]) == list(range(6, 12))
    assert decoded == list(range(4, 12))


def test_video_that_cannot_be_decoded_is_refused_by_name(tmp_path):
    data = packets("libx264")
    with pytest.raises(UserError, match="video in 'mjpeg' is not read, only h264, h265, vp9, av1"):
        open_dataset(video(tmp_path / "a.mcap", data, "mjpeg"), mapping=MAP)
    path = video(tmp_path / "b.mcap", [*data[:5], b"\0\0\1" + bytes(20), *data[6:]], "h264")
    with pytest.raises(UserError, match="b.mcap, topic /cam"):
        shown(open_dataset(path, mapping=MAP)[0])
    preview = preview_dataset(video(tmp_path / "c.mcap", data[1:4], "h264"))  # no key frame at all
    assert "observation.images.cam" not in preview.features()
    assert any("observation.images.cam of topic /cam is left out" in w for w in preview.metadata["warnings"])


# -- what is wrong ----------------------------------------------------------------------------------------------------


def told(path):
    """Why its topic /s is left out."""
    preview = preview_dataset(path)
    assert len(preview) == 0
    with pytest.raises(UserError, match="/s") as error:
        column(path, "/s")
    why = [w for w in preview.metadata["warnings"] if "topic /s (" in w]
    assert why and error.value.problem.removeprefix("the topic has ") in why[0]
    return why[0]


def test_descriptors_that_are_wrong(tmp_path):
    rows = [(0, "/s", state(0)), (0.1, "/s", state(1))]
    whole = pb.FileDescriptorSet(file=ALL).SerializeToString()
    assert "descriptors without foxglove/Pose.proto, which robot.proto imports" in told(
        written(tmp_path / "a.mcap", rows, [ROBOT, *TIMES]))
    assert "descriptors that are damaged" in told(written(tmp_path / "b.mcap", rows, whole[:-7]))
    assert "descriptors without robot.State" in told(written(tmp_path / "c.mcap", rows, b""))
    assert "descriptors without robot.Robot" in told(written(tmp_path / "d.mcap", rows, types={"/s": "robot.Robot"}))
    self = pb.FileDescriptorProto(name="a.proto", package="robot", dependency=["a.proto"])
    assert "descriptors of a.proto, which imports itself" in told(written(tmp_path / "e.mcap", rows, [self]))
    invalid = file("robot.proto", "robot", {"State": [("x", ".robot.Nothing", ONE)]})
    assert "descriptors that do not fit together" in told(written(tmp_path / "f.mcap", rows, [invalid]))


def test_messages_that_are_not_what_their_descriptor_says(tmp_path):
    other = file("robot.proto", "robot", {"State": [(k, F.TYPE_DOUBLE, ONE) for k in ("timestamp", "joints")]})
    path = written(tmp_path / "a.mcap", [(0, "/s", state(0))], [other])
    with pytest.raises(UserError, match=r"topic /s, message logged at 0 ns: .*field [12] of robot.State is not "):
        column(path, "/s")
    cut = state(1).SerializeToString()[:-3]
    with pytest.raises(UserError, match="the message cannot be read"):
        column(written(tmp_path / "b.mcap", [(0, "/s", state(0)), (0.1, "/s", cut)]), "/s", field="ticks")
    more = file("robot.proto", "robot", {"Command": []})  # of an older version, which knows no such field
    path = written(tmp_path / "c.mcap", [(0, "/s", make("robot.Command", data=[1]))], [more])
    with pytest.raises(UserError, match="there are neither numbers nor text in ''"):
        column(path, "/s")


def test_any_cut_of_a_recording_is_read_as_far_as_it_goes_or_refused(tmp_path):
    whole = written(tmp_path / "whole.mcap", run(20), chunk_size=256).read_bytes()
    lengths = []
    for share in range(5, 100, 5):
        path = tmp_path / f"{share}.mcap"
        path.write_bytes(whole[: len(whole) * share // 100])
        try:
            data = preview_dataset(path)
        except UserError:
            continue
        if not len(data):
            continue
        lengths.append(len(data[0]))
        if "action" in data.features():
            assert data[0].steps["action"].tolist() == [[t, t / 2] for t in range(lengths[-1])]
    assert lengths == sorted(lengths) and 0 < lengths[-1] <= 20 and len(set(lengths)) > 3


def test_base64_in_json_is_video_too(tmp_path):
    data = packets("libx264", 4)
    with open(tmp_path / "a.mcap", "wb") as handle:
        writer = mcap.Writer(handle)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedVideo", "jsonschema", b"{}")
        topic = writer.register_channel("/cam", "json", schema)
        for i, p in enumerate(data):
            text = json.dumps({"timestamp": {"sec": 10, "nsec": i * 10**8}, "format": "h264",
                               "data": base64.b64encode(p).decode()})
            writer.add_message(topic, i * 10**8, text.encode(), i * 10**8)
        writer.finish()
    preview = preview_dataset(tmp_path / "a.mcap")
    assert list(preview.features()) == ["observation.images.cam", "timestamp"] and shown(preview[0]) == [0, 1, 2, 3]
