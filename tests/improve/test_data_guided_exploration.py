"""Noise along what demonstrations did differently from the policy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.collections import fork

from understudy.core import Unsupported, keys
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.data_guided_exploration import DataGuidedExploration, ZeroMeanGaussian, deviations
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection, check_head

STATE = "observation.state"
SMALL = DataGuidedExploration(MLP(16, 1, dropout=0.5), n_updates=3)
ALONG, ACROSS = ((0.5, 0.4), (0.4, 0.5)), ((0.2, -0.1), (-0.1, 0.1))  # covariances left and right of 0


@pytest.fixture(scope="module")
def training():
    """Demonstrations with a known covariance around a policy, whose actions have other units than its codec."""
    rng = np.random.default_rng(0)
    state = rng.uniform(-1, 1, (4000, 1)).astype("float32")
    noise = np.where(state < 0, *(rng.multivariate_normal((0, 0), c, len(state)) for c in (ALONG, ACROSS)))
    config = PolicyConfig(Regression(), MLP(8, 1), codec=Normalizer(target="minmax"))
    plain = Dataset([Episode({STATE: state, "action": 3 * noise.astype("float32")})])
    policy = Policy(config, plain.features()).fit_statistics(plain).eval()
    with torch.no_grad():
        plan = policy.plan({STATE: torch.from_numpy(state)[:, None]}, torch.zeros(len(state), 1, 0))[:, 0]
    shown = plan.numpy() + policy.action_scale.numpy() * noise.astype("float32")
    data = Dataset([Episode({STATE: state, "action": shown})])
    return SimpleNamespace(data=data, seed=0, n_updates=30, learner=SimpleNamespace(trained_policy=policy),
                           processes=SimpleNamespace(count=1)), noise


def test_deviations_are_demonstrated_minus_planned_actions_in_coded_units(training):
    training, noise = training
    deviation = deviations(training.learner.trained_policy, training.data)[0].steps["deviation"]
    np.testing.assert_allclose(deviation, noise, atol=1e-5)


def test_plans_of_a_policy_in_training_have_no_dropout(training):
    training, _ = training
    config = PolicyConfig(Regression(), MLP(8, 1, dropout=0.5))
    policy = Policy(config, training.data.features()).fit_statistics(training.data).train()
    first, second = (deviations(policy, training.data)[0].steps["deviation"] for _ in range(2))
    assert np.array_equal(first, second) and policy.training


def test_a_covariance_that_depends_on_the_state_is_recovered(training):
    training, _ = training
    policy = DataGuidedExploration(MLP(64, 1), 400).noise_policy(training)
    for state, covariance in ((-0.5, ALONG), (0.5, ACROSS)):
        obs = {STATE: torch.full((20_000, 1, 1), state)}
        draws = policy.plan(obs, torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0)))[:, 0]
        np.testing.assert_allclose(draws.mean(0), 0, atol=0.02)
        np.testing.assert_allclose(np.cov(draws.T.numpy()), covariance, atol=0.06)


def test_the_density_is_that_of_a_gaussian_with_the_covariance_of_the_samples():
    config = PolicyConfig(ZeroMeanGaussian(), MLP(8, 1))
    check_head(config)
    data = Dataset([Episode({STATE: np.ones((5, 1), "f"), "action": np.eye(5, 2, dtype="f")})])
    policy = Policy(config, data.features()).fit_statistics(data).eval()
    context, action = policy.context({STATE: torch.ones(3, 1, 1)}), torch.randn(3, 1, 2)
    factor = policy.config.head.factor(policy.net, context, action)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(2), scale_tril=factor)
    torch.testing.assert_close(policy.log_prob(context, action, torch.ones(3, 1, dtype=torch.bool)),
                               gaussian.log_prob(action))


def test_noise_decays_and_the_deployed_actor_acts_as_before(training):
    training, _ = training
    env, policy = fork(), training.learner.trained_policy
    actor, obs, key = PolicyActor(policy), {STATE: torch.zeros(3, 1)}, keys(0, range(3))
    plan = actor.act(obs, actor.start(obs, key))[0]

    def noise(decay, scale=1.0):
        size = scale * policy.action_scale
        exploring = DataGuidedExploration(MLP(16, 1), 1, decay).build(actor, env, training)
        return (exploring.act(obs, exploring.start(obs, key))[0] - plan) / size
    torch.testing.assert_close(noise(30.0 / np.log(4), 0.25), noise(1e9), atol=1e-5, rtol=1e-4)
    assert torch.equal(actor.act(obs, actor.start(obs, key))[0], plan)
    still = training.data.map(lambda e: e.replace({"action": np.zeros_like(e.steps["action"])}))
    small = SimpleNamespace(**{**vars(training), "data": still})
    exploring = DataGuidedExploration(MLP(16, 1), 1, 1e9).build(actor, env, small)
    assert exploring.act(obs, exploring.start(obs, key))[0].abs().max() == 1  # the limit of the environment


def test_a_collection_resumes_exactly():
    env = fork(4)
    data = rollout(env.expert(), env, 4, recording_seed(0))
    policy = PolicyConfig(SquashedGaussian(), MLP(8, 1), codec=Normalizer(target="minmax"))
    rounds = CollectionRounds(2, RolloutCollector(2, SMALL), updates=PerNewStep(0.25), initial_updates=2)
    check_collection(Method(policy, learner=BehaviorCloning(steps=10, batch_size=8), collection=rounds), data, fork)


def test_several_processes_are_refused():
    with pytest.raises(Unsupported, match="by one process\n  -> train with one process"):
        SMALL.build(None, None, SimpleNamespace(processes=SimpleNamespace(count=2)))
