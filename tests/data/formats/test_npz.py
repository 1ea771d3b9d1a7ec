"""npz: arrays become columns by name, and episodes by length."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import ENDS, flat_arrays, write_npz

from understudy.core import DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset, write_dataset
from understudy.data.opening.column_selection import open_columns


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def test_npz_arrays_become_columns_by_name_and_facts_by_length(tmp_path):
    flat = flat_arrays()
    path = write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"],
                     rewards=flat["reward"][:, None], terminals=flat["terminated"].astype(np.float32),
                     timeouts=flat["truncated"], episode_ends=ENDS, seed=np.arange(4),
                     **{"next.success": flat["terminated"], "observation.force": flat["reward"]})
    data = open_dataset(path)
    assert data.metadata["format"] == "npz" and data.fps is None
    assert list(data.features()) == ["observation.state", "action", "next.reward", "next.terminated", "next.truncated",
                                     "next.success", "observation.force"]
    for e, episode in enumerate(data):
        c = closed_form.episode(e, images=False)
        for name, key in (("observation.state", "state"), ("action", "action"), ("next.reward", "reward"),
                          ("next.terminated", "terminated"), ("next.truncated", "truncated")):
            np.testing.assert_array_equal(episode.steps[name], c[key])
        assert episode.steps["next.terminated"].dtype == bool and episode.metadata == {"seed": e}
        json.dumps(episode.metadata)


def test_an_end_of_each_episode_is_told_to_be_saved_for_each_step(tmp_path):
    flat = flat_arrays()
    path = write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS,
                     terminal=np.ones(4, bool))
    assert open_dataset(path).metadata["warnings"] == [
        "terminal is kept under that name; save it as terminals if that is what it is, with a value for each step"]


@pytest.mark.parametrize("columns", [{}, {"next.reward": ("points",)}])
def test_npz_without_episode_ends_has_those_of_terminals_and_timeouts(columns, tmp_path):
    flat = flat_arrays()
    timeouts = np.zeros(len(flat["action"]), bool)
    timeouts[np.array(ENDS[:-1]) - 1] = True  # the recording of the last episode stopped
    path = write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], points=flat["reward"],
                     terminals=np.zeros(len(timeouts)), timeouts=timeouts[:, None])
    data = open_columns(path, columns)
    assert np.cumsum(data.lengths).tolist() == list(ENDS)
    assert data.metadata["warnings"][-1] == (f"the last episode, of {ENDS[-1] - ENDS[-2]} steps, neither ended nor ran "
                                             "into a limit: the recording stopped")
    assert data[0].steps["next.truncated"][-1] and not data[0].steps["next.terminated"].any()
    assert ("next.reward" in data.features()) == bool(columns)
    write_npz(path, observations=flat["state"], actions=flat["action"], terminals=np.zeros(len(timeouts)),
              timeouts=timeouts[1:])
    with pytest.raises(UserError, match="timeouts: it has .* rows, but terminals has"):
        open_dataset(path)


@pytest.mark.parametrize("how", ["next_observations", "one row more", "both"])
def test_npz_last_observations(how, tmp_path):
    flat, longer = flat_arrays(), flat_arrays(extra=1)["state"]
    following = np.concatenate([closed_form.episode(e, 1, images=False)["state"][1:] for e in range(4)])
    last_observations = {} if how == "one row more" else {"next_observations": following}
    path = write_npz(tmp_path / "d.npz", observations=flat["state"] if how == "next_observations" else longer,
                     actions=flat["action"], episode_ends=ENDS, **last_observations)
    for e, episode in enumerate(open_dataset(path)):
        expected = closed_form.episode(e, 1, images=False)["state"]
        np.testing.assert_array_equal(episode.steps["observation.state"], expected)
        assert len(episode) == closed_form.LENGTHS[e]


@pytest.mark.parametrize("fps", [10, 29.97, np.float32(15)])
def test_npz_says_its_rate(fps, tmp_path):
    flat = flat_arrays()
    data = open_dataset(write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"],
                                  episode_ends=ENDS, fps=fps))
    assert data.fps == fps and "fps" not in data.features() and "fps" not in data[0].metadata


def test_npz_files_of_one_name_size_and_time_are_not_confused(tmp_path):
    """As a script makes them that writes one small file a seed."""
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        np.savez(tmp_path / str(seed) / "data.npz", observations=np.full((4, 2), float(seed)), actions=np.zeros((4, 1)),
                 episode_ends=np.array([4]))
        os.utime(tmp_path / str(seed) / "data.npz", ns=(10**18, 10**18))
    assert (tmp_path / "1/data.npz").stat().st_size == (tmp_path / "2/data.npz").stat().st_size
    for seed in (1, 2):
        assert (open_dataset(tmp_path / str(seed) / "data.npz")[0].steps["observation.state"] == seed).all()


def test_npz_stored_column_by_column_or_plainly_reads_the_same(tmp_path):
    flat = flat_arrays()
    prints = set()
    for name, save, order in (("a", np.savez, "C"), ("b", np.savez_compressed, "F"), ("c", np.savez, "F")):
        save(tmp_path / f"{name}.npz", observations=np.asarray(flat["state"], order=order), actions=flat["action"],
             episode_ends=ENDS)
        prints.add(open_dataset(tmp_path / f"{name}.npz").fingerprint())
    assert len(prints) == 1


@pytest.mark.parametrize("name, episodes, steps, last", [
    ("hand_dapg/adroit_door_human", 25, 6729, 0), ("cs285/hopper_expert", 2, 2000, 1), ("cs285/ant_expert", 2, 2000, 1),
    ("cs285/walker2d_expert", 2, 2000, 1), ("cs285/halfcheetah_expert", 2, 2000, 1),
    ("stable_baselines/cartpole_expert", 100, 49527, 0), ("stable_baselines/pendulum_expert", 100, 20000, 0),
    ("imitation/cartpole_expert", 57, 26964, 1), ("imitation/pendulum_expert", 56, 11200, 1)])
def test_recorded_npz_files_open(name, episodes, steps, last, shared, tmp_path):
    path = shared / "data" / f"{name}.npz"
    data = open_dataset(path)
    assert (len(data), data.steps) == (episodes, steps)
    with np.load(path) as raw:
        ends, observations = raw["episode_ends"], raw["observations"]
        for e in (0, episodes - 1):
            begin = (ends[e - 1] if e else 0) + (e if len(observations) > steps else 0)
            n = len(data[e]) + (last if len(observations) > steps else 0)
            states = data[e].steps["observation.state"]
            np.testing.assert_array_equal(states[:n], observations[begin:begin + n])
            assert len(states) == len(data[e]) + last
    lerobot.write(data, tmp_path / "out")
    assert open_dataset(tmp_path / "out").fingerprint() == data.fingerprint()


def _moves(seed: int, *left_out: str) -> Episode:
    position = np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32)
    columns = {"observation.state": position, "action": np.diff(position, axis=0), "next.reward": position[:5, 0]}
    return Episode({k: v for k, v in columns.items() if k not in left_out}, rows=5)


def test_episodes_without_actions_are_stored_and_those_that_lack_them_have_nan(tmp_path):
    write_dataset(Dataset([_moves(i, "action") for i in range(2)], {"fps": 10}), tmp_path / "none.npz")
    none = open_dataset(tmp_path / "none.npz")
    assert "action" not in none.features() and [len(e) for e in none] == [5, 5]
    assert none[0].steps["observation.state"].shape == (6, 2)
    write_dataset(Dataset([_moves(0), _moves(1, "action")], {"fps": 10}), tmp_path / "some.npz")
    some = open_dataset(tmp_path / "some.npz")
    np.testing.assert_array_equal(some[0].steps["action"], _moves(0).steps["action"])
    assert some[1].steps["action"].shape == (5, 2) and np.isnan(some[1].steps["action"]).all()


@pytest.mark.parametrize("form", ["npz", "ogbench", "zarr", "csv"])
def test_columns_of_another_shape_in_a_later_episode_are_refused_and_not_misread(form, tmp_path):
    wider = Episode({"observation.state": np.zeros((6, 3), np.float32), "action": np.zeros((5, 2), np.float32)}, rows=5)
    with pytest.raises(DataError, match=r"episode 1, column 'observation.state': a step has the shape \(3,\), but"):
        write_dataset(Dataset([_moves(0, "next.reward"), wider], {"fps": 10}), tmp_path / "data", form)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("form", ["npz", "zarr", "robomimic", "csv"])
def test_numbers_of_another_precision_in_a_later_episode_are_not_rounded(form, tmp_path):
    first, precise = _moves(0, "next.reward"), _moves(1, "next.reward")
    precise = precise.replace({"action": np.full((5, 2), [0.5, np.nan])})  # float64 that float32 holds
    write_dataset(Dataset([first, precise], {"fps": 10}), tmp_path / "held", form)
    np.testing.assert_array_equal(open_dataset(tmp_path / "held")[1].steps["action"], precise.steps["action"])
    with pytest.raises(DataError, match=r"episode 1, column 'action', row 0: float32 does not hold 0.1,"):
        write_dataset(Dataset([first, precise.replace({"action": np.full((5, 2), 0.1)})]), tmp_path / "data", form)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("form", ["npz", "lerobot", "robomimic", "d4rl", "csv"])
@pytest.mark.parametrize(("episodes", "column"), [
    ((_moves(0), _moves(1, "next.reward")), "next.reward"), ((_moves(0, "next.reward"), _moves(1)), "next.reward"),
    ((_moves(0, "action"), _moves(1)), "action")])
def test_columns_that_only_some_episodes_have_are_refused_and_not_lost(form, episodes, column, tmp_path):
    with pytest.raises(DataError, match=f"episode 1, column '{column}': only some of the episodes"):
        write_dataset(Dataset(episodes, {"fps": 10}), tmp_path / "data", form)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("key", ["rewards", "terminals", "next.success"])
def test_what_follows_a_step_has_no_row_more(tmp_path, key):
    """dm_env stores a reward of 0 before the first step, and with it each reward would belong to the step before."""
    flat = flat_arrays()
    rows = np.insert(np.zeros(ENDS[-1]), np.concatenate([[0], ENDS[:-1]]), 0)
    path = write_npz(tmp_path / "d.npz", observations=flat["state"], actions=flat["action"], episode_ends=ENDS,
                     **{key: rows})
    with pytest.raises(UserError, match=f"d.npz, {key}: it has {len(rows)} rows, one more per episode"):
        open_dataset(path)
