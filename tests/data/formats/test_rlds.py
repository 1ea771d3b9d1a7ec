"""RLDS: records and shards, decoded by other means."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.array_files import agrees, is_closed, read_all, refused
from fixtures.contract_data import demonstrations

from understudy.audit import audit
from understudy.core import Feature, UserError
from understudy.data.formats import open_dataset, rlds, write_dataset
from understudy.data.formats.parts import sidecar

STATE, ACTION = "observation.state", "action"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


RLDS = {STATE: "state", ACTION: "action", "next.reward": "reward", "next.terminated": "terminated",
        "next.truncated": "truncated"}


def test_rlds_of_open_x(fixtures):
    path = fixtures / "rlds/tfrecord/closed_form/1.0.0"
    data = open_dataset(path)
    assert (data.metadata["format"], data.metadata["version"], data.metadata["warnings"]) == ("rlds", "1.0.0", [])
    assert [e.metadata["split"] for e in data] == ["train", "train", "val", "val"]
    assert data.features()["observation.pose"] == Feature("float64", (2, 3))
    for episode in data:
        e = episode.metadata["episode_id"]
        is_closed(episode, e, {**RLDS, "observation.images.image": "image", "task": "task"})
        state = closed_form.episode(e)["state"].astype(np.float64)
        np.testing.assert_array_equal(episode.steps["observation.pose"], np.stack([state, -state], 1))
        wrist = np.stack([closed_form.image(e, t + 1) for t in range(len(episode))]).astype(int)
        assert np.abs(wrist - episode.steps["observation.images.wrist_image"]).mean() < 2.4  # JPEG
        assert episode.metadata["file_path"] == f"raw/{e}.npz" and (episode.steps["discount"] == 1).all()
    recorded = json.loads((fixtures / "expected/rlds_tfrecord.json").read_text())["episodes"]
    for episode, one in zip(data, recorded, strict=True):
        agrees(episode.steps[ACTION], one["action"])


def test_rlds_to_the_letter(fixtures):
    path = fixtures / "rlds/tfrecord/closed_form_spec/0.1.0"
    recorded = json.loads((fixtures / "expected/rlds_spec.json").read_text())["episodes"]
    data = open_dataset(path)  # as upstream reads it: every step one with an action
    for episode, one in zip(data, recorded, strict=True):
        for name, key in ((STATE, "observation"), (ACTION, "action"), ("next.reward", "reward"), ("label", "label"),
                          ("packed", "packed"), ("raw", "raw"), ("discount", "discount")):
            agrees(episode.steps[name], one[key])
    assert "the last action of every episode is zero" in str(data.metadata["warnings"])
    assert "steps/ragged is left out" in str(data.metadata["warnings"])
    assert data.features()["packed"].dtype == "int16" and data.features()["label"].num_classes == (3,)

    data = open_dataset(path, final_step="observation")
    assert len(data.metadata["warnings"]) == 1
    for episode in data:
        e = episode.metadata["episode_id"]
        is_closed(episode, e, {n: k for n, k in RLDS.items() if n != STATE})
        np.testing.assert_array_equal(episode.steps[STATE], closed_form.episode(e, 1)["state"])
        state = closed_form.episode(e)["state"].astype(np.float64)
        np.testing.assert_array_equal(episode.steps["raw"], state)
        np.testing.assert_array_equal(episode.steps["packed"], np.stack([4 * state, -4 * state], 1))
        np.testing.assert_array_equal(episode.steps["label"], (e + np.arange(len(episode))) % 3)


@pytest.mark.parametrize("name, parts", [
    ("broken/rlds_crc", ["tfrecord-00001-of-00002, record 0", "the checksum of the record is wrong"]),
    ("broken/rlds_truncated", ["val.tfrecord-00000-of-00002, record 0", "the file is cut short"]),
    ("rlds/array_record/closed_form/1.0.0", ["in files of format array_record", "tfds convert_format"])])
def test_rlds_that_is_refused(name, parts, fixtures):
    refused(fixtures / name, *parts)


def _rlds(tmp_path):
    write_dataset(demonstrations(), tmp_path / "d", "rlds")
    return tmp_path / "d", next((tmp_path / "d").glob("*.tfrecord*"))


def test_rlds_that_lacks_a_shard_a_record_or_says_nonsense(tmp_path):
    path, shard = _rlds(tmp_path)
    whole = shard.read_bytes()
    first = struct.unpack("<Q", whole[:8])[0] + 16
    shard.write_bytes(whole[:first])
    refused(path, "it has 1 records, but dataset_info.json says 4")
    shard.write_bytes(zlib.compress(whole))
    refused(path, "record 0", "the checksum of the record's length is wrong")
    shard.unlink()
    refused(path, "shard 0 of split train is missing")
    (path / "features.json").write_text('{"featuresDict": {"features": {"steps": 3}}}')
    refused(path, "features.json", "these are not the features of a TFDS data set")


@pytest.mark.parametrize("gone", [lambda splits: splits[1].update(shardLengths=[]), lambda splits: splits.pop(1)])
def test_shards_that_nothing_names_are_said(gone, tmp_path):
    path, shard = _rlds(tmp_path)
    info = json.loads((path / "dataset_info.json").read_text())
    other = shard.with_name(shard.name.replace("train", "val"))
    shutil.copy(shard, other)

    def said():
        (path / "dataset_info.json").write_text(json.dumps(info))
        data = read_all(path)
        return (len(data), [w for w in data.metadata["warnings"] if other.name in w],
                [(f.code, f.severity) for f in audit(path).findings if other.name in f.message and f.code != "reader"])
    info["splits"].append({**info["splits"][0], "name": "val"})
    assert said() == (8, [], [])
    gone(info["splits"])
    assert said() == (4, [f"{other.name}: not named by dataset_info.json, and left out"],
                      [("counts-disagree", "error")])


def test_what_records_hold_beyond_their_description_is_said(tmp_path):
    path, _ = _rlds(tmp_path)
    (path / sidecar.SIDECAR_NAME).unlink()  # which would miss the column as well
    whole = read_all(path)
    document = json.loads((path / "features.json").read_text())
    steps = document["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    undescribed = next(n for n in steps if n not in ("observation", "action", "is_first", "is_last", "is_terminal"))
    assert not [w for w in whole.metadata["warnings"] if "describe" in w]
    del steps[undescribed]
    (path / "features.json").write_text(json.dumps(document))
    assert f"features.json does not describe steps/{undescribed}, which the records hold: left out" \
        in read_all(path).metadata["warnings"]


def test_every_bit_of_a_record_is_checked(tmp_path):
    path, shard = _rlds(tmp_path)
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 40):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1:])
        with pytest.raises(UserError, match="record"):
            read_all(path)


def test_varints_and_checksums_are_those_of_their_definitions():
    values = np.array([0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -2**63], np.int64)
    packed = rlds._packed(values.view(np.uint64))
    assert packed[:7] == b"\x00\x01\x7f\x80\x01\xac\x02"  # 300 is AC 02: the example of Protocol Buffers
    np.testing.assert_array_equal(rlds._varints(packed, ""), values)
    crc = 0xE3069283  # CRC-32C of "123456789", the check value of its catalogue
    assert rlds.masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    for broken in (b"\x80", b"\xff" * 11 + b"\x00"):
        with pytest.raises(UserError, match="damage"):
            rlds._varints(broken, "here")


def _message():
    """tf.train.Example, from its published definition, by Google's own Protocol Buffers."""
    if importlib.util.find_spec("google.protobuf") is None:
        pytest.skip("protobuf not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        file.message_type.add(name=name).field.add(name="value", number=1, label=3, type=kind)
    feature = file.message_type.add(name="Feature")
    for i, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        feature.field.add(name=name, number=i, label=1, type=11, type_name=f".tensorflow.{name}")
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".tensorflow.Feature")
    features.field.add(name="feature", number=1, label=3, type=11, type_name=".tensorflow.Features.FeatureEntry")
    file.message_type.add(name="Example").field.add(name="features", number=1, label=1, type=11,
                                                    type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def test_what_is_written_are_examples_as_protocol_buffers_read_them(tmp_path):
    from understudy.data import video

    Example = _message()
    path, shard = _rlds(tmp_path)
    raw, at, records = shard.read_bytes(), 0, []
    while at < len(raw):
        n = struct.unpack_from("<Q", raw, at)[0]
        records.append(Example.FromString(raw[at + 12: at + 12 + n]).features.feature)
        at += n + 16
    for e, (record, episode) in enumerate(zip(records, demonstrations(), strict=True)):
        n = len(episode)
        np.testing.assert_array_equal(np.array(record["steps/action"].FloatList.value, np.float32).reshape(n, 2),
                                      episode.steps[ACTION])
        assert list(record["steps/is_first"].Int64List.value) == [1] + [0] * (n - 1)
        assert list(record["steps/is_last"].Int64List.value) == [0] * (n - 1) + [1]
        assert list(record["steps/is_terminal"].Int64List.value) == [0] * (n - 1) + [int(e % 2 == 0)]
        assert [t.decode() for t in record["steps/language_instruction"].BytesList.value] == list(episode.steps["task"])
        assert list(record["steps/count"].Int64List.value) == (np.arange(n) * 2**40).tolist()
        force = np.frombuffer(b"".join(record["steps/observation/force"].BytesList.value), "<f8").reshape(-1, 2, 2)
        np.testing.assert_array_equal(force, episode.steps["observation.force"][:n])
        for data, image in zip(record["steps/observation/front"].BytesList.value,
                               episode.steps["observation.images.front"], strict=True):
            np.testing.assert_array_equal(video.decode_image(data, 3, ""), image)
        assert list(record["episode_metadata/seed"].Int64List.value) == [e]


def test_unpacked_lists_are_read_as_well(tmp_path):
    """Protocol Buffers allow numbers one by one; no writer of TFDS does that, and readers must take it."""
    path, shard = _rlds(tmp_path)
    entries = {"steps/is_first": b"\x1a\x04" + b"\x08\x01\x08\x00",
               "steps/action": b"\x12\x14" + b"".join(b"\x0d" + struct.pack("<f", v) for v in (1, 2, 3, 4))}
    body = b"".join(rlds._field(1, rlds._field(1, k.encode()) + rlds._field(2, v)) for k, v in entries.items())
    record = rlds._field(1, body)
    head = struct.pack("<Q", len(record))
    shard.write_bytes(
        head + struct.pack("<I", rlds.masked_crc32c(head)) + record + struct.pack("<I", rlds.masked_crc32c(record))
    )
    about = json.loads((path / "dataset_info.json").read_text())
    about["splits"][0]["shardLengths"] = ["1"]
    (path / "dataset_info.json").write_text(json.dumps(about))
    features = json.loads((path / "features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    for name in set(steps) - {"is_first", "action"}:
        del steps[name]
    del features["featuresDict"]["features"]["episode_metadata"]
    (path / "features.json").write_text(json.dumps(features))
    (path / "understudy.npz").unlink()
    np.testing.assert_array_equal(open_dataset(path)[0].steps[ACTION], [[1, 2], [3, 4]])
