"""Sources of columns, datasets over them, and the key maps of the array formats."""

import numpy as np
import pytest

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import act, d4rl, imitation, minari, npz, ogbench, open_dataset, robomimic, write_dataset
from understudy.data.formats.parts.key_map import KeyMap, common_arrays, end_flags
from understudy.data.formats.parts.npz_arrays import split_rows
from understudy.data.sources import ChunkedSource, DecodedFramesSource, MemmapSource, WrapperSource

LENGTHS = np.array([3, 1, 4])
ENDS = np.cumsum(LENGTHS)
STATE = np.arange(24, dtype=np.float32).reshape(8, 3)
IMAGE = Feature("uint8", (4, 4, 3), "image")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


class Streamed(MemmapSource):
    """Rows that come in two pieces, the second half first, and by number."""

    def __init__(self, key, done=None):
        self.path, self.key, self.lengths, self.streams = "demo.bin", key, LENGTHS, 0
        self.schema = {"observation.state": Feature("float32", (3,)), "next.terminated": Feature("bool", ()),
                       "task": Feature("string", (), "string")}
        self.row_counts = dict.fromkeys(self.schema, LENGTHS)
        self.done = np.isin(np.arange(8), ENDS - 1).astype(np.int64) if done is None else done

    def iter_chunks(self):
        self.streams += 1
        yield "observation.state", 5, STATE[5:]
        yield "next.terminated", 0, self.done
        yield "observation.state", np.array([4, 3, 2, 1, 0]), STATE[4::-1]

    def read_text(self, name, episode):
        return np.array([f"task {episode}"] * int(LENGTHS[episode]))


class Random(ChunkedSource):
    def __init__(self, key):
        self.path, self.key, self.lengths, self.reads = "demo.bin", key, LENGTHS, 0
        self.schema = {"observation.state": Feature("float32", (3,))}
        self.row_counts = {"observation.state": LENGTHS}

    def read_rows(self, files, name, episode, first, stop):
        self.reads += 1
        begin = int((ENDS - LENGTHS)[episode])
        return STATE[begin + first: begin + stop]


def test_numbers_are_streamed_once_into_memory_maps():
    source = Streamed("a" * 32)
    data = Dataset(source)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([e.steps["observation.state"] for e in data]), STATE)
    assert source.streams == 1 and data[1].steps["task"].tolist() == ["task 1"]
    assert data[0].steps["next.terminated"].dtype == bool
    again = Streamed("a" * 32)
    array, first, rows = Dataset(again, indices=[2, 0]).column("observation.state")
    assert again.streams == 0 and first.tolist() == [4, 0] and rows.tolist() == [4, 3]
    np.testing.assert_array_equal(array[4:], STATE[4:])


def test_a_flag_that_is_none_is_named_by_file_column_episode_and_row():
    done = np.zeros(8)
    done[6] = 0.5
    with pytest.raises(UserError) as error:
        Streamed("b" * 32, done).packed_column("next.terminated")
    assert str(error.value).startswith("demo.bin, next.terminated, episode 2, row 2: a flag must be 0 or 1, not 0.5")


def test_chunks_are_read_in_place_where_the_cache_is_too_small(monkeypatch):
    there = [e.steps["observation.state"].copy() for e in Dataset(Random("c" * 32))]
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "1e-9")
    small = Random("d" * 32)
    for e, column in zip(Dataset(small), there, strict=True):
        np.testing.assert_array_equal(e.steps["observation.state"], column)
    assert small.reads == 3


def test_reading_in_order_leaves_the_cache_empty(tmp_path):
    source = Random("e" * 32)
    states = [e.steps["observation.state"] for e in Dataset(source, indices=range(1, 3)).iterate_once()]
    np.testing.assert_array_equal(np.concatenate(states), STATE[3:])
    assert not (tmp_path / "cache").exists()


def test_a_wrapped_source_is_the_source_but_for_its_key():
    inner = Random("f" * 32)
    wrapped, other = WrapperSource(inner, 1), WrapperSource(inner, 2)
    assert len({inner.key, wrapped.key, other.key}) == 3
    np.testing.assert_array_equal(wrapped.packed_column("observation.state"), STATE)
    np.testing.assert_array_equal(wrapped.column("observation.state", 2), STATE[4:])


def test_frames_are_resized_once_and_other_columns_pass():
    image = np.repeat(np.arange(8, dtype=np.uint8), 48).reshape(8, 4, 4, 3)

    class Filmed(Random):
        def __init__(self, key):
            super().__init__(key)
            self.schema = {**self.schema, "observation.images.a": IMAGE}
            self.row_counts = dict.fromkeys(self.schema, LENGTHS)

        def read_rows(self, files, name, episode, first, stop):
            if name != "observation.images.a":
                return super().read_rows(files, name, episode, first, stop)
            begin = int((ENDS - LENGTHS)[episode])
            return image[begin + first: begin + stop]
    done = []
    small = DecodedFramesSource(Filmed("0" * 32), (2, 2), "demo.bin", lambda *said: done.append(said))
    assert small.schema["observation.images.a"].shape == (2, 2, 3) and done == [(3, 8), (4, 8), (8, 8)]
    np.testing.assert_array_equal(small.column("observation.images.a", 2), image[4:, :2, :2])
    np.testing.assert_array_equal(small.column("observation.state", 0), STATE[:3])


# -- datasets -------------------------------------------------------------------------------------------------------


def episodes(n=4):
    return [Episode({"observation.state": np.full((e + 2, 1), e, np.float32), "action": np.zeros((e + 1, 1))},
                    {"number": e}) for e in range(n)]


def test_a_dataset_is_a_source_and_indices():
    data = Dataset(Random("1" * 32), {"fps": 10}, [2, 0, 2])
    assert (len(data), data.lengths.tolist(), data.steps) == (3, [4, 3, 4], 11)
    assert data.select([1, 0]).source is data.source and data.select([1, 0]).indices == [0, 2]
    assert data[1:].indices == [0, 2] and data[-1:].lengths.tolist() == [4]
    kept = data.filter(lambda e: len(e) == 4)
    assert kept.source is data.source and kept.indices == [2, 2] and kept.fps == 10
    np.testing.assert_array_equal(kept[1].steps["observation.state"], STATE[4:])


def test_episodes_in_memory_stay_the_same_objects():
    episodes_in_memory = episodes()
    data = Dataset(episodes_in_memory)
    assert data[2] is episodes_in_memory[2] and data.select([3, 1])[0] is episodes_in_memory[3]
    assert data[1:][0] is episodes_in_memory[1]
    assert data.lengths.tolist() == [1, 2, 3, 4] and data.rows("observation.state").tolist() == [2, 3, 4, 5]
    assert data.column("observation.state") is None


def test_a_change_is_made_when_an_episode_is_asked_for():
    asked = []

    def change(episode):
        asked.append(episode.metadata["number"])
        return episode.replace({"action": episode.steps["action"] + 1})
    changed = Dataset(episodes()).map(change)
    part = changed[1:3]
    assert not asked and len(part) == 2
    assert part.lengths.tolist() == [2, 3] and asked == [1, 2]  # of these alone
    assert part[0].steps["action"].tolist() == [[1], [1]]


# -- key maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys, key, column, feature", [
    (act.KEYS, "observations/qpos", "observation.state", None),
    (act.KEYS, "observations/images/top", "observation.images.top", IMAGE),
    (act.KEYS, "observations/depth", "observation.depth", IMAGE),
    (act.KEYS, "base/velocity", "base.velocity", None),
    (robomimic.KEYS, "actions", "action", None),
    (robomimic.KEYS, "obs/wrist", "observation.images.wrist", IMAGE),
    (robomimic.KEYS, "obs/object", "observation.object", None),
    (robomimic.KEYS, "dones", "next.done", None),
    (d4rl.KEYS, "observations", "observation.state", None),
    (d4rl.KEYS, "infos/qpos", "infos.qpos", None),
    (d4rl.KEYS, "timeouts", "next.truncated", None),
    (minari.KEYS, "observations/nested/_index_10/goal", "observation.nested.10.goal", None),
    (minari.KEYS, "actions/arm", "action.arm", None),
    (minari.KEYS, "infos/success", "infos.success", None),
    (imitation.KEYS, "obs", "observation.images.image", IMAGE),
    (npz.KEYS, "terminals", "next.terminated", None),
    (npz.KEYS, "observation.force", "observation.force", None),
    (ogbench.KEYS, "a/b", "a/b", None)])
def test_keys_are_columns(keys, key, column, feature):
    assert keys.column(key, feature) == column


@pytest.mark.parametrize("keys", [act.KEYS, robomimic.KEYS, npz.KEYS])
@pytest.mark.parametrize("column, feature", [("action", Feature("float32", (2,))), ("other", Feature("float32", ())),
                                             ("observation.state", Feature("float32", (3,))),
                                             ("observation.images.top", IMAGE)])
def test_a_column_is_read_from_the_key_that_it_is_written_to(keys, column, feature):
    assert keys.column(keys.key(column, feature), feature) == column


def test_two_arrays_of_one_column_are_refused():
    features = dict.fromkeys(("actions", "action"), Feature("float32", (2,)))
    with pytest.raises(UserError, match="file.npz, action: actions and action are both the column action"):
        KeyMap({"actions": "action"}).schema(features, "file.npz")


def test_what_all_episodes_have():
    array_names, left_out = [{"a": "x", "b": "y"}, {"a": "x"}], []
    common = common_arrays(array_names, str, "{}: {}".format, lambda key: key == "b", lambda key,
                           e: left_out.append((key, e)))
    assert common == {"a": "x"} and left_out == [("b", 1)]
    with pytest.raises(UserError, match="1: b: b is missing, but other episodes have it"):
        common_arrays(array_names, str, "{}: {}".format)
    with pytest.raises(UserError, match="1: a: it is z, but x in the first episode"):
        common_arrays([{"a": "x"}, {"a": "z"}], str, "{}: {}".format)


def test_filtering_stored_episodes_still_gathers_them_where_they_lie(tmp_path):
    write_dataset(Dataset(episodes()), tmp_path / "d.npz", "npz")
    data = open_dataset(tmp_path / "d.npz").filter(lambda e: len(e) > 2)
    array, first, rows = data.column("observation.state")
    assert [array[f: f + n].ravel().tolist() for f, n in zip(first, rows, strict=True)] == [[2.0] * 4, [3.0] * 5]


@pytest.mark.parametrize("pieces", [[7], [1, 1, 1, 1, 1, 1, 1], [3, 4], [2, 0, 5]])
@pytest.mark.parametrize("rows", [[7], [3, 4], [1, 2, 3, 1]])
def test_rows_are_split_as_asked_in_whatever_pieces_they_come(pieces, rows):
    values = np.arange(14, dtype=np.int16).reshape(7, 2)
    pieces_of_rows = list(split_rows(iter(np.split(values, np.cumsum(pieces)[:-1])), rows))
    for one, other in zip(pieces_of_rows, np.split(values, np.cumsum(rows)[:-1]), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.int16


def test_flags_of_ends_say_how_each_episode_ended():
    flags = end_flags(np.array([2, 1, 3]), np.array([True, False, False]))
    assert flags["next.terminated"].tolist() == [False, True, False, False, False, False]
    assert flags["next.truncated"].tolist() == [False, False, True, False, False, True]


def test_a_column_of_a_reserved_name_is_no_task(tmp_path):
    steps = {"observation.state": np.zeros((3, 2)), "action": np.zeros((3, 1)), "ep_meta": np.array([4.0, 5.0, 6.0])}
    write_dataset(Dataset([Episode(steps)]), tmp_path / "a.hdf5", "robomimic")
    data = open_dataset(tmp_path / "a.hdf5")
    assert data[0].steps["ep_meta"].tolist() == [4.0, 5.0, 6.0] and "task" not in data.features()
