"""Several conditions or policies together, and points that a person gives."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage
from understudy.core import ConfigError, Feature, Unsupported, UserError, keys
from understudy.data.augment import ConditionDropout, ModalityDropout, RandomMasking
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.raster import COLOR_OF_ROLE, map_point
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.execute.steering import (
    ComposedConditions,
    ComposedPolicies,
    LivePoints,
    PathCost,
    Steered,
    steer_actor,
)
from understudy.heads.denoising.adaflow import AdaFlow
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.guidance import LimitedCost, cost_gradient
from understudy.heads.likelihood.bins import Bins
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.heads.one_step.consistency import Consistency
from understudy.heads.one_step.mean_flow import MeanFlow
from understudy.heads.one_step.shortcut import Shortcut
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage, build_actor, build_planner, load_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.nets.mlp import MLP
from understudy.policy import ClassifierFreeGuidance, CostGuidance, Policy, PolicyConfig
from understudy.testing import check_executor, random_batch, random_dataset

KEY = torch.arange(3)


def flow(head=None, **window):
    return PolicyConfig(head or Flow(4), MLP(16), window=Window(2, 6, **window))


def net_of(values):
    """A network whose answer is what the visible columns add to x."""
    def net(x, t, context):
        return x + context
    return net, lambda *hidden: sum((v for k, v in values.items() if k not in hidden), torch.zeros(()))


def test_composed_conditions_add_what_each_changes():
    net, without = net_of({"base": torch.tensor(1.0), "goal": torch.tensor(10.0), "word": torch.tensor(100.0)})
    x = torch.randn(2, 3, 1)
    both = ComposedConditions((("goal",), ("word",)), (2.0, -0.5)).guided_net(net, without, None)
    assert torch.equal(both(x, None, None), x + (x + 1 + 2 * 10 - 0.5 * 100) - x)
    one = ComposedConditions((("goal",),), (3.0,)).guided_net(net, without, None)
    free = ClassifierFreeGuidance(("goal",), 3.0).guided_net(net, without, None)
    assert torch.equal(one(x, None, without()), free(x, None, without()))
    with pytest.raises(UserError, match="2 conditions but 1 scales"):
        ComposedConditions((("goal",), ("word",)), (1.0,))


@pytest.mark.parametrize("head", [Flow(5), Diffusion(n_steps=6, clip_sample=0)], ids=["flow", "diffusion"])
def test_two_gaussians_compose_to_the_gaussian_between(head):
    """For Gaussians of one width the weighted mean of the scores is the score of the Gaussian around the weighted mean
    of the centers, at every noise level."""
    policies = [gaussian(head, center) for center in (1.0, -3.0)]
    obs = {k: torch.randn(3, 2, f.size) for k, f in policies[0].features.items() if k != "action"}
    between, noise = gaussian(head, 0.25 * 1.0 - 0.75 * 3.0), policies[0].noise(KEY, torch.zeros_like(KEY))
    plan = ComposedPolicies(policies[0], (policies[1],), (0.25, 0.75)).plan(obs, noise)
    assert torch.allclose(plan, between.plan(obs, noise), atol=1e-4)
    assert not torch.allclose(plan, policies[0].plan(obs, noise), atol=0.1)


class Score(torch.nn.Module):
    """What `head` predicts for a Gaussian of the width 1 around `center`, of coded actions."""

    def __init__(self, head, center):
        super().__init__()
        self.head, self.center = head, center

    def forward(self, x, t, context):
        t = t.unsqueeze(-1) if t.ndim == 2 else t
        if isinstance(self.head, Flow):  # x = t a + (1 - t) e: E[a - e | x]
            variance = t**2 + (1 - t) ** 2
            return self.center + (2 * t - 1) / variance * (x - t * self.center)
        return 0.5 * x + self.center  # affine in x with one slope: all that composition needs


def gaussian(head, center):
    policy, _ = random_batch(flow(head))
    policy.net = Score(head, center)
    return policy


class Logits(torch.nn.Module):
    def __init__(self, *probabilities):
        super().__init__()
        self.logits = torch.tensor(probabilities).log() + len(probabilities)  # up to a constant

    def forward(self, x, t, context):
        return self.logits.expand(*x.shape[:2], -1)


def test_logits_of_classes_compose_as_emulated_fine_tuning():
    """A large policy has the probabilities (.5, .3, .2), a small one (.6, .2, .2), and (.2, .2, .6) after its tuning.
    At b = 1 the emulated one has (.5 / 3, .3, .2 * 3) up to their sum, 1.0667, and so (.156, .281, .5625)."""
    features = {"observation.state": Feature("float32", (2,)),
                "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    data = random_dataset(features)
    policies = [Policy(PolicyConfig(Categorical(temperature=1.0), MLP(8)), data.features()).fit_statistics(data)
                for _ in range(3)]
    for policy, probabilities in zip(policies, ((0.5, 0.3, 0.2), (0.2, 0.2, 0.6), (0.6, 0.2, 0.2)), strict=True):
        policy.net.trunk = Logits(*probabilities)
    emulated = ComposedPolicies(policies[0], tuple(policies[1:]), (1.0, 1.0, -1.0))
    n = 20_000
    plan = emulated.plan({"observation.state": torch.zeros(n, 1, 2)},
                         emulated.noise(keys(0, range(n)), torch.zeros(n, dtype=torch.int64)))
    shares = torch.bincount(plan.flatten().long(), minlength=3) / n
    torch.testing.assert_close(shares, torch.tensor([0.15625, 0.28125, 0.5625]), atol=0.015, rtol=0)  # 4 deviations
    with pytest.raises(Unsupported, match="drawn before"):
        one = Policy(PolicyConfig(Categorical(autoregressive=True), MLP(8)), data.features())
        ComposedPolicies(one, (one,), (0.5, 0.5))
    with pytest.raises(Unsupported, match="Categorical answers at once"):
        emulated.plan({"observation.state": torch.zeros(1, 1, 2)}, torch.zeros(1, *policies[0].noise_shape),
                      (ClassifierFreeGuidance(("observation.state",)),))


def test_composed_policies_read_what_each_reads():
    first, _ = random_batch(replace(flow(), inputs=("observation.state",)))
    second, batch = random_batch(replace(flow(), inputs=("observation.still",)))
    composed = ComposedPolicies(first, (second,), (0.5, 0.5))
    assert composed.inputs == ("observation.state", "observation.still") and set(composed.inputs) <= set(
        composed.features)
    obs = {**batch.obs, "observation.state": torch.randn(len(batch), 2, 3)}
    noise = composed.noise(torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.int64))
    plan = composed.plan(obs, noise)
    for name in composed.inputs:
        assert not torch.allclose(composed.plan({**obs, name: obs[name] + 1}, noise), plan, atol=1e-4)
    assert torch.allclose(FixedBatch(composed, 2).plan(obs, noise), plan, atol=1e-5)
    alone = ComposedPolicies(first, (second,), (1.0, 0.0)).plan(obs, noise)
    assert torch.allclose(alone, first.plan({"observation.state": obs["observation.state"]}, noise), atol=1e-6)


def test_policies_that_do_not_fit_are_refused():
    policy, _ = random_batch(flow())
    other, _ = random_batch(flow(Flow(5)))
    for others, weights, message in (((policy,), (1.0,), "2 policies but 1 weights"),
                                     ((other,), (0.5, 0.5), "policy 1 has another head")):
        with pytest.raises(UserError, match=message):
            ComposedPolicies(policy, others, weights)
    for name, change in (("offset", 5.0), ("scale", 1.0)):  # actions that are all larger, and a wider range
        moved = copy.deepcopy(policy)
        getattr(moved.codec.action_transform, name).add_(change)
        with pytest.raises(UserError, match=f"policy 1 is another action .* have the {name} "):
            ComposedPolicies(policy, (moved,), (0.5, 0.5))
    close = copy.deepcopy(policy)
    close.codec.action_transform.offset.add_(5e-4 * close.action_scale)
    ComposedPolicies(policy, (close,), (0.5, 0.5))
    for options, message in (({"target": "zscore"}, "have the"), ({"relative": "observation.state",
                           "components": ((0, 0),)}, "coded with relative='observation.state' and not None")):
        relative, _ = random_batch(replace(flow(), codec=Normalizer(**options)))
        with pytest.raises(UserError, match=message):
            ComposedPolicies(policy, (relative,), (0.5, 0.5))
    plain, _ = random_batch(flow(Regression()))
    with pytest.raises(Unsupported, match="one step"):
        ComposedPolicies(plain, (plain,), (0.5, 0.5))
    with pytest.raises(UserError, match="has no module 'weak'"):
        ComposedPolicies(others=("weak",), weights=(0.5, 0.5)).over(policy, {"policy": policy})


@pytest.mark.parametrize("weights, hint", [((1.0, 1.0), r"use \(0.5, 0.5\)"), ((3.0, 1.0), r"use \(0.75, 0.25\)"),
                                           ((math.nan, 1.0), "two policies"), ((1.0, -1.0), "two policies")])
def test_weights_that_are_no_average_are_refused(weights, hint):
    policy, _ = random_batch(flow())
    with pytest.raises(ConfigError, match=hint):
        ComposedPolicies(others=("policy",), weights=weights).over(policy, {"policy": policy})


@pytest.mark.parametrize("guide", [ClassifierFreeGuidance(("observation.goal",), 2.0),
                                   ComposedConditions((("observation.goal",),), (2.0,))], ids=["free", "composed"])
def test_guidance_needs_a_policy_that_was_trained_without_the_column(guide):
    inputs = ("observation.state", "observation.goal")
    plain, batch = random_batch(replace(flow(), inputs=inputs))
    noise = plain.noise(torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.int64))
    with pytest.warns(UserWarning, match="not trained without observation.goal"):
        plain.plan(batch.obs, noise, (guide,))
    for change in (ConditionDropout("observation.goal"), ModalityDropout(inputs), RandomMasking(inputs)):
        policy, _ = random_batch(replace(flow(), inputs=inputs, augmentations=(change,)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy.plan(batch.obs, noise, (guide,))
    blind, batch = random_batch(replace(flow(), inputs=("observation.state",)))
    with pytest.raises(UserError, match="does not read the column 'observation.goal'"):
        blind.plan(batch.obs, noise, (guide,))


@pytest.mark.parametrize("config", [ComposedPolicies(others=("policy",), weights=(0.5, 0.5)),
                                    Steered(points=((0.3, 0.4),))])
def test_they_keep_the_contract(config):
    check_executor(RecedingHorizon(2), flow(), inference=(config,))


def test_the_cost_of_a_path():
    points, start = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.5]])
    action = torch.tensor([[[9.0, 1.0, 0.0], [9.0, 1.0, 1.0]]])  # the first component moves something else
    cost = PathCost(points, start, (1, 2), 0.5, 4.0).cost(action, None, lambda x: x)
    # positions (0.5, 0.5) and (1, 1): squared distances to the nearest point 0.5 and 0
    assert cost.tolist() == pytest.approx([0.5 * 4 * 0.25])
    still = PathCost(points, start, (1, 2), None, 1.0).cost(action, None, lambda x: x)  # (1, 0) and (1, 1)
    assert still.tolist() == pytest.approx([0.5 * 0.5])
    future = PathCost(points, torch.zeros(1, 2), (1, 2), 0.5, 4.0, skip=1).cost(action, None, lambda x: x)
    # the first action has been executed, so that the second one moves from (0, 0) to (0.5, 0.5)
    assert future.tolist() == pytest.approx([0.5 * 4 * 0.5])
    policy, _ = random_batch(flow())
    for options, message in (({"points": ((1.0,),)}, "needs 2 numbers"), ({"column": "nowhere"}, "does not read"),
                             ({"components": (0, 7)}, "share"), ({"points": ()}, "there are no points")):
        with pytest.raises(UserError, match=message):
            Steered(policy, **{"points": ((1.0, 2.0),), **options})
    with pytest.raises(UserError, match="Bins answers at once"):  # and not at the first click
        Steered(random_batch(PolicyConfig(Bins(3)))[0], LivePoints())


@pytest.mark.parametrize("points", [(0.6, 0.45), ("ab",), (None,), ((0.6, math.nan),), (((0.1, 0.2), (0.3, 0.4)),)])
def test_what_are_no_points_is_refused(points):
    with pytest.raises(UserError, match="every (point|number)"):
        LivePoints().set(*points)
    with pytest.raises(UserError, match="every (point|number)"):
        Steered(random_batch(flow())[0], points)


@pytest.mark.parametrize("head", [Flow(10), Flow(3), Flow(1), Shortcut(), MeanFlow(), AdaFlow(), Diffusion()],
                         ids=lambda head: f"{type(head).__name__}-{head.n_steps}")
def test_the_strength_of_steering_saturates(head):
    """The guidance goes to the point at most. A network that enlarges what it is given made each step overshoot more
    than the one before, up to actions of 600000 where the demonstrations are near 1."""
    policy, batch = random_batch(flow(head))

    class Enlarges(torch.nn.Module):
        def forward(self, x, t, context):
            out = 2.0 * x  # the estimate of the clean action moves three times as far as the noisy one
            return torch.cat([out, torch.zeros_like(x[..., :1])], -1) if isinstance(head, AdaFlow) else out
    policy.net = Enlarges() if not isinstance(head, Diffusion) else policy.net
    obs, noise = {k: x.float() for k, x in batch.obs.items()}, torch.randn(len(batch), *policy.noise_shape)
    point = policy.decode(torch.full((1, 6, 2), 0.5), obs)[0, 0].tolist()
    errors = []
    for scale in (0.0, 20.0, 1e3, 1e6):
        coded = policy.encode(Steered(policy, (tuple(point),), scale=scale).plan(obs, noise), obs)
        errors.append((coded - 0.5).square().mean().sqrt().item())
    assert max(errors[1:]) < errors[0], errors
    assert errors[3] == pytest.approx(errors[2], rel=1e-2), errors


def test_a_weak_cost_is_not_limited():
    x, distances = torch.ones(2, 3, 2), torch.tensor([1.0, 5.0]).reshape(2, 1, 1)

    def cost(scale):
        return lambda action: 0.5 * scale * action.square().sum((1, 2))
    for scale, factor in ((0.1, 0.1), (1.0, 1.0), (20.0, 1.0)):  # a factor of 1 leads to the cost 0
        limited = cost_gradient(LimitedCost(cost(scale)), lambda y: y, distances * x)
        assert torch.allclose(limited, factor * distances * x)
    assert torch.allclose(cost_gradient(cost(20.0), lambda y: y, x), 20 * x)
    assert not cost_gradient(LimitedCost(cost(1.0)), lambda y: y, 0 * x).any()


@pytest.mark.parametrize("options", [{"scale": -1.0}, {"scale": math.nan}, {"scale": math.inf}, {"step": math.nan},
                                     {"points": ((math.nan, 0.0),)}, {"points": ((0.0, math.inf),)}])
def test_numbers_that_cannot_steer_are_refused(options):
    policy, _ = random_batch(flow())
    for build in (Steered, lambda **given: Steered(policy, **given)):
        with pytest.raises(ConfigError, match=next(iter(options))):
            build(**{"points": ((0.5, 0.5),), **options})


@pytest.mark.parametrize("step", [0.5, None], ids=["motion", "position"])
def test_past_actions_of_a_chunk_are_not_steered(step):
    """The last observation is where the executed actions have led. Only later actions move from there."""
    policy, batch = random_batch(flow(action_offset=-2))
    obs, noise = {k: x.float() for k, x in batch.obs.items()}, torch.randn(len(batch), *policy.noise_shape)
    executor_guides = []

    class Records(Policy):
        def plan(self, obs, noise, guides=()):
            executor_guides.extend(guides)
            return super().plan(obs, noise, guides)
    policy.__class__ = Records
    Steered(policy, ((1.0, 2.0),), step=step).plan(obs, noise)
    coded = torch.randn(len(batch), 6, policy.action_dim)
    future = policy.decode(coded, obs)[:, 2:]
    now = obs["observation.state"][:, -1, :2].unsqueeze(1)
    at = future if step is None else torch.stack([now[:, 0] + step * future[:, : k + 1].sum(1) for k in range(4)], 1)
    expected = 0.5 * (at - torch.tensor([1.0, 2.0])).square().sum(-1).mean(1)
    costs = executor_guides[0].cost(coded, None, lambda x: policy.decode(x, obs))
    assert costs.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("window", [{"action_offset": 1}, {"action_offset": -6}])
def test_chunks_without_the_current_step_are_not_steered(window):
    with pytest.raises(UserError, match="do not contain the current step"):
        Steered(random_batch(flow(**window))[0], ((1.0, 2.0),))


# -- a learned scorer -------------------------------------------------------------------------------------------------


def test_live_points_steer_from_the_next_plan_on_until_they_are_cleared():
    policy, batch = random_batch(flow())
    obs, noise = {k: x.float() for k, x in batch.obs.items()}, torch.randn(len(batch), *policy.noise_shape)
    points = LivePoints()
    live = Steered(policy, points, scale=20.0)
    plain = policy.plan(obs, noise)
    assert torch.equal(live.plan(obs, noise), plain)
    for drawn in (((1.0, 2.0),), ((0.0, 0.0), (1.0, -1.0))):
        points.set(*drawn)
        steered = live.plan(obs, noise)
        assert torch.equal(steered, Steered(policy, drawn, scale=20.0).plan(obs, noise))
        assert not torch.allclose(steered, plain, atol=1e-3)
    points.clear()
    assert torch.equal(live.plan(obs, noise), plain)
    points.set((1.0,))
    with pytest.raises(UserError, match="needs 2 numbers"):
        live.plan(obs, noise)
    with pytest.raises(UserError, match="must be finite"):
        replace(live, points=lambda: ((math.nan, 0.0),)).plan(obs, noise)


@dataclass(frozen=True)
class TowardsOne(CostGuidance):
    scale: float
    through_network: bool = False

    def cost(self, coded_action, encode, decode):
        return 0.5 * self.scale * (coded_action - 1).square().sum((1, 2))


class LinearVelocity(torch.nn.Module):
    """The velocity -0.8 x + 0.5."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, context):
        self.calls.append(x.requires_grad)
        return -0.8 * x + 0.5


@pytest.mark.parametrize("through_network", [False, True])
def test_a_gradient_that_stops_at_the_network_steps_as_flowchef(through_network):
    """FlowChef's algorithm, with the rate s for the cost |clean - 1|^2 / 2: at each of N Euler steps,
    clean = x + (1 - t) v, then x <- x - s (clean - 1), then x <- x + v / N with the v from before. Guidance weights of
    at most 2 are constant. The step of a guided velocity is weight * scale / N, which is s. Through the network, the
    gradient has the further factor 1 - 0.8 (1 - t)."""
    policy, _ = random_batch(flow(Flow(5, max_guidance_weight=2.0)))
    policy.net, rate = LinearVelocity(), 0.3
    obs = {k: torch.randn(3, 2, f.size) for k, f in policy.features.items() if k != "action"}
    noise = policy.noise(KEY, torch.zeros_like(KEY))
    plan = policy.plan(obs, noise, (TowardsOne(rate * 5 / 2, through_network),))
    x = noise.double().numpy()
    for k in range(5):
        velocity = -0.8 * x + 0.5
        clean = x + (1 - k / 5) * velocity
        x = x - rate * (clean - 1) * (1 - 0.8 * (1 - k / 5) if through_network else 1) + velocity / 5
    assert torch.allclose(policy.encode(plan, obs), torch.tensor(x).float(), atol=1e-5)
    assert policy.net.calls == [False, True] * 5 if through_network else policy.net.calls == [False] * 5


@pytest.mark.parametrize("head", [Flow(4), Flow(4, prediction="sample"), Diffusion(n_steps=4), EDM(n_steps=4),
                                  Consistency(n_steps=2), Shortcut(), MeanFlow()], ids=lambda head: type(head).__name__)
def test_a_gradient_that_stops_at_the_network_guides_every_head_towards_a_lower_cost(head):
    policy, batch = random_batch(flow(head))
    noise = policy.noise(torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.int64))
    costs = [TowardsOne(1.0).cost(policy.encode(policy.plan(batch.obs, noise, guides), batch.obs), None, None)
             for guides in ((), (TowardsOne(0.1),))]
    assert (costs[1] < costs[0]).all()


def test_steering_passes_on_that_the_gradient_stops_at_the_network():
    policy, batch = random_batch(flow())
    policy.net = LinearVelocity()
    noise = policy.noise(torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.int64))
    Steered(policy, ((1.0, 2.0),), through_network=False).plan(batch.obs, noise)
    assert policy.net.calls == [False] * 4


def test_an_actor_is_steered_inside_what_wraps_it():
    policy, _ = random_batch(flow())
    actor = ObservationWrapper(PolicyActor(policy, RecedingHorizon(2)), {"observation.extra": torch.zeros(1)})
    points = LivePoints()
    steered = steer_actor(actor, points, scale=3.0).actor.planner
    assert isinstance(steered, Steered) and steered.points is points and steered.scale == 3.0
    with pytest.raises(Unsupported, match="does not plan"):
        steer_actor(make("fork").expert(), points)


@pytest.mark.parametrize("name", ["fork", "particle", "push", "push-images"])
def test_a_click_on_what_an_action_moves_is_its_position(name):
    """The picture and the map agree, and the map says which components move and how far."""
    env = make(name, 1)
    for number in range(3):
        obs = env.reset(torch.tensor([0]), torch.tensor([number]))
        control = env.map()["control"]
        at = obs[control["column"]][0, list(control["components"])]
        image = env.frame(0).astype(int)
        down, across = np.nonzero((np.abs(image - COLOR_OF_ROLE["agent"]) < 3).all(2))
        point = map_point(env.map(), (across.mean() + 0.5) / image.shape[1], (down.mean() + 0.5) / image.shape[0])
        assert point == pytest.approx(at.tolist(), abs=0.01)
        if control["step"] is not None:
            action = torch.zeros(1, *env.features["action"].shape)
            action[0, control["components"][0]] = 0.2 if at[0] < 0.5 else -0.2
            moved = env.step(action).obs[control["column"]][0, list(control["components"])] - at
            assert moved.tolist() == pytest.approx((control["step"] * action[0]).tolist(), abs=1e-5)


@pytest.mark.slow
def test_a_drawn_path_chooses_the_way_around_the_pillar():
    env = make("fork", 50)
    data = rollout(env.expert(), env, 50, recording_seed(0))
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=50)
    method = Method(PolicyConfig(Flow(), MLP(64, 2), window=Window(1, 8)), RecedingHorizon(4),
                    BehaviorCloning(2000, 64, optimizer=optimizer))
    policy = fit_method(method, data, 0).policy
    sides = {}
    for name, side in (("none", 0.0), ("left", 1.0), ("right", -1.0)):
        drawn = ((0.3, 0.25 * side), (0.6, 0.45 * side), (0.9, 0.25 * side), (1.2, 0.0))
        steering = (Steered(points=drawn, step=0.1, scale=20.0),) if side else ()
        steered_method = replace(method, inference=steering)
        evaluation = evaluate(build_actor(steered_method, {"policy": policy}), env, 50)
        ways = [float(e.steps["observation.state"][len(e) // 2, 1]) > 0 for e in evaluation.episodes]
        sides[name] = sum(ways) / len(ways), float(evaluation.successes.mean())
    assert 0.2 < sides["none"][0] < 0.8
    assert sides["left"][0] > 0.9 and sides["right"][0] < 0.1
    assert min(s for _, s in sides.values()) > 0.8
    assert build_planner(method, {"policy": policy}) is policy


def test_a_stage_trains_the_other_policy(tmp_path):
    env = make("fork", 4)
    data = rollout(env.expert(), env, 6, recording_seed(0))
    alone = Method(flow(), RecedingHorizon(2), BehaviorCloning(3))
    composed = replace(alone, stages=(Stage("other", alone),),
                       inference=(ComposedPolicies(others=(FromStage("other"),), weights=(0.5, 0.5)),))
    train(composed, data, tmp_path / "run", device="cpu", progress=False, val_fraction=0.0)
    planner = load_actor(tmp_path / "run").planner
    assert isinstance(planner, ComposedPolicies) and planner.weights == (0.5, 0.5)
    assert isinstance(planner.others[0], Policy) and planner.others[0] is not planner.planner
