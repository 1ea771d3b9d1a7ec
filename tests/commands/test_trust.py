"""Code from outside runs only when it is trusted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from understudy.commands.parts import common
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset, write_dataset

OUTSIDE = '''
from dataclasses import dataclass
from understudy import Method, PolicyConfig, Window, make
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
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
    process = subprocess.run([sys.executable, "-c", code, json.dumps([[str(a) for a in c] for c in commands])],
                             capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                             cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.split("STATUS ")[-1]), process.stdout, process.stderr


def test_code_from_outside_runs_only_when_trusted(tmp_path):
    trust = ["--trust", "elsewhere"]
    record = ["record", "elsewhere:world", "--out", "demos", "--episodes", "6"]
    train = ["train", "elsewhere:recipe", "demos", "--out", "run", "--width", "4"]
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
    stored_method = json.loads((tmp_path / "run2" / "checkpoints" / "000004" / "method.json").read_text())
    assert stored_method["policy"]["head"]["$"] == "elsewhere:Own" and stored_method["policy"]["trunk"]["width"] == 4


@pytest.mark.parametrize("trust", [["--trust", "own_file"], ["--trust=own_file"]])
def test_a_method_in_the_current_folder_lists_its_fields(call, tmp_path, monkeypatch, trust):
    """Also where the folder is not on the path, as for the script `understudy`."""
    (tmp_path / "own_file.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.delitem(sys.modules, "own_file", raising=False)
    status, out, err = call("train", "own_file:recipe", *trust, "--help")
    assert status == 0 and "--width" in out, err


def test_what_is_proposed_trusts_all_packages_that_a_run_names(call, place, tmp_path):
    assert common.required_packages(place / "a") == ()
    shutil.copytree(place / "a", tmp_path / "a")
    for file in (tmp_path / "a" / "checkpoints").glob("*/method.json"):
        method = json.loads(file.read_text())
        method["policy"]["head"]["$"], method["data"] = "others.heads:Own", [{"$": "mine:far", "call": False}]
        file.write_text(json.dumps(method))
    assert common.required_packages(tmp_path / "a") == ("mine", "others")
    packages = ("mine", "worlds")
    for env, its in ((None, ()), ("fork", ()), ("particle:8", ()), ("worlds.far:make", ("worlds",)),
                     ("strange:make", ()), ("Maze-v0", packages)):
        for run, more in ((place / "a", ()), (tmp_path / "a", ("mine", "others")), (tmp_path / "a.onnx", packages)):
            options = common.trust_options(packages, env, run)
            assert options[::2] == ["--trust"] * (len(options) // 2)
            assert sorted(options[1::2]) == sorted({*its, *more}), (env, run)


def test_nobody_is_asked_to_trust_the_standard_library(call, place, tmp_path, monkeypatch):
    """A file of a stranger names os.system: as an environment, as a part of a policy, and as a method."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "a", tmp_path / "a")
    for file in (tmp_path / "a" / "checkpoints").glob("*/method.json"):
        method = json.loads(file.read_text())
        method["policy"]["head"]["$"] = "os:system"
        file.write_text(json.dumps(method))
    data = Dataset([replace(e, metadata={**e.metadata, "env": "os:system"}) for e in open_dataset(place / "demos")])
    write_dataset(data, tmp_path / "demos.npz", "npz")
    for command in (("eval", tmp_path / "a", "fork"), ("eval", place / "a", "os:system"),
                    ("inspect", tmp_path / "demos.npz"),
                    ("train", "os:system", place / "demos", "--out", tmp_path / "run"), ("plot", tmp_path / "a"),
                    ("act", place / "a", "--robot", "os.path:join"), ("curate", place / "demos", "--score", "os:stat",
                                                                   "--keep", 0.5, "--out", tmp_path / "kept")):
        status, out, err = call(*command)
        assert "trust os" not in out + err and "os:system --" not in out, (command, out, err)
        assert status == 0 or "module of Python's standard library" in err, (command, err)
    assert common.trust_options(("os",), "os:system", tmp_path / "a") == []


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
    assert [line.strip() for line in judged.splitlines()[:4]] == [
        "understudy diagnose run --env elsewhere:world --trust elsewhere",
        "understudy train elsewhere:plain demos --trust elsewhere --out run-seed1 --seed 1",
        "understudy eval run elsewhere:world --episodes 2 --against run-seed1 --trust elsewhere",
        "understudy eval run elsewhere:world --episodes 2 --html report.html --trust elsewhere"]
