"""Bidirectional decoding."""

import math

import pytest
import torch
from fixtures.schemes import KEY, flow, ran

from understudy.core import Feature, Unsupported, UserError, normal
from understudy.data.window import Window
from understudy.execute.bidirectional import BidirectionalDecoding
from understudy.execute.chunking import RecedingHorizon
from understudy.policy import LastChunk, Planner
from understudy.testing import random_batch

STATE = "observation.state"


def distance(one, other):
    return sum(math.dist(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)) / len(one)


def paper_cost(strong, weak, old, exists, n_kept, decay):
    """Of one row, by loops as in the paper: {number of a candidate: its cost}."""
    def candidates(plans):
        if not exists.any():
            return {i: 0.0 for i in range(len(plans))}
        weights = [decay**t for t in range(len(old)) if exists[t]]
        apart = {i: sum(w * math.dist(plan[t].tolist(), old[t].tolist()) for t, w in enumerate(weights)) / sum(weights)
                 for i, plan in enumerate(plans)}
        return {i: apart[i] for i in sorted(apart, key=apart.get)[:n_kept]}
    ours, weak_candidates = candidates(strong), candidates(weak)
    half, costs = len(ours) // 2, {}
    for i, coherence in ours.items():
        positive = sorted(distance(strong[i], strong[j]) for j in ours if j != i)[:half]
        negative = sorted(distance(strong[i], weak[j]) for j in weak_candidates)[:half]
        costs[i] = coherence + sum(positive) / half - sum(negative) / half
    return costs


@pytest.mark.parametrize("skip", [0, 2])
def test_the_cost_of_bidirectional_decoding_is_that_of_the_paper(skip):
    torch.manual_seed(skip)
    policy, _ = random_batch(flow(horizon=6, offset=-skip))
    bid = BidirectionalDecoding(policy, policy, n=7, n_kept=4, decay=0.5)
    strong, weak, old, scale = torch.randn(3, 7, 6, 2), torch.randn(3, 7, 6, 2), torch.randn(3, 6, 2), torch.rand(2) + 1
    last = LastChunk(old, torch.tensor([2, 1, 2]), torch.tensor([True, True, False]))
    cost = bid.cost(strong, weak, scale, last)
    aligned, exists = last.aligned()
    for row in range(3):
        expected = paper_cost(*((x[row] / scale)[..., skip:, :] for x in (strong, weak, aligned)), exists[row, skip:],
                              4, 0.5)
        assert {i for i in range(7) if cost[row, i] < math.inf} == set(expected)
        assert len(expected) == (4 if row < 2 else 7)  # the first plan of an episode has no chunk before it
        for i, value in expected.items():
            assert cost[row, i].item() == pytest.approx(value, abs=1e-5)


@torch.no_grad()
def test_bidirectional_decoding_takes_the_plan_of_the_lowest_cost():
    policy, batch = random_batch(flow(), size=3)
    for weak in (None, policy):
        bid = BidirectionalDecoding(policy, weak, n=5, n_kept=3)
        noise = bid.noise(KEY, torch.ones_like(KEY))
        if weak is not None:
            assert not torch.equal(noise["0"], noise["1"])  # equal policies draw independently
        last = LastChunk(torch.randn(3, 8, 2), torch.full_like(KEY, 2), torch.tensor([True, True, False]))
        strong = torch.stack([policy.plan(batch.obs, noise["0"][:, i]) for i in range(5)], 1)
        other = weak and torch.stack([policy.plan(batch.obs, noise["1"][:, i]) for i in range(5)], 1)
        best = bid.cost(strong, other, policy.action_scale, last).argmin(1)
        plan = bid.plan(batch.obs, noise, (last,))
        assert torch.allclose(plan, strong[torch.arange(3), best], atol=1e-5)
    with pytest.raises(Unsupported, match="does not tell"):
        bid.plan(batch.obs, noise)


class TwoWays(Planner):
    """Goes one way or the other, which the noise decides, at a speed that differs a little from plan to plan."""

    inputs, action_dim, device, window = (STATE,), 1, torch.device("cpu"), Window(1, 4)
    features, action_scale = {STATE: Feature("float32", (1,))}, torch.ones(1)

    def noise(self, key, count):
        return normal(key, count, (4, 1), stream=4)

    def plan(self, obs, noise, guides=()):
        return (noise[:, :1].sign() + 0.01 * noise[:, 1:2]).expand(-1, 4, 1)


def test_bidirectional_decoding_keeps_to_one_way():
    """Each plan alone goes the other way half of the time."""
    def ways(planner):
        return torch.tensor(ran(RecedingHorizon(1), planner, 40)).sign()
    assert 10 < (ways(TwoWays()).diff() != 0).sum() < 30
    assert (ways(BidirectionalDecoding(TwoWays())).diff() == 0).all()


def test_bidirectional_decoding_refuses_policies_that_do_not_fit():
    policy, other = random_batch(flow())[0], random_batch(flow(horizon=6))[0]
    with pytest.raises(UserError, match="weak policy"):
        BidirectionalDecoding(policy, other)
    for n_kept in (1, 16):
        with pytest.raises(UserError, match=f"n_kept is {n_kept}, but must be from 2"):
            BidirectionalDecoding(policy, n_kept=n_kept)
