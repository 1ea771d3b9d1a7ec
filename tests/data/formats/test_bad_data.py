"""What is wrong with files: one message each, that says what was expected, what was found, where, and what to do."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.lerobot_files import ENDS, LEROBOT, closed, flat_arrays
from folders import TESTS

from understudy.audit import find_problems
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import check_finite, detection, lerobot, open_dataset
from understudy.data.formats.parts.read_errors import first_line

IMAGES = "v3.0/images"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy(tmp_path):
    def make(folder=IMAGES) -> Path:
        shutil.copytree(LEROBOT / folder, tmp_path / "data")
        return tmp_path / "data"
    return make


def read_all(path) -> None:
    for episode in open_dataset(path):
        for name in episode.steps:
            episode.steps[name]


def refused(path, *parts) -> str:
    """The one message; it must hold each of `parts` and name the file."""
    with pytest.raises(UserError) as error:
        read_all(path)
    text = str(error.value)
    for part in parts:
        assert part in text, text
    assert str(path) in text and "\n  -> " in text
    return text


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_parquet(file, change):
    """`change` gets the columns as lists; the schema stays."""
    table = pq.read_table(file)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), file)


# -- what it is -----------------------------------------------------------------------------------------------------


def _zip(names) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return out.getvalue()


KINDS = {
    "a.txt": ("schön, ä".encode() * 20, "a text file"),
    "empty": (b"", "an empty file"),
    "a.parquet": (b"PAR1....", "a single parquet file"),
    "a.npy": (b"\x93NUMPY\x01\x00", "a single NumPy array"),
    "a.pkl": (b"\x80\x04\x95", "a pickle, which could run any code and is never loaded"),
    "a.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a file of an unknown kind"),
    "a.hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "the HDF5 file cannot be read"),
    "flat.npz": (_zip(["observations.npy", "actions.npy", "terminals.npy"]), "terminals do not say where"),
    "old.npz": (_zip(["obs.npy", "acts.npy", "indices.npy"]), "this is not a NumPy array"),
    "other.npz": (_zip(["x.npy"]), "an .npz without episode_ends; it holds x"),
    "zarr.zip": (_zip([".zgroup", "data/.zgroup"]), "a zipped zarr store"),
    "zip.zip": (_zip(["readme"]), "a zip file without arrays"),
    "nothing.zip": (_zip([]), "a zip file without arrays"),
    "cut.npz": (_zip(["x.npy"])[:40], "the zip file cannot be read"),
    "minari/data/metadata.json": (b"{}", "data/main_data.hdf5: the file is missing"),
    "minari2/metadata.json": (b'{"data_format": "hdf5"}', "main_data.hdf5: the file is missing"),
    "rlds/features.json": (b"{}", "RLDS"),
    "zarr/.zgroup": (b"{}", "zarr"),
    "zarr3/zarr.json": (b"{}", "zarr"),
    "hf/state.json": (b"{}", "state.json, _data_files: these are not different names of files"),
    "old/meta_data/info.json": (b"{}", "LeRobot 1.x"),
    "folder/notes.md": (b"", "a folder without meta/info.json, which holds notes.md"),
    "none/.hidden": (b"", "an empty folder"),
    "table.csv": (b"a,b,c\n1,2,3\n", "a table without a column action; it holds a, b, c"),
    "excel.csv": (b"a;b;c\n1,5;2;3\n", "a table without a column action; it holds a, b, c"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_other_kind_is_said_by_name(name, tmp_path):
    content, kind = KINDS[name]
    file = tmp_path / "in" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    if name.startswith(("rlds", "hf")):
        (file.parent / "dataset_info.json").write_text("{}")
        (file.parent / "data.arrow").write_text("")
    text = refused(tmp_path / "in" / name.split("/")[0], kind)
    assert "understudy" in text or "numpy.savez" in text or "copy" in text or "convert" in text or "name one" in text


@pytest.mark.parametrize(("name", "hint"), [
    ("empty", "check the path, or take it from a copy"),
    ("none/.hidden", "understudy record ENV --out DATA makes a data set"),
    ("other.npz", "-> save observations, actions and episode_ends with numpy.savez"),
    ("table.csv", "-> say what its columns are: understudy convert {path} DATA --columns state=A,B action=C,D"),
    ("excel.csv", "--columns state=A,B")])
def test_the_hint_is_for_what_is_there(name, hint, tmp_path):
    file = tmp_path / "in" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(KINDS[name][0])
    path = tmp_path / "in" / name.split("/")[0]
    assert "RLDS" not in refused(path, hint.format(path=path))


@pytest.mark.parametrize(("names", "do"), [
    (("obs", "acts", "ends", "reward"),
     "save acts as actions, ends as episode_ends, obs as observations, reward as rewards"),
    (("observatons", "actions"), "save observatons as observations, and give episode_ends"),
    (("observations", "actions", "dones"), "save dones as terminals, and give episode_ends"),
    (("obs", "observations", "ends"), "save ends as episode_ends")])
def test_arrays_of_other_names_are_told_the_right_ones(names, do, tmp_path):
    path = tmp_path / "d.npz"
    path.write_bytes(_zip([f"{name}.npy" for name in names]))
    text = refused(path, f"there is no array episode_ends; there are {', '.join(sorted(names))}", f"-> {do}")
    assert "obs as" not in text or "observations" not in names


def test_nothing_there(tmp_path):
    refused(tmp_path / "nowhere", "there is no such file or folder")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "an empty folder")


def test_a_name_of_the_hub_is_told_its_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("lerobot/pusht", "looks like the name of a data set on the Hugging Face hub", "hf://datasets/lerobot/pusht")
    (tmp_path / "lerobot").mkdir()  # then it is a place of one's own
    with pytest.raises(UserError, match="there is no such file or folder\n  -> check the path"):
        read_all("lerobot/pusht")
    for path in ("runs/mine.npz", "nowhere", "a/b/c", "../b", "./b"):
        with pytest.raises(UserError, match="there is no such file or folder\n  -> check the path"):
            read_all(path)


@pytest.mark.parametrize("pattern, kind", [
    ("*/SOURCE.md", "text file")])
def test_real_files_of_other_kinds(pattern, kind, shared):
    paths = list((shared / "fixtures").glob(pattern))
    assert paths
    for path in paths:
        with pytest.raises(UserError, match=kind):
            detection.detect_format(path)


# -- LeRobot --------------------------------------------------------------------------------------------------------

FAULTS = {
    "lerobot_truncated_mp4": "the video file is damaged|there is no frame at",
    "lerobot_parquet_without_footer": "file-000.parquet: the Parquet file cannot be read",
    "lerobot_episodes_without_footer": "chunk-001/file-001.parquet: the Parquet file cannot be read",
    "lerobot_episode_gap": "the 4 episodes have the numbers 0, 1, 3, 7",
    "lerobot_wrong_length": "episode 0, length: it is 6, but .* is 5",
    "lerobot_missing_video": r"chunk-001/file-000.mp4: the metadata name this file, but it is missing",
    "lerobot_image_not_png": "episode 0, frame 4, observation.images.top: the value is not a PNG or JPEG image",
    "lerobot_v21_missing_episode": "episode_000002.parquet: the metadata name this file, but it is missing",
}
DOUBTS = {
    "lerobot_nan_action": r"action: 1 value not finite, the first is action\[0\] of episode 2, step 1",
    "lerobot_wrong_fps": r"timestamps are 0.1 s apart \(10 a second\), fps says 30",
    "lerobot_timestamp_jitter": "timestamps of 1 episode are uneven, the first at episode 3, step 5",
    "lerobot_totals": "info.json says 5 episodes and 30 frames, the episode tables say 4 and 22",
    "lerobot_bad_stats": "action: meta/stats.json disagrees with the data",
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_files_of_lerobot(name, shared):
    with pytest.raises(UserError, match=FAULTS[name]):
        read_all(shared / "fixtures/broken" / name)


def warned(path):
    """What `inspect` shows."""
    return [f.message for f in find_problems(open_dataset(path), path)]


@pytest.mark.parametrize("name", DOUBTS)
def test_doubts_about_files_of_lerobot(name, shared):
    import re

    warnings, sound = warned(shared / "fixtures/broken" / name), warned(LEROBOT / IMAGES)
    new = [w for w in warnings if w not in sound]
    assert len(new) == 1 and re.search(DOUBTS[name], new[0])


def test_inspect_counts_the_frames_of_a_video(shared):
    cut = warned(shared / "fixtures/broken/lerobot_truncated_mp4")
    assert sum("it is damaged" in w for w in cut) == 1
    for sound in ("v3.0/video_av1", "v3.0/video_h264", "v2.1/video", "v3.0/video_many_files"):
        warnings = warned(shared / "fixtures/lerobot" / sound)
        assert not any("damaged" in w for w in warnings)


def test_all_broken_files_are_met(shared):
    assert {p.name for p in (shared / "fixtures/broken").glob("lerobot_*")} == FAULTS.keys() | DOUBTS.keys()


def _data(path):
    return path / "data/chunk-000/file-000.parquet"


def _episodes(path):
    return path / "meta/episodes/chunk-000/file-000.parquet"


def test_a_row_that_names_a_task_which_the_metadata_lack(copy):
    path = copy()
    edit_parquet(_data(path), lambda c: c["task_index"].__setitem__(7, 9))
    refused(path, "file-000.parquet, episode 2, frame 1", "task_index 9 is not among the tasks in meta (0, 1)")


def test_a_row_that_names_an_episode_which_the_metadata_lack(copy):
    path = copy()
    edit_parquet(_data(path), lambda c: c["episode_index"].__setitem__(21, 9))
    refused(path, "episode 3, frame 11", "episode_index is 9 instead of 3")


def test_a_row_out_of_order(copy):
    path = copy()
    edit_parquet(_data(path), lambda c: c["frame_index"].__setitem__(3, 8))
    refused(path, "episode 0, frame 3", "frame_index is 8 instead of 3")


def test_an_episode_that_names_a_file_which_is_not_there(copy):
    path = copy()
    edit_parquet(_episodes(path), lambda c: c["data/file_index"].__setitem__(3, 5))
    refused(path, "file-005.parquet", "the metadata name this file, but it is missing")


def test_fewer_rows_than_the_metadata_say(copy):
    path = copy()
    table = pq.read_table(_data(path))
    pq.write_table(table.slice(0, 20), _data(path))
    refused(path, "it has 20 rows, but the metadata say 22")


def test_a_column_that_is_missing_or_of_another_shape(copy, tmp_path):
    path = copy()
    table = pq.read_table(_data(path))
    pq.write_table(table.drop_columns(["action"]), _data(path))
    refused(path, "there is no column 'action'; there are")
    pq.write_table(table, _data(path))
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = [3]
    edit_json(path / "meta/info.json", features=info["features"])
    refused(path, "22 rows have 44 numbers, but the shape (3,) needs 3")


def test_rows_of_different_lengths_that_add_up(copy):
    path = copy("v3.0_converted/images")  # whose vectors are lists of any length
    edit_parquet(_data(path), lambda c: c["action"].__setitem__(slice(0, 2), [[0.0], [0.0, 0.0, 0.0]]))
    refused(path, "file-000.parquet, action", "the rows have from 1 to 3 values")


@pytest.mark.parametrize("change, message", [
    ({"codebase_version": "v4.0"}, "LeRobot v4.0 is not read"),
    ({"fps": 0}, "fps must be above 0, but is 0"), ({"fps": None}, "the key 'fps' is missing or wrong: None"),
    ({"data_path": "../../{chunk_index}/{file_index}"}, "is outside the data set"),
    ({"data_path": "data/{episode}.parquet"}, "is not a pattern of chunk_index, file_index"),
    # Python's formats would fill gigabytes with spaces, or read attributes.
    ({"data_path": "data/{chunk_index:9999999999d}.parquet"}, "is not a pattern of chunk_index, file_index"),
    ({"data_path": "data/{file_index:03d}{chunk_index.__class__}"}, "is not a pattern of chunk_index, file_index"),
    ({"data_path": "data/{file_index!r:>99999999}"}, "is not a pattern of chunk_index, file_index"),
    ({"features": {"action": {"dtype": "object", "shape": [2]}}}, "the dtype 'object' is not"),
    ({"features": {"action": {"dtype": "float32", "shape": [0]}}}, "the shape [0] has numbers that are not above 0"),
    ({"features": {"action": [2]}}, "this is not an object with dtype and shape")])
def test_info_json_that_makes_no_sense(change, message, copy):
    path = copy()
    edit_json(path / "meta/info.json", **change)
    refused(path, message)


def test_metadata_that_are_no_json_or_not_there(copy):
    path = copy()
    (path / "meta/tasks.parquet").unlink()
    refused(path, "meta/tasks.parquet", "the file is missing")
    (path / "meta/info.json").write_text('{"fps": 10,')
    refused(path, "meta/info.json", "the file cannot be read as JSON, line 1")


def test_v21_metadata_that_are_cut_short(copy):
    path = copy("v2.1/images")
    lines = (path / "meta/episodes.jsonl").read_text()
    (path / "meta/episodes.jsonl").write_text(lines[:-20])
    refused(path, "meta/episodes.jsonl", "line 4 is not a JSON object")
    (path / "meta/episodes.jsonl").write_text("\n".join(lines.splitlines()[1:]))
    refused(path, "this is not episode 0 with its length")


def test_a_video_that_ends_early(copy):
    """Whole to its container, but without the last frames."""
    path = copy("v3.0/video_many_files")
    videos = path / "videos/observation.images.top"
    shutil.copy(videos / "chunk-000/file-000.mp4", videos / "chunk-001/file-001.mp4")  # 5 frames in place of 12
    refused(path, "chunk-001/file-001.mp4, episode 3, frame 5", "there is no frame at 0.5000 s")


def test_no_episodes(copy, tmp_path):
    path = copy("v2.1/images")
    (path / "meta/episodes.jsonl").write_text("")
    refused(path, "the data set has no episodes")
    with pytest.raises(UserError, match="there are no episodes"):
        lerobot.write(Dataset([]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_yet_is_left_out_and_said(copy):
    path = copy("v3.0/video_av1")
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.images.top"]["info"]["video.is_depth_map"] = True
    edit_json(path / "meta/info.json", features=info["features"], color="red")
    data = open_dataset(path)
    assert "observation.images.top" not in data.features()
    assert data.metadata["warnings"] == [
        "meta/info.json: unknown keys color are ignored",
        "observation.images.top: depth video cannot be read yet; the column is left out"]


# -- writing --------------------------------------------------------------------------------------------------------


_FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from fixtures.lerobot_files import closed
from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset
from understudy.data.formats import lerobot
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    if sys.argv[3] == "read":
        open_dataset(sys.argv[1], image_size=64)
    else:
        lerobot.append(sys.argv[1], closed(images=True), images=sys.argv[3])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("images, limit", [
    ("png", 40_000), pytest.param("video", 3000, marks=pytest.mark.slow),
    pytest.param("png", 3000, marks=pytest.mark.slow), pytest.param("read", 40_000, marks=pytest.mark.slow)])
def test_a_disk_that_is_full(images, limit, tmp_path):
    """The system refuses larger files, which is how a full disk shows, too."""
    path = tmp_path / "data"
    lerobot.append(path, closed(images=True), images=images if images != "read" else "png")
    before, prints = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}, open_dataset(path).fingerprint()
    code = _FULL.format(tests=str(TESTS))
    process = subprocess.run([sys.executable, "-c", code, str(path), str(limit), images], capture_output=True,
                             text=True,
                             timeout=100)
    assert "the disk is full" in process.stdout and "\n  -> free some space" in process.stdout, process.stderr
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert open_dataset(path).fingerprint() == prints


def test_episodes_that_differ_are_not_written(tmp_path):
    data = closed()
    for columns, message in (
            ({"extra": np.zeros(12)}, "episode 3, column 'extra'"), ({"next.reward": None}, "column 'next.reward'"),
            ({"next.reward": np.zeros(12)}, r"a step is float64 \(\) instead of float32 \(\)"),
            ({"next.reward": np.zeros(14, np.float32)}, "there are 14 rows instead of 12, or one more")):
        with pytest.raises(UserError, match=message):
            lerobot.write(Dataset([*data[:3], data[3].replace(columns)]), tmp_path / "out")
    with pytest.raises(UserError, match="column 'a/b'.*without '/'"):
        lerobot.append(tmp_path / "out", Dataset([data[0].replace({"a/b": np.zeros(5)})]))
    with pytest.raises(UserError, match="images must be video, av1, h264 or png, not 'gif'"):
        lerobot.write(data, tmp_path / "out", images="gif")
    assert list(tmp_path.iterdir()) == []


# -- npz ------------------------------------------------------------------------------------------------------------


def _save(path, **changes):
    flat = flat_arrays()
    arrays = {"observations": flat["state"], "actions": flat["action"], "episode_ends": ENDS, **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


_NEXT = np.concatenate([flat_arrays()["state"][1:], flat_arrays()["state"][:1]])


@pytest.mark.parametrize("changes, parts", [
    ({"rewards": np.zeros(21)}, ["rewards", "it has 21 rows instead of 22 rows (steps), 26", "or 4 (episodes)"]),
    ({"observation.none": np.zeros((22, 0))}, ["observation.none", "has no components"]),
    ({"rewards": np.array(3)}, ["rewards", "it is a single value"]),
    ({"fps": np.array(0)}, ["d.npz, fps", "the steps per second must be a number above 0, not 0"]),
    ({"fps": np.array("ten")}, ["d.npz, fps", "the steps per second must be a number above 0, not ten"]),
    ({"notes": np.array([{}, 1, 2, 3], object)}, ["notes", "Python objects (a pickle), which are never loaded"]),
    ({"observations": None}, ["there is no array observations; there are actions, episode_ends"]),
    ({"actions": None, "acts": np.zeros((22, 2))}, ["there is no array actions", "save acts as actions"]),
    ({"action": np.zeros((22, 1))}, ["action", "actions and action are both the column action"]),
    ({"episode_ends": np.array([5, 5, 10, 22])}, ["episode_ends[1]", "the ends must increase, but 5 follows 5"]),
    ({"episode_ends": np.array([5, 6, 10, 30])},
     ["episode_ends[3]", "the last end is 30, but there are 22 steps (rows of actions)"]),
    ({"episode_ends": ENDS - 1}, ["episode_ends[3]", "the last end is 21", "add 1 to each"]),
    ({"episode_ends": np.array([21])}, ["episode_ends[0]", "the last end is 21", "add 1"]),  # not a last row too many
    ({"actions": np.zeros((21, 2))}, ["d.npz, actions", "it has 21 rows instead of 22 rows (steps)"]),
    ({"observations": None, "obs": np.zeros((22, 3)), "dones": np.zeros(22)},
     ["there is no array observations", "save dones as terminals, obs as observations"]),
    ({"episode_ends": np.zeros(0, int)}, ["there are no episodes"]),
    ({"episode_ends": np.array([1.5, 22])}, ["it must be integers of shape (episodes,), but is float64 (2,)"]),
    ({"next_observations": _NEXT + 1}, ["next_observations, episode 0, step 0, component (0,)",
                                        "it is 2.0, but the next row of observations is 1.0"]),
    ({"next_observations": _NEXT[:, :2]}, ["the shape is (22, 2), but observations has (22, 3)"]),
    ({"times": np.zeros(22, "datetime64[s]")}, ["times", "it contains values of dtype datetime64[s]"]),
])
def test_npz_that_makes_no_sense(changes, parts, tmp_path):
    refused(_save(tmp_path / "d.npz", **changes), *parts)


def test_npz_cut_short(tmp_path):
    path = _save(tmp_path / "d.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "the zip file cannot be read")
    path.write_bytes(whole[:200] + bytes(40) + whole[240:])  # within the first array
    refused(path, "d.npz, observations", "the array cannot be read")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("notes", "observations", "episode_ends"):
        with pytest.raises(UserError, match="a pickle"):
            read_all(_save(tmp_path / "d.npz", **{name: np.array([Trap()] * 4, object)}))
    assert not (tmp_path / "sprung").exists()


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(value, tmp_path):
    data = closed()
    broken_action = data[2].steps["action"].copy()
    broken_action[1, 0] = value
    lerobot.write(Dataset([*data[:2], data[2].replace({"action": broken_action}), data[3]]), tmp_path / "out")
    read = open_dataset(tmp_path / "out")
    check_finite(read, ["observation.state", "next.reward", "next.terminated", "task"])
    with pytest.raises(UserError) as error:
        check_finite(read)
    assert str(error.value) == (f"{tmp_path / 'out'}, episode 2, step 1, action[0]: the value is not finite: "
                                f"{value}\n  -> correct the value, or leave the episode out")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())["action"]  # of what is finite; valid JSON
    assert all(np.isfinite(v).all() for v in stats.values())


def test_a_finite_data_set_passes():
    check_finite(closed(), ["action", "observation.state"])
    assert isinstance(closed()[0], Episode)


def test_the_message_of_a_library_keeps_its_quotes():
    assert first_line(zipfile.BadZipFile("Bad CRC-32 for file 'observations.npy'\nmore")) == (
        "Bad CRC-32 for file 'observations.npy'")
    assert first_line(KeyError("no such key")) == "no such key" and first_line(KeyError()) == "KeyError"
