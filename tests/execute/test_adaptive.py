"""Adaptive horizons, chunking and ensembles."""

import math

import pytest
import torch
from fixtures.schemes import KEY, Scripted, ran

from understudy.core import UserError
from understudy.execute.adaptive import (
    AdaptiveChunking,
    AdaptiveHorizon,
    ChunkBlending,
    CosineAgreement,
    DistanceAgreement,
)
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.latency import DelayedPlan
from understudy.execute.temporal_ensemble import AdaptiveEnsemble, TemporalEnsemble

STATE = "observation.state"


def test_a_chunk_is_executed_until_its_samples_disagree():
    """Two samples for each decision. The distance of two numbers is sqrt(2) times their standard deviation."""
    distance = math.sqrt(2) * 0.3
    first = [[0.0, 1, 2, 3, 4, 5], [0.0, 1, 2 + distance * 0.99, 3 + distance * 1.01, 4, 5]]  # agree on 3 steps
    second = [[10.0, 11, 12, 13, 14, 15]] * 2  # agree on all 6
    third = [[20.0, 21, 22, 23, 24, 25], [30.0, 31, 22, 23, 24, 25]]  # agree on none: one step is executed
    planner = Scripted(first + second + third + second)
    done = ran(AdaptiveHorizon(5, n_samples=2, threshold=0.3), planner, 10)
    assert done == [0, 1, 2, 10, 11, 12, 13, 14, 20, 10]
    assert planner.asked == [0, 3, 8, 9]
    planner = Scripted(third + second)
    assert ran(AdaptiveHorizon(5, n_samples=2, min_action_steps=2), planner, 4) == [20, 21, 10, 11]


def test_the_disagreement_is_that_of_the_steps_from_now_on():
    samples = torch.zeros(1, 2, 5, 2)
    samples[0, 1, 0] = 9.0  # in the past
    samples[0, 1, 3] = torch.tensor([1.0, 0.0])  # standard deviations sqrt(1/2) and 0, root mean square 1/2
    for threshold, steps in ((0.49, 2), (0.51, 4)):
        executor = AdaptiveHorizon(4, skip=1, n_samples=2, threshold=threshold)
        assert executor.agreed_steps(samples).tolist() == [steps]
    for options, words in (({"n_samples": 1}, "must be at least 2"), ({"min_action_steps": 9}, "from 1 to n_action")):
        with pytest.raises(UserError, match=words):
            AdaptiveHorizon(**options)


def paper_queue(chunks, threshold):
    """SGAC's queue: compare its first action with that of the new chunk; keep and append one, or take the new chunk."""
    queue, done = list(chunks[0]), []
    for new in chunks:
        cosine = torch.dot(queue[0], new[0]) / (queue[0].norm() * new[0].norm())
        queue = [*queue, new[-1]] if done and cosine >= threshold else list(new)
        done.append(queue.pop(0))
    return torch.stack(done)


@pytest.mark.parametrize("threshold", [-1.01, 0.0, 0.8, 1.01])
def test_adaptive_chunking_is_the_queue_of_the_paper(threshold):
    torch.manual_seed(0)
    chunks = torch.randn(12, 4, 2)

    class Plane(Scripted):
        action_dim, action_scale = 2, torch.ones(2)

        def plan(self, obs, noise, guides=()):
            return self.chunks[noise[:, 0]]
    planner = Plane(chunks)

    def executed(executor):
        state, out = executor.start(planner, {}, KEY), []
        for _ in range(12):
            action, state = executor.act(planner, {STATE: torch.zeros(3, 1, 1)}, state)
            out.append(action[0])
        return torch.stack(out)
    actions = executed(AdaptiveChunking(agreement=CosineAgreement(threshold)))
    assert torch.equal(actions, paper_queue(chunks, threshold))
    if threshold > 1:  # nothing agrees
        assert torch.equal(actions, executed(RecedingHorizon(1)))
    if threshold < -1:  # the first chunk is never given up; then the last action of each new chunk follows
        assert torch.equal(actions, torch.cat([chunks[0], chunks[1:9, -1]]))


def test_two_actions_of_zero_agree():
    zero, one = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert CosineAgreement().agrees(zero, zero, mask).item()
    assert not CosineAgreement().agrees(zero, one, mask).item()


def test_distances_are_those_of_the_steps_that_both_chunks_have():
    old, new = torch.zeros(1, 3, 2), torch.tensor([[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    middle = math.sqrt((9 + 16) / 2 / 2)  # squares of step 0, mean over components and over two steps
    assert DistanceAgreement(middle + 1e-3, 3).agrees(old, new, mask).item()
    assert not DistanceAgreement(middle - 1e-3, 3).agrees(old, new, mask).item()
    assert not DistanceAgreement(3.5, 1).agrees(old, new, mask).item()  # step 0 alone: sqrt(12.5)


def test_under_a_delay_the_actions_of_the_same_time_are_compared():
    """The chunk of step 1 arrives at step 3. It is compared from there on, and replaces the old one if it differs."""
    now = [[t + float(s) for s in range(6)] for t in range(8)]
    same, other = Scripted(now), Scripted([now[0], [-v for v in now[1]], *now[2:]])
    executor = DelayedPlan(AdaptiveChunking(agreement=DistanceAgreement(0.1)), 2)
    assert ran(executor, same, 5) == [0, 1, 2, 3, 4]
    assert ran(executor, other, 5) == [0, 1, 2, -3, -4]


def test_blended_chunks_are_exponential_averages():
    planner = Scripted([[0.0, 0, 0], [4.0, 4, 4], [8.0, 8, 8]])
    assert ran(ChunkBlending(1, weight=0.25), planner, 3) == [0, 3, 0.25 * 3 + 0.75 * 8]


def test_a_temporal_ensemble_averages_the_chunks_that_have_arrived():
    """Chunk j holds 100 j + the time of each step. With a delay of 2, the first one is alone until chunk 1 is there."""
    chunks = [[100.0 * j + j - 1 + s for s in range(6)] for j in range(6)]  # the first step is in the past
    done = ran(TemporalEnsemble(0.0, skip=1, delay=2), Scripted(chunks, -1), 6)
    used = [[0], [0], [0], [0, 1], [0, 1, 2], [1, 2, 3]]  # a chunk lasts for 5 steps
    assert done == pytest.approx([t + 100 * sum(js) / len(js) for t, js in enumerate(used)])
    with pytest.raises(UserError, match="the delay is 5, but must be from 0 to 4"):
        ran(TemporalEnsemble(skip=1, delay=5), Scripted(chunks, -1), 1)


def test_chunks_that_point_elsewhere_count_less_in_an_adaptive_ensemble():
    """For the second step the newest chunk says 2, and the oldest one -6, in the opposite direction."""
    chunks, alpha = [[1.0, -6.0, 5.0], [2.0, 3.0, 3.0], [4.0, 4.0, 4.0]], 0.7
    done = ran(AdaptiveEnsemble(alpha=alpha), Scripted(chunks), 3)
    against, along = math.exp(-alpha), math.exp(alpha)
    expected = [1, (along * 2 - against * 6) / (along + against), (4 + 3 + 5) / 3]  # at last, all have one direction
    assert done == pytest.approx(expected)
    assert ran(AdaptiveEnsemble(alpha=0.0), Scripted(chunks), 3) == pytest.approx(
        ran(TemporalEnsemble(0.0), Scripted(chunks), 3))
    # With a delay of 1, the newest chunk that has arrived at the third step is the second one.
    late = ran(AdaptiveEnsemble(alpha=alpha, delay=1), Scripted(chunks), 3)
    assert late == pytest.approx([1, -6, (3 + 5) / 2])
