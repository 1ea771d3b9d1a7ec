"""Policies as ONNX files: the same plans, by the same contract, and what cannot be written says so."""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import numpy as np
import pytest
import torch
from fixtures.onnx_policies import HEADS, NUMBERS, REFUSED, SolvesEquations, policy_with
from folders import REPOSITORY

pytest.importorskip("onnxruntime", reason="extra onnx not installed")
pytest.importorskip("onnxscript", reason="extra onnx not installed")
import onnx
from fixtures.heads import named

from understudy import heads
from understudy.core import Feature, Unsupported, UserError, keys
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.deploy.onnx import export, load, load_onnx_actor
from understudy.deploy.torch_package import export_package
from understudy.envs import make
from understudy.evaluate import evaluate
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.adaptive import AdaptiveChunking, AdaptiveHorizon
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.filters import FilteredExecutor, JerkLimit
from understudy.execute.streaming import StreamingExecutor
from understudy.execute.streaming_flow import StreamingFlowExecutor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.base import Head, MemoryHead, TemperatureHead
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.denoising.interpolant import Interpolant
from understudy.heads.denoising.streaming_flow import StreamingFlow
from understudy.heads.energy.transport import Transport
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.regression import Regression
from understudy.heads.solvers import DDPM
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.methods.behavior_cloning.bottleneck_bc import BottleneckEncoder
from understudy.methods.generative.contextvla import PooledHistoryEncoder
from understudy.methods.generative.mdt import GoalEncoder
from understudy.methods.representation.pasta import ComponentTokenEncoder
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.grid import PerToken
from understudy.nets.in_context import InContextTransformer
from understudy.nets.lstm import LSTM
from understudy.nets.mixture_of_experts import MoEFeedForward
from understudy.nets.mlp import MLP
from understudy.nets.mlp_mixer import MLPMixer
from understudy.nets.object_attention import ObjectAttentionEncoder
from understudy.nets.pixels import FocusCrop, PixelEncoder
from understudy.nets.point_cloud import PointNet
from understudy.nets.pretrained.act import ACTEncoder, ACTTransformer
from understudy.nets.pretrained.diffusion_policy import DiffusionPolicyEncoder
from understudy.nets.recurrent import RecurrentEncoder
from understudy.nets.small_denoiser import SmallDenoiser
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.nets.vision import ResNet, SmallConv
from understudy.policy import Policy, PolicyConfig, check_features
from understudy.testing import random_batch, random_dataset

TRANSPORTS = (Transport(7, 8, 3, 24, hidden=(2,), features=2, kernel=3),  # read an image
              Transport(7, 6, None, 6, equivariant=False, hidden=(4,), features=2, kernel=3))
FROM_THE_LAST_ACTION = Interpolant("observation.last")  # needs a column that the others do not have
TRUNKS = {"unet": UNet((16, 32), time_width=16), "cross": Transformer(32, 2, 4),
          "joint": Transformer(32, 1, 4, "joint", causal=True), "act": Transformer(32, 1, 4, encoder_depth=1),
          "experts": Transformer(32, 2, 4, feed_forward=MoEFeedForward()), "mixer": MLPMixer(32, 2),
          "in_context": InContextTransformer(32, 2, 4),
          "small_denoiser": SmallDenoiser(Transformer(32, 1, 4), MLP(32, 1), 32)}
IMAGE = Feature("uint8", (40, 44, 3), "image")
INPUTS = {
    "image": (TokenEncoder(16, 2, SmallConv((8, 8), 8)), {**NUMBERS, "observation.images.front": IMAGE}),
    "resnet": (TokenEncoder(16, 2, ResNet()), {"observation.images.front": IMAGE}),
    "frozen": (TokenEncoder(16, 2, ResNet(pool="grid", frozen=True)), {"observation.images.front": IMAGE}),
    "points": (TokenEncoder(16, point_clouds=("observation.points",), points=PointNet((8, 16))),
               {**NUMBERS, "observation.points": Feature("float32", (12, 6))}),
    "text": (TokenEncoder(16), {**NUMBERS, "observation.task": Feature("uint8", (12,), "text"),
                                "observation.mode": Feature("int64", (1,), "discrete", num_classes=(3,)),
                                "observation.shut": Feature("bool", (1,))}),
    "act": (ACTEncoder(16), {**NUMBERS, "observation.images.front": IMAGE}),
    "diffusion_policy": (DiffusionPolicyEncoder((36, 40), keypoints=4), {**NUMBERS, "observation.images.front": IMAGE}),
    "recurrent": (RecurrentEncoder(16, 1), NUMBERS), "flat": (ConcatEncoder(), NUMBERS),
    "bottleneck": (BottleneckEncoder(8, ConcatEncoder()), NUMBERS),
    "pooled_history": (PooledHistoryEncoder(2, 1, 2, encoder=TokenEncoder(16)), NUMBERS),
    "components": (ComponentTokenEncoder(16, 2, 2), NUMBERS),
    "goals": (GoalEncoder(("observation.still", "observation.task"), TokenEncoder(16)),
              {**NUMBERS, "observation.task": Feature("uint8", (12,), "text"),
               "observation.task?": Feature("bool", ())}),
    "objects": (ObjectAttentionEncoder(hidden=8, encoder=TokenEncoder(16)),
                {**NUMBERS, "observation.objects": Feature("float32", (4, 3)),
                 "observation.task": Feature("uint8", (12,), "text")}),
}


def few(names, *fast):
    """All, of which a representative few are in the fast tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def noises(policy, rows, seed=0):
    return torch.randn(rows, *policy.noise_shape, generator=torch.Generator().manual_seed(seed))


def agrees(policy, batch, path):
    """The file's plans against the policy's, for as many rows as there are and for one."""
    export(policy, path)
    loaded = load(path)
    assert (loaded.inputs, loaded.action_dim, loaded.window) == (policy.inputs, policy.action_dim, policy.window)
    for rows in (len(batch), 1):
        obs, noise = {k: v[:rows] for k, v in batch.obs.items()}, noises(policy, rows)
        with torch.no_grad():
            plain = policy.plan(obs, noise)
        plan = loaded.plan(obs, noise)
        assert plan.shape == (rows, policy.window.horizon, policy.action_dim) and plan.dtype == plain.dtype
        torch.testing.assert_close(plan, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    key = keys(0, range(4))
    assert torch.equal(loaded.noise(key, torch.arange(4)), policy.noise(key, torch.arange(4)))
    return loaded


@pytest.mark.parametrize("head", few(HEADS, Regression(), Flow()), ids=named)
def test_every_head(head, tmp_path):
    policy, batch = policy_with(head)
    loaded = agrees(policy, batch, tmp_path / "new" / "policy.onnx")
    plans_a_mean = isinstance(head, TemperatureHead) and not head.temperature
    if policy.noise_shape[-1] and not plans_a_mean and not isinstance(head, CVAE):  # noise is an input, and read
        other = loaded.plan(batch.obs, noises(policy, len(batch), 1))
        assert not torch.equal(other, loaded.plan(batch.obs, noises(policy, len(batch))))


@pytest.mark.parametrize("head", REFUSED, ids=named)
def test_a_refused_head_leaves_no_file_and_gives_its_reason(head, tmp_path):
    policy, _ = policy_with(head)
    for write, name in ((export, "policy.onnx"), (export_package, "policy.pt2")):
        with pytest.raises(Unsupported) as refusal:
            write(policy, tmp_path / name)
        assert refusal.value.problem.endswith(REFUSED[head]) and refusal.value.where == "EnergyModel.sampler"
        assert refusal.value.hint == 'use sampler="derivative_free"'
    assert not list(tmp_path.iterdir())


def all_heads():
    """The classes of heads of the library."""
    for head_module in walk_packages(heads.__path__, "understudy.heads."):
        module = import_module(head_module.name)
        yield from (v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Head)
                    and v.__module__ == module.__name__ and not inspect.isabstract(v) and v is not MemoryHead)


def test_every_head_is_tried():
    """A head that is added to the library or to the contracts is exported too, or refused with its reason."""
    assert {type(h) for h in (*HEADS, *REFUSED, FROM_THE_LAST_ACTION, *TRANSPORTS)} == set(all_heads())


def test_the_guide_names_what_is_exported_and_what_is_refused():
    section = (REPOSITORY / "docs/heads.md").read_text().split("## ONNX files")[1].split("\n## ")[0]
    refused = re.findall(r"^- `(\w+)` [^:\n]+: ([^:\n]+)\.$", section, re.MULTILINE)
    assert sorted(refused) == sorted((type(head).__name__, reason) for head, reason in REFUSED.items())


@pytest.mark.slow
@pytest.mark.parametrize("head", TRANSPORTS, ids=named)
def test_pick_and_place_in_an_image(head, tmp_path):
    config = PolicyConfig(head, encoder=PixelEncoder(), codec=Normalizer(target="identity"), window=Window(1, 1),
                          inputs=("observation.images.top",))
    policy, batch = random_batch(config, target=Feature("float32", (5,)),
                                 inputs={"observation.images.top": Feature("uint8", (16, 16, 3), "image")})
    agrees(policy, batch, tmp_path / "policy.onnx")


@pytest.mark.slow
def test_a_crop_around_a_point(tmp_path):
    codec = Normalizer(target="identity", unscaled=("observation.focus",))
    config = PolicyConfig(BeT(9, square=1.0), PerToken(FeedForward(())), FocusCrop(cells=3), codec)
    policy, batch = random_batch(config, inputs={"observation.images.top": Feature("uint8", (16, 16, 3), "image"),
                                                 "observation.focus": Feature("float32", (2,))})
    agrees(policy, batch, tmp_path / "policy.onnx")


@pytest.mark.slow
def test_a_flow_from_the_last_action(tmp_path):
    encoder, last = TokenEncoder(16, named=("observation.last",)), {"observation.last": Feature("float32", (2,))}
    config = PolicyConfig(FROM_THE_LAST_ACTION, MLP(16), encoder, window=Window(2, 8))
    policy, batch = random_batch(config, inputs={**NUMBERS, **last})
    loaded = agrees(policy, batch, tmp_path / "policy.onnx")
    moved, noise = {**batch.obs, "observation.last": batch.obs["observation.last"] + 1}, noises(policy, len(batch))
    assert not torch.equal(loaded.plan(moved, noise), loaded.plan(batch.obs, noise))


@pytest.mark.parametrize("trunk", few(TRUNKS))
def test_every_trunk(trunk, tmp_path):
    policy, batch = random_batch(PolicyConfig(Diffusion(n_steps=4), trunk=TRUNKS[trunk], window=Window(2, 6)))
    agrees(policy, batch, tmp_path / "policy.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("head", [CVAE(4, temperature=1.0), Regression("l1")])
def test_the_network_of_act(head, tmp_path):
    trunk = ACTTransformer(16, 2, 24, encoder_depth=1, posterior_depth=1, state_size=3)
    policy, batch = random_batch(PolicyConfig(head, trunk, ACTEncoder(16), window=Window(1, 6)))
    agrees(policy, batch, tmp_path / "policy.onnx")


@pytest.mark.parametrize("trunk", [Transformer(16, 1, 2, "block_causal"),
                                   pytest.param(LSTM(16, 1), marks=pytest.mark.slow)])
def test_a_history_with_marked_padding(trunk, tmp_path):
    window = Window(3, 3, action_offset=-2, obs_pad_mask=True)
    policy, _ = random_batch(PolicyConfig(Regression(), trunk, TokenEncoder(16), window=window))
    batch = policy.windows(random_dataset({**policy.features})).gather(np.arange(5))
    assert not batch.obs["observation.state?"].all()
    agrees(policy, batch, tmp_path / "policy.onnx")


@pytest.mark.slow
def test_statistics_per_group(tmp_path):
    mode = Feature("int64", (), "discrete", num_classes=(9,))
    config = PolicyConfig(Regression(), MLP(16), codec=Normalizer(group_by="observation.mode"))
    policy, batch = random_batch(config, inputs={**NUMBERS, "observation.mode": mode})
    loaded = agrees(policy, batch, tmp_path / "policy.onnx")
    unknown = {**batch.obs, "observation.mode": torch.full_like(batch.obs["observation.mode"], 99)}
    assert loaded.plan(unknown, noises(policy, len(batch))).isnan().all(), "a file cannot raise errors"


SLOW = INPUTS.keys() - {"image", "flat"}


@pytest.mark.parametrize("inputs", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in INPUTS])
def test_every_kind_of_observation(inputs, tmp_path):
    encoder, features = INPUTS[inputs]
    codec = Normalizer(unscaled=(f"observation.{inputs}",) if inputs in ("points", "objects") else ())
    config = PolicyConfig(Regression(), MLP(16), encoder, codec, Window(2, 4))
    policy, batch = random_batch(config, inputs=features)
    agrees(policy, batch, tmp_path / "policy.onnx")


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A fitted policy of the toy and its file."""
    env = make("fork", 8)
    data = rollout(env.expert(), env, episodes=8, seed=1)
    torch.manual_seed(0)
    policy = (
        Policy(PolicyConfig(Flow(n_steps=2), trunk=MLP(32), window=Window(2, 8)), data.features())
        .fit_statistics(data)
        .eval()
    )
    path = tmp_path_factory.mktemp("onnx") / "policy.onnx"
    export(policy, path, RecedingHorizon(3))
    return env, policy, path


def test_the_file_acts_as_the_policy_does(fork):
    env, policy, path = fork
    assert load_onnx_actor(path).executor == RecedingHorizon(3) and load_onnx_actor(path, rows=4).planner.rows == 4
    for executor in (RecedingHorizon(3), TemporalEnsemble(0.01)):
        one = rollout(PolicyActor(policy, executor), env, episodes=8, seed=2)
        other = rollout(PolicyActor(load(path), executor), env, episodes=8, seed=2)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(torch.as_tensor(a.steps["action"]), torch.as_tensor(b.steps["action"]),
                                       rtol=1e-3, atol=1e-3)
    assert evaluate(load_onnx_actor(path, rows=4), env, 8).successes.shape == (8,)


@pytest.mark.slow
def test_no_random_operations_and_one_loop(tmp_path):
    policy, _ = random_batch(
        PolicyConfig(Diffusion(solver=DDPM(), n_steps=50, n_train_steps=50), trunk=MLP(16), window=Window(1, 4))
    )
    export(policy, tmp_path / "policy.onnx")
    graph = onnx.load(tmp_path / "policy.onnx").graph
    kinds = [n.op_type for n in graph.node]
    assert kinds.count("Scan") == 1 and not {k for k in kinds if k.startswith(("Random", "Bernoulli", "Multinomial"))}
    assert [i.name for i in graph.input] == ["noise", *policy.inputs] and [o.name for o in graph.output] == ["action"]


def test_a_file_says_what_it_is(fork):
    _, policy, path = fork
    assert str(REPOSITORY).encode() not in path.read_bytes(), "stack traces are left out"
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    facts = json.loads(properties["understudy"])
    assert facts["noise"] == [8, policy.action_dim] and facts["head"]["n_steps"] == 2
    assert facts["window"]["horizon"] == 8 and facts["executor"]["n_action_steps"] == 3
    assert set(facts["features"]) == set(policy.features)
    loaded = load(path)
    assert loaded.features == policy.features
    with pytest.raises(UserError, match="there is no column"):
        check_features(loaded, {"action": policy.features["action"]}, "elsewhere")


def test_what_the_file_cannot_do(fork, tmp_path):
    env, policy, path = fork
    with pytest.raises(Unsupported, match="plans without guides"):
        rollout(PolicyActor(load(path), RealTimeChunking(4, 2)), env, episodes=2, seed=0)
    for executor in (AdaptiveChunking(), AdaptiveHorizon(4), FilteredExecutor(RecedingHorizon(), JerkLimit())):
        with pytest.raises(Unsupported, match="has no codec"):
            rollout(PolicyActor(load(path), executor), env, episodes=2, seed=0)
    for executor in (RealTimeChunking(4, 2), StreamingExecutor()):
        with pytest.raises(Unsupported, match=f"{type(executor).__name__} cannot run an exported policy"):
            export(policy, tmp_path / "policy.onnx", executor)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_streaming_flow_is_exported_as_whole_plans_only(tmp_path):
    """Its own executor needs single integration steps. Another executor runs its plans from the code 0."""
    config = PolicyConfig(StreamingFlow(), trunk=MLP(16), window=Window(1, 4, action_offset=-1))
    policy, _ = random_batch(config)
    with pytest.raises(Unsupported, match="StreamingFlowExecutor cannot run an exported policy"):
        export(policy, tmp_path / "policy.onnx", StreamingFlowExecutor(2))
    export(policy, tmp_path / "policy.onnx")
    assert load(tmp_path / "policy.onnx").executor == RecedingHorizon(1, skip=1)


# -- onnx_runner.py, the file to copy to a robot --------------------------------------------------------------------


def test_files_that_are_none(fork, tmp_path):
    _, _, path = fork
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(UserError, match="this is a folder"):
        load(tmp_path)
    for name, content in (("text.onnx", b"no model"), ("half.onnx", path.read_bytes()[:3000]), ("empty.onnx", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: this is not a complete ONNX file"):
            load(tmp_path / name)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "another.onnx")
    with pytest.raises(UserError, match="did not write this ONNX file"):
        load(tmp_path / "another.onnx")
    model.metadata_props.add(key="understudy", value='{"format": 99}')
    onnx.save(model, tmp_path / "later.onnx")
    with pytest.raises(UserError, match="the file has format 99, but .* reads format 2"):
        load(tmp_path / "later.onnx")


def test_no_code_of_others_is_loaded(fork, tmp_path):
    _, _, path = fork
    model = onnx.load(path)
    facts = json.loads(model.metadata_props[0].value)
    facts["executor"]["$"] = "subprocess:Popen"
    model.metadata_props[0].value = json.dumps(facts)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="subprocess"):
        load(tmp_path / "other.onnx")


def test_a_missing_extra_is_named(fork, monkeypatch, tmp_path):
    _, policy, path = fork
    for package in ("onnxruntime", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=rf"the package {package} is not installed\n.*understudy\[onnx\]"):
                load(path) if package == "onnxruntime" else export(policy, tmp_path / "policy.onnx")


@dataclass(frozen=True)
class Forgetful(Regression):
    """Says otherwise while it is traced."""

    def sample(self, net, context, noise):
        return net(noise, noise, context) + (0.01 if torch.compiler.is_compiling() else 0.0)


@pytest.mark.parametrize("head, said", [
    (SolvesEquations(), "SolvesEquations with these parts cannot be exported to ONNX: No ONNX function found for"),
    (Forgetful(), "does not plan as the policy does: the difference is 0.0")])
def test_what_cannot_be_written_leaves_no_file(head, said, tmp_path):
    policy, _ = random_batch(PolicyConfig(head, trunk=MLP(16), window=Window(1, 4)))
    with pytest.raises(UserError, match=said):
        export(policy, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="must end in .onnx"):
        export(policy, tmp_path / "policy.bin")


def test_the_command_line(run, train_bc):
    train_bc("runs/bc", episodes=6, steps=20)
    status, out, _ = run("export", "runs/bc", "--out", "bc.onnx", "--json")
    report = json.loads(out)
    assert status == 0 and report["error"] < 1e-4 and report["bytes"] == Path("bc.onnx").stat().st_size
    evaluation, plain = (json.loads(run("eval", it, "fork", "--episodes", 12, "--json")[1])
                         for it in ("bc.onnx", "runs/bc"))
    assert evaluation["episodes"] == 12
    assert abs(evaluation["successes"] - plain["successes"]) <= 1  # rounding may tip a near miss
    status, out, _ = run("eval", "runs/bc", "fork", "--episodes", 4, "--against", "bc.onnx", "--html", "r.html")
    assert status == 0 and "same starts" in out and Path("r.html").exists()
    assert "understudy eval bc.onnx" in run("eval", "bc.onnx", "fork", "--episodes", 4)[1]
    for args, message in ((("eval", "bc.onnx", "demos"), "these are recorded episodes"),
                          (("eval", "bc.onnx", "fork", "--device", "cuda"), "ONNX files run on the CPU, not on cuda"),
                          (("eval", "none.onnx", "fork"), "there is no such file"),
                          (("eval", "bc.onnx", "fork", "--task", "go left"), "trained without words"),
                          (("export", "runs/bc", "--out", "bc.bin"), "must end in .onnx"),
                          (("export", "demos", "--out", "x.onnx"), "not a trained run")):
        status, _, error = run(*args)
        assert status == 2 and message in error, (args, error)
