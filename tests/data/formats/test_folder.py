"""Folders of one file per episode, as npz or csv."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from fixtures.array_files import is_closed, read_all, refused
from fixtures.contract_data import demonstrations

from understudy.audit import find_problems
from understudy.core import UserError
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.video import encode_png

STATE, ACTION = "observation.state", "action"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


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
    ("state,action\n\"1,2\n", ["this is not a table of text"])])
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


@pytest.mark.parametrize("number, dtype", [(0.7, "int64"), (300, "uint8"), (-1, "uint8"), (np.nan, "int32")])
def test_numbers_that_do_not_fit_the_declared_type_are_refused_and_not_cut(number, dtype, tmp_path):
    np.savez(tmp_path / "0.npz", state=np.array([[1.0, 2], [3, number], [4, 5]]), action=np.float64([[0.1]] * 3))
    declared = {STATE: {"dtype": dtype, "shape": [2]}, ACTION: {"dtype": "float32", "shape": [1]}}
    (tmp_path / "dataset.json").write_text(json.dumps({"features": declared}))
    refused(tmp_path, f"{STATE}, row 1: {dtype} does not hold {float(number)}")
    np.savez(tmp_path / "0.npz", state=np.array([[1.0, 2], [3, 4]]), action=np.float64([[0.1]] * 2))
    steps = open_dataset(tmp_path)[0].steps
    assert steps[STATE].tolist() == [[1, 2], [3, 4]] and (steps[ACTION] == np.float32(0.1)).all()


def _jpeg(gray: int) -> bytes:
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 16, 16, "yuvj420p", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), gray, np.uint8), format="rgb24")
    return b"".join(bytes(p) for p in (*codec.encode(frame.reformat(format="yuvj420p")), *codec.encode(None)))


def test_frames_next_to_a_table_may_be_jpeg_and_are_read_again_once_they_change(tmp_path):
    folder, camera = _csv(tmp_path / "d", "state,action\n1,2\n3,4\n"), tmp_path / "d" / "episode_0" / "front"
    camera.mkdir(parents=True)
    for i in (0, 1):
        (camera / f"{i}.jpg").write_bytes(_jpeg(100 * i))
    before = open_dataset(folder)
    frames = np.asarray(before[0].steps["observation.images.front"])
    assert abs(frames.mean((1, 2, 3)) - (0, 100)).max() < 3
    (camera / "1.jpg").write_bytes(_jpeg(90))
    assert open_dataset(folder).source.key != before.source.key  # decoded frames in the cache have this key
    (folder / "episode_0.mp4").touch()
    (finding,) = (f for f in find_problems(open_dataset(folder)) if "videos are not read: episode_0.mp4" in f.message)
    assert finding.severity == "warning"


def test_depth_of_16_bits_next_to_a_table_keeps_its_values(tmp_path):
    folder, camera = _csv(tmp_path / "d", "state,action\n1,2\n3,4\n"), tmp_path / "d" / "episode_0" / "depth"
    camera.mkdir(parents=True)
    depth = np.arange(1000, 1000 + 2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16, 1)
    for i in (0, 1):
        (camera / f"{i}.png").write_bytes(encode_png(depth[i]))
    data = open_dataset(folder)
    assert data.features()["observation.images.depth"].kind == "depth"
    np.testing.assert_array_equal(data[0].steps["observation.images.depth"], depth)


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


@pytest.mark.parametrize("kinds, text", [
    ((np.uint8, np.uint16), "1.png: the image is gray of 16 bits, such as depth, but uint8 is to be read"),
    ((np.uint16, np.uint8), "1.png: the image is not gray of 16 bits, but uint16 is to be read")])
def test_frames_of_8_and_of_16_bits_are_not_mixed(kinds, text, tmp_path):
    folder, camera = _csv(tmp_path / "d", "state,action\n1,2\n3,4\n"), tmp_path / "d" / "episode_0" / "front"
    camera.mkdir(parents=True)
    for i, kind in enumerate(kinds):
        channels = 3 if kinds[0] is np.uint8 and i == 0 else 1
        (camera / f"{i}.png").write_bytes(encode_png(np.full((16, 16, channels), 200, kind)))
    episode = open_dataset(folder)[0]
    with pytest.raises(UserError, match=text):
        episode.steps[next(name for name in episode.steps if "front" in name)]


@pytest.mark.parametrize(("keys", "column"), [
    (("state", "observation.state"), "observation.state"), (("obs", "state"), "observation.state"),
    (("actions", "action"), "action"), (("rewards", "next.reward"), "next.reward")])
def test_arrays_that_would_be_one_column_are_refused(keys, column, tmp_path):
    arrays = {"observation.state": np.zeros((5, 2)), "action": np.zeros((5, 1)), **dict.fromkeys(keys, np.ones((5, 1)))}
    if column in arrays and column not in keys:
        del arrays[column]
    np.savez(tmp_path / "episode_0.npz", **arrays)
    with pytest.raises(UserError, match=rf"episode_0.npz, \w.*: .* and .* are both the column {column}") as caught:
        open_dataset(tmp_path)
    assert all(key in str(caught.value) for key in keys)
