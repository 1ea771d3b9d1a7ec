"""Columns that are packed into one array."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.packed_columns import PackedColumns
from understudy.data.window import Window


def test_columns_of_one_array_stay_where_they_are():
    root = np.arange(60.0, dtype=np.float32).reshape(30, 2)
    data = Dataset([Episode({"a": root[0:10]}), Episode({"a": root[12:20]}), Episode({"a": root[5:9]})])
    column = PackedColumns.from_episodes(data, ("a",)).columns["a"]
    assert np.shares_memory(column.array, root) and column.starts.tolist() == [0, 12, 5]
    mixed = PackedColumns.from_episodes(Dataset([*data, Episode({"a": root[:4].copy()})]), ("a",)).columns["a"]
    assert not np.shares_memory(mixed.array, root)
    assert mixed.gather(np.array([1, 3]), np.array([[0, 99], [-5, 3]])).tolist() == [
        [[24, 25], [38, 39]], [[0, 1], [6, 7]]]


@pytest.mark.parametrize("some", [lambda a: a[:, :1], lambda a: a[:, 1:], lambda a: a.view(np.int32), lambda a: a[::2],
                                  lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.reshape(-1, 2, 1),
                                  lambda a: a.T.copy().T, lambda a: a[:, 0]])
@pytest.mark.parametrize("whole", [lambda n: np.arange(2.0 * n).reshape(n, 2), lambda n: np.full((n, 2), 3.0)
                                   + np.arange(n)[:, None]])
def test_some_of_an_array_is_not_taken_for_the_whole(some, whole):
    """Columns may be any view: a part of the state, reversed, strided, the same bytes read otherwise."""
    root = whole(30).astype(np.float32)
    parts = [some(root[2:9]), some(root[20:23]), some(root[11:12])]
    column = PackedColumns.from_episodes(Dataset([Episode({"a": p}) for p in parts]), ("a",)).columns["a"]
    for e, p in enumerate(parts):
        assert np.array_equal(column.gather(np.array([e]), np.arange(len(p))[None])[0], p)
    assert column.gather(np.array([2]), np.array([[7]]))[0, 0].tolist() == parts[2][-1].tolist()


def test_a_constant_column_is_kept_once():
    data = Dataset([Episode({"g": np.broadcast_to(np.float32([e, 1]), (5, 2)), "action": np.zeros((5, 1))})
                    for e in range(3)])
    column = PackedColumns.from_episodes(data, ("g",)).columns["g"]
    assert column.array.shape == (3, 2) and column.gather(np.array([2]), np.array([[0, 4, 9]]))[0, :, 0].tolist() == [
        2, 2, 2]


def test_rows_beyond_one_more_are_not_read():
    data = Dataset([Episode(MappingProxyType({"x": np.arange(9.0), "action": np.zeros((4, 1))}))])  # a cut recording
    assert PackedColumns.from_episodes(data, ("x",)).columns["x"].gather(
        np.array([0]), np.array([[3, 4, 5, 8]])
    ).tolist() == [[3, 4, 4, 4]]


def test_only_the_columns_that_are_asked_for_are_loaded():
    asked = set()

    class Lazy(Mapping):
        def __getitem__(self, key):
            asked.add(key)
            return np.zeros((4, 1), np.float32)

        def __iter__(self):
            return iter(("observation.x", "observation.images.front", "action"))

        def __len__(self):
            return 3
    data = Dataset([Episode(Lazy(), rows=4) for _ in range(3)])
    next(Window().windows(data, ("observation.x",), "action").scan())
    assert asked == {"observation.x", "action"}


def test_mistakes_name_the_episode_and_the_column():
    good, bad = Episode({"x": np.zeros((3, 2))}), Episode({"x": np.zeros((3, 4))})
    with pytest.raises(UserError, match="episode 1, column 'x'"):
        PackedColumns.from_episodes(Dataset([good, bad]), ("x",))
    with pytest.raises(UserError, match="there is no column 'y'; the episode has x"):
        PackedColumns.from_episodes(Dataset([good]), ("y",))
    with pytest.raises(UserError, match="there are no episodes"):
        PackedColumns.from_episodes(Dataset([]), ("x",))
