"""Splits, and what leaks from one part into another."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.views import QUICK, changed, document, run
from hypothesis import given
from hypothesis import strategies as st

from understudy.audit.leakage import find_leakage
from understudy.commands.split import _part_per_value
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.operations import (
    Crop,
    assign_groups,
)

STATE, ACTION = "observation.state", "action"


def _split_options(fractions, seed):
    from understudy.commands.split import SplitOptions

    return SplitOptions(data=Path("x"), by="operator", out=Path("y"), fractions=fractions, seed=seed)


@QUICK
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12), shares=st.integers(2, 4), seed=st.integers(0, 99))
def test_a_split_has_every_episode_once_and_groups_whole(sizes, shares, seed):
    from understudy.commands.split import _random_parts
    values = [f"v{i}" for i, n in enumerate(sizes) for _ in range(n)]
    o = _split_options(tuple(np.full(shares, 1 / shares)), seed=seed)
    if len(sizes) < shares:
        with pytest.raises(UserError, match="at least"):
            _random_parts(o, values)
        return
    parts = _random_parts(o, values)
    assert sorted(i for numbers, _ in parts.values() for i in numbers) == list(range(len(values)))
    assert all(numbers for numbers, _ in parts.values()) and parts == _random_parts(o, values)
    whose = [{values[i] for i in numbers} for numbers, _ in parts.values()]
    assert sum(map(len, whose)) == len(sizes)
    by_episode = [len(n) for n, _ in _random_parts(o, list(range(len(values)))).values()]
    assert max(by_episode) - min(by_episode) <= 1  # single episodes fit the shares


@QUICK
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=7), seed=st.integers(0, 99),
       weights=st.lists(st.integers(1, 9), min_size=2, max_size=3))
def test_no_other_assignment_of_groups_is_closer_to_the_fractions(sizes, seed, weights):
    from understudy.commands.split import _random_parts
    fractions = tuple(w / sum(weights) for w in weights)
    values = [i for i, n in enumerate(sizes) for _ in range(n)]

    def distance(counts) -> float:
        return sum((n - f * len(values)) ** 2 for n, f in zip(counts, fractions, strict=True))
    every = [[sum(s for s, q in zip(sizes, assignment, strict=True) if q == p) for p in range(len(weights))]
             for assignment in itertools.product(range(len(weights)), repeat=len(sizes))]
    best = min(distance(counts) for counts in every if min(counts) > 0)
    parts = _random_parts(_split_options(fractions, seed=seed), values)
    assert distance([len(n) for n, _ in parts.values()]) == pytest.approx(best, abs=1e-6)


def test_the_larger_group_goes_to_the_larger_part():
    from understudy.commands.split import _random_parts
    for seed in range(20):
        o = _split_options((0.67, 0.33), seed=seed)
        assert [len(n) for n, _ in _random_parts(o, ["a"] * 20 + ["b"] * 40).values()] == [40, 20]
    drawn = [_random_parts(_split_options((0.5, 0.5), seed=seed), list("aabbbccddd"))
             for seed in range(20)]
    assert len({tuple(d["train"][0]) for d in drawn}) > 1  # equally close ones are drawn by the seed
    assert all([len(n) for n, _ in d.values()] == [5, 5] for d in drawn)


def test_a_split_of_many_groups_is_quick_and_close():
    rng = np.random.default_rng(0)
    sizes, fractions = rng.integers(1, 200, 3000).tolist(), (0.7, 0.2, 0.1)
    began = time.perf_counter()
    assignment = np.array(assign_groups(sizes, fractions))
    counts = [sum(np.array(sizes)[assignment == p]) for p in range(3)]
    assert np.abs(counts - np.multiply(fractions, sum(sizes))).max() <= 200 and time.perf_counter() - began < 20


def test_split_by_a_field_writes_a_view_for_each_value(stored, tmp_path, capsys):
    assert run("split", stored / "demos", "--by", "operator", "--out", tmp_path / "parts", "--json") == 0
    assert {n: p["episodes"] for n, p in document(capsys)["parts"].items()} == {"Ada": [0, 1, 4, 5], "Grace": [2, 3]}
    assert [e.metadata["number"] for e in open_dataset(tmp_path / "parts" / "Grace.json")] == [2, 3]
    assert run("split", stored / "demos", "--by", "task", "--out", tmp_path / "parts") == 2
    assert run("split", stored / "demos", "--by", "task", "--out", tmp_path / "tasks") == 0
    assert sorted(p.name for p in (tmp_path / "tasks").iterdir()) == ["lift.json", "öffne.json"]
    for bad in (["--by", "scene"], ["--by", "episode", "--fractions", "0.5", "0.6"],
                ["--by", "task", "--fractions", "0.4", "0.3", "0.3"], ["--by", "next.reward"]):
        assert run("split", stored / "demos", *bad, "--out", tmp_path / "bad") == 2
    assert not (tmp_path / "bad").exists()


def test_parts_of_values_that_are_spelled_alike_have_names_of_their_own():
    values = ["x", "x-3", "x!", "X"]  # the third part ended no search for a name
    assert list(_part_per_value(_split_options(None, 0), values)) == ["x", "x-3", "x-2", "X-4"]


def test_values_of_a_split_are_sorted_by_size(tmp_path, capsys):
    write_dataset(wander(0, episodes=24), tmp_path / "wander")
    assert run("split", tmp_path / "wander", "--by", "episode", "--fractions", 0.5, 0.5, "--out", tmp_path / "parts",
               "--json") == 0
    for part in document(capsys)["parts"].values():
        assert part["values"] == sorted(part["values"]) and any(v > 9 for v in part["values"])


def wander(seed, episodes=12, steps=30) -> Dataset:
    rng = np.random.default_rng(seed)
    walks = []
    for _ in range(episodes):
        action = rng.normal(size=(steps, 2)).cumsum(0)
        walks.append(Episode({STATE: np.concatenate([np.zeros((1, 2)), action.cumsum(0)]), ACTION: action}, {}))
    return Dataset(walks)


def test_leaks():
    train, test = wander(0), wander(1)
    assert find_leakage({"train": train, "test": test}) == []
    for copy in (train[:3], Crop(4, -4).apply(train[:3]), changed(train[:3], lambda v: v[::2])):
        [finding] = find_leakage({"train": train, "test": Dataset([*test, *copy])})
        assert finding.code == "same-episode" and finding.message.startswith("3 of 15 episodes of test")
        assert finding.where.episode == 12 and "as episode 0 there" in finding.message
    noise = np.random.default_rng(2)
    for distance, codes in ((0.3, ["near-duplicate"]), (3.0, [])):  # of a spread of about 10: 0.03 and 0.3
        neighbors = changed(train[3:5], lambda v, far=distance: v + noise.normal(size=v.shape) * far * v.std(0) / 10)
        assert [f.code for f in find_leakage({"train": train, "test": Dataset([*test, *neighbors])})] == codes
    resting = changed(wander(3), lambda v: np.concatenate([np.zeros((25, 2)), v]))  # 25 equal steps are one
    assert find_leakage({"train": resting[:6], "test": resting[6:]}) == []


def test_a_split_of_what_was_merged_twice_says_that_it_leaks(stored, tmp_path, capsys):
    assert run("merge", stored / "demos", stored / "demos", "--out", tmp_path / "twice.json", "--json") == 0
    assert {f["code"] for f in document(capsys)["findings"]} == {"same-episode"}
    assert run("split", tmp_path / "twice.json", "--by", "episode", "--fractions", "0.5", "0.5", "--out",
               tmp_path / "parts", "--json") == 0
    assert [f["code"] for f in document(capsys)["findings"]] == ["same-episode"]
