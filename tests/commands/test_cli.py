"""The command line: names, exit statuses, JSON and nothing else, bad input, and code from outside."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import Dataset, __version__, load_actor, make
from understudy.cli import COMMANDS, main
from understudy.commands import common
from understudy.commands.common import split_arguments
from understudy.commands.method import build_method
from understudy.commands.options import change_fields, settable_fields
from understudy.core import ConfigError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.formats.lerobot import write
from understudy.data.operations import Crop, Drop, Sort
from understudy.data.segments import ColumnSegments, CutSegments
from understudy.data.text_columns import TaskText, task_texts
from understudy.envs.toys.fork import ForkExpert
from understudy.evaluate.evaluation import evaluate, recording_seed, validation_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import ObservationWrapper
from understudy.execute.adaptive import ChunkBlending
from understudy.files import read_json
from understudy.learn.method import Method
from understudy.learn.run import Run
from understudy.learn.train import train
from understudy.methods import find_method, method_files
from understudy.policy import find_checkpoint

TINY = [
    "--steps",
    "20",
    "--save-freq",
    "10",
    "--device",
    "cpu",
    "--policy.trunk.width",
    "16",
    "--policy.trunk.depth",
    "1",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with demonstrations ("demos") and two small runs ("a", "b")."""
    folder = tmp_path_factory.mktemp("cli")
    assert main(["record", "fork", "--out", str(folder / "demos"), "--episodes", "12"]) == 0
    for run, seed in (("a", "0"), ("b", "1")):
        assert main(["train", "bc", str(folder / "demos"), "--out", str(folder / run), "--seed", seed, *TINY]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """call(*args) -> (exit status, standard output, standard error)."""
    def run(*args):
        capsys.readouterr()
        status = main([str(a) for a in args])
        return status, *capsys.readouterr()
    return run


def refused(result, *words: str, do: bool = True) -> None:
    """Status 2, and one message that says these words and what to do; no traceback, nothing on standard output."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    assert "\n  -> " in err or not do, err
    assert "Traceback" not in err and 'File "' not in err
    assert err.count("understudy: ") <= 1
    for word in words:
        assert word in err, err


def document(result):
    """What --json printed: one document and nothing else."""
    status, out, err = result
    assert status == 0, err
    return json.loads(out, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_names_every_command(call):
    status, out, _ = call("--help")
    assert status == 0 and all(f"  {name} " in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 120 and len(out.splitlines()) <= len(COMMANDS) + 11
    assert call()[:2] == (0, out)


def test_version(call):
    assert call("--version")[:2] == call("-v")[:2] == (0, __version__ + "\n")


def test_help_needs_no_pytorch():
    code = ("import sys, contextlib, io\nfrom understudy.cli import COMMANDS, main\n"
            "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
            "    assert main(['--help']) == 0 and all(main([c, '--help']) == 0 for c in COMMANDS)\n"
            "assert out.getvalue().count('usage:') == len(COMMANDS) + 1\n"
            "print(*(m for m in ('torch', 'numpy', 'scipy', 'gymnasium') if m in sys.modules))")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "\n"), ran.stderr


@pytest.mark.parametrize("terminal", [False, True])
def test_help_speaks_of_what_is_left_out_in_words(call, monkeypatch, terminal):
    """Also in colors, also over several lines; columns stay columns."""
    if terminal:
        monkeypatch.setattr("tyro._fmtlib._FORCE_ANSI", True)
    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        for args in (*([name, "--help"] for name in COMMANDS), ["train", "bc", "--help"]):
            out = call(*args)[1]
            assert ("\x1b[" in out) == terminal
            plain = re.sub(r"\x1b\[[\d;]*m", "", out)
            assert "{None}" not in plain
            assert len({len(line) for line in plain.splitlines() if line.startswith("  -")}) == 1
    assert re.search(r"--threshold RATE +distinguish one rate from this bound \(default: None\)", re.sub(
        r"\x1b\[[\d;]*m", "", call("plan", "--help")[1]))


def test_unknown_command(call):
    refused(call("recrod", "fork"), "no command 'recrod'", "understudy record fork")


@pytest.mark.parametrize("args", [["train", "bc"], ["train", "bc", "d", "--out", "r", "--stepz", "3"],
                                  ["eval", "r", "fork", "--episodes", "many"], ["record", "fork", "--by", "magic"]])
def test_usage(call, args):
    refused(call(*args), f"understudy {args[0]}")


@pytest.mark.parametrize(("args", "words"), [
    (["train", "bc", "d", "--out", "r", "--steps", "ten"], "--steps: 'ten' is not an integer\n"),
    (["train", "bc", "d", "--out", "r", "--val-fraction=much"], "--val-fraction: 'much' is not a number\n"),
    (["train", "bc", "d", "--out", "r", "--image-size", "96", "wide"],
     "--image-size: '96 wide' is not an integer or two integers\n"),
    (["eval", "r", "fork", "--episodes", "many"], "--episodes: 'many' is not an integer\n"),
])
def test_a_value_of_the_wrong_type_is_told_in_one_line(call, args, words):
    refused(call(*args), "understudy: " + words)


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("args", [
    "record fork --out d --episodes", "record fork --out d --episodes 3 --rows",
    "record fork --out d --episodes 3 --workers", "replay d fork --rows", "train bc d --out r --steps",
    "train bc d --out r --save-freq", "train bc d --out r --rollouts", "train bc d --out r --buffer-size",
    "train bc d --out r --max-episode-steps", "eval r fork --episodes", "eval r fork --rows", "eval r fork --workers",
    "compare a b --env fork --episodes", "compare a b --env fork --rows", "compare a b --env fork --workers",
    "plan 0.7 0.8 --episodes", "robustness r fork --episodes", "robustness r fork --rows",
    "claims run --all --workers"])
def test_counts_below_one_are_refused_everywhere(call, tmp_path, monkeypatch, args, count):
    monkeypatch.chdir(tmp_path)
    option = args.split()[-1]
    refused(call(*args.split(), count), f"understudy: {option}: must be 1 or more, but is {count}\n"
                                        f"  -> such as {option} ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", ["record fork --out d --episodes 3", "train bc d --out r", "eval r fork",
                                  "compare a b --env fork", "robustness r fork"])
def test_seeds_below_0_are_understudys_own(call, args):
    refused(call(*args.split(), "--seed", -1), "--seed: must be 0 or more, but is -1\n  -> negative seeds")


@pytest.mark.parametrize("args", ["eval r fork --labels", "robustness r fork --levels", "robustness r fork --shifts",
                                  "split d --by task --out o --names", "view make d --out v --select",
                                  "view make d --out v --delete"])
def test_a_list_of_nothing_is_not_the_same_as_no_list(call, args):
    option = args.split()[-1]
    refused(call(*args.split()), f"{option}: needs at least one value, but has none\n  -> name them, or leave")


@pytest.mark.parametrize(
    "args, says",
    [
        ("claims list --out page.md", "claims list: expected --out with table only\n  -> leave --out out"),
        ("claims list --all", "expected --all with run only\n  -> leave --all out"),
        ("claims run --all --budget 1x", "--budget: expected a time such as 90s, 30m or 2h, found '1x'\n  -> such as"),
        ("claims run nothing", "there is no claim 'nothing'"),
        ("plan 0.7 0.8 --episodes 99999999999999999999", "--episodes: expected at most 100,000, found 99,999,"),
        ("compare a a --env fork", "the policy a is named twice\n  -> there is nothing to tell apart"),
        (
            "compare --group x a b --group x c d --env fork",
            "--group: the name 'x' is given twice\n",
        ),
        (
            "eval a fork --repeats 1",
            "--repeats: expected 2 rollouts of the same start or more, or 0 for none, found 1\n",
        ),
        ("eval a fork --repeats -1", "found -1\n  -> such as --repeats 8"),
        (
            "record fork --out d --episodes 3 --actor keyboard --workers 2",
            "expected one worker, since you are one, found 2\n",
        ),
    ],
)
def test_what_is_refused_before_anything_is_looked_at_says_what_to_do(call, args, says):
    refused(call(*args.split()), says)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("args", "message"), [
    (["train", "bc", "d", "--out", "r", "--image-sise", "3"],
     "understudy train: there is no option --image-sise\n  -> did you mean '--image-size'? understudy train --help"),
    (["train", "bc", "d", "--out", "r", "--image_sise=3"],
     "no option --image_sise\n  -> did you mean '--image-size'? "),
    (["record", "fork", "--out", "d", "--episodes", "3", "-x"],
     "understudy record: there is no option -x\n  -> understudy record --help says what can be set\n"),
    (["record", "fork", "--out", "d", "--episodes", "3", "--actor", "scriptd"],
     "--actor: 'scriptd' is not scripted, random or keyboard\n"
     "  -> did you mean 'scripted'? understudy record --help"),
    (["train", "bc", "d", "--out", "r", "--device", "gpu"],
     "--device: 'gpu' is not auto, cpu, cuda or mps\n  -> "),
    (["claims", "runn"],
     "understudy claims: 'runn' is not list, run, check, judge, spot-check or table\n  -> did you mean 'run'? "),
    (["train", "bc"], "understudy train: missing DATA, --out RUN\n  -> understudy train --help"),
    (["train", "bc", "d", "--out"], "--out: needs a value, but has none\n  -> "),
    (["train", "bc", "d", "--out", "r", "--steps", "--seed", "3"], "--steps: needs a value, but has none\n  -> "),
    (["methods", "bc", "act"], "understudy methods: unexpected argument 'act'\n  -> "),
])
def test_usage_is_told_in_one_message_with_the_nearest_right_option(args, message, encoding, monkeypatch):
    """Whatever the terminal can draw, and however wide it is."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding), io.StringIO()
    monkeypatch.setenv("COLUMNS", "200" if encoding == "ascii" else "44")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(args) == 2
    assert err.getvalue().startswith("understudy: ") and message in err.getvalue() and err.getvalue().count("\n") == 2
    out.flush()
    assert out.buffer.getvalue() == b""


@pytest.mark.parametrize("args, inside", [(["--policy.head", "Regression"], "--policy.head.n-components"),
                                          (["--policy.trunk=unet"], "--policy.trunk.")])
def test_a_part_is_not_exchanged_on_the_command_line(args, inside):
    with pytest.raises(ConfigError, match=rf"there is no option --policy.\w+: .* such as {inside}.*\n  -> to exchange"):
        change_fields(find_method("bc-gmm"), args, "understudy train")


def test_counts_and_seeds_that_mean_nothing(call, place, tmp_path):
    refused(call("record", "fork", "--out", tmp_path / "d", "--episodes", 2, "--rows", 0), "--rows", "but is 0")
    refused(call("eval", place / "a", "CartPole-v1", "--rows", 0), "--rows", "but is 0")
    refused(call("replay", place / "demos", "fork", "--rows", -1), "--rows", "but is -1")
    train = ["train", "bc", place / "demos", "--out", tmp_path / "r"]
    refused(call(*train, "--eval", "fork", "--rollouts", 0), "--rollouts", "but is 0")
    refused(call(*train, "--seed", -1), "--seed", "but is -1")
    refused(call(*train, "--save-freq", 0), "--save-freq", "but is 0")
    assert not list(tmp_path.iterdir())


def test_a_recording_spares_what_is_none(call, place):
    before = sorted((place / "a").rglob("*"))
    refused(call("record", "fork", "--out", place / "a", "--episodes", 2), "another folder")
    assert sorted((place / "a").rglob("*")) == before


def test_the_demo_looks_for_its_device_first(call, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    refused(call("demo", "--out", tmp_path / "demo", "--device", "mps"), "this machine has no mps device")
    assert not (tmp_path / "demo").exists()


def test_help_of_a_recipe_lists_what_can_be_set(call):
    status, out, _ = call("train", "flow-policy", "--help")
    assert status == 0 and "--out RUN" in out
    for name, _, _ in settable_fields(find_method("flow-policy")):
        assert f"--{name.replace('_', '-')}" in out or f"--{name}" in out


# -- what one sees on a good day ------------------------------------------------------------------------------------


def test_record_goes_on_and_is_the_same_whatever_runs_beside(call, tmp_path, place):
    status, out, _ = call("record", "fork", "--out", tmp_path / "d", "--episodes", 1, "--rows", 2)
    assert status == 0 and "1 episode, " in out
    status, out, _ = call("record", "fork", "--out", tmp_path / "d", "--episodes", 5, "--rows", 2)
    assert status == 0 and "5 episodes" in out and "5 of 5 succeeded" in out
    assert call("record", "fork", "--out", tmp_path / "d", "--episodes", 12, "--rows", 3)[0] == 0
    grown, whole = open_dataset(tmp_path / "d"), open_dataset(place / "demos")
    assert grown.fingerprint() == whole.fingerprint()
    assert [e.metadata["number"] for e in grown] == list(range(12))
    for episodes in (3, 12):
        status, out, err = call("record", "fork", "--out", tmp_path / "d", "--episodes", episodes)
        assert status == 0 and "saved" not in err and "Written to" not in out
        assert f"{tmp_path / 'd'} already has 12 episodes, " in out and f"--episodes {episodes} is the total" in out
        assert f"--episodes {12 + episodes}, to add" in out
    assert len(open_dataset(tmp_path / "d")) == 12  # never fewer
    refused(call("record", "fork", "--out", tmp_path / "d", "--episodes", 20, "--actor", "random"), "'random'",
            "'scripted'", "episode 0")
    refused(call("record", "fork", "--out", tmp_path / "d", "--episodes", 20, "--seed", 1), "seed")
    refused(call("record", "particle", "--out", tmp_path / "d", "--episodes", 20), "env", "particle")


def test_random_actions_fill_the_action_space(call, tmp_path):
    assert call("record", "Pendulum-v1", "--out", tmp_path / "d", "--episodes", 3, "--actor", "random")[0] == 0
    torque = np.concatenate([e.steps["action"] for e in open_dataset(tmp_path / "d")])
    assert torque.shape == (600, 1) and np.abs(torque).max() <= 2
    # Uniform on [-2, 2]: mean 0 and variance 4/3, both within four standard errors of 600 draws.
    assert abs(torque.mean()) < 4 * (4 / 3 / 600) ** 0.5
    assert abs(torque.var() - 4 / 3) < 4 * ((16 / 5 - 16 / 9) / 600) ** 0.5
    assert call("record", "CartPole-v1", "--out", tmp_path / "c", "--episodes", 8, "--actor", "random")[0] == 0
    pushed = np.concatenate([e.steps["action"] for e in open_dataset(tmp_path / "c")])
    assert set(pushed.flatten().tolist()) == {0, 1}
    refused(call("record", "Pendulum-v1", "--out", tmp_path / "e", "--episodes", 3), "no expert",
            "LeRobot v3.0", "plain .npz (observations, actions, episode_ends)")


def test_inspect(call, place):
    found = document(call("inspect", place / "demos", "--json"))
    assert list(found) == ["format", "version", "episodes", "steps", "fps", "features", "tasks", "warnings"]
    data = open_dataset(place / "demos")
    assert (found["format"], found["version"], found["episodes"], found["steps"]) == ("lerobot", "v3.0", 12, data.steps)
    assert found["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    assert all(set(f) == {"dtype", "shape", "names"} for f in found["features"].values())
    status, out, _ = call("inspect", place / "demos")
    assert status == 0 and "12 of 12 succeeded" in out and f"understudy replay {place / 'demos'} fork" in out


def test_inspect_says_the_ranges(call, tmp_path):
    seen = np.arange(24, dtype=np.float32).reshape(12, 2) - 4
    seen[3, 1], long = np.nan, np.linspace(-1, 3, 12 * 9, dtype=np.float32).reshape(12, 9)
    seen[:, 0] = -0.25
    out = call("inspect", save(tmp_path / "d.npz", observations=long, actions=seen, steps=(12,)))[1]
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
    said = [("open",), ("push", "open") if where != "metadata" else ("push",), ("open",), ("",)]
    data = Dataset([episode_with_words(where, *words) for words in said], {"fps": 10.0})
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
    wrong, endless = np.zeros((12, 2), np.float32), np.zeros((12, 2), np.float32)
    wrong[8, 1], endless[3, 0] = np.nan, np.inf
    for name, arrays in (("nan", {"actions": wrong}), ("inf", {"observations": endless}),
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


def test_replay(call, place):
    found = document(call("replay", place / "demos", "fork", "--json"))
    assert [t["divergence"] for t in found["episodes"]] == [None] * 12
    one = document(call("replay", place / "demos", "fork", "--episode", 3, "--state", "--json"))
    assert [(t["episode"], t["success"]) for t in one["episodes"]] == [(3, True)]
    refused(call("replay", place / "demos", "fork", "--episode", 12), "there is no episode 12; the last one is 11")
    refused(call("replay", place / "demos", "particle"))


def interval(value, name):
    assert set(value) == {name, "low", "high", "level"} and value["level"] == 0.95
    assert value["low"] <= value[name] <= value["high"]


def test_eval(call, place):
    found = document(call("eval", place / "a", "fork", "--episodes", 30, "--json"))
    assert list(found) == ["env", "episodes", "successes", "success", "return", "seconds", "paired", "trials",
                           "trial_gain", "checkpoint", "behavior"]
    assert (found["env"], found["episodes"], found["paired"]) == ("fork", 30, None)
    assert found["success"]["estimate"] == found["successes"] / 30
    interval(found["success"], "estimate")
    interval(found["return"], "mean")
    other = document(call("eval", place / "b", "fork", "--episodes", 30, "--json", "--against", place / "a"))
    assert set(other["paired"]) == {"against", "difference", "low", "high", "p"}
    assert other["paired"]["against"] == str(place / "a")
    assert other["paired"]["difference"] == pytest.approx((other["successes"] - found["successes"]) / 30)


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
    found = document(call("eval", place / "a", place / "demos", "--json"))
    assert found["success"] is None and found["origin"] == "held out" and "not a success rate" in found["note"]
    status, out, _ = call("eval", place / "a", place / "demos", "--html", tmp_path / "r.html")
    assert status == 0 and "not a success rate" in out and "not a success rate" in (tmp_path / "r.html").read_text()
    heads = [line.split()[0] for line in out.splitlines() if "spread of its samples" in line]
    assert heads == ["component", "of"] and re.search(r"^of the episode .*\n0-10% ", out, re.MULTILINE)  # tells of what


def test_eval_on_recorded_episodes_applies_operations_on_data_sets(call, place, tmp_path):
    """A transform may be an operation on the whole data set, which cannot be called with an episode."""
    method = replace(find_method("bc"), transforms=(Drop(("next.reward",)),))
    demos = open_dataset(place / "demos")
    train(method, demos, tmp_path / "run", steps=2, seed=0, progress=False, device="cpu")
    found = document(call("eval", tmp_path / "run", place / "demos", "--json"))
    assert found["origin"] == "held out" and found["success"] is None


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
    found = document(call("eval", f"{run}/last", tmp_path / "d", "--json"))
    assert found["origin"] == "held out" and len(found["episodes"]) == n_judged and sizes == [2, 18]
    assert found["energy"]["estimate"] == pytest.approx(measured, rel=1e-5)


def test_eval_keeps_the_numbers_of_episodes_that_an_operation_keeps(call, tmp_path, place):
    method = replace(find_method("bc"), transforms=(Crop(start=1),))
    train(method, open_dataset(place / "demos"), tmp_path / "run", steps=2, seed=0, progress=False, device="cpu",
          val_fraction=[3, 7])
    assert document(call("eval", tmp_path / "run", place / "demos", "--json"))["episodes"] == [3, 7]


def test_eval_on_numbers_that_are_none_is_refused(call, place, tmp_path):
    demos = open_dataset(place / "demos")
    actions, seen = (np.concatenate([e.steps[k][:len(e)] for e in demos]) for k in ("action", "observation.state"))
    for name, wrong in (("observations", seen), ("actions", actions)):
        was, wrong[len(demos[0]) + 2, 1] = wrong[len(demos[0]) + 2, 1], np.nan
        file = tmp_path / f"{name}.npz"
        np.savez(file, observations=seen, actions=actions, episode_ends=np.cumsum([len(e) for e in demos]))
        refused(call("eval", place / "a", file), file.name, "episode 1, step 2", "not finite: nan")
        wrong[len(demos[0]) + 2, 1] = was


def test_an_environment_without_success(call, tmp_path):
    call("record", "Pendulum-v1", "--out", tmp_path / "d", "--episodes", 2, "--actor", "random")
    assert call("train", "bc", tmp_path / "d", "--out", tmp_path / "r", *TINY, "--eval", "Pendulum-v1",
                "--rollouts", 1)[0] == 0
    found = document(call("eval", tmp_path / "r", "Pendulum-v1", "--episodes", 2, "--json"))
    assert found["successes"] is None and found["success"] is None and found["return"]["mean"] < 0
    # While it trained it was looked at on starts that eval never has: its mean return there, and not on eval's.
    scores = [line["score"] for line in map(json.loads, (tmp_path / "r" / "metrics.jsonl").read_text().splitlines())
              if "score" in line]
    plays, env = load_actor(tmp_path / "r", rows=16), make("Pendulum-v1", 1)
    at = {seed: evaluate(plays, env, 1, seed).returns.estimate for seed in (validation_seed(0), validation_seed(1), 0)}
    assert scores[-1] == at[validation_seed(0)] and len(set(at.values())) == 3


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


def test_the_card_says_what_chose_the_best(call, place, tmp_path):
    assert "\nThe energy score chose the best checkpoint.\n" in (place / "a" / "CARD.md").read_text()
    for name, options, said in (("s", ["--eval", "fork", "--rollouts", 2], "\nThe score chose the best checkpoint, so"),
                                ("n", ["--val-fraction", 0], None)):
        assert call("train", "bc", place / "demos", "--out", tmp_path / name, *TINY, *options)[0] == 0
        text = (tmp_path / name / "CARD.md").read_text()
        assert said in text if said else "chose the best" not in text


def test_training_says_how_it_goes_and_that_nothing_is_held_out(call, tmp_path):
    number = re.compile(r"^update (\d+): (.*)loss [\d.e-]+$", re.M)
    small, large = save(tmp_path / "small.npz"), save(tmp_path / "large.npz", steps=(5, 7, 4, 6, 8))
    status, _, err = call("train", "bc", small, "--out", tmp_path / "s", *TINY)
    assert status == 0 and number.findall(err) == [("10", ""), ("20", "")]
    assert "no episode is held out: that takes 5 or more" in err
    status, _, err = call("train", "bc", large, "--out", tmp_path / "l", *TINY)
    assert status == 0 and [n for n, _ in number.findall(err)] == ["10", "20"] and "held out" not in err
    assert all("error on held-out episodes" in found for _, found in number.findall(err))
    assert (
        "no episode is held out, so"
        in call("train", "bc", large, "--out", tmp_path / "n", *TINY, "--val-fraction", 0)[2]
    )


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
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        common.open_data(tmp_path / "d", 20)  # of a command without this option, such as eval
    assert "20 x 20 pixels: " in said.getvalue()
    found = document(call("eval", tmp_path / "r", "push-images", "--episodes", 2, "--json"))
    assert found["env"] == "push-images"
    plays, key = load_actor(tmp_path / "r"), keys(0, [0, 1])
    obs = make("push-images", 2).reset(key * 0 + key.new_tensor([0, 1]), key)
    small = {**obs, "observation.images.top": resize(obs["observation.images.top"].numpy(), (16, 24))}
    assert plays.act(obs, plays.start(obs, key))[0].equal(plays.act(small, plays.start(small, key))[0])
    assert document(call("eval", tmp_path / "r", tmp_path / "d", "--json"))["origin"] == "trained on"


def proposed(out: str) -> list[list[str]]:
    """The arguments of what stands under "next:", as a shell would read them."""
    return [shlex.split(line)[1:] for line in out.partition("\nnext:\n")[2].splitlines()]


def test_what_is_proposed_next_can_be_pasted(call, tmp_path, monkeypatch):
    """Every line of every command runs as it stands, in an order that makes sense; a space in a path included."""
    monkeypatch.chdir(tmp_path)
    inspect, train, replay = proposed(call("record", "fork", "--out", "my demos", "--episodes", 6)[1])
    assert train[:1] + train[2:] == ["train", "my demos", "--out", "run"] and call(*replay)[0] == 0
    _, out, _ = call(*inspect)
    train, again = proposed(out)
    assert train[2:] == ["my demos", "--out", "run", "--eval", "fork", "--save-freq", "500"] and again == replay
    train = ["bc" if a == train[1] else a for a in train[:-4]]
    _, out, _ = call(*train, *TINY)
    acts, foretells, curves = proposed(out)
    assert curves == ["plot", "run"] and call(*curves)[0] == 0
    assert acts == ["eval", "run", "fork", "--episodes", "100"] and foretells == ["eval", "run", "my demos"]
    _, out, _ = call(*foretells)
    assert proposed(out) == [acts, ["eval", "run", "my demos", "--html", "report.html"]]
    _, out, _ = call(*acts[:-1], "8", "--seed", "3")
    second, against, page = proposed(out)
    assert second[-4:] == ["--out", "run-seed1", "--seed", "1"] and "my demos" in second
    assert against == ["eval", "run", "fork", "--episodes", "8", "--seed", "3", "--against", "run-seed1"]
    assert call(*page)[0] == 0 and (tmp_path / "report.html").exists()
    assert call(*second)[0] == 0
    status, out, _ = call(*against)
    more = proposed(out)
    assert status == 0 and ("Cannot tell" in out) == (more[0][:5] == ["eval", "run", "fork", "--episodes", "32"])
    assert more[-1] == [*against, "--html", "report-2.html"]
    _, out, _ = call("eval", "run-seed1", "fork", "--episodes", 2)
    assert proposed(out)[0][-4:] == ["--out", "run-seed1-seed2", "--seed", "2"]
    assert [a for a in proposed(call("inspect", "my demos")[1])[0] if a.startswith("run")] == ["run-2"]
    monkeypatch.chdir(tmp_path.parent)  # from elsewhere the command would mean another folder
    _, out, _ = call("eval", tmp_path / "run", "fork", "--episodes", 2)
    assert [p[0] for p in proposed(out)] == ["eval"] and "RUN" not in out


def test_methods(call):
    found = document(call("methods", "--json"))
    assert [m["name"] for m in found] == list(method_files())
    for m in found:
        assert list(m) == ["name", "family", "rows", "paper", "needs", "summary", "when", "cost"]
        assert list(m["cost"]) == ["weights", "train_seconds", "plan_ms"]
        assert isinstance(m["needs"], list) and all(isinstance(r, str) and len(r) == 3 for r in m["rows"])
    assert document(call("methods", "act", "--json")) == [m for m in found if m["name"] == "act"]
    status, out, _ = call("methods", "diffusion-policy")
    assert status == 0 and "--method.trunk" in out and "--policy.head.n_steps" in out
    described = next(m for m in found if m["name"] == "diffusion-policy")
    assert f"Choose it {described['when']}" in out and "of training and" in out
    status, out, _ = call("methods")
    assert status == 0 and all(len(line) <= 120 for line in out.splitlines())
    assert " ".join(out.split()).count("Choose it if") >= len(method_files()) - 3  # some are wrapped in between
    refused(call("methods", "difusion-policy"), "did you mean 'diffusion-policy'")


def test_claims(call, tmp_path):
    found = document(call("claims", "list", "--json"))
    for claim in found:
        assert list(claim) == ["name", "rows", "statement", "advice", "verdict", "reason", "stale", "date", "seconds",
                               "command"]
        assert claim["verdict"] in ("holds", "fails", "undecided", "not run") and isinstance(claim["stale"], bool)
        assert claim["command"] == f"understudy claims run {claim['name']}"
        assert all(isinstance(r, str) and len(r) == 3 for r in claim["rows"])
    assert len(found) >= 5
    page = tmp_path / "ledger.md"
    assert document(call("claims", "table", "--out", page, "--json")) == {"page": str(page)}
    assert all(c["name"] in page.read_text() for c in found)
    refused(call("claims", "run", found[0]["name"] + "x"), f"did you mean '{found[0]['name']}'")
    refused(call("claims", "run"), "name")


def test_what_takes_long_says_so_first(capsys, monkeypatch):
    """16 of 100 in 200 s leave 84 of 12.5 s each: 17.5 minutes, which is more than the 15 that need no notice."""
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    for total, notice in ((100, "acting: at most about 18 minutes more\n"), (80, "")):
        clock = iter([0.0, *([59.0] * 15), *([200.0] * 100)])
        with common.progress_bar("acting", total) as progress:
            for _ in range(total):
                progress()
        assert capsys.readouterr() == ("", notice)


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
            "--method.horizon=8",
            "--executor.x",
            "1",
            "2",
        ]
    ) == (
        ["bc", "d", "--out", "r", "--seed", "1"],
        ["--method.horizon=8"],
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
            "--learner.optimizer.lr",
            "3e-4",
            "--executor.n-action-steps",
            2,
            "--executor.skip",
            1,
            "--policy.window.action-offset",
            "-1",
            "--learner.optimizer.betas",
            "0.8",
            "0.9",
            "--method.horizon",
            6,
            "--policy.trunk.width=32",
            "--policy.head.solver",
            "heun",
        )[0]
        == 0
    )
    made = json.loads((tmp_path / "r" / "checkpoints" / "000002" / "method.json").read_text())
    assert made["policy"]["head"]["n_steps"] == 5 and made["executor"]["n_action_steps"] == 2
    assert made["learner"]["optimizer"]["lr"] == 3e-4 and made["learner"]["optimizer"]["betas"] == [0.8, 0.9]
    assert made["policy"]["window"] | {"$": 0} == {
        "$": 0,
        "n_obs_steps": 2,
        "horizon": 6,
        "action_offset": -1,
        "obs_offset": 0,
        "goals": [],
        "obs_pad_mask": False,
    }
    assert made["policy"]["head"]["solver"] == {"$": "understudy.heads.solvers:Heun"}
    assert made["policy"]["trunk"]["width"] == 32 and made["learner"]["steps"] == 2


@pytest.mark.parametrize("given", [
    ["--method.every-step"], ["--method.every-step", "true"], ["--method.every-step=true"]])
def test_a_flag_of_a_method_needs_no_value(given):
    """`--method.every-step` alone is true, like a flag of a field, whatever option follows."""
    for args in (given, [*given, "--method.n-clusters", "8"]):
        assert build_method("bet", args, [], None, ()).policy.window.horizon == 5
    made = build_method("bet", ["--method.every-step", "false"], [], None, ())
    assert made.policy.window.horizon == 1


@pytest.mark.parametrize(("change", "words"), [
    (["--policy.head.stepz", "5"], ["no option --policy.head.stepz", "did you mean '--policy.head.n-steps'?"]),
    (["--learner.optimizer.betas", "0.9"], ["--learner.optimizer.betas: needs 2 values, but has only 0.9"]),
    (["--policy.window.n-obs-steps", "1", "2"], ["understudy train flow-policy: unexpected argument '2'"]),
    (["--policy.head.n-steps", "five"], ["five"]),
    (["--policy.head.solver", "Hein"], ["'Hein' is not Euler, Midpoint or Heun", "did you mean 'Heun'?"]),
    (["--method.horizn", "5"], ["did you mean 'horizon'"]), (["--method.horizon", "x"], ["--method.horizon", "'x'"]),
    (["--method.horizon"], ["--method.horizon", "has no value"]), (["--learner.optimizer.lr", "-1"], ["lr"]),
    (["--policy.inputs", "observation.stat"], ["did you mean 'observation.state'"]), (["--steps", "0"], ["--steps"]),
    (["--device", "cuda:999"], ["cuda"]), (["--val-fraction", "1.5"], ["1.5"])])
def test_a_wrong_change_names_the_right_one(call, place, tmp_path, change, words):
    refused(call("train", "flow-policy", place / "demos", "--out", tmp_path / "r", *change), *words)
    assert not (tmp_path / "r" / "checkpoints").exists()


# -- words ----------------------------------------------------------------------------------------------------------


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
    made = Method.load(tmp_path / "run", ("slowed",)).executor
    assert status == 0 and type(made).__name__ == "Slowed" and (made.n_action_steps, made.factor) == (1, 0.25)
    status, out, _ = call("export", place / "a", "--out", tmp_path / "a.onnx", *name, "--trust", "slowed",
                          "--inputs", "5", "--json")
    assert status == 0 and json.loads(out)["executor"] == "Slowed"


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """Two tasks that nothing but their words tells apart ("two.npz"), and a run that was told them ("run")."""
    folder, env = tmp_path_factory.mktemp("told"), make("fork", 20)
    shown = [e for side in (1, -1) for e in rollout(ForkExpert(side=side), env, 20, seed=recording_seed(0))]
    np.savez(folder / "two.npz", observations=np.concatenate([e.steps["observation.state"][:-1] for e in shown]),
             actions=np.concatenate([e.steps["action"] for e in shown]), episode_ends=np.cumsum([*map(len, shown)]),
             task=[LEFT] * 20 + [RIGHT] * 20)
    assert main(["train", "bc", str(folder / "two.npz"), "--out", str(folder / "run"), "--language", "--steps", "250",
                 "--save-freq", "250", "--device", "cpu", "--policy.trunk.width", "64", "--learner.batch-size", "64",
                 "--policy.encoder.text.channels", "16", "--val-fraction", "0"]) == 0
    return folder


def test_words_decide_what_is_done(call, told):
    for words, side in ((LEFT, 1), (RIGHT, -1)):
        found = document(call("eval", told / "run", "fork", "--task", words, "--episodes", 20, "--json",
                              "--save", told / str(side), "--device", "cpu"))
        assert found["successes"] == 20
        assert all(side * e.steps["observation.state"][:, 1].mean() > 0.1 for e in open_dataset(told / str(side)))
    # The same words from Python, and on recorded episodes.
    read = torch.tensor(TaskText(len(RIGHT)).encode(RIGHT))
    by_hand = evaluate(
        ObservationWrapper(load_actor(told / "run", rows=16), {"observation.task": read}), make("fork", 20), 20
    )
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
    known = read_json(find_checkpoint(tmp_path / "run") / "provenance.json")["data"]["tasks"]
    assert set(known) <= set(first[:4])
    status, _, err = call("eval", tmp_path / "run", "gridworld_tasks", "--episodes", 20, "--save", tmp_path / "saved")
    tasks = [e.metadata["task"] for e in open_dataset(tmp_path / "saved")]
    n = sum(task not in known for task in tasks)
    assert status == 0 and 0 < n < 20
    assert f"warning: {n} of 20 episodes have a task that {tmp_path / 'run'} was not trained on, such as" in err
    assert f"It was trained on {len(known)} tasks, such as" in err
    held_out = call("eval", tmp_path / "run", tmp_path / "all")[2]
    assert "episodes have a task" in held_out


def test_words_that_are_missing_or_too_many(call, told, place, tmp_path):
    run, two = told / "run", told / "two.npz"
    refused(call("eval", run, "fork", "--episodes", 2), "--task: expected the task in words", "--task 'WORDS'")
    refused(call("eval", place / "a", "fork", "--episodes", 2, "--task", "go"), "trained without words", "--language")
    kept = ["eval", run, "fork", "--episodes", 2, "--device", "cpu", "--save", told / "kept", "--task"]
    assert call(*kept, LEFT)[0] == 0
    refused(call(*kept, "go"), "'go'", LEFT)
    train = ["train", "bc", "--out", tmp_path / "r", "--language", *TINY]
    refused(call(*train[:2], place / "demos", *train[2:]), "the data have no tasks in words", "leave out")
    refused(call(*train[:2], two, *train[2:], "--eval", "fork"), "--eval: the environment fork does not say")
    refused(call("train", "knn", two, "--language", "--out", tmp_path / "r"), "observation.task", "TokenEncoder")
    assert not list(tmp_path.iterdir())


# -- bad input ------------------------------------------------------------------------------------------------------


def save(path: Path, steps=(5, 7), width=2, **arrays) -> Path:
    n = sum(steps)
    rng = np.random.default_rng(0)
    made = {"observations": rng.normal(size=(n, width)).astype(np.float32),
            "actions": rng.normal(size=(n, 2)).astype(np.float32), "episode_ends": np.cumsum(steps, dtype=np.int64)}
    np.savez(path, **{**made, **arrays})
    return path


def test_bad_data(call, place, tmp_path):
    train = ["train", "bc", "--out", tmp_path / "r", *TINY]

    def trained(path):
        return call(*train[:2], path, *train[2:])
    missing = tmp_path / "nothing.npz"
    for result in (trained(missing), call("inspect", missing), call("replay", missing, "fork"),
                   call("eval", place / "a", missing)):
        refused(result, str(missing))
    file = save(tmp_path / "renamed.npz")
    with np.load(file) as found:
        np.savez(tmp_path / "no_action.npz", **{k: v for k, v in found.items() if k != "actions"})
    refused(trained(tmp_path / "no_action.npz"), "actions")
    refused(trained(save(tmp_path / "none.npz", steps=())), "there are no episodes")
    wrong = np.zeros((12, 2), np.float32)
    wrong[8, 1] = np.nan
    refused(trained(save(tmp_path / "nan.npz", actions=wrong)), "nan.npz", "episode 1, step 3", "action")
    words = np.array(["left"] * 12)
    refused(trained(save(tmp_path / "str.npz", actions=words)), "str.npz", "'action'", "contains text")
    assert "warning: action: text" in call("inspect", tmp_path / "str.npz")[1]
    refused(call(*train[:2], save(tmp_path / "said.npz", said=words), *train[2:], "--policy.inputs", "said"),
            "said.npz", "'said'", "contains text")
    (tmp_path / "text.npz").write_text("not an archive")
    refused(trained(tmp_path / "text.npz"), "text file")
    (tmp_path / "folder").mkdir()
    refused(trained(tmp_path / "folder"), "empty folder")
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize(("change", "words"), [
    (("--executor.n-action-steps", "20"), ("skip + n_action_steps", "only 8 steps", "20")),
    (("--policy.window.horizon", "0"), ("Window.horizon", "horizon is 0, but must be")),
    (("--policy.window.n-obs-steps", "0"), ("Window.n_obs_steps", "n_obs_steps is 0, but must be")),
])
def test_what_could_not_be_run_is_not_trained(call, place, tmp_path, change, words):
    refused(call("train", "bc-gmm", place / "demos", "--out", tmp_path / "r", *TINY, *change), *words)
    assert not (tmp_path / "r").exists()


def test_data_policy_and_environment_must_fit(call, place, tmp_path):
    wide = save(tmp_path / "wide.npz", width=3)
    refused(call("eval", place / "a", wide), "observation.state", "(2,)", "(3,)")
    refused(call("eval", place / "a", "push", "--episodes", 2), "push", "observation.state", "(2,)", "(8,)")
    refused(call("train", "bc", wide, "--out", tmp_path / "r", *TINY, "--eval", "fork"), "fork", "(3,)", "(2,)")
    refused(call("train", "bc", place / "demos", "--out", tmp_path / "r", *TINY, "--eval", "frok"), "fork")
    refused(call("record", "frok", "--out", tmp_path / "d", "--episodes", 2), "did you mean 'fork'")
    refused(call("eval", place / "a", "fork", "--episodes", 0), "1 or more")
    refused(call("eval", place / "a", "fork", "--seed", -1), "-1")
    refused(call("train", "difusion-policy", place / "demos", "--out", tmp_path / "r"), "diffusion-policy")


def test_arguments_in_each_others_place(call, place, tmp_path):
    refused(call("train", place / "demos", "bc", "--out", tmp_path / "r"), "name of a method", "train METHOD DATA")
    for found in (call("inspect", place / "a"), call("eval", place / "demos", place / "a"),
                  call("train", "bc", place / "a", "--out", tmp_path / "r"),
                  call("replay", place / "a" / "checkpoints" / "000020", "fork")):
        refused(found, "this is a run", f"understudy eval {place / 'a'}")


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


def test_training_that_goes_on_says_from_where_and_with_the_loss(call, place, tmp_path, monkeypatch):
    """Killed after a checkpoint was saved and before it was judged, as by kill -9."""
    from understudy.learn.train import _CheckpointEvaluation

    args = ["train", "bc", place / "demos", "--out", tmp_path / "r", *TINY]
    whole = call(*args[:4], tmp_path / "w", *TINY)[2]
    with monkeypatch.context() as patch:
        patch.setattr(_CheckpointEvaluation, "__call__", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(*args)[0] == 130
    said = call(*args)[2]
    assert "going on from" not in whole and "going on from update 10 of 20\n" in said
    updates = re.findall(r"^update .*loss.*$", whole, re.M)
    assert len(updates) == 2 and re.findall(r"^update .*$", said, re.M) == updates


def test_train_says_how_many_interrupted_episodes_are_left_out(call, tmp_path):
    rng = np.random.default_rng(0)
    episodes = [Episode({"observation.state": rng.normal(size=(9, 2)).astype(np.float32),
                         "action": rng.normal(size=(9, 1)).astype(np.float32)}, {"interrupted": True} if e == 2 else {})
                for e in range(4)]
    write(Dataset(episodes, {"fps": 10}), tmp_path / "d")
    bc = ("train", "bc", tmp_path / "d", "--steps", 1)
    status, _, err = call(*bc, "--out", tmp_path / "left")
    assert status == 0 and ("warning: 1 of 4 episodes was interrupted while it was recorded and is left out of training"
                            ": 2. Pass --include-interrupted ") in err, err
    status, _, err = call(*bc, "--out", tmp_path / "asked", "--include-interrupted")
    assert status == 0 and "left out" not in err


def test_convert_takes_the_format_from_the_suffix(call, tmp_path):
    from understudy.data.formats import format_of

    rng = np.random.default_rng(0)
    write(Dataset([Episode({"observation.state": rng.normal(size=(9, 2)).astype(np.float32),
                            "action": rng.normal(size=(9, 1)).astype(np.float32)})], {"fps": 10}), tmp_path / "d")
    for name, kind, others in (("a.hdf5", "robomimic", "act, d4rl, minari"),
                               ("a.h5", "robomimic", "act, d4rl, minari"), ("A.HDF5", "robomimic", "act, d4rl, minari"),
                               ("a.npz", "npz", "ogbench"), ("a.zarr", "zarr", None), ("a.zarr.zip", "zarr", None),
                               ("a.csv", "csv", None), ("plain", "lerobot", None)):
        status, out, err = call("convert", tmp_path / "d", tmp_path / name)
        assert status == 0 and format_of(tmp_path / name) == kind, err
        assert (f"{name} is written as {kind}." in out) == (name != "plain")
        assert ("--to writes another format" in out) == (others is not None)
        assert others is None or f"with this suffix: {others}." in out
        assert open_dataset(tmp_path / name).steps == 9
    status, out, err = call("convert", tmp_path / "d", tmp_path / "b.hdf5", "--to", "d4rl")
    assert status == 0 and format_of(tmp_path / "b.hdf5") == "d4rl" and "suffix" not in out
    for name in ("a.parquet", "demos.v2"):
        refused(call("convert", tmp_path / "d", tmp_path / name), name, "no format is written to names", ".hdf5",
                ".npz", ".zarr", ".csv", "--to lerobot")
        assert not (tmp_path / name).exists()
    assert call("convert", tmp_path / "d", tmp_path / "demos.v2", "--to", "lerobot")[0] == 0
    assert call("view", "make", tmp_path / "d", "--out", tmp_path / "v.json")[0] == 0
    made = document(call("view", "materialize", tmp_path / "v.json", "--out", tmp_path / "c.npz", "--json"))
    assert made["format"] == "npz" and format_of(tmp_path / "c.npz") == "npz"
    refused(call("view", "materialize", tmp_path / "v.json", "--out", tmp_path / "c.odd"), "no format is written")


def test_checkpoints_of_another_schema(call, place, tmp_path):
    import shutil

    refused(call("eval", tmp_path / "no", "fork"), "not a trained run")
    (tmp_path / "policy.pt2").touch()
    refused(call("eval", tmp_path / "policy.pt2", "fork"), "name the run it was exported from")

    def changed(name, change):
        run = tmp_path / name
        shutil.copytree(place / "a" / "checkpoints" / "000020", run)
        change(run)
        return call("eval", run, "fork", "--episodes", 2)

    def edit(file, **values):
        def change(run):
            (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | values))
        return change
    refused(changed("field", edit("policy.json", windoww=3)), "windoww", "did you mean 'window'")
    refused(changed("class", edit("policy.json", head={"$": "understudy.heads.regression:Regresion"})), "Regresion",
            do=False)
    refused(changed("code", edit("policy.json", head={"$": "os:system"})), "--trust os")
    refused(changed("width", edit("features.json", action={"dtype": "float32", "shape": [5], "kind": "vector"})),
            "the weights do not fit this policy: 2 of another shape")
    refused(changed("cut", lambda run: os.truncate(run / "weights.safetensors", 100)), "weights.safetensors")
    refused(changed("text", lambda run: (run / "policy.json").write_text("{")), "policy.json", "line 1")


def test_debug_shows_where_a_mistake_came_from(call):
    status, out, err = call("inspect", "/nowhere/at/all", "--debug")
    assert (status, out) == (2, "") and "Traceback" in err and "understudy: /nowhere/at/all" in err


def test_a_place_that_may_not_be_written(call, place):
    status, _, err = call("train", "bc", place / "demos", "--out", "/proc/run", *TINY)
    assert status == 2 and "Traceback" not in err and "/proc" in err


# -- code from outside ----------------------------------------------------------------------------------------------

OUTSIDE = '''
from dataclasses import dataclass
from understudy import Method, PolicyConfig, Window, make
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.nets.mlp import MLP

@dataclass(frozen=True)
class Own(Regression):
    """A head that understudy does not know."""

def world(rows):
    return make("fork", rows, limit=20)

def recipe(width: int = 8):
    return Method(PolicyConfig(Own(), MLP(width, 1), window=Window(1, 2)), RecedingHorizon(2), BehaviorCloning(steps=4))

def plain():
    return Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 2)), RecedingHorizon(2),
    BehaviorCloning(steps=4))

def broken(rows):
    raise RuntimeError("a mistake in one's own code")
'''


def outside(tmp_path, *commands):
    """Exit statuses of `commands` in a process that finds the package `elsewhere`, and all that it printed."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    (tmp_path / "elsewhere" / "__init__.py").write_text(OUTSIDE)
    code = ("import json, sys\nfrom understudy.cli import main\n"
            "found = [[main(c), 'elsewhere' in sys.modules] for c in json.loads(sys.argv[1])]\n"
            "print('STATUS', json.dumps(found))")
    ran = subprocess.run([sys.executable, "-c", code, json.dumps([[str(a) for a in c] for c in commands])],
                         capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.split("STATUS ")[-1]), ran.stdout, ran.stderr


def test_code_from_outside_runs_only_when_trusted(tmp_path):
    trust = ["--trust", "elsewhere"]
    record = ["record", "elsewhere:world", "--out", "demos", "--episodes", "6"]
    train = ["train", "elsewhere:recipe", "demos", "--out", "run", "--method.width", "4"]
    again = ["train", "run/checkpoints/000004/method.json", "demos", "--out", "run2", "--seed", "1"]
    judge = ["eval", "run2", "elsewhere:world", "--episodes", "3", "--against", "run"]
    commands = []
    for c in (record, train, again, judge):
        commands += [c, [*c, *trust]]
    commands.append(["eval", "run2", "elsewhere:broken", *trust])
    statuses, out, err = outside(tmp_path, *commands)
    # Refused without --trust, and then nothing of it has been imported.
    assert [s for s, _ in statuses] == [2, 0] * 4 + [2], err
    assert [there for _, there in statuses[:2]] == [False, True]
    assert "understudy replay demos elsewhere:world --trust elsewhere" in out  # what it proposes works
    assert "understudy eval run demos --trust elsewhere\n" in out
    assert err.count("--trust elsewhere") >= 4 and "a mistake in one's own code" in err and "please report" not in err
    assert "elsewhere/__init__.py, line " in err
    made = json.loads((tmp_path / "run2" / "checkpoints" / "000004" / "method.json").read_text())
    assert made["policy"]["head"]["$"] == "elsewhere:Own" and made["policy"]["trunk"]["width"] == 4


def test_what_is_proposed_trusts_all_packages_that_a_run_names(call, place, tmp_path):
    assert common.required_packages(place / "a") == ()
    shutil.copytree(place / "a", tmp_path / "a")
    for file in (tmp_path / "a" / "checkpoints").glob("*/method.json"):
        method = json.loads(file.read_text())
        method["policy"]["head"]["$"], method["data"] = "others.heads:Own", [{"$": "mine:far", "call": False}]
        file.write_text(json.dumps(method))
    assert common.required_packages(tmp_path / "a") == ("mine", "others")
    given = ("mine", "worlds")
    for env, its in ((None, ()), ("fork", ()), ("particle:8", ()), ("worlds.far:make", ("worlds",)),
                     ("strange:make", ()), ("Maze-v0", given)):
        for run, more in ((place / "a", ()), (tmp_path / "a", ("mine", "others")), (tmp_path / "a.onnx", given)):
            found = common.trust_options(given, env, run)
            assert found[::2] == ["--trust"] * (len(found) // 2)
            assert sorted(found[1::2]) == sorted({*its, *more}), (env, run)


@pytest.mark.slow
def test_what_is_proposed_trusts_nothing_twice_and_nothing_needlessly(tmp_path):
    """A recipe of one's own that is made of our parts: training it takes one's code, running it does not."""
    trust = ["--trust", "elsewhere"]
    statuses, out, err = outside(
        tmp_path, ["record", "fork", "--out", "demos", "--episodes", "6"],
        ["train", "elsewhere:plain", "demos", "--out", "run", *trust],
        ["eval", "run", "elsewhere:world", "--episodes", "2", *trust])
    assert [s for s, _ in statuses] == [0, 0, 0], err
    _, recorded, trained, judged = out.split("\nnext:\n")
    assert trained.splitlines()[:2] == ["  understudy eval run fork --episodes 100", "  understudy eval run demos"]
    assert [line.strip() for line in judged.splitlines()[:3]] == [
        "understudy train elsewhere:plain demos --trust elsewhere --out run-seed1 --seed 1",
        "understudy eval run elsewhere:world --episodes 2 --against run-seed1 --trust elsewhere",
        "understudy eval run elsewhere:world --episodes 2 --html report.html --trust elsewhere"]


# -- interrupts -----------------------------------------------------------------------------------------------------


def start(*args, cwd):
    """A process of its own, which hears SIGINT even where its parent does not."""
    return subprocess.Popen([sys.executable, "-m", "understudy", *map(str, args)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def test_a_recording_that_is_interrupted_keeps_what_ended(call, tmp_path):
    args = ["record", "push", "--out", "d", "--episodes", "5000", "--rows", "1"]
    process, ended = start(*args, cwd=tmp_path), tmp_path / "d" / "meta" / "understudy" / "episodes.jsonl"
    while process.poll() is None and not ended.exists():  # info.json is there before the first episode has ended
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in err, err
    kept = open_dataset(tmp_path / "d")
    assert 0 < len(kept) < 5000 and [e.metadata["number"] for e in kept] == list(range(len(kept)))
    more = str(len(kept) + 3)
    assert call("record", "push", "--out", tmp_path / "d", "--episodes", more)[0] == 0
    assert call("record", "push", "--out", tmp_path / "whole", "--episodes", more)[0] == 0
    assert open_dataset(tmp_path / "d").fingerprint() == open_dataset(tmp_path / "whole").fingerprint()


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
    assert process.returncode == 130 and ("continues" if saved else "starts again") in err and "Traceback" not in err
    if saved:
        more = len(open_dataset(tmp_path / "d")) + 2
        found = document(call(*args[:4], more, "--save", tmp_path / "d", "--json"))
        assert found["successes"] == document(call(*args[:4], more, "--json"))["successes"]


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


@pytest.mark.slow
def test_an_interrupt_while_code_is_made_is_an_interrupt_like_any_other(tmp_path):
    (tmp_path / "stops.py").write_text("def env(rows):\n    exec('raise KeyboardInterrupt')\n")
    done = subprocess.run([sys.executable, "-m", "understudy", "record", "stops:env", "--trust", "stops", "--out", "d",
                           "--episodes", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr


@pytest.mark.parametrize("command", ["inspect", "audit", "repair", "convert"])
def test_an_empty_path_is_not_the_folder_one_is_in(capsys, command):
    assert main([command, "", *(["out"] if command == "convert" else [])]) == 2
    assert "a name or a path is empty" in capsys.readouterr().err


def test_a_damaged_source_has_to_be_there(tmp_path, capsys):
    assert main(["repair", str(tmp_path / "none")]) == 2
    assert "there is no recording or data set here" in capsys.readouterr().err


def test_an_environment_that_does_not_fit_is_told_with_the_one_of_the_data(tmp_path, place, call):
    data, run = tmp_path / "data", tmp_path / "run"
    assert call("record", "planar_arms", "--episodes", "2", "--out", data)[0] == 0
    assert call("train", "bc", data, "--out", run, *TINY)[0] == 0
    status, _, err = call("eval", run, "fork", "--episodes", "2")
    told = " ".join(err.split())
    assert status == 2 and "did you mean" not in told
    assert "does not show 'observation.environment_state', which the policy was trained with" in told
    assert "use the environment that its data were recorded in, planar_arms" in told
    refused(call("eval", place / "a", "planar_arms", "--episodes", "2"), "that its data were recorded in, fork")
