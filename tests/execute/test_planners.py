"""Planners of policies, on plans that say which step and which row they are for."""

from types import MappingProxyType

import pytest
import torch
from fixtures.plans import KEY, SMALL, Clock, flow, ran

from understudy.checkpoint import Scorer
from understudy.core import Feature, Unsupported, UserError, keys, normal, put, take
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.planners import (
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
from understudy.execute.wrappers import NoiseSteeringWrapper
from understudy.heads.base import RampTimes
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.nets.mlp import MLP
from understudy.policy import ClassifierFreeGuidance, Inpaint, Policy, PolicyConfig
from understudy.testing import random_batch, random_dataset

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
        best_plan = best.plan(batch.obs, noise)
        each = torch.stack([policy.plan(batch.obs, noise[:, i]) for i in range(5)], 1)
    assert torch.allclose(best_plan[:, 0, 0], each[:, :, 0, 0].amax(1), atol=1e-5)
    assert not torch.allclose(best_plan, each[:, 0])


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
        best_plan = best.plan(batch.obs, noise, (guide,))
        alone = torch.cat(
            [best.plan(take(batch.obs, r), noise[r], (guide.select_rows(r),)) for r in torch.arange(B).split(1)]
        )
    assert torch.allclose(best_plan, alone, atol=1e-4)


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
    plan = chain.plan({"observation.state": torch.full((3, 1, 1), 4.0)}, noise)
    assert plan.tolist() == [[[40.0]] * 3] * 3
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
    score = KernelDensity(bandwidth).score({}, plans, scale)
    each = torch.tensor([[((a - b) / 2).square().mean() for b in plans[0]] for a in plans[0]])
    assert torch.allclose(score[0], (-each / (2 * bandwidth**2)).exp().sum(1).log(), atol=1e-5)
    select = SampleSelector(planner, KernelDensity(bandwidth), 4)
    obs = {"observation.state": torch.zeros(3, 1, 1)}
    plan = select.plan(obs, select.noise(KEY, torch.zeros_like(KEY)))
    assert torch.equal(plan, planner.chunks[score.argmax()].expand(3, 2, 1)) and score.argmax() in (1, 2)


def test_steps_in_the_past_do_not_count():
    """The most frequent plan is 0 1 2 from the current step on."""
    planner = Choices([0.0, 0, 1, 2], [99.0, 1, 2, 9], [50.0, 0, 1, 2], [99.0, 8, 8, 8], [99.0, 7, 5, 3], ahead=-1)
    select, executor = SampleSelector(planner, KernelDensity(1.0), 5), RecedingHorizon(1, skip=1)
    obs = {"observation.state": torch.zeros(3, 1, 1)}
    assert executor.act(select, obs, executor.start(select, obs, KEY))[0].tolist() == [[0]] * 3


def test_a_factored_planner_joins_the_slices_of_its_planners():
    """Two policies of a hand each; a guide for all components reaches both, in parts."""
    schema = {"observation.state": Feature("float32", (3,)), "action": Feature("float32", (2,))}
    torch.manual_seed(0)
    settings = PolicyConfig(Flow(n_steps=2), trunk=SMALL, window=Window(1, 4), inputs=("observation.state",))
    left_policy, right = (Policy(settings, schema).fit_statistics(random_dataset(schema, seed=n)).eval()
                          for n in range(2))
    both = FactoredPlanner((left_policy, right), (slice(2, 4), slice(0, 2)))
    assert both.action_dim == 4 and both.inputs == ("observation.state",) and both.window == Window(1, 4)
    assert torch.equal(both.action_scale, torch.cat([right.action_scale, left_policy.action_scale]))
    obs, count = {"observation.state": torch.randn(3, 1, 3)}, torch.zeros_like(KEY)
    noise = both.noise(KEY, count)
    assert torch.equal(noise["0"], left_policy.noise(KEY, count)) and not torch.equal(noise["0"], noise["1"])
    guide = Inpaint(torch.randn(3, 4, 4), torch.ones(3, 4))
    with torch.no_grad():
        for guides, parts in (((), [(), ()]), ((guide,), [(Inpaint(guide.action[..., s], guide.weight),)
                                                          for s in both.slices])):
            plan = both.plan(obs, noise, guides)
            assert torch.equal(plan[..., 2:], left_policy.plan(obs, noise["0"], parts[0]))
            assert torch.equal(plan[..., :2], right.plan(obs, noise["1"], parts[1]))
    actor = PolicyActor(FixedBatch(both, 4), RealTimeChunking(2))
    action, _ = actor.act({"observation.state": obs["observation.state"][:, 0]},
                          actor.start({"observation.state": obs["observation.state"][:, 0]}, KEY))
    assert action.shape == (3, 4)
    for slices in ((slice(0, 2), slice(1, 3)), (slice(0, 3), slice(3, 4)), (slice(0, 2),)):
        with pytest.raises(UserError, match="slices"):
            FactoredPlanner((left_policy, right), slices)
    with pytest.raises(UserError, match="different windows"):
        FactoredPlanner((left_policy, Clock(5)), (slice(0, 2), slice(2, 3)))


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
    distances = torch.cdist(policy.context(obs).flat(), policy.context(stored.obs).flat())
    assert torch.equal(rows, distances.argmin(1)) and torch.allclose(distance, distances.amin(1), atol=1e-4)
    plan, is_real = retrieval.plan(obs, torch.zeros(5, 4, 0)), stored.mask[rows]
    assert torch.allclose(plan[is_real], stored.action[rows][is_real], atol=1e-4)
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
    data, obs, policies = (
        random_dataset(PLAN),
        {k: torch.randn(6, 1, *PLAN[k].shape) for k in ("observation.state", GOAL)},
        {},
    )
    for target, horizon in (("action", 4), (GOAL, 1)):
        recipe = PolicyConfig(Flow(n_steps=2), trunk=MLP(8, 1), window=Window(1, horizon), target=target,
                              inputs=("observation.state", GOAL))
        policies[target] = Policy(recipe, PLAN).fit_statistics(data).eval()
    return policies, obs


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
        subgoal = by_hand(planner.high, obs, noise["high"])
        return by_hand(planner.low, {**obs, GOAL: subgoal}, noise["low"], guides)
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
    plan = planner.plan(obs, noise)
    for row in torch.arange(6).split(1):
        one = by_hand(planner, take(obs, row), take(noise, row))
        assert torch.allclose(plan[row], one, atol=1e-4)
    # The guide of an executor reaches all that plan actions.
    guide = Inpaint(torch.arange(48.0).reshape(6, 4, 2) / 10 - 2, torch.ones(6, 4))
    plan = planner.plan(obs, noise, (guide,))
    for row in torch.arange(6).split(1):
        assert torch.allclose(plan[row], by_hand(planner, take(obs, row), take(noise, row), (guide.select_rows(row),)),
                              atol=1e-4)
    actor, current = PolicyActor(planner, RecedingHorizon(2)), {k: v[:, 0] for k, v in obs.items()}
    action, state = actor.act(current, actor.start(current, key))
    first = planner.plan(obs, planner.noise(key, key * 0))[:, 0]
    assert torch.allclose(action, first, atol=1e-4)
    moved = put(state, torch.tensor([1]), take(state, torch.tensor([4])))
    assert torch.equal(actor.act(current, moved)[0][1], actor.act(current, state)[0][4])
