"""Training from data that have no actions, by the command."""

import json

import numpy as np
import pytest
from fixtures.cli import proposed

from understudy.cli import main
from understudy.core import DataError, Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.methods import find_method


def walk(seed, has_actions):
    action = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
    state = np.concatenate([np.zeros((1, 2), np.float32), action.cumsum(0)])
    return Episode({"observation.state": state, **({"action": action} if has_actions else {})}, rows=12)


def test_videos_are_prior_data(tmp_path, capsys):
    write_dataset(Dataset([walk(i, True) for i in range(3)], {"fps": 10}), tmp_path / "few.npz", "npz")
    write_dataset(Dataset([walk(i, False) for i in range(6)], {"fps": 10}), tmp_path / "videos", "lerobot")
    few, videos = str(tmp_path / "few.npz"), str(tmp_path / "videos")
    assert main(["train", "vpt", few, "--prior", videos, "--out", str(tmp_path / "run"), "--steps", "2"]) in (0, None)
    assert main(["train", "bc", videos, "--out", str(tmp_path / "other"), "--steps", "2"])
    assert "no column 'action' to learn" in capsys.readouterr().err


def test_missing_actions_may_be_nan_and_few_are_warned_of_once(tmp_path, capsys):
    hidden = [walk(i, True).replace({"action": np.full((12, 2), np.nan, np.float32)}) for i in range(4)]
    write_dataset(Dataset([walk(9, True), *hidden], {"fps": 10}), tmp_path / "few.npz", "npz")
    command = ["train", "vpt", str(tmp_path / "few.npz"), "--val-fraction", "0", "--steps", "2"]
    assert main([*command, "--out", str(tmp_path / "run")]) in (0, None)
    assert capsys.readouterr().err.count("12 of 60 steps have an action") == 1


def test_few_actions_are_not_warned_of_because_few_episodes_are_held_out(tmp_path, capsys):
    half = [walk(i, True).replace({"action": np.where(np.arange(12)[:, None] < 6, walk(i, True).steps["action"],
                                                      np.float32(np.nan))}) for i in range(20)]
    write_dataset(Dataset(half, {"fps": 10}), tmp_path / "half.npz", "npz")
    assert main(["train", "vpt", str(tmp_path / "half.npz"), "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    assert "steps have an action" not in capsys.readouterr().err


def test_methods_that_need_actions_name_those_that_do_not():
    with pytest.raises(DataError, match="(?s)bc: there is no column 'action'.*vpt.*bco"):
        find_method("bc", {"observation.state": Feature("float32", (2,))})


def test_rewards_of_episodes_without_actions_are_learned_from(tmp_path):
    def rewarded(seed, has_actions):
        rewards = {"next.reward": np.arange(12, dtype=np.float32), "next.terminated": np.arange(12) == 11}
        return Dataset([walk(seed, has_actions).replace(rewards)], {"fps": 10})

    write_dataset(rewarded(0, True), tmp_path / "few.npz", "npz")
    write_dataset(rewarded(1, False), tmp_path / "videos", "lerobot")
    assert main(["train", "ss-orl", str(tmp_path / "few.npz"), "--prior", str(tmp_path / "videos"), "--val-fraction",
                 "0", "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]) in (0, None)


def test_a_demonstration_without_actions_is_shown_as_the_training_suggests(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in (("--out", "demos"), ("--out", "practice", "--actor", "random")):
        assert main(["record", "fork", *options, "--episodes", "3"]) in (0, None)
    write_dataset(open_dataset(tmp_path / "demos").map(lambda e: e.replace({"action": None})), tmp_path / "videos.npz",
                  "npz")
    capsys.readouterr()
    assert main(["train", "iterative-inversion", "videos.npz", "--prior", "practice", "--env", "fork", "--out", "run",
                 "--steps", "2", "--n-rounds", "1", "--n-episodes", "1", "--device", "cpu"]) in (0, None)
    suggested = proposed(capsys.readouterr().out)[0]
    assert suggested[:3] == ["eval", "run", "fork"] and "demonstration=videos.npz" in suggested
    assert main([*suggested[:3], "--episodes", "2", *suggested[5:]]) in (0, None)


def test_classes_of_which_some_are_missing_are_told_of(tmp_path, monkeypatch, capsys):
    """NaN is no class, so the column holds quantities; without the steps of NaN it holds classes."""
    monkeypatch.chdir(tmp_path)
    n, ends = 60, np.arange(12, 61, 12)
    states, classes = np.random.default_rng(0).normal(size=(n, 2)), np.arange(n) % 3
    actions = np.where(np.arange(n) < 36, classes, np.nan)
    np.savez("some.npz", observations=states, actions=actions, episode_ends=ends)
    np.savez("few.npz", observations=states[:36], actions=classes[:36], episode_ends=ends[:3])
    np.savez("videos.npz", observations=states[36:], episode_ends=ends[:2])
    command = ["train", "vpt", "some.npz", "--steps", "2", "--device", "cpu", "--out", "run"]
    assert main(command) in (0, None)
    message = capsys.readouterr().err
    assert "whole numbers 0, 1, 2, which are read as quantities" in message and "--columns action=action:c" in message
    assert main([*command, "--columns", "action=action:classes"]) == 2
    assert "name them with --prior" in capsys.readouterr().err
    assert main(["train", "vpt", "few.npz", "--prior", "videos.npz", *command[3:-1], "classes"]) in (0, None)


def test_only_recorded_actions_are_compared_and_only_they_are_suggested_to_be(tmp_path, monkeypatch, capsys):
    """The labels of vpt, and the placeholders of bco, were compared as if they had been recorded."""
    monkeypatch.chdir(tmp_path)
    hidden = [walk(i, True).replace({"action": np.full((12, 2), np.nan, np.float32)}) for i in range(3)]
    write_dataset(Dataset(hidden, {"fps": 10}), tmp_path / "hidden.npz", "npz")
    write_dataset(Dataset([*hidden, walk(7, True), walk(8, True)], {"fps": 10}), tmp_path / "some.npz", "npz")
    write_dataset(Dataset([walk(9, True)], {"fps": 10}), tmp_path / "few.npz", "npz")
    for run, command in (("run", "some.npz"), ("other", "hidden.npz --prior few.npz"),
                         ("third", "few.npz --prior hidden.npz")):
        assert main(["train", "vpt", *command.split(), "--out", run, "--steps", "2", "--val-fraction", "0",
                     "--device", "cpu"]) in (0, None)
        is_suggested = ["eval", run, command.split()[0]] in proposed(capsys.readouterr().out)
        assert is_suggested == (run != "other")
    assert main(["eval", "run", "some.npz", "--json"]) in (0, None)
    text, error = capsys.readouterr()
    assert json.loads(text)["steps"] == 24 and "some.npz: 3 of 5 episodes lack actions" in error
    assert main(["eval", "run", "hidden.npz"]) == 2
    assert "no episode has all of its actions" in capsys.readouterr().err
    assert main(["diagnose", "run", "--data", "hidden.npz"]) in (0, None)
    assert "not checked: fit, statistics and actions: no episode has all of its actions" in capsys.readouterr().out
