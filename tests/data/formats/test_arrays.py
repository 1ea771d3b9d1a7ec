"""zarr, RLDS, OGBench, npz, and folders of one file an episode: what others wrote is read to the value, what is
written is decoded by other means, and what is damaged or strange is said."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.data.formats.test_format_contract import demonstrations
from tests.data.formats.test_formats import ENDS, _flat, closed_form
from understudy.audit import audit
from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import conversion_losses, format_of, open_dataset, rlds, sidecar, write_dataset
from understudy.testing import check_format

STATE, ACTION = "observation.state", "action"
OURS = ["npz", "csv", "zarr", "rlds", "ogbench"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fixtures(shared):
    return shared / "fixtures"


def read_all(path, **options):
    data = open_dataset(path, **options)
    for episode in data:
        for name in episode.steps:
            episode.steps[name]
        dict(episode.metadata)
    return data


def refused(path, *parts) -> str:
    with pytest.raises(UserError) as error:
        read_all(path)
    text = str(error.value)
    for part in (*parts, "\n  -> "):
        assert part in text, text
    return text


def is_closed(episode, e, names, last=False):
    """Equal to the closed form; `names` {our column: key of closed_form.episode}."""
    want = closed_form.episode(e, int(last))
    assert len(episode) == closed_form.LENGTHS[e]
    for name, key in names.items():
        found = np.asarray(episode.steps[name])
        if key == "task":
            assert found.tolist() == [want[key]] * len(episode)
        else:
            np.testing.assert_array_equal(found, want[key], err_msg=name)


def digest(a):
    """As shared/tools/check_with_upstream.py prints what upstream readers report."""
    f = np.asarray(a).reshape(len(a), -1).astype(np.float64)
    return {"n": len(a), "shape": list(np.shape(a)[1:]), "sum": float(f.sum()),
            "tsum": float((f.sum(1) * np.arange(1, len(a) + 1)).sum())}


def agrees(column, said):
    found = digest(column)
    assert (found["n"], found["shape"]) == (said["n"], said["shape"])
    assert found["sum"] == pytest.approx(said["sum"], rel=1e-6) and found["tsum"] == pytest.approx(said["tsum"],
                                                                                                   rel=1e-6)


# -- zarr -----------------------------------------------------------------------------------------------------------

ZARRS = ["blosc.zarr", "blosc.zarr.zip", "by_replay_buffer.zarr", "consolidated.zarr", "raw.zarr", "v2_by_zarr3.zarr",
         "v3.zarr", "v3_sharded.zarr", "zstd.zarr"]


@pytest.mark.parametrize("name", ZARRS)
def test_replay_buffers_are_read(name, fixtures):
    data = open_dataset(fixtures / "diffusion_policy_zarr" / name)
    said = json.loads((fixtures / "expected" / f"zarr_{name}.json").read_text())
    for e, episode in enumerate(data):
        is_closed(episode, e, {STATE: "state", ACTION: "action", "observation.images.img": "image"})
        for column, key in ((STATE, "state"), (ACTION, "action"), ("observation.images.img", "img"),
                            ("observation.keypoint", "keypoint")):
            if key in said["episodes"][e]:
                agrees(episode.steps[column], said["episodes"][e][key])
    assert data.metadata["version"] == ("3" if "v3" in name else "2") and "keypoint" in str(
        list(data.features())
    ) + name + ("keypoint" if "replay" in name else "")
    pixels = [w for w in data.metadata["warnings"] if "float32 pixels" in w]
    assert len(pixels) == ("replay" not in name)  # those of ReplayBuffer are uint8


def _zarr(tmp_path, suffix=""):
    write_dataset(demonstrations(), tmp_path / f"d.zarr{suffix}", "zarr")
    return tmp_path / f"d.zarr{suffix}"


def test_zarr_ends_that_leave_the_data(fixtures):
    refused(fixtures / "broken/zarr_episode_ends", "it has 22 rows, but meta/episode_ends ends with 30")


def test_a_chunk_that_is_lost_is_said(tmp_path):
    path = _zarr(tmp_path)
    assert not read_all(path).metadata["warnings"]
    (path / "data/state/0.0").unlink()
    (path / "understudy.npz").unlink()
    warned = read_all(path).metadata["warnings"]
    assert len(warned) == 1 and "data/state: 1 chunks are not there" in warned[0]


def test_a_chunk_of_another_length_and_an_array_without_its_description_are_refused(tmp_path):
    path = _zarr(tmp_path)
    chunk = path / "data/state/0.0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3])
    refused(path, "data/state/0.0", "which is not the length in its header")
    chunk.write_bytes(whole)
    (path / "data/state/.zarray").unlink()
    refused(path, "data/state", "the file .zarray, which describes the chunks, is missing")


def test_zarr_codecs_that_could_run_code_or_are_unknown_are_left_out(tmp_path):
    path = _zarr(tmp_path)
    (path / "understudy.npz").unlink()
    for codec in ("pickle", "imagecodecs_jpegxl"):
        file = path / "data/front/.zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "filters": [{"id": codec}]}))
        data = read_all(path)
        assert "observation.images.front" not in data.features()
        assert f"data/front is left out: it is stored with {codec}" in str(data.metadata["warnings"])


def test_float_pixels_that_are_none_are_refused(fixtures, tmp_path):
    shutil.copytree(fixtures / "diffusion_policy_zarr/raw.zarr", tmp_path / "z")
    chunk = tmp_path / "z/data/img/1.0.0.0"
    values = np.frombuffer(chunk.read_bytes(), "<f4").copy()
    values[5] = 0.5
    chunk.write_bytes(values.tobytes())
    refused(tmp_path / "z", "data/img, row 7", "pixels must be whole numbers from 0 to 255")


def _by_hand(folder, key):
    """An array of format 2, by its documents alone (zarr v2 specification): no zarr package."""
    from numcodecs import get_codec

    about = json.loads((folder / key / ".zarray").read_text())
    assert about["zarr_format"] == 2 and about["order"] == "C" and about["filters"] is None
    codec, (rows, *rest) = get_codec(about["compressor"]), about["chunks"]
    assert rest == about["shape"][1:]
    parts = []
    for i in range(-(-about["shape"][0] // rows)):
        raw = codec.decode((folder / key / ".".join(map(str, [i] + [0] * len(rest)))).read_bytes())
        parts.append(np.frombuffer(raw, about["dtype"]).reshape(rows, *rest))
    return np.concatenate(parts)[: about["shape"][0]]


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_what_is_written_is_a_replay_buffer_of_format_2(suffix, tmp_path, monkeypatch):
    from understudy.data.formats import zarr_store

    monkeypatch.setattr(zarr_store, "_CHUNK", 1000)  # several chunks, the last one filled up
    data, path = demonstrations(), _zarr(tmp_path, suffix)
    assert read_all(path).fingerprint() == data.fingerprint()
    if suffix:
        with zipfile.ZipFile(path) as archive:
            assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
            archive.extractall(tmp_path / "unpacked")
        path = tmp_path / "unpacked"
    assert json.loads((path / ".zgroup").read_text()) == {"zarr_format": 2}
    np.testing.assert_array_equal(_by_hand(path, "meta/episode_ends"), ENDS)
    for key, name in (("state", STATE), ("action", ACTION), ("front", "observation.images.front"),
                      ("task", "task"), ("terminated", "next.terminated")):
        wanted = np.concatenate([np.asarray(e.steps[name])[: len(e)] for e in data])
        np.testing.assert_array_equal(_by_hand(path, f"data/{key}"), wanted)


# -- RLDS -----------------------------------------------------------------------------------------------------------

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
    said = json.loads((fixtures / "expected/rlds_tfrecord.json").read_text())["episodes"]
    for episode, one in zip(data, said, strict=True):
        agrees(episode.steps[ACTION], one["action"])


def test_rlds_to_the_letter(fixtures):
    path = fixtures / "rlds/tfrecord/closed_form_spec/0.1.0"
    said = json.loads((fixtures / "expected/rlds_spec.json").read_text())["episodes"]
    data = open_dataset(path)  # as upstream reads it: every step one with an action
    for episode, one in zip(data, said, strict=True):
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
    gone = next(n for n in steps if n not in ("observation", "action", "is_first", "is_last", "is_terminal"))
    assert not [w for w in whole.metadata["warnings"] if "describe" in w]
    del steps[gone]
    (path / "features.json").write_text(json.dumps(document))
    assert f"features.json does not describe steps/{gone}, which the records hold: left out" \
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
    for e, (found, episode) in enumerate(zip(records, demonstrations(), strict=True)):
        n = len(episode)
        np.testing.assert_array_equal(np.array(found["steps/action"].FloatList.value, np.float32).reshape(n, 2),
                                      episode.steps[ACTION])
        assert list(found["steps/is_first"].Int64List.value) == [1] + [0] * (n - 1)
        assert list(found["steps/is_last"].Int64List.value) == [0] * (n - 1) + [1]
        assert list(found["steps/is_terminal"].Int64List.value) == [0] * (n - 1) + [int(e % 2 == 0)]
        assert [t.decode() for t in found["steps/language_instruction"].BytesList.value] == list(episode.steps["task"])
        assert list(found["steps/count"].Int64List.value) == (np.arange(n) * 2**40).tolist()
        force = np.frombuffer(b"".join(found["steps/observation/force"].BytesList.value), "<f8").reshape(-1, 2, 2)
        np.testing.assert_array_equal(force, episode.steps["observation.force"][:n])
        for data, image in zip(found["steps/observation/front"].BytesList.value,
                               episode.steps["observation.images.front"], strict=True):
            np.testing.assert_array_equal(video.decode_image(data, 3, ""), image)
        assert list(found["episode_metadata/seed"].Int64List.value) == [e]


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


# -- OGBench --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, episodes", [("closed-v0", [0, 1, 2, 3]), ("closed-v0-val", [3])])
def test_ogbench(name, episodes, fixtures):
    data = open_dataset(fixtures / f"ogbench/{name}.npz")
    said = json.loads((fixtures / "expected/ogbench.json").read_text())["episodes"]
    assert len(data) == len(episodes)
    for episode, e in zip(data, episodes, strict=True):
        is_closed(episode, e, {STATE: "state"}, last=True)
        is_closed(episode, e, {ACTION: "action"})
        np.testing.assert_array_equal(episode.steps["qpos"], closed_form.episode(e, 1)["state"][:, :2])
        assert episode.steps["next.truncated"].tolist() == [False] * (len(episode) - 1) + [True]
        assert not episode.steps["next.terminated"].any()
        if len(episodes) > 1:
            agrees(episode.steps[ACTION], said[e]["actions"])
            agrees(episode.steps[STATE][1:], said[e]["next_observations"])


def test_ogbench_of_its_own_script(shared):
    data = open_dataset(shared / "data/ogbench/pointmaze-medium-navigate-v0-val.npz")
    assert (len(data), data.steps, len(data[7].steps[STATE])) == (100, 100_000, 1001)
    with np.load(shared / "data/ogbench/pointmaze-medium-navigate-v0-val.npz") as raw:
        np.testing.assert_array_equal(data[99].steps[ACTION], raw["actions"][99 * 1001: 100 * 1001 - 1])


def test_what_is_written_is_what_ogbench_takes_apart(tmp_path):
    """By the rule of its load_dataset: drop the row of a terminal; the next observation is that of the next row."""
    data = demonstrations()
    write_dataset(data, tmp_path / "d.npz", "ogbench")
    with np.load(tmp_path / "d.npz", allow_pickle=False) as raw:
        keep = raw["terminals"] == 0
        following = np.concatenate([raw["observations"][1:], raw["observations"][:1]])[keep]
        np.testing.assert_array_equal(following, np.concatenate([e.steps[STATE][1:] for e in data]))
        np.testing.assert_array_equal(raw["actions"][keep], np.concatenate([e.steps[ACTION] for e in data]))


def test_ogbench_needs_what_was_seen_last_and_says_that_it_repeats_it(tmp_path):
    data = demonstrations(cameras=False).map(lambda e: e.replace({STATE: e.steps[STATE][: len(e)]}))
    assert any("its last row is written twice" in str(loss) for loss in conversion_losses(data, "ogbench"))
    check_format("ogbench", data, tmp_path)
    with np.load(tmp_path / "written-ogbench") as raw:
        assert raw["observations"].shape == (26, 3)
        np.testing.assert_array_equal(raw["observations"][5], raw["observations"][4])


@pytest.mark.parametrize("changes, parts", [
    ({"terminals": np.zeros(26)}, ["terminals", "the last row, 25, must be 1, but is 0"]),
    ({"terminals": np.full(26, 0.5)}, ["terminals", "each row must have 0 or 1"]),
    ({"terminals": np.ones(26)}, ["terminals[0]", "there is no action before the last observation"]),
    ({"actions": np.zeros((25, 2))}, ["actions", "does not have 26 rows, as terminals has"])])
def test_ogbench_that_makes_no_sense(changes, parts, tmp_path):
    terminals = np.zeros(26)
    terminals[[5, 7, 12, 25]] = 1
    np.savez(tmp_path / "d.npz", **{"observations": _flat(1)["state"], "actions": np.zeros((26, 2)),
                                    "terminals": terminals, "qpos": np.zeros((26, 1)), **changes})
    refused(tmp_path / "d.npz", *parts)


def test_terminals_alone_are_not_taken_for_ogbench(tmp_path):
    for more in ({}, {"qpos": np.zeros((22, 1)), "timeouts": np.zeros(22)}):
        np.savez(tmp_path / "d.npz", observations=np.zeros((22, 3)), actions=np.zeros((22, 2)), terminals=np.zeros(22),
                 **more)
        refused(tmp_path / "d.npz", "there is no array episode_ends; there are actions", "terminals do not say where")


# -- npz: one file ---------------------------------------------------------------------------------------------------


def _npz(path, **changes):
    flat = _flat()
    np.savez(path, **{"observations": flat["state"], "actions": flat["action"], "episode_ends": ENDS, **changes})
    return path


def test_integers_as_actions_are_choices_and_that_is_said(tmp_path):
    data = read_all(_npz(tmp_path / "d.npz", actions=np.arange(22) % 3))
    assert data.features()[ACTION].kind == "discrete"
    assert data.metadata["warnings"] == ["actions: int64 is read as classes, numbered from 0; if it holds "
                                         "quantities: --columns action=actions:quantities, or save it as float32"]
    assert not read_all(_npz(tmp_path / "e.npz")).metadata["warnings"]


@pytest.mark.parametrize("changes, parts", [
    ({"success": np.array([1, 0, 0.5, 1])}, ["success[2]", "a flag must be 0 or 1, not 0.5"]),
    ({"terminals": np.r_[np.zeros(21), 0.5]}, ["terminals[21]", "a flag must be 0 or 1, not 0.5"]),
    ({"next.success": np.r_[2.0, np.zeros(21)]}, ["next.success[0]", "a flag must be 0 or 1, not 2.0"]),
    ({"fps": np.array([20, 20])}, ["d.npz, fps", "it must be one number", "but has the shape (2,)"])])
def test_npz_that_counted_as_something_else(changes, parts, tmp_path):
    refused(_npz(tmp_path / "d.npz", **changes), *parts)


def test_a_directory_whose_names_are_no_text_is_refused(tmp_path):
    data = bytearray(_npz(tmp_path / "d.npz").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 9] |= 8  # the flag that a name is in UTF-8
    data[at + 46] = 0xe8  # and its first byte
    (tmp_path / "d.npz").write_bytes(data)
    refused(tmp_path / "d.npz", "d.npz: the zip file cannot be read", "damaged", "can't decode")
    assert [f.severity for f in audit(tmp_path / "d.npz").findings] == ["error"]


@pytest.mark.parametrize("at, value", [(8, 1), (10, 7), (10, 12)])
def test_an_entry_that_calls_itself_encrypted_or_packed_in_another_way_is_refused(at, value, tmp_path):
    data = bytearray(_npz(tmp_path / "d.npz").read_bytes())
    data[data.index(b"PK\1\2") + at] = value  # in the directory: flags, and the way of packing
    data[data.index(b"PK\3\4") + at - 2] = value
    (tmp_path / "d.npz").write_bytes(data)
    refused(tmp_path / "d.npz", "observations: the array cannot be read")


def test_arrays_that_may_have_been_meant_otherwise_are_said(tmp_path):
    data = read_all(_npz(tmp_path / "d.npz", dones=np.zeros(22), fps=np.array([20])))
    assert data.metadata["warnings"] == ["dones is kept under that name; save it as terminals if that is what it is"]
    assert data.fps == 20


def test_npz_is_written_with_the_arrays_that_its_page_names(tmp_path):
    data = demonstrations(cameras=False)
    write_dataset(data, tmp_path / "d.npz", "npz")
    with np.load(tmp_path / "d.npz", allow_pickle=False) as raw:
        np.testing.assert_array_equal(raw["episode_ends"], ENDS)
        np.testing.assert_array_equal(raw["observations"], np.concatenate([e.steps[STATE] for e in data]))
        assert raw["observations"].shape[0] == 26 and raw["actions"].shape[0] == 22 and raw["fps"] == 10
        assert raw["seed"].tolist() == [0, 1, 2, 3] and raw["operator"].tolist() == ["Ada"] * 4
        assert raw["terminals"].sum() == 2 and raw["task"][5] == "öffne die Tür"


def test_a_file_and_what_is_kept_beside_it_are_written_together_or_not_at_all(tmp_path):
    data = demonstrations(cameras=False)
    bad = Dataset([*data, Episode({**data[0].steps, ACTION: np.zeros((5, 9), np.float32)}, {}, 5)], data.metadata)
    for to in ("npz", "ogbench"):
        with pytest.raises(Exception):  # noqa: B017 any: what is left behind is asked
            write_dataset(bad.map(lambda e: e if len(e.steps[ACTION][0]) == 2 else 1 / 0), tmp_path / "d.npz", to)
        assert [p for p in tmp_path.iterdir() if p.name != "cache"] == []
    (tmp_path / "d.npz.understudy.npz").write_bytes(b"of another file")
    with pytest.raises(UserError, match="belongs to another data set of the same name"):
        write_dataset(data, tmp_path / "d.npz", "npz")
    assert not (tmp_path / "d.npz").exists()


# -- folders of one file an episode ---------------------------------------------------------------------------------

PLAIN = {STATE: "state", ACTION: "action", "next.reward": "reward", "next.terminated": "terminated",
         "next.truncated": "truncated", "task": "task"}


def test_folders_of_npz_and_csv(fixtures):
    arrays, tables = open_dataset(fixtures / "plain/npz"), open_dataset(fixtures / "plain/csv")
    for e in range(4):
        is_closed(arrays[e], e, {**PLAIN, "observation.images.image": "image"})
        is_closed(tables[e], e, PLAIN)
        np.testing.assert_allclose(tables[e].steps["timestamp"], np.arange(len(tables[e])) / 10)
    assert tables.fps == 10 and arrays.features()[STATE].dtype == "float32"
    assert tables.features()["next.terminated"].dtype == "bool"
    is_closed(open_dataset(fixtures / "plain/csv/episode_3.csv")[0], 3, PLAIN)
    refused(fixtures / "broken/plain_object.npz", "state", "a pickle")


def _csv(folder, *texts):
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"episode_{i}.csv").write_text(text)
    return folder


GOOD = "state_0,state_1,action,note\n1,2,0.5,a\n3,4,1,b\n"


@pytest.mark.parametrize("text, parts", [
    ("state_0,state_2,action\n1,2,3\n", ["line 1", "there is no state_1, only state_0, state_2"]),
    ("state_2,state_3,action\n1,2,3\n", ["line 1", "there is no state_0"]),
    ("state_1,action\n1,2\n", ["line 1", "there is no state_0, only state_1"]),
    ("state_0,state,action\n1,2,3\n", ["line 1", "state is a second column state"]),
    ("state,observation,action\n1,2,3\n", ["line 1", "observation is a second column observation.state"]),
    ("state,state,action\n1,2,3\n", ["line 1", "a column has no name, or that of another column: 'state'"]),
    ("state,action\n1,2\n3\n", ["line 3", "there are 1 values for 2 names"]),
    ("state,action\n1,2\n,3\n4,5\n", ["line 3, column state", "the cell is empty", "write the number there"]),
    ("state_0,state_1,action\n1,2,3\n\n4,,6\n7,,8\n9,,\n", ["line 4, column state_1", "is empty (so are 2 others)"]),
    ("state_0,state_1,action\n1,2,3\n4,five,6\n", ["line 3, column state_1", "this is not a number: 'five'"]),
    ("state,action,terminated\n1,2,0\n1,2,3\n", ["next.terminated", "a flag must be 0 or 1, not 3"]),
    ("state,action\n1,\x002\n", ["control characters"]),
    ("state,action\n", ["there is no line of values"]),
    ("state,action\n\"1,2\n", ["this is not comma-separated text"])])
def test_tables_that_make_no_sense(text, parts, tmp_path):
    refused(_csv(tmp_path / "d", text), "episode_0.csv" if "3\n1,2,3" in text or "terminated" not in text else "d",
            *parts)


@pytest.mark.parametrize("encoding, text, parts", [
    ("latin-1", "state,angle°,action\n1,2,3\n", ["line 1, column angle°", "byte 0xb0, which is '°' in Latin-1"]),
    ("latin-1", "state,note,action\n1,a,3\n1,für,3\n", ["line 3, column note", "byte 0xfc", "-f LATIN1 -t UTF-8"]),
    ("utf-16", "state,action\n1,2\n", ["line 1", "it is UTF-16", "-f UTF-16 -t UTF-8"])])
def test_a_table_that_is_not_utf8_is_named_with_its_cure(encoding, text, parts, tmp_path):
    (tmp_path / "d").mkdir()
    for path in (tmp_path / "a.csv", tmp_path / "d" / "episode_0.csv"):
        path.write_bytes(text.encode(encoding))
        assert "damaged" not in refused(path, path.name, *parts)
        refused(path.parent if path.parent.name == "d" else path, path.name, *parts)


def test_tables_that_disagree_with_each_other(tmp_path):
    refused(_csv(tmp_path / "a", GOOD, GOOD.replace("note", "remark")), "episode_1.csv",
            "note is missing, but other episodes have it")
    refused(_csv(tmp_path / "b", GOOD, GOOD.replace("1,2,0.5", "1,2,x")), "episode_1.csv", "action", "this is text")
    data = read_all(_csv(tmp_path / "c", GOOD, GOOD.replace("3,4,1,b\n", "3,4.5,1,b")))
    assert data[0].steps[STATE].dtype == np.float64  # whole numbers in one file, not in the other
    assert "episode_1.csv: the last line does not end" in str(data.metadata["warnings"])
    for i in (3, 4):
        shutil.copy(tmp_path / "c/episode_0.csv", tmp_path / f"c/episode_{i}.csv")
    assert "episode_3.csv follows episode_1.csv" in str(read_all(tmp_path / "c").metadata["warnings"])


def test_files_are_in_the_order_of_their_numbers_and_an_empty_last_row_was_seen_last(tmp_path):
    folder = _csv(tmp_path / "d")
    for i in (10, 2, 1):
        (folder / f"run{i}.csv").write_text(f"state,action\n{i},0.5\n{i},0.5\n{i}.25,\n")
    data = read_all(folder)
    assert [float(e.steps[STATE][0]) for e in data] == [1, 2, 10]
    assert [len(e) for e in data] == [2, 2, 2] and data[2].steps[STATE].tolist() == [10, 10, 10.25]


def test_a_csv_folder_that_was_written_holds_pictures_names_and_how_many_episodes_there_are(tmp_path):
    data = demonstrations()
    write_dataset(data, tmp_path / "d", "csv")
    assert (tmp_path / "d/episode_000003.csv").read_text().splitlines()[0].startswith("observation.state_0,")
    assert len(list((tmp_path / "d/episode_000003/front").glob("*.png"))) == 12
    again = open_dataset(tmp_path / "d")
    assert again.features() == data.features() and again.fingerprint() == data.fingerprint()
    (tmp_path / "d/episode_000003.csv").unlink()
    refused(tmp_path / "d", "there are 3 files, but dataset.json says 4 episodes")


def test_a_folder_of_npz_that_disagrees(tmp_path):
    (tmp_path / "d").mkdir()
    for i, (n, width) in enumerate([(3, 2), (4, 2), (5, 3)]):
        np.savez(tmp_path / f"d/e{i}.npz", state=np.zeros((n + 1, width)), action=np.zeros((n, 1)), task="go", fps=20,
                 seed=i)
    refused(tmp_path / "d", "e2.npz, observation.state",
            "it is float64 (3,), but float64 (2,) in the first episode")
    (tmp_path / "d/e2.npz").unlink()
    data = read_all(tmp_path / "d")
    assert [(len(e), len(e.steps[STATE]), e.metadata["seed"]) for e in data] == [(3, 4, 0), (4, 5, 1)]
    assert data.fps == 20 and data[1].steps["task"].tolist() == ["go"] * 4


# -- which one is meant ---------------------------------------------------------------------------------------------


def test_the_only_data_set_below_a_folder_is_meant(tmp_path):
    deep = tmp_path / "in/a/b"
    deep.mkdir(parents=True)
    (tmp_path / "in/readme.md").write_text("hello")
    write_dataset(demonstrations(cameras=False), deep / "c", "rlds")
    for level in ("in", "in/a", "in/a/b", "in/a/b/c"):
        assert format_of(tmp_path / level) == "rlds" and len(open_dataset(tmp_path / level)) == 4
    refused(tmp_path, "a folder without meta/info.json")  # four levels down
    _npz(tmp_path / "in/a/other.npz")
    refused(tmp_path / "in", "this is a folder of 2 data sets", "a/b/c", "a/other.npz")
    assert format_of(tmp_path / "in/a/b") == "rlds"


# -- anything at all ------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
_DTYPES = ["float32", "float64", "float16", "int64", "int8", "uint16", "uint64", "bool"]


@st.composite
def datasets(draw) -> Dataset:
    """Columns of any dtype and shape, names that are easily confused, episodes of any length, some with a last row."""
    names = draw(st.lists(st.sampled_from([
        "observation.force", "observation.images.front", "state", "actions", "obs", "next.reward", "next.success",
        "next.terminated", "next.truncated", "task", "discount", "timestamp", "rewards", "fps", "observation.task",
        "joint_1", "action.gripper", "episode_ends", "terminals", "is_last", "image", "Force"]), unique=True,
        max_size=6))
    columns = {STATE: ("float32", (2,)), ACTION: ("float32", (1,))}
    for name in names:
        kind = draw(st.sampled_from(_DTYPES)), draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
        columns[name] = ("uint8", (4, 5, 3)) if "images" in name else ("U", ()) if "task" in name else (
            "bool", ()) if name in ("next.terminated", "next.truncated", "next.success") else kind
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    longer = {name: draw(st.booleans()) for name in columns if name.startswith("observation.")}

    def values(name, n):
        dtype, shape = columns[name]
        if dtype == "U":
            return np.array(draw(st.lists(_TEXT, min_size=n, max_size=n)), np.str_)
        return draw(hnp.arrays(dtype, (n, *shape), elements={"allow_nan": False} if dtype[0] == "f" else None))

    episodes = []
    for n in lengths:
        steps = {name: values(name, n + longer.get(name, False)) for name in columns}
        meta = {"seed": draw(st.integers(0, 2**64)), "note": draw(_TEXT), "x": draw(st.sampled_from([1, 2.5, None]))}
        episodes.append(Episode(steps, meta, n, {k: Feature.from_array(v) for k, v in steps.items()}))
    order = draw(st.permutations(list(columns)))
    return Dataset([Episode({k: e.steps[k] for k in order}, e.metadata, len(e), {k: e.schema[k] for k in order})
                    for e in episodes], {"fps": draw(st.sampled_from([None, 10.0, 29.97])), "robot_type": None})


@pytest.mark.parametrize("to", OURS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=datasets())
def test_nothing_is_lost_of_anything(to, data, tmp_path_factory):
    check_format(to, data, tmp_path_factory.mktemp("any"))
