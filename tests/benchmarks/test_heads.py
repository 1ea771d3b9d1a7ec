"""benchmarks/heads.py: which heads it compares, on which footing, and the tables of cells that are made up."""

from __future__ import annotations

import pkgutil
import sys
from dataclasses import replace

import pytest
from folders import BENCHMARKS

import understudy.heads
from understudy.files import write_json
from understudy.heads.base import Head
from understudy.heads.denoising.flow import Flow
from understudy.heads.denoising.joint_diffusion import JointDiffusion
from understudy.heads.energy.coarse_to_fine import CoarseToFineQ
from understudy.heads.energy.motion_classifier import MotionClassifier
from understudy.heads.energy.transport import Transport
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.correction import Correction
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.heads.memory.neighbors import Neighbors
from understudy.nets.mlp import MLP
from understudy.policy import Policy
from understudy.testing import random_batch


@pytest.fixture
def heads(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import heads

    monkeypatch.setattr(heads.measure, "RESULTS", tmp_path)
    monkeypatch.setattr(heads, "PICTURES", tmp_path)
    yield heads
    sys.modules.pop("heads")


def all_heads() -> set[type]:
    for module in pkgutil.walk_packages(understudy.heads.__path__, "understudy.heads."):
        __import__(module.name)

    def below(kind):
        return {kind, *(c for part in kind.__subclasses__() for c in below(part))}
    return {c for c in below(Head) if not c.__abstractmethods__ and c.__module__.startswith("understudy.heads.")}


def test_every_head_of_continuous_actions_is_compared_on_one_footing(heads):
    variants = heads.variants()
    assert {type(v.head) for v in variants.values()} == all_heads() - {
        Categorical, CoarseToFineQ, Correction, JointDiffusion, MotionClassifier, SquashedGaussian,
        Transport}  # classes, pairs, rewards, goals, pictures
    for name, v in variants.items():
        policy, learner = v.method.policy, v.method.learner
        assert (policy.trunk == MLP(256, 3)) == (name != "fast"), name
        assert policy.window.n_obs_steps == 2 and policy.window.horizon == (9 if name == "streaming-flow" else 8), name
        assert v.method.executor.n_action_steps == 4, name
        steps = 1 if isinstance(v.head, Neighbors) else heads.FEWER.get(v.weights or name, heads.FULL.updates)
        assert (learner.steps, learner.batch_size) == (steps, 64 if "energy" in name else heads.BATCH), name
        if v.weights is not None:  # only sampling differs
            assert v.method == variants[v.weights].method and type(v.head) is type(variants[v.weights].head)


def test_a_task_may_have_more_updates_and_a_head_fewer_on_a_task(heads):
    usual, longer = heads.variants(), heads.variants(heads.FULL, "block-pushing")
    assert all(v.method.learner.steps == (1 if name == "neighbors" else 5 * usual[name].method.learner.steps)
               for name, v in longer.items())
    assert heads.variants(heads.FULL, "cube") == usual
    differ = {name: v.method.learner.steps for name, v in heads.variants(heads.FULL, "pick-place").items()
              if v != usual[name]}
    assert differ == {"fast": 300, "energy-autoregressive": 1100} and usual["fast"].method.learner.steps == 550


def test_weights_are_shared_by_heads_that_differ_in_sampling_alone(heads):
    chosen = heads.variants()["flow-1"]
    policy, _ = random_batch(chosen.method.policy)
    acting, other = heads.acting(chosen, heads.FitResult(chosen.method, {"policy": policy}))
    assert other.config.head == acting.policy.head == Flow(1) and policy.config.head == Flow()
    assert isinstance(other, Policy) and not other.training
    assert all((a == b).all() for a, b in zip(policy.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_aim_is_decided_by_both_intervals(heads):
    def line(low, high):
        return {"ratio": {"estimate": (low + high) / 2, "low": low, "high": high}}
    small_loss, large_loss, wide = (-0.04, 0.0, 0.03), (-0.4, -0.3, -0.06), (-0.2, 0.0, 0.2)
    assert heads.judged(line(21, 25), {"a": small_loss, "b": small_loss}) == "**yes**"
    assert heads.judged(line(15, 19), {"a": small_loss}) == "no: too slow"
    assert heads.judged(line(21, 25), {"a": small_loss, "b": large_loss}) == "no: worse on b"
    assert heads.judged(line(21, 25), {"a": small_loss, "b": wide}) == "cannot tell on b"
    assert heads.judged(line(19, 25), {"a": small_loss}) == "cannot tell: speed"
    assert heads.judged(None, {"a": small_loss}) == "cannot tell: its speed has not been measured"


def test_the_tables_are_those_of_the_seeds_of_which_all_cells_ran(heads, tmp_path):
    """Three seeds. Regression fails at all of 200 starts, and the others at none. A fourth is not done."""
    size = replace(heads.TINY, seeds=(0, 1, 2, 3))
    for seed in size.seeds:
        for head in size.heads[: None if seed < 3 else -1]:
            won = [int(head != "regression")] * 200
            write_json(heads.cell_path(size, "fork", seed, head), {"success": won, "parameters": 1000})
    took = {"ddpm-100": 40.0, "flow-1": 1.0, "consistency-distilled-1": 1.0, "regression": 0.5}
    figure = {"low": 1.0, "high": 1.0, "unit": "ms"}
    write_json(tmp_path / "head_speed.json", {"lines": [
        *({"what": f"{h}: one chunk", "ours": {"value": ms, **figure}, "note": "",
           "ratio": {"estimate": 40 / ms, "low": 39 / ms, "high": 41 / ms}} for h, ms in took.items()),
        {"what": "regression: ONNX file", "ours": None, "ratio": None, "note": "Unsupported: made up"}]})
    assert heads.finished_seeds(size, "fork") == [0, 1, 2] and not heads.finished_seeds(size, "particle")
    text = heads.all_tables(size)
    row = next(line for line in text.splitlines() if line.startswith("| regression | 0 ["))
    assert "3 training seeds of fork (200 starts)." in text and row.split("|")[3].strip() == "b"
    assert "| flow-1 | 1 | 1 | 40× [39, 41] | as flow-10 | 1 |" in text
    assert "- regression: Unsupported: made up" in text and "The tables lack particle and pick-place" in text
    assert any(line.startswith("| regression | 80× [78, 82] | −100 [") and line.endswith("no: worse on fork |")
               for line in text.splitlines())
    assert "no: too slow" not in text and "| flow-1 | 40× [39, 41] | +0 [" in text
    assert any(line.startswith("| regression | 0 [") and line.endswith("] | 80× |")
               for line in heads.page_text(size).splitlines())
    assert (tmp_path / "heads-fork.svg").read_text().startswith("<svg")
    one = heads.all_tables(replace(size, seeds=(0,)))  # the policies of one seed: Clopper and Pearson's interval
    assert "| regression | 0 [0, 2] | b |" in one and "not about other training seeds" in one
    part = heads.all_tables(replace(size, seeds=(3,)))  # of the unfinished seed, the heads that ran
    assert "and 3 of the 4 heads" in part and "| flow-1 | 100 [" in part and "| regression | 0 [" not in part


def test_the_aim_is_judged_again_with_new_seeds(heads):
    """One candidate fails at one of 800 starts more than the reference, the other at a fifth of them."""
    for seed in heads.AGAIN.seeds:
        for head, n_failures in (("ddpm-100", 5), ("reflow-sample-1", 45), ("reflow-sample-2", 5 + (seed == 5))):
            write_json(heads.cell_path(heads.AGAIN, "fork", seed, head),
                       {"success": [0] * n_failures + [1] * (200 - n_failures)})
    assert not set(heads.AGAIN.seeds) & set(heads.FULL.seeds) and set(heads.AGAIN.heads) <= set(heads.variants())
    table = heads.aim_table(heads.AGAIN, {"fork": heads.outcomes(heads.AGAIN, "fork")}, {})
    assert "| reflow-sample-1 |  | −20 [" in table[2] and "no: worse on fork" in table[2]
    assert "| reflow-sample-2 |  | +0 [−1, +0] ✓ | cannot tell: its speed" in table[3] and len(table) == 4


def test_a_cell_that_ran_is_not_run_again_and_a_budget_stops_between_cells(heads, monkeypatch):
    monkeypatch.setattr(heads, "demonstrations", None)  # nothing may be recorded or trained
    size = replace(heads.TINY, seeds=(0,))
    assert not heads.run(size, ["fork"], until=0.0)
    for head in size.heads:
        write_json(heads.cell_path(size, "fork", 0, head), {"success": []})
    assert heads.run(size, ["fork"])
    heads.cell_path(size, "fork", 0, "regression").unlink()
    with pytest.raises(TypeError):
        heads.run(size, ["fork"])


def test_the_number_of_seeds_is_that_of_published_tables(heads):
    """Cohen (1988): paired t-tests of effects of 1, 0.8 and 0.5 standard deviations, 5 %, power 80 %."""
    assert [heads.seeds_needed(1.0, 0.05, effect) for effect in (1.0, 0.8, 0.5)] == [10, 15, 34]
