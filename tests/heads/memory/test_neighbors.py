"""Nearest neighbors against a plain loop."""


import numpy as np
import pytest
import torch
from fixtures.heads import named, tensor

from understudy.core import Context, HeadSpec, UserError
from understudy.data.window import Window
from understudy.heads.memory.neighbors import Neighbors
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import random_batch


def remembering(head, seed=0, n=200, linear=False):
    """A memory of n random situations, and 6 new ones."""
    random = np.random.default_rng(seed)
    keys, new = random.normal(size=(n, 5)), random.normal(size=(6, 5))
    is_real = np.arange(3) < random.integers(1, 4, (n, 1))
    values = np.einsum("nd,dha->nha", keys, random.normal(size=(5, 3, 2))) + 1 if linear else random.normal(
        size=(n, 3, 2))
    net = head.build(MLP(), 2, HeadSpec(3, 1, 5))

    def pairs():
        yield Context(tensor(keys).unsqueeze(1), torch.ones(n, 1).bool()), tensor(values), torch.tensor(is_real)
    head.fit(net, pairs)
    plan = head.sample(net, Context(tensor(new).unsqueeze(1), torch.ones(6, 1).bool()), torch.zeros(6, 3, 0))
    return keys, values, is_real, new, plan.numpy()


@pytest.mark.parametrize("head", [Neighbors(), Neighbors(9, sharpness=3.0), Neighbors(9, weights="equal"),
                                  Neighbors(7, block_size=10), Neighbors(500)], ids=named)
def test_neighbours_against_a_plain_loop(head):
    """VINN's a = sum exp(-d) a / sum exp(-d) over the k nearest, where those know the step."""
    keys, values, is_real, new, plan = remembering(head)
    for query, chunk in zip(new, plan, strict=True):
        d = np.linalg.norm(keys - query, axis=1)
        nearest = np.argsort(d)[:head.n_neighbors]
        w = np.exp(-head.sharpness * d[nearest]) if head.weights == "softmax" else np.ones(len(nearest))
        for h in range(3):
            u = w * is_real[nearest, h]
            expected = (u[:, None] * values[nearest, h]).sum(0) / u.sum() if u.any() else np.zeros(2)
            np.testing.assert_allclose(chunk[h], expected, atol=1e-9)


def test_far_away_neighbours_still_speak():
    """Where exp(-d) of all of them is 0 in floating point."""
    head = Neighbors(3, sharpness=1e6)
    keys, values, is_real, new, plan = remembering(head)
    assert np.isfinite(plan).all()
    nearest = [np.argmin(np.linalg.norm(keys - q, axis=1)) for q in new]
    np.testing.assert_allclose(plan[:, 0], values[nearest, 0])


def test_locally_weighted_regression_is_exact_for_what_is_linear():
    *_, new, plan = remembering(Neighbors(200, local_model="linear", ridge=1e-10), linear=True)
    # Steps known to too few neighbors aside, the plane through all of them is the truth.
    slope = np.random.default_rng(0)
    slope.normal(size=(200, 5)), slope.normal(size=(6, 5)), slope.integers(1, 4, (200, 1))
    truth = np.einsum("nd,dha->nha", new, slope.normal(size=(5, 3, 2))) + 1
    np.testing.assert_allclose(plan, truth, atol=1e-5)
    *_, mean = remembering(Neighbors(200, weights="equal"), linear=True)
    assert np.abs(mean - truth).max() > 0.5  # where the mean is far off


def test_a_heavy_ridge_is_the_mean():
    heavy, mean = (remembering(h)[-1] for h in (Neighbors(9, local_model="linear", ridge=1e9), Neighbors(9)))
    np.testing.assert_allclose(heavy, mean, atol=1e-6)


def test_a_memory_repeats_what_it_saw():
    policy, batch = random_batch(PolicyConfig(Neighbors(1), window=Window(2, 4)))
    torch.testing.assert_close(policy.plan(batch.obs, torch.zeros(5, 4, 0))[batch.mask], batch.action[batch.mask],
                               rtol=1e-4, atol=1e-5)


def test_an_empty_memory_is_said():
    head = Neighbors()
    with pytest.raises(UserError, match="memory is empty"):
        head.sample(head.build(MLP(), 2, HeadSpec(3, 1, 5)), Context(torch.zeros(1, 1, 5), torch.ones(1, 1).bool()),
                    torch.zeros(1, 3, 0))
