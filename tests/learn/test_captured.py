"""Captured updates compute what eager ones do, and what cannot be captured is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from folders import TESTS
from torch._inductor import config as inductor
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.core import Diverged, Feature, Unsupported, UserError
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.captured import capture
from understudy.learn.critic import CriticConfig
from understudy.learn.method import training_data
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.methods import find_method, method_files
from understudy.methods.offline_rl.iql import IQL
from understudy.nets.unet import UNet
from understudy.policy import Policy
from understudy.testing.methods import example_columns, example_data, with_trained_stages

SMALL = {"critic": CriticConfig((8,)), "batch_size": 8}


def build(name: str, **options):
    """Builds learners, and the sampler of their batches."""
    columns = example_columns(name)
    method = find_method(name, columns, **options)
    data = example_data({**{k: Feature("float32", ()) for k in ("next.reward", *method.learner.extra)}, **columns})
    method = with_trained_stages(method, data)
    data = training_data(data, method)

    def learner() -> Engine:
        torch.manual_seed(0)
        policy = Policy(method.policy, data.features()).fit_statistics(data)
        return method.learner.build(policy, 0, 100, data)
    first, second = learner(), learner()
    return first, second, first.batch_sampler(first.annotate(data, None))


def assert_equal_states(first: Engine, second: Engine, tolerance: float) -> None:
    (tensors, metadata), (others, other_metadata) = first.state(), second.state()
    assert list(tensors) == list(others) and metadata == other_metadata
    for name in tensors:
        torch.testing.assert_close(tensors[name], others[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["iql", "dqn", "hiql", *(pytest.param(n, marks=pytest.mark.slow) for n in (
    "crr", "fql", "td3", "sac", "discrete-sac", "crl", "fb", "td-mpc", "iq-learn"))])
def test_graphs_compute_what_eager_updates_do(name):
    """State and metrics after 20 updates. Some of fb are products of sums whose order differs."""
    eager, captured, sampler = build(name)
    capture(captured, compiled=False)
    for step in range(20):
        batch = sampler.batch(32, step)
        metrics, others = eager.update(batch), captured.update(batch)
    assert metrics == pytest.approx(others, rel=1e-4, abs=1e-4)
    assert_equal_states(eager, captured, 2e-4)


CAPTURED = """
    bc bc-bins bc-gmm bc-rnn-gmm bottleneck-bc ccil fourier-transporter gcbc hbc ibc interactive-language iris
    keyframe-bc style-bc adaflow beso bid-flow-policy consistency-training crossway-diffusion diffusion-bc
    diffusion-policy dp3 dp4 flow-policy interpolant-policy mean-flow-policy mip normalizing-flow-policy
    sgac shortcut-policy streaming-diffusion-policy streaming-flow-policy training-time-rtc
    manipulate-by-seeing dagger iterative-inversion pad uwm vpt idql procedure-cloning thought-cloning
    bc-inverse-dynamics class-contrastive dynamo icvf mcr behavior-retrieval mcnn skill-bc skill-retrieval
    decision-diffuser udrl groot-2 omnijarvis opal play-lmp act act-jepa bet cec contextvla dit-policy dualmind
    ec-diffuser maskdp mdt midas one-shot pasta ptp vq-bet"""
REFUSED = {  # methods that clone, and why their updates cannot be captured
    **dict.fromkeys(("arp", "bc-transformer-gmm", "decision-transformer"), "has dropout"),
    **dict.fromkeys(("attention-tuner", "fast"), "reads a value that it computes"),
    **dict.fromkeys(("knn", "retrieve-align-replay", "search-bc", "vinn"), "no weights to train"),
    "irm-bc": "shapes that depend on its values",
    **dict.fromkeys(("chauffeurnet", "mode"), "depends on more than its inputs")}
ROUNDED = ("fourier-transporter", "ibc")  # in numbers of 64 bits they agree to 1e-10 after 20 updates
FAST = ("bc", "bc-gmm", "flow-policy")


def test_each_method_that_clones_is_captured_or_refused_with_a_reason():
    names = [name for name in method_files()
             if isinstance(find_method(name, example_columns(name)).learner, BehaviorCloning)]
    assert sorted(names) == sorted([*CAPTURED.split(), *REFUSED])


def waits_for_the_host(node: torch.fx.Node) -> bool:
    """Whether an operation reads a value, copies to another device, or has a shape that depends on values."""
    if node.target is torch.ops.aten.index.Tensor:
        return any(index is not None and index.meta["val"].dtype == torch.bool for index in node.args[1])
    tags = set(getattr(node.target, "tags", ()))
    return bool(tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}) \
        or node.kwargs.get("device") not in (None, torch.device("cpu"), torch.device("meta"))  # meta has no values


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
                                  for name in CAPTURED.split()])
def test_graphs_of_cloning_compute_what_eager_updates_do_and_never_wait_for_a_value(name):
    eager, captured, sampler = build(name)
    capture(captured, compiled=False)
    is_large = isinstance(captured.policy.config.trunk, UNet)  # whose updates take seconds
    for step in range(3 if is_large or name in ROUNDED else 20):
        batch = sampler.batch(32, step)
        assert set(eager.update(batch)) == set(captured.update(batch))
    assert_equal_states(eager, captured, 2e-4)
    graphs = captured.captured.graphs.values()
    assert graphs and not [node for graph in graphs for node in graph.run.graph.nodes if waits_for_the_host(node)]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_cloning_that_cannot_be_captured_is_refused(name):
    learner, _, sampler = build(name)
    with pytest.raises(Unsupported, match=REFUSED[name]):
        capture(learner, compiled=False)
        learner.update(sampler.batch(8, 0))


LEARNERS = json.loads((TESTS / "fixtures" / "states.json").read_text())  # of methods that do not clone
REASONS = ("changes a buffer", "rewards are computed", "reads a value", "depends on more than", "dropout",
           "shapes that depend", "no weights to train", "has no `Engine`")


def test_what_waits_for_the_host_is_known():
    def waiting(x):
        return x[x > 0], x.nonzero(), x.sum().item()
    graph = make_fx(waiting, tracing_mode="symbolic", _error_on_data_dependent_ops=False)(torch.randn(4))
    assert [node.target for node in graph.graph.nodes if waits_for_the_host(node)] == [
        torch.ops.aten.index.Tensor, torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default]


@pytest.mark.parametrize("name", LEARNERS)
def test_no_graph_waits_for_the_host(name):
    """Each kind of update of every learner, such as those with and without a step of the policy."""
    learner, _, sampler = build(name)
    try:
        capture(learner, compiled=False)
        first_updates = {tuple(learner.due_steps(n)): n for n in reversed(range(learner.steps))}.values()
        for number in sorted(first_updates):
            learner.n_updates = number
            learner.update(sampler.batch(8, number))
    except Unsupported as error:
        assert any(reason in error.problem for reason in REASONS)
        assert name not in ("bc", "diffusion-policy", "iql", "td3-bc", "sac", "cql", "hiql", "dqn")
    else:
        waiting = [node for graph in learner.captured.graphs.values() for node in graph.run.graph.nodes
                   if waits_for_the_host(node)]
        assert len(learner.captured.graphs) == len(first_updates) and not waiting


@pytest.mark.slow
def test_a_compiled_graph_computes_what_eager_updates_do():
    eager, captured, sampler = build("iql", **SMALL)
    capture(captured)
    for step in range(20):
        eager.update(sampler.batch(8, step))
        captured.update(sampler.batch(8, step))
    assert_equal_states(eager, captured, 1e-5)


def test_updates_can_be_captured_after_others_that_were_not():
    eager, captured, sampler = build("iql", **SMALL)
    for step in range(6):
        if step == 3:
            capture(captured, compiled=False)
        eager.update(sampler.batch(8, step))
        captured.update(sampler.batch(8, step))
    assert_equal_states(eager, captured, 2e-4)


def test_a_restored_learner_goes_on_bit_by_bit():
    whole, again, sampler = build("iql", **SMALL)
    for learner in (whole, again):
        capture(learner, compiled=False)
    for step in range(4):
        whole.update(sampler.batch(8, step))
    again.restore(*whole.state())
    for step in range(4, 8):
        assert whole.update(sampler.batch(8, step)) == again.update(sampler.batch(8, step))
    assert_equal_states(whole, again, 0)


def test_what_is_not_finite_changes_nothing_and_is_named():
    learner, _, sampler = build("iql", **SMALL)
    capture(learner, compiled=False)
    learner.update(sampler.batch(8, 0))
    before = {name: tensor.clone() for name, tensor in learner.state()[0].items()}
    batch = sampler.batch(8, 1)
    reward = batch.extra["next.reward"].clone()
    reward[3] = np.nan
    with pytest.raises(Diverged, match="loss of 'critic' is nan"):
        learner.update(batch.replace(extra={**batch.extra, "next.reward": reward}))
    after = learner.state()[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("name", "reason"), [
    ("robust-bc", "reads a value that it computes"), ("irm-bc", "shapes that depend on its values"),
    ("bco", "changes a buffer"), ("decision-transformer", "has dropout"), ("knn", "no weights to train"),
    ("chauffeurnet", "depends on more than its inputs")])
def test_what_cannot_be_captured_is_refused_and_changes_nothing(name, reason):
    eager, captured, sampler = build(name)
    with pytest.raises(Unsupported, match=reason):
        capture(captured, compiled=False)
        captured.update(sampler.batch(8, 0))
    captured.captured = None
    assert eager.update(sampler.batch(8, 0)) == captured.update(sampler.batch(8, 0))
    assert_equal_states(eager, captured, 0)


def test_accumulated_batches_are_refused():
    learner, _, _ = build("iql", **SMALL, optimizer=OptimizerConfig(accumulation_steps=2))
    with pytest.raises(Unsupported, match="accumulated"):
        capture(learner)


def test_products_of_16_bits_are_captured():
    """Rounding to 16 bits is the same: 8 bits of each product would otherwise differ from update to update."""
    eager, captured, sampler = build("iql", **SMALL, optimizer=OptimizerConfig(precision="bf16"))
    full = build("iql", **SMALL)[0]
    capture(captured, compiled=False)
    for step in range(3):
        for learner in (eager, captured, full):
            learner.update(sampler.batch(8, step))
    assert_equal_states(eager, captured, 1e-6)
    with pytest.raises(AssertionError):
        assert_equal_states(eager, full, 1e-6)


class MaskedIQL(IQL):
    """Its loss has a shape that depends on values."""

    def advantage(self, nets, batch):
        advantage = super().advantage(nets, batch)
        return advantage + advantage[advantage > 0].sum()


def test_a_loss_whose_shapes_depend_on_values_is_refused():
    learner, _, sampler = build("iql", **SMALL)
    vars(learner)["config"] = MaskedIQL(**SMALL)
    capture(learner, compiled=False)
    with pytest.raises(Unsupported, match="shape"):
        learner.update(sampler.batch(8, 0))


class NumberedIQL(IQL):
    """Its loss reads the number of the call, which a graph has once and for all."""

    n_calls = 0

    def advantage(self, nets, batch):
        type(self).n_calls += 1
        return super().advantage(nets, batch) + self.n_calls


def test_a_loss_that_depends_on_more_than_its_inputs_is_refused():
    learner, _, sampler = build("iql", **SMALL)
    vars(learner)["config"] = NumberedIQL(**SMALL)
    capture(learner, compiled=False)
    with pytest.raises(Unsupported, match="depends on more than its inputs"):
        learner.update(sampler.batch(8, 0))


def test_without_a_compiler_it_says_what_to_install():
    learner, _, sampler = build("iql", **SMALL)
    capture(learner)
    without = inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with without, pytest.raises(UserError, match=r"no C\+\+ compiler(.|\n)*install one"):
        learner.update(sampler.batch(8, 0))


def test_training_says_that_a_run_goes_on_with_other_arithmetic(tmp_path):
    columns = example_columns("iql")
    data = example_data({"next.reward": Feature("float32", ()), "next.terminated": Feature("bool", ()), **columns})
    method = find_method("iql", columns, steps=2, **SMALL)
    train(method, data, tmp_path, steps=2, progress=False, device="cpu")
    longer = find_method("iql", columns, steps=4, **SMALL)
    file = tmp_path / "checkpoints" / "000002" / "provenance.json"
    file.write_text(file.read_text().replace('"compiled": false', '"compiled": true'))
    with pytest.warns(UserWarning, match="another setting of --compile"):
        train(longer, data, tmp_path, progress=False, device="cpu")


def test_a_learner_with_an_update_of_its_own_is_not_compiled(tmp_path):
    data = example_data(example_columns("g-blend"))
    with pytest.raises(Unsupported, match="is not an `Algorithm`"):
        train(find_method("g-blend"), data, tmp_path / "run", steps=2, progress=False, device="cpu", compile=True)
