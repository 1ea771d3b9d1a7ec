"""Executors and planners of policies, on plans that say which step and which row they are for."""

import copy
import math
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import pytest
import torch

from understudy.checkpoint import Scorer
from understudy.core import Feature, Unsupported, UserError, keys, normal, put, take
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.toys.fork import SPREAD, Fork, ForkExpert
from understudy.execute.actor import NoisyActor, NonFiniteAction, ObservationWrapper, PolicyActor
from understudy.execute.chunking import ChunkedExecutor, RealTimeChunking, RecedingHorizon
from understudy.execute.following import FollowDemonstration
from understudy.execute.latency import DelayedAction, DelayedPlan, MeasuredDelay, delay_actor
from understudy.execute.planners import (
    BackwardCoherence,
    BestOfN,
    FactoredPlanner,
    FixedBatch,
    Guided,
    Hierarchical,
    KernelDensity,
    RetrievalPlanner,
    SampleSelector,
)
from understudy.execute.streaming import StreamingExecutor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.execute.wrappers import NoiseSteeringWrapper
from understudy.heads.base import RampTimes
from understudy.heads.diffusion import Diffusion
from understudy.heads.flow import Flow
from understudy.heads.neighbors import Neighbors
from understudy.heads.regression import Regression
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.vision import SmallConv
from understudy.policy import ClassifierFreeGuidance, Inpaint, LastChunk, Planner, Policy, PolicyConfig
from understudy.testing import check_executor, random_batch, random_dataset

KEY = torch.tensor([5, 6, 7])


class Clock(Planner):
    """Plans the very time that each step is for: the newest observation is the time now."""

    inputs, action_dim, device = ("observation.state",), 1, torch.device("cpu")
    features = {"observation.state": Feature("float32", (1,))}

    def __init__(self, horizon: int, ahead: int = 0, sign: float = 1.0):
        self.window, self.sign, self.given = Window(1, horizon, ahead), sign, []

    def plan(self, obs, noise, guides=()):
        self.given.append(guides)
        now = obs["observation.state"][:, -1:, :1]
        return (
            self.sign * (now + self.window.action_offset + torch.arange(self.window.horizon).reshape(1, -1, 1)) + noise
        )

    def noise(self, key, count):
        return torch.zeros(len(key), self.window.horizon, 1)


def ran(executor, policy, steps=12):
    """(steps, 3): what is done at each time."""
    state, out = executor.start(policy, {"observation.state": torch.zeros(3, 1, 1)}, KEY), []
    for t in range(steps):
        action, state = executor.act(policy, {"observation.state": torch.full((3, 1, 1), float(t))}, state)
        out.append(action[:, 0])
    return torch.stack(out)


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
    wanted = policy.given[1][0]
    assert isinstance(wanted, Inpaint)
    assert wanted.action[0, skip:skip + 2, 0].tolist() == [3, 4]
    # Firm as far as the old chunk is bound to be carried out, then less and less, and nothing where it has ended.
    assert wanted.weight[0, :skip + 2].tolist() == [1.0] * (skip + 2)
    assert (wanted.weight[0, skip + 2:7].diff() < 0).all() and (wanted.weight[0, 7:] == 0).all()


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


SMALL = MLP(16, 1)


def flow(window, times="shared"):
    return PolicyConfig(Flow(n_steps=2, times=times), trunk=SMALL, window=window)


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


# -- step by step ---------------------------------------------------------------------------------------------------


def counted_encodings(policy, monkeypatch):
    """The batch size of every observation that the policy encodes from now on."""
    sizes, encode = [], policy.encoder.forward
    monkeypatch.setattr(policy.encoder, "forward",
                        lambda obs, rng=None: (sizes.append(len(obs["observation.state"])), encode(obs, rng))[1])
    return sizes


@torch.no_grad()
def test_streaming_encodes_an_observation_once_for_all_its_steps(monkeypatch):
    policy, batch = random_batch(flow(Window(2, 8), RampTimes()), size=3)
    sizes, executor = counted_encodings(policy, monkeypatch), StreamingExecutor()
    state = executor.start(policy, batch.obs, KEY)
    assert sizes == [3]  # one for the eight steps from noise to the first chunk
    for n in range(3):
        _, state = executor.act(policy, batch.obs, state)
        assert sizes == [3] * (n + 2)


@torch.no_grad()
def test_a_fixed_batch_groups_every_call_of_the_network(monkeypatch):
    policy, batch = random_batch(flow(Window(2, 4), "each"), size=5)
    sizes = counted_encodings(policy, monkeypatch)
    fixed, x, t = FixedBatch(policy, 4), torch.randn(5, 4, 2), torch.rand(5, 4) / 2
    context = fixed.context(batch.obs)
    assert sizes == [4, 4] and fixed.head is policy.head
    assert torch.allclose(context.tokens, policy.context(batch.obs).tokens, atol=1e-6)
    step = fixed.denoise_step(context, x, t, t + 0.5)
    assert torch.allclose(step, policy.denoise_step(context, x, t, t + 0.5), atol=1e-6)
    for row in torch.arange(5).split(1):  # to the last bit, whatever the number of rows
        alone = fixed.context(take(batch.obs, row))
        assert torch.equal(alone.tokens, context.tokens[row])
        assert torch.equal(fixed.denoise_step(alone, x[row], t[row], t[row] + 0.5), step[row])
    action = fixed.decode(step, batch.obs)
    assert torch.equal(action, policy.decode(step, batch.obs))
    assert torch.allclose(fixed.encode(action, batch.obs), step, atol=1e-4)


def test_planners_without_steps_or_encoder_say_so():
    regression, batch = random_batch(PolicyConfig(Regression(), trunk=SMALL, window=Window(1, 4)))
    stream, _ = random_batch(flow(Window(1, 4), RampTimes()))
    for planner in (regression, FixedBatch(regression), BestOfN(stream, Score(None)), Clock(4), FixedBatch(Clock(4))):
        with pytest.raises(Unsupported, match="RecedingHorizon"):
            StreamingExecutor().start(planner, batch.obs, KEY)
    for call in (Clock(4).context, lambda obs: Clock(4).encode(torch.zeros(1, 4, 1), obs),
                 lambda obs: Clock(4).decode(torch.zeros(1, 4, 1), obs)):
        with pytest.raises(Unsupported, match="Clock .* apart from planning"):
            call(batch.obs)
    with pytest.raises(Unsupported, match="no context without noise"):
        Hierarchical(Clock(1), Low(3), "observation.goal").context(batch.obs)


def test_executors_tell_planners_what_they_were_executing():
    """The new chunk begins `skip` steps ago, and the old one was executed up to now."""
    policy = Clock(6, -1)
    ran(RecedingHorizon(2, skip=1), policy, 5)
    (first,), (second,), (third,) = policy.given
    assert not first.aligned()[1].any()
    old, mask = second.aligned()
    assert old[0, :4, 0].tolist() == [1, 2, 3, 4] and mask[0].tolist() == [True] * 4 + [False] * 2
    assert third.aligned()[0][1, :4, 0].tolist() == [3, 4, 5, 6]


# -- planners of policies -------------------------------------------------------------------------------------------


class Score(Scorer):
    """Scores plans by a function of observations and plan."""

    def __init__(self, function, inputs=(), features=MappingProxyType({})):
        super().__init__()
        self.function, self.inputs, self.features = function, inputs, features

    def forward(self, obs, plan):
        return self.function(obs, plan)

    def save(self, folder):
        raise NotImplementedError

    load = save


def test_best_takes_the_best_plan_of_each_row():
    policy, batch = random_batch(PolicyConfig(Flow(n_steps=2), window=Window(1, 4)))
    best = BestOfN(policy, Score(lambda obs, plan: plan[:, 0, 0]), n=5)
    noise = best.noise(batch.extra["index"][:, 0], torch.zeros(len(batch), dtype=torch.int64))
    with torch.no_grad():
        found = best.plan(batch.obs, noise)
        each = torch.stack([policy.plan(batch.obs, noise[:, i]) for i in range(5)], 1)
    assert torch.allclose(found[:, 0, 0], each[:, :, 0, 0].amax(1), atol=1e-5)
    assert not torch.allclose(found, each[:, 0])


@pytest.mark.parametrize("choice, scorer", [(BestOfN, Score(lambda obs, plan: plan[:, 0, 0])),
                                            (SampleSelector, KernelDensity())])
def test_a_choice_among_equal_plans_is_refused(choice, scorer):
    policy, _ = random_batch(PolicyConfig(Regression(), window=Window(1, 4)))
    with pytest.raises(Unsupported, match="all its samples are equal"):
        choice(policy, scorer, 3)


def test_guides_of_an_executor_reach_every_plan_of_best():
    policy, batch = random_batch(PolicyConfig(Flow(n_steps=2), window=Window(1, 4)))
    best = BestOfN(policy, Score(lambda obs, plan: -plan.abs().sum((1, 2))), n=3)
    count = torch.zeros(len(batch)).long()
    noise, B = best.noise(batch.extra["index"][:, 0], count), len(batch)
    guide = Inpaint(torch.arange(B * 8.0).reshape(B, 4, 2), torch.ones(B, 4))
    with torch.no_grad():
        found = best.plan(batch.obs, noise, (guide,))
        alone = torch.cat(
            [best.plan(take(batch.obs, r), noise[r], (guide.select_rows(r),)) for r in torch.arange(B).split(1)]
        )
    assert torch.allclose(found, alone, atol=1e-4)


def test_standing_guides_and_those_of_the_moment_add_up():
    policy = Clock(4)
    guides = ClassifierFreeGuidance(("observation.state",)), Inpaint(torch.zeros(1, 4, 1), torch.ones(1, 4))
    Guided(policy, guides[:1]).plan({"observation.state": torch.zeros(1, 1, 1)}, torch.zeros(1, 4, 1), guides[1:])
    assert policy.given == [guides]


class Low(Clock):
    inputs = ("observation.state", "observation.goal")
    features = {**Clock.features, "observation.goal": Feature("float32", (1,))}

    def plan(self, obs, noise, guides=()):
        return obs["observation.goal"][:, -1:, :1] + noise


def test_in_a_chain_the_low_one_reads_what_the_high_one_says():
    chain = Hierarchical(Clock(1, ahead=0, sign=10.0), Low(3), "observation.goal")
    assert chain.inputs == ("observation.state",) and chain.action_dim == 1 and chain.window == Window(1, 3)
    noise = chain.noise(KEY, torch.zeros_like(KEY))
    said = chain.plan({"observation.state": torch.full((3, 1, 1), 4.0)}, noise)
    assert said.tolist() == [[[40.0]] * 3] * 3
    assert ran(RecedingHorizon(3), chain, 4)[:, 0].tolist() == [0, 0, 0, 30]


def test_steering_refuses_a_chain_whose_noise_is_that_of_two_planners():
    chain = Hierarchical(Clock(1, ahead=0), Low(3), "observation.goal")
    with pytest.raises(Unsupported, match="Hierarchical draws several noises"):
        NoiseSteeringWrapper(chain, 1).features(Fork(2).features)
    with pytest.raises(UserError, match="equally long"):
        Hierarchical(Clock(2), Low(3), "observation.goal")


def test_best_reads_the_columns_of_policy_and_scorer():
    """The policy reads the state alone; the scorer knows a wish, and the actor hands it on."""
    features = {"observation.state": Feature("float32", (1,)), "observation.wish": Feature("float32", (1,))}

    class Noise(Clock):
        def plan(self, obs, noise, guides=()):
            return noise

        def noise(self, key, count):
            return normal(key, count, (2, 1))
    score = Score(lambda obs, plan: -(plan[:, 0] - obs["observation.wish"][:, -1]).abs().sum(1), ("observation.wish",),
                  features)
    best = BestOfN(Noise(2), score, 200)
    assert best.inputs == ("observation.state", "observation.wish") and best.features == features
    obs = {"observation.state": torch.zeros(3, 1), "observation.wish": torch.tensor([[-1.0], [0.0], [1.0]])}
    actor = PolicyActor(best)
    action, _ = actor.act(obs, actor.start(obs, KEY))
    assert (action - obs["observation.wish"]).abs().max() < 0.1
    with pytest.raises(UserError, match="observation.wish"):
        actor.start({"observation.state": torch.zeros(3, 1)}, KEY)


class Choices(Clock):
    """Plans the same few chunks for everyone, whatever the noise."""

    action_scale = torch.tensor([2.0])

    def __init__(self, *chunks, ahead=0):
        super().__init__(len(chunks[0]), ahead)
        self.chunks = torch.tensor(chunks).unsqueeze(-1)

    def plan(self, obs, noise, guides=()):
        self.given.append(guides)
        return self.chunks[torch.arange(len(noise)) % len(self.chunks)]


@pytest.mark.parametrize("bandwidth", [0.1, 1.0])
def test_kernel_density_takes_the_plan_that_most_others_resemble(bandwidth):
    planner = Choices([0.0, 0.0], [5.0, 5.0], [5.1, 5.2], [9.0, 4.0])
    plans, scale = planner.chunks.unsqueeze(0), planner.action_scale
    score = KernelDensity(bandwidth).score({}, plans, scale, None)
    each = torch.tensor([[((a - b) / 2).square().mean() for b in plans[0]] for a in plans[0]])
    assert torch.allclose(score[0], (-each / (2 * bandwidth**2)).exp().sum(1).log(), atol=1e-5)
    select = SampleSelector(planner, KernelDensity(bandwidth), 4)
    obs = {"observation.state": torch.zeros(3, 1, 1)}
    plan = select.plan(obs, select.noise(KEY, torch.zeros_like(KEY)))
    assert torch.equal(plan, planner.chunks[score.argmax()].expand(3, 2, 1)) and score.argmax() in (1, 2)


def test_coherence_takes_the_plan_nearest_to_the_rest_of_the_last_chunk():
    """Two steps of the first chunk, 0 1 2 3, are executed. The rest is 2 3; nothing is known beyond it."""
    planner = Choices([0.0, 1, 2, 3], [2.0, 3, 9, 9], [2.5, 2.5, 2, 2], [8.0, 8, 8, 8])
    select, executor = SampleSelector(planner, BackwardCoherence(0.5), 4), RecedingHorizon(2)
    obs = {"observation.state": torch.zeros(3, 1, 1)}
    state, done = executor.start(select, obs, KEY), []
    for _ in range(4):
        action, state = executor.act(select, obs, state)
        done.append(action[:, 0])
    assert torch.stack(done).tolist() == [[0] * 3, [1] * 3, [2] * 3, [3] * 3]
    last = LastChunk(planner.chunks[:1], torch.tensor([2]), torch.tensor([True]))
    score = BackwardCoherence(0.5).score({}, planner.chunks.unsqueeze(0), planner.action_scale, last)
    expected = [-((a - 2) ** 2 + 0.5 * (b - 3) ** 2) / 4 for a, b, *_ in planner.chunks[:, :, 0].tolist()]
    assert torch.allclose(score[0], torch.tensor(expected))
    with pytest.raises(Unsupported, match="does not tell"):
        TemporalEnsemble().act(select, obs, TemporalEnsemble().start(select, obs, KEY))


def test_a_factored_planner_joins_the_slices_of_its_planners():
    """Two policies of a hand each; a guide for all components reaches both, in parts."""
    schema = {"observation.state": Feature("float32", (3,)), "action": Feature("float32", (2,))}
    torch.manual_seed(0)
    settings = PolicyConfig(Flow(n_steps=2), trunk=SMALL, window=Window(1, 4), inputs=("observation.state",))
    left, right = (Policy(settings, schema).fit_statistics(random_dataset(schema, seed=n)).eval() for n in range(2))
    both = FactoredPlanner((left, right), (slice(2, 4), slice(0, 2)))
    assert both.action_dim == 4 and both.inputs == ("observation.state",) and both.window == Window(1, 4)
    assert torch.equal(both.action_scale, torch.cat([right.action_scale, left.action_scale]))
    obs, count = {"observation.state": torch.randn(3, 1, 3)}, torch.zeros_like(KEY)
    noise = both.noise(KEY, count)
    assert torch.equal(noise["0"], left.noise(KEY, count)) and not torch.equal(noise["0"], noise["1"])
    guide = Inpaint(torch.randn(3, 4, 4), torch.ones(3, 4))
    with torch.no_grad():
        for guides, parts in (((), [(), ()]), ((guide,), [(Inpaint(guide.action[..., s], guide.weight),)
                                                          for s in both.slices])):
            plan = both.plan(obs, noise, guides)
            assert torch.equal(plan[..., 2:], left.plan(obs, noise["0"], parts[0]))
            assert torch.equal(plan[..., :2], right.plan(obs, noise["1"], parts[1]))
    actor = PolicyActor(FixedBatch(both, 4), RealTimeChunking(2))
    action, _ = actor.act({"observation.state": obs["observation.state"][:, 0]},
                          actor.start({"observation.state": obs["observation.state"][:, 0]}, KEY))
    assert action.shape == (3, 4)
    for slices in ((slice(0, 2), slice(1, 3)), (slice(0, 3), slice(3, 4)), (slice(0, 2),)):
        with pytest.raises(UserError, match="slices"):
            FactoredPlanner((left, right), slices)
    with pytest.raises(UserError, match="different windows"):
        FactoredPlanner((left, Clock(5)), (slice(0, 2), slice(2, 3)))


def test_retrieval_returns_the_nearest_stored_window():
    schema = {"observation.state": Feature("float32", (3,)), "action": Feature("float32", (2,))}
    data = random_dataset(schema)
    policy = Policy(PolicyConfig(Neighbors(n_neighbors=1), window=Window(1, 4)), schema).fit_statistics(data).eval()
    retrieval = RetrievalPlanner(policy)
    stored = next(policy.windows(data).scan(10**6))
    rows, distance = retrieval.nearest(take(stored.obs, torch.tensor([40, 3])))
    assert rows.tolist() == [40, 3] and torch.allclose(distance, torch.zeros(2), atol=1e-3)
    obs = {"observation.state": torch.randn(5, 1, 3) * 3}
    rows, distance = retrieval.nearest(obs)
    far = torch.cdist(policy.context(obs).flat(), policy.context(stored.obs).flat())
    assert torch.equal(rows, far.argmin(1)) and torch.allclose(distance, far.amin(1), atol=1e-4)
    plan, known = retrieval.plan(obs, torch.zeros(5, 4, 0)), stored.mask[rows]
    assert torch.allclose(plan[known], stored.action[rows][known], atol=1e-4)
    with pytest.raises(Unsupported, match="Regression stores no windows"):
        RetrievalPlanner(random_batch(PolicyConfig(Regression(), trunk=SMALL))[0])


def test_the_action_scale_is_that_of_the_codec():
    """The scale is how much an action changes while its code changes by 1."""
    policy, batch = random_batch(flow(Window(1, 4)))
    change = policy.decode(torch.ones(1, 4, 2), batch.obs) - policy.decode(torch.zeros(1, 4, 2), batch.obs)
    assert torch.allclose(change, policy.action_scale.expand(1, 4, 2)) and (policy.action_scale > 0).all()
    assert torch.equal(FixedBatch(policy).action_scale, policy.action_scale)
    with pytest.raises(Unsupported, match="Clock has no codec"):
        _ = Clock(2).action_scale


GOAL = "observation.goal"
PLAN = {"observation.state": Feature("float32", (3,)), GOAL: Feature("float32", (2,)),
        "action": Feature("float32", (2,))}


@pytest.fixture(scope="module")
def leaves():
    """Policies of actions and of goals, both of state and goal; and six windows of observations."""
    torch.manual_seed(0)
    data, obs, found = (
        random_dataset(PLAN),
        {k: torch.randn(6, 1, *PLAN[k].shape) for k in ("observation.state", GOAL)},
        {},
    )
    for target, horizon in (("action", 4), (GOAL, 1)):
        recipe = PolicyConfig(Flow(n_steps=2), trunk=MLP(8, 1), window=Window(1, horizon), target=target,
                              inputs=("observation.state", GOAL))
        found[target] = Policy(recipe, PLAN).fit_statistics(data).eval()
    return found, obs


def near(obs, plan):
    return -(plan - obs["observation.state"][:, :, :2]).square().sum((1, 2))


INNER = {"policy": lambda leaf, goal: leaf, "fixed": lambda leaf, goal: FixedBatch(leaf, 4),
         "guided": lambda leaf, goal: Guided(leaf, (ClassifierFreeGuidance(("observation.state",), 0.5),)),
         "best": lambda leaf, goal: BestOfN(leaf, Score(near), 3),
         "chain": lambda leaf, goal: Hierarchical(goal, leaf, GOAL)}
OUTER = [*INNER, "chain of"]


def nested(outer, inner, leaves):
    (act, goal), build = (leaves["action"], leaves[GOAL]), INNER[inner]
    if outer == "chain of":  # the inner one says the goal
        return Hierarchical(build(goal, goal), act, GOAL)
    return INNER[outer](build(act, goal), goal)


def by_hand(planner, obs, noise, guides=()):
    """What the plan of one row has to be: by what each planner says of itself, one level at a time."""
    if isinstance(planner, BestOfN):
        tried = [by_hand(planner.planner, obs, nth(noise, i), guides) for i in range(planner.n)]
        return max(tried, key=lambda plan: near(obs, plan).item())
    if isinstance(planner, Hierarchical):
        said = by_hand(planner.high, obs, noise["high"])
        return by_hand(planner.low, {**obs, GOAL: said}, noise["low"], guides)
    if isinstance(planner, Guided):
        return by_hand(planner.planner, obs, noise, planner.guides + guides)
    if isinstance(planner, FixedBatch):
        return by_hand(planner.planner, obs, noise, guides)
    return planner.plan(obs, noise, guides)


def nth(noise, i):
    return {k: nth(v, i) for k, v in noise.items()} if isinstance(noise, dict) else noise[:, i]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
@torch.no_grad()
def test_planners_of_planners_of_policies(leaves, outer, inner):
    policies, obs = leaves
    planner, key = nested(outer, inner, policies), keys(0, range(6))
    assert planner.action_dim == 2 and planner.window == Window(1, 4) and set(planner.inputs) <= set(planner.features)
    assert set(planner.inputs) == {"observation.state", GOAL}  # whoever says the goal reads one, too
    noise = planner.noise(key, key * 0 + 2)
    found = planner.plan(obs, noise)
    for row in torch.arange(6).split(1):
        one = by_hand(planner, take(obs, row), take(noise, row))
        assert torch.allclose(found[row], one, atol=1e-4)
    # The guide of an executor reaches all that plan actions.
    guide = Inpaint(torch.arange(48.0).reshape(6, 4, 2) / 10 - 2, torch.ones(6, 4))
    found = planner.plan(obs, noise, (guide,))
    for row in torch.arange(6).split(1):
        assert torch.allclose(found[row], by_hand(planner, take(obs, row), take(noise, row), (guide.select_rows(row),)),
                              atol=1e-4)
    actor, seen = PolicyActor(planner, RecedingHorizon(2)), {k: v[:, 0] for k, v in obs.items()}
    action, state = actor.act(seen, actor.start(seen, key))
    first = planner.plan(obs, planner.noise(key, key * 0))[:, 0]
    assert torch.allclose(action, first, atol=1e-4)
    moved = put(state, torch.tensor([1]), take(state, torch.tensor([4])))
    assert torch.equal(actor.act(seen, moved)[0][1], actor.act(seen, state)[0][4])


# -- one key, many users --------------------------------------------------------------------------------------------


def test_the_randomness_of_an_episode_is_not_shared_by_those_who_draw_it():
    """Environment, expert, policy and exploration of an episode have the same key: what one draws says nothing of what
    another does."""
    key, count = torch.arange(400), torch.zeros(400, dtype=torch.int64)
    start = Fork(400).reset(torch.arange(400), key)["observation.state"] / SPREAD
    policy, _ = random_batch(PolicyConfig(Flow(n_steps=2), window=Window(1, 4)))
    obs, expert, noisy = {"observation.state": start * SPREAD}, ForkExpert(noise=1.0), NoisyActor(None, 2)
    drawn = {
        "environment": start, "again": normal(key, count, (2,), stream=1), "plan": policy.noise(key, count)[:, 0],
        "expert": expert.act(obs, expert.start(obs, key))[0]
        - ForkExpert(noise=0.0).act(obs, expert.start(obs, key))[0],
        "exploration": noisy.act(obs, noisy.start(obs, key))[0]}
    for name, one in drawn.items():
        for other in drawn:
            if name < other:
                shared = torch.corrcoef(torch.cat([one, drawn[other]], 1).T)[:2, 2:]
                assert shared.abs().max() < 0.25, (name, other)  # five standard errors of 400 pairs


def test_rows_move_with_their_chunks():
    policy, executor = Clock(8), RecedingHorizon(4)
    state = executor.start(policy, {}, KEY)
    _, state = executor.act(policy, {"observation.state": torch.arange(3.0).reshape(3, 1, 1)}, state)
    state = put(state, torch.tensor([1]), take(state, torch.tensor([2])))
    action, _ = executor.act(policy, {"observation.state": torch.zeros(3, 1, 1)}, state)
    assert action[:, 0].tolist() == [1.0, 3.0, 3.0]


# -- what a user's own loop may hand over ----------------------------------------------------------------------------


STATE, TOP = "observation.state", "observation.images.top"
SEEN = {STATE: Feature("float32", (3,), names=("x", "y", "grip")), TOP: Feature("uint8", (16, 20, 3), "image"),
        "observation.mode": Feature("int64", (1,), "discrete", num_classes=(4,)), "action": Feature("float32", (2,))}


@pytest.fixture(scope="module")
def plays():
    policy = Policy(PolicyConfig(Regression(), trunk=MLP(8, 1), window=Window(2, 4),
                                 encoder=TokenEncoder(width=8, vision=SmallConv(channels=(8, 8), keypoints=2))), SEEN)
    return PolicyActor(policy.fit_statistics(random_dataset(SEEN)).eval(), RecedingHorizon(2), policy.image_sizes)


def looked(**changes):
    obs = {STATE: torch.ones(2, 3), TOP: torch.full((2, 16, 20, 3), 7, dtype=torch.uint8),
           "observation.mode": torch.tensor([[1], [3]])}
    return {**obs, **{{"state": STATE, "top": TOP, "mode": "observation.mode"}[k]: v for k, v in changes.items()}}


WRONG = [
    (looked(state=torch.ones(3)), "'observation.state': the policy reads numbers of shape (rows, 3), but this is "
                                  "float32 of shape (3,)\n  -> "
                                  "one robot is a batch of one: obs['observation.state'][None]"),
    (looked(state=torch.ones(2, 4)), "(rows, 3), but this is float32 of shape (2, 4)\n  -> give "
                                     "what the policy was trained to read, rows first: x, y, grip"),
    (looked(state=np.ones((2, 3), complex)), "reads numbers of shape (rows, 3), but this is complex128"),
    (looked(state=np.array([["a"] * 3] * 2)), "not an array of numbers but <U1 of shape (2, 3)"),
    (looked(state=[[1.0], [1.0, 2.0]]), "not an array of numbers but list"),
    (looked(state=None), "not an array of numbers but None"),
    (looked(mode=torch.ones(2, 1)), "'observation.mode': the policy reads integers of shape (rows, 1), but this is f"),
    (looked(top=torch.zeros(2, 3, 16, 20, dtype=torch.uint8)), "-> channels come last"),
    (looked(top=torch.zeros(2, 16, 20, 3)), "reads uint8 pixels of shape (rows, 16, 20, 3), but this is float32"),
    (looked(top=torch.zeros(2, 16, 20, 4, dtype=torch.uint8)), "16, 20, 3), but this is uint8 of shape (2, 16, 20, 4)"),
    (looked(mode=torch.ones(3, 1, dtype=torch.int64)), "it has 3 rows instead of 2"),
    (looked(state=torch.tensor([[0.0, 0, 0], [0, math.nan, 0]])),
     "row 1, observation 'observation.state': component 'y' is not finite: nan\n  -> fix"),
    (looked(state=np.array([[math.inf, 0, 0], [0, 0, math.nan]])), "row 0, observation 'observation.state': "
                                                                   "component 'x' is not finite: inf"),
    ({k: v for k, v in looked().items() if k != STATE}, "there is no column 'observation.state'; there are obser"
                                                        "vation.images.top, observation.mode\n  -> "),
    ({"observation.stat": 0, **{k: v for k, v in looked().items() if k != STATE}}, "did you mean 'observation.stat'?"),
    (torch.ones(2, 3), "obs: observations must be a dict of columns, but this is float32 of shape (2, 3)\n  -> give"),
    (None, "obs: observations must be a dict of columns, but this is None"),
]


@pytest.mark.parametrize(("obs", "words"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_observation_says_what_was_expected_what_came_and_what_to_do(plays, obs, words):
    key = keys(0, range(2))
    state = plays.start(looked(), key)
    for call in (lambda: plays.start(obs, key), lambda: plays.act(obs, state)):
        with pytest.raises(UserError) as error:
            call()
        assert words in str(error.value) and error.value.hint
        assert isinstance(error.value, NonFiniteAction) == ("finite" in words)


def test_what_can_be_read_as_it_was_trained_is_read(plays):
    """Lists, arrays of doubles, mirrored views, whole numbers and frames of another size: the very same actions."""
    key = keys(0, range(2))
    state = plays.start(looked(), key)
    action, _ = plays.act(looked(), state)
    twice = np.full((2, 32, 40, 3), 7, np.uint8)
    for obs in (looked(state=[[1.0] * 3] * 2), looked(state=np.ones((2, 3))), looked(state=np.ones((2, 3), np.float32)[
            ::-1]), looked(state=np.ones((2, 3), int)), looked(top=twice), {**looked(), "other": "text", 3: None}):
        assert torch.equal(plays.act(obs, plays.start(obs, key))[0], action)
        assert torch.equal(plays.act(obs, state)[0], action)
    with pytest.raises(UserError, match="policy.image_sizes. brings frames to the policy's size"):
        PolicyActor(plays.planner).start(looked(top=twice), key)


def test_rows_keys_and_states_have_to_belong_together(plays):
    key = keys(0, range(2))
    state = plays.start(looked(), key)
    one = {k: v[:1] for k, v in looked().items()}
    with pytest.raises(UserError, match="it has 1 rows instead of 2"):
        plays.act(one, state)
    for wrong in (0, key[:1], key.float(), [1, 2]):
        with pytest.raises(UserError, match=r"key: the keys must be int64 numbers of shape \(2,\).*\n.*keys\(seed"):
            plays.start(looked(), wrong)
    for wrong in (None, key, {}):
        with pytest.raises(UserError, match="state: the state must be what start or act returned"):
            plays.act(looked(), wrong)
    with pytest.raises(UserError, match="must be a dict of columns"):
        ObservationWrapper(plays, {"observation.goal": torch.zeros(2)}).start(torch.zeros(2, 3), key)


def test_a_plan_that_is_no_number_is_refused(plays):
    broken = copy.deepcopy(plays.planner)
    with torch.no_grad():
        next(iter(broken.net.parameters())).fill_(math.nan)
    actor, key = PolicyActor(broken, image_sizes=broken.image_sizes), keys(0, range(2))
    with pytest.raises(
        NonFiniteAction, match=r"row 0: the action is not finite: \[nan, nan\]\n.*diverged"
    ) as error:
        actor.act(looked(), actor.start(looked(), key))
    assert error.value.row == 0


def test_what_was_not_sensed_may_hold_anything():
    seen = {"observation.a": Feature("float32", (3,)), "observation.a?": Feature("bool", ()),
            "action": Feature("float32", (2,))}
    data = random_dataset({k: v for k, v in seen.items() if not k.endswith("?")})
    data = Dataset([e.replace({"observation.a?": np.arange(len(e)) % 2 == 0}) for e in data])
    actor, key = (
        PolicyActor(Policy(PolicyConfig(Regression(), trunk=MLP(8, 1)), seen).fit_statistics(data).eval()),
        keys(0, range(2)),
    )

    def did(value, sensed):
        obs = {"observation.a": torch.full((2, 3), value), "observation.a?": torch.tensor([sensed] * 2)}
        return actor.act(obs, actor.start(obs, key))[0]
    assert torch.equal(did(math.nan, False), did(5.0, False)) and not torch.equal(did(5.0, True), did(5.0, False))


# -- following demonstrations -----------------------------------------------------------------------------------------


def line(*episodes):
    """A policy that remembers episodes with these states. The action of step t of episode e is 10 e + t."""
    data = Dataset([Episode({"observation.state": np.array(states, np.float32)[:, None],
                             "action": 10 * i + np.arange(len(states), dtype=np.float32)[:, None]})
                    for i, states in enumerate(episodes)])
    config = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), codec=Normalizer("identity", "identity"),
                          window=Window(horizon=2))
    return Policy(config, data.features()).fit_statistics(data).eval()


def followed(executor, policy, *states):
    seen = [{"observation.state": torch.tensor([[[float(s)]]])} for s in states]
    state, out = executor.start(policy, seen[0], torch.tensor([1])), []
    for obs in seen:
        action, state = executor.act(policy, obs, state)
        out.append(int(action.item()))
    return out


def test_a_demonstration_is_followed_until_it_no_longer_fits():
    policy = line([0, 1, 2, 3, 4], [10, 11, 12, 13])
    follow = FollowDemonstration(ratio=3.0, min_distance=0.0)
    # It begins at a distance of 0.2, and 0.5 farther on still fits, although another step would be nearer.
    assert followed(follow, policy, 0.2, 1.5, 1.55) == [0, 1, 2]
    assert followed(follow, policy, 0.2, 1.7, 2.9) == [0, 2, 3]  # 0.7 is more than 3 * 0.2: the step at 2 is searched
    assert followed(follow, policy, 0.2, 11.2, 12.2) == [0, 11, 12]
    assert followed(FollowDemonstration(ratio=None), policy, 0, 12, 12) == [0, 1, 2]
    assert followed(FollowDemonstration(2, ratio=None), policy, 0, 12, 12) == [0, 1, 12]
    assert followed(follow, policy, 3.1, 4.1, 0) == [3, 4, 0]  # a demonstration that has ended is not left for the next
    assert [followed(replace(follow, min_distance=d), policy, 0, 1.6) for d in (0.0, 0.7)] == [[0, 2], [0, 1]]


def test_only_stored_demonstrations_can_be_followed():
    with pytest.raises(Unsupported, match="not stored in the policy"):
        FollowDemonstration().check_planner(random_batch(PolicyConfig(Regression(), trunk=SMALL))[0])
    with pytest.raises(UserError, match="where a demonstration ends"):
        FollowDemonstration().check_planner(random_batch(PolicyConfig(Neighbors(1), window=Window()))[0])


@pytest.mark.parametrize("change, said", [
    (lambda obs, noise: (None, noise), "obs is a NoneType, and not a dict of columns"),
    (lambda obs, noise: ({}, noise), "there is no column 'observation.environment_state'; there are no columns"),
    (lambda obs, noise: ({k: x[:, 0] for k, x in obs.items()}, noise), r"must be a tensor of shape \(rows, 2, 3\)"),
    (lambda obs, noise: ({k: x[..., :2] for k, x in obs.items()}, noise), r"but is a tensor of shape \(5, 2, 2\)"),
    (lambda obs, noise: ({k: x.numpy() for k, x in obs.items()}, noise), "but is a ndarray"),
    (lambda obs, noise: ({**obs, STATE: obs[STATE][:3]}, noise), r"shape \(5, 2, 3\), but is .* \(3, 2, 3\)"),
    (lambda obs, noise: (obs, None), r"noise must be a tensor of shape \(5, 4, 2\), but is a NoneType"),
    (lambda obs, noise: (obs, noise[:1]), r"noise must be .* \(5, 4, 2\), but is a tensor of shape \(1, 4, 2\)"),
    (lambda obs, noise: (obs, noise[:, :3]), r"noise must be .* but is a tensor of shape \(5, 3, 2\)")])
def test_a_plan_of_wrong_arguments_says_what_is_wrong(change, said):
    policy, batch = random_batch(flow(Window(2, 4)))
    noise = torch.randn(len(batch), *policy.noise_shape)
    obs, noise = change(dict(batch.obs), noise)
    with pytest.raises(UserError, match=f"Policy.plan.*{said}"):
        policy.plan(obs, noise)
