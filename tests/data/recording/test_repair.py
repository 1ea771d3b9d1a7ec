"""What is left of damaged files: the episodes that are whole, as they were, and nothing that never was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset, write_dataset
from understudy.data.recording import recovery as module
from understudy.data.recording.recovery import recover

STATE, FRONT = "observation.state", "observation.images.front"


def episode(number: int, steps: int, image: bool = False) -> Episode:
    state = np.float32([[number, t] for t in range(steps + 1)])
    images = {FRONT: np.full((steps, 16, 16, 3), 10 * number, np.uint8)} if image else {}
    return Episode({STATE: state, "action": number - state[:steps, 1:], **images,
                    "task": np.full(steps, f"do {number}")}, {"number": number})


def right(data: Dataset, numbers: list[int], steps) -> bool:
    """Those episodes, and as they were."""
    assert [e.metadata["number"] for e in data] == numbers
    for e in data:
        n, state = e.metadata["number"], np.asarray(e.steps[STATE])
        assert (state[:, 0] == n).all() and (state[:, 1] == np.arange(steps(n) + 1)).all() and len(e) == steps(n)
        assert (e.steps["action"] == n - state[:steps(n), 1:]).all() and (e.steps["task"] == f"do {n}").all()
        if FRONT in e.steps:
            assert (np.abs(e.steps[FRONT].astype(int) - 10 * n) < 6).all()
    return True


def kept(path: Path) -> dict:
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} if path.is_dir() else {path: path.read_bytes()}


@pytest.fixture
def several(tmp_path) -> Path:
    """Three data files of two episodes each, with videos."""
    for n in (0, 2, 4):
        lerobot.append(tmp_path / "d", Dataset([episode(n, 4 + n, True), episode(n + 1, 5 + n, True)], {"fps": 10}),
                       images="h264")
    return tmp_path / "d"


def damaged(path: Path, tmp_path: Path, capsys, numbers: list[int], *said: str) -> None:
    before = kept(path)
    assert main(["repair", str(path), "--out", str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert all(s in err for s in said) and "understudy-" not in err, err
    assert kept(path) == before
    assert right(open_dataset(tmp_path / "out"), numbers, lambda n: 4 + n)
    assert main(["repair", str(path), "--out", str(tmp_path / "out")]) == 2


def test_a_data_file_that_is_cut(several, tmp_path, capsys):
    file = several / "data/chunk-000/file-001.parquet"
    file.write_bytes(file.read_bytes()[:-8])
    assert main(["repair", str(several)]) == 2  # in place, only what a recorder left
    assert f"understudy repair {several} --out" in capsys.readouterr().err
    damaged(several, tmp_path, capsys, [0, 1, 4, 5], "file-001.parquet", "episode 2: 0 of its 6 rows can be read")


def test_a_video_that_is_cut_is_read_until_there(several, tmp_path, capsys):
    """Its index is at its end, as everybody writes it: nothing can be read. With the index in front, some can."""
    file = next((several / "videos").rglob("file-002.mp4"))
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole) // 2])
    damaged(several, tmp_path, capsys, [0, 1, 2, 3], "lost: episode 4", "lost: episode 5")


def test_a_missing_file_and_an_episode_table_that_is_gone(several, tmp_path, capsys):
    next((several / "videos").rglob("file-000.mp4")).unlink()
    table = several / "meta/episodes/chunk-000/file-002.parquet"
    table.write_bytes(table.read_bytes()[:50])
    damaged(several, tmp_path, capsys, [2, 3], "the file is missing", "meta/episodes/chunk-000/file-002.parquet")


def test_without_cameras_episodes_are_found_without_their_table(tmp_path, capsys):
    for n in range(3):
        lerobot.append(tmp_path / "d", Dataset([episode(n, 4 + n)], {"fps": 10}))
    (tmp_path / "d/meta/episodes/chunk-000/file-001.parquet").write_bytes(b"PAR1")
    damaged(tmp_path / "d", tmp_path, capsys, [0, 1, 2], "file-001.parquet")


def test_nothing_to_rescue(several, tmp_path, capsys):
    for file in (several / "data").rglob("*.parquet"):
        file.write_bytes(b"PAR1")
    assert main(["repair", str(several), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "no episode can be read" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
    assert main(["repair", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert main(["repair", str(tmp_path / "nowhere")]) == 2


# -- npz ------------------------------------------------------------------------------------------------------------

ENDS = [4, 9, 15]


@pytest.fixture(scope="module", params=[np.savez, np.savez_compressed], ids=["stored", "deflated"])
def archive(request, tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("npz") / "d.npz"
    rows = np.concatenate([[[n, t] for t in range(4 + n + 1)] for n in range(3)]).astype(np.float32)
    request.param(file, episode_ends=ENDS, number=np.arange(3), observations=rows,
                  actions=np.concatenate([[[n - t] for t in range(4 + n)] for n in range(3)]).astype(np.float32))
    return file.read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_npz_that_is_cut_anywhere_has_its_first_episodes(archive, tmp_path, data):
    at = data.draw(st.integers(100, len(archive)))
    file = tmp_path / "d.npz"
    file.write_bytes(archive[:at])
    try:
        with recover(file) as recovered:
            numbers = [e.metadata["number"] for e in recovered.data]
            assert numbers == list(range(len(numbers))) and (len(numbers) == 3 or recovered.problems)
            for n, e in enumerate(recovered.data):
                assert np.array_equal(e.steps[STATE], [[n, t] for t in range(4 + n + 1)])
                if "action" in e.steps:
                    assert np.array_equal(e.steps["action"][:, 0], n - np.arange(4 + n))
                else:  # the file ends in front of them
                    assert any("whatever followed" in problem or "actions" in problem for problem in recovered.problems)
    except UserError as error:
        assert at < len(archive) * 0.9, error  # in front of the last array


def test_a_wrong_byte_in_an_npz_costs_its_array(archive, tmp_path):
    at = archive.index(b"observations.npy") + 180
    damaged = bytearray(archive)
    damaged[at] ^= 0xFF
    (tmp_path / "d.npz").write_bytes(damaged)
    with pytest.raises(UserError, match="observations"), recover(tmp_path / "d.npz"):
        pass


# -- HDF5 and MCAP, as far as this file goes: readers have tests of their own ---------------------------------------


def test_of_an_hdf5_file_that_is_cut_the_groups_before_remain(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "d.hdf5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_group("data")
        data.attrs.update({"env_args": "{}", "total": 60})
        groups = [data.create_group(f"demo_{n}") for n in range(3)]
        file.flush()
        for n, group in enumerate(groups):
            group.create_dataset("actions", data=np.full((20, 50), n, np.float64), chunks=(5, 50) if n == 1 else None)
            file.flush()
        file["mask/train"] = np.array(["demo_0", "demo_2"], "S")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(np.full(50, 2.0).tobytes()) + 400])
    losses: list[str] = []
    (tmp_path / "t").mkdir()
    with h5py.File(module._repair_hdf5(path, tmp_path / "t", losses.append)) as file:
        assert sorted(file["data"]) == ["demo_0", "demo_1"] and file["data"].attrs["total"] == 40
        assert all((file[f"data/demo_{n}/actions"][:] == n).all() for n in (0, 1))
    assert any("demo_2" in loss for loss in losses)


def test_messages_before_the_cut_of_an_mcap(shared, tmp_path):
    pytest.importorskip("mcap")
    from mcap.reader import make_reader

    source = shared / "fixtures/broken/mcap_truncated.mcap"
    losses: list[str] = []
    mended = module._repair_mcap(source, tmp_path, losses.append)
    with open(mended, "rb") as file:
        count = make_reader(file).get_summary().statistics.message_count
        n_messages = sum(1 for _ in make_reader(file).iter_messages())
    assert count == n_messages > 0 and f"after {count} messages" in losses[0]


@pytest.mark.parametrize("damage", [b"211.5", None])
def test_an_mcap_with_a_changed_number_is_read_until_its_chunk(tmp_path, damage):
    """Its checksum is wrong. Records of metadata are kept. The proposed mapping makes the task of them."""
    mcap = pytest.importorskip("mcap.writer")
    path = tmp_path / "run.mcap"
    with open(path, "wb") as out:
        writer = mcap.Writer(out, chunk_size=2000, compression=mcap.CompressionType.NONE)
        writer.start()
        writer.add_metadata("about", {"task": "pour"})
        schema = writer.register_schema("numbers", "jsonschema", b"{}")
        topics = [writer.register_channel(topic, "json", schema) for topic in ("/state", "/command", "/silent")]
        for i in range(200):
            for topic in topics[:2]:
                writer.add_message(topic, i * 10**8, json.dumps({"v": [111.5 + i, 2.0]}).encode(), i * 10**8)
        writer.finish()
    if damage is not None:
        whole = bytearray(path.read_bytes())
        whole[whole.index(damage)] = ord("9")
        path.write_bytes(whole)
    with recover(path) as recovered:
        [states], [tasks] = ([e.steps[name] for e in recovered.data] for name in (STATE, "task"))
        n, topics = len(states), [topic["name"] for topic in recovered.data.metadata["topics"]]
        assert 70 < n <= 100 if damage else n == 200
        assert states[:, 0].tolist() == (111.5 + np.arange(n)).tolist() and set(tasks) == {"pour"}
        assert topics == ["/state", "/command", "/silent"]
        assert ["CRCValidationError" in problem for problem in recovered.problems] == [True] * bool(damage)


@pytest.mark.parametrize("name, whole, lost", [
    ("lerobot_truncated_mp4", [0], "after 5 frames"), ("lerobot_episodes_without_footer", [0, 1, 2], "episode 3"),
    ("lerobot_missing_video", [0, 1, 3], "episode 2"), ("lerobot_image_not_png", [1, 2, 3], "frame 4"),
    ("lerobot_wrong_length", [0, 1, 2, 3], ""),
    ("lerobot_v21_missing_episode", [0, 1, 3], "episode_000002")])
def test_the_broken_files_of_others(shared, tmp_path, capsys, name, whole, lost):
    manifest = json.loads((shared / "fixtures/broken/MANIFEST.json").read_text())
    original = open_dataset(shared / "fixtures" / manifest[name]["copy_of"])
    shutil.copytree(shared / "fixtures/broken" / name, tmp_path / "d")
    before = kept(tmp_path / "d")
    assert main(["repair", str(tmp_path / "d"), "--out", str(tmp_path / "out")]) == 0
    assert lost in capsys.readouterr().err and kept(tmp_path / "d") == before
    repaired = open_dataset(tmp_path / "out")
    assert len(repaired) == len(whole)
    for e, n in zip(repaired, whole, strict=True):
        for column in ("observation.state", "action"):
            np.testing.assert_array_equal(e.steps[column], original[n].steps[column])


# -- every other format: what is broken is left out, and what remains is as it was ---------------------------------


def some(count: int = 3) -> Dataset:
    return Dataset([Episode({STATE: np.float32([[n, t] for t in range(4 + n)]),
                             "action": np.float32([[n - t] for t in range(4 + n)])}) for n in range(count)])


def rescued(path: Path, tmp_path: Path, capsys, numbers: list[int], *said: str) -> None:
    before = kept(path)
    assert main(["repair", str(path), "--out", str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert all(s in err for s in said) and "understudy-" not in err and "Traceback" not in err, err
    assert kept(path) == before
    repaired, whole = open_dataset(tmp_path / "out"), some(max(numbers) + 1)
    assert len(repaired) == len(numbers)
    for e, n in zip(repaired, numbers, strict=True):
        for name in (STATE, "action"):
            np.testing.assert_array_equal(np.asarray(e.steps[name])[:4 + n], whole[n].steps[name])


@pytest.mark.parametrize("to, ending", [("act", ".hdf5"), ("csv", ".csv"), ("npz-folder", ".npz")])
def test_a_folder_with_a_bad_first_file(tmp_path, capsys, to, ending):
    pytest.importorskip("h5py")
    path = tmp_path / "d"
    if to == "npz-folder":
        path.mkdir()
        for n, e in enumerate(some()):
            np.savez(path / f"episode_{n}.npz", state=e.steps[STATE], action=e.steps["action"])
    else:
        write_dataset(some(), path, to)
    first = sorted(path.glob(f"*{ending}"))[0]
    first.write_bytes(b"\0" * 50 if to == "csv" else first.read_bytes()[: first.stat().st_size // 3])
    rescued(path, tmp_path, capsys, [1, 2], f"lost: {path}", first.name)


@pytest.mark.parametrize("to", ["robomimic", "minari"])
def test_a_group_that_does_not_go_with_the_others(tmp_path, capsys, to):
    """The first one: the reader takes it for the measure of the others."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / ("d.hdf5" if to == "robomimic" else "d")
    write_dataset(some(), path, to)
    file, group = (path, "data/demo_0") if to == "robomimic" else (path / "data/main_data.hdf5", "episode_0")
    with h5py.File(file, "r+") as f:
        values = f[f"{group}/actions"][:]
        del f[f"{group}/actions"]
        f[f"{group}/actions"] = np.repeat(values, 2, axis=1)
    rescued(path, tmp_path, capsys, [1, 2], group.rsplit("/")[-1], "action is not as in the others")


def test_a_minari_file_that_is_cut(tmp_path, capsys):
    """Its groups before the cut are there, where the index is."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "d"
    write_dataset(some(), path, "minari")
    file = path / "data/main_data.hdf5"
    with h5py.File(tmp_path / "new.hdf5", "w", libver="latest") as to, h5py.File(file) as of:
        to.attrs.update(of.attrs)
        groups = [to.create_group(name) for name in of]
        to.flush()
        for group in groups:
            group.attrs.update(of[group.name].attrs)
            for key in of[group.name]:
                of.copy(f"{group.name}/{key}", group)
                to.flush()
    whole = (tmp_path / "new.hdf5").read_bytes()
    file.write_bytes(whole[:-60])
    rescued(path, tmp_path, capsys, [0, 1], "bytes are missing", "episode_2")


def test_chunks_and_ends_of_zarr(tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "d.zarr"
    whole = some(4)
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for key, name in (("state", STATE), ("action", "action")):
        values = np.concatenate([e.steps[name] for e in whole])
        group.create_array(f"data/{key}", data=values, chunks=(2, values.shape[1]))
    group.create_array("meta/episode_ends", data=np.int64([4, 9, 15, 40]))  # rows 15 to 21 are the last
    (path / "data/state/3.0").unlink()  # rows 6 and 7
    rescued(path, tmp_path, capsys, [0, 2], "episode 1: a chunk of data/state is missing",
            "episode 3: meta/episode_ends says that it ends at row 40, of 22", "what lies behind row 14")


def test_records_and_shards_of_rlds(shared, tmp_path, capsys):
    pytest.importorskip("google_crc32c")
    path = tmp_path / "closed_form/1.0.0"
    shutil.copytree(shared / "fixtures/rlds/tfrecord/closed_form/1.0.0", path)
    whole = open_dataset(path)
    next(path.glob("*-train.tfrecord-00000-of-*")).unlink()
    assert main(["repair", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "train.tfrecord-00000" in (err := capsys.readouterr().err) and "the file is missing" in err
    repaired = open_dataset(tmp_path / "out")
    states = [e.steps[STATE].tobytes() for e in whole]
    assert 0 < len(repaired) < len(whole) and all(e.steps[STATE].tobytes() in states for e in repaired)


@pytest.mark.parametrize("name, count, said", [
    ("act_short_qpos.hdf5", None, "it has 4 rows instead of 5, as action has"),
    ("plain_object.npz", None, "pickle"), ("rlds_crc", 3, "its checksum is wrong"),
    ("rlds_truncated", 3, "cut short or damaged"), ("robomimic_lengths.hdf5", 3, "demo_0: "),
    ("zarr_episode_ends", 3, "episode 3"), ("mcap_truncated.mcap", 1, "after 24 messages"),
    ("rosbag_truncated.bag", 1, ""), ("robomimic_total.hdf5", 4, "")])
def test_the_broken_files_of_every_format(shared, tmp_path, capsys, name, count, said):
    for library in ("h5py", "zarr", "mcap", "rosbags", "google_crc32c"):
        pytest.importorskip(library)
    source = shared / "fixtures/broken" / name
    before = kept(source)
    assert main(["repair", str(source), "--out", str(tmp_path / "out")]) == (2 if count is None else 0)
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and kept(source) == before
    assert (tmp_path / "out").exists() == (count is not None)
    if count is not None:
        assert len(open_dataset(tmp_path / "out")) == count


@pytest.mark.parametrize("to", ["minari", "act"])
def test_what_was_kept_beside_the_data_goes_with_the_episodes_that_remain(tmp_path, capsys, to):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "d"
    data = Dataset([Episode({STATE: np.float32([[n, t] for t in range(5 + n)]),  # a row after the last action
                             "action": np.float32([[n - t] for t in range(4 + n)]),
                             "operator.mood": np.array([f"mood {n} {t}" for t in range(4 + n)])},
                            {"tired": n / 10}) for n in range(3)], {"fps": 7.5})
    write_dataset(data, path, to)
    file, removed = ((path / "data/main_data.hdf5", "episode_1/actions") if to == "minari" else
                     (sorted(path.glob("*.hdf5"))[1], "action"))
    with h5py.File(file, "r+") as f:
        del f[removed]
    assert main(["repair", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "understudy.npz" not in capsys.readouterr().err
    repaired = open_dataset(tmp_path / "out")
    assert repaired.fps == 7.5 and [e.metadata["tired"] for e in repaired] == [0.0, 0.2]
    for e, n in zip(repaired, (0, 2), strict=True):
        for name in (STATE, "action", "operator.mood"):
            np.testing.assert_array_equal(np.asarray(e.steps[name]), data[n].steps[name])
    beside = path / "understudy.npz"
    beside.write_bytes(beside.read_bytes()[:-40])
    assert main(["repair", str(path), "--out", str(tmp_path / "less")]) == 0
    assert f"lost: {beside}: what was kept next to the data" in capsys.readouterr().err
    assert len(open_dataset(tmp_path / "less")) == 2


@pytest.mark.parametrize("to", ["minari", "csv"])
def test_what_was_kept_beside_the_data_is_given_to_no_other_episode_where_one_is_missing(tmp_path, capsys, to):
    h5py = pytest.importorskip("h5py")
    path, out = tmp_path / "d", tmp_path / "out"
    write_dataset(Dataset([Episode({STATE: np.full((5, 1), n, np.float32), "action": np.zeros((5, 1), np.float32),
                                    "operator.mood": np.array([f"mood {n}"] * 5)}, {"tired": [n]}) for n in range(3)]),
                  path, to)
    if to == "minari":
        with h5py.File(path / "data/main_data.hdf5", "r+") as f:
            del f["episode_1"]
    else:
        (path / "episode_000001.csv").unlink()
    assert main(["repair", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"lost: {path / 'understudy.npz'}: what was kept next to the data cannot be assigned" in said
    assert to == "minari" or "lost: there are 2 files, but dataset.json says 3 episodes" in said
    repaired = open_dataset(out)
    assert [e.steps[STATE][0, 0] for e in repaired] == [0, 2] and not any("tired" in e.metadata for e in repaired)


def test_a_d4rl_file_that_does_not_say_where_episodes_end(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "d.hdf5", "w") as f:
        f["observations"], f["actions"] = np.arange(12.0).reshape(6, 2), np.arange(6.0)[:, None]
        f["rewards"], f["terminals"] = np.zeros(6), np.zeros(6, bool)
    assert main(["repair", str(tmp_path / "d.hdf5"), "--out", str(tmp_path / "no")]) == 2
    assert main(["repair", str(tmp_path / "d.hdf5"), "--out", str(tmp_path / "out"), "--max-episode-steps", "3"]) == 0
    assert [len(e) for e in open_dataset(tmp_path / "out")] == [3, 3]


@pytest.mark.parametrize("name", ["lerobot_missing_video", "lerobot_v21_missing_episode", "robomimic_lengths.hdf5", ""])
def test_what_cannot_be_opened_names_the_command_that_saves_the_rest(shared, tmp_path, capsys, name):
    h5py = pytest.importorskip("h5py")
    source = shared / "fixtures/broken" / name if name else tmp_path / "demos.hdf5"
    if not name:
        write_dataset(Dataset([episode(i, 4 + i) for i in range(4)]), source)
        with h5py.File(source, "a") as file:
            del file["data/demo_1/actions"]
    assert main(["inspect", str(source)]) == 2
    assert f"understudy repair {source} --out DST" in capsys.readouterr().err
    assert main(["repair", str(source), "--out", str(tmp_path / "saved")]) == 0
    assert len(open_dataset(tmp_path / "saved")) == 3
