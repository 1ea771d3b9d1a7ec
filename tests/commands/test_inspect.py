"""understudy inspect: ranges, tasks and the training that it proposes."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.cli import TINY, document, proposed, refused, save

from understudy import Dataset
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.data.formats.lerobot import write
from understudy.data.tasks import task_texts
from understudy.data.text_columns import TaskText


def test_inspect(call, place):
    description = document(call("inspect", place / "demos", "--json"))
    assert list(description) == ["format", "version", "episodes", "steps", "fps", "features", "tasks", "warnings"]
    data = open_dataset(place / "demos")
    assert (description["format"], description["version"], description["episodes"],
            description["steps"]) == ("lerobot", "v3.0", 12, data.steps)
    assert description["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    assert all(set(f) == {"dtype", "shape", "names"} for f in description["features"].values())
    status, out, _ = call("inspect", place / "demos")
    assert status == 0 and "12 of 12 succeeded" in out and f"understudy replay {place / 'demos'} fork" in out
    assert "\n\nnext:" in out and "\n\n\n" not in out


def test_inspect_says_the_ranges(call, tmp_path):
    actions = np.arange(24, dtype=np.float32).reshape(12, 2) - 4
    actions[3, 1], long = np.nan, np.linspace(-1, 3, 12 * 9, dtype=np.float32).reshape(12, 9)
    actions[:, 0] = -0.25
    out = call("inspect", save(tmp_path / "d.npz", observations=long, actions=actions, steps=(12,)))[1]
    rows = [line.split() for line in out.splitlines()]
    assert ["observation.state,", "all", "9", "-1", "1", "3"] in rows
    assert ["action[0]", "-0.25", "-0.25", "-0.25"] in rows
    assert ["action[1]", "-3", f"{(12 * 8 - 3) / 11:.4g}", "19"] in rows  # without row 3
    assert "1 episode, 12 steps\n" in out and "1 component of 2 never changes: 0" in out
    out = call("inspect", save(tmp_path / "e.npz", actions=np.ones((12, 2), np.float32)))[1]
    assert "2 components of 2 never change: 0, 1" in out


def episode_with_words(place: str, *words: str, n: int = 4) -> Episode:
    """An episode whose task in words is where some kind of data keeps it. Several tasks share its steps evenly."""
    each = [words[i * len(words) // n] for i in range(n)]
    columns = {"observation.state": np.arange(2.0 * n, dtype=np.float32).reshape(n, 2),
               "action": np.linspace(0, 1, n, dtype=np.float32)[:, None]}
    segments = [[i * n // len(words), (i + 1) * n // len(words), w] for i, w in enumerate(words)]
    columns |= {"column": {"task": np.array(each)},
                "observation": {"observation.task": np.stack([TaskText(16).encode(w) for w in each])}}.get(place, {})
    return Episode(columns, {"metadata": {"task": words[0]}, "segments": {"segments": segments}}.get(place, {}))


@pytest.mark.parametrize("where", ["column", "metadata", "observation", "segments"])
def test_inspect_shows_the_tasks_wherever_the_words_are(call, tmp_path, where):
    tasks_of_episodes = [("open",), ("push", "open") if where != "metadata" else ("push",), ("open",), ("",)]
    data = Dataset([episode_with_words(where, *words) for words in tasks_of_episodes], {"fps": 10.0})
    write(data, tmp_path / "d")
    assert document(call("inspect", tmp_path / "d", "--json"))["tasks"] == ["open", "push"]
    out = call("inspect", tmp_path / "d")[1]
    both = 2 if where == "metadata" else 3
    assert f"\n2 tasks:\n  {both} episodes: open\n  1 episode: push\n" in out
    assert "1 episode without a task in words: 3" in call("audit", tmp_path / "d")[1]


def test_inspect_shows_the_most_frequent_tasks(call, tmp_path):
    words = ["rare"] + [f"task {i % 11}" for i in range(22)]
    write(Dataset([episode_with_words("metadata", w) for w in words], {"fps": 10.0}), tmp_path / "d")
    out = call("inspect", tmp_path / "d")[1]
    assert "\n12 tasks, of which the 10 most frequent are:\n  2 episodes: task 0\n" in out
    assert "task 9\n\n" in out and "rare" not in out and "task 10" not in out


def test_a_task_of_several_numbers_is_no_text():
    one_hot = episode_with_words("metadata", "open").replace({"task": np.eye(3, dtype=np.float32)[[1] * 4]})
    assert task_texts(one_hot).tolist() == ["open"]


def test_inspect_proposes_no_training_that_would_be_refused(call, tmp_path):
    broken_actions, endless = np.zeros((12, 2), np.float32), np.zeros((12, 2), np.float32)
    broken_actions[8, 1], endless[3, 0] = np.nan, np.inf
    for name, arrays in (("nan", {"actions": broken_actions}), ("inf", {"observations": endless}),
                         ("text", {"actions": np.array(["left"] * 12)}), ("whole", {})):
        file = save(tmp_path / f"{name}.npz", **arrays)
        status, out, _ = call("inspect", file)
        refusal = call("train", "bc-gmm", file, "--out", tmp_path / "r", *TINY)
        if name == "whole":
            assert refusal[0] == 0 and [p[0] for p in proposed(out)] == ["train"] and "cannot be" not in out
        else:
            refused(refusal)
            assert status == 0 and proposed(out) == []
            assert f"It cannot be trained on as it is. {refusal[2].partition('understudy: ')[2]}" in out


def test_inspect_names_the_learners_for_what_the_episodes_have(call, tmp_path):
    def episode(value, has_actions, has_ends):
        full = {"observation.state": (5, 2), "next.reward": 4, **({"action": (4, 2)} if has_actions else {})}
        columns = {name: np.full(shape, value, np.float32) for name, shape in full.items()}
        columns |= {"next.terminated": np.arange(4) == 3} if has_ends else {}
        return Episode(columns, {"success": value > 1, "expert": value > 2})
    for name, has_actions, has_ends in (("all", True, True), ("watched", False, True), ("endless", True, False)):
        write(Dataset([episode(value, has_actions, has_ends) for value in range(4)], {"fps": 10}), tmp_path / name)
    status, out, _ = call("inspect", tmp_path / "all")
    assert status == 0 and "2 of 4 episodes did not succeed" in out and "1 of 4 episodes are of an expert" in out
    assert [p[:2] for p in proposed(out) if p[0] == "train"][1] == ["train", "iql"] and "no actions" not in out
    proposals = proposed(call("inspect", tmp_path / "endless")[1])  # whose critic would not know where episodes end
    assert [p[1] for p in proposals if p[0] == "train"] == ["bc-gmm"]
    out = call("inspect", tmp_path / "watched")[1]
    assert "There are no actions. bco clones" in out and not [p for p in proposed(out) if p[0] == "train"]


def test_inspect_and_train_name_components_that_are_not_learned(call, tmp_path):
    wave = np.sin(np.arange(40))
    last_bit = np.float32(1000) + np.spacing(np.float32(1000)) * (wave > 0)
    observations = np.stack([wave, 3e-8 * wave, last_bit, 3e-6 * wave], 1)
    data = save(tmp_path / "d.npz", observations=observations.astype(np.float32), steps=(20, 20),
                actions=np.stack([1e-6 * wave, 2e-6 * wave], 1).astype(np.float32))
    finding = ("warning: observation.state: policies treat 1 component of 4 as constant, and do not learn what changes "
               "so little: 1 by 6e-08")
    out = call("inspect", data)[1]
    assert finding in out and out.count("as constant") == 1
    err = call("train", "bc", data, "--out", tmp_path / "run", "--steps", 2)[2]
    assert finding in err and err.count("as constant") == 1
