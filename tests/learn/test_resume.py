"""A run that was stopped goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.runs import Stop, contents, everything, made_up, plain, run
from folders import TESTS
from safetensors.torch import load_file

from understudy.core import UserError
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import Run
from understudy.policy import Policy

STEPS, EVERY = 11, 4


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_stopped_at_any_update_it_is_the_same_run_bit_by_bit(whole, tmp_path, at):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Stop(at)])
    assert Run(out).saved_steps()[-1] == at  # the update that ran was finished and kept
    run(out)
    assert contents(out) == contents(whole)


def test_with_its_data_on_the_device_it_is_the_same_run(whole, tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr("understudy.data.device_windows.available_bytes", lambda device: devices.append(device)
                        or 10**9)
    run(tmp_path / "run")
    assert devices == [torch.device("cpu")] and contents(tmp_path / "run") == contents(whole)


def test_stopped_again_and_again_it_is_the_same_run(whole, tmp_path):
    out, times = tmp_path / "run", 0
    while True:
        try:
            run(out, callbacks=[Stop(*range(1, STEPS + 1))])
            break
        except KeyboardInterrupt:
            times += 1
    assert times == STEPS and contents(out) == contents(whole)


def test_a_stretch_of_the_curve_that_was_cut_is_whole_again(tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.learn.train.CURVE_POINTS", 3)
    run(tmp_path / "whole", plain(9))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", plain(9), callbacks=[Stop(5)])
    run(tmp_path / "cut", plain(9))
    assert [line["step"] for line in Run(tmp_path / "cut").read_metrics() if "loss" in line] == [3, 6, 9]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_stopped_while_it_was_saved_it_stops(whole, tmp_path, monkeypatch):
    """The checkpoint is finished first; the interrupt is not forgotten over it."""
    out, save = tmp_path / "run", Run.save_checkpoint

    def pressed(self, step, *rest):
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)
        save(self, step, *rest)
    monkeypatch.setattr(Run, "save_checkpoint", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert Run(out).saved_steps()[-1] == 8
    run(out)
    assert contents(out) == contents(whole)


def test_stopped_while_it_was_judged_it_is_judged_again(whole, tmp_path):
    def score(policy):
        if not asked:
            asked.append(1)
            raise KeyboardInterrupt
        return 1.0
    out, asked = tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt):
        run(out, plain(), score=score, save_freq=3)
    assert Run(out).saved_steps() == [3] and not any("score" in line for line in Run(out).read_metrics())
    run(out, plain(), score=score, save_freq=3)
    assert [line["step"] for line in Run(out).read_metrics() if "score" in line] == [3, 6]


def test_what_takes_long_is_saved_in_between(whole, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("understudy.learn.train.MAX_UNSAVED_SECONDS", 0.0)
    run(tmp_path / "run", callbacks=[lambda *a: saved.append(Run(tmp_path / "run").saved_steps()[-1])])
    assert sorted(set(saved)) == list(range(STEPS + 1))
    assert contents(tmp_path / "run") == contents(whole)


def test_a_second_interrupt_does_not_wait_but_an_echo_is_none(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "echo", plain(), callbacks=[Stop(2), Stop(2)])
    assert Run(tmp_path / "echo").saved_steps() == [2]
    monkeypatch.setattr("understudy.learn.train.DeferredInterrupts.ECHO_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "twice", plain(), callbacks=[Stop(2), Stop(2)])
    assert Run(tmp_path / "twice").saved_steps() == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    before, calls = contents(whole), []
    policy = run(whole, callbacks=[lambda *a: calls.append(a)])
    assert contents(whole) == before and not calls
    loaded = Policy.load(whole)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in policy.state_dict().items())
    assert not policy.training


@pytest.mark.parametrize("constant", [True, False])
def test_more_updates_continue_a_run_if_its_learning_rate_does_not_depend_on_them(tmp_path, constant):
    method = replace(everything(), learner=replace(everything().learner, optimizer=OptimizerConfig(
        warmup_steps=3, lr_schedule="constant" if constant else "cosine")))
    run(tmp_path / "more", method, made_up(image=True), steps=5)
    if not constant:
        with pytest.raises(UserError, match="cannot be continued to 11"):
            run(tmp_path / "more", method, made_up(image=True))
        return
    run(tmp_path / "more", method, made_up(image=True))
    run(tmp_path / "at once", method, made_up(image=True))
    last = f"checkpoints/{STEPS:06d}"
    more, whole = contents(tmp_path / "more" / last), contents(tmp_path / "at once" / last)
    assert more["weights.safetensors"] == whole["weights.safetensors"]
    assert more["train/learner.safetensors"] == whole["train/learner.safetensors"]
    assert Method.load(tmp_path / "more") == method


def test_the_seed_decides_the_run_and_nothing_else_does(tmp_path):
    def trained(name, seed, outer):
        torch.manual_seed(outer)
        before = torch.get_rng_state()
        run(tmp_path / name, plain(2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return load_file(tmp_path / name / "checkpoints" / "000002" / "weights.safetensors")["net.input_layer.weight"]
    assert torch.equal(trained("a", 0, 0), trained("b", 0, 1))
    assert not torch.equal(trained("c", 1, 0), trained("d", 0, 0))


def test_a_run_of_an_earlier_version_is_continued(tmp_path):
    """It called the sampling weights of its provenance "draw"."""
    run(tmp_path, plain(4))
    for file in tmp_path.glob("checkpoints/*/provenance.json"):
        document = json.loads(file.read_text())
        document["draw"] = document.pop("sampling_weights")
        file.write_text(json.dumps(document))
    run(tmp_path, plain(4))
    assert "draw" in Run(tmp_path).read_checkpoint_json(4, "provenance.json"), "the run is finished, and left as it is"


# -- several processes -----------------------------------------------------------------------------------------------


SHARED = """
import sys
sys.path.insert(0, {tests!r})
import torch
from dataclasses import replace
from pathlib import Path
from fixtures.runs import everything, made_up, run, Stop
torch.set_num_threads(1)
method = everything()
optimizer = replace(method.learner.optimizer, accumulation_steps=2)
method = replace(method, learner=replace(method.learner, optimizer=optimizer))
try:
    run({out!r}, method, made_up(image=True), callbacks=[Stop(*{stop!r})])
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("threads", *(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")), flush=True)
"""


def _shared(out: Path, launcher: list[str], stop=()):
    program = out.with_suffix(".py")
    program.write_text(SHARED.format(tests=str(TESTS), out=str(out), stop=tuple(stop)))
    command = [sys.executable, *(["-m"] if launcher else []), *launcher, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, textwrap.shorten(done.stderr, 3000)
    # One that outlives its group may want the interpreter after that has ended, which aborts the process.
    assert "threads" in done.stdout and "gloo" not in done.stdout
    return done.stdout


@pytest.mark.slow  # starts launchers that start processes
@pytest.mark.parametrize("launcher", [
    ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    # --multi_gpu is what makes it start two; with --cpu it starts one, unless there is an mpirun.
    ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
     "--dynamo_backend=no"],
], ids=["torchrun", "accelerate"])
def test_two_processes_train_what_one_does(tmp_path, launcher):
    """Noise, crops and dropout included, since they belong to the parts of a batch; stopped and resumed as well."""
    one, two = tmp_path / "one", tmp_path / "two"
    _shared(one, [])
    assert "interrupted" in _shared(two, launcher, stop=[5])
    assert Run(two).saved_steps() == [4, 5]
    _shared(two, launcher)
    assert [Run(r).read_checkpoint_json(STEPS, "provenance.json")["device"]["processes"] for r in (one, two)] == [1, 2]
    a, b = contents(one), contents(two)
    assert a.keys() == b.keys()
    for one_line, two_line in zip(a["lines"], b["lines"], strict=True):
        assert one_line == pytest.approx(two_line, rel=1e-3)
    path = f"checkpoints/{STEPS:06d}/train/learner.safetensors"
    one, two = load_file(one / path), load_file(two / path)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
