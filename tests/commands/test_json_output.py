"""docs/json.md is a contract: each command prints the keys that it lists, and no others."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from folders import REPOSITORY

from understudy.cli import main
from understudy.improve.promotion import Promotion
from understudy.learn.training_curves import Curve, TrainingCurves

PAGE = (REPOSITORY / "docs/json.md").read_text(encoding="utf-8")
# Objects whose keys are names: of metrics, curves, ways. The last two are documented as a whole.
NAMED = ("behavior.metrics", "runs[].curves")
WHOLE = ("behavior.modes.counts", "behavior.modes.demonstrations", "runs[].evaluations", "behavior.against",
         "behavior.metrics.NAME.demonstrations", "behavior.modes.conditional_entropy",
         "behavior.discriminator_accuracy", "behavior.support", "skipped", "failed")

# Objects that the page describes once, as an interval and as a difference.
SHAPES = ({"estimate", "low", "high"}, {"estimate", "low", "high", "level"}, {"mean", "low", "high", "level"},
          {"difference", "low", "high", "p"})


def documented(title):
    """The keys of the first column of a section's table."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return {key for line in section.splitlines() if line.startswith("| `")
            for key in re.findall(r"`([^`]+)`", line.split("|")[1])}


def keys(value, at=""):
    """The paths of everything in a document, as the page writes them; of the parents too."""
    if at:
        yield at
    if at in WHOLE:
        return
    if isinstance(value, dict) and set(value) not in SHAPES:
        for name, part in value.items():
            yield from keys(part, f"{at}.{'NAME' if at in NAMED else name}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict):
                yield from keys(part, f"{at}[]")


def check(title, *documents):
    """Every leaf is documented, and everything documented is in one of the documents."""
    printed_keys = {k for d in documents for k in keys(d)}
    parents = {k[:i] for k in printed_keys
               for i in range(len(k)) if k[i] in ".["} | {k for k in printed_keys if k.endswith("[]")}
    page = documented(title)
    assert printed_keys - parents - page == set(), f"docs/json.md, {title!r}: not listed"
    assert page - printed_keys == set(), f"docs/json.md, {title!r}: listed, but not printed"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("json")
    assert main(["record", "fork", "--out", str(place / "demos"), "--episodes", "12"]) == 0
    for name, steps in (("a", 60), ("b", 40)):
        assert main(["train", "flow-policy", str(place / "demos"), "--out", str(place / name), "--steps", str(steps),
                     "--save-freq", "20", "--eval", "fork", "--rollouts", "4", "--policy.head.n-steps", "2"]) == 0
    return place


@pytest.fixture
def call(capsys):
    def run(*args):
        capsys.readouterr()
        status, out = main([str(a) for a in args]), capsys.readouterr()
        assert status == 0, out.err
        return json.loads(out.out, parse_constant=pytest.fail)
    return run


def test_train(call, place):
    out = place / "c"
    document = call("train", "bc", place / "demos", "--out", out, "--steps", 20, "--save-freq", 10, "--eval", "fork",
                    "--rollouts", 2, "--json")
    check("understudy train", document)
    assert (document["run"], document["method"], document["steps"], document["seed"]) == (str(out), "bc", 20, 0)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert document["loss"] == [line["loss"] for line in lines if "loss" in line][-1]
    best = document["best"]
    assert best["score"] == max(line["score"] for line in lines if "score" in line)
    assert Path(best["checkpoint"], "weights.safetensors").exists() and document["chosen_by"] == "score"
    plain = call("train", "bc", place / "demos", "--out", place / "d", "--steps", 5, "--val-fraction", 0, "--json")
    assert plain["best"] is plain["chosen_by"] is plain["last"]["score"] is plain["last"]["validation"] is None


def test_choose(call, place, tmp_path):
    acted = call("choose", place / "demos", "--env", "fork", "--out", tmp_path / "a", "--budget", "9s", "--methods",
                 "knn", "vinn", "flow-policy", "--episodes", 4, "--json")
    predicted = call("choose", place / "demos", "--out", tmp_path / "b", "--budget", "9s", "--methods", "knn", "vinn",
                     "--json")
    check("understudy choose", acted, predicted)
    assert list(acted["skipped"]) == ["flow-policy"] and (acted["of"], predicted["of"]) == ("success", "error")
    assert acted["recommended"] == acted["methods"][0]["name"] and acted["judged_on"] == 4


def test_convert(call, place, tmp_path):
    document = call("convert", place / "demos", tmp_path / "demos.npz", "--to", "npz", "--json")
    check("understudy convert", document)
    assert (document["format"], document["episodes"]) == ("npz", 12) and document["in_sidecar"]


def test_eval_in_an_environment(call, place):
    alone = call("eval", place / "a", "fork", "--episodes", 12, "--json")
    both = call("eval", place / "a", "fork", "--episodes", 12, "--json", "--against", place / "b", "--repeats", 2)
    trials = call("eval", place / "a", "fork@trials=2", "--episodes", 4, "--json")
    call("calibrate", place / "b", "fork", "--score", "novelty", "--rate", 0.3, "--episodes", 30, "--json")
    detected = call("eval", place / "b", "fork", "--episodes", 12, "--json", "--detect")
    gap = call("eval", place / "a", "fork", "--episodes", 12, "--json", "--train-env", "fork@trials=1")
    check("understudy eval RUN ENV", alone, both, trials, detected, gap)
    assert alone["trials"] is alone["trial_gain"] is alone["generalization_gap"] is None and len(trials["trials"]) == 2
    assert trials["trials"][-1]["successes"] == trials["successes"]
    assert alone["behavior"]["against"] is None
    assert set(both["behavior"]["against"]) == set(alone["behavior"]) - {"against"}


def test_eval_on_data(call, place):
    check("understudy eval RUN DATA", call("eval", place / "a", place / "demos", "--json"))


def test_improve(call, place, tmp_path, monkeypatch):
    score, documents = Promotion.__call__, []
    for sign in (1, -1):  # the round is better than the base, or worse
        def judged(self, actor, sign=sign):
            metrics = score(self, actor)
            return {**metrics, "score": sign * float("gain" in metrics), "promoted": "gain" not in metrics or sign > 0}
        monkeypatch.setattr(Promotion, "__call__", judged)
        documents.append(call("improve", place / "a", "--with", "dagger", "--supervisor", "scripted", "--out",
                              tmp_path / str(sign), "--rounds", 1, "--episodes", 2, "--steps", 2, "--compare", 4,
                              "--device", "cpu", "--json"))
    check("understudy improve", *documents)
    better, worse = documents
    assert better["best"].endswith("000002") and worse["best"].endswith("000000")
    assert better["fresh"]["paired"] is not None and worse["fresh"]["best"] is worse["fresh"]["paired"] is None


def test_improve_of_a_policy_of_lerobot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("websockets", reason="extra serve not installed")
    from fixtures.lerobot_stand_in import write_checkpoint, write_python
    from fixtures.takeovers import RobotSession

    python = write_python(tmp_path / "python", "fixtures.lerobot_stand_in.install")
    session = RobotSession(f"lerobot:{write_checkpoint(tmp_path / 'policy', 'direct', state=2)}", [
        "--with", "hg-dagger", "--robot", "simulated_arm", "--supervisor", "keyboard", "--episodes", "1",
        "--lerobot-python", str(python)], monkeypatch, capsys)
    monkeypatch.setenv("UNDERSTUDY_LEROBOT_PYTHON", "none")  # the option sets it
    monkeypatch.setenv("UNDERSTUDY_LEROBOT_DEVICE", "auto")
    status, out, err = session(tmp_path / "out", "--json", _4=["takeover"], _9=["success"])
    assert status == 0, err
    check("understudy improve lerobot:RUN", json.loads(out))


def test_plot(call, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = call("plot", place / "a", place / "b" / "best", "--json")
    check("understudy plot", document)
    assert not list(tmp_path.iterdir()), "a page only where one is asked for, or no JSON is"
    first, second = document["runs"]
    assert second["run"] == str(place / "b"), "a checkpoint stands for its run"
    lines = [json.loads(line) for line in (place / "a" / "metrics.jsonl").read_text().splitlines()]
    for key in ("loss", "validation/energy", "score"):
        some = [(line["step"], line[key]) for line in lines if key in line]
        assert some == list(zip(first["curves"][key]["steps"], first["curves"][key]["values"], strict=True))
    assert first["seconds"] == lines[-1]["seconds"]


def test_plot_writes_a_page(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", str(place / "a"), str(place / "b")]) == 0
    page, out = (tmp_path / "curves.html").read_text(), capsys.readouterr().out
    assert "understudy compare" in out and "understudy compare" in page
    assert page.count("<svg") == 7 and "http" not in page.replace("http-equiv", "")
    assert "Training loss" in page and "Error on held-out episodes" in page and "Score in rollouts" in page
    assert main(["plot", str(place / "a"), "--html", "one.html"]) == 0
    assert "The best checkpoint of a is that of update" in capsys.readouterr().out
    for args, words in ((["plot", "nowhere"], "nowhere"), (["plot", str(place / "a"), str(place / "a")], "twice")):
        assert main(args) == 2 and words in capsys.readouterr().err


def test_a_moving_average_keeps_constants_and_lines():
    steps = tuple(range(1, 101))
    assert Curve(steps, (2.0,) * 100).smoothed().values == pytest.approx((2.0,) * 100)
    line = Curve(steps, tuple(map(float, steps))).smoothed()
    assert line.values[5:95] == pytest.approx(steps[5:95]) and line.steps == steps
    assert Curve((1, 2), (0.0, 1.0)).at(2) == 1.0 and Curve((1, 2), (0.0, 1.0)).at(3) is None


def test_a_verdict_names_overfitting_and_refuses_other_data():
    from understudy.evaluate.training_report import training_verdict

    def run(name, data, *values):
        steps = tuple(range(1, len(values) + 1))
        best = steps[values.index(min(values))]
        return TrainingCurves(Path(name), {"validation/energy": Curve(steps, values)}, steps[-1], best, 1.0, data)
    head, sure, more = training_verdict({"a": run("a", "x", 1.0, 0.5, 0.75)})
    assert "update 2" in head and "0.5" in head and "not a success rate" in sure
    assert "50% higher at the end" in more and "overfits" in more
    assert training_verdict({"a": run("a", "x", 1.0, 0.5, 0.51)})[2] == ""
    overfit = run("a", "x", 1.0, 0.5, 0.75)
    rolled_out = replace(overfit, curves={**overfit.curves, "score": Curve((1, 2, 3), (0.1, 0.2, 0.3))})
    assert training_verdict({"a": rolled_out})[2] == "", "rollouts chose, in which it does not matter"
    head, _, more = training_verdict({"a": run("a", "x", 1.0, 0.5), "b": run("b", "x", 0.4, 0.6)})
    assert head.startswith("b has the lowest error on held-out episodes: 0.4") and more == ""
    head, _, more = training_verdict({"a": run("a", "x", 1.0, 0.5), "b": run("b", "y", 0.4, 0.6)})
    assert "lowest" not in head and "cannot be compared" in more


def test_errors_of_other_columns_are_not_ranked_among_those_of_actions(place, tmp_path):
    from understudy.evaluate.report import training_figures
    from understudy.evaluate.training_report import training_verdict

    run = TrainingCurves.load(place / "a")
    run = replace(run, curves={"validation/energy": run.curves["validation/energy"]})
    shutil.copytree(place / "a", tmp_path / "joint")
    for file in (tmp_path / "joint").rglob("method.json"):
        method = json.loads(file.read_text())
        file.write_text(json.dumps({**method, "policy": {**method["policy"], "target": "joint"}}))
    joint = replace(run, target=TrainingCurves.load(tmp_path / "joint").target)
    assert (run.error_of, joint.error_of) == ("actions", "'joint'")
    assert training_verdict({"a": run, "b": run})[0].startswith("a has the lowest error")
    assert training_verdict({"a": run, "b": joint})[0] == "2 trainings."
    assert "An error of 'joint' is not a success rate." in training_verdict({"b": joint})[1]
    captions = [caption for _, _, caption in training_figures({"a": run, "b": joint})]
    assert sum("The errors of b are of 'joint', and cannot be compared." in c and "of a are" not in c
               for c in captions) == 1


@pytest.mark.parametrize("option, package", [(["--tensorboard"], "torch.utils.tensorboard"),
                                             (["--wandb", "project"], "wandb")])
def test_a_logger_that_is_not_installed_is_named_before_anything_is_trained(place, option, package, monkeypatch,
                                                                            capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["train", "bc", str(place / "demos"), "--out", str(place / "logged"), *option]) == 2
    name = option[0].lstrip("-")
    assert f"pip install 'understudy[{name}]'" in capsys.readouterr().err and not (place / "logged").exists()
