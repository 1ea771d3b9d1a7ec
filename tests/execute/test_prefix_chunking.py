"""Policies that learn to continue the actions that are executed while they plan."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import Context, Unsupported, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.execute.actor import PolicyActor
from understudy.execute.asynchronous import AsynchronousRunner
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.filters import FilteredExecutor
from understudy.execute.latency import DelayedPlan, delay_actor
from understudy.execute.prefix_chunking import PrefixChunking
from understudy.execute.streaming import StreamingExecutor
from understudy.heads.base import PrefixTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.nets.unet import UNet
from understudy.policy import Clamp, PolicyConfig
from understudy.testing import STATE, check_executor, check_head, random_batch

EMPTY = Context(torch.zeros(64, 0, 4), torch.ones(64, 0, dtype=torch.bool))


def config(head=None, horizon=6, trunk=None):
    head, trunk = head or Flow(2, times=PrefixTimes(3)), trunk or MLP(16, 1)
    return PolicyConfig(head, trunk, window=Window(2, horizon), inputs=(STATE,))


def rng():
    return torch.Generator().manual_seed(3)


def loss_of(head, action):
    """The loss of a head whose network answers a function of its input and its time, and what it read."""
    read = []

    def net(x, t, context):
        read.append((x, t))
        return torch.sin(3 * x) + t
    return head.loss(net, EMPTY, action, torch.ones(action.shape[:2], dtype=torch.bool), rng()), *read[0]


@pytest.mark.parametrize("settings", [{}, {"time_distribution": "beta"}, {"time_distribution": "logit_normal"},
                                      {"coupling": "optimal_transport"}, {"prediction": "sample"}], ids=str)
def test_given_steps_are_clean_and_have_no_loss_and_the_others_are_those_of_a_flow(settings):
    action = torch.randn(64, 6, 2, generator=rng())
    plain, x, t = loss_of(Flow(**settings), action)
    assert torch.equal(loss_of(Flow(times=PrefixTimes(0), **settings), action)[0], plain)
    loss, read_x, read_t = loss_of(Flow(times=PrefixTimes(3), **settings), action)
    is_prefix = read_t.squeeze(-1) == 1
    assert set(is_prefix.sum(1).tolist()) == {0, 1, 2, 3} and (is_prefix.int().diff(dim=1) <= 0).all()
    assert torch.equal(read_x[is_prefix], action[is_prefix]) and (loss[is_prefix] == 0).all()
    assert torch.equal(read_x[~is_prefix], x[~is_prefix])
    assert torch.equal(read_t[~is_prefix], t.expand_as(read_t)[~is_prefix])
    assert torch.equal(loss[~is_prefix], plain[~is_prefix])


def test_delays_are_uniform():
    is_prefix = PrefixTimes(4).draw_given(torch.zeros(20_000, 6, 1), rng())
    rates = is_prefix.sum(1).bincount(minlength=6) / 20_000
    assert rates[5] == 0 and (rates[:5] - 0.2).abs().max() < 0.012  # 4 standard errors


@pytest.mark.parametrize("build, said", [
    (lambda: random_batch(config(horizon=3)), "gives all 3 steps of a chunk"),
    (lambda: random_batch(config(trunk=UNet((8, 16)))), "reads one time per chunk"),
    (lambda: Diffusion(times=PrefixTimes(3)), "times is PrefixTimes"),
    (lambda: PrefixTimes(-1), "max_delay is -1"),
    (lambda: check_executor(StreamingExecutor(), config()), "StreamingExecutor"),
    (lambda: check_executor(PrefixChunking(2), config(Flow(2))), "not trained to continue given actions"),
    (lambda: check_executor(PrefixChunking(2, delay=4), config()),
     "at most 3 given actions, and chunks that arrive 4 steps late continue 4\n  -> .*max-delay 4")])
def test_what_does_not_fit_is_refused(build, said):
    with pytest.raises(UserError, match=said):
        build()


def test_they_keep_their_contracts():
    check_head(config(Flow(2, times=PrefixTimes(2)), 4))
    for executor in (PrefixChunking(3, 3), DelayedPlan(PrefixChunking(3, 3), 3), PrefixChunking(2, 0)):
        check_executor(executor, config())
    past = replace(config(), window=Window(2, 6, action_offset=-1))
    check_executor(PrefixChunking(2, 2, skip=1), past)
    with pytest.raises(Unsupported, match="arrive 3 steps late continue 4"):
        check_executor(PrefixChunking(2, 3, skip=1), past)


def test_a_new_chunk_starts_with_what_is_executed_until_it_arrives():
    policy, batch = random_batch(config())
    executor = PrefixChunking(2).with_delay(3, policy)
    obs, noise = batch.obs, policy.noise(keys(0, range(5)), torch.zeros(5, dtype=torch.int64))
    state = executor.start(policy, obs, keys(0, range(5)))
    request = executor.request_plan(policy, obs, state)
    first = request.plan(policy)
    assert torch.allclose(first, policy.plan(obs, noise), atol=1e-6)  # nothing is executed yet
    state = executor.accept_plan(policy, state, request, first)
    for _ in range(2):
        _, state = executor.next_action(state)
    second = executor.request_plan(policy, obs, state).plan(policy)
    assert torch.allclose(second[:, :3], first[:, 2:5], atol=1e-5)
    assert (second[:, 3] - first[:, 5]).abs().max() > 0.1


def test_a_delay_beyond_the_training_is_refused_before_an_evaluation_and_warned_of_on_a_robot():
    policy, _ = random_batch(config())
    for executor in (PrefixChunking(2), FilteredExecutor(PrefixChunking(2))):
        delayed = delay_actor(PolicyActor(policy, executor), 3).executor
        assert getattr(delayed, "executor", delayed) == DelayedPlan(PrefixChunking(2, 3), 3) or (
            delayed == DelayedPlan(PrefixChunking(2, 3), 3))
        with pytest.raises(Unsupported, match="at most 3 given actions"):
            delay_actor(PolicyActor(policy, executor), 4)
    with AsynchronousRunner(PolicyActor(policy, PrefixChunking(2))) as runner:
        runner.delays.extend([2, 5, 1])
        with pytest.warns(UserWarning, match="arrive 5 steps late"):
            assert runner._expecting_executor(policy) == PrefixChunking(2, 2)  # the largest that was trained
        runner.delays.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert runner._expecting_executor(policy) == PrefixChunking(2, 1)


@pytest.mark.slow
def test_a_policy_that_was_trained_so_keeps_to_the_way_that_was_begun():
    """Each episode goes one of two ways, which no observation tells. A flow that never saw given actions often leaves
    it."""
    rng = np.random.default_rng(0)
    ways = rng.choice([-1.0, 1.0], 40)
    data = Dataset([Episode({STATE: np.zeros((20, 1), "float32"), "action": np.full((20, 1), way, "float32")})
                    for way in ways])
    learner = BehaviorCloning(800, batch_size=64, optimizer=OptimizerConfig(lr=5e-3))
    kept = {}
    for head in (Flow(times=PrefixTimes(1)), Flow()):
        parts = PolicyConfig(head, MLP(64, 2), window=Window(1, 8))
        policy = fit_method(Method(parts, RecedingHorizon(2), learner), data, seed=0).policy
        n = 400
        begun = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).reshape(n, 1, 1).expand(-1, 8, -1)
        guide = Clamp(begun, (torch.arange(8) < 1).reshape(1, 8, 1).expand(n, -1, 1))
        noise = policy.noise(keys(1, range(n)), torch.zeros(n, dtype=torch.int64))
        plan = policy.plan({STATE: torch.zeros(n, 1, 1)}, noise, (guide,))
        kept[head] = ((plan - begun).abs().amax((1, 2)) < 0.5).float().mean().item()
        free = policy.plan({STATE: torch.zeros(n, 1, 1)}, noise)
        assert 0.3 < (free > 0).float().mean() < 0.75  # without given actions both go both ways
    trained, plain = kept.values()
    assert trained > 0.95 and plain < 0.9
