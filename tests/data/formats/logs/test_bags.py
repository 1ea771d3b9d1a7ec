"""MCAP and ROS bags: the closed form out of every writer, joins by hand, gaps, cut recordings."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.bags import holds, mapped, steps, written
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import UserError
from understudy.data import video
from understudy.data.formats import open_dataset, preview_dataset
from understudy.data.formats.logs import message_logs, topic_mapping
from understudy.data.formats.logs.bags import BagSource

mcap = pytest.importorskip("mcap.writer", reason="extra bags not installed")
rosbags = pytest.importorskip("rosbags", reason="extra bags not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


# -- what others wrote ------------------------------------------------------------------------------------------------


RECORDINGS = [*(f"mcap/json_{how}_{e}.mcap" for how, e in (("lz4", 0), ("none", 0), ("zstd", 0), ("zstd", 1),
                                                           ("zstd", 2), ("zstd", 3))),
              *(f"mcap/ros2_{e}.mcap" for e in range(4)),
              *(f"rosbag/{how}/episode_{e}.bag" for how in ("ros1", "ros1_lz4", "ros1_bz2") for e in range(4)),
              *(f"rosbag/{how}/episode_{e}" for how in ("ros2_sqlite3", "ros2_mcap") for e in range(4))]


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_closed_form_out_of_recordings_of_others(name, shared):
    data = preview_dataset(shared / "fixtures" / name)
    e = int(name.rstrip(".magbcp")[-1])
    assert len(data) == 1 and data.fps == (None if e == 1 else 10)
    holds(data[0], e)
    assert data.metadata["warnings"] == []
    again = open_dataset(shared / "fixtures" / name, mapping=data.metadata["mapping"])
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("name", ["rosbag/ros1", "rosbag/ros2_sqlite3", "rosbag/ros2_mcap"])
def test_a_folder_of_recordings_is_one_data_set(name, shared):
    data = preview_dataset(shared / "fixtures" / name)
    assert [len(e) for e in data] == closed_form.LENGTHS
    for e in range(4):
        holds(data[e], e)


@pytest.mark.parametrize("empty", [lambda p: written(p, {"/state": [], "/cmd": []}), lambda p: written(p, {}),
                                   lambda p: p.write_bytes(b"")], ids=["topics", "header", "bytes"])
def test_an_empty_recording_in_a_folder_is_left_out(empty, tmp_path):
    folder = tmp_path / "bags"
    folder.mkdir()
    for e in (0, 2):
        written(folder / f"run_{e}.mcap", {"/state": steps(5, first=10 * e), "/cmd": steps(5)})
    empty(folder / "run_1.mcap")
    mapping = mapped(observation__state="/state", action="/cmd")
    for data in (preview_dataset(folder), open_dataset(folder, mapping=mapping)):
        assert len(data) == 2
        assert "run_1.mcap has no messages and is left out" in data.metadata["warnings"]
    assert [e.steps["observation.state"][0, 0] for e in data] == [0, 20]


def test_what_the_readers_of_others_count(shared):
    for name, expected in (("mcap/json_zstd_3.mcap", "mcap_json_3"), ("rosbag/ros1/episode_3.bag",
                           "rosbag_ros1_episode_3.bag"), ("rosbag/ros2_sqlite3/episode_3",
                                                          "rosbag_ros2_sqlite3_episode_3")):
        counts = json.loads((shared / f"fixtures/expected/{expected}.json").read_text())["episodes"][0]
        log = message_logs.open_log(shared / "fixtures" / name)
        assert log.counts == {t: s["n"] for t, s in counts.items()}
        for topic, s in counts.items():
            times = [time for _, time, _ in log.messages([topic])]
            assert (times[0], times[-1], len(times)) == (s["first"], s["last"], s["n"])
            inside = [t for t in times if s["first"] < t <= s["last"] - 1]
            assert [t for _, t, _ in log.messages([topic], s["first"] + 1, s["last"] - 1)] == inside


def test_cut_recordings_are_read_as_far_as_they_go(shared):
    data = preview_dataset(shared / "fixtures/broken/mcap_truncated.mcap")
    holds(data[0], 3)
    assert "ends without its summary: the recording was cut short" in data.metadata["warnings"][0]
    assert data.metadata["cut"] == [str(shared / "fixtures/broken/mcap_truncated.mcap")]
    data = preview_dataset(shared / "fixtures/broken/rosbag_truncated.bag")
    holds(data[0], 3, rows=4)
    assert "has no whole index: the recording was cut short" in data.metadata["warnings"][0]


def test_an_index_that_leads_to_another_topic_is_refused(shared, tmp_path):
    data = bytearray((shared / "fixtures/rosbag/ros1/episode_1.bag").read_bytes())
    at = data.index(b"conn=", data.index(b"ver=\1\0\0\0")) + 5  # of an index record: whose messages it counts
    data[at] = 1 - data[at]
    (tmp_path / "a.bag").write_bytes(data)
    with pytest.raises(UserError, match="a.bag: the index is wrong: among the messages of /.* is one of /.*"):
        preview_dataset(tmp_path / "a.bag")


@pytest.mark.parametrize("how", ["ros1", "ros1_lz4", "ros1_bz2"])
def test_a_bag_without_its_index_is_what_it_was(how, shared, tmp_path):
    whole = (shared / f"fixtures/rosbag/{how}/episode_3.bag").read_bytes()
    at = whole.index(b"index_pos=") + 10
    (tmp_path / "a.bag").write_bytes(whole[:at] + bytes(8) + whole[at + 8:])
    holds(preview_dataset(tmp_path / "a.bag")[0], 3)
    for share in (0.3, 0.55, 0.8, 0.97):  # wherever it ends
        (tmp_path / "b.bag").write_bytes(whole[: int(len(whole) * share)])
        data = preview_dataset(tmp_path / "b.bag")
        assert data.metadata["cut"] and len(data) <= 1
        for episode in data:
            n = len(episode)
            assert np.array_equal(episode.steps["action"], closed_form.episode(3)["action"][:n])


# -- joins ------------------------------------------------------------------------------------------------------------


def test_the_rules_of_joining(tmp_path):
    """Other messages lie 0.03 s after ticks 0, 2, 4 ..., so that each rule gives another number."""
    other = [(0.2 * i + 0.03, {"data": [10.0 * i], "word": f"w{i}"}) for i in range(4)]
    path = written(tmp_path / "a.mcap", {"/state": steps(8), "/other": other})
    columns = {
        f"observation.{rule}": {"topic": "/other", "field": "data", "join": rule} for rule in topic_mapping.JOIN_RULES
    }
    data = open_dataset(path, mapping=mapped(observation__state={"topic": "/state", "field": "data"},
                                             word={"topic": "/other", "field": "word"}, **columns))
    e, = data
    assert e.steps["observation.state"][:, 0].tolist() == [1, 2, 3, 4, 5, 6]  # none before 0.03 s, none after 0.63 s
    assert e.steps["observation.last"][:, 0].tolist() == [0, 0, 10, 10, 20, 20]
    assert e.steps["observation.next"][:, 0].tolist() == [10, 10, 20, 20, 30, 30]
    assert e.steps["observation.nearest"][:, 0].tolist() == [0, 10, 10, 20, 20, 30]
    assert np.allclose(e.steps["observation.interpolate"][:, 0], [3.5, 8.5, 13.5, 18.5, 23.5, 28.5])
    assert e.steps["word"].tolist() == ["w0", "w0", "w1", "w1", "w2", "w2"]
    assert np.allclose(e.steps["timestamp"], np.arange(6) / 10)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=12), st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True),
       st.one_of(st.none(), st.integers(1, 9)))
def test_joining_is_what_a_loop_over_all_messages_finds(stamps, ticks, age):
    stamps, ticks = np.sort(np.array(stamps, np.int64)), np.sort(np.array(ticks, np.int64))
    limit = 10**9 if age is None else age
    neighbors = {}
    for rule in topic_mapping.JOIN_RULES:
        below, above, there = topic_mapping.align_messages(stamps, ticks, rule, None if age is None else age / 1e9)
        for i, t in enumerate(ticks):
            before = [s for s in stamps if s <= t and t - s <= limit]
            after = [s for s in stamps if s >= t and s - t <= limit]
            want = {"last": before, "next": after, "nearest": before + after,
                    "interpolate": before and after}[rule]
            assert bool(there[i]) == bool(want)
            if want:
                neighbors = {"last": max(before, default=0), "next": min(after, default=0)}
                low, high = stamps[below[i]], stamps[above[i]]
                if rule in neighbors:
                    assert low == high == neighbors[rule]
                elif rule == "interpolate":
                    assert (low, high) == (neighbors["last"], neighbors["next"])
                else:
                    assert abs(low - t) == min(abs(s - t) for s in want)


def test_a_fixed_rate_and_the_ages(tmp_path):
    path = written(tmp_path / "a.mcap", {"/state": steps(5, 0.05, 0.2), "/action": steps(9, 0.0, 0.1, 50)})
    how = mapped({"fps": 10}, observation__state="/state", action={"topic": "/action", "join": "next"})
    e, = data = open_dataset(path, mapping=how)
    assert data.fps == 10 and e.steps["observation.state"][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]  # seen last
    assert e.steps["action"][:, 0].tolist() == [51, 52, 53, 54, 55, 56, 57, 58]
    how["features"]["observation.state"]["age"] = 0.05  # then each second tick has none
    e, = data = open_dataset(path, mapping={**how, "gap": 0.25})
    assert np.allclose(e.steps["timestamp"], np.arange(4) * 0.2)
    assert "0.2 s without a whole row, from 0.000 s on (observation.state)" in data.metadata["warnings"][0]
    assert [len(e) for e in open_dataset(path, mapping={**how, "gap": 0.15})] == [1, 1, 1, 1]


def test_gaps_end_episodes_and_are_told(tmp_path):
    late = steps(4, 5.0, 0.1, 100)
    path = written(tmp_path / "a.mcap", {"/state": steps(6) + late, "/action": steps(6, 0.02) + late[:3]})
    data = open_dataset(path, mapping=mapped(observation__state="/state", action={"topic": "/action", "join": "next",
                                                                                  "age": 0.05}))
    assert [len(e) for e in data] == [6, 3]
    assert data[1].steps["observation.state"][:, 0].tolist() == [100, 101, 102, 103]  # what was seen last
    assert data[1].steps["action"][:, 0].tolist() == [100, 101, 102]
    assert data[1].steps["timestamp"][0] == 0 and data[1].metadata["began"] == 5.0
    assert data.metadata["warnings"] == [
        "a.mcap: 4.5 s without a whole row, from 0.500 s on (the clock); another episode begins after it"
    ]
    markers = written(tmp_path / "b.mcap", {"/state": steps(9), "/start": [(0.0, {}), (0.25, {}), (0.7, {})]})
    data = open_dataset(markers, mapping={**mapped(observation__state="/state"), "episodes": {"topic": "/start"}})
    assert [e.steps["observation.state"][0, 0] for e in data] == [0, 3, 7]


def test_header_stamps_or_the_log_never_both(tmp_path):
    def stamped(n, drop=None, off=5.0):
        return [(0.1 * i, {"header": {"stamp": {"sec": 0 if i == drop else int(i + off), "nanosec": 0}},
                           "data": [float(i)]}) for i in range(n)]
    path = written(tmp_path / "a.mcap", {"/state": stamped(4), "/mixed": stamped(4, drop=2)})
    log = message_logs.open_log(path)
    for by, state in (("header", [5, 6, 7, 8]), ("log", [0, 0.1, 0.2, 0.3])):
        source = BagSource(
            path,
            [log],
            topic_mapping.read_mapping(
                {
                    **mapped(
                        observation__state={"topic": "/state", "field": "data"},
                        mixed={"topic": "/mixed", "field": "data", "join": "nearest"},
                    ),
                    "stamp": by,
                }
            ),
        )
        scan = source._joined[0].scan
        assert np.allclose(scan.stamps["/state"] / 1e9, state)
        assert np.allclose(scan.stamps["/mixed"] / 1e9, [0, 0.1, 0.2, 0.3])
        assert any("6.35 s after the times logged" in w for w in source.metadata["warnings"]) == (by == "header")


@pytest.mark.parametrize("late, told", [(0.02, False), (0.08, True)])
def test_topics_on_two_clocks_are_told(late, told, tmp_path):
    """States were measured `late` s before they were logged, and commands have no header."""
    states = [(0.1 * i, {"header": {"stamp": {"sec": 9, "nanosec": round((0.1 * i - late) * 1e9)}}, "data": [float(i)]})
              for i in range(1, 9)]
    path = written(tmp_path / "a.mcap", {"/state": [(9 + s, m) for s, m in states], "/action": steps(9, 9.0)})
    columns = {"observation__state": {"topic": "/state", "field": "data"},
               "action": {"topic": "/action", "join": "next"}}
    warnings = open_dataset(path, mapping=mapped(**columns)).metadata["warnings"]
    assert any(w.startswith("a.mcap: messages of /action are joined by the times logged, but those of /state by header "
                            f"stamps, {late} s before the times logged;") for w in warnings) == told
    by_log = open_dataset(path, mapping={**mapped(**columns), "stamp": "log"})
    assert not any("header stamps" in w for w in by_log.metadata["warnings"])
    assert by_log[0].steps["action"][:3, 0].tolist() == by_log[0].steps["observation.state"][:3, 0].tolist()


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"use_chunking": False}])
def test_a_clock_that_was_set_back_is_told(options, tmp_path):
    with open(tmp_path / "a.mcap", "wb") as handle:
        writer = mcap.Writer(handle, **options)
        writer.start()
        channel = writer.register_channel("/state", "json", writer.register_schema("s", "jsonschema", b"{}"))
        for i, at in enumerate([0, 1, 2, 3, 1, 2, 3, 4]):  # tenths of a second; set back by 0.3 s
            writer.add_message(channel, at * 10**8, json.dumps({"data": [float(i)]}).encode(), at * 10**8)
        writer.finish()
    e, = data = open_dataset(tmp_path / "a.mcap", mapping=mapped(observation__state="/state"))
    assert e.steps["observation.state"][:, 0].tolist() == [0, 4, 5, 6, 7]
    assert data.metadata["warnings"] == [
        "a.mcap: messages of /state that are stamped before the one that they follow: 1, by up to 0.2 s; they are put "
        "in order. If a clock was set back there, rows from before and after it are mixed",
        "a.mcap: messages of /state that have the stamp of a later one: 3; they make no row"]


# -- messages ---------------------------------------------------------------------------------------------------------


def test_components_by_name_by_index_and_of_structures(tmp_path):
    names = [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]]
    joints = [(0.1 * i, {"name": n, "position": [{"a": 1.0, "b": 2.0, "c": 3.0}[x] + 10 * i for x in n],
                         "pose": {"position": {"x": i, "y": 2, "z": 3}, "header": {"seq": 9}, "label": "x"}})
              for i, n in enumerate(names)]
    path = written(tmp_path / "a.mcap", {"/state": joints})
    e, = data = open_dataset(path, mapping=mapped(
        observation__state={"topic": "/state", "field": "position", "names": ["a", "b", "c"]},
        observation__two={"topic": "/state", "field": "position", "names": ["a", "b", "c"], "indices": [2, 0]},
        observation__pose={"topic": "/state", "field": "pose.position"},
        action={"topic": "/state", "field": ["pose.position.z", "position"], "indices": [0]}, task={"value": "go"}))
    assert e.steps["observation.state"].tolist() == [[1, 2, 3], [11, 12, 13], [21, 22, 23]]
    assert e.steps["observation.two"].tolist() == [[3, 1], [13, 11], [23, 21]]
    assert e.steps["observation.pose"].tolist() == [[0, 2, 3], [1, 2, 3], [2, 2, 3]]
    assert e.steps["action"].tolist() == [[3], [3], [3]] and list(e.steps["task"]) == ["go"] * 3
    f = data.features()
    assert f["observation.state"].names == ("a", "b", "c") and f["observation.two"].names == ("c", "a")
    assert f["observation.pose"].names == tuple(f"pose.position.{x}" for x in "xyz")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "mono8"])
def test_pixels_with_padded_rows(encoding, tmp_path):
    """ROS messages, written by rosbags, as cameras send them."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    image, header, time = (store.types[f"{t}"] for t in ("sensor_msgs/msg/Image", "std_msgs/msg/Header",
                                                         "builtin_interfaces/msg/Time"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, {"mono8": 1, "rgba8": 4}.get(encoding, 3)), np.uint8)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        at = writer.add_connection("/cam/image_raw", image.__msgtype__, typestore=store)
        for i, frame in enumerate(pixels):
            sent = frame[..., ::-1] if encoding == "bgr8" else frame
            rows = np.zeros((4, 5 * frame.shape[-1] + 3), np.uint8)
            rows[:, :-3] = sent.reshape(4, -1)
            message = image(header(time(i + 1, 0), ""), 4, 5, encoding, 0, rows.shape[1], rows.reshape(-1))
            writer.write(at, (i + 1) * 10**9, store.serialize_cdr(message, image.__msgtype__))
    e, = preview_dataset(tmp_path / "bag")
    assert np.array_equal(e.steps["observation.images.cam"], pixels)


def test_frames_are_decoded_once_and_only_those_of_the_episode(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    sent = [(0.4 * i, {"format": "png", "data": base64.b64encode(video.encode_png(f)).decode()})
            for i, f in enumerate(frames)]
    path = written(tmp_path / "a.mcap", {"/camera": sent, "/state": steps(18) + steps(12, 2.6)},
                   schema="foxglove.CompressedImage")
    e, two = data = open_dataset(path, mapping=mapped(observation__state={"topic": "/state", "field": "data"},
                                                      observation__images__camera="/camera", gap=0.5))
    assert [len(e), len(two)] == [18, 12]
    decoded = []
    whole = message_logs.decode_image
    monkeypatch.setattr(message_logs, "decode_image", lambda *a: decoded.append(1) or whole(*a))
    assert np.array_equal(two.steps["observation.images.camera"], frames[np.arange(26, 38) // 4])
    assert len(decoded) == 4
    assert np.array_equal(e.steps["observation.images.camera"], frames[np.arange(18) // 4])
    assert data.features()["observation.images.camera"].shape == (4, 4, 3)


def test_depth_in_a_png_without_a_word_is_no_picture(tmp_path):
    """1234 mm would be a gray of 5, and 1023 mm a gray of 4."""
    depth = video.encode_png(np.full((8, 8, 1), 1234, np.uint16))
    pictures = [(0.1 * i, {"format": "png", "data": base64.b64encode(depth).decode()}) for i in range(4)]
    path = written(tmp_path / "a.mcap", {"/state": steps(4), "/cam": pictures}, schema="foxglove.CompressedImage")
    data = preview_dataset(path)
    assert "of topic /cam is left out: depth images are not read (png, 16 bits)" in str(data.metadata["warnings"])


def test_a_second_opening_decodes_nothing(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mcap", {"/state": steps(8)})
    how = mapped(observation__state="/state")
    one = open_dataset(path, mapping=how).fingerprint()
    monkeypatch.setattr("understudy.data.formats.logs.recording_scan._build", lambda *a: pytest.fail("read again"))
    assert open_dataset(path, mapping=how).fingerprint() == one


@pytest.mark.parametrize("options", [{"use_chunking": False}, {"use_statistics": False}, {"repeat_channels": False},
                                     {"compression": mcap.CompressionType.NONE, "chunk_size": 200}])
def test_files_without_this_or_that_part(options, tmp_path):
    path = written(tmp_path / "a.mcap", {"/state": steps(30), "/action": steps(30, 0.01)},
                   metadata=[("episode", {"task": "go"})], **options)
    e, = data = preview_dataset(path)
    assert len(e) == 30 and list(e.steps["task"]) == ["go"] * 30 and not data.metadata["warnings"]
    assert e.steps["action"][:, 0].tolist() == list(range(30))


def test_a_file_that_ends_anywhere_has_a_beginning(tmp_path):
    lengths = []
    for share in (0.02, 0.2, 0.5, 0.9, 0.999):
        path = written(tmp_path / f"{share}.mcap", {"/state": steps(60)}, cut=share, chunk_size=300,
                       compression=mcap.CompressionType.NONE)
        data = preview_dataset(path)
        assert data.metadata["cut"] == [str(path)]
        lengths.append(data.steps)
        assert all(e.steps["observation.state"][:, 0].tolist() == list(range(len(e))) for e in data)
    assert lengths[0] == 0 < lengths[1] < lengths[2] < lengths[3] == lengths[4] == 60


@pytest.mark.parametrize("name", ["mcap/json_zstd_3.mcap", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "mcap/ros2_3.mcap", "rosbag/ros1_bz2/episode_3.bag"))])
def test_damage_in_the_middle_is_refused(shared, tmp_path, name):
    """A byte that changed is in no number that is read: each chunk has a checksum, each message a length."""
    whole = preview_dataset(shared / "fixtures" / name)
    rng = np.random.default_rng(0)
    data = bytearray((shared / "fixtures" / name).read_bytes())
    for _ in range(25):
        at, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        data[at] ^= bit
        path = tmp_path / name.replace("/", "_")
        path.write_bytes(data)
        data[at] ^= bit
        try:
            preview = preview_dataset(path)
            for e in preview:
                assert np.isfinite(e.steps["timestamp"]).all()
                if preview.metadata["mapping"] == whole.metadata["mapping"] and not preview.metadata["warnings"]:
                    n = len(e)
                    assert np.array_equal(e.steps["action"], whole[0].steps["action"][:n])
        except UserError:
            pass
