"""Replayed plans are the policy's own. Here on the CPU, which goes the same way but for the recording."""

from __future__ import annotations

import pytest
import torch

from understudy.data.window import Window
from understudy.deploy.captured import Captured
from understudy.execute.planners import Best, Fixed
from understudy.heads.diffusion import Diffusion
from understudy.heads.flow import Flow
from understudy.heads.regression import Regression
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Inpaint, Recipe
from understudy.testing import example

RECIPES = {
    "regression": Recipe(Regression(), MLP(16), window=Window(2, 4)),
    "diffusion": Recipe(Diffusion(steps=4), UNet((8, 16), groups=4), window=Window(2, 8)),
    "flow": Recipe(Flow(steps=3), Transformer(16, 1, 2, "joint"), window=Window(2, 4)),
}


def given(policy, batch, rows, seed):
    keys, count = torch.arange(rows) + 100 * seed, torch.full((rows,), seed)
    return {k: v[seed: seed + rows] for k, v in batch.obs.items()}, policy.noise(keys, count)


@pytest.mark.parametrize("name", RECIPES)
def test_replayed_plans_are_the_policys(name):
    policy, batch = example(RECIPES[name])
    captured = Captured(policy)
    asked = [given(policy, batch, rows, seed) for seed in (0, 1) for rows in (2, 3, 2)]
    with torch.no_grad():
        wanted = [policy.plan(*a) for a in asked]
    found = [captured.plan(*a) for a in asked]
    assert len(captured._known) == 2, "one for each number of rows"
    for a, b in zip(found, wanted, strict=True):  # the first is still what it was after five more
        assert torch.equal(a, b)


def test_weights_may_change_in_place():
    policy, batch = example(RECIPES["regression"])
    captured, asked = Captured(policy), given(policy, batch, 2, 0)
    before = captured.plan(*asked)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.5)
        assert torch.equal(captured.plan(*asked), policy.plan(*asked))
    assert not torch.equal(captured.plan(*asked), before)


def test_it_is_a_planner_among_others():
    """In groups of one size, and around a planner whose noise is a tree."""
    policy, batch = example(RECIPES["flow"])
    obs, noise = given(policy, batch, 5, 0)
    with torch.no_grad():
        assert torch.equal(Fixed(Captured(policy), 4).plan(obs, noise), Fixed(policy, 4).plan(obs, noise))
        best = Best(policy, lambda obs, plan: plan.flatten(1).sum(1), 3)
        noise = best.noise(torch.arange(5), torch.zeros(5, dtype=torch.int64))
        assert torch.equal(Captured(best).plan(obs, noise), best.plan(obs, noise))
    assert Captured(policy).window is policy.window and Captured(policy).inputs == policy.inputs


def test_guides_go_past_it():
    policy, batch = example(RECIPES["diffusion"])
    obs, noise = given(policy, batch, 2, 0)
    guides = (Inpaint(batch.action[:2], torch.ones(batch.action.shape[:2])[:2]),)
    captured = Captured(policy)
    assert torch.equal(captured.plan(obs, noise, guides), policy.plan(obs, noise, guides)) and not captured._known


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_they_are_the_policys_to_rounding():
    for recipe in RECIPES.values():
        policy, batch = example(recipe)
        policy = policy.cuda()
        captured = Captured(policy)
        for seed in (0, 1, 2):
            obs, noise = given(policy, batch, 3, seed)
            obs, noise = {k: v.cuda() for k, v in obs.items()}, noise.cuda()
            with torch.no_grad():
                torch.testing.assert_close(captured.plan(obs, noise), policy.plan(obs, noise))
