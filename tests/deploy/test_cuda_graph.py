"""Replayed plans are the policy's own, on every device that is here. The CPU goes the same way but for the recording:
there the keys, the copies into held memory and out of it are what can be wrong."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from understudy.checkpoint import Scorer
from understudy.core import Unsupported
from understudy.data.window import Window
from understudy.deploy.cuda_graph import CapturedPlanner
from understudy.execute.planners import BestOfN, FixedBatch
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Inpaint, PolicyConfig
from understudy.testing import random_batch

RECIPES = {
    "regression": PolicyConfig(Regression(), MLP(16), window=Window(2, 4)),
    "diffusion": PolicyConfig(Diffusion(n_steps=4), UNet((8, 16), groups=4), window=Window(2, 8)),
    "flow": PolicyConfig(Flow(n_steps=3), Transformer(16, 1, 2, "joint"), window=Window(2, 4)),
}
DEVICES = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
on_each = pytest.mark.parametrize("device", DEVICES)


def made(name, device):
    policy, batch = random_batch(RECIPES[name])
    return policy.to(device), batch.to(device)


def given(policy, batch, rows, seed):
    keys, count = torch.arange(rows) + 100 * seed, torch.full((rows,), seed)
    device = batch.action.device
    return {k: v[seed: seed + rows] for k, v in batch.obs.items()}, policy.noise(keys, count).to(device)


def same(a, b):
    """To the last bit on the CPU; on a GPU another algorithm may have been chosen."""
    torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if a.device.type == "cpu" else {}))


@on_each
@pytest.mark.parametrize("name", RECIPES)
def test_replayed_plans_are_the_policys(name, device):
    policy, batch = made(name, device)
    captured = CapturedPlanner(policy)
    asked = [given(policy, batch, rows, seed) for seed in (0, 1) for rows in (2, 3, 2)]
    with torch.no_grad():
        expected = [policy.plan(*a) for a in asked]
    replayed = [captured.plan(*a) for a in asked]
    assert len(captured._graphs) == 2, "one for each number of rows"
    for a, b in zip(replayed, expected, strict=True):  # the first is still what it was after five more
        same(a, b)


@on_each
def test_weights_may_change_in_place(device):
    policy, batch = made("regression", device)
    captured, asked = CapturedPlanner(policy), given(policy, batch, 2, 0)
    before = captured.plan(*asked)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.5)
        same(captured.plan(*asked), policy.plan(*asked))
    assert not torch.equal(captured.plan(*asked), before)


class Score(Scorer):
    inputs, features = (), MappingProxyType({})

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, obs, plan):
        return self.function(obs, plan)

    def save(self, folder):
        raise NotImplementedError

    load = save


@on_each
def test_it_is_a_planner_among_others(device):
    """In groups of one size, and around a planner whose noise is a tree."""
    policy, batch = made("flow", device)
    obs, noise = given(policy, batch, 5, 0)
    with torch.no_grad():
        same(FixedBatch(CapturedPlanner(policy), 4).plan(obs, noise), FixedBatch(policy, 4).plan(obs, noise))
        best = BestOfN(policy, Score(lambda obs, plan: plan.flatten(1).sum(1)), 3)
        noise = best.noise(torch.arange(5), torch.zeros(5, dtype=torch.int64)).to(device)
        same(CapturedPlanner(best).plan(obs, noise), best.plan(obs, noise))
    assert CapturedPlanner(policy).window is policy.window and CapturedPlanner(policy).inputs == policy.inputs


@on_each
def test_guides_go_past_it(device):
    policy, batch = made("diffusion", device)
    obs, noise = given(policy, batch, 2, 0)
    guides = (Inpaint(batch.action[:2], torch.ones_like(batch.action[:2, :, 0])),)
    captured = CapturedPlanner(policy)
    same(captured.plan(obs, noise, guides), policy.plan(obs, noise, guides))
    assert not captured._graphs


@pytest.mark.gpu
def test_a_plan_that_waits_for_the_gpu_is_refused():
    policy, batch = made("flow", "cuda")

    def asks(obs, plan):
        return plan.flatten(1).sum(1) * float(plan.max())
    with pytest.raises(Unsupported, match="cannot be recorded as a CUDA graph"):
        CapturedPlanner(BestOfN(policy, Score(asks), 2)).plan(*given(BestOfN(policy, Score(asks), 2), batch, 2, 0))
