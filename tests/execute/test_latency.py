"""Plans that come late."""


import numpy as np
import pytest
import torch
from fixtures.shifts import Counter, Echo
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.core import Feature, keys, put, take
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.latency import DelayedAction, DelayedPlan, delay_actor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.denoising.flow import Flow
from understudy.nets.mlp import MLP
from understudy.policy import Planner, PolicyConfig
from understudy.testing import check_executor


class Clock(Planner):
    """A plan says of each step when it was asked for and for when: 1000 * asked + step."""

    inputs, action_dim, device = ("observation.state",), 1, torch.device("cpu")
    features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (1,))}

    def __init__(self, horizon):
        self.window = Window(n_obs_steps=1, horizon=horizon)

    def plan(self, obs, noise, guides=()):
        asked = obs["observation.state"][:, -1, :1]
        return (1000 * asked + asked + torch.arange(self.window.horizon)).unsqueeze(-1)

    def noise(self, key, count):
        return torch.zeros(len(key), 0)


def told(executor, horizon, limit=12, rows=3):
    """(asked, step) of every action, which is the same in every row."""
    data = rollout(PolicyActor(Clock(horizon), executor), Counter(rows, limit), 4)
    plans = np.stack([e.steps["next.reward"] for e in data]).astype(int)
    assert (plans == plans[0]).all()
    return [(p // 1000, p % 1000) for p in plans[0]]


def test_a_plan_arrives_so_many_steps_after_it_was_asked_for():
    """Four of eight steps are carried out, then the next plan is asked for; it takes three steps, in which the old one
    goes on. Every action is of its own time."""
    asked = told(DelayedPlan(RecedingHorizon(4), 3), 8)
    assert asked == [(0 if t < 7 else 4, t) for t in range(11)] + [(8, 11)]
    assert told(DelayedPlan(RecedingHorizon(4), 0), 8) == told(RecedingHorizon(4), 8)


def test_at_the_end_of_a_chunk_its_last_action_stays():
    """Chunks of four, all carried out; the next takes two steps."""
    asked = told(DelayedPlan(RecedingHorizon(4), 2), 4)
    assert asked == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (4, 6), (4, 7), (4, 7), (4, 7), (8, 10), (8, 11)]
    # One step planned at a time, which takes three: it is done when it comes, and stays.
    assert told(DelayedPlan(RecedingHorizon(1), 3), 1)[:8] == [(0, 0)] * 4 + [(1, 1)] * 3 + [(4, 4)]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_executor_made_late_keeps_the_contract_of_executors(steps):
    for executor in (RecedingHorizon(2), RecedingHorizon(2, skip=1), RealTimeChunking(2)):
        window = Window(n_obs_steps=2, horizon=6, action_offset=-executor.skip)
        check_executor(DelayedPlan(executor, steps), PolicyConfig(Flow(n_steps=2), trunk=MLP(16, 1), window=window))


@given(steps=st.integers(0, 5), execute=st.integers(1, 4), restart=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_a_row_that_starts_anew_is_as_if_alone(steps, execute, restart):
    plays = PolicyActor(Clock(6), DelayedPlan(RecedingHorizon(execute), steps))

    def seen(*clocks):
        return {"observation.state": torch.tensor([[float(c), 0.0] for c in clocks])}
    state, actions = plays.start(seen(0, 0), keys(0, range(2))), []
    for t in range(14):
        if t == restart:
            state = put(state, torch.tensor([1]), plays.start(seen(0), keys(0, [5])))
        action, state = plays.act(seen(t, t if t < restart else t - restart), state)
        actions.append(action)
    alone = plays.start(seen(0), keys(0, [5]))
    for t in range(14 - restart):
        action, alone = plays.act(seen(t), alone)
        assert torch.equal(action[0], actions[restart + t][1])


def test_what_cannot_be_planned_ahead_comes_late_as_a_whole():
    policy = PolicyActor(Clock(4), TemporalEnsemble())
    assert delay_actor(policy, 0) is policy
    assert delay_actor(policy, 2) == DelayedAction(policy, 2)
    assert delay_actor(PolicyActor(policy.planner, RecedingHorizon(2)), 2.0).executor == DelayedPlan(
        RecedingHorizon(2), 2
    )
    state = DelayedAction(Echo(), 2).start(Counter(3)._seen(), keys(0, range(3)))
    assert take(state, torch.tensor([1]))["queue"].shape == (1, 3, 1)
