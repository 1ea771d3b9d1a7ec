"""Acting with another execution scheme, and with tasks in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.cli import TINY, document, proposed, refused

from understudy import load_actor, make
from understudy.checkpoint import FromStage, find_checkpoint
from understudy.cli import main
from understudy.commands.export import _example_evaluation
from understudy.commands.parts.conditions import _distant_components, tell_distant_conditions
from understudy.core import Batch, Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.text_columns import TaskText
from understudy.envs.toys.fork import ForkExpert
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import ObservationWrapper
from understudy.execute.adaptive import ChunkBlending
from understudy.files import read_json
from understudy.learn.method import Method, TrainedRun, resolve_references, training_data
from understudy.methods import find_method
from understudy.policy import Policy

LEFT, RIGHT = (f"{'go on, ' * 6}and pass it on the {side}" for side in ("left", "right"))  # more than 64 bytes


def test_a_policy_acts_with_another_execution_scheme(call, place, tmp_path):
    """A low-pass filter halves each change of the action in an open field, and everything says which scheme it was."""
    shared = ("eval", place / "a", "fork", "--episodes", "3")
    assert call(*shared, "--save", tmp_path / "plain")[0] == 0
    status, out, _ = call(*shared, "--executor", "low-pass", "--save", tmp_path / "filtered")
    assert status == 0 and "--executor low-pass" in out
    plain, filtered = (open_dataset(tmp_path / name) for name in ("plain", "filtered"))
    for one, other in zip(plain, filtered, strict=True):
        assert np.allclose(one.steps["action"][0], other.steps["action"][0])  # the first one is executed as it is
        assert not np.allclose(one.steps["action"][1], other.steps["action"][1], atol=1e-6)
    last = json.loads((place / "a" / "eval" / "fork.jsonl").read_text().splitlines()[-1])
    assert last["executor"] == "low-pass"
    refused(call(*shared, "--executor", "low-pas"), "no execution scheme 'low-pas'", "did you mean 'low-pass'")
    refused(call("eval", place / "a", place / "demos", "--executor", "low-pass"), "recorded episodes")
    refused(call("robustness", "scripted", "fork", "--executor", "low-pass"), "the expert plans no chunks")
    status, _, _ = call("train", "bc", place / "demos", "--out", tmp_path / "run", "--executor", "chunk-blending",
                        "--executor.weight", "0.25", *TINY)
    assert status == 0 and Method.load(tmp_path / "run").executor == ChunkBlending(1, weight=0.25)


EXECUTOR = """
from dataclasses import dataclass, field
from understudy.execute.chunking import ChunkedExecutor

@dataclass(frozen=True)
class Slowed(ChunkedExecutor):
    n_action_steps: int = 7
    skip: int = 0
    factor: float = 0.5

    def accept_plan(self, planner, state, request, chunk, delay=0):
        return self.replace_chunk(state, request.rows, self.factor * chunk, delay)

@dataclass(frozen=True)
class Demanding(Slowed):
    pace: int = field(kw_only=True)

class Loose(ChunkedExecutor):
    pass
"""


@pytest.mark.slow
def test_an_executor_from_outside_replaces_that_of_the_method(call, place, tmp_path, monkeypatch):
    """Its options follow --executor, and the number of executed steps stays that of the method."""
    (tmp_path / "slowed.py").write_text(EXECUTOR)
    monkeypatch.chdir(tmp_path)
    name = ["--executor", "slowed:Slowed", "--executor.factor", "0.25"]
    shared = ("eval", place / "a", "fork", "--episodes", "3", "--save")
    assert call(*shared, tmp_path / "plain")[0] == 0
    refused(call(*shared, tmp_path / "no", *name), "names slowed:Slowed", "add --trust slowed")
    status, out, _ = call(*shared, tmp_path / "slow", *name, "--trust", "slowed", "--workers", "2")
    assert status == 0 and "--executor slowed:Slowed --executor.factor 0.25 --trust slowed" in out
    plain, slow = (open_dataset(tmp_path / folder) for folder in ("plain", "slow"))
    for one, other in zip(plain, slow, strict=True):
        assert np.allclose(0.25 * one.steps["action"][0], other.steps["action"][0], atol=1e-6)
    refused(call(*shared, tmp_path / "no", *name[:2], "--executor.facto", "1", "--trust", "slowed"),
            "no option --executor.facto", "did you mean '--executor.factor'?")
    refused(call(*shared, tmp_path / "no", *name[2:]), "none is named")
    refused(call(*shared, tmp_path / "no", "--executor", "slowed:Demanding", "--trust", "slowed"), "needs pace")
    refused(call(*shared, tmp_path / "no", "--executor", "slowed:Missing", "--trust", "slowed"), "slowed:Missing")
    refused(call(*shared, tmp_path / "no", "--executor", "slowed:Loose", "--trust", "slowed"), "frozen dataclass")
    for command in (["compare", place / "a", tmp_path / "plain", "--env", "fork"],
                    ["robustness", place / "a", "fork", "--shifts", "noise", "--levels", "noise=0.1"]):
        assert call(*command, "--episodes", "3", *name, "--trust", "slowed")[0] == 0
    status, _, _ = call("train", "bc", place / "demos", "--out", tmp_path / "run", *name, "--trust", "slowed", *TINY)
    executor = Method.load(tmp_path / "run", ("slowed",)).executor
    assert status == 0 and type(executor).__name__ == "Slowed"
    assert (executor.n_action_steps, executor.factor) == (1, 0.25)
    status, out, _ = call("export", place / "a", "--out", tmp_path / "a.onnx", *name, "--trust", "slowed",
                          "--inputs", "5", "--json")
    assert status == 0 and json.loads(out)["executor"] == "Slowed"
    out = call("export", place / "a", "--out", tmp_path / "b.onnx", "--inputs", "5")[1]
    assert f"understudy eval {tmp_path / 'b.onnx'} fork --episodes 100\n" in out  # of its data


@pytest.mark.slow
def test_an_exported_file_is_told_its_goal(call, place, tmp_path):
    """It acts as the run does, by the command that export suggests. It computes no other condition."""
    run, file, demos = tmp_path / "run", tmp_path / "run.onnx", tmp_path / "demos"
    shutil.copytree(place / "demos", demos)
    assert call("train", "gcbc", demos, "--out", run, *TINY[:6], "--policy.trunk.widths", "16")[0] == 0
    (*command, env, _, _, option, goal), = proposed(call("export", run, "--out", file, "--inputs", "5")[1])
    assert (command, env, option) == (["eval", str(file)], "fork", "--condition")
    refused(call("eval", file, "fork"), "give it: --condition goal=x,y\n")
    actions = []
    for policy in (run, file):
        saved = tmp_path / f"{policy.name} saved"
        assert call("eval", policy, "fork", "--episodes", 2, option, goal, "--save", saved)[0] == 0
        actions.append([e.steps["action"] for e in open_dataset(saved)])
    for one, other in zip(*actions, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    for condition in ("return_to_go=1", f"demonstration={demos}"):
        refused(call("eval", file, "fork", option, goal, condition), "no condition but a goal", "evaluate the run")
    assert _example_evaluation(run, Method.load(run)) == ("fork", [option, goal])
    demos.rename(tmp_path / "moved")
    assert _example_evaluation(run, Method.load(run)) == (None, [])


def test_a_goal_in_another_unit_is_warned_of(call, place, tmp_path):
    """States of fork are at most 1.2 away from 0, and its rewards are 0 or 1."""
    run, shared = tmp_path / "run", ("fork", "--episodes", 1, "--rows", 1, "--condition")
    assert call("train", "gcbc", place / "demos", "--out", run, *TINY[:6], "--policy.trunk.widths", "16")[0] == 0
    status, _, err = call("eval", run, *shared, "goal=2000,0.1")
    assert status == 0 and "the condition 'goal' is far from what" in err
    assert "component 0 is 2000, and was about" in err
    assert "component 1" not in err and len([line for line in err.splitlines() if line.startswith("warning")]) == 1
    assert "warning" not in call("eval", run, *shared, "goal=1,0.1")[2]


@pytest.mark.parametrize("scale, limits", [("zscore", (4 - 20, 4 + 20)), ("minmax", (5 - 30, 5 + 30))])
def test_a_condition_is_far_at_ten_scales_of_its_column(scale, limits):
    """The mean of the values is 4 and their standard deviation 2; the middle of their range is 5 and its half 3. A
    component that is constant has one value alone. A codec that scales nothing knows nothing."""
    features = {"observation.goal": Feature("float32", (2,)), "action": Feature("float32", (1,))}
    values = torch.tensor([[2.0, 7], [2, 7], [8, 7], [4, 7], [4, 7], [4, 7]])
    batch = Batch({"observation.goal": values[:, None]}, torch.zeros(6, 1, 1), torch.ones(6, 1, dtype=torch.bool), {})
    codec = Normalizer(obs=scale).build(features, ("observation.goal",), "action")
    assert codec.obs_statistics("observation.goal") is None  # not computed yet
    codec.fit_statistics(lambda: iter([batch]))

    def said(*goal):
        return _distant_components(codec, "observation.goal", torch.tensor(goal))
    for limit, inside in zip(limits, (0.01, -0.01), strict=True):
        assert said(limit + inside, 7.0) == [] and len(said(limit - inside, 7.0)) == 1
    assert said(4.0, 7.1) == ["component 1 is 7.1, and was always 7"] and said(4.0, 7.001) == []
    assert said(4.0) == [] and codec.obs_statistics("observation.other") is None


def test_the_goal_of_a_masked_trajectory_is_compared_with_states(monkeypatch, capsys):
    env = make("fork", 4)
    data = rollout(env.expert(), env, 4, seed=recording_seed(0))
    method = find_method("maskdp")
    features = training_data(data, method).features()
    policy = Policy(method.policy, features).fit_statistics(training_data(data, method))
    monkeypatch.setattr(TrainedRun, "load", lambda *_: TrainedRun(method, {"policy": policy}))
    tell_distant_conditions(Path("run"), {"observation.goal": torch.tensor([1.0, 0.0])})
    assert capsys.readouterr().err == ""
    tell_distant_conditions(Path("run"), {"observation.goal": torch.tensor([1000.0, 0.0])})
    assert capsys.readouterr().err.startswith("warning: the condition 'goal' is far from what run was trained with")


def test_a_return_that_only_a_stage_reads_is_compared_with_its_data(monkeypatch, capsys):
    """The planned states of decision-diffuser follow the return. The inverse dynamics, which act, do not read it."""
    data = Dataset([Episode({"observation.state": np.zeros((4, 2), "f"), "action": np.zeros((4, 1), "f"),
                             "next.reward": np.full(4, i, "f")}) for i in range(3)])
    method = find_method("decision-diffuser")
    changed = training_data(data, method.stages[0].method)
    states = Policy(method.stages[0].method.policy, changed.features()).fit_statistics(changed)
    resolved = resolve_references(method, {FromStage("states"): states})
    monkeypatch.setattr(TrainedRun, "load", lambda *_: TrainedRun(resolved, {}))
    tell_distant_conditions(Path("run"), {"observation.return_to_go": torch.tensor([10.0])})
    assert capsys.readouterr().err == ""
    tell_distant_conditions(Path("run"), {"observation.return_to_go": torch.tensor([800.0])})
    assert "the condition 'return_to_go' is far from what run was trained with" in capsys.readouterr().err


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """Two tasks that nothing but their words tells apart ("two.npz"), and a run that was told them ("run")."""
    folder, env = tmp_path_factory.mktemp("told"), make("fork", 20)
    episodes = [e for side in (1, -1) for e in rollout(ForkExpert(side=side), env, 20, seed=recording_seed(0))]
    np.savez(folder / "two.npz", observations=np.concatenate([e.steps["observation.state"][:-1] for e in episodes]),
             actions=np.concatenate([e.steps["action"] for e in episodes]),
             episode_ends=np.cumsum([*map(len, episodes)]),
             task=[LEFT] * 20 + [RIGHT] * 20)
    assert main(["train", "bc", str(folder / "two.npz"), "--out", str(folder / "run"), "--language", "--steps", "250",
                 "--save-freq", "250", "--device", "cpu", "--policy.trunk.width", "64", "--batch-size", "64",
                 "--policy.encoder.text.channels", "16", "--val-fraction", "0"]) == 0
    return folder


def test_a_file_that_does_not_encode_words_says_so(call, told, tmp_path):
    pytest.importorskip("onnxscript", reason="extra onnx not installed")
    status, out, err = call("export", told / "run", "--out", tmp_path / "told.onnx", "--inputs", 5)
    assert status == 0 and "does not compute what TaskText adds" in out, out + err


def test_words_decide_what_is_done(call, told):
    for words, side in ((LEFT, 1), (RIGHT, -1)):
        evaluation = document(call("eval", told / "run", "fork", "--task", words, "--episodes", 20, "--json",
                                   "--save", told / str(side), "--device", "cpu"))
        assert evaluation["successes"] == 20
        assert all(side * e.steps["observation.state"][:, 1].mean() > 0.1 for e in open_dataset(told / str(side)))
    # The same words from Python, and on recorded episodes.
    read = torch.tensor(TaskText(len(RIGHT)).encode(RIGHT))
    by_hand = evaluate(
        ObservationWrapper(load_actor(told / "run", rows=16), {"observation.task": read}), make("fork", 20), 20)
    assert by_hand.successes.all() and all(e.steps["observation.state"][:, 1].mean() < -0.1 for e in by_hand.episodes)
    assert call("eval", told / "run", told / "two.npz")[0] == 0


def test_words_that_were_never_trained_are_told(call, told):
    run, few = told / "run", ("--episodes", 2, "--device", "cpu")
    assert read_json(find_checkpoint(run) / "provenance.json")["data"]["tasks"] == sorted([LEFT, RIGHT])
    assert "not trained on" not in call("eval", run, "fork", "--task", LEFT, *few)[2]
    status, out, err = call("eval", run, "fork", "--task", "fly to the moon " * 9, *few, "--json")
    warned, = [line for line in err.splitlines() if "not trained on" in line]
    assert status == 0 and out.startswith("{") and f"'{'fly to the moon ' * 3}" in warned and len(warned) < 400
    assert warned.startswith("warning: ") and LEFT in warned and RIGHT in warned
    assert "not trained on" in call("robustness", run, "fork", "--task", "fly", "--episodes", 2, "--shifts", "noise",
                                    "--levels", "noise=0.1", "--device", "cpu")[2]


def test_tasks_of_an_environment_that_were_never_trained_are_told(call, tmp_path):
    assert call("record", "gridworld_tasks", "--out", tmp_path / "all", "--episodes", 40)[0] == 0
    data = open_dataset(tmp_path / "all")
    first = sorted({e.metadata["task"] for e in data})
    some = data.filter(lambda e: e.metadata["task"] in first[:4])
    write_dataset(some, tmp_path / "some")
    train = ("train", "bc", tmp_path / "some", "--out", tmp_path / "run", *TINY)
    assert call(*train)[0] == 0
    trained_tasks = read_json(find_checkpoint(tmp_path / "run") / "provenance.json")["data"]["tasks"]
    assert set(trained_tasks) <= set(first[:4])
    status, _, err = call("eval", tmp_path / "run", "gridworld_tasks", "--episodes", 20, "--save", tmp_path / "saved")
    tasks = [e.metadata["task"] for e in open_dataset(tmp_path / "saved")]
    n = sum(task not in trained_tasks for task in tasks)
    assert status == 0 and 0 < n < 20
    assert f"warning: {n} of 20 episodes have a task that {tmp_path / 'run'} was not trained on, such as" in err
    assert f"It was trained on {len(trained_tasks)} tasks, such as" in err
    held_out = call("eval", tmp_path / "run", tmp_path / "all")[2]
    assert "episodes have a task" in held_out


def test_shorter_words_of_an_environment_reach_a_served_policy(call, tmp_path):
    pytest.importorskip("websockets", reason="extra serve not installed")
    from understudy.commands.serve import ServeOptions, load_service
    from understudy.serve.server import BackgroundServer

    assert call("record", "words", "--out", tmp_path / "words", "--episodes", 6)[0] == 0
    assert call("train", "bc", tmp_path / "words", "--out", tmp_path / "run", "--language", *TINY)[0] == 0
    few = ("words", "--episodes", 4, "--device", "cpu", "--save")
    assert call("eval", tmp_path / "run", *few, tmp_path / "local")[0] == 0
    with BackgroundServer(load_service(ServeOptions(run=tmp_path / "run", device="cpu"))) as server:
        assert call("eval", server.url, *few, tmp_path / "a")[0] == 0
        assert call("eval", server.url, *few, tmp_path / "b", "--executor", "server")[0] == 0
    local, *served = (open_dataset(tmp_path / name) for name in ("local", "a", "b"))
    for data in served:
        for one, other in zip(local, data, strict=True):
            np.testing.assert_array_equal(one.steps["action"], other.steps["action"])


def test_words_that_are_missing_or_too_many(call, told, place, tmp_path):
    run, two = told / "run", told / "two.npz"
    refused(call("eval", run, "fork", "--episodes", 2), " reads the task in words, but none is given", "--task 'WORDS'")
    refused(call("eval", place / "a", "fork", "--episodes", 2, "--task", "go"), "trained without words", "--language")
    kept = ["eval", run, "fork", "--episodes", 2, "--device", "cpu", "--save", told / "kept", "--task"]
    assert call(*kept, LEFT)[0] == 0
    refused(call(*kept, "go"), "'go'", LEFT)
    train = ["train", "bc", "--out", tmp_path / "r", "--language", *TINY]
    refused(call(*train[:2], place / "demos", *train[2:]), "the data have no tasks in words", "leave out")
    refused(call(*train[:2], two, *train[2:], "--eval", "fork"), "--eval: the environment fork does not say")
    refused(call("train", "knn", two, "--language", "--out", tmp_path / "r"), "observation.task", "TokenEncoder")
    assert not list(tmp_path.iterdir())
