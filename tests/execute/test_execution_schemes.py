"""Bidirectional decoding, adaptive horizons and chunking, self-guidance, filters, and plans that come late."""

import json
import math
import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch

from understudy import config
from understudy.checkpoint import FromStage
from understudy.core import Feature, Unsupported, UserError, keys, normal
from understudy.data.window import Window
from understudy.execute import latency
from understudy.execute.actor import PolicyActor
from understudy.execute.adaptive import (
    AdaptiveChunking,
    AdaptiveHorizon,
    ChunkBlending,
    CosineAgreement,
    DistanceAgreement,
)
from understudy.execute.asynchronous import AsynchronousRunner
from understudy.execute.bidirectional import BidirectionalDecoding
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.filters import FilteredExecutor, JerkLimit, LowPassFilter
from understudy.execute.latency import DelayedAction, DelayedPlan, MeasuredDelay, delay_actor
from understudy.execute.past_verification import PastVerification
from understudy.execute.planners import FixedBatch
from understudy.execute.schemes import EXECUTION_SCHEMES
from understudy.execute.self_guidance import SelfGuided
from understudy.execute.streaming_flow import StreamingFlowExecutor
from understudy.execute.temporal_ensemble import AdaptiveEnsemble, TemporalEnsemble
from understudy.heads.categorical import Categorical
from understudy.heads.cvae import CVAE
from understudy.heads.flow import Flow
from understudy.heads.gaussian import Gaussian
from understudy.heads.mip import MIP
from understudy.heads.regression import Regression
from understudy.learn.execution import BUILDERS, with_execution_scheme
from understudy.learn.method import Method, build_planner, resolve_references
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Inpaint, LastChunk, Planner, PolicyConfig
from understudy.testing import check_executor, random_batch

KEY = torch.tensor([5, 6, 7])
STATE = "observation.state"
SMALL = MLP(16, 1)


def flow(n_obs_steps=2, horizon=8, offset=0, n_steps=2):
    return PolicyConfig(Flow(n_steps=n_steps), trunk=SMALL, window=Window(n_obs_steps, horizon, action_offset=offset))


# -- contracts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor, config, inference", [
    (RecedingHorizon(2), flow(), (BidirectionalDecoding(n=4, n_kept=2),)),
    (RecedingHorizon(2, skip=1), flow(offset=-1), (BidirectionalDecoding(weak="policy", n=4, n_kept=2),)),
    (RealTimeChunking(3, 2), flow(), (BidirectionalDecoding(n=4, n_kept=3),)),
    (DelayedPlan(RecedingHorizon(2), 2), flow(), (BidirectionalDecoding(n=4, n_kept=2),)),
    (AdaptiveHorizon(6, n_samples=3, threshold=1.0), flow(), ()),
    (DelayedPlan(AdaptiveHorizon(5, 1, n_samples=3, threshold=1.0), 2), flow(offset=-1), ()),
    (AdaptiveChunking(1), flow(), ()),
    (AdaptiveChunking(2, 1, DistanceAgreement(1.0)), flow(offset=-1), ()),
    (DelayedPlan(AdaptiveChunking(1), 3), flow(), ()),
    (AdaptiveChunking(1), flow(), (SelfGuided(scale=0.5),)),
    (RecedingHorizon(2), flow(), (SelfGuided(scale=0.5, lag=2),)),
    (ChunkBlending(2, weight=0.3), flow(), ()),
    (FilteredExecutor(RecedingHorizon(3)), flow(), ()),
    (FilteredExecutor(TemporalEnsemble(), JerkLimit(0.5, 3)), flow(), ()),
    (FilteredExecutor(DelayedPlan(ChunkBlending(1), 2), LowPassFilter(0.8)), flow(), ()),
    (RealTimeChunking(3, 2, schedule="linear"), flow(), ()),
    (TemporalEnsemble(0.1, skip=1, delay=2), flow(horizon=6, offset=-1), ()),
    (AdaptiveEnsemble(skip=1, delay=1), flow(horizon=6, offset=-1), ()),
    (MeasuredDelay(RecedingHorizon(2), period=1e9), flow(), ()),  # all plans are in time
    (PastVerification(2, 3, n_samples=3), flow(offset=-3), ()),
    (DelayedPlan(PastVerification(2, 3, n_samples=3), 2), flow(offset=-3), ()),
], ids=lambda value: "" if isinstance(value, PolicyConfig) else str(value))
def test_executors_keep_their_contract(executor, config, inference):
    check_executor(executor, config, inference=inference)


# -- bidirectional decoding -------------------------------------------------------------------------------------------


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
    ours, theirs = candidates(strong), candidates(weak)
    half, found = len(ours) // 2, {}
    for i, coherence in ours.items():
        positive = sorted(distance(strong[i], strong[j]) for j in ours if j != i)[:half]
        negative = sorted(distance(strong[i], weak[j]) for j in theirs)[:half]
        found[i] = coherence + sum(positive) / half - sum(negative) / half
    return found


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


# -- adaptive horizon and chunking ------------------------------------------------------------------------------------


class Scripted(Planner):
    """Plans chunks of a list in turn; the number of the decision is the count of its noise."""

    inputs, action_dim, device = (STATE,), 1, torch.device("cpu")
    features = {STATE: Feature("float32", (1,))}

    def __init__(self, chunks, offset=0):
        self.chunks, self.asked = torch.as_tensor(chunks), []
        self.window = Window(1, self.chunks.shape[1], action_offset=offset)

    action_scale = torch.ones(1)

    def noise(self, key, count):
        return count.unsqueeze(1)

    def plan(self, obs, noise, guides=()):
        self.asked.append(obs[STATE][0, 0, 0].item())
        return self.chunks[noise[:, 0]].unsqueeze(-1)

    def encode(self, action, obs):
        return action

    def decode(self, coded, obs):
        return coded


def ran(executor, planner, steps, rows=1):
    """(steps,): what the first row does."""
    key = KEY[:rows]
    state, out = executor.start(planner, {STATE: torch.zeros(rows, 1, 1)}, key), []
    for t in range(steps):
        action, state = executor.act(planner, {STATE: torch.full((rows, 1, 1), float(t))}, state)
        out.append(action[0, 0].item())
    return out


def test_a_chunk_is_executed_until_its_samples_disagree():
    """Two samples for each decision. The distance of two numbers is sqrt(2) times their standard deviation."""
    near = math.sqrt(2) * 0.3
    first = [[0.0, 1, 2, 3, 4, 5], [0.0, 1, 2 + near * 0.99, 3 + near * 1.01, 4, 5]]  # agree on 3 steps
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
    found = executed(AdaptiveChunking(agreement=CosineAgreement(threshold)))
    assert torch.equal(found, paper_queue(chunks, threshold))
    if threshold > 1:  # nothing agrees
        assert torch.equal(found, executed(RecedingHorizon(1)))
    if threshold < -1:  # the first chunk is never given up; then the last action of each new chunk follows
        assert torch.equal(found, torch.cat([chunks[0], chunks[1:9, -1]]))


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


# -- self-guidance ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("lag", [1, 2])
def test_self_guidance_extrapolates_from_an_earlier_observation(lag):
    """One Euler step from the same noise: the guided chunk is linear in the two plain ones."""
    policy, _ = random_batch(flow(n_steps=1))
    guided, obs = SelfGuided(policy, 0.7, lag), {k: torch.randn(3, 2 + lag, 3) for k in policy.inputs}
    assert guided.window == Window(2 + lag, 8)
    noise = guided.noise(KEY, torch.zeros_like(KEY))
    now, past = (policy.plan({k: v[:, part] for k, v in obs.items()}, noise)
                 for part in (slice(lag, None), slice(0, 2)))
    found = guided.plan(obs, noise)
    assert torch.allclose(found, now + 0.7 * (now - past), atol=1e-4) and not torch.allclose(found, now, atol=1e-3)
    assert torch.allclose(FixedBatch(guided, 2).plan(obs, noise), found, atol=1e-4)
    still = {k: v[:, -1:].expand(-1, 2 + lag, -1) for k, v in obs.items()}  # as at the start of an episode
    assert torch.allclose(guided.plan(still, noise), policy.plan({k: v[:, :2] for k, v in still.items()}, noise),
                          atol=1e-5)
    with pytest.raises(UserError, match="at least 1"):
        SelfGuided(policy, lag=0)


# -- filters ----------------------------------------------------------------------------------------------------------


def test_a_low_pass_filter_is_an_exponential_average():
    planner = Scripted([[2.0, 6.0, 6.0, 6.0]])
    assert ran(FilteredExecutor(RecedingHorizon(4), LowPassFilter(0.5)), planner, 4) == [2, 4, 5, 5.5]
    with pytest.raises(UserError, match="below 1"):
        LowPassFilter(1.0)


def test_a_jerk_limit_holds_for_any_actions():
    planner = Scripted([[0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    # The step of 1 is within the limit; two averages of 2 make it 1/4, 3/4, 1.
    done = ran(FilteredExecutor(RecedingHorizon(6), JerkLimit(1.0, 2)), planner, 6)
    assert done == pytest.approx([0, 0.25, 0.75, 1, 1, 1])
    torch.manual_seed(0)
    wild = torch.randn(300).sign().cumsum(0).clamp(-3, 3) * 2
    for n in (1, 2, 5):
        planner = Scripted(wild[None])
        planner.action_scale = torch.tensor([0.5])
        done = torch.tensor(ran(FilteredExecutor(RecedingHorizon(300), JerkLimit(0.8, n)), planner, 300)).double()
        limit = 0.8 * 0.5
        assert done.diff().abs().max() <= limit + 1e-5
        if n > 1:
            assert done.diff().diff().abs().max() <= 2 * limit / n + 1e-5
            assert done.diff().diff().diff().abs().max() <= 4 * limit / n**2 + 1e-5
        assert wild.min() <= done.min() and done.max() <= wild.max()
        assert done.diff().abs().max() > 0.9 * limit  # and no slower than it must be
    for options in ({"max_change": 0.0}, {"n_average": 0}):
        with pytest.raises(UserError, match=f"{next(iter(options))} is .*, but must be (above 0|at least 1)"):
            JerkLimit(**options)


def test_actions_that_are_continued_are_not_filtered():
    with pytest.raises(Unsupported, match="a filter would change them"):
        FilteredExecutor(StreamingFlowExecutor())


# -- late plans -------------------------------------------------------------------------------------------------------


def test_the_weights_of_real_time_chunking_are_those_of_the_paper():
    """H = 8 and s = 2, so that the old chunk has 6 steps left, and d = 1."""
    mask = torch.arange(8).expand(2, 8) < 6
    linear = [min(max((1 - 1 - i) / (8 - 2 - 1 + 1) + 1, 0), 1) if i < 6 else 0.0 for i in range(8)]
    exponential = [c * math.expm1(c) / math.expm1(1) for c in linear]
    expected = {"linear": linear, "exponential": exponential, "ones": [1.0] * 6 + [0.0] * 2, "zeros": [1.0] + [0.0] * 7}
    for schedule, weights in expected.items():
        found = RealTimeChunking(2, 1, schedule=schedule).weights(mask)
        assert torch.allclose(found, torch.tensor(weights).expand(2, 8), atol=1e-6), schedule


def authors_plan(policy, obs, noise, old, delay, n_action_steps):
    """`FlowPolicy.realtime_action` of the authors' code (real-time-chunking-kinetix, src/model.py), in coded actions.

    `old` (B, H, A) begins at the first step of the new chunk, and its last `n_action_steps` steps are not used.
    """
    context, n, horizon = policy.context(obs), policy.config.head.n_steps, noise.shape[1]
    step, end = torch.arange(horizon), horizon - n_action_steps
    w = ((delay - 1 - step) / (end - delay + 1) + 1).clamp(0, 1)
    w = torch.where(step >= end, 0.0, w * torch.expm1(w) / (math.e - 1))
    x = noise
    for i in range(n):
        t = i / n

        def velocity(x_t, t=t):
            return policy.net(x_t, torch.full((*x_t.shape[:2], 1), t), context)
        clean, pullback = torch.func.vjp(lambda x_t, t=t, velocity=velocity: x_t + velocity(x_t) * (1 - t), x)
        correction = pullback((old - clean) * w[:, None])[0]
        weight = 5.0 if t == 0 else min((1 - t) / t * (t**2 + (1 - t) ** 2) / (1 - t) ** 2, 5.0)
        x = x + (velocity(x) + weight * correction) / n
    return x.detach()


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_plans_of_real_time_chunking_are_those_of_the_authors_code(delay):
    policy, batch = random_batch(flow(n_steps=5))
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.net.parameters():  # far from the identity
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    obs, n = {k: x.float() for k, x in batch.obs.items()}, len(batch)
    noise, old = (torch.randn(n, *policy.noise_shape, generator=generator) for _ in range(2))
    last = LastChunk(policy.decode(old, obs), torch.full((n,), 2), torch.ones(n, dtype=torch.bool))
    found = policy.encode(policy.plan(obs, noise, RealTimeChunking(2, delay).guides(last)), obs)
    expected = authors_plan(policy, obs, noise, torch.cat([old[:, 2:], old[:, :2]], 1), delay, 2)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(policy.encode(policy.plan(obs, noise), obs), expected, atol=0.05)


@pytest.mark.parametrize("period, arrives", [(1.0, 0), (0.1, 2), (0.06, 4)])
def test_a_measured_delay_is_the_time_of_the_computation_in_steps(monkeypatch, period, arrives):
    """By the clock, every plan takes 0.25 s. The second one is asked for at step 2 and has the opposite sign."""
    clock = [0.0]

    def tick():
        clock[0] += 0.25
        return clock[0]
    monkeypatch.setattr(latency.time, "perf_counter", tick)
    planner = Scripted([[0.0, 1, 2, 3, 4, 5, 6, 7], [-2.0, -3, -4, -5, -6, -7, -8, -9], [0.0] * 8])
    done = ran(MeasuredDelay(RecedingHorizon(2), period), planner, 3 + arrives)
    assert done == [*(float(t) for t in range(2 + arrives)), -2.0 - arrives]
    with pytest.raises(UserError, match="must be positive"):
        MeasuredDelay(RecedingHorizon(2), 0.0)


def test_a_delayed_actor_delays_plans_behind_a_filter():
    policy, _ = random_batch(flow())
    delayed = delay_actor(PolicyActor(policy, FilteredExecutor(RecedingHorizon(2))), 3)
    assert delayed.executor == FilteredExecutor(DelayedPlan(RecedingHorizon(2), 3))
    assert isinstance(delay_actor(PolicyActor(policy, FilteredExecutor(TemporalEnsemble())), 3), DelayedAction)


class Gated(Scripted):
    """Plans after the first one wait until the gate is opened, once for each plan."""

    def __init__(self, chunks):
        super().__init__(chunks)
        self.gate, self.guides, self.finished = threading.Semaphore(1), [], threading.Semaphore(0)

    def plan(self, obs, noise, guides=()):
        assert self.gate.acquire(timeout=60) and not torch.is_grad_enabled()
        self.guides.append(guides)
        chunk = super().plan(obs, noise)
        self.finished.release()
        return chunk


def wait_until_done(runner):
    end = time.monotonic() + 60
    while not runner._pending[1].done() and time.monotonic() < end:
        time.sleep(0.001)


@pytest.mark.parametrize("executor", [RecedingHorizon(2), RealTimeChunking(2, delay=1)])
def test_an_asynchronous_runner_acts_on_while_a_plan_is_computed(executor):
    """The plan that is asked for at step 2 is ready before step 5, so that its step 3 is executed there."""
    planner = Gated([[0.0, 1, 2, 3, 4, 5, 6, 7], [-2.0, -3, -4, -5, -6, -7, -8, -9], [5.0] * 8])
    with AsynchronousRunner(PolicyActor(planner, executor)) as runner:
        with pytest.raises(UserError, match="call start"):
            runner.act({STATE: torch.zeros(1, 1)})
        runner.start({STATE: torch.zeros(1, 1)}, KEY[:1])
        done = []
        for t in range(7):
            if t == 5:
                planner.gate.release()
                wait_until_done(runner)
            done.append(runner.act({STATE: torch.full((1, 1), float(t))}).item())
        assert done == [0, 1, 2, 3, 4, -5, -6]
        assert list(runner.delays) == [3] and len(runner.plan_seconds) == 1
        planner.gate.release()  # the third plan, which was asked for at step 5
        wait_until_done(runner)
        if isinstance(executor, RealTimeChunking):  # expects the delay that was measured
            guide = planner.guides[2][0]
            assert isinstance(guide, Inpaint) and guide.weight[0, :4].tolist()[:3] == [1, 1, 1]
            assert guide.weight[0, 3] < 1 and planner.guides[1][0].weight[0, 1] < 1
        runner.start({STATE: torch.zeros(1, 1)}, keys(0, [0]))  # the plan of the last episode is dropped
        planner.gate.release()
        assert runner.act({STATE: torch.zeros(1, 1)}).item() == 0
    with pytest.raises(Unsupported, match="TemporalEnsemble does not execute chunks"):
        AsynchronousRunner(PolicyActor(planner, TemporalEnsemble()))


def test_a_policy_of_single_actions_is_waited_for_and_never_repeats_one():
    """Without patience, each action is one step old. With a plan that takes longer, the last action is repeated."""
    obs = {STATE: torch.zeros(1, 1)}
    planner = Scripted([[float(n)] for n in range(5)])
    with AsynchronousRunner(PolicyActor(planner, RecedingHorizon(1)), patience=60) as runner:
        runner.start(obs, KEY[:1])
        assert [runner.act(obs).item() for _ in range(5)] == [0, 1, 2, 3, 4]
        assert runner.n_stale == 0 and set(runner.delays) == {0}
    gated = Gated([[0.0], [1.0], [2.0]])
    with AsynchronousRunner(PolicyActor(gated, RecedingHorizon(1)), patience=0.01) as runner:
        runner.start(obs, KEY[:1])
        assert [runner.act(obs).item() for _ in range(3)] == [0, 0, 0] and runner.n_stale == 2
        gated.gate.release(2)
        wait_until_done(runner)  # late: it is replaced by the plan of the present observation
        runner.patience = 60
        assert runner.act(obs).item() == 2 and runner.n_stale == 2


def test_an_error_in_the_background_is_raised_by_act():
    @dataclass
    class Broken(Exception):
        pass

    class Fails(Scripted):
        def plan(self, obs, noise, guides=()):
            if noise[0, 0] > 0:
                raise Broken
            return super().plan(obs, noise)
    with AsynchronousRunner(PolicyActor(Fails([[0.0, 1, 2, 3]] * 2), RecedingHorizon(1))) as runner:
        obs = {STATE: torch.zeros(1, 1)}
        runner.start(obs, KEY[:1])
        runner.act(obs)
        runner.act(obs)
        wait_until_done(runner)
        with pytest.raises(Broken):
            runner.act(obs)


# -- schemes by name --------------------------------------------------------------------------------------------------


def test_every_scheme_has_a_builder():
    assert list(BUILDERS) == list(EXECUTION_SCHEMES)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("name", EXECUTION_SCHEMES)
def test_schemes_execute_the_policy_of_any_method(name, skip):
    method = Method(flow(horizon=6, offset=-skip), RecedingHorizon(3, skip))
    if name == "past-verification" and not skip:
        with pytest.raises(UserError, match="there must be a past action"):
            with_execution_scheme(method, name)
        return
    made = with_execution_scheme(method, name)
    assert config.load(json.loads(json.dumps(config.dump(made)))) == made  # method.json
    assert made.policy == method.policy and getattr(made.executor, "n_action_steps", 3) in (1, 3)
    check_executor(made.executor, made.policy, steps=8, inference=made.inference)


def planner_of(name, policy, skip=1):
    """The executor and the planner of a scheme for a policy."""
    method = with_execution_scheme(Method(policy.config, RecedingHorizon(3, skip)), name)
    return method.executor, build_planner(method, {"policy": policy})


@pytest.mark.parametrize("head", [MIP(), Regression(), Gaussian(), CVAE(4)], ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("name", ["adaptive-horizon", "bidirectional-decoding", "past-verification"])
def test_schemes_that_compare_samples_refuse_deterministic_policies(name, head):
    config = PolicyConfig(head, trunk=SMALL, window=Window(2, 8, action_offset=-1))
    with pytest.raises(Unsupported, match="plans without randomness") as told:
        executor, planner = planner_of(name, random_batch(config)[0])
        executor.check_planner(planner)
    assert "RecedingHorizon" in told.value.hint
    if hasattr(head, "temperature"):
        executor, planner = planner_of(name, random_batch(replace(config, head=replace(head, temperature=1.0)))[0])
        executor.check_planner(planner)


CLASSES = Feature("int64", (2,), "discrete", num_classes=(3, 4))
REFUSES_CLASSES = {name for name, scheme in EXECUTION_SCHEMES.items() if "continuous actions" in scheme.needs}


@pytest.mark.parametrize("name", [n for n, s in EXECUTION_SCHEMES.items() if "step by step" not in s.needs])
def test_schemes_that_compute_with_actions_refuse_classes(name):
    """The others execute classes that the policy planned."""
    policy, batch = random_batch(PolicyConfig(Categorical(1.0), trunk=SMALL, window=Window(2, 8, action_offset=-1)),
                                 target=CLASSES)
    key = torch.arange(len(batch))
    if name in REFUSES_CLASSES:
        with pytest.raises(Unsupported, match="numbers of classes") as told:
            executor, planner = planner_of(name, policy)
            executor.start(planner, batch.obs, key)
        assert "receding-horizon" in told.value.hint
        return
    executor, planner = planner_of(name, policy)
    state = executor.start(planner, batch.obs, key)
    for _ in range(6):
        action, state = executor.act(planner, batch.obs, state)
        assert torch.equal(action, action.round()) and (action < torch.tensor([3, 4])).all()


def test_which_schemes_refuse_classes():
    assert {
        "temporal-ensemble", "adaptive-ensemble", "chunk-blending", "low-pass", "jerk-limit", "adaptive-horizon",
        "bidirectional-decoding", "past-verification"} == REFUSES_CLASSES


def test_schemes_that_do_not_exist_or_do_not_fit_are_refused():
    method = Method(flow())
    with pytest.raises(UserError, match="did you mean 'real-time-chunking'"):
        with_execution_scheme(method, "realtime-chunking")
    with pytest.raises(Unsupported, match="trained for StreamingFlowExecutor"):
        with_execution_scheme(find_method("streaming-flow-policy"), "low-pass")
    filtered = with_execution_scheme(replace(method, executor=RecedingHorizon(5)), "low-pass")
    assert with_execution_scheme(filtered, "chunk_blending").executor == ChunkBlending(5)
    assert with_execution_scheme(replace(method, executor=TemporalEnsemble()), "receding-horizon").executor == (
        RecedingHorizon(4))  # half a chunk


def test_the_weak_policy_is_a_stage_or_a_module():
    weak = random_batch(flow(), seed=3)[0]
    policy = random_batch(flow())[0]
    modules = {"policy": policy, "early": weak}
    assert BidirectionalDecoding(weak="early").over(policy, modules).weak is weak
    method = find_method("bid-flow-policy")
    assert method.stages[0].method.learner.steps == method.learner.steps // 3
    resolved = resolve_references(method, {FromStage("weak"): weak})
    built = build_planner(resolved, {"policy": policy})
    assert isinstance(built, BidirectionalDecoding) and built.weak is weak and (built.n, built.n_kept) == (15, 5)
    with pytest.raises(UserError, match="no module 'late'"):
        BidirectionalDecoding(weak="late").over(policy, modules)
