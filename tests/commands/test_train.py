"""understudy train: what it reports, resumes and refuses."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
from fixtures.cli import TINY, document, refused, save, start

from understudy import Dataset, load_actor, make
from understudy.commands.parts import common
from understudy.commands.parts.method import build_method
from understudy.commands.parts.options import split_arguments
from understudy.commands.train import TrainOptions
from understudy.core import ConfigError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.data.formats.lerobot import write

# -- what one sees on a good day ------------------------------------------------------------------------------------


def test_training_with_rollouts_names_best_and_last(call, place, tmp_path):
    status, out, err = call("train", "bc", place / "demos", "--out", tmp_path / "r", *TINY, "--eval", "fork",
                            "--rollouts", 4)
    assert status == 0 and "update 10: score" in err and f"understudy eval {tmp_path / 'r'}/best fork" in out
    places = json.loads((tmp_path / "r" / "run.json").read_text())
    assert set(places) == {"best", "last"} and places["last"] == "checkpoints/000020"
    scores = {line["step"]: line["score"] for line in map(json.loads, (
        tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) if "score" in line}
    assert scores[int(places["best"][-6:])] == max(scores.values()) and set(scores) == {10, 20}
    card = (tmp_path / "r" / "CARD.md").read_text()
    assert "understudy train bc" in card and "--rollouts 4" in card
    again = ("train", "bc", place / "demos", "--out", tmp_path / "r", *TINY)
    refused(call(*again, "--eval", "fork"), "scored in 4 episodes of fork", "--eval fork --rollouts 4")
    refused(call(*again), "scored in 4 episodes of fork")
    assert call(*again, "--eval=fork", "--rollouts=4")[0] == 0
    refused(call(*again, "--rollouts", 4), "--rollouts: is a number of episodes in the environment of --eval")
    refused(call(*again, "--random-steps", 4), "--random-steps: has no effect where DATA are named")
    refused(call("train", "sac", "--env", "fork", "--out", "none", "--random-steps", 0), "must be at least 1")


def test_a_run_that_was_begun_without_rollouts_can_get_them_later(call, place, tmp_path):
    run = tmp_path / "r"
    train = ("train", "bc", place / "demos", "--out", run, *TINY, "--optimizer.lr-schedule", "constant")
    scored = ("--eval", "fork", "--rollouts", 4)
    assert call(*train)[0] == 0
    refused(call(*train, *scored), "all 20 updates are done", f"understudy eval {run} fork")
    assert call(*train, *scored, "--steps", 30)[0] == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "score" in line] == [20, 30]
    refused(call(*train, "--steps", 40), "scored in 4 episodes of fork")


def test_data_with_the_name_of_an_environment_are_evaluated_and_not_it(call, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "demos", "fork")
    assert "understudy eval r ./fork" in call("train", "bc", "fork", "--out", "r", *TINY)[1]
    assert "On 1 episode that it was not trained on" in call("eval", "r", "./fork")[1]
    _, out, err = call("eval", "r", "fork", "--episodes", 2)
    assert " of 2 in fork" in out and "the recorded episodes in this folder are ./fork" in err


def test_no_evaluation_is_suggested_for_a_classifier_which_does_not_act(call, place, tmp_path):
    name, run = "understudy.improve.success:success_classifier", tmp_path / "r"
    trained = call("train", name, place / "demos", "--out", run, *TINY)
    judged = call("eval", run, place / "demos")
    assert trained[0] == judged[0] == 0 and f"understudy eval {run} {place / 'demos'}" in trained[1]
    for out in (trained[1], judged[1]):
        assert f"understudy eval {run} fork" not in out and f"eval {run} --interactive" not in out


def test_the_card_says_what_chose_the_best(call, place, tmp_path):
    assert "\nThe energy score chose the best checkpoint.\n" in (place / "a" / "CARD.md").read_text()
    for name, options, sentence in (("s", ["--eval", "fork", "--rollouts", 2],
                                     "\nThe score chose the best checkpoint, so"),
                                    ("n", ["--val-fraction", 0], None)):
        assert call("train", "bc", place / "demos", "--out", tmp_path / name, *TINY, *options)[0] == 0
        text = (tmp_path / name / "CARD.md").read_text()
        assert sentence in text if sentence else "chose the best" not in text


def test_training_says_how_it_goes_and_that_nothing_is_held_out(call, tmp_path):
    number = re.compile(r"^update (\d+): (.*)loss [\d.e-]+$", re.M)
    small, large = save(tmp_path / "small.npz"), save(tmp_path / "large.npz", steps=(5, 7, 4, 6, 8))
    status, _, err = call("train", "bc", small, "--out", tmp_path / "s", *TINY)
    assert status == 0 and number.findall(err) == [("10", ""), ("20", "")]
    assert "no episode is held out: that takes 5 or more" in err
    status, _, err = call("train", "bc", large, "--out", tmp_path / "l", *TINY)
    assert status == 0 and [n for n, _ in number.findall(err)] == ["10", "20"] and "held out" not in err
    assert all("error on held-out episodes" in name for _, name in number.findall(err))
    for name, options in (("n", ()), ("p", ("--prior", small))):
        assert ("no episode is held out, so" in call("train", "bc", large, "--out", tmp_path / name, *TINY,
                                                     "--val-fraction", 0, *options)[2])


def test_updates_of_the_critic_alone_print_no_lines(tmp_path):
    from understudy.commands.train import ProgressPrinter
    from understudy.learn.run import Run

    for every, has_validation, stage in ((None, False, None), (4, True, None), (4, False, "practice")):
        look = ProgressPrinter(Run(tmp_path), every and 8, every, has_validation, stage)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            for step in range(1, 9):
                look(step, None, {"critic/loss": 1.0, "loss": 2.0} if step % 2 else {"critic/loss": 1.0})
            look(8, None, {"validation/energy": 0.5})
        assert err.getvalue().count("update") == (2 if stage else 1)


def test_frames_of_another_size_are_brought_to_the_policys(call, tmp_path):
    """Training decodes to --image-size; at run time the camera's own frames go through the same function."""
    from understudy.core import keys
    from understudy.data.video import resize

    assert call("record", "push-images", "--out", tmp_path / "d", "--episodes", 2)[0] == 0
    status, _, err = call("train", "bc", tmp_path / "d", "--out", tmp_path / "r", "--steps", 1, "--image-size", 16, 24)
    data = open_dataset(tmp_path / "d")
    frames = data.steps + 2  # the last observations, too
    assert status == 0 and f"{frames} camera frames" in err
    assert f"16 x 24 pixels (--image-size): {16 * 24 * 3 * frames / 1e6:.1f} MB" in err
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        common.open_data(tmp_path / "d", 20)  # of a command without this option, such as eval
    assert "20 x 20 pixels: " in errors.getvalue()
    evaluation = document(call("eval", tmp_path / "r", "push-images", "--episodes", 2, "--json"))
    assert evaluation["env"] == "push-images"
    plays, key = load_actor(tmp_path / "r"), keys(0, [0, 1])
    obs = make("push-images", 2).reset(key * 0 + key.new_tensor([0, 1]), key)
    small = {**obs, "observation.images.top": resize(obs["observation.images.top"].numpy(), (16, 24))}
    assert plays.act(obs, plays.start(obs, key))[0].equal(plays.act(small, plays.start(small, key))[0])
    assert document(call("eval", tmp_path / "r", tmp_path / "d", "--json"))["origin"] == "trained on"


# -- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_are_told_from_options():
    assert split_arguments(
        [
            "bc",
            "d",
            "--out",
            "r",
            "--policy.head.n-steps",
            "5",
            "--seed",
            "1",
            "--horizon=8",
            "--executor.x",
            "1",
            "2",
        ],
        TrainOptions,
    ) == (
        ["bc", "d", "--out", "r", "--seed", "1"],
        ["--horizon=8"],
        ["--policy.head.n-steps", "5", "--executor.x", "1", "2"],
    )


def test_overrides_reach_the_method(call, place, tmp_path):
    assert (
        call(
            "train",
            "flow-policy",
            place / "demos",
            "--out",
            tmp_path / "r",
            "--steps",
            2,
            "--device",
            "cpu",
            "--policy.head.n-steps",
            5,
            "--optimizer.lr",
            "3e-4",
            "--executor.n-action-steps",
            2,
            "--executor.skip",
            1,
            "--policy.window.action-offset",
            "-1",
            "--optimizer.betas",
            "0.8",
            "0.9",
            "--horizon",
            6,
            "--policy.trunk.width=32",
            "--policy.head.solver",
            "heun",
        )[0]
        == 0
    )
    stored_method = json.loads((tmp_path / "r" / "checkpoints" / "000002" / "method.json").read_text())
    assert stored_method["policy"]["head"]["n_steps"] == 5 and stored_method["executor"]["n_action_steps"] == 2
    assert stored_method["learner"]["optimizer"]["lr"] == 3e-4
    assert stored_method["learner"]["optimizer"]["betas"] == [0.8, 0.9]
    assert stored_method["policy"]["window"] | {"$": 0} == {
        "$": 0,
        "n_obs_steps": 2,
        "horizon": 6,
        "action_offset": -1,
        "obs_offset": 0,
        "goals": [],
        "obs_pad_mask": False,
    }
    assert stored_method["policy"]["head"]["solver"] == {"$": "understudy.heads.solvers:Heun"}
    assert stored_method["policy"]["trunk"]["width"] == 32 and stored_method["learner"]["steps"] == 2


@pytest.mark.parametrize("given", [
    ["--every-step"], ["--every-step", "true"], ["--every-step=true"]])
def test_a_flag_of_a_method_needs_no_value(given):
    """`--every-step` alone is true, like a flag of a field, whatever option follows."""
    for args in (given, [*given, "--n-clusters", "8"]):
        assert build_method("bet", args, [], None, ()).policy.window.horizon == 5
    method = build_method("bet", ["--every-step", "false"], [], None, ())
    assert method.policy.window.horizon == 1


def untyped(horizon=3, every_step=True):
    """A function of a user."""
    return build_method("bet", [f"--every-step={str(every_step).lower()}"], [], None, ()) if horizon == 2 else 0


def test_options_without_a_type_have_that_of_their_default():
    """The text "false" counted as true."""
    name, trust = f"{__name__}:untyped", (__name__.partition(".")[0],)
    method = build_method(name, ["--horizon", "2", "--every-step", "false"], [], None, trust)
    assert method == build_method("bet", ["--every-step", "false"], [], None, ())


def test_a_field_is_not_set_twice():
    """The second value won without a word."""
    says = "--policy.window.horizon: contradicts --horizon 5, which sets this field to 5"
    with pytest.raises(ConfigError, match=says):
        build_method("bc", ["--horizon", "5"], ["--policy.window.horizon", "6"], None, (), steps=3)
    same = build_method("bc", ["--horizon", "5"], ["--policy.window.horizon", "5"], None, ())
    assert same.policy.window.horizon == 5


@pytest.mark.parametrize(("change", "words"), [
    (["--policy.head.stepz", "5"], ["no option --policy.head.stepz", "did you mean '--policy.head.n-steps'?"]),
    (["--optimizer.betas", "0.9"], ["--optimizer.betas: needs 2 values, but has only 0.9"]),
    (["--policy.window.n-obs-steps", "1", "2"], ["understudy train flow-policy: unexpected argument '2'"]),
    (["--policy.head.n-steps", "five"], ["five"]),
    (["--policy.head.solver", "Hein"], ["'Hein' is not Euler, Midpoint or Heun", "did you mean 'Heun'?"]),
    (["--horizn", "5"], ["did you mean '--horizon'"]), (["--horizon", "x"], ["--horizon", "'x'"]),
    (["--horizon"], ["--horizon", "has no value"]), (["--optimizer.lr", "-1"], ["lr"]),
    (["--policy.inputs", "observation.stat"], ["did you mean 'observation.state'"]), (["--steps", "0"], ["--steps"]),
    (["--device", "cuda:999"], ["cuda"]), (["--val-fraction", "1.5"], ["1.5"])])
def test_a_wrong_change_names_the_right_one(call, place, tmp_path, change, words):
    refused(call("train", "flow-policy", place / "demos", "--out", tmp_path / "r", *change), *words)
    assert not (tmp_path / "r" / "checkpoints").exists()


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "words"), [
    (("--executor.n-action-steps", "20"), ("skip + n_action_steps", "only 8 steps", "20")),
    (("--policy.window.horizon", "0"), ("--policy.window.horizon: horizon is 0, but must be",)),
    (("--policy.window.n-obs-steps", "0"), ("--policy.window.n-obs-steps: n_obs_steps is 0, but must be",)),
])
def test_what_could_not_be_run_is_not_trained(call, place, tmp_path, change, words):
    refused(call("train", "bc-gmm", place / "demos", "--out", tmp_path / "r", *TINY, *change), *words)
    assert not (tmp_path / "r").exists()


def test_a_run_goes_on_only_as_it_was_begun(call, place, tmp_path):
    refused(call("train", "bc", place / "demos", "--out", place / "a", *TINY, "--seed", 5), "seed was 0, is 5")
    refused(call("train", "bc", place / "demos", "--out", place / "demos", *TINY), str(place / "demos"))
    status, _, err = call("train", "bc", place / "demos", "--out", place / "a", *TINY)
    assert status == 0 and "all 20 updates were done before\n" in err
    begun = shlex.join(["understudy", "train", "bc", str(place / "demos"), "--out", str(place / "a"), "--seed", "0",
                        *TINY])
    other = call("train", "bc-gmm", place / "demos", "--out", place / "a", *TINY)
    refused(other, "other settings: was bc, is bc-gmm; method.policy.head was Regression, is GMM; method.policy.window",
            f"; ...\n  -> choose another --out, or give the command it was begun with: {begun}\n")
    refused(call("train", "diffusion-policy", place / "demos", "--out", place / "a", "--seed", 5),
            "was bc, is diffusion-policy; seed was 0, is 5; ", "; ...\n")


def test_a_run_whose_data_changed_is_not_told_to_give_the_same_command(call, tmp_path):
    file, results = tmp_path / "data.npz", []
    for seed in (0, 1):
        values = np.random.default_rng(seed).normal(size=(40, 2)).astype("f")
        np.savez(file, observations=values, actions=values, episode_ends=[10, 20, 30, 40])
        results.append(call("train", "bc", file, "--out", tmp_path / "a", *TINY))
    assert results[0][0] == 0
    refused(results[1], "other settings: data was ", "-> choose another --out, or restore the data, or the version")


def test_training_that_goes_on_says_from_where_and_with_the_loss(call, place, tmp_path, monkeypatch):
    """Killed after a checkpoint was saved and before it was judged, as by kill -9."""
    from understudy.learn.train import _CheckpointEvaluation

    args = ["train", "bc", place / "demos", "--out", tmp_path / "r", *TINY]
    whole = call(*args[:4], tmp_path / "w", *TINY)[2]
    with monkeypatch.context() as patch:
        patch.setattr(_CheckpointEvaluation, "__call__", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(*args)[0] == 130
    output = call(*args)[2]
    assert "going on from" not in whole and "going on from update 10 of 20\n" in output
    updates = re.findall(r"^update .*loss.*$", whole, re.M)
    assert len(updates) == 2 and re.findall(r"^update .*$", output, re.M) == updates


def test_train_says_how_many_interrupted_episodes_are_left_out(call, tmp_path):
    rng = np.random.default_rng(0)
    episodes = [Episode({"observation.state": rng.normal(size=(9, 2)).astype(np.float32),
                         "action": rng.normal(size=(9, 1)).astype(np.float32)}, {"interrupted": True} if e == 2 else {})
                for e in range(4)]
    write(Dataset(episodes, {"fps": 10}), tmp_path / "d")
    bc = ("train", "bc", tmp_path / "d", "--steps", 1)
    status, _, err = call(*bc, "--out", tmp_path / "left")
    assert status == 0 and ("warning: 1 of 4 episodes was interrupted while it was recorded and is left out of training"
                            ": 2. understudy train --include-interrupted ") in err, err
    status, _, err = call(*bc, "--out", tmp_path / "asked", "--include-interrupted")
    assert status == 0 and "left out" not in err


# -- interrupts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
                                    pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_training_that_is_interrupted_says_how_to_go_on(place, tmp_path, number):
    args = ["train", "bc", place / "demos", "--out", "r", "--steps", "100000", *TINY[4:], "--save-freq", "100000"]
    process = start(*args, cwd=tmp_path)
    metrics = tmp_path / "r" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in err and "understudy train bc" in err
    assert "Traceback" not in err
    last = json.loads((tmp_path / "r" / "run.json").read_text())["last"]
    assert int(last[-6:]) > 0 and (tmp_path / "r" / last / "weights.safetensors").exists()
