"""npz: one file, whose arrays may mean several things."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.array_files import npz_of, read_all, refused
from fixtures.contract_data import demonstrations
from fixtures.lerobot_files import ENDS

from understudy.audit import audit
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset

STATE, ACTION = "observation.state", "action"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def test_integers_as_actions_are_choices_and_that_is_said(tmp_path):
    data = read_all(npz_of(tmp_path / "d.npz", actions=np.arange(22) % 3))
    assert data.features()[ACTION].kind == "discrete"
    assert data.metadata["warnings"] == ["actions: int64 is read as classes, numbered from 0; if it holds "
                                         "quantities: --columns action=actions:quantities, or save it as float32"]
    assert not read_all(npz_of(tmp_path / "e.npz")).metadata["warnings"]


def test_a_file_is_no_pickle_because_of_its_name(tmp_path):
    np.savez(tmp_path / "pickles.npz", phases=np.zeros(3, complex))
    refused(tmp_path / "pickles.npz", "an .npz without episode_ends; it holds phases")


@pytest.mark.parametrize("changes, parts", [
    ({"success": np.array([1, 0, 0.5, 1])}, ["success[2]", "a flag must be 0 or 1, not 0.5"]),
    ({"terminals": np.r_[np.zeros(21), 0.5]}, ["terminals[21]", "a flag must be 0 or 1, not 0.5"]),
    ({"next.success": np.r_[2.0, np.zeros(21)]}, ["next.success[0]", "a flag must be 0 or 1, not 2.0"]),
    ({"rewards": np.ones(4)}, ["d.npz, rewards: it has 4 rows, one per episode", "each of the 22 steps"]),
    ({"fps": np.array([20, 20])}, ["d.npz, fps", "it must be one number", "but has the shape (2,)"])])
def test_npz_that_counted_as_something_else(changes, parts, tmp_path):
    refused(npz_of(tmp_path / "d.npz", **changes), *parts)


def test_a_directory_whose_names_are_no_text_is_refused(tmp_path):
    data = bytearray(npz_of(tmp_path / "d.npz").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 9] |= 8  # the flag that a name is in UTF-8
    data[at + 46] = 0xe8  # and its first byte
    (tmp_path / "d.npz").write_bytes(data)
    refused(tmp_path / "d.npz", "d.npz: the zip file cannot be read", "damaged", "can't decode")
    assert [f.severity for f in audit(tmp_path / "d.npz").findings] == ["error"]


@pytest.mark.parametrize("at, value", [(8, 1), (10, 7), (10, 12)])
def test_an_entry_that_calls_itself_encrypted_or_packed_in_another_way_is_refused(at, value, tmp_path):
    data = bytearray(npz_of(tmp_path / "d.npz").read_bytes())
    data[data.index(b"PK\1\2") + at] = value  # in the directory: flags, and the way of packing
    data[data.index(b"PK\3\4") + at - 2] = value
    (tmp_path / "d.npz").write_bytes(data)
    refused(tmp_path / "d.npz", "observations: the array cannot be read")


def test_arrays_that_may_have_been_meant_otherwise_are_said(tmp_path):
    data = read_all(npz_of(tmp_path / "d.npz", dones=np.zeros(22), fps=np.array([20])))
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
