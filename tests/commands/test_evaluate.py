"""understudy eval: rates, saved rollouts, recorded episodes and interrupts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from fixtures.cli import TINY, document, refused, start

from understudy import Dataset, load_actor, make
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.data.formats.lerobot import write
from understudy.data.opening import views
from understudy.data.operations import Crop, Drop, Label, ShiftedStarts, Sort
from understudy.data.segments import ColumnSegments, CutSegments
from understudy.evaluate.evaluation import evaluate, validation_seed
from understudy.learn.run import Run
from understudy.learn.train import train
from understudy.methods import find_method

# -- what one sees on a good day ------------------------------------------------------------------------------------


def interval(value, name):
    assert set(value) == {name, "low", "high", "level"} and value["level"] == 0.95
    assert value["low"] <= value[name] <= value["high"]


def test_eval(call, place):
    evaluation = document(call("eval", place / "a", "fork", "--episodes", 30, "--json"))
    assert list(evaluation) == ["env", "episodes", "successes", "success", "return", "seconds", "paired", "trials",
                                "trial_gain", "generalization_gap", "detection", "checkpoint", "behavior"]
    assert (evaluation["env"], evaluation["episodes"], evaluation["paired"]) == ("fork", 30, None)
    assert evaluation["success"]["estimate"] == evaluation["successes"] / 30
    interval(evaluation["success"], "estimate")
    interval(evaluation["return"], "mean")
    other = document(call("eval", place / "b", "fork", "--episodes", 30, "--json", "--against", place / "a"))
    assert set(other["paired"]) == {"against", "difference", "low", "high", "p"}
    assert other["paired"]["against"] == str(place / "a")
    assert other["paired"]["difference"] == pytest.approx((other["successes"] - evaluation["successes"]) / 30)


def test_the_generalization_gap_is_that_of_two_evaluations(call, place, tmp_path, monkeypatch):
    (tmp_path / "storm.py").write_text("from understudy import make\n\n\ndef fork(rows):\n"
                                       "    return make('fork', rows, gust=1.0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    args = ("--episodes", 30, "--trust", "storm", "--json")
    calm, storm = (document(call("eval", place / "a", env, *args)) for env in ("fork", "storm:fork"))
    both = document(call("eval", place / "a", "storm:fork", *args, "--train-env", "fork"))
    gap = both["generalization_gap"]
    assert (both["successes"], gap["env"], gap["of"]) == (storm["successes"], "fork", "success")
    assert (gap["successes"], gap["success"], gap["return"]) == (calm["successes"], calm["success"], calm["return"])
    assert gap["difference"] == pytest.approx((calm["successes"] - storm["successes"]) / 30)
    (log,) = (place / "a" / "eval").glob("storm*.jsonl")
    assert json.loads(log.read_text().splitlines()[-1])["generalization_gap"] == gap
    status, out, _ = call("eval", place / "a", "storm:fork", *args[:-1], "--train-env", "fork", "--html",
                          tmp_path / "gap.html")
    sentence = f"In the training environment fork: {calm['successes']} of 30. Generalization gap, fork minus storm:fork"
    assert status == 0 and sentence in out and sentence in (tmp_path / "gap.html").read_text()


@pytest.mark.parametrize("options", [("--sequential", "--threshold", 0.5), ("--against", "b")])
def test_a_generalization_gap_needs_one_run_and_a_fixed_number_of_episodes(call, place, options):
    refused(call("eval", place / "a", "fork", "--train-env", "maze:8", *options), "--train-env", "needs one run")
    refused(call("eval", place / "a", place / "demos", "--train-env", "fork"), "--train-env", "needs one run")
    refused(call("eval", place / "a", "fork", "--train-env", "fork"), "--train-env", "there is no gap")


def test_json_is_alone_even_where_a_library_greets(call, place, tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text("from understudy import make\nprint('hello')\n\n\ndef world(rows):\n"
                                        "    print('hello from', rows)\n    return make('fork', rows)\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = call("eval", place / "a", "chatty:world", "--episodes", 2, "--trust", "chatty", "--json")
    assert document(result)["episodes"] == 2 and "hello from 2" in result[2]


def test_eval_says_this_checkpoint_and_keeps_a_record(call, place):
    status, out, _ = call("eval", place / "b", "fork", "--episodes", 10, "--rows", 3)
    assert status == 0 and "checkpoint" in out and "95%" in out and "understudy eval" in out
    lines = [json.loads(line) for line in (place / "b" / "eval" / "fork.jsonl").read_text().splitlines()]
    assert sum(lines[-1]["each"]["success"]) == lines[-1]["successes"] and lines[-1]["episodes"] == 10
    assert lines[-1]["checkpoint"] == "000020" and len(lines[-1]["each"]["return"]) == 10


def test_another_environment_with_the_same_columns_is_told(call, place):
    _, _, progress = call("eval", place / "a", "four_rooms", "--episodes", 2)
    assert "was trained on data of fork, and four_rooms is another environment" in progress
    assert "another environment" not in call("eval", place / "a", "fork", "--episodes", 2)[2]


def test_saved_rollouts_go_on_and_judge_alike(call, place, tmp_path):
    args = ["eval", place / "a", "fork", "--json", "--save", tmp_path / "rollouts"]
    document(call(*args, "--episodes", 6))
    saved = document(call(*args, "--episodes", 20, "--rows", 5))
    plain = document(call("eval", place / "a", "fork", "--episodes", 20, "--json"))
    for key in ("successes", "success", "return"):
        assert saved[key] == plain[key]
    assert len(open_dataset(tmp_path / "rollouts")) == 20
    refused(call("eval", place / "b", "fork", "--episodes", 25, "--save", tmp_path / "rollouts"), "policy ")


def test_eval_on_recorded_episodes_is_no_success_rate(call, place, tmp_path):
    evaluation = document(call("eval", place / "a", place / "demos", "--json"))
    assert evaluation["success"] is None and evaluation["origin"] == "held out"
    assert "not a success rate" in evaluation["note"]
    status, out, _ = call("eval", place / "a", place / "demos", "--html", tmp_path / "r.html")
    assert status == 0 and "not a success rate" in out and "not a success rate" in (tmp_path / "r.html").read_text()
    heads = [line.split()[0] for line in out.splitlines() if "spread of its samples" in line]
    assert heads == ["component", "of"] and re.search(r"^of the episode .*\n0-10% ", out, re.MULTILINE)  # tells of what


@pytest.mark.parametrize("option", [("--task", "go"), ("--save", "rollouts"), ("--workers", 2),
                                    ("--episodes", 100), ("--rows", 2)])
def test_eval_on_recorded_episodes_refuses_options_of_rollouts(call, place, option):
    refused(call("eval", place / "a", place / "demos", *option), option[0], "these are recorded episodes")


def test_eval_says_that_recorded_episodes_have_no_words(call, place, tmp_path):
    views.write_view(tmp_path / "told.json", place / "demos", Label("task", "go"))
    args = ("--language", "--out", tmp_path / "run", "--steps", 1, "--device", "cpu", "--batch-size", 4)
    assert call("train", "bc", tmp_path / "told.json", *args)[0] == 0
    assert "warning" not in call("eval", tmp_path / "run", tmp_path / "told.json")[2]
    assert "has a task in words" in call("eval", tmp_path / "run", place / "demos")[2]


def test_eval_on_recorded_episodes_applies_operations_on_data_sets(call, place, tmp_path):
    """A transform may be an operation on the whole data set, which cannot be called with an episode."""
    method = replace(find_method("bc"), transforms=(Drop(("next.reward",)),))
    demos = open_dataset(place / "demos")
    train(method, demos, tmp_path / "run", steps=2, seed=0, progress=False, device="cpu")
    evaluation = document(call("eval", tmp_path / "run", place / "demos", "--json"))
    assert evaluation["origin"] == "held out" and evaluation["success"] is None


@pytest.mark.parametrize("operation,n_judged", [(Sort("rank"), 2), (CutSegments(ColumnSegments()), 4)],
                         ids=["order", "number"])
def test_eval_applies_operations_as_training_does(call, tmp_path, monkeypatch, operation, n_judged):
    """The error of the last checkpoint is the one that training measured on the same held-out episodes."""
    rng = np.random.default_rng(0)

    def episode(rank):
        state = rng.normal(size=(12, 2)).astype(np.float32)
        return Episode({"observation.state": state, "action": -state * (1 + rank),
                        "subtask": np.array(["left"] * 6 + ["right"] * 6)}, {"rank": rank})
    write(Dataset([episode(i * 7 % 20) for i in range(20)], {"fps": 10.0}), tmp_path / "d")
    data, run = open_dataset(tmp_path / "d"), tmp_path / "run"
    method = replace(find_method("bc"), transforms=(operation,))
    train(method, data, run, steps=5, seed=0, progress=False, device="cpu")
    measured = [line["validation/energy"] for line in Run(run).read_metrics() if "validation/energy" in line][-1]
    sizes, apply = [], type(operation).apply
    monkeypatch.setattr(type(operation), "apply", lambda self, data: (sizes.append(len(data)), apply(self, data))[1])
    evaluation = document(call("eval", f"{run}/last", tmp_path / "d", "--json"))
    assert evaluation["origin"] == "held out" and len(evaluation["episodes"]) == n_judged and sizes == [2, 18]
    assert evaluation["energy"]["estimate"] == pytest.approx(measured, rel=1e-5)


def test_eval_keeps_the_numbers_of_episodes_that_an_operation_keeps(call, tmp_path, place):
    method = replace(find_method("bc"), transforms=(Crop(start=1),))
    train(method, open_dataset(place / "demos"), tmp_path / "run", steps=2, seed=0, progress=False, device="cpu",
          val_fraction=[3, 7])
    assert document(call("eval", tmp_path / "run", place / "demos", "--json"))["episodes"] == [3, 7]


def test_policies_are_judged_on_recorded_episodes_and_not_on_those_that_an_operation_makes(call, tmp_path, place):
    run = tmp_path / "run"
    for transforms in ((), (ShiftedStarts(4),)):
        train(replace(find_method("bc"), transforms=transforms), open_dataset(place / "demos"), run, steps=0, seed=0,
              progress=False, device="cpu", val_fraction=[3, 7])
        judged = document(call("eval", run, place / "demos", "--json"))
        assert judged["episodes"] == [3, 7]
        assert Run(run).read_metrics()[-1]["validation/energy"] == pytest.approx(judged["energy"]["estimate"], rel=1e-5)
        run = tmp_path / "made"


def test_eval_on_numbers_that_are_none_is_refused(call, place, tmp_path):
    demos = open_dataset(place / "demos")
    actions, observations = (np.concatenate([e.steps[k][:len(e)] for e in demos])
                             for k in ("action", "observation.state"))
    for name, broken_array in (("observations", observations), ("actions", actions)):
        was, broken_array[len(demos[0]) + 2, 1] = broken_array[len(demos[0]) + 2, 1], np.nan
        file = tmp_path / f"{name}.npz"
        np.savez(file, observations=observations, actions=actions, episode_ends=np.cumsum([len(e) for e in demos]))
        refused(call("eval", place / "a", file), file.name, "episode 1, step 2", "not finite: nan")
        broken_array[len(demos[0]) + 2, 1] = was


def test_an_environment_without_success(call, tmp_path):
    call("record", "Pendulum-v1", "--out", tmp_path / "d", "--episodes", 2, "--actor", "random")
    assert call("train", "bc", tmp_path / "d", "--out", tmp_path / "r", *TINY, "--eval", "Pendulum-v1",
                "--rollouts", 1)[0] == 0
    evaluation = document(call("eval", tmp_path / "r", "Pendulum-v1", "--episodes", 2, "--json"))
    assert evaluation["successes"] is None and evaluation["success"] is None and evaluation["return"]["mean"] < 0
    # While it trained it was looked at on starts that eval never has: its mean return there, and not on eval's.
    scores = [line["score"] for line in map(json.loads, (tmp_path / "r" / "metrics.jsonl").read_text().splitlines())
              if "score" in line]
    plays, env = load_actor(tmp_path / "r", rows=16), make("Pendulum-v1", 1)
    at = {seed: evaluate(plays, env, 1, seed).returns.estimate for seed in (validation_seed(0), validation_seed(1), 0)}
    assert scores[-1] == at[validation_seed(0)] and len(set(at.values())) == 3


# -- bad input ------------------------------------------------------------------------------------------------------


def test_a_comparison_is_of_two_policies(call, place):
    twice = "--against", place / "b", f"--against={place / 'a'}"
    refused(call("eval", place / "a", "fork", *twice), "--against", "more than once")
    last = place / "a" / "checkpoints" / "000020"
    args = "eval", place / "a", "fork", "--episodes", 4, "--against", last
    status, out, _ = call(*args)
    assert status == 0 and "are the same checkpoint" in out  # as RUN/best and RUN may be
    assert "Cannot tell" not in out and "More episodes" not in out and str(last) not in out.partition("\nnext:")[2]
    assert "This checkpoint succeeds in " in out and document(call(*args, "--json"))["paired"] is None


def test_a_place_for_rollouts_that_is_taken(call, place):
    refused(call("eval", place / "a", "fork", "--episodes", 2, "--save", place / "demos"), "choose another folder")
    refused(call("eval", place / "a", "fork", "--episodes", 2, "--save", place / "b"), "choose another folder")


# -- interrupts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("saved", [True, False])
def test_an_evaluation_that_is_interrupted(call, place, tmp_path, saved):
    args = ["eval", place / "a", "fork", "--episodes", "100000", "--rows", "1"]
    process = start(*args, *(["--save", "d"] if saved else []), cwd=tmp_path)
    began = time.monotonic()
    while process.poll() is None and (not (tmp_path / "d" / "meta" / "info.json").exists() if saved
                                      else time.monotonic() < began + 10):
        time.sleep(0.02)
    for _ in range(6):  # on a busy machine it may still import PyTorch, which can lose an interrupt
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=30)
            break
        except subprocess.TimeoutExpired:
            continue
    else:
        process.kill()
        pytest.fail("it does not stop")
    assert process.returncode == 130 and "the same command continues" in err and "Traceback" not in err
    if saved:
        more = len(open_dataset(tmp_path / "d")) + 2
        evaluation = document(call(*args[:4], more, "--save", tmp_path / "d", "--json"))
        assert evaluation["successes"] == document(call(*args[:4], more, "--json"))["successes"]
