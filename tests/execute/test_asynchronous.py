"""Plans that come late: real-time chunking, measured delays and runners in the background."""

import math
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from fixtures.schemes import KEY, Scripted, flow, ran

from understudy.core import Unsupported, UserError, keys
from understudy.execute import latency
from understudy.execute.actor import PolicyActor
from understudy.execute.asynchronous import AsynchronousRunner
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.filters import FilteredExecutor
from understudy.execute.latency import DelayedAction, DelayedPlan, MeasuredDelay, delay_actor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.policy import Inpaint, LastChunk
from understudy.testing import random_batch

STATE = "observation.state"


def test_the_weights_of_real_time_chunking_are_those_of_the_paper():
    """H = 8 and s = 2, so that the old chunk has 6 steps left, and d = 1."""
    mask = torch.arange(8).expand(2, 8) < 6
    linear = [min(max((1 - 1 - i) / (8 - 2 - 1 + 1) + 1, 0), 1) if i < 6 else 0.0 for i in range(8)]
    exponential = [c * math.expm1(c) / math.expm1(1) for c in linear]
    expected = {"linear": linear, "exponential": exponential, "ones": [1.0] * 6 + [0.0] * 2, "zeros": [1.0] + [0.0] * 7}
    for schedule, weights in expected.items():
        step_weights = RealTimeChunking(2, 1, schedule=schedule).weights(mask)
        assert torch.allclose(step_weights, torch.tensor(weights).expand(2, 8), atol=1e-6), schedule


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
    plan = policy.encode(policy.plan(obs, noise, RealTimeChunking(2, delay).guides(last)), obs)
    expected = authors_plan(policy, obs, noise, torch.cat([old[:, 2:], old[:, :2]], 1), delay, 2)
    assert torch.allclose(plan, expected, atol=1e-4)
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
    with pytest.raises(UserError, match="must be above 0"):
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
