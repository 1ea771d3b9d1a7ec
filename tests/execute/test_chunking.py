"""Executors, on plans that say which step and which row they are for."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from fixtures.plans import KEY, SMALL, Clock, flow, ran

from understudy.core import Unsupported, UserError
from understudy.data.window import Window
from understudy.execute.chunking import ChunkedExecutor, RealTimeChunking, RecedingHorizon
from understudy.execute.following import FollowDemonstration
from understudy.execute.latency import DelayedAction, DelayedPlan, MeasuredDelay, delay_actor
from understudy.execute.streaming import StreamingExecutor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.base import RampTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.policy import Inpaint, PolicyConfig
from understudy.testing import check_executor, random_batch


@pytest.mark.parametrize(
    "executor, window",
    [
        (RecedingHorizon(3), (8, 0)),
        (RecedingHorizon(4, skip=2), (8, -2)),
        (RealTimeChunking(3, 2), (8, 0)),
        (RealTimeChunking(3, 2, skip=2), (8, -2)),
        (TemporalEnsemble(), (4, 0)),
    ],
    ids=str,
)
def test_what_is_done_now_was_planned_for_now(executor, window):
    assert torch.allclose(ran(executor, Clock(*window)), torch.arange(12.0)[:, None].expand(-1, 3), atol=1e-5)


@pytest.mark.parametrize(
    "executor, ahead",
    [
        (RecedingHorizon(3), -1),
        (RecedingHorizon(3, skip=1), 0),
        (RealTimeChunking(3, 1), -1),
        (TemporalEnsemble(), -1),
        (TemporalEnsemble(), 1),
    ],
    ids=str,
)
def test_chunks_that_begin_at_another_time_are_refused(executor, ahead):
    with pytest.raises(UserError, match=f"trained with action_offset={ahead}\n  -> .*skip=N"):
        executor.start(Clock(8, ahead), {}, KEY)


def test_streaming_takes_chunks_that_begin_now():
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2, times=RampTimes()), window=Window(1, 4, action_offset=-1)))
    with pytest.raises(UserError, match="action_offset=-1"):
        StreamingExecutor().start(policy, {}, KEY)


@pytest.mark.parametrize("skip", [0, 2])
def test_in_real_time_the_old_chunk_runs_on_while_the_new_one_is_late(skip):
    """The second plan is told apart by its sign: of its steps from now on, the first `delay` are the old one's."""
    policy, executor = Clock(10, -skip), RealTimeChunking(n_action_steps=3, delay=2, skip=skip)
    state = executor.start(policy, {}, KEY)
    done = []
    for t in range(6):
        policy.sign = 1.0 if t < 3 else -1.0
        action, state = executor.act(policy, {"observation.state": torch.full((3, 1, 1), float(t))}, state)
        done.append(action[0, 0].item())
    assert done == [0, 1, 2, 3, 4, -5]
    guide = policy.given[1][0]
    assert isinstance(guide, Inpaint)
    assert guide.action[0, skip:skip + 2, 0].tolist() == [3, 4]
    # Firm as far as the old chunk is bound to be carried out, then less and less, and nothing where it has ended.
    assert guide.weight[0, :skip + 2].tolist() == [1.0] * (skip + 2)
    assert (guide.weight[0, skip + 2:7].diff() < 0).all() and (guide.weight[0, 7:] == 0).all()


@dataclass(frozen=True)
class Compares(ChunkedExecutor):
    """Overrides what happens to a chunk that arrives, and nothing else."""

    n_action_steps: int = 3
    skip: int = 0
    compared: list = field(default_factory=list)

    def accept_plan(self, planner, state, request, chunk, delay=0):
        old, mask = self.last_chunk(state, request.rows, delay).aligned()
        assert torch.equal(old[mask], chunk[mask])  # both were planned for the same times
        self.compared.append((planner, int(mask.sum())))
        return super().accept_plan(planner, state, request, chunk, delay)


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("delay", [0, 2, 7])
def test_an_executor_compares_a_chunk_that_arrives_with_the_last_one(skip, delay):
    """The second chunk is requested after three steps, so that 7 of its 10 steps are in the first chunk too."""
    executor, policy = Compares(skip=skip), Clock(10, -skip)
    done = ran(DelayedPlan(executor, delay), policy, 11)[:, 0]
    assert executor.compared[:2] == [(policy, 0), (policy, 3 * 7)]
    end = 9 - skip  # of the first chunk, whose last action is repeated until the second one arrives after 3 + delay
    assert done.tolist() == [min(t, end) if t < 3 + delay else t for t in range(11)]


# -- contracts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build, where", [
    (lambda delay: DelayedPlan(RecedingHorizon(2), delay), "DelayedPlan.delay"),
    (lambda delay: DelayedAction(None, delay), "DelayedAction.delay"),
    (lambda delay: delay_actor(None, delay), r"delay_actor \(shift 'slow'\)")], ids=["plan", "action", "actor"])
def test_a_wrong_delay_is_named_by_what_was_given(build, where):
    for delay in (-1, 1.5, math.nan):
        with pytest.raises(UserError, match=f"^{where}: the delay is {delay:g}, "):
            build(delay)


@pytest.mark.parametrize("late", [DelayedPlan, MeasuredDelay])
def test_only_chunks_can_go_on_until_a_late_plan_arrives(late):
    with pytest.raises(Unsupported, match=rf"{late.__name__}.executor: TemporalEnsemble .* no chunk .*\n.*delay_actor"):
        late(TemporalEnsemble(), 1)
    late(RecedingHorizon(2), 1)


@pytest.mark.parametrize("executor, config", [
    (RecedingHorizon(3), PolicyConfig(Regression(), trunk=SMALL, window=Window(2, 8))),
    (RecedingHorizon(2, skip=1), flow(Window(2, 8, action_offset=-1))),
    (RealTimeChunking(3, 2), flow(Window(2, 8))),
    (RealTimeChunking(2, 1, skip=1), flow(Window(2, 8, action_offset=-1))),
    (TemporalEnsemble(0.1), PolicyConfig(Regression(), trunk=SMALL, window=Window(1, 5))),
    (StreamingExecutor(), flow(Window(2, 8), RampTimes())),
    (StreamingExecutor(), PolicyConfig(Diffusion(n_steps=4, times="each"), trunk=SMALL, window=Window(1, 4))),
    (FollowDemonstration(3), PolicyConfig(Neighbors(1), trunk=SMALL, window=Window(1, 2))),
    (StreamingExecutor(2, 2, "zeros"), flow(Window(2, 8), RampTimes(2, 0.0))),
    (DelayedPlan(RecedingHorizon(2), 2), flow(Window(2, 8)))], ids=str)
def test_executors_keep_their_contract(executor, config):
    check_executor(executor, config)


def test_without_an_old_chunk_real_time_plans_are_those_of_the_policy():
    """Therefore validation plans without the executor: recorded episodes contain no old chunk."""
    policy, batch = random_batch(flow(Window(2, 8, action_offset=-2)))
    noise = policy.noise(torch.arange(5), torch.zeros(5, dtype=torch.int64))
    executor = RealTimeChunking(3, 2, skip=2)
    state = executor.start(policy, batch.obs, torch.arange(5))
    request = executor.request_plan(policy, batch.obs, state)
    first = policy.plan(request.obs, request.noise, request.guides)
    assert torch.equal(first, policy.plan(batch.obs, noise))
    state = executor.accept_plan(policy, state, request, first)
    for _ in range(3):
        _, state = executor.next_action(state)
    request = executor.request_plan(policy, batch.obs, state)
    guided, alone = (policy.plan(request.obs, request.noise, guides) for guides in (request.guides, ()))
    assert not torch.allclose(guided, alone)  # with an old chunk they differ
