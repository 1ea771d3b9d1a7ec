"""Rewards for progress: what is learned from demonstrations alone, and what steps then earn."""

from __future__ import annotations

from dataclasses import replace
from math import log1p

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import mix
from understudy.envs import make
from understudy.evaluate.recording import UniformRandomActor, expert_actor
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critics.ppo import PPO
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, load_modules
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.transport_reward import COLUMN
from understudy.learn.train import train
from understudy.methods.reward_matching.ele import ProgressLearning, ProgressReward, ele
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_reward_model

STATE = "observation.state"
POLICY = PolicyConfig(Regression(), MLP(8, 1), codec=Normalizer("identity", "identity"))


def line(speed: float, n_steps: int, action: float = 0.0, **metadata) -> Episode:
    """A motion along a line, whose observation is the place."""
    steps = {STATE: speed * np.arange(n_steps + 1)[:, None], "action": np.full((n_steps, 1), action),
             "next.reward": np.arange(n_steps)}
    ends = np.arange(n_steps) == n_steps - 1
    return Episode({**{k: v.astype(np.float32) for k, v in steps.items()}, "next.terminated": ends}, metadata=metadata)


def test_contract():
    check_reward_model(ProgressReward())


def test_progress_is_the_logarithm_of_steps_and_none_is_earned_by_coming_back():
    """Of demonstrations alone."""
    data = Dataset([line(0.1, 20), line(0.1, 20), line(-0.5, 20, expert=False)])
    learner = ProgressLearning(steps=300, batch_size=64, optimizer=OptimizerConfig(lr=5e-3))
    model = fit_method(Method(POLICY, learner=learner), data, 0).modules["reward"]
    n = torch.tensor([1, 4, 8, 12, -3, -12])
    places = 0.1 * torch.full((6, 1), 12.0), 0.1 * (12.0 + n[:, None]).clamp(0, 20)
    n = (10 * (places[1] - places[0])).squeeze(1)
    np.testing.assert_allclose(model.progress(*places).detach(), n.sign() * n.abs().log1p(), atol=0.15)
    torch.testing.assert_close(model.progress(*places), -model.progress(*places[::-1]))
    assert not model.progress(places[0], places[0]).any()


def test_the_loss_of_the_progress_bar_is_that_of_progress():
    """The policy has none."""
    data = Dataset([line(0.1, 20)])
    learner = ProgressLearning(batch_size=8).build(Policy(POLICY, data.features()).fit_statistics(data), 0, 1, data)
    metrics = learner.update(learner.batch_sampler(data).batch(8, 0))
    assert set(metrics) == {"loss", "gradient", "rate"} and metrics["loss"] > 0


def test_a_stopped_stage_continues(tmp_path):
    """Also if its reward reads the statistics of the data when it is built."""
    data, method = Dataset([line(0.1, 20), line(0.1, 21)]), Method(PolicyConfig(Regression(), MLP(8, 1)),
                                                        learner=ProgressLearning(steps=4, batch_size=8))

    def stop(step, learner, metrics):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(method, data, tmp_path / "stopped", callbacks=(stop,), device="cpu")
    for name in ("stopped", "whole"):
        train(method, data, tmp_path / name, device="cpu")
    stopped, whole = (load_modules(tmp_path / name)["reward"].state_dict() for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[k], whole[k]) for k in whole)


def test_a_demonstration_earns_the_scale_beside_the_rewards_of_the_environment():
    demonstrations = [line(0.1, 20), line(0.1, 30)]
    data = Dataset([*demonstrations, line(0.1, 5), line(0.2, 10, expert=False)])
    policy = Policy(POLICY, data.features()).fit_statistics(data)
    model = ProgressReward(span=8, scale=2.0).build(policy, data.select([0, 1]))
    model.progress = lambda before, after: ((after - before) * 10).log1p().squeeze(1)  # what would be learned
    first, second, short, fast = ([float(r) for r in e.steps[COLUMN]] for e in model.annotate(data))
    assert (sum(first) + sum(second)) / 2 == pytest.approx(2) and first[:8] == second[:8] == [0] * 8
    assert first[8:] == pytest.approx([2 / 17] * 12) and short == [0] * 5
    assert fast == pytest.approx([0] * 8 + [log1p(16) / log1p(8) * 2 / 17] * 2)
    annotated = model.annotate(data)
    batch = next(policy.windows(annotated, extra=("next.reward", COLUMN)).scan())
    expected = np.concatenate([e.steps["next.reward"] + e.steps[COLUMN] for e in annotated])
    np.testing.assert_allclose(model.reward(batch, None)[:, 0], expected, rtol=1e-5)


def test_observations_that_are_no_numbers_are_refused():
    image = Episode({STATE: np.zeros((3, 8, 8, 3), np.uint8), "action": np.zeros((2, 1), np.float32)})
    method = Method(PolicyConfig(Regression(), MLP(8, 1)), learner=ProgressLearning(steps=1))
    with pytest.raises(UserError, match="between numbers"):
        fit_method(method, Dataset([image]), 0)


def test_the_stage_reads_no_actions():
    """They may be missing, or be those of anything."""
    (stage,) = ele(features=line(0.1, 20).features()).stages
    method = replace(stage.method, learner=replace(stage.method.learner, steps=3))
    models = [fit_method(method, Dataset([line(0.1, 20, action), line(0.1, 30)]), 0).modules["reward"]
              for action in (np.nan, 0.0, 1.0)]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


def test_demonstrations_without_any_action_are_learned_beside_practice():
    """PPO reads neither of them: its rounds drop all but the newest episodes."""
    env = make("fork", 2)
    demonstrations, practice = (rollout(actor, env, 2) for actor in (expert_actor(env), UniformRandomActor(env)))
    data, weights = mix(task=(demonstrations.map(lambda e: e.replace({"action": None})), 0.5), prior=(practice, 0.5))
    method = ele(1, 8, 1, features=data.features())
    (stage,) = method.stages
    short = replace(stage, method=replace(stage.method, learner=replace(stage.method.learner, steps=2)))
    result = fit_method(replace(method, stages=(short,)), data, 0, env=env, sampling_weights=weights)
    assert len(result.modules["reward"].points) == demonstrations.steps
    with pytest.raises(UserError, match="cannot join a mixture"):  # nothing would learn from them
        fit_method(replace(method, stages=(), learner=PPO()), data, 0, env=env, sampling_weights=weights)
