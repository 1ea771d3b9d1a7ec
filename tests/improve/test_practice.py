"""A policy that practises alone: rewards from successes, corrections that begin at none, and a critic that goes first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import make
from understudy.core import Feature, Unsupported, UserError, keys, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.base import Env, StepResult
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.execute.wrappers import BASE_ACTION, ResidualWrapper, WrappedActor
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.correction import Correction
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import random_episodes
from understudy.improve.improvement import IMPROVEMENTS, Improvement
from understudy.improve.practice import BASE, Practice, SuccessReward, dppo, dsrl, porl
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.rewards.reward_models import RewardedEngine
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"


def test_the_first_step_that_succeeds_is_rewarded_and_no_other():
    steps = {STATE: np.zeros((5, 1), np.float32), "action": np.zeros((5, 1), np.float32),
             "next.reward": np.full(5, -3.0, np.float32)}
    success = Episode({**steps, "next.success": np.array([0, 0, 1, 0, 1], bool)})
    assert SuccessReward()(success).steps["next.reward"].tolist() == [0, 0, 1, 0, 0]
    failure = Episode({**steps, "next.success": np.zeros(5, bool)})
    assert not SuccessReward()(failure).steps["next.reward"].any()
    with pytest.raises(UserError, match=r"no column 'next.success'"):
        SuccessReward()(Episode(steps))


def test_the_density_of_corrections_in_closed_form():
    """The mean is the tanh of the output, which is 0 before any training."""
    policy, obs = _policy(Correction(0.3)), {STATE: torch.randn(4, 1, 1)}
    context, coded = policy.context(obs), torch.randn(4, 1, 1)
    log_prob = policy.log_prob(context, coded, torch.ones(4, 1, dtype=torch.bool))
    torch.testing.assert_close(log_prob, torch.distributions.Normal(0.0, 0.3).log_prob(coded).sum(-1))
    assert not policy.plan(obs, torch.randn(4, *policy.noise_shape)).any()
    torch.nn.init.constant_(policy.net.output.bias, 0.5)
    plan = policy.plan(obs, torch.randn(4, *policy.noise_shape))
    torch.testing.assert_close(plan, torch.full_like(plan, np.tanh(0.5)))


def test_each_component_of_a_correction_has_its_own_factor():
    expert = make("fork", 1).expert()
    wrapper = ResidualWrapper(expert, (0.5, 2.0))
    obs, key = {STATE: torch.zeros(3, 2)}, keys(0, [0, 1, 2])
    state = wrapper.start(obs, key)
    shown, state = wrapper.transform_obs(obs, state)
    action, _ = wrapper.transform_action(obs, torch.tensor([[1.0, -1.0]]).expand(3, 2), state)
    torch.testing.assert_close(action, shown[BASE_ACTION] + torch.tensor([0.5, -2.0]))
    episode = rollout(make("fork", 1).expert(), make("fork", 1), 1, 0)[0]
    recorded = wrapper.transform_episode(episode)
    base, correction = recorded.steps[BASE_ACTION][:len(episode)], recorded.steps["action"]
    np.testing.assert_allclose(base + np.array([0.5, 2.0]) * correction, episode.steps["action"], atol=1e-6)
    shifted = episode.replace({"action": episode.steps["action"] + np.float32([0, 1])})
    fixed = replace(wrapper, scale=(0.5, 0.0)).transform_episode(shifted)  # the second component is never corrected
    np.testing.assert_array_equal(fixed.steps["action"], correction * np.float32([1, 0]))
    with pytest.raises(UserError, match="3 factors, but an action has 2"):
        replace(wrapper, scale=(1.0, 1.0, 1.0)).features(make("fork", 1).features)


def test_without_corrections_the_base_acts_bit_by_bit():
    env, base = make("fork", 4), make("fork", 4).expert()
    data = rollout(base, env, 4, 0)
    wrapper = ResidualWrapper(base, (0.2, 0.2))
    features = wrapper.features(env.features)
    policy = Policy(PolicyConfig(Correction(), MLP(16, 1), codec=Normalizer(target="identity")), features)
    policy.fit_statistics(data.map(wrapper.transform_episode))
    other = rollout(WrappedActor(PolicyActor(policy, RecedingHorizon()), wrapper), env, 4, 0)
    for a, b in zip(data, other, strict=True):
        assert np.array_equal(a.steps["action"], b.steps["action"])


def test_during_the_warmup_the_critic_learns_alone():
    steps = {STATE: np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32),
             "action": np.random.default_rng(1).uniform(-1, 1, (20, 1)).astype(np.float32),
             "next.reward": np.ones(20, np.float32), "next.terminated": np.arange(20) == 19}
    data = Dataset([Episode(steps)])

    def after(n_updates, warmup):
        config = TD3(batch_size=8, critic=CriticConfig((16,)), policy_delay=1, critic_warmup_updates=warmup)
        policy = _policy(Regression())
        policy.fit_statistics(data)
        learner = config.build(policy, 0, 10, data)
        sampler = learner.batch_sampler(data)
        for step in range(n_updates):
            learner.update(sampler.batch(8, step, 0))
        return [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (policy, learner.nets.critic)]
    first, warm, later = after(0, 3), after(3, 3), after(4, 3)
    assert torch.equal(first[0], warm[0]) and not torch.equal(first[1], warm[1])
    assert not torch.equal(warm[0], later[0])
    assert not torch.equal(after(3, 0)[0], warm[0])


def test_porl_reads_no_demonstration_and_keeps_the_policy_in_the_first_round(monkeypatch):
    env, update, largest, weights = make("fork", 4), RewardedEngine.update, [], []

    def watched(learner, batch):
        largest.append(batch.obs[STATE].max())
        metrics = update(learner, batch)
        weights.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
        return metrics
    monkeypatch.setattr(RewardedEngine, "update", watched)
    data = random_episodes(env, 60, 0).map(lambda e: e.replace({STATE: np.asarray(e.steps[STATE]) + 100}))
    base = Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 1)), learner=BehaviorCloning(2, 8))
    trained = fit_method(base, data, 0)
    first = torch.cat([p.detach().flatten() for p in trained.policy.parameters()])
    started = replace(base, stages=(Stage(BASE.stage, base),), initialize_from=(InitializeFrom(BASE),))
    fit_method(porl(Practice(data, n_rounds=2, n_episodes=2, n_updates=4), started), data, 0, env=env,
               stages={BASE.stage: trained})
    assert len(largest) == 8 and max(largest) < 50
    assert all(torch.equal(w, first) for w in weights[:4]) and not torch.equal(weights[-1], first)


class Luck(Env):
    """Two steps. The probability that an episode succeeds is the second action, whatever the first one was."""

    def __init__(self, rows):
        self.rows, self.features = rows, {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
        self.metadata = {"env": "luck", "version": 1, "fps": 1, "limit": 2, "success": "luck", "low": -1.0, "high": 2.0}
        self.key, self.count = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 1)

    def reset(self, which, key):
        self.key[which], self.count[which] = key, 0
        return {STATE: self.count[which]}

    def step(self, action):
        self.count, zeros = self.count + 1, torch.zeros_like(self.key)
        ends = self.count[:, 0] == 2
        success = ends & (uniform(self.key, zeros, (1,)) < action)[:, 0]
        return StepResult({STATE: self.count}, zeros.float(), ends, zeros > 0, {"success": success})


def test_the_critic_of_porl_learns_the_value_of_the_policy_that_starts_and_then_improves_it():
    """The policy acts with 0.5, so the value is 0.99 * 0.5 at first and the action itself at the second step."""
    data = Dataset([Episode({STATE: np.float32([[0], [1], [2]]), "action": np.float32([[-1], [2]]),
                             "next.success": np.zeros(2, bool), "next.terminated": np.array([False, True])})] * 2)
    base = Method(PolicyConfig(Regression(), MLP(32, 1), window=Window(1, 1)), learner=BehaviorCloning(1, 8))
    trained, scores, plans = fit_method(base, data, 0), {}, {}
    for parameter in trained.policy.net.output_layer[-1].parameters():
        parameter.data.zero_()  # the middle of the actions, from -1 to 2
    started = replace(base, stages=(Stage(BASE.stage, base),), initialize_from=(InitializeFrom(BASE),))
    method = porl(Practice(data, n_rounds=2, n_episodes=600, n_updates=150), started)
    td3 = method.learner
    fast = replace(td3, target_decay=0.9, batch_size=64, critic=replace(td3.critic, hidden=(32, 32)),
                   optimizer=replace(td3.optimizer, lr=3e-3))
    obs, action = torch.tensor([0.0, 1, 1, 1]).view(4, 1, 1), torch.tensor([0.5, 0.2, 0.5, 0.8]).view(4, 1, 1)

    def watch(step, learner, metrics):
        if step in (150, 300):
            scores[step] = learner.nets.critic.scores({STATE: obs}, action).mean(0).detach()
            plans[step] = learner.policy.plan({STATE: obs}, torch.zeros(4, *learner.policy.noise_shape))[-1].item()
    fit_method(replace(method, learner=fast), data, 0, env=Luck(200), stages={BASE.stage: trained}, callbacks=[watch])
    torch.testing.assert_close(scores[150], torch.tensor([0.495, 0.2, 0.5, 0.8]), atol=0.15, rtol=0)
    assert plans[150] == 0.5 and plans[300] > 0.6


def test_the_noise_of_porl_is_a_tenth_of_half_the_range_of_demonstrated_actions():
    action = np.array([[-1.0, 0.0], [3.0, 1.0]], np.float32)  # half ranges of 2 and 0.5
    data = Dataset([Episode({STATE: np.zeros((2, 1), "f"), "action": action})])
    method = porl(Practice(data, 2, 2, 4), Method(PolicyConfig(Regression())))
    assert method.collection.collector.exploration.std == pytest.approx(0.125)
    classes = Dataset([Episode({STATE: np.zeros((2, 1), "f"), "action": np.array([0, 2])})])
    with pytest.raises(Unsupported, match="porl is for actions that are numbers"):
        porl(Practice(classes, 2, 2, 4), Method(PolicyConfig(Regression())))


def _policy(head) -> Policy:
    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    torch.manual_seed(0)
    codec = Normalizer("identity", "identity") if isinstance(head, Correction) else Normalizer()
    return Policy(PolicyConfig(head, MLP(16, 1), codec=codec), features)


def test_dppo_refuses_overlapping_chunks_before_anything_runs():
    data = random_episodes(make("fork", 2), 10, 0)
    method = find_method("flow-policy", data.features())
    practice = Practice(data, n_rounds=2, n_episodes=2, n_updates=None)
    assert dppo(practice, method).executor == method.executor
    for executor in (RealTimeChunking(4), TemporalEnsemble()):
        with pytest.raises(Unsupported, match=f"{type(executor).__name__} overlaps them"):
            dppo(practice, replace(method, executor=executor))


def test_what_a_policy_cannot_do_is_refused_before_anything_runs():
    classes = Dataset([Episode({STATE: np.zeros((2, 1), "f"), "action": np.array([0, 2])})])
    choices, numbers = Practice(classes, 2, 2, 4), Practice(random_episodes(make("fork", 2), 10, 0), 2, 2, 4)
    for head in (Regression(), Categorical()):
        with pytest.raises(Unsupported, match=f"head {type(head).__name__} of RUN do not depend on noise"):
            dsrl(numbers, Method(PolicyConfig(head)))
    assert dsrl(numbers, Method(PolicyConfig(GMM()))).wrapper.period == 1
    for head in (Regression(), GMM()):
        with pytest.raises(Unsupported, match="has no denoising steps"):
            dppo(numbers, Method(PolicyConfig(head)))
    for name in ("rlpd", "dppo", "ensemble", "thrifty"):
        with pytest.raises(Unsupported, match=f"{name} is for actions that are numbers"):
            IMPROVEMENTS[name].build(Improvement(Path("RUN"), choices.data), Method(PolicyConfig(Categorical())))
