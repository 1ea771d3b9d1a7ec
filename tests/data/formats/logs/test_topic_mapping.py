"""Mappings of topics: mistakes, proposals and commands."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from fixtures.bags import holds, mapped, steps, written

from understudy.cli import main
from understudy.core import UserError
from understudy.data.formats import describe, open_dataset, preview_dataset

mcap = pytest.importorskip("mcap.writer", reason="extra bags not installed")
rosbags = pytest.importorskip("rosbags", reason="extra bags not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("change, match", [
    ({"features": {}}, "features: this is not an object with columns"),
    ({"clock": {}}, "clock: it needs a topic or fps"),
    ({"clock": {"fps": -1}}, "clock.fps: it must be a number above 0, not -1"),
    ({"gap": "long"}, "gap: it must be a number above 0, not 'long'"),
    ({"stamp": "both"}, "stamp: it must be header or log"),
    ({"featurs": {}}, "there is no key 'featurs'; there are .*\n  -> did you mean 'features'"),
    ({"features": {"a": {"topic": "/state", "join": "lst"}}}, "features.a.join: it must be last, next, nearest or"),
    ({"features": {"a": {"topic": "/state", "indices": [-1]}}}, "features.a.indices: they must be integers from 0"),
    ({"features": {"a": {}}}, "features.a: it needs exactly one of topic, metadata and value"),
    ({"features": {"a": {"topic": "/stat"}}}, "there is no topic '/stat', .* features.a; there are /state"),
    ({"features": {"a": {"topic": "/state", "field": "dta"}}}, "message 0: there is no field 'dta'; there are data"),
    ({"features": {"a": {"topic": "/state", "indices": [3]}}}, "there are 1 numbers, but indices needs 4"),
    ({"features": {"a": {"metadata": "m", "field": "task"}}}, "there is no record of metadata 'm' with 'task'"),
    ({"clock": {"topic": "/none"}}, "there is no topic '/none', which the mapping names in clock"),
    ({"features": {"a": {"topic": "/state", "age": 0.01, "join": "next"}}, "clock": {"topic": "/far"}},
     "no row has all columns of the mapping\n.*no row has all columns; missing: a"),
])
def test_mistakes_in_a_mapping(change, match, tmp_path):
    path = written(tmp_path / "a.mcap", {"/state": steps(5), "/far": steps(2, 9.0)})
    with pytest.raises(UserError, match=match):
        open_dataset(path, mapping=mapped(a="/state") | change)


def test_messages_that_change_are_named(tmp_path):
    path = written(tmp_path / "a.mcap", {"/state": [*steps(3), (0.3, {"data": [1.0, 2.0]})]})
    with pytest.raises(UserError, match=r"topic /state, message 3: the shape is \(2,\), but \(1,\) in the"):
        open_dataset(path, mapping=mapped(observation__state="/state"))
    data = preview_dataset(path)  # nothing to propose, and no error either
    assert len(data) == 0 and "observation.state of topic /state is left out" in data.metadata["warnings"][0]
    bad = tmp_path / "bad.mcap"
    with open(bad, "wb") as handle:
        writer = mcap.Writer(handle)
        writer.start()
        at = writer.register_channel("/state", "json", writer.register_schema("s", "jsonschema", b"{}"))
        other = writer.register_channel("/flat", "flatbuffer", writer.register_schema("p", "flatbuffer", b""))
        writer.add_message(other, 0, b"\x01", 0)
        writer.add_message(at, 0, b'{"data": [1', 0)
        writer.finish()
    with pytest.raises(UserError, match="topic /state, message logged at 0 ns: the message cannot be read"):
        open_dataset(bad, mapping=mapped(observation__state="/state"))
    with pytest.raises(UserError, match="the topic has messages in flatbuffer .flatbuffer., which is not read"):
        open_dataset(bad, mapping=mapped({"topic": "/flat"}, a="/flat"))


def test_what_is_proposed(tmp_path):
    path = written(tmp_path / "a.mcap", {
        "/arm/joint_states": steps(400, 0, 0.002), "/arm/command": steps(80, 0, 0.01), "/rosout": steps(3),
        "/gripper": steps(40, 0, 0.02), "/notes": [(0.3, {"data": "hm"})], "/scan": [(0.1, {"data": [0.0] * 2000})],
        "/instruction": [(0.0, {"data": "fold"})], "/reward": steps(40, 0, 0.02), "/empty": []})
    data = preview_dataset(path)
    mapping = data.metadata["mapping"]
    assert {n: c["topic"] for n, c in mapping["features"].items()} == {
        "observation.state": "/arm/joint_states", "observation.gripper": "/gripper", "action": "/arm/command",
        "next.reward": "/reward", "task": "/instruction", "notes": "/notes"}
    assert mapping["clock"] == {"fps": 30.0} and len(data) == 1  # 500 a second would be rows that hardly differ
    assert mapping["features"]["action"]["join"] == "next" and mapping["features"]["task"]["join"] == "nearest"
    warnings = " ".join(data.metadata["warnings"])
    assert all(t in warnings
               for t in ("/rosout", "/scan (any): it has 2000 numbers", "/empty (any): it has no messages"))


def test_from_the_command_line(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared / "fixtures/rosbag/ros1", "bags")
    assert main(["inspect", "bags", "--json"]) == 0
    output = capsys.readouterr().out
    (tmp_path / "map.json").write_text(output)
    document = json.loads(output)
    assert document["episodes"] == 4 and document["format"] == "ros1"
    assert {t["name"]: t["messages"] for t in document["topics"]} == {"/task": 4, "/joint_states": 22, "/camera": 12,
                                                                      "/action": 22}
    assert set(document["features"]) == {*document["mapping"]["features"], "timestamp"}
    for command in (["convert", "bags", "out"], ["train", "bc-gmm", "bags", "--out", "run"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "needs a mapping" in error and "understudy inspect bags --json > map.json" in error
    assert main(["convert", "bags", "out", "--map", "map.json"]) == 0
    data = open_dataset("out")
    for e in range(4):
        holds(data[e], e)
    assert data[3].metadata["file"] == "episode_3.bag"
    assert main(["inspect", "out", "--map", "map.json"]) == 2
    assert "lerobot data are opened without mapping" in capsys.readouterr().err
    assert main(["inspect", "bags", "--map", "nowhere.json"]) == 2
    assert main(["train", "bc-gmm", "bags", "--map", "map.json", "--out", "run", "--steps", "1", "--image-size", "8",
                 "--val-fraction", "0"]) == 0


def test_without_messages(tmp_path, capsys):
    path = written(tmp_path / "a.mcap", {"/state": []})
    assert main(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["episodes"] == 0 and document["mapping"]["features"] == {}
    assert document["topics"] == [{"name": "/state", "type": "any", "messages": 0}]
    assert main(["inspect", str(path)]) == 0
    assert "/state" in capsys.readouterr().out
    with pytest.raises(UserError, match="no row has all columns of the mapping\n.*topic /state has no messages"):
        open_dataset(path, mapping=mapped(a="/state"))


def test_without_the_extra(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mcap", {"/state": steps(2)})
    for name in [n for n in sys.modules if n.partition(".")[0] == "mcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcap", None)
    with pytest.raises(UserError, match=r"pip install 'understudy\[bags\]'"):
        preview_dataset(path)


def test_warnings_reach_the_document(tmp_path):
    path = written(tmp_path / "a.mcap", {"/state": steps(20), "/action": steps(20, 0.01)}, cut=0.9)
    document = describe(preview_dataset(path))
    assert "cut short" in document["warnings"][0] and document["mapping"]["clock"] == {"topic": "/state", "fps": 10.0}


def test_joints_that_name_their_components_are_read_by_name(tmp_path):
    """As sensor_msgs/JointState, but in JSON, without velocities and efforts, and in changing order."""
    joints = [(0.1 * i, {"name": n, "position": [{"a": 1, "b": 2}[x] + 10 * i for x in n]})
              for i, n in enumerate(["ab", "ba", "ab", "ba"]) for n in [list(n)]]
    path = written(tmp_path / "a.mcap", {"/joint_states": joints, "/cmd": steps(4)})
    data = preview_dataset(path)
    assert data.features()["observation.state"].names == ("a", "b")
    assert data[0].steps["observation.state"].tolist() == [[1, 2], [11, 12], [21, 22], [31, 32]]


def test_what_the_reader_doubts_is_told_before_it_is_forgotten(tmp_path, monkeypatch, shared, capsys):
    monkeypatch.chdir(tmp_path)
    states = [(s + 0.3, {**message, "header": {"stamp": {"sec": 5, "nanosec": round((s - 5) * 1e9)}}})
              for s, message in steps(9, 5.0)]
    written(tmp_path / "a.mcap", {"/state": states, "/action": steps(9, 5.0)})
    assert main(["inspect", "a.mcap", "--json"]) == 0
    (tmp_path / "map.json").write_text(capsys.readouterr().out)
    told = "messages of /action are joined by the times logged, but those of /state by header stamps, 0.3 s before"
    assert main(["train", "bc", "a.mcap", "--map", "map.json", "--out", "run", "--steps", "1"]) == 0
    assert f"a.mcap: warning: a.mcap: {told}" in capsys.readouterr().err
    assert main(["convert", "a.mcap", "out", "--map", "map.json"]) == 0
    assert told in capsys.readouterr().err
    assert main(["convert", str(shared / "fixtures/rlds/tfrecord/closed_form_spec"), "spec"]) == 0
    error = capsys.readouterr().err
    assert "steps/ragged is left out" in error and "the last action of every episode is zero" in error
