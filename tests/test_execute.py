"""Executors and planners of policies, on plans that say which step and which row they are for."""

import pytest
import torch

from understudy.core import UserError, normal, put, take
from understudy.data.window import Window
from understudy.envs.fork import SPREAD, Expert, Fork
from understudy.execute.actor import Noisy
from understudy.execute.chunked import RealTime, Receding
from understudy.execute.ensemble import Ensemble
from understudy.execute.planners import Best, Chain, Guided
from understudy.execute.streaming import Streaming
from understudy.heads.flow import Flow
from understudy.policy import Contrast, Inpaint, Planner, Recipe
from understudy.testing import example

KEY = torch.tensor([5, 6, 7])


class Clock(Planner):
    """Plans the very time that each step is for: the newest observation is the time now."""

    inputs, dim, device = ("observation.state",), 1, torch.device("cpu")

    def __init__(self, horizon: int, ahead: int = 0, sign: float = 1.0):
        self.window, self.sign, self.given = Window(1, horizon, ahead), sign, []

    def plan(self, obs, noise, guides=()):
        self.given.append(guides)
        now = obs["observation.state"][:, -1:, :1]
        return self.sign * (now + self.window.ahead + torch.arange(self.window.horizon).reshape(1, -1, 1)) + noise

    def noise(self, key, count):
        return torch.zeros(len(key), self.window.horizon, 1)


def ran(executor, policy, steps=12):
    """(steps, 3): what is done at each time."""
    state, out = executor.start(policy, KEY), []
    for t in range(steps):
        action, state = executor.act(policy, {"observation.state": torch.full((3, 1, 1), float(t))}, state)
        out.append(action[:, 0])
    return torch.stack(out)


@pytest.mark.parametrize("executor, window", [
    (Receding(3), (8, 0)), (Receding(4, skip=2), (8, -2)), (RealTime(3, 2), (8, 0)), (RealTime(3, 2, skip=2), (8, -2)),
    (Ensemble(), (4, 0))], ids=str)
def test_what_is_done_now_was_planned_for_now(executor, window):
    assert torch.allclose(ran(executor, Clock(*window)), torch.arange(12.0)[:, None].expand(-1, 3), atol=1e-5)


@pytest.mark.parametrize("executor, ahead", [
    (Receding(3), -1), (Receding(3, skip=1), 0), (RealTime(3, 1), -1), (Ensemble(), -1), (Ensemble(), 1)], ids=str)
def test_chunks_that_begin_at_another_time_are_refused(executor, ahead):
    with pytest.raises(UserError, match=f"found a window with ahead={ahead}\n  -> .*skip=N"):
        executor.start(Clock(8, ahead), KEY)


def test_streaming_takes_chunks_that_begin_now():
    policy, _ = example(Recipe(Flow(steps=2, times="ramp"), window=Window(1, 4, ahead=-1)))
    with pytest.raises(UserError, match="ahead=-1"):
        Streaming().start(policy, KEY)


@pytest.mark.parametrize("skip", [0, 2])
def test_in_real_time_the_old_chunk_runs_on_while_the_new_one_is_late(skip):
    """The second plan is told apart by its sign: of its steps from now on, the first `delay` are the old one's."""
    policy, executor = Clock(10, -skip), RealTime(execute=3, delay=2, skip=skip)
    state = executor.start(policy, KEY)
    done = []
    for t in range(6):
        policy.sign = 1.0 if t < 3 else -1.0
        action, state = executor.act(policy, {"observation.state": torch.full((3, 1, 1), float(t))}, state)
        done.append(action[0, 0].item())
    assert done == [0, 1, 2, 3, 4, -5]
    wanted = policy.given[1][0]
    assert isinstance(wanted, Inpaint)
    assert wanted.action[0, skip:skip + 2, 0].tolist() == [3, 4]
    # Firm as far as the old chunk is bound to be carried out, then less and less, and nothing where it has ended.
    assert wanted.weight[0, :skip + 2].tolist() == [1.0] * (skip + 2)
    assert (wanted.weight[0, skip + 2:7].diff() < 0).all() and (wanted.weight[0, 7:] == 0).all()


# -- planners of policies -------------------------------------------------------------------------------------------


def test_best_takes_the_best_plan_of_each_row():
    policy, batch = example(Recipe(Flow(steps=2), window=Window(1, 4)))
    best = Best(policy, lambda obs, plan: plan[:, 0, 0], count=5)
    noise = best.noise(batch.extra["index"][:, 0], torch.zeros(len(batch), dtype=torch.int64))
    with torch.no_grad():
        found = best.plan(batch.obs, noise)
        each = torch.stack([policy.plan(batch.obs, noise[:, i]) for i in range(5)], 1)
    assert torch.allclose(found[:, 0, 0], each[:, :, 0, 0].amax(1), atol=1e-5)
    assert not torch.allclose(found, each[:, 0])


def test_guides_of_an_executor_reach_every_plan_of_best():
    policy, batch = example(Recipe(Flow(steps=2), window=Window(1, 4)))
    best, count = Best(policy, lambda obs, plan: -plan.abs().sum((1, 2)), count=3), torch.zeros(len(batch)).long()
    noise, B = best.noise(batch.extra["index"][:, 0], count), len(batch)
    guide = Inpaint(torch.arange(B * 8.0).reshape(B, 4, 2), torch.ones(B, 4))
    with torch.no_grad():
        found = best.plan(batch.obs, noise, (guide,))
        alone = torch.cat([best.plan(take(batch.obs, r), noise[r], (guide.take(r),)) for r in torch.arange(B).split(1)])
    assert torch.allclose(found, alone, atol=1e-4)


def test_standing_guides_and_those_of_the_moment_add_up():
    policy = Clock(4)
    guides = Contrast(("observation.state",)), Inpaint(torch.zeros(1, 4, 1), torch.ones(1, 4))
    Guided(policy, guides[:1]).plan({"observation.state": torch.zeros(1, 1, 1)}, torch.zeros(1, 4, 1), guides[1:])
    assert policy.given == [guides]


class Low(Clock):
    inputs = ("observation.state", "observation.goal")

    def plan(self, obs, noise, guides=()):
        return obs["observation.goal"][:, -1:, :1] + noise


def test_in_a_chain_the_low_one_reads_what_the_high_one_says():
    chain = Chain(Clock(1, ahead=0, sign=10.0), Low(3), "observation.goal")
    assert chain.inputs == ("observation.state",) and chain.dim == 1 and chain.window == Window(1, 3)
    noise = chain.noise(KEY, torch.zeros_like(KEY))
    said = chain.plan({"observation.state": torch.full((3, 1, 1), 4.0)}, noise)
    assert said.tolist() == [[[40.0]] * 3] * 3
    assert ran(Receding(3), chain, 4)[:, 0].tolist() == [0, 0, 0, 30]
    with pytest.raises(UserError, match="equally long"):
        Chain(Clock(2), Low(3), "observation.goal")


# -- one key, many users --------------------------------------------------------------------------------------------


def test_the_randomness_of_an_episode_is_not_shared_by_those_who_draw_it():
    """Environment, expert, policy and exploration of an episode have the same key: what one draws says nothing of what
    another does."""
    key, count = torch.arange(400), torch.zeros(400, dtype=torch.int64)
    start = Fork(400).reset(torch.arange(400), key)["observation.state"] / SPREAD
    policy, _ = example(Recipe(Flow(steps=2), window=Window(1, 4)))
    obs, expert, noisy = {"observation.state": start * SPREAD}, Expert(noise=1.0), Noisy(None, 2)
    drawn = {
        "environment": start, "again": normal(key, count, (2,), stream=1), "plan": policy.noise(key, count)[:, 0],
        "expert": expert.act(obs, expert.start(obs, key))[0] - Expert(noise=0.0).act(obs, expert.start(obs, key))[0],
        "exploration": noisy.act(obs, noisy.start(obs, key))[0]}
    for name, one in drawn.items():
        for other in drawn:
            if name < other:
                shared = torch.corrcoef(torch.cat([one, drawn[other]], 1).T)[:2, 2:]
                assert shared.abs().max() < 0.25, (name, other)  # five standard errors of 400 pairs


def test_rows_move_with_their_chunks():
    policy, executor = Clock(8), Receding(4)
    state = executor.start(policy, KEY)
    _, state = executor.act(policy, {"observation.state": torch.arange(3.0).reshape(3, 1, 1)}, state)
    state = put(state, torch.tensor([1]), take(state, torch.tensor([2])))
    action, _ = executor.act(policy, {"observation.state": torch.zeros(3, 1, 1)}, state)
    assert action[:, 0].tolist() == [1.0, 3.0, 3.0]


