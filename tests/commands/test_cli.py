"""The command line: JSON and nothing else, what is proposed next, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fixtures.cli import TINY, document, proposed, refused, save

from understudy import Dataset
from understudy.cli import main
from understudy.commands.parts import common
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.data.formats.lerobot import write
from understudy.methods import method_files

# -- what one sees on a good day ------------------------------------------------------------------------------------


def test_files_and_robots_need_no_pytorch(call, tmp_path, monkeypatch):
    """It takes two seconds to import, and longer on the small computer of a robot."""
    monkeypatch.chdir(tmp_path)
    assert call("record", "fork", "--out", "demos", "--episodes", 2)[0] == 0
    (tmp_path / "still.py").write_text("""
import numpy as np
from understudy.robots.base import Teleoperator

class Still(Teleoperator):
    def start(self, position):
        self.position = np.array(position, np.float32)

    def read(self):
        return self.position
""")
    moved = "--robot simulated_arm --teleop still:Still --trust still"
    commands = ["convert demos demos.npz", "merge demos demos.npz --out both", "repair demos",
                "view make demos --out view --rename action=action.moved",
                f"robot teleoperate {moved} --teleop-time-s 0.1",
                f"record {moved} --out arm --episodes 1 --warmup-time-s 0 --episode-time-s 0.2"]
    code = ("import sys\nfrom understudy.cli import main\n"
            f"assert not any(main(command.split()) for command in {commands})\nassert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert len(open_dataset("arm")) == 1



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
    cause, second, against, page = proposed(out)  # after ten updates it succeeds in less than half of the episodes
    assert cause == ["diagnose", "run", "--env", "fork", "--seed", "3"] and call(*cause)[0] == 0
    assert second[-4:] == ["--out", "run-seed1", "--seed", "1"] and "my demos" in second
    assert against == ["eval", "run", "fork", "--episodes", "8", "--seed", "3", "--against", "run-seed1"]
    assert call(*page)[0] == 0 and (tmp_path / "report.html").exists()
    assert call(*second)[0] == 0
    status, out, _ = call(*against)
    cause_again, *more = proposed(out)
    assert status == 0 and cause_again == cause
    assert ("Cannot tell" in out) == (more[0][:5] == ["eval", "run", "fork", "--episodes", "32"])
    assert more[-1] == [*against, "--html", "report-2.html"]
    _, out, _ = call("eval", "run-seed1", "fork", "--episodes", 2)
    assert proposed(out)[1][-4:] == ["--out", "run-seed1-seed2", "--seed", "2"]
    assert [a for a in proposed(call("inspect", "my demos")[1])[0] if a.startswith("run")] == ["run-2"]
    monkeypatch.chdir(tmp_path.parent)  # from elsewhere the command would mean another folder
    _, out, _ = call("eval", tmp_path / "run", "fork", "--episodes", 2)
    assert [p[0] for p in proposed(out)] == ["diagnose", "eval"] and "RUN" not in out


def test_methods(call):
    methods = document(call("methods", "--json"))
    assert [m["name"] for m in methods] == list(method_files())
    for m in methods:
        assert list(m) == ["name", "family", "rows", "paper", "needs", "summary", "when", "cost"]
        assert list(m["cost"]) == ["weights", "train_seconds", "plan_ms"]
        assert isinstance(m["needs"], list) and all(isinstance(r, str) and len(r) == 3 for r in m["rows"])
    (act,) = document(call("methods", "act", "--json"))
    assert act.pop("options")["policy.head.latent_dim"] == 32 and act == next(m for m in methods if m["name"] == "act")
    status, out, _ = call("methods", "diffusion-policy")
    assert status == 0 and "--trunk" in out and "--policy.head.n-steps" in out
    described = next(m for m in methods if m["name"] == "diffusion-policy")
    assert f"Choose it {described['when']}" in out and "of training and" in out
    assert "or on what the method needs (images of 64 x 64 pixels)" in " ".join(out.split())
    status, out, _ = call("methods")
    assert status == 0 and all(len(line) <= 120 for line in out.splitlines())
    assert " ".join(out.split()).count("Choose it if") >= len(method_files()) - 3  # some are wrapped in between
    refused(call("methods", "difusion-policy"), "did you mean 'diffusion-policy'")


def test_closed_standard_streams_lead_nowhere(tmp_path):
    """No file gets the number of a closed stream, and with it what is printed."""
    args = ["record", "fork", "--episodes", "2", "--out"]
    assert main([*args, str(tmp_path / "open")]) == 0
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "understudy", *args]
    assert subprocess.run([*command, tmp_path / "closed"]).returncode == 0
    assert open_dataset(tmp_path / "closed").fingerprint() == open_dataset(tmp_path / "open").fingerprint()


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_commands_run_with_a_closed_stream(stream, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    for args in (["methods"], ["methods", "--json"], ["--help"]):
        assert main(args) == 0
    assert main(["methods", "no-such-method"]) == 2
    assert getattr(sys, stream).name == os.devnull


def test_what_takes_long_says_so_first(capsys, monkeypatch):
    """16 of 100 in 200 s leave 84 of 12.5 s each: 17.5 minutes, which is more than the 15 that need no notice."""
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    for total, notice in ((100, "acting: at most about 18 minutes more\n"), (80, "")):
        clock = iter([0.0, *([59.0] * 15), *([200.0] * 100)])
        with common.progress_bar("acting", total) as progress:
            for _ in range(total):
                progress()
        assert capsys.readouterr() == ("", notice)


# -- bad input ------------------------------------------------------------------------------------------------------


def test_bad_data(call, place, tmp_path):
    train = ["train", "bc", "--out", tmp_path / "r", *TINY]

    def trained(path):
        return call(*train[:2], path, *train[2:])
    missing = tmp_path / "nothing.npz"
    for result in (trained(missing), call("inspect", missing), call("replay", missing, "fork"),
                   call("eval", place / "a", missing)):
        refused(result, str(missing))
    file = save(tmp_path / "renamed.npz")
    with np.load(file) as archive:
        np.savez(tmp_path / "no_action.npz", **{k: v for k, v in archive.items() if k != "actions"})
    refused(trained(tmp_path / "no_action.npz"), "actions")
    refused(trained(save(tmp_path / "none.npz", steps=())), "there are no episodes")
    actions = np.zeros((12, 2), np.float32)
    actions[8, 1] = np.nan
    refused(trained(save(tmp_path / "nan.npz", actions=actions)), "nan.npz", "episode 1, step 3", "action")
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


def test_data_policy_and_environment_must_fit(call, place, tmp_path):
    wide = save(tmp_path / "wide.npz", width=3)
    refused(call("eval", place / "a", wide), "observation.state", "(2,)", "(3,)")
    refused(call("eval", place / "a", "push", "--episodes", 2), "push", "observation.state", "(2,)", "(8,)")
    refused(call("train", "bc", wide, "--out", tmp_path / "r", *TINY, "--eval", "fork"), "fork", "(3,)", "(2,)")
    refused(call("train", "bc", place / "demos", "--out", tmp_path / "r", *TINY, "--eval", "frok"), "fork")
    refused(call("record", "frok", "--out", tmp_path / "d", "--episodes", 2), "did you mean 'fork'")
    refused(call("eval", place / "a", "fork", "--episodes", 0), "at least 1")
    refused(call("eval", place / "a", "fork", "--seed", -1), "-1")
    refused(call("train", "difusion-policy", place / "demos", "--out", tmp_path / "r"), "diffusion-policy")


def test_arguments_in_each_others_place(call, place, tmp_path):
    refused(call("train", place / "demos", "bc", "--out", tmp_path / "r"), "demos and bc are exchanged",
            f"-> understudy train bc {place / 'demos'} --out")
    refused(call("replay", "fork", place / "demos"), "fork and", "are exchanged")
    refused(call("eval", place / "demos", place / "a"), "demos and", "are exchanged",
            f"-> understudy eval {place / 'a'} {place / 'demos'}")
    for outcome in (call("inspect", place / "a"),
                    call("train", "bc", place / "a", "--out", tmp_path / "r"),
                    call("replay", place / "a" / "checkpoints" / "000020", "fork")):
        refused(outcome, "this is a run", f"understudy eval {place / 'a'}")


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
    refused(call("convert", tmp_path / "d", tmp_path / "v.npz", "--images", "video"), "--images: is for LeRobot")
    assert call("convert", tmp_path / "d", tmp_path / "demos.v2", "--to", "lerobot")[0] == 0
    assert call("view", "make", tmp_path / "d", "--out", tmp_path / "v.json")[0] == 0
    written = document(call("view", "materialize", tmp_path / "v.json", "--out", tmp_path / "c.npz", "--json"))
    assert written["format"] == "npz" and format_of(tmp_path / "c.npz") == "npz"
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
    refused(changed("class", edit("policy.json", head={"$": "understudy.heads.likelihood.regression:Regresion"})),
            "Regresion", do=False)
    refused(changed("code", edit("policy.json", head={"$": "os:system"})), "names os:system",
            "do not use what names it")
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


# -- interrupts -----------------------------------------------------------------------------------------------------


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


def test_the_home_folder_is_meant_where_no_shell_has_put_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["record", "fork", "--episodes", "1", "--out=~/demos"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]


def test_a_damaged_source_has_to_be_there(tmp_path, capsys):
    assert main(["repair", str(tmp_path / "none")]) == 2
    assert "there is no recording or data set here" in capsys.readouterr().err


def test_an_environment_that_does_not_fit_is_told_with_the_one_of_the_data(tmp_path, place, call):
    data, run = tmp_path / "data", tmp_path / "run"
    assert call("record", "planar_arms", "--episodes", "2", "--out", data)[0] == 0
    assert call("train", "bc", data, "--out", run, *TINY)[0] == 0
    status, _, err = call("eval", run, "fork", "--episodes", "2")
    message = " ".join(err.split())
    assert status == 2 and "did you mean" not in message
    assert "does not show 'observation.environment_state', which the policy was trained with" in message
    assert "and the policy has action, observation.environment_state" in message
    assert "use the environment that its data were recorded in, planar_arms" in message
    refused(call("eval", place / "a", "planar_arms", "--episodes", "2"), "that its data were recorded in, fork")
