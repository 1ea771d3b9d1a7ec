"""The command improve: its plan, its rounds, what it stores, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.cli import TINY, refused
from fixtures.collections import collected, contents

from understudy import make
from understudy.cli import main
from understudy.data.formats import open_dataset
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import compare, evaluate, evaluation_of, validation_seed
from understudy.improve.promotion import Promotion
from understudy.improve.retention import SuccessfulEpisodes
from understudy.learn.method import Method, load_actor
from understudy.learn.run import Run

SHORT = ["--rounds", "2", "--episodes", "2", "--steps", "3", "--compare", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Demonstrations of the fork, two small runs, and one of another environment."""
    path = tmp_path_factory.mktemp("improve")
    for env in ("fork", "particle"):
        assert main(["record", env, "--out", str(path / env), "--episodes", "6"]) == 0
    for run, data, seed in (("a", "fork", "0"), ("b", "fork", "1"), ("other", "particle", "0")):
        assert main(["train", "bc", str(path / data), "--out", str(path / run), "--seed", seed, *TINY]) == 0
    return path


@pytest.fixture
def improve(folder, capsys):
    def run(*args, base="a"):
        capsys.readouterr()
        return main(["improve", str(folder / base), *map(str, args)]), *capsys.readouterr()
    return run


def test_it_says_if_another_learner_takes_the_place_of_that_of_the_run(folder, improve, tmp_path):
    assert main(["train", "iql", str(folder / "fork"), "--out", str(folder / "iql"), *TINY]) == 0
    args = ["--with", "dagger", "--supervisor", "scripted", *SHORT]
    status, _, progress = improve("--out", tmp_path / "cloned", *args, base="iql")
    assert status == 0 and "learner: cloning with its usual settings, in place of IQL of" in progress
    assert "learner:" not in improve("--out", tmp_path / "same", *args)[2]


def test_it_says_what_it_will_do_compares_each_round_and_leaves_the_run_alone(folder, improve, tmp_path):
    before, out = contents(folder / "a"), tmp_path / "better"
    args = ["--with", "dagger", "--supervisor", "scripted", "--out", out, *SHORT]
    status, text, progress = improve(*args)
    assert status == 0 and contents(folder / "a") == before
    env = make("fork", 16)
    base = evaluate(load_actor(folder / "a", rows=16), env, 6, validation_seed(0))
    plan = progress.splitlines()
    assert plan[0].startswith(f"base: {folder / 'a'}, success {base.success.estimate:.1%} [")
    assert "2 rounds with 3 updates each; 2 episodes in each, beside the 6 of RUN" in plan[2]
    assert "on the 6 starts of the base" in plan[3] and str(out / "collection") in plan[4]
    lines = [line for line in Run(out).read_metrics() if "outcomes" in line]
    assert [line["step"] for line in lines] == [0, 3, 6] and lines[0]["outcomes"] == base.successes.tolist()
    best = lines[0]
    for line in lines[1:]:
        assert line["against"] == best["step"]
        assert line["gain"] == pytest.approx(np.mean(line["outcomes"]) - np.mean(best["outcomes"]))
        assert line["promoted"] == (line["gain"] >= 0 and line["gain/high"] >= 0)
        best = line if line["promoted"] else best
    assert Run(out).named_checkpoints()["best"] == f"checkpoints/{best['step']:06d}"
    assert "round 2" in text and "next:" in text and "more demonstrations" in text
    stored, dates = contents(out), {p: p.stat().st_mtime_ns for p in (out / "collection").rglob("episodes.npz")}
    assert improve(*args)[0] == 0  # the same command has nothing left to do
    assert contents(out) == stored and dates == {p: p.stat().st_mtime_ns for p in dates}


def test_the_last_comparison_is_on_fresh_starts(folder, improve, tmp_path):
    page = tmp_path / "page.html"
    args = ["--with", "dagger", "--supervisor", "scripted", "--out", tmp_path / "run", *SHORT]
    document = json.loads(improve(*args, "--json", "--html", page)[1])
    assert "Success against steps of the supervisor" in page.read_text() and "round 2" in page.read_text()
    env, run = make("fork", 16), tmp_path / "run"
    base = evaluate(load_actor(folder / "a", rows=16), env, 6, 0)
    assert document["fresh"]["base"]["estimate"] == base.success.estimate
    assert validation_seed(0) != 0 and document["fresh"]["episodes"] == 6
    if document["fresh"]["best"] is not None:
        best = evaluate(load_actor(run / "best", rows=16), env, 6, 0)
        assert document["fresh"]["paired"]["difference"] == compare(best, base).difference


@pytest.mark.parametrize(("name", "who"), [
    ("dagger", "scripted"), ("hg-dagger", "scripted"), ("safe", "scripted"), ("lazy", "b"), ("dagger", "b")])
def test_what_a_supervisor_did_is_counted_and_only_that_is_learned(name, who, folder, improve, tmp_path):
    supervisor = who if who == "scripted" else folder / who
    status, text, err = improve("--with", name, "--supervisor", supervisor, "--out", tmp_path / "run", *SHORT, "--json")
    assert status == 0, err
    document, rounds = json.loads(text), collected(tmp_path / "run")
    acted = sum(int(e.steps["intervention"].sum()) for data in rounds for e in data)
    others = sum(data.steps for data in rounds) - acted
    labeled = others if name == "dagger" else 0
    assert document["human_steps"] == {"acted": acted, "labeled": labeled, "watched": others - labeled}
    learner = Method.load(tmp_path / "run").learner
    for e in (e for data in rounds for e in data):
        wanted = e.steps["supervisor_action" if name != "dagger" else "action"]
        sent = e.steps["action" if name != "dagger" else "executed_action"]
        assert np.array_equal(sent, np.where(e.steps["intervention"][:, None], wanted, e.steps["policy_action"]))
    assert (learner.sampling_column == "intervention") == (name != "dagger")


def test_filtered_learns_from_successes_alone_and_needs_one(folder, improve, tmp_path, monkeypatch):
    out, evaluate_base = tmp_path / "run", Promotion.evaluate

    def judged(success):
        def judge(self, actor):
            data = evaluate_base(self, actor).episodes
            return evaluation_of(data.map(lambda e: replace(e, metadata={**e.metadata, "success": success})))
        return judge
    monkeypatch.setattr(Promotion, "evaluate", judged(False))
    refused(improve("--with", "filtered", "--out", out, *SHORT), "none of 6 episodes", "a first success")
    assert not out.exists()
    monkeypatch.setattr(Promotion, "evaluate", judged(True))
    status, text, err = improve("--with", "filtered", "--out", out, *SHORT)
    assert status == 0 and "It cost no human steps." in text, err
    assert isinstance(Method.load(out).collection.retention, SuccessfulEpisodes)


def test_a_round_that_improves_nothing_says_so(folder, improve, tmp_path, monkeypatch):
    call = Promotion.__call__

    def worse(self, actor):  # the base succeeds everywhere, and later policies nowhere
        metrics = call(self, actor)
        rate = float("gain" not in metrics)
        return {**metrics, "score": rate, "outcomes": [bool(rate)] * 6, "promoted": bool(rate)}
    monkeypatch.setattr(Promotion, "__call__", worse)
    status, text, err = improve("--with", "dagger", "--supervisor", "scripted", "--out", tmp_path / "run", *SHORT)
    assert status == 0, err
    assert "No round improved the policy" in text and "To try:" in text
    assert Run(tmp_path / "run").named_checkpoints()["best"] == "checkpoints/000000"
    best, base = (load_actor(path, rows=16) for path in (tmp_path / "run" / "best", folder / "a"))
    env = make("fork", 6)
    assert np.array_equal(evaluate(best, env, 6).episode_returns, evaluate(base, env, 6).episode_returns)


def test_a_run_that_was_improved_can_be_improved(folder, improve, tmp_path):
    args = ["--with", "dagger", "--supervisor", "scripted", *SHORT]
    assert improve(*args, "--out", tmp_path / "one")[0] == 0
    status, _, err = improve(*args, "--out", tmp_path / "two", base=tmp_path / "one" / "best")
    assert status == 0 and "episodes that it collected are not learned again" in err


@pytest.mark.parametrize(("args", "words"), [
    (["--with", "magic"], ["'magic'", "dagger, hg-dagger, safe, lazy, filtered"]),
    (["--with", "dagger"], ["dagger needs a supervisor", "scripted", "keyboard"]),
    (["--with", "filtered", "--supervisor", "scripted"], ["filtered has no supervisor", "hg-dagger"]),
    (["--with", "dagger", "--supervisor", "nobody"], ["'nobody' is no supervisor", "scripted"]),
    (["--with", "dagger", "--supervisor", "keyboard"], ["no terminal to read keys from", "scripted"]),
    (["--with", "dagger", "--supervisor", "{folder}/other"], ["observation"]),
    (["--with", "dagger", "--supervisor", "scripted", "--env", "particle"], ["observation"]),
    (["--with", "dagger", "--supervisor", "scripted", "--data", "{folder}/nowhere"], ["are gone", "--data DATA"]),
    (["--with", "dagger", "--supervisor", "scripted", "--out", "{folder}/a"], ["--out", "another folder"]),
    (["--with", "filtered", "--env", "Pendulum-v1"], ["observation"])])
def test_bad_input(args, words, folder, improve, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115 closed at the end of the process
    out = [] if "--out" in args else ["--out", str(tmp_path / "run")]
    refused(improve(*(a.replace("{folder}", str(folder)) for a in args), *out, *SHORT), *words)
    assert not (tmp_path / "run").exists()


def test_without_success_there_is_nothing_to_practice(folder, improve, tmp_path, monkeypatch):
    build = Fork.__init__

    def unjudged(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.metadata = {**self.metadata, "success": None}
    monkeypatch.setattr(Fork, "__init__", unjudged)
    refused(improve("--with", "filtered", "--out", tmp_path / "run", *SHORT), "needs a success signal", "dagger")


def test_data_that_are_gone_or_have_changed(folder, improve, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "fork", "mine")
    assert main(["train", "bc", "mine", "--out", "run", *TINY]) == 0
    args = ["--with", "dagger", "--supervisor", "scripted", "--out", "better", *SHORT]
    shutil.rmtree("mine")
    refused(improve(*args, base=tmp_path / "run"), "data that it was trained on are gone: mine", "--data DATA")
    shutil.copytree(folder / "particle", "mine")
    refused(improve(*args, base=tmp_path / "run"), "have changed since", "--data mine")
    assert improve(*args, "--data", folder / "fork", base=tmp_path / "run")[0] == 0


def test_two_cannot_write_into_one_folder(improve, tmp_path):
    args = ["--with", "dagger", "--supervisor", "scripted", "--out", tmp_path / "run", *SHORT]
    with Run(tmp_path / "run").locked():
        refused(improve(*args), "another process is training into this folder", "choose another --out")
    assert improve(*args)[0] == 0
    refused(improve(*args, "--episodes", 3), "started with other settings", "another --out")


def test_episodes_stay_a_data_set_of_their_own(folder, improve, tmp_path, capsys):
    assert improve("--with", "hg-dagger", "--supervisor", "scripted", "--out", tmp_path / "run", *SHORT)[0] == 0
    data = open_dataset(tmp_path / "run" / "collection" / "000000" / "episodes.npz")
    assert {"action", "policy_action", "supervisor_action", "intervention"} <= set(data.features())
    assert main(["inspect", str(tmp_path / "run" / "collection" / "000000" / "episodes.npz")]) == 0


KILLED = """
    import os, sys
    os.chdir({folder!r})
    from understudy.cli import main
    import understudy.commands.improve, understudy.learn.train, understudy.envs, understudy.improve.improvement
    print("ready", flush=True)
    sys.exit(main({args!r}))
    """


@pytest.mark.slow
def test_killed_at_any_time_it_is_the_same_run(folder, tmp_path, monkeypatch):
    """kill -9 at random moments: before, in and between rounds."""
    args = ["improve", str(folder / "a"), "--with", "hg-dagger", "--supervisor", "scripted", "--out", "run", "--rounds",
            "4", "--episodes", "6", "--steps", "40", "--compare", "30", "--device", "cpu"]
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert main(args) == 0
    (tmp_path / "killed").mkdir()
    code = textwrap.dedent(KILLED).format(folder=str(tmp_path / "killed"), args=args)
    rng, kills, wait = np.random.default_rng(0), 0, 0.2
    while True:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            assert process.stdout.readline() == "ready\n"
            try:
                _, err = process.communicate(timeout=rng.uniform(0.05, wait) if kills < 8 else None)
                assert process.returncode == 0, err
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills, wait = kills + 1, wait * 1.4
    assert kills >= 3 and contents(tmp_path / "killed" / "run") == contents(tmp_path / "whole" / "run")
