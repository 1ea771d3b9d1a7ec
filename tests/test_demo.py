"""The demonstration: what it promises, and that Ctrl-C at any point changes nothing in what comes out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from understudy import demo
from understudy.checkpoint import find_checkpoint
from understudy.commands.parts.common import progress_bar
from understudy.heads.likelihood.regression import Regression
from understudy.methods.registry import find_method


def test_the_first_two_methods_differ_in_the_head_alone_and_the_third_is_what_train_bc_makes():
    flow, regression = demo.METHODS["flow"], demo.METHODS["regression"]
    assert flow != regression
    assert replace(flow, policy=replace(flow.policy, head=Regression())) == regression
    assert demo.METHODS["bc"] == find_method("bc") and demo.METHODS["bc"].executor.n_action_steps == 1
    assert list(demo.METHODS) == list(demo.NAMES) == ["flow", "regression", "bc"]


def test_from_python(tmp_path, monkeypatch):
    small = {name: replace(m, learner=replace(m.learner, steps=4)) for name, m in demo.METHODS.items()}
    for name, value in {"METHODS": small, "STEPS": 4, "DEMONSTRATIONS": 5, "EPISODES": 3}.items():
        monkeypatch.setattr(demo, name, value)
    messages = []
    evaluations = demo.demo(tmp_path / "demo", say=messages.append, bar=progress_bar)
    assert [len(e.episodes) for e in evaluations.values()] == [3, 3, 3]
    assert messages[0].startswith("1/6  5 demonstrations")
    assert (tmp_path / "demo" / "report.html").exists()
    provenance = json.loads((find_checkpoint(tmp_path / "demo" / "bc") / "provenance.json").read_text())
    assert provenance["command"] == "understudy demo --out demo"
    assert provenance["options"] == {"command": "demo", "out": "demo", "device": "cpu"}


def run(out, log, interrupt=None):
    """`understudy demo` in a process of its own; SIGINT as soon as `interrupt(out, what it has said)` is true, and
    again while it does not end. Returns its exit status."""
    with open(log, "w") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "understudy", "demo", "--out", str(out)], stdout=log_file, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        try:
            while interrupt is not None and process.poll() is None and not interrupt(out, log.read_text()):
                time.sleep(0.01)
            if interrupt is not None and process.poll() is None:
                process.send_signal(signal.SIGINT)
            return process.wait(timeout=500)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A demo that nobody interrupted: its folder and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder / "demo", folder / "log") == 0, (folder / "log").read_text()
    return folder / "demo", (folder / "log").read_text()


def measured(name, lines):
    return lambda out, said: (out / name / "metrics.jsonl").exists() and len(
        (out / name / "metrics.jsonl").read_text().splitlines()) > lines


MOMENTS = {
    "as it starts": lambda out, said: "Ctrl-C" in said,
    "as it records": lambda out, said: "1/6" in said,
    "before the first update": lambda out, said: "3/6" in said,
    "early in the first training": measured("flow", 3),
    "late in the first training": measured("flow", 400),
    "in the second training": measured("regression", 200),
    "in the third training": measured("bc", 200),
    "as it judges": lambda out, said: "6/6" in said,
}


@pytest.mark.slow
def test_it_says_which_is_better_by_how_much_and_how_sure(whole):
    out, text = whole
    results = json.loads((out / "results.json").read_text())
    flow, regression, bc = (results["policies"][name] for name in ("flow", "regression", "bc"))
    # 200 starts: a policy that succeeds in 4 of 5 or more against one whose mean is the pillar.
    assert flow["success"]["low"] > 0.8 and regression["success"]["high"] < 0.2
    # The plainest baseline averages too, but never commits to it for several steps.
    assert bc["success"]["low"] > 0.7 and bc["updates"] == 5000
    assert "commits to the average for 4 steps" in text
    assert f"{bc['successes']} of 200" in text.split("commits to the average")[1]
    assert flow["paired"]["against"] == "regression" and flow["paired"]["low"] > 0.6 and flow["paired"]["p"] < 1e-6
    assert results["optimum"] == 1.0 and "best possible success in 'fork' is 1.0" in text
    assert "Flow matching succeeds more often than mean regression" in text and "95% interval" in text
    assert f"{flow['successes']} of 200 against {regression['successes']} of 200" in text
    assert len(re.findall("^  understudy ", text, re.MULTILINE)) == 3
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 6 and "bc: " in page and not re.search(r"(?:src|href)\s*=\s*[\"']?https?:", page)
    assert all(command in page for command in ("understudy inspect", "understudy eval", "understudy train"))


@pytest.mark.slow
def test_it_can_be_interrupted_anywhere(whole, tmp_path):
    for moment, reached in MOMENTS.items():
        status = run(tmp_path / "demo", tmp_path / "log", reached)
        text = (tmp_path / "log").read_text()
        assert status == 130 and "same command continues" in text and "Traceback" not in text, (moment, status, text)
    assert run(tmp_path / "demo", tmp_path / "log") == 0
    assert (tmp_path / "demo" / "results.json").read_bytes() == (whole[0] / "results.json").read_bytes()
    for name in demo.METHODS:
        last = [json.loads((place / name / "run.json").read_text())["last"] for place in (tmp_path / "demo", whole[0])]
        assert last[0] == last[1] == f"checkpoints/{demo.METHODS[name].learner.steps:06d}"
        weights = [(place / name / last[0] / "weights.safetensors").read_bytes()
                   for place in (tmp_path / "demo", whole[0])]
        assert weights[0] == weights[1]


@pytest.mark.slow
def test_again_it_does_nothing_twice(whole, tmp_path):
    out, text = whole
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    results = (out / "results.json").read_bytes()
    assert run(out, tmp_path / "log") == 0
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")} == before
    assert (out / "results.json").read_bytes() == results
