"""ROT: the soft Q-filter, its loss, and its start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import Stop, contents, fork
from fixtures.learning import call_step

from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage
from understudy.learn.rewards.transport_reward import OptimalTransportReward
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.reward_matching.rot import CLONE_WEIGHT, ROT
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy

STATE = "observation.state"


@pytest.fixture(scope="module")
def demos() -> Dataset:
    return rollout(fork(4).expert(), fork(4), 4, recording_seed(0))


def small(**fields):
    method = find_method("rot", n_rounds=2, n_episodes=2)
    learner = replace(method.learner, batch_size=8, critic=CriticConfig((16,)), policy_delay=1, **fields)
    policy, cloning = replace(method.policy, trunk=FeedForward((16,))), BehaviorCloning(20, 8)
    stage = Stage("clone", Method(policy, learner=cloning))
    return replace(method, policy=policy, learner=learner, stages=(stage,))


class Prefers(torch.nn.Module):
    """A critic that scores plans by their first component, with a sign that depends on the row."""

    def __init__(self, signs):
        super().__init__()
        self.signs = signs

    def forward(self, obs, plan):
        return self.signs * plan[:, 0, 0]


def build(demos, weight: float | None = None, horizon: int = 1) -> tuple[Engine, Policy, Policy]:
    torch.manual_seed(0)
    policy_config = replace(find_method("rot").policy, window=Window(horizon=horizon))
    clone, policy = (Policy(policy_config, demos.features()).fit_statistics(demos) for _ in range(2))
    config = ROT(bc_weight=1.5, batch_size=8, reward=OptimalTransportReward(),
                 **({"clone": clone.eval()} if weight is None else {"clone": None, "fixed_weight": weight}))
    return config.build(policy, 0, 10, demos), clone, policy


def test_pictures_are_refused_before_the_clone_is_trained(demos, tmp_path):
    def seen(episode):
        return episode.replace({"observation.images.top": np.zeros((len(episode) + 1, 8, 8, 3), np.uint8)})
    own = demos.map(lambda episode: replace(seen(episode), metadata={"expert": False}))
    data, method = Dataset([*map(seen, demos), *own]), replace(small(), collection=None)
    with pytest.raises(Unsupported, match=r"numbers, and 'observation.images.top' is of kind 'image'(.|\n)*inputs"):
        train(method, data, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run" / "stages").exists()


def test_the_filter_counts_the_rows_at_which_the_clone_scores_higher(demos):
    learner, clone, policy = build(demos)
    batch = policy.windows(demos).batch(8, 0)
    with torch.no_grad():
        difference = [p.plan(batch.obs, torch.zeros(8, *p.noise_shape))[:, 0, 0] for p in (clone, policy)]
    higher = (difference[0] > difference[1]).float()
    assert 0 < higher.mean() < 1
    for sign, expected in ((1, higher.mean()), (-1, 1 - higher.mean()), (0, 0)):  # the same score is no reason to clone
        learner.nets.critic = Prefers(sign * torch.ones(8))
        weight = call_step(learner, "filtered", batch, torch.Generator()).extra[CLONE_WEIGHT]
        assert weight.tolist() == pytest.approx(8 * [float(expected)])


@pytest.mark.parametrize(("weight", "horizon"), [(0.0, 1), (0.25, 1), (1.0, 1), (0.25, 3)])
def test_the_loss_weighs_the_score_and_the_distance_to_demonstrations(demos, weight, horizon):
    learner, _, policy = build(demos, weight, horizon)
    expert = policy.windows(demos).gather(np.arange(demos.lengths[0] - 8, demos.lengths[0]))  # to the end of an episode
    batch = policy.windows(demos).batch(8, 0).replace(others={"expert": expert})
    learner.nets.critic, rng = Prefers(torch.ones(8)), torch.Generator().manual_seed(0)
    loss = call_step(learner, "policy_loss", call_step(learner, "filtered", batch, rng), rng)
    plan = policy.plan(batch.obs, torch.zeros(8, *policy.noise_shape))
    coded = policy.encode_batch(expert.replace(action=policy.plan(expert.obs, torch.zeros(8, *policy.noise_shape))))
    distance = (coded - policy.encode_batch(expert)).square().sum((1, 2))
    torch.testing.assert_close(loss, 1.5 * weight * distance - (1 - weight) * plan[:, 0, 0], rtol=1e-4, atol=1e-4)


def test_it_starts_as_its_clone(demos):
    method = small()
    stopped = replace(method, collection=replace(method.collection, n_rounds=1), learner=replace(
        method.learner, optimizer=replace(method.learner.optimizer, lr=1e-12)))
    result = fit_method(stopped, demos, 0, env=fork(2))
    clone = fit_method(method.stages[0].method, demos, 0)
    for one, other in zip(result.policy.parameters(), clone.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_stopped_within_a_round_it_continues_bit_by_bit(demos, tmp_path):
    options = {"device": "cpu", "val_fraction": 0, "progress": False}
    train(small(), demos, tmp_path / "whole", env=fork(), **options)
    with pytest.raises(KeyboardInterrupt):
        train(small(), demos, tmp_path / "run", env=fork(), callbacks=[Stop(5)], **options)
    train(small(), demos, tmp_path / "run", env=fork(), **options)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_without_demonstrations_beside_its_batches_it_is_refused(demos):
    policy = Policy(find_method("rot").policy, demos.features())
    with pytest.raises(UserError, match=r"cloning needs demonstrations(.|\n)*OptimalTransportReward"):
        ROT(reward=None).build(policy, 0, 1, demos)
