"""Exported files in other forms: measured parity, runners in two languages, packages of PyTorch, 8 bits."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from folders import REPOSITORY, TESTS

pytest.importorskip("onnxruntime", reason="extra onnx not installed")
pytest.importorskip("onnxscript", reason="extra onnx not installed")

import onnx
from fixtures.heads import named
from fixtures.onnx_policies import HEADS, SolvesEquations, policy_with

from understudy.cli import main
from understudy.commands.parts.common import trained_rate
from understudy.core import Feature, NonFiniteAction, Unsupported, UserError
from understudy.data.window import Window
from understudy.deploy import onnx_runner, torch_package
from understudy.deploy.equivalence import (
    NOTABLE,
    measure_parity,
    parity_report,
    random_noise,
    random_observations,
)
from understudy.deploy.int8 import MIN_WEIGHTS, quantize_file
from understudy.deploy.onnx import export, load
from understudy.deploy.onnx_runner import OnnxRunner
from understudy.deploy.torch_package import export_package, load_package
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.policy import Planner, PolicyConfig
from understudy.testing import random_batch

RUNNER = Path(onnx_runner.__file__).with_name("onnx_runner.mjs")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A policy that draws noise, and its ONNX file."""
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), MLP(64), window=Window(2, 6)))
    policy = policy.eval()
    export(policy, path, RecedingHorizon(4, skip=0), fps=20.0)
    return policy, path


class Shifted(Planner):
    """A planner that is wrong for one row of one batch size."""

    def __init__(self, policy):
        self.policy, self.inputs, self.features = policy, policy.inputs, policy.features
        self.window, self.action_dim, self.device = policy.window, policy.action_dim, policy.device

    def plan(self, obs, noise, guides=()):
        plan = self.policy.plan(obs, noise).clone()
        if len(plan) == 5:
            plan[3, 2, 1] += 0.5
        return plan

    def noise(self, key, count):
        return self.policy.noise(key, count)


def test_parity_finds_the_one_place_that_differs(sampled):
    policy, _ = sampled
    same, parity = measure_parity(policy, policy, 60), measure_parity(policy, Shifted(policy), 60)
    assert (same.largest, same.mean, same.notable, same.inputs) == (0.0, 0.0, 0, 60)
    assert parity.inputs == sum(parity.batch_sizes.values()) == 60 and {1, 2, 5, 16} <= set(parity.batch_sizes)
    n_different = parity.batch_sizes[5] // 5
    assert parity.notable == n_different > 0
    assert parity.largest == pytest.approx(0.5 / parity.largest_action, rel=1e-4)
    assert parity.mean == pytest.approx(n_different * parity.largest / (60 * 6 * policy.action_dim), rel=1e-4)
    location = parity.where
    assert [location[k] for k in ("batch_size", "row", "step", "component")] == [5, 3, 2, 1]
    assert location["file"] - location["policy"] == pytest.approx(0.5, abs=1e-4)


def test_a_plan_that_is_not_a_number_is_the_largest_difference(sampled):
    class Broken(Shifted):
        def plan(self, obs, noise, guides=()):
            return super().plan(obs, noise).log()
    assert measure_parity(sampled[0], Broken(sampled[0]), 20).largest == float("inf")


def test_a_policy_whose_plans_are_not_numbers_is_refused(sampled, tmp_path):
    policy, _ = random_batch(PolicyConfig(Regression(), MLP(8), window=Window(1, 2)))
    for weight in policy.net.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteAction, match=r"plans are NaN or infinite for 1 of 1 random"):
        measure_parity(policy.eval(), policy, 20)
    with pytest.raises(NonFiniteAction, match="the policy: its plans"):
        export(policy.eval(), tmp_path / "nan.onnx", RecedingHorizon(1))
    assert not list(tmp_path.iterdir())


def test_a_thousand_inputs_and_what_the_file_says_of_itself(sampled):
    policy, path = sampled
    planner = load(path)
    parity = measure_parity(policy, planner)
    assert parity.inputs == 1000 and parity.largest < 1e-5 and parity.notable == 0
    report = parity_report(path, planner, parity, 0.0)
    assert (report["horizon"], report["n_action_steps"], report["skip"], report["fps"]) == (6, 4, 0, 20.0)
    assert trained_rate(path) == 20.0  # the rate at which commands act with it
    assert report["precision"] == "fp32" and report["bytes"] == path.stat().st_size
    assert json.loads(json.dumps(report))["parity"]["where"]["batch_size"] in (1, 2, 5, 16, 8)
    dtypes = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64, "uint8": onnx.TensorProto.UINT8,
              "bool": onnx.TensorProto.BOOL}
    graph = onnx.load(path).graph
    for tensors, described in ((graph.input, report["tensors"]["inputs"]),
                               (graph.output, report["tensors"]["outputs"])):
        assert [(t.name, t.type.tensor_type.elem_type) for t in tensors] == [(t["name"], dtypes[t["dtype"]])
                                                                            for t in described]
        for tensor, one in zip(tensors, described, strict=True):
            assert one["shape"][0] == "rows"
            assert [d.dim_value for d in tensor.type.tensor_type.shape.dim][1:] == one["shape"][1:]


# -- runners --------------------------------------------------------------------------------------------------------


class Recorded:
    """Random numbers that were recorded."""

    def __init__(self, numbers):
        self.numbers, self.drawn = numbers, 0

    def standard_normal(self, shape):
        self.drawn += (size := int(np.prod(shape)))
        return np.reshape(self.numbers[self.drawn - size:self.drawn], shape)


def recorded_episodes(tmp_path, head, executor, window, trunk):
    """A file, and two episodes of observations with the numbers that are drawn for them."""
    inputs = {"observation.state": Feature("float64", (3,)), "observation.task": Feature("uint8", (12,), "text"),
              "observation.mode": Feature("int64", (1,), "discrete", num_classes=(3,)),
              "observation.shut": Feature("bool", (1,))}
    policy, batch = random_batch(PolicyConfig(head, trunk, TokenEncoder(16), window=window), inputs=inputs)
    path = tmp_path / "policy.onnx"
    export(policy, path, executor)
    observations = [{k: v[i, -1].numpy().tolist() for k, v in batch.obs.items() if not k.endswith("?")}
                    for i in range(4)]
    noise = np.random.default_rng(3).standard_normal(1000).astype(np.float32).tolist()
    return {"file": str(path), "noise": noise, "episodes": [observations * 2, observations[::-1]]}


@pytest.mark.slow
@pytest.mark.parametrize("head, window, executor, trunk", [
    pytest.param(Flow(n_steps=2), Window(2, 6), RecedingHorizon(3), MLP(16), id="noise"),
    pytest.param(Regression(), Window(3, 6, action_offset=-2, obs_pad_mask=True), RecedingHorizon(3, skip=2),
                 Transformer(16, 1, 2), id="padding")])
def test_both_runners_give_the_recorded_actions(head, window, executor, trunk, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("no onnxruntime-node")
    recorded = recorded_episodes(tmp_path, head, executor, window, trunk)
    (tmp_path / "recorded.json").write_text(json.dumps(recorded))
    runner = OnnxRunner(recorded["file"])
    runner.rng, expected = Recorded(recorded["noise"]), []
    for steps in recorded["episodes"]:
        runner.reset()
        expected += [runner.act(obs).tolist() for obs in steps]
    done = subprocess.run(["node", TESTS / "onnx_runner_check.mjs", RUNNER, tmp_path / "recorded.json"], cwd=REPOSITORY,
                          capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("no onnxruntime-node")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(output["actions"], expected, rtol=1e-4, atol=1e-5)
    assert output["drawn"] == runner.rng.drawn and (runner.rng.drawn > 0) == isinstance(head, Flow)


PAGE = """<!doctype html><script type="module">
import * as ort from "./dist/ort.wasm.min.mjs";
import { OnnxRunner } from "./onnx_runner.mjs";
const send = (told) => fetch("told", { method: "POST", body: JSON.stringify(told) });
try {
  ort.env.wasm.numThreads = 1;
  const { noise, episodes } = await (await fetch("recorded.json")).json(), actions = [];
  let drawn = 0;
  const bytes = new Uint8Array(await (await fetch("policy.onnx")).arrayBuffer());
  const runner = await OnnxRunner.load(ort, bytes, () => noise[drawn++]);
  for (const steps of episodes) {
    runner.reset();
    for (const obs of steps) actions.push(await runner.act(obs));
  }
  await send({ actions });
} catch (error) {
  await send({ error: String(error) });
}
</script>"""


@pytest.mark.slow
def test_a_browser_gives_the_recorded_actions(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    web = REPOSITORY / "node_modules/onnxruntime-web/dist"
    if browser is None:
        pytest.skip("no browser")
    if not web.exists():
        pytest.skip("no onnxruntime-web")
    recorded = recorded_episodes(tmp_path, Flow(n_steps=2), RecedingHorizon(3), Window(2, 6), MLP(16))
    runner = OnnxRunner(recorded["file"])
    runner.rng, expected, posted = Recorded(recorded["noise"]), [], queue.Queue()
    for steps in recorded["episodes"]:
        runner.reset()
        expected += [runner.act(obs).tolist() for obs in steps]
    (tmp_path / "dist").symlink_to(web)
    shutil.copy(RUNNER, tmp_path)
    (tmp_path / "recorded.json").write_text(json.dumps(recorded))
    (tmp_path / "index.html").write_text(PAGE)

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self):
            posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser_process = subprocess.Popen([browser, "--headless", "--no-sandbox", "--disable-gpu",
                                            f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0",
                                            f"http://127.0.0.1:{server.server_port}/index.html"],
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            posted_output = posted.get(timeout=120)
        finally:
            browser_process.terminate()
            browser_process.wait()
            server.shutdown()
    assert "actions" in posted_output, posted_output
    np.testing.assert_allclose(posted_output["actions"], expected, rtol=1e-4, atol=1e-5)


def test_the_runner_in_javascript_says_which_column_is_wrong():
    if shutil.which("node") is None:
        pytest.skip("no node")
    code = f"""import {{ OnnxRunner }} from {json.dumps(RUNNER.as_uri())};
const ort = {{ Tensor: class {{}} }}, said = {{ inputs: [] }};
const runner = Object.assign(new OnnxRunner(), {{ nObsSteps: 2, ort, said }});
const column = {{ name: "observation.state", dtype: "float32", shape: ["rows", 2, 3] }};
for (const obs of [{{ "observation.state": [1, 2] }}, {{ state: [1, 2, 3] }}, {{ "observation.state": [1, NaN, 3] }},
                   {{ "observation.state": [1, 2, 3] }}]) {{
  runner.history = [obs];
  try {{ runner.tensor(column); console.log("fits"); }} catch (error) {{ console.log(error.message); }}
}}"""
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *(f'the observation has {n} numbers of "observation.state", but the policy reads 3. Give act() all 3 of them, '
          "in the order of the data." for n in (2, 0)), '"observation.state" is not finite', "fits"], done.stderr


def test_the_runner_in_javascript_keeps_observations_whose_array_is_used_again():
    if shutil.which("node") is None:
        pytest.skip("no node")
    code = f"""import {{ OnnxRunner }} from {json.dumps(RUNNER.as_uri())};
const column = {{ name: "observation.state", dtype: "float32", shape: ["rows", 2, 1] }};
const runner = Object.assign(new OnnxRunner(), {{
  nObsSteps: 2, said: {{ inputs: [], tensors: {{ inputs: [column] }}, skip: 0, n_action_steps: 1 }},
  ort: {{ Tensor: class {{ constructor(dtype, data) {{ this.data = data; }} }} }},
  session: {{ run: async (feed) => ({{ action: {{ data: feed[column.name].data, dims: [1, 1, 2] }} }}) }},
}});
runner.reset();
const state = new Float32Array(1);
for (state[0] = 1; state[0] < 4; state[0]++) console.log(String(await runner.act({{ "observation.state": state }})));
runner.session.run = async () => ({{ action: {{ data: [NaN, 0], dims: [1, 1, 2] }} }});
for (const i of [0, 1]) await runner.act({{ "observation.state": [i] }}).catch((e) => console.log(e.message));"""
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1,1", "1,2", "2,3"] + 2 * ["the policy planned an action that is not finite"]


def test_the_figures_of_the_guide():
    page = " ".join((REPOSITORY / "docs/deploy.md").read_text().split())
    assert f"layers of fewer than {MIN_WEIGHTS:,} weights" in page
    tolerance = signature(export).parameters["max_error"].default
    assert tolerance == NOTABLE == 1e-4 and "more than a ten-thousandth of the largest action" in page


# -- packages of PyTorch ----------------------------------------------------------------------------------------------


def no_pickles(path):
    for name in (archive := zipfile.ZipFile(path)).namelist():
        content = archive.read(name)
        assert not content.startswith((b"\x80\x02", b"PK")), f"{name} is pickled"


@pytest.mark.slow
def test_a_torch_package_needs_torch_alone(sampled, tmp_path):
    policy, _ = sampled
    path = tmp_path / "new" / "policy.pt2"
    assert export_package(policy, path, RecedingHorizon(4), fps=20.0) < 1e-5
    no_pickles(path)
    loaded = load_package(path)
    parity = measure_parity(policy, loaded, 100)
    assert parity.largest < 1e-5
    assert (loaded.metadata["fps"], loaded.metadata["n_action_steps"], loaded.executor) == (20.0, 4, RecedingHorizon(4))
    code = f"""import sys, torch, json
said = {{"understudy.json": ""}}
plan = torch.export.load({str(path)!r}, extra_files=said).module()
said = json.loads(said["understudy.json"])
given = [torch.zeros(3, *t["shape"][1:], dtype=getattr(torch, t["dtype"])) for t in said["tensors"]["inputs"]]
print(tuple(plan(*given).shape), "understudy" in sys.modules)"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == f"(3, 6, {policy.action_dim}) False", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("head", {type(head): head for head in HEADS}.values(), ids=named)  # variants: test_onnx.py
def test_every_head_as_a_torch_package(head, tmp_path):
    assert export_package(policy_with(head)[0], tmp_path / "policy.pt2") < 1e-3


@pytest.mark.slow
def test_a_package_refuses_an_executor_that_guides(sampled, tmp_path):
    with pytest.raises(Unsupported, match="RealTimeChunking cannot run an exported policy"):
        export_package(sampled[0], tmp_path / "policy.pt2", RealTimeChunking(3, 2))
    assert not list(tmp_path.iterdir())


def test_machine_code_needs_a_compiler(sampled, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unsupported, match="machine code needs a C\\+\\+ compiler") as refusal:
        export_package(sampled[0], tmp_path / "policy.aot.pt2")
    assert "FILE.pt2, which needs none" in str(refusal.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_machine_code_plans_the_same(tmp_path):
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("no C++ compiler")
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), MLP(16), window=Window(1, 4)))
    path = tmp_path / "policy.aot.pt2"
    assert export_package(policy.eval(), path, RecedingHorizon(2)) < 1e-5
    loaded = load_package(path)
    assert measure_parity(policy, loaded, 50).largest < 1e-5 and loaded.metadata["n_action_steps"] == 2


class Undecided(Regression):
    """Samples by a loop whose length depends on the numbers."""

    def sample(self, net, context, noise):
        x = net(noise, noise, context)
        while x.abs().max() > 1:
            x = x / 2
        return x


@pytest.mark.slow
def test_a_sampler_that_is_no_fixed_graph_is_refused(tmp_path):
    policy, _ = random_batch(PolicyConfig(Undecided(), MLP(16), window=Window(1, 4)))
    with pytest.raises(Unsupported, match="Undecided with these parts cannot be exported as a fixed graph"):
        export_package(policy, tmp_path / "policy.pt2")
    with pytest.raises(Unsupported, match="Undecided with these parts cannot be exported to ONNX"):
        export(policy, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_package_has_operators_that_onnx_does_not_have(tmp_path):
    assert export_package(policy_with(SolvesEquations())[0], tmp_path / "policy.pt2") < 1e-4


# -- 8 bits -----------------------------------------------------------------------------------------------------------


def test_a_product_in_8_bits_is_the_exact_product_of_what_was_rounded(tmp_path):
    """Against NumPy, with a part of a weight that is turned, and one that is not.

    Signed weights overflow here without VNNI.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first, second, bias = rng.normal(size=(96, 64)), rng.normal(size=(96, 80)), rng.normal(size=96)
    first, second, bias = first.astype(np.float32), second.astype(np.float32), bias.astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Slice", ["wide", "from", "to", "axis", "step"], ["w"]),
         helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1), helper.make_node("MatMul", ["h", "v"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["n", n]) for k, n in (("h", 96), ("y", 80))],
        [numpy_helper.from_array(a, k) for a, k in (
            (np.pad(first, ((0, 0), (3, 2))), "wide"), (np.array([3]), "from"), (np.array([-2]), "to"),
            (np.array([1]), "axis"), (np.array([1]), "step"), (bias, "b"), (second, "v"))])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    assert quantize_file(path) == 2

    def product(x, w):
        low, high = min(x.min(), 0), max(x.max(), 0)
        size = np.float32((high - low) / 255)
        zero = np.clip(np.rint(-low / size), 0, 255)
        scale = np.abs(w).max(0) / 127
        whole = np.clip(np.rint(x / size) + zero, 0, 255) - zero
        return whole * size @ (np.rint(w / scale) * scale)
    x = rng.normal(size=(5, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    middle, exported_product = session.run(["h", "y"], {"x": x})
    np.testing.assert_allclose(middle, product(x, first.T) + bias, atol=1e-3)
    np.testing.assert_allclose(exported_product, product(middle, second), atol=1e-2)
    assert np.abs(exported_product - (x @ first.T + bias) @ second).max() < 0.05 * np.abs(exported_product).max()


@pytest.mark.slow
def test_layers_inside_a_loop_are_rounded_and_the_file_shrinks(sampled, tmp_path):
    policy, exact = sampled
    path = tmp_path / "policy.int8.onnx"
    error = export(policy, path, RecedingHorizon(4), precision="int8")
    loaded = load(path)
    assert 1e-5 < error < 0.2 and path.stat().st_size < exact.stat().st_size
    assert loaded.metadata["precision"] == "int8" and loaded.executor == RecedingHorizon(4)
    assert "MatMulInteger" in {n.op_type for node in onnx.load(path).graph.node if node.op_type == "Scan"
                               for a in node.attribute if a.HasField("g") for n in a.g.node}
    obs, noise = random_observations(policy, 7), random_noise(policy, 7)
    together = loaded.plan(obs, noise)
    assert together.shape == (7, 6, policy.action_dim) and together.isfinite().all()
    alone = [loaded.plan({name: x[i:i + 1] for name, x in obs.items()}, noise[i:i + 1]) for i in range(7)]
    assert np.array_equal(np.concatenate(alone), together)  # although the rows of a batch have one scale


@pytest.mark.slow
def test_success_after_rounding_is_compared_on_the_same_starts(run, train_bc):
    train_bc("run", episodes=40, steps=300)
    assert run("export", "run", "--out", "p.onnx", "--inputs", 50)[0] == 0
    status, out, _ = run("export", "run", "--out", "p.int8.onnx", "--precision", "int8", "--inputs", 50)
    assert status == 0 and "understudy compare run p.int8.onnx --env fork --episodes 400" in out
    report = json.loads(Path("p.int8.onnx.json").read_text())
    assert report["precision"] == "int8" and report["parity"]["inputs"] == 50
    assert report["bytes"] < Path("p.onnx").stat().st_size
    comparison = json.loads(run("compare", "p.onnx", "p.int8.onnx", "--env", "fork", "--episodes", 100, "--json")[1])
    assert abs(comparison["pairs"][0]["difference"]) < 0.2


@pytest.mark.parametrize("given, message", [
    (("--out", "p.pt2", "--precision", "int8"), "int8 is for ONNX files"),
    (("--out", "p.bin"), "must end in .onnx or .pt2"),
    (("--out", "p.onnx", "--inputs", "0"), "--inputs: must be at least 1, but is 0")])
def test_what_the_command_refuses(given, message, capsys):
    assert main(["export", "run", *given]) == 2
    assert message in capsys.readouterr().err


def test_a_package_under_another_name_is_refused(sampled, tmp_path):
    with pytest.raises(UserError, match="must end in .pt2"):
        export_package(sampled[0], tmp_path / "policy.onnx")
    assert torch_package.is_compiled("a.aot.pt2") and not torch_package.is_compiled("a.pt2")
    with pytest.raises(UserError, match="there is no such file"):
        load_package(tmp_path / "absent.pt2")
