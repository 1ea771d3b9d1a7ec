"""Any data set in the array formats, and the one that is meant below a folder."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.array_files import npz_of, refused
from fixtures.contract_data import demonstrations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import format_of, open_dataset, write_dataset
from understudy.testing import check_format

STATE, ACTION = "observation.state", "action"
OURS = ["npz", "csv", "zarr", "rlds", "ogbench"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


# -- which one is meant ---------------------------------------------------------------------------------------------


def test_the_only_data_set_below_a_folder_is_meant(tmp_path):
    deep = tmp_path / "in/a/b"
    deep.mkdir(parents=True)
    (tmp_path / "in/readme.md").write_text("hello")
    write_dataset(demonstrations(cameras=False), deep / "c", "rlds")
    for level in ("in", "in/a", "in/a/b", "in/a/b/c"):
        assert format_of(tmp_path / level) == "rlds" and len(open_dataset(tmp_path / level)) == 4
    refused(tmp_path, "a folder without meta/info.json")  # four levels down
    npz_of(tmp_path / "in/a/other.npz")
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
