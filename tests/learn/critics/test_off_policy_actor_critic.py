"""The off-policy actor-critic, alone and with data collection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.centers import Center, Skilled
from fixtures.learning import call_step

from understudy.core import DataError, Feature, Unsupported, UserError, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.base import HasExpert, StepResult
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import (
    CollectionRounds,
    GaussianExploration,
    RolloutCollector,
    SupervisorLabels,
)
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.train import train
from understudy.methods.interaction.td3_bc import td3_bc
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_env, check_learner

STATE = "observation.state"
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
SMALL = TD3(steps=600, batch_size=64, optimizer=CONSTANT, critic=CriticConfig((32, 32)), target_noise=0.05)


class Follow(HasExpert):
    """One step: the reward is minus the squared distance of the action to sin(3 s). Optimum: return 0, by `Expert`."""

    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}

    def __init__(self, rows=1):
        self.rows = rows
        self.metadata = {"env": "follow", "version": 1, "fps": 10, "limit": 1, "success": None, "low": -1.0,
                         "high": 1.0}
        self.state = torch.zeros(rows, 1)

    def reset(self, which, key):
        self.state[which] = 2 * uniform(key, torch.zeros_like(key), (1,)).float() - 1
        return {STATE: self.state.clone()}

    def step(self, action):
        reward = -(action.clamp(-1, 1) - torch.sin(3 * self.state)).square().sum(1)
        ended = torch.ones(self.rows, dtype=torch.bool)
        return StepResult({STATE: self.state.clone()}, reward, ended, torch.zeros_like(ended))

    def expert(self):
        return Expert()


@dataclass(frozen=True)
class Expert(Actor):
    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        return torch.sin(3 * obs[STATE]), state


def policy_config(head=None, **window) -> PolicyConfig:
    return PolicyConfig(head or Regression(), MLP(32, 1), window=Window(**window))


def test_the_environment_of_these_tests():
    check_env(Follow)
    assert evaluate(Follow(20).expert(), Follow(20), 20).returns.estimate == 0


def test_it_keeps_the_contract_of_learners():
    check_learner(replace(SMALL, batch_size=8, target_noise=0.2, bc_weight=0.4), (
        PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),
        PolicyConfig(Flow(n_steps=2), MLP(16, 1), window=Window(2, 3), inputs=(STATE,))))


def test_targets_are_rewards_and_the_value_of_what_follows():
    """With a target critic that says 10 everywhere, in closed form."""
    def episode(terminated):
        ends = np.zeros(5, bool)
        ends[-1] = terminated
        state, action = np.arange(6, dtype=np.float32)[:, None], np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
        return Episode({STATE: state, "action": action, "next.reward": np.array([1, 2, 3, 4, 5], np.float32),
                        "next.terminated": ends})
    data = Dataset([episode(True), episode(False)])
    policy = Policy(policy_config(horizon=2), data.features()).fit_statistics(data)
    learner = replace(SMALL, discount=0.5).build(policy, 0, 10, data)
    queries = []

    class Ten(torch.nn.Module):
        def target_score(self, obs, plan, rng):
            queries.append((obs[STATE][:, -1, 0].tolist(), plan))
            return torch.full((len(plan),), 10.0)
    learner.nets.target.critic = Ten()
    batch = learner.batch_sampler(data).gather(np.arange(10))
    target = call_step(learner, "target_value", batch, torch.Generator().manual_seed(0)).tolist()
    full = [1 + 0.5 * 2 + 0.25 * 10, 2 + 0.5 * 3 + 0.25 * 10, 3 + 0.5 * 4 + 0.25 * 10]
    ended, cut_off = [4 + 0.5 * 5, 5], [4 + 0.5 * 5 + 0.25 * 10, 5 + 0.5 * 10]
    assert target == pytest.approx([*full, *ended, *full, *cut_off])
    assert queries[0][0] == [2, 3, 4, 5, 5, 2, 3, 4, 5, 5]  # the value is of the row after the plan's steps
    assert queries[0][1].abs().max() <= 1 + 1e-6  # within the range of the data


@pytest.mark.slow
def test_it_finds_better_actions_than_those_in_the_data():
    env = Follow(40)
    data = rollout(UniformRandomActor(env), env, 400, recording_seed(0))
    cloned, learned, anchored = (fit_method(Method(policy_config(), learner=learner), data, 0) for learner in (
        BehaviorCloning(300, 64), SMALL, replace(SMALL, bc_weight=100.0)))
    returns = [evaluate(r.actor, env, 40).returns.estimate for r in (cloned, learned, anchored)]
    assert returns[0] < -0.3  # the mean of all actions, 0, which is sin(3 s) nowhere but in the middle
    assert returns[1] > -0.05
    assert returns[2] < -0.3  # kept at the stored actions
    assert set(learned.modules) == {"policy", "critic"}


@pytest.mark.slow
def test_it_learns_from_the_episodes_it_collects():
    """Offline, a few episodes do not tell enough; the same number of updates on collected episodes does."""
    env = Follow(16)
    few = rollout(UniformRandomActor(env), env, 8, recording_seed(1))
    few = Dataset([replace(e, metadata={}) for e in few])
    offline = fit_method(Method(policy_config(), learner=SMALL), few, 0)
    rounds = CollectionRounds(15, RolloutCollector(16, GaussianExploration(0.5)), updates=PerNewStep(2.0),
                              initial_updates=120)
    online = fit_method(Method(policy_config(), learner=SMALL, collection=rounds), few, 0, env=env)
    one, other = (evaluate(r.actor, env, 40).returns for r in (offline, online))
    assert other.low > one.high and other.estimate > -0.1


def test_the_center_is_reached():
    check_env(Center)
    episodes = evaluate(Center(40).expert(), Center(40), 40).episodes
    for episode in episodes:  # a straight line in each component, and then rest
        start = np.abs(episode.steps[STATE][0])
        distances = np.maximum(start[None] - 0.2 * np.arange(21)[:, None], 0)
        np.testing.assert_allclose(np.abs(episode.steps[STATE]), distances, atol=1e-5)


@pytest.mark.slow
def test_td3_bc_beats_cloning_on_data_of_mixed_quality():
    """Rule: an advantage of at least 10 points in the mean over three seeds, where random actions have 0 and the expert
    100, and no seed of cloning above one of td3-bc. Fujimoto and Gu 2021 report an advantage over cloning on the mixed
    data of D4RL. The learner is that of `td3-bc`, offline, with small networks and batches.
    """
    env, named = Center(40), td3_bc()
    data = rollout(Skilled(-0.5, 1.0, 0.3), env, 100, recording_seed(0))
    optimizer = replace(named.learner.optimizer, lr=1e-3)
    policy = replace(named.policy, trunk=MLP(64, 2))
    learners = (BehaviorCloning(800, 64, optimizer),
                replace(named.learner, steps=800, batch_size=64, optimizer=optimizer, critic=CriticConfig((64, 64))))

    def points(actor):
        return 100 * (evaluate(actor, env, 80).returns.estimate - worst) / (best - worst)
    worst, best = (evaluate(actor, env, 80).returns.estimate for actor in (UniformRandomActor(env), env.expert()))
    cloned, learned = ([points(fit_method(Method(policy, named.executor, learner), data, seed).actor)
                        for seed in range(3)] for learner in learners)
    assert np.mean(learned) - np.mean(cloned) >= 10, (cloned, learned)
    assert min(learned) > max(cloned), (cloned, learned)


@pytest.mark.slow
def test_dagger_learns_where_the_policy_goes():
    """Demonstrations show one corner of the states. The expert's advice covers all that are visited."""
    env = Follow(16)
    demos = rollout(env.expert(), env, 200, recording_seed(1)).filter(lambda e: e.steps[STATE][0, 0] > 0.6)
    learner = BehaviorCloning(600, 64, CONSTANT)
    cloned = fit_method(Method(policy_config(), learner=learner), demos, 0)
    rounds = CollectionRounds(4, RolloutCollector(16, supervisor="expert"), relabel=(SupervisorLabels(),),
                              updates=PerNewStep(7.5), initial_updates=120)
    taught = fit_method(Method(policy_config(), learner=learner, collection=rounds), demos, 0, env=env)
    one, other = (evaluate(r.actor, env, 40).returns for r in (cloned, taught))
    assert other.low > one.high and other.estimate > -0.02


def test_data_without_rewards_are_refused_before_anything_is_trained(tmp_path):
    steps = {STATE: np.zeros((4, 1), np.float32), "action": np.zeros((4, 1), np.float32), "next.reward": np.zeros(4)}
    data = Dataset([Episode(steps) for _ in range(3)], {"path": "mine.npz"})
    with pytest.raises(DataError, match=r"mine.npz: TD3 learns from next.reward and next.terminated, "
                       r"but there is no column next.terminated; .*\n.*rewards and terminals"):
        train(Method(policy_config(), learner=SMALL), data, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_it_cannot_learn_is_refused():
    classes = {STATE: Feature("float32", (1,)), "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    steps = {STATE: np.zeros((4, 1), np.float32), "action": np.zeros((4, 1), np.int64)}
    data = Dataset([Episode(steps, schema=classes)])
    with pytest.raises(Unsupported, match="plans of numbers"):
        SMALL.build(Policy(policy_config(), classes), 0, 1, data)
    numbers = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    with pytest.raises(Unsupported, match="begin at the current step"):
        SMALL.build(Policy(policy_config(horizon=2, action_offset=-1), numbers), 0, 1, data)
    for options, words in (({"discount": 1.5}, "discount is 1.5, but must be at least 0 and at most 1"),
                           ({"policy_delay": 0}, "at least 1")):
        with pytest.raises(UserError, match=words):
            replace(SMALL, **options)


def test_the_critic_may_learn_alone_at_first():
    """The policy waits for it, and then both learn."""
    data = rollout(UniformRandomActor(Follow(10)), Follow(10), 40)
    policy = Policy(policy_config(), data.features()).fit_statistics(data)
    first = {k: v.clone() for k, v in policy.state_dict().items()}
    learner = replace(SMALL, critic_warmup_updates=3, policy_delay=1).build(policy, 0, 10, data)
    sampler, critic = learner.batch_sampler(data), learner.nets.critic.layers[0][0].weight
    for n in range(4):
        before = critic.detach().clone()
        learner.update(sampler.batch(64, n))
        assert not torch.equal(before, critic)
        assert all(torch.equal(v, first[k]) for k, v in policy.state_dict().items()) == (n < 3)
