"""onnx_runner.py, the file to copy to a robot."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.onnx_policies import NUMBERS

pytest.importorskip("onnxruntime", reason="extra onnx not installed")
pytest.importorskip("onnxscript", reason="extra onnx not installed")
from understudy.cli import main
from understudy.core import Feature, keys
from understudy.data.formats import open_dataset
from understudy.data.window import Window
from understudy.deploy import onnx_runner
from understudy.deploy.onnx import export, load, load_onnx_actor
from understudy.deploy.onnx_runner import OnnxRunner
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.train import train
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.policy import PolicyConfig
from understudy.testing import random_batch


def robot_policy(config, path, executor):
    policy, batch = random_batch(config, inputs={**NUMBERS, "observation.task": Feature("uint8", (12,), "text")})
    export(policy, path, executor)
    return [{k: v[i, -1].numpy() for k, v in batch.obs.items() if not k.endswith("?")} for i in range(4)] * 3


def test_the_runner_acts_as_the_executor_does(tmp_path):
    """Without noise, with a history whose beginning is marked, chunks that begin in the past, and two episodes.

    The sensors write every observation into the same arrays.
    """
    window = Window(3, 6, action_offset=-2, obs_pad_mask=True)
    path, executor = tmp_path / "policy.onnx", RecedingHorizon(3, skip=2)
    config = PolicyConfig(Regression(), Transformer(16, 1, 2), TokenEncoder(16), window=window)
    observations = robot_policy(config, path, executor)
    runner, actor = OnnxRunner(path), load_onnx_actor(path)
    sensors = {k: np.array(v) for k, v in observations[0].items()}
    for _ in range(2):
        runner.reset()
        state = None
        for obs in observations:
            rows = {k: torch.as_tensor(v)[None] for k, v in obs.items()}
            state = actor.start(rows, keys(0, [0])) if state is None else state
            action, state = actor.act(rows, state)
            for k, v in obs.items():
                sensors[k][...] = v
            np.testing.assert_allclose(runner.act(sensors), action[0].numpy(), rtol=1e-5, atol=1e-6)
    runner.reset()
    name = next(k for k, v in observations[0].items() if v.dtype == np.uint8)  # pixels, from 0 to 1
    with pytest.raises(TypeError, match="whole numbers from 0 to 255.*fractions"):
        runner.act({**observations[0], name: observations[0][name].astype(np.float32) / 255})
    runner.reset()
    with pytest.raises(TypeError, match="whole numbers from 0 to 255.*beyond"):  # they would become small ones
        runner.act({**observations[0], name: observations[0][name].astype(int) + 256})
    runner.reset()
    name = next(k for k, v in observations[0].items() if v.dtype.kind == "f")
    with pytest.raises(ValueError, match=f"{name}.* is not finite"):
        runner.act({**observations[0], name: np.full_like(observations[0][name], np.nan)})
    with pytest.raises(ValueError, match="an action that is not finite"):
        runner.session = SimpleNamespace(get_inputs=list, run=lambda *_: [np.full((1, 6, 2), np.inf)])
        runner.act(observations[0])


@pytest.mark.slow
def test_the_runner_executes_as_many_actions_of_a_plan_as_the_file_says(tmp_path):
    path = tmp_path / "policy.onnx"
    observations = robot_policy(PolicyConfig(Flow(n_steps=2), MLP(16), TokenEncoder(16), window=Window(2, 6)), path,
                                RecedingHorizon(4))
    runner, planner, rng = OnnxRunner(path, seed=5), load(path), np.random.default_rng(5)
    for first in (0, 4):
        past = observations[max(first - 1, 0)], observations[first]
        obs = {k: torch.as_tensor(np.stack([o[k] for o in past])[None]) for k in planner.inputs}
        obs = {k: v.float() if v.is_floating_point() else v for k, v in obs.items()}
        noise = torch.from_numpy(rng.standard_normal((1, 6, planner.action_dim)).astype(np.float32))
        plan = planner.plan(obs, noise)[0].numpy()
        actions = np.stack([runner.act(obs) for obs in observations[first:first + 4]])
        np.testing.assert_allclose(actions, plan[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_runner_refuses_other_executors(tmp_path):
    path = tmp_path / "policy.onnx"
    robot_policy(PolicyConfig(Regression(), MLP(16), TokenEncoder(16), window=Window(1, 4)), path, TemporalEnsemble())
    with pytest.raises(ValueError, match="TemporalEnsemble"):
        OnnxRunner(path)


@pytest.mark.slow
def test_export_says_that_the_runner_will_refuse_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["record", "fork", "--out", "demos", "--episodes", "6"]) == 0
    for executor, fits in ((TemporalEnsemble(), False), (RecedingHorizon(2), True)):
        method = Method(PolicyConfig(Regression(), MLP(16), window=Window(1, 4)), executor, BehaviorCloning(2))
        train(method, open_dataset("demos"), f"run{fits}", device="cpu", progress=False, val_fraction=0.0)
        capsys.readouterr()
        assert main(["export", f"run{fits}", "--out", f"{fits}.onnx"]) == 0
        assert ("a method whose executor is RecedingHorizon" in capsys.readouterr().out.replace("\n", " ")) != fits
        assert main(["export", f"run{fits}", "--out", f"{fits}.onnx", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["runs_in_onnx_runner"] == fits and report["executor"] == type(executor).__name__
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="runner is for RecedingHorizon"):
            OnnxRunner(f"{fits}.onnx")


def test_a_copy_of_the_runner_needs_numpy_and_onnxruntime_only(tmp_path):
    source = Path(onnx_runner.__file__).read_text()
    (tmp_path / "onnx_runner.py").write_text(source)
    code = "import sys, onnx_runner; print({'torch', 'understudy'} & set(sys.modules))"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
