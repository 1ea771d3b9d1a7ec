"""OGBench: its own files, and what its loader takes apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.array_files import agrees, is_closed, refused
from fixtures.contract_data import demonstrations
from fixtures.lerobot_files import flat_arrays

from understudy.data.formats import conversion_losses, open_dataset, write_dataset
from understudy.testing import check_format

STATE, ACTION = "observation.state", "action"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name, episodes", [("closed-v0", [0, 1, 2, 3]), ("closed-v0-val", [3])])
def test_ogbench(name, episodes, fixtures):
    data = open_dataset(fixtures / f"ogbench/{name}.npz")
    recorded = json.loads((fixtures / "expected/ogbench.json").read_text())["episodes"]
    assert len(data) == len(episodes)
    for episode, e in zip(data, episodes, strict=True):
        is_closed(episode, e, {STATE: "state"}, last=True)
        is_closed(episode, e, {ACTION: "action"})
        np.testing.assert_array_equal(episode.steps["qpos"], closed_form.episode(e, 1)["state"][:, :2])
        assert episode.steps["next.truncated"].tolist() == [False] * (len(episode) - 1) + [True]
        assert not episode.steps["next.terminated"].any()
        if len(episodes) > 1:
            agrees(episode.steps[ACTION], recorded[e]["actions"])
            agrees(episode.steps[STATE][1:], recorded[e]["next_observations"])


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
    np.savez(tmp_path / "d.npz", **{"observations": flat_arrays(1)["state"], "actions": np.zeros((26, 2)),
                                    "terminals": terminals, "qpos": np.zeros((26, 1)), **changes})
    refused(tmp_path / "d.npz", *parts)


def test_terminals_alone_are_not_taken_for_ogbench(tmp_path):
    for more, text in (({}, "; there are actions"), ({"qpos": np.zeros((22, 1)), "timeouts": np.zeros(22)},
                                                    ", and terminals and timeouts are 0 at all steps")):
        np.savez(tmp_path / "d.npz", observations=np.zeros((22, 3)), actions=np.zeros((22, 2)), terminals=np.zeros(22),
                 **more)
        refused(tmp_path / "d.npz", f"there is no array episode_ends{text}", "give" if more else "add timeouts")


def test_masks_that_end_returns_inside_an_episode_are_told(tmp_path):
    arrays = {"observations": np.zeros((8, 2), "f"), "actions": np.zeros((8, 1), "f"), "qpos": np.zeros((8, 1)),
              "terminals": np.arange(8) % 4 == 3, "rewards": np.zeros(8, "f")}
    for n_ends, masks in ((0, np.ones(8)), (2, 1.0 - (np.arange(8) % 4 == 1))):
        np.savez(tmp_path / f"{n_ends}.npz", **arrays, masks=masks)
        told = [text for text in open_dataset(tmp_path / f"{n_ends}.npz").metadata["warnings"] if "masks" in text]
        assert len(told) == (n_ends > 0) and all("masks is 0 in 2 rows" in text for text in told)
