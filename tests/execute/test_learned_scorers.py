"""Plans that a learned scorer guides."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import erfi

from understudy.checkpoint import FromStage, Scorer
from understudy.core import ConfigError, Context, Unsupported, UserError
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.bidirectional import BidirectionalDecoding
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import BestOfN, Hierarchical, InverseDynamicsPlanner
from understudy.execute.steering import (
    ComposedPolicies,
    ScorerGuided,
)
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.guidance import EnergyCost
from understudy.heads.likelihood.regression import Regression
from understudy.heads.paths import edm_scales
from understudy.heads.solvers import DPMSolverPP, Midpoint
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import Inpaint, PolicyConfig
from understudy.testing import random_batch


def flow(head=None, **window):
    return PolicyConfig(head or Flow(4), MLP(16), window=Window(2, 6, **window))


MU, S = 0.1, 0.4  # actions are from N(MU, S^2)


def exact_net(head):
    """The best possible network of a head for the actions of N(MU, S^2)."""
    def net(x, t, context):
        alpha, sigma = head.path.alpha_sigma(t) if not isinstance(head, Flow) else (t, 1 - t)
        skip, out, scale = edm_scales(sigma, head.sigma_data) if isinstance(head, EDM) else (0.0, 1.0, 1.0)
        x = x / scale
        clean = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
        if isinstance(head, EDM):
            return (clean - skip * x) / out
        return (clean - x) / sigma if isinstance(head, Flow) else (x - alpha * clean) / sigma
    return net


def guided(head, energy):
    """Mean and standard deviation of the guided plans, which are linear in the noise."""
    noise = torch.tensor([-1.0, 0.0, 1.0]).double().reshape(3, 1, 1)
    context = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))
    low, middle, high = head.sample(exact_net(head), context, noise, EnergyCost(energy)).flatten().tolist()
    assert middle == pytest.approx((low + high) / 2, abs=1e-6)
    return middle, (high - low) / 2


SMOOTH = (Diffusion(250, n_train_steps=1000, clip_sample=0.0), Flow(60, Midpoint()), EDM(250, DPMSolverPP()),
          Diffusion(100, DPMSolverPP(), n_train_steps=1000, clip_sample=0.0))


@pytest.mark.parametrize("head", SMOOTH, ids=lambda head: f"{type(head).__name__}-{type(head.solver).__name__}")
def test_energies_reweight_the_plans_of_a_gaussian(head):
    """A linear score shifts the mean by slope * S^2. For a quadratic log-likelihood -(a - c)^2 / (2 T^2), the guided
    flow is linear: with r = S / T it ends at N(MU + (c - MU) r exp(-r^2 / 2) sqrt(pi / 2) erfi(r / sqrt(2)),
    S^2 exp(-r^2)), which approaches Bayes' posterior for a wide likelihood."""
    assert guided(head, lambda a: -2.0 * a.sum((1, 2))) == pytest.approx((MU + 2 * S**2, S), abs=0.02)
    for T in (0.8, 0.4):
        r = S / T
        gain = r * math.exp(-(r**2) / 2) * math.sqrt(math.pi / 2) * erfi(r / math.sqrt(2))
        moments = guided(head, lambda a, T=T: 0.5 * ((a - 0.7) / T).square().sum((1, 2)))
        assert moments == pytest.approx((MU + (0.7 - MU) * gain, S * math.exp(-(r**2) / 2)), abs=0.02)
        if T == 0.8:
            posterior = 1 / (1 / S**2 + 1 / T**2)
            assert moments == pytest.approx((posterior * (MU / S**2 + 0.7 / T**2), math.sqrt(posterior)), abs=0.04)


@pytest.mark.parametrize("head", [Diffusion(clip_sample=0.0), Flow(), EDM(), EDM(solver=DPMSolverPP())], ids=str)
def test_energies_have_the_same_strength_in_few_and_in_many_steps(head):
    few, many = (guided(replace(head, n_steps=n), lambda a: -2.0 * a.sum((1, 2)))[0] for n in (10, 40))
    assert few - MU == pytest.approx(2 * S**2, rel=0.3) and many - MU == pytest.approx(2 * S**2, rel=0.1)


class Classifier(Scorer):
    """Log-probability that a plan passes on one side, by a small network over position and plan."""

    inputs, features = ("observation.state",), {}

    def __init__(self, side=1.0, horizon=8):
        super().__init__()
        self.side = side
        self.layers = torch.nn.Sequential(torch.nn.Linear(2 + 2 * horizon, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))

    def forward(self, obs, plan):
        features = torch.cat([obs["observation.state"][:, -1, :2].to(plan), plan.flatten(1)], -1)
        return torch.nn.functional.logsigmoid(self.side * self.layers(features).squeeze(-1))

    def save(self, folder):
        raise NotImplementedError

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        raise NotImplementedError


@pytest.mark.parametrize("head", [Flow(4), Diffusion(4), EDM(4)], ids=lambda head: type(head).__name__)
def test_a_scorer_guides_each_row_by_its_own_observation(head):
    torch.manual_seed(0)
    policy, batch = random_batch(flow(head))
    obs, noise = {k: x.float() for k, x in batch.obs.items()}, torch.randn(len(batch), *policy.noise_shape)
    scorer = Classifier(horizon=6)

    def plan(scale, rows=slice(None), guides=()):
        here = {k: v[rows] for k, v in obs.items()}
        return ScorerGuided(policy, scorer, scale).plan(here, noise[rows], guides)

    def score(plans):
        return scorer(obs, plans).mean()
    torch.testing.assert_close(plan(0.0), policy.plan(obs, noise))
    assert score(plan(-5.0)) < score(plan(0.0)) < score(plan(5.0))
    torch.testing.assert_close(plan(5.0, slice(1, 3)), plan(5.0)[1:3])
    inpaint = Inpaint(torch.zeros_like(plan(0.0)), torch.ones(len(batch), 6))
    torch.testing.assert_close(plan(0.0, guides=(inpaint,)), policy.plan(obs, noise, (inpaint,)))
    twice = ScorerGuided(ScorerGuided(policy, scorer, 2.0), scorer, 3.0).plan(obs, noise)
    torch.testing.assert_close(twice, plan(5.0))


def test_scorers_that_cannot_guide_are_refused():
    policy, batch = random_batch(flow(Regression()))
    with pytest.raises(Unsupported, match="answers at once"):
        ScorerGuided(policy, Classifier(horizon=6)).plan(batch.obs, torch.zeros(len(batch), *policy.noise_shape))
    with pytest.raises(UserError, match="no module 'critic'"):
        ScorerGuided().over(policy, {"policy": policy})
    with pytest.raises(ConfigError, match="scale"):
        ScorerGuided(scale=math.inf)


@pytest.mark.parametrize(("build", "field", "kind"), [
    (ScorerGuided, "scorer", "Scorer"), (BestOfN, "scorer", "Scorer"),
    (Hierarchical, "high", "Planner"), (InverseDynamicsPlanner, "high", "Planner"),
    (BidirectionalDecoding, "weak", "Planner"), (ComposedPolicies, "others", "Policy")])
def test_planners_refuse_what_is_no_module_when_they_are_made(build, field, kind):
    def holds(module):
        return build(others=(module,), weights=(0.5, 0.5)) if field == "others" else build(**{field: module})
    for good in ("name", FromStage("stage")):
        holds(good)
    for bad, name in ((3, "int"), (None, "None")):
        if build is BidirectionalDecoding and bad is None:  # without a weaker policy
            continue
        refused = rf"{build.__name__}\.{field}: {name} is not a {kind}\n  -> name a {kind}"
        with pytest.raises(ConfigError, match=refused):
            holds(bad)


def test_planners_in_planners_are_filled_in():
    """Each name is looked up once. What is missing is said before anything is planned."""
    policy, high = (random_batch(replace(flow(), window=Window(2, n)))[0] for n in (6, 2))
    modules = {"policy": policy, "high": high, "value": Classifier(horizon=2)}
    built = Hierarchical(BestOfN("high", "value", 3), as_key="observation.still").over(policy, modules)
    assert built == Hierarchical(BestOfN(high, modules["value"], 3), policy, "observation.still")
    with pytest.raises(UserError, match="BestOfN.planner: the checkpoint has no module 'low'; it has policy, high"):
        Hierarchical(BestOfN("low", "value")).over(policy, modules)
    with pytest.raises(ConfigError, match="Hierarchical.high: there is no module"):
        Hierarchical(FromStage("high")).over(policy, modules)
    with pytest.raises(ConfigError, match="BestOfN.planner: there is no module"):
        Hierarchical(BestOfN(scorer="value")).over(policy, modules)
    with pytest.raises(ConfigError, match="BestOfN.planner: it changes another planner already"):
        BestOfN("high", "value").over(policy, modules)
    with pytest.raises(ConfigError, match="BestOfN.scorer: Policy is not a Scorer"):
        BestOfN(scorer="high").over(policy, modules)


@pytest.mark.slow
def test_a_classifier_of_the_side_chooses_the_way_around_the_pillar():
    env = make("fork", 50)
    data = rollout(env.expert(), env, 50, recording_seed(0))
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=50)
    method = Method(PolicyConfig(Diffusion(prediction="sample"), MLP(64, 2), window=Window(1, 8)), RecedingHorizon(4),
                    BehaviorCloning(2000, 64, optimizer=optimizer))
    policy = fit_method(method, data, 0).policy
    episodes = [(e.steps["observation.state"], e.steps["action"]) for e in data]
    windows = [(at[t], action[t:t + 8], at[len(action) // 2, 1]) for at, action in episodes
               for t in range(len(action) - 8)]
    state, plan, middle = (torch.tensor(np.stack(x)).float() for x in zip(*windows, strict=True))
    torch.manual_seed(0)
    classifier = Classifier()
    steps = torch.optim.Adam(classifier.parameters(), 1e-2)
    for _ in range(200):
        classifier.side = middle.sign()
        loss = -classifier({"observation.state": state.unsqueeze(1)}, plan).mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    sides = {}
    for name, side in (("none", 0.0), ("left", 1.0), ("right", -1.0)):
        classifier.side = side
        guided_method = replace(method, inference=(ScorerGuided(scorer=classifier, scale=4.0),) if side else ())
        evaluation = evaluate(build_actor(guided_method, {"policy": policy}), env, 50)
        ways = [float(e.steps["observation.state"][len(e) // 2, 1]) > 0 for e in evaluation.episodes]
        sides[name] = sum(ways) / len(ways), float(evaluation.successes.mean())
    assert 0.2 < sides["none"][0] < 0.8
    assert sides["left"][0] > 0.9 and sides["right"][0] < 0.1
    assert min(s for _, s in sides.values()) > 0.8
