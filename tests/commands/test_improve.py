"""The command improve: its plan, its rounds, what it stores, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.cli import TINY, refused
from fixtures.collections import collected, contents
from fixtures.killed_training import killed_command

from understudy import make
from understudy.checkpoint import find_checkpoint
from understudy.cli import main
from understudy.commands.parts.improve_page import corrections_of
from understudy.commands.parts.run_options import trained_on
from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import compare, evaluate, evaluation_of, validation_seed
from understudy.execute.chunking import RecedingHorizon
from understudy.improve.earlier_rounds import with_earlier_rounds
from understudy.improve.promotion import Promotion
from understudy.improve.rating import ScoreThreshold
from understudy.improve.retention import AllEpisodes, SuccessfulEpisodes
from understudy.learn.method import Method, load_actor, load_policy
from understudy.learn.run import Run
from understudy.learn.train import train

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
    assert "2 rounds with 3 updates each, 6 in all; 2 episodes in each, beside the 6 of RUN" in plan[2]
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


def test_the_page_lists_what_was_corrected(folder, improve, tmp_path):
    page, run = tmp_path / "pages" / "page.html", tmp_path / "run"
    page.parent.mkdir()
    args = ["--with", "hg-dagger", "--supervisor", "scripted", "--out", run, *SHORT]
    assert improve(*args, "--html", page, "--collect-with", "best")[0] == 0
    acted = [np.concatenate([[0], e.steps["intervention"], [0]]) for data in collected(run) for e in data]
    lengths = sorted((int(n) for a in acted for n in np.diff(np.flatnonzero(np.diff(a)))[::2]), reverse=True)
    assert [c.steps for c in corrections_of(run)] == lengths and lengths
    assert "What was corrected" in page.read_text()
    shutil.rmtree(page.parent)  # the command of the run can still be read
    assert trained_on(run) == folder / "fork"


def test_a_method_that_learns_from_what_its_policy_does_collects_with_no_other(improve, tmp_path):
    refused(improve("--with", "rlif", "--supervisor", "scripted", "--out", tmp_path / "run", "--collect-with", "best",
                    *SHORT), "--collect-with best", "rlif learns from what the policy that it trains does")


@pytest.mark.parametrize(("name", "who"), [
    ("dagger", "scripted"), ("hg-dagger", "scripted"), ("safe", "scripted"), ("lazy", "b"), ("dagger", "b"),
    ("ensemble", "scripted"), ("thrifty", "b"), ("iwr", "scripted"), ("sirius", "b"), ("rlif", "scripted")])
def test_what_a_supervisor_did_is_counted_and_only_that_is_learned(name, who, folder, improve, tmp_path):
    supervisor = who if who == "scripted" else folder / who
    status, text, err = improve("--with", name, "--supervisor", supervisor, "--out", tmp_path / "run", *SHORT, "--json")
    assert status == 0, err
    document, rounds = json.loads(text), collected(tmp_path / "run")
    acted = sum(int(e.steps["intervention"].sum()) for data in rounds for e in data)
    others = sum(data.steps for data in rounds) - acted
    asked = name in ("ensemble", "thrifty")
    labeled = others if name == "dagger" else 0
    watched = 0 if asked else others - labeled
    assert document["human_steps"] == {"acted": acted, "labeled": labeled, "watched": watched}
    learner = Method.load(tmp_path / "run").learner
    for e in (e for data in rounds for e in data):
        wanted = e.steps["supervisor_action" if name != "dagger" else "action"]
        sent = e.steps["action" if name != "dagger" else "executed_action"]
        assert np.array_equal(sent, np.where(e.steps["intervention"][:, None], wanted, e.steps["policy_action"]))
        assert not asked or np.array_equal(e.steps["advised"], e.steps["intervention"]) and "doubt" in e.steps
        penalized = np.flatnonzero(e.steps["next.reward"] == -1) if name == "rlif" else []
        assert all(e.steps["intervention"][t + 1] and not e.steps["intervention"][t] for t in penalized)
    column = getattr(learner, "sampling_column", None)
    assert (column == "intervention") == (name in ("hg-dagger", "safe", "lazy", "ensemble", "thrifty"))


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


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("dagger", "hg-dagger"), ("sirius", "dagger"), ("rlif", "hg-dagger")])
def test_a_run_that_was_improved_learns_all_that_it_was_trained_on(first, second, folder, improve, tmp_path):
    args = ["--supervisor", "scripted", *SHORT]
    assert improve(*args, "--with", first, "--out", tmp_path / "one")[0] == 0
    base = tmp_path / "one"
    status, _, err = improve(*args, "--with", second, "--out", tmp_path / "two", base=base)
    assert status == 0 and "beside the 10 of RUN" in err  # 6 demonstrations, and two rounds of 2 episodes
    stored = open_dataset(folder / "fork")
    [one, two] = [json.loads((find_checkpoint(tmp_path / name) / "provenance.json").read_text())
                  for name in ("one", "two")]
    assert one["data"]["fingerprint"] == stored.fingerprint() and one["held_out"] == two["held_out"]
    assert two["data"]["episodes"] == 10 and two["data"]["steps"] == stored.steps + sum(
        data.steps for data in collected(tmp_path / "one"))
    learner = Method.load(tmp_path / "two").learner
    assert learner.sampling_column == "intervention"  # what the policy did in between is not imitated
    best = improve(*args, "--with", "dagger", "--out", tmp_path / "early", base=base / "best")
    n_seen = int(find_checkpoint(base / "best").name) // 3  # rounds of 3 updates
    assert f"beside the {6 + 2 * n_seen} of RUN" in best[2], best[2]
    third = improve(*args, "--with", "iwr", "--out", tmp_path / "three", base=tmp_path / "two")
    assert third[0] == 0 and "beside the 14 of RUN" in third[2], third[2]


def test_the_rival_is_as_many_demonstrations_as_took_those_steps(folder, improve, tmp_path):
    """Also where episodes of earlier rounds, which took another time, are learned."""
    args = ["--supervisor", "scripted", *SHORT]
    assert improve(*args, "--with", "dagger", "--out", tmp_path / "one")[0] == 0
    demonstrations, rounds = open_dataset(folder / "fork"), collected(tmp_path / "one")
    assert not np.isclose(np.mean([n for r in rounds for n in r.lengths]), demonstrations.lengths.mean(), rtol=0.1)
    status, text, _ = improve(*args, "--with", "dagger", "--out", tmp_path / "two", base=tmp_path / "one")
    labeled = sum(data.steps for data in collected(tmp_path / "two"))
    count = round(labeled / demonstrations.lengths.mean())
    assert status == 0 and f"labeled {labeled} " in text and f"are {count} more demonstrations" in text
    assert f"--episodes {count} " in text


def test_a_policy_that_must_be_told_something_is_refused(folder, improve, tmp_path):
    assert main(["train", "gcbc", str(folder / "fork"), "--out", str(folder / "goals"), *TINY[:-4]]) == 0
    args = ["--with", "dagger", "--supervisor", "scripted", "--out", tmp_path / "run", *SHORT]
    refused(improve(*args, base="goals"), "acts only when it is told", "improve tells nothing", "--env ENV")


def test_the_rival_is_trained_with_the_options_of_the_run(folder, improve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--seed", "3", "bc", str(folder / "fork"), "--out", str(folder / "own"),
                 "--val-fraction", "0", "--horizon", "2", *TINY]) == 0
    _, text, _ = improve("--with", "dagger", "--supervisor", "scripted", *SHORT, "--out", "one", base="own")
    line = next(line for line in text.splitlines() if "understudy train" in line)
    assert line.split()[1:] == ["train", "bc", "together.json", "--seed", "3", "--val-fraction", "0.0", "--device",
                                "cpu", "--horizon", "2", *TINY[-4:], "--out", "rival", "--steps", "26"]


def test_rounds_of_one_run_are_compared_on_the_same_starts_by_the_same_success(folder, improve, tmp_path):
    args = ["--with", "dagger", "--supervisor", "scripted", *SHORT[:-4], "--device", "cpu", "--out", tmp_path / "run"]
    assert improve(*args, "--compare", "6")[0] == 0
    before = contents(tmp_path / "run")
    refused(improve(*args, "--compare", "8"), "compared with --compare 6", "another --out", "--with dagger")
    refused(improve(*args, "--compare", "6", "--success", folder / "b"), "compared without --success", "another --out")
    refused(improve(*args, "--compare", "6", "--env", "fork:easy"), "compared with --env fork")
    assert contents(tmp_path / "run") == before and improve(*args, "--compare", "6")[0] == 0


def test_data_in_other_units_are_named(folder, improve, tmp_path, capsys):
    data = open_dataset(folder / "fork")
    state = {"observation.state": [57.3 * np.asarray(e.steps["observation.state"]) for e in data]}
    scaled = Dataset([e.replace({k: v[i] for k, v in state.items()}) for i, e in enumerate(data)])
    write_dataset(scaled, tmp_path / "degrees.npz", "npz")
    args = ["--with", "dagger", "--supervisor", "scripted", *SHORT, "--out", tmp_path / "run"]
    status, _, err = improve(*args, "--data", tmp_path / "degrees.npz", "--env", "fork")
    assert status == 0 and "degrees.npz: scale-differs: observation.state" in err, err
    for prior, is_named in ((tmp_path / "degrees.npz", True), (folder / "fork", False)):
        assert main(["train", "behavior-retrieval", str(folder / "fork"), "--prior", str(prior), "--device", "cpu",
                     "--out", str(tmp_path / f"mixed{is_named}"), "--steps", "2"]) == 0
        assert (f"--prior {prior}: scale-differs: " in capsys.readouterr().err) == is_named


@pytest.mark.parametrize("is_asked", [True, False])
def test_interrupted_episodes_are_learned_if_those_of_the_run_were(is_asked, folder, improve, tmp_path):
    episodes = [replace(e, metadata={**e.metadata, "interrupted": i == 1})
                for i, e in enumerate(open_dataset(folder / "fork"))]
    write_dataset(Dataset(episodes), tmp_path / "data.npz", "npz")
    options = ["--include-interrupted"] * is_asked
    assert main(["train", "bc", str(tmp_path / "data.npz"), "--out", str(tmp_path / "base"), *options, *TINY]) == 0
    for base, out, count in (("base", "one", 5 + is_asked), ("one", "two", 9 + is_asked)):
        status, _, err = improve("--with", "dagger", "--supervisor", "scripted", "--env", "fork", *SHORT,
                                 "--out", tmp_path / out, base=tmp_path / base)
        assert status == 0 and f"beside the {count} of RUN" in err, err
        provenance = json.loads((find_checkpoint(tmp_path / out) / "provenance.json").read_text())
        assert provenance["left_out"] == [1] * (not is_asked)


def test_labels_of_an_earlier_round_are_learned_at_every_step(folder, improve, tmp_path):
    args = ["--with", "dagger", "--supervisor", "scripted", *SHORT]
    assert improve(*args, "--out", tmp_path / "one")[0] == 0
    data, n_unlearned = with_earlier_rounds(open_dataset(folder / "fork"), tmp_path / "one")
    assert n_unlearned == 0 and len(data) == 10
    assert all("intervention" not in e.steps for e in data[:6])
    assert all(e.steps["intervention"].all() and "executed_action" in e.steps for e in data[6:])


def test_a_run_that_others_helped_is_improved_again(folder, improve, tmp_path):
    """Its rounds name stages, a supervisor and a rater, which neither the next rounds nor their stages need."""
    rater = tmp_path / "rater"
    assert main(["train", "understudy.improve.rating:episode_rater", str(folder / "fork"), "--out", str(rater),
                 *TINY]) == 0
    short = ["--rounds", "1", "--episodes", "2", "--steps", "3", "--compare", "6", "--device", "cpu"]
    for name, args in (("supervisor", ["--with", "dagger", "--supervisor", folder / "b"]),
                       ("rater", ["--with", "filtered", "--rater", rater])):
        once, again = (tmp_path / f"{name}-{i}" for i in range(2))
        for base, out in ((folder / "a", once), (once, again)):
            status, _, err = improve(*args, *short, "--out", out, base=base)
            assert status == 0, err
        assert sorted(p.name for p in (again / "stages").iterdir()) == ["from", name]
        retention = ScoreThreshold(load_policy(rater)) if name == "rater" else AllEpisodes()
        kept = retention.keep(Dataset([*open_dataset(folder / "fork"), *collected(once)[0]]))
        assert f"beside the {len(kept)} of RUN" in err


def test_a_supervisor_acts_with_its_own_executor(folder, improve, tmp_path):
    """A policy that plans 8 steps and executes 2 of them is no policy that executes all 8."""
    method = Method.load(folder / "a")
    chunks = replace(method, policy=replace(method.policy, window=Window(1, 8)), executor=RecedingHorizon(2))
    train(chunks, open_dataset(folder / "fork"), tmp_path / "chunks", device="cpu", progress=False)
    args = ["--with", "dagger", "--supervisor", tmp_path / "chunks", "--out", tmp_path / "run", *SHORT]
    status, _, err = improve(*args)
    assert status == 0, err
    supervisor = Method.load(tmp_path / "run").collection.collector.supervisor
    assert supervisor.method.executor == Method.load(tmp_path / "chunks").executor == RecedingHorizon(2)
    actor, [first, *_] = load_actor(tmp_path / "chunks", rows=16), collected(tmp_path / "run")
    episode = first[0]
    key = keys(int(episode.metadata["seed"]), [int(episode.metadata["number"])])
    obs = {k: torch.from_numpy(np.array(v)) for k, v in episode.steps.items() if k.startswith("observation.")}
    state = actor.start({k: v[:1] for k, v in obs.items()}, key)
    for t in range(len(episode)):
        action, state = actor.act({k: v[t:t + 1] for k, v in obs.items()}, state)
        assert np.array_equal(action[0].numpy(), episode.steps["action"][t])


@pytest.mark.parametrize(("args", "words"), [
    (["--with", "magic"], ["'magic'", "dagger, hg-dagger, safe, lazy, ensemble, thrifty, iwr, sirius, rlif, doubt"]),
    (["--with", "ensemble", "--supervisor", "scripted", "--intervention-rate", "0.9"],
     ["at most 0.5", "such as --intervention-rate 0.1"]),
    (["--with", "dagger"], ["dagger needs a supervisor", "scripted", "keyboard"]),
    (["--with", "filtered", "--supervisor", "scripted"], ["filtered has no supervisor", "hg-dagger"]),
    (["--with", "dagger", "--supervisor", "nobody"], ["'nobody' is neither a supervisor nor a run", "scripted"]),
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


def test_a_policy_that_keeps_its_data_is_refused_before_it_is_evaluated(folder, improve, tmp_path):
    assert main(["train", "knn", str(folder / "fork"), "--out", str(tmp_path / "knn")]) == 0
    result = improve("--with", "dagger", "--supervisor", "scripted", "--out", tmp_path / "run", *SHORT,
                     base=tmp_path / "knn")
    refused(result, "Neighbors keeps its training data")
    assert "base:" not in result[2]


def test_the_run_of_another_command_is_refused_before_the_base_is_evaluated(folder, improve, monkeypatch):
    monkeypatch.setattr(Promotion, "evaluate", None)
    refused(improve("--with", "dagger", "--supervisor", "scripted", "--out", folder / "b", *SHORT),
            f"{folder / 'b'}: there is a run of another command", "choose another --out")


def test_a_negative_number_of_starts_is_refused(folder, improve, tmp_path):
    args = ["--with", "hg-dagger", "--supervisor", "scripted", "--out", str(tmp_path / "run")]
    refused(improve(*args, *SHORT, "--compare", "-3"), "--compare: must be at least 0, but is -3")


@pytest.mark.parametrize("rounds", [0, -1])
def test_there_is_at_least_one_round(rounds, improve, tmp_path):
    refused(improve("--with", "iwr", "--supervisor", "scripted", "--out", tmp_path / "run", "--rounds", rounds),
            "--rounds: must be at least 1", "such as --rounds 5")


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


def test_the_data_of_a_run_are_found_from_another_folder(tmp_path, monkeypatch, capsys):
    """Commands name them as they were seen from the folder in which they were given, which may have moved since."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["record", "fork", "--out", "demos", "--episodes", "6"]) == 0
    assert main(["train", "bc", "demos", "--out", "runs/one", *TINY]) == 0
    args = ["--with", "dagger", "--supervisor", "scripted", *SHORT]
    assert main(["improve", "runs/one", "--out", "runs/two", *args]) == 0
    assert [trained_on(Path(run)) for run in ("runs/one", "runs/two")] == [Path("demos")] * 2
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    for run in ("one", "one/best", "two"):
        assert trained_on(Path("there/runs") / run) == (tmp_path / "there" / "demos").resolve()
    capsys.readouterr()
    assert main(["improve", "there/runs/two", "--out", "three", *args]) == 0
    assert "beside the 10 of RUN" in capsys.readouterr().err


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


@pytest.mark.slow
@pytest.mark.parametrize("seed, name", [*enumerate((
    "hg-dagger", "ensemble", "thrifty", "iwr", "sirius", "rlif", "dagger", "safe", "lazy", "doubt"))])
def test_killed_at_any_time_it_is_the_same_run(seed, name, folder, tmp_path, monkeypatch):
    """kill -9 at up to four random moments of each: before, in and between rounds."""
    args = ["improve", str(folder / "a"), "--with", name, "--supervisor", "scripted", "--out", "run", "--rounds",
            "4", "--episodes", "6", "--steps", "40", "--compare", "30", "--device", "cpu"]
    if name == "doubt":
        assert main(["calibrate", str(folder / "a"), "fork", "--score", "novelty", "--rate", "0.5", "--episodes", "30",
                     "--device", "cpu"]) == 0
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert main(args) == 0
    (tmp_path / "killed").mkdir()
    assert (places := killed_command(args, tmp_path / "killed", 4, seed)), "it was never killed"
    actual, expected = contents(tmp_path / "killed" / "run"), contents(tmp_path / "whole" / "run")
    assert actual.keys() == expected.keys(), places
    assert not (different := [file for file in expected if actual[file] != expected[file]]), (places, different)
