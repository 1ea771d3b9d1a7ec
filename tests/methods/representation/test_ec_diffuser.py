"""ec-diffuser: objects are a set, and what becomes of them is predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import sines

from understudy.core import Batch, Feature, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.methods.representation.ec_diffuser import NextObjects, ObjectEncoder, ec_diffuser
from understudy.nets.base import capture_intermediates
from understudy.nets.mlp import MLP
from understudy.policy import Policy

OBJECTS = "observation.objects"
FEATURES = {OBJECTS: Feature("float32", (5, 3)), "action": Feature("float32", (2,))}


def policy(**changes) -> Policy:
    torch.manual_seed(0)
    config = replace(ec_diffuser(width=16).policy, **{"codec": Normalizer("identity", "identity"), **changes})
    return Policy(config, FEATURES).eval()


def objects(*rows: int) -> dict[str, torch.Tensor]:
    """Two windows in which the slots have these objects. Object 0 does not exist."""
    every = torch.cat([torch.zeros(2, 1, 3), sines((2, 5, 3), 0)], 1)
    return {OBJECTS: every[:, None, list(rows)]}


def test_a_plan_depends_neither_on_the_order_of_objects_nor_on_empty_slots():
    built, noise = policy(), sines((2, 1, 2), 7)
    plan = built.plan(objects(1, 2, 3, 0, 0), noise)
    for slots in ((3, 1, 2, 0, 0), (0, 2, 0, 3, 1)):
        torch.testing.assert_close(built.plan(objects(*slots), noise), plan)
    assert (built.plan(objects(1, 2, 4, 0, 0), noise) - plan).abs().max() > 1e-4
    assert (built.plan(objects(1, 2, 3, 4, 0), noise) - plan).abs().max() > 1e-4


def test_an_ordered_context_depends_on_the_order():
    built = policy(trunk=replace(ec_diffuser(width=16).policy.trunk, ordered_context=True))
    noise = sines((2, 1, 2), 7)
    assert (built.plan(objects(1, 2, 3, 0, 0), noise) - built.plan(objects(3, 1, 2, 0, 0), noise)).abs().max() > 1e-4


def test_the_loss_of_next_objects_is_the_mean_error_over_objects_that_exist():
    built = policy()
    loss = NextObjects(weight=2.0).build(built)
    with torch.no_grad():
        loss.layer.weight.zero_()
        loss.layer.bias.copy_(torch.tensor([0.5, -1.0, 0.0]))
    now, later = objects(1, 2, 0, 0, 0), objects(3, 4, 5, 1, 2)
    batch = Batch(now, sines((2, 1, 2), 3), torch.ones(2, 1, dtype=torch.bool), next=later)
    rng = torch.Generator().manual_seed(0)
    with capture_intermediates(("memory",)) as captured:
        built.loss(batch, rng)
    assert captured["memory"].shape == (2, 5, 16)
    error = np.abs(np.array([0.5, -1.0, 0.0]) - later[OBJECTS][:, 0, :2].numpy()).mean((1, 2))
    assert loss(built, batch, rng, captured).tolist() == pytest.approx((2 * error).tolist(), rel=1e-5)
    with capture_intermediates(("memory",)) as captured:
        built.loss(batch, rng, n_noise_samples=3)
    assert captured["memory"].shape == (6, 5, 16)
    assert loss(built, batch, rng, captured).tolist() == pytest.approx((2 * error).tolist(), rel=1e-5)


def test_nothing_is_predicted_after_a_chunk_that_the_episode_cuts_off():
    built = policy(window=Window(1, 3))
    batch = Batch(objects(1, 2, 0, 0, 0), sines((2, 3, 2), 3), torch.tensor([[True, True, False], [True] * 3]),
                  next=objects(3, 4, 5, 1, 2))
    with capture_intermediates(("memory",)) as captured:
        built.loss(batch, torch.Generator().manual_seed(0))
    cut_off, whole = NextObjects().build(built)(built, batch, torch.Generator(), captured)
    assert cut_off == 0 and whole > 0


def test_what_it_cannot_read_is_refused():
    with pytest.raises(UserError, match=r"shape \(3,\), not \(objects, features\)"):
        ObjectEncoder().build({OBJECTS: Feature("float32", (3,))}, 1)
    with pytest.raises(UserError, match=r"reads 'observation.state' too(.|\n)*--policy.inputs observation.objects"):
        ObjectEncoder().build({OBJECTS: FEATURES[OBJECTS], "observation.state": Feature("float32", (2,))}, 1)
    with pytest.raises(UserError, match=r"order of the objects would matter(.|\n)*Normalizer\(unscaled="):
        policy(codec=Normalizer())
    with pytest.raises(Unsupported, match="do not read the actions"):
        NextObjects().build(policy(trunk=MLP(8)))
