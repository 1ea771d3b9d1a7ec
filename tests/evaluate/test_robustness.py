"""Where success halves, and the sweep over severities."""

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fixtures.shifts import kinds

from understudy.cli import main
from understudy.envs import make
from understudy.evaluate import robustness
from understudy.evaluate.robustness import ResultsFile, SeveritySweep, half_success_level, observation_std
from understudy.evaluate.rollout import rollout
from understudy.evaluate.stats import Interval
from understudy.execute.latency import DelayedAction

# -- where it halves ------------------------------------------------------------------------------------------------


def steps_of(severities, limits):
    """(L, episodes): each episode succeeds up to its own limit."""
    return np.array([[s < limit for limit in limits] for s in severities])


def test_where_it_halves_is_known_for_a_straight_fall():
    levels = (0, 0.2, 0.4, 0.6, 0.8, 1.0)
    fall = half_success_level(levels, steps_of(levels, np.arange(0.0005, 1, 0.001)))  # success 1 - severity
    assert fall.severity == pytest.approx(0.5, abs=1e-9)
    assert (fall.low, fall.high, fall.max_severity) == (0.4, 0.6, 1.0)
    limits = np.where(np.arange(1000) < 800, 2 * np.arange(0.0005, 1, 0.001), -1)  # 0.8 at 0, falls by 0.5 a unit
    limits[:800] = np.linspace(0.001, 1.6, 800)
    assert half_success_level(levels, steps_of(levels, limits)).severity == pytest.approx(0.8, abs=0.01)


def test_not_within_what_was_tried_is_an_answer():
    all_of_20 = half_success_level((0, 1, 2), np.ones((3, 20)))
    assert (all_of_20.severity, all_of_20.low, all_of_20.high) == (math.inf, 2.0, math.inf)
    assert str(all_of_20) == "not up to 2 [2, beyond]"
    barely = half_success_level((0, 1, 2), np.array([[1] * 20, [1] * 15 + [0] * 5, [1] * 11 + [0] * 9]))
    assert math.isinf(barely.severity) and barely.low == 1.0  # chance alone may have kept it above the half
    assert str(half_success_level((0, 1), np.zeros((2, 20)))) == "nothing to halve"
    with pytest.raises(ValueError, match="rise from 0"):
        half_success_level((1, 2), np.ones((2, 3)))


def test_a_cliff_is_not_known_better_than_the_steps_of_the_ladder():
    fall = half_success_level((0, 1, 5, 9), np.repeat([[1.0], [1.0], [0.0], [0.0]], 50, 1))
    assert fall.severity == 3.0 and (fall.low, fall.high) == (1.0, 5.0)


@pytest.mark.parametrize("episodes", [1, 3, 5])
def test_few_episodes_exclude_no_severity(episodes):
    """All draws of one episode are equal: its interval covered half of the truths, and was as narrow as of many."""
    fall = half_success_level((0, 1, 5, 9), np.repeat([[1.0], [1.0], [0.0], [0.0]], episodes, 1))
    assert fall.severity == 3.0 and (fall.low, fall.high) == (0.0, math.inf)


def wins(*counts, of):
    return np.array([[1.0] * n + [0.0] * (of - n) for n in counts])


def test_an_unlucky_rung_is_put_right():
    """Isotonic regression: 0.3 at level 1 and 0.7 at level 2 are both 0.5."""
    assert half_success_level((0, 1, 2, 3), wins(10, 3, 7, 0, of=10)).severity == pytest.approx(1.0)
    # Half of what there is at level 0, 0.3, whatever level 1 says of it: between 0.34 and 0.
    assert half_success_level((0, 1, 2, 3), wins(30, 40, 17, 0, of=50)).severity == pytest.approx(2 + 4 / 34)


def test_the_interval_is_as_wide_as_chance_makes_it():
    """11 of 20 at level 2: 10 or fewer in two of five bootstrap draws, and then the half is crossed before it."""
    fall = half_success_level((0, 1, 2, 3), wins(20, 20, 11, 0, of=20))
    assert (fall.severity, fall.low, fall.high) == (pytest.approx(2 + 1 / 11), 1.0, 3.0)
    sure = half_success_level((0, 1, 2, 3), wins(20, 20, 18, 0, of=20))
    assert (sure.low, sure.high) == (2.0, 3.0)


@pytest.mark.slow
def test_the_interval_covers_where_it_truly_halves():
    """Success falls from 0.9 as a normal distribution with its half at 0.35; the starts are paired."""
    from scipy.stats import norm

    levels, rng, hits = np.array([0, 0.1, 0.2, 0.4, 0.8]), np.random.default_rng(0), 0
    truth = 0.35
    for _ in range(200):
        limits = np.where(rng.random(50) < 0.9, truth + 0.15 * norm.ppf(rng.random(50)), -1)
        limits = np.where(limits <= 0, np.where(limits == -1, -1, 1e-9), limits)
        fall = half_success_level(tuple(levels), steps_of(levels, limits))
        hits += fall.low <= truth <= fall.high
    assert hits >= 0.95 * 200 - 2 * math.sqrt(200 * 0.05 * 0.95)


def test_a_return_halves_too():
    climb = SeveritySweep(kinds("fork")["noise"], (0.0, 1.0, 2.0), None, np.array([[8.0] * 5, [6.0] * 5, [2.0] * 5]))
    assert climb.half_success_level().severity == pytest.approx(1.5)
    assert climb.paired_changes()[2][0].estimate == -6.0
    assert math.isnan(replace(climb, returns=-climb.returns).half_success_level().severity)


# -- the whole ladder -------------------------------------------------------------------------------------------------


def test_a_ladder_is_paired_resumes_and_does_not_depend_on_rows(tmp_path):
    env, file, progress = make("fork", 4), tmp_path / "kept.jsonl", []
    shifts = [replace(kinds("fork")[k], levels=levels) for k, levels in (("gust", (0.5, 2.0)), ("slow", (8,)))]
    whole = robustness.sweep_severities(
        env.expert(), partial(make, "fork", 3), shifts, 12, results=ResultsFile(file, "me"), watch=progress.append)
    assert progress[-1] == 4 * 12 and max(progress) == 48
    gust, slow = whole
    assert gust.severities == (0.0, 0.5, 2.0) and gust.success.shape == (3, 12) and slow.success.shape == (2, 12)
    np.testing.assert_array_equal(gust.success[0], slow.success[0])
    plain = rollout(env.expert(), make("fork", 7), 12)
    np.testing.assert_array_equal(gust.success[0], [e.metadata["success"] for e in plain])
    assert gust.paired_changes()[0] == (Interval(0.0, 0.0, 0.0), 1.0)  # nothing differs from itself
    (change, p), only = gust.paired_changes()[2], int((gust.success[2] < gust.success[0]).sum())
    assert change.estimate == pytest.approx(-only / 12) and p == pytest.approx(min(1, 2 * 0.5**only))

    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # stopped in the middle of a line
    with_5_rows, results = partial(make, "fork", 5), partial(ResultsFile, file, "me")
    again = robustness.sweep_severities(env.expert(), with_5_rows, shifts, 12, results=results())
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a.success, b.success)
    more = robustness.sweep_severities(env.expert(), with_5_rows, shifts, 14, results=results())
    np.testing.assert_array_equal(more[0].success[:, :12], whole[0].success)
    n_episodes = sum(len(json.loads(line)["episodes"]) for line in file.read_text().splitlines() if line[-1] == "}")
    assert n_episodes == 4 * 14  # nothing twice
    other = robustness.sweep_severities(
        DelayedAction(env.expert(), 9), with_5_rows, shifts[:1], 12, results=ResultsFile(file, "somebody else"))
    assert not np.array_equal(other[0].success, whole[0].success)


def test_spread_is_of_the_reference_episodes_and_of_each_component():
    env = make("fork", 5)
    data = np.concatenate([e.steps["observation.state"] for e in rollout(env.expert(), env, 16, -3)])
    np.testing.assert_allclose(observation_std(make("fork", 16))["observation.state"].numpy(), data.std(0), rtol=1e-6)


def test_the_command_prints_one_document_and_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["robustness", "scripted", "fork", "--episodes", "6", "--shifts", "start", "slow",
            "--levels", "start=0.1,0.4", "slow=8"]
    assert main([*args, "--json", "--html", "page.html"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["env"] == "fork" and list(report["shifts"]) == ["start", "slow"]
    start = report["shifts"]["start"]
    assert [level["level"] for level in start["levels"]] == [0, 0.1, 0.4] and start["unit"] == "m"
    assert start["halves"] == {"at": None, "low": 0.4, "high": None, "tried": 0.4}
    assert report["shifts"]["slow"]["halves"]["high"] == 8
    page = (tmp_path / "page.html").read_text()
    assert "success (%)" in page and "<td>start</td><td>0\u00a0m</td><td class=n>100</td>" in page
    assert page.count("<svg") == 4 and "data:image/png" in page and page.count("<script>") == 1
    lines = (tmp_path / "robustness/scripted-fork.jsonl").read_text()
    assert main(args) == 0  # nothing is run again
    assert (tmp_path / "robustness/scripted-fork.jsonl").read_text() == lines
    assert "not up to 0.4 [0.4, beyond]" in capsys.readouterr().out


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def climbed(name, *more):
        assert (
            main(
                [
                    "robustness",
                    "scripted",
                    "fork",
                    "--episodes",
                    "12",
                    "--rows",
                    "3",
                    "--levels",
                    "noise=0.8",
                    "--shifts",
                    "noise",
                    "--json",
                    "--save",
                    name,
                    *more,
                ]
            )
            == 0)
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        each = {line["about"]["severity"]: [] for line in lines}
        for line in lines:
            each[line["about"]["severity"]] += line["episodes"]
        return capsys.readouterr().out, each
    alone = climbed("one.jsonl")
    assert climbed("two.jsonl", "--workers", "2") == alone
    assert climbed("one.jsonl", "--workers", "2") == alone  # and what was kept is not run again


@pytest.mark.parametrize(("args", "message"), [
    (["--shifts", "wind"], "--shifts: there is no shift 'wind'; there are start, gust"),
    (["--levels", "gust"], "--levels: levels must be KIND=L,L"),
    (["--levels", "gust=0,1"], "--levels: levels must be KIND=L,L"),
    (["--levels", "gust=2,1"], "--levels: levels must be KIND=L,L"),
    (["--levels", "gust=nan"], "--levels: levels must be KIND=L,L"),
    (["--levels", "delay=1.5"], "'delay' of fork: the level must be a whole number"),
    (["--levels", "dropped=2"], "'dropped': the probability is 2, which is not between 0 and 1"),
    (["--shifts", "gust", "--levels", "noise=1"], "--levels: these are levels of 'noise', which is not tested"),
    (["--episodes", "0"], "--episodes: must be at least 1"), (["--seed", "-1"], "--seed: must be at least 0")])
def test_what_cannot_be_is_said_before_anything_is_run(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["robustness", "scripted", "fork", *args]) == 2
    assert re.search(message, errors := capsys.readouterr().err) and "\n  -> " in errors
    assert not (tmp_path / "robustness").exists()
