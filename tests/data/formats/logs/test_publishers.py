"""Several publishers on one topic, and messages without a joint: none is read as another or vanishes silently."""

from __future__ import annotations

import json

import numpy as np
import pytest

from understudy.data.formats import open_dataset, preview_dataset

pytest.importorskip("mcap")
MAPPING = {"clock": {"fps": 20.0}, "features": {
    "observation.state": {"topic": "/joints", "field": "position", "names": ["a", "b"], "join": "last", "age": 0.3},
    "observation.gripper": {"topic": "/joints", "field": "position", "names": ["finger"], "join": "last", "age": 0.3},
    "action": {"topic": "/command", "field": "data", "join": "next", "age": 0.3}}}
PERIOD = 50_000_000  # ns


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def write(path, groups, steps=40, joints="/joints"):
    """Each step: one message with the joints of each group, whose values are 100 times the step plus the letter."""
    from mcap.writer import Writer

    with open(path, "wb") as target:
        writer = Writer(target)
        writer.start()
        schema = writer.register_schema("s", "jsonschema", b"{}")
        topics = {t: writer.register_channel(t, "json", schema) for t in (joints, "/command")}
        for i in range(steps):
            for k, names in enumerate(groups(i)):
                message = {"name": names, "position": [value(i, n) for n in names]}
                time = 10**12 + i * PERIOD + k * 2_000_000
                writer.add_message(topics[joints], time, json.dumps(message).encode(), time)
            time = 10**12 + i * PERIOD + 10_000_000
            writer.add_message(topics["/command"], time, json.dumps({"data": [float(i)]}).encode(), time)
        writer.finish()
    return path


def value(step, name):
    return 100.0 * step + ord(name[0])


GROUPS = {"arm first": lambda i: [["a", "b"], ["finger"]], "gripper first": lambda i: [["finger"], ["b", "a"]],
          "a third one": lambda i: [["x"], ["finger"], ["a", "b"]]}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_columns_are_read_from_the_messages_that_name_their_components(groups, tmp_path):
    data = open_dataset(write(tmp_path / "d.mcap", groups), mapping=MAPPING)
    (episode,) = data
    step = np.round(np.asarray(episode.steps["action"])[:, 0]).astype(int)
    for name, components in (("observation.state", "ab"), ("observation.gripper", ["finger"])):
        values = np.asarray(episode.steps[name])[:len(step)]
        rows = (values[:, 0] - ord(components[0][0])) / 100
        assert (rows == np.round(rows)).all() and (np.abs(rows - step) <= 1).all()
        for k, n in enumerate(components):
            np.testing.assert_array_equal(values[:, k] - ord(n[0]), 100 * rows)
    warnings = " ".join(map(str, data.metadata["warnings"]))
    assert "messages of /joints do not name all of a, b; observation.state is read from the others" in warnings


@pytest.mark.parametrize("joints", ["/joints", "/joint_states"])  # those with a state in their name come first
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_the_proposal_has_all_names(groups, joints, tmp_path):
    data = preview_dataset(write(tmp_path / "d.mcap", groups, joints=joints))
    features = data.metadata["mapping"]["features"]
    names = {n for f in features.values() if f["topic"] == joints for n in f["names"]}
    assert names == {n for group in groups(0) for n in group} and set(features) <= set(data.features())
    assert data.fps == 20 and len(data[0]) in (38, 39, 40)


def test_messages_without_a_joint_are_skipped(tmp_path):
    """Every third message has one joint only."""
    path = write(tmp_path / "d.mcap", lambda i: [["a"] if i % 3 == 0 else ["a", "b"]])
    data = preview_dataset(path)
    state = np.asarray(data[0].steps["observation.state"])
    assert data.features()["observation.state"].names == ("a", "b")
    np.testing.assert_array_equal(state[:, 1] - state[:, 0], 1)
    assert {int(v) // 100 % 3 for v in state[:, 0]} == {1, 2}
    assert "14 of 40 messages of /joints do not name all of a, b" in " ".join(map(str, data.metadata["warnings"]))
