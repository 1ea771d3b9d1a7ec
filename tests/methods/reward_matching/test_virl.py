"""VIRL: its losses, its rewards, and when they change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import Stop, contents, fork
from torch import nn

from understudy.core import ConfigError, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.rewards.transport_reward import COLUMN, OptimalTransportReward
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.reward_matching.virl import VIRL, SiameseModel, SiameseReward
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_reward_model

STATE = "observation.state"


def line(first: float, speed: float, n: int = 10, **metadata) -> Episode:
    """A motion along a line, whose observation is the place."""
    places = (first + speed * np.arange(n + 1)[:, None]).astype(np.float32)
    return Episode({STATE: places, "action": np.zeros((n, 1), np.float32), "next.terminated": np.zeros(n, bool)},
                   metadata=metadata)


def build(*episodes: Episode, **fields) -> SiameseModel:
    data, codec = Dataset(list(episodes)), Normalizer("identity", "identity")
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), codec=codec), data.features()).fit_statistics(data)
    torch.manual_seed(0)
    return SiameseReward(**fields).build(policy, data)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_contract():
    check_reward_model(SiameseReward())


def test_losses_of_a_triplet_by_hand():
    """Encodings are places, states their sums, and what is decoded is twice the code.

    States 3, 4, 4: 1 + (4 - 1). Encodings, mean of two frames: 0 + (4 - 1) and 1 + (4 - 0).
    Decoded from states: 6, 6 for 1, 2 and 8, 8 for 1, 3. From encodings: 2, 4 and 2, 6.
    """
    model = build(line(0, 1), margin=4.0, loss_weights=(1.0, 10.0, 100.0, 1000.0))
    model.encoders = nn.ModuleList([nn.Identity(), Apply(lambda codes: (codes.cumsum(1), None))])
    model.unroll, model.decode = Apply(lambda codes: (codes, None)), Apply(lambda codes: 2 * codes)
    triplet = torch.tensor([[1.0, 2], [1, 3], [2, 2]])[None, :, :, None]
    terms = (4, (3 + 5) / 2, (25 + 16) / 2 + (49 + 25) / 2, (1 + 4) / 2 + (1 + 9) / 2)
    expected = sum(weight * term for weight, term in zip((1, 10, 100, 1000), terms, strict=True))
    torch.testing.assert_close(model.clip_loss(torch.cat([triplet, triplet[:, [0, 0, 0]]]))[0], torch.tensor(expected))


def test_the_demonstration_earns_one_and_parts_multiply():
    shown, own = line(0, 0.1), line(0.05, 0.12)
    both, frame, sequence = (build(shown, frame_weight=f, sequence_weight=s) for f, s in ((1, 1), (1, 0), (0, 1)))
    assert torch.equal(both.rewards(both.read(shown)), torch.ones(10))
    rewards = [model.rewards(model.read(own)) for model in (both, frame, sequence)]
    torch.testing.assert_close(rewards[0], rewards[1] * rewards[2])
    (encode, remember), steps = both.scoring, both.read(own)
    distance = (remember(encode(steps)[:4])[0][3] - remember(encode(both.points)[:4])[0][3]).square().mean()
    torch.testing.assert_close(rewards[2][3], (-distance).exp())  # the state has read four steps
    steps = frame.read(line(0, 0.1, 12))
    assert torch.equal(frame.rewards(steps)[:10], torch.ones(10))
    beyond = frame.scoring[0](steps[11]) - frame.scoring[0](frame.points[-1])
    torch.testing.assert_close(frame.rewards(steps)[11], (-beyond.square().mean()).exp())
    two = build(shown, own)
    assert torch.equal(two.rewards(two.read(own)), torch.ones(10))  # the better of two


def test_shuffled_steps_change_the_part_of_the_sequence_alone():
    shown = line(0, 0.1)
    kinds = [{"frame_weight": f, "sequence_weight": s} for f, s in ((1, 0), (0, 1))]
    for kind, is_equal in zip(kinds, (True, False), strict=True):
        plain, shuffled = (build(shown, is_shuffled=x, **kind) for x in (False, True))
        steps = plain.read(shown)
        assert torch.equal(plain.rewards(steps), shuffled.rewards(steps)) == is_equal


def test_clips_are_of_the_demonstration_its_likeness_and_others():
    model = build(line(0, 1, 30), noise=0.0, warp=0.2, n_clips=400)
    model.own = [model.read(line(1000, 1, 20))]
    rng, lengths = torch.Generator().manual_seed(0), []
    for _ in range(40):
        first, similar, other = model.clips(rng).squeeze(-1).unbind(1)
        lengths.append(n := first.shape[1])
        assert torch.equal(first, torch.arange(1, n + 1).expand(400, -1).float())
        assert ((similar - 1) - 0.8 * (first - 1)).min() >= -0.5 and ((similar - 1) - 1.2 * (first - 1)).max() <= 0.5
        assert n < 10 or (similar - first)[:, -1].std() > 0.05 * n
        is_own = other[:, 0] > 500
        assert 0.3 < is_own.float().mean() < 0.7 and other[is_own].max() <= 1020
        assert torch.equal(other[~is_own].sort(1).values, first[~is_own])
    assert n == 1 or not torch.equal(other[~is_own], first[~is_own])
    assert min(lengths) >= 1 and max(lengths) <= 30 and 7 < np.mean(lengths) < 14  # a third, on average
    noisy = build(line(0, 1, 30), noise=0.5, warp=0.0, n_clips=400)
    noise = torch.cat([(clips[:, 1] - clips[:, 0]).flatten() for clips in (noisy.clips(rng) for _ in range(20))])
    assert 0.48 < noise.std() < 0.52 and not noisy.clips(rng)[:, 0].frac().any()


def learner_of(data, **fields):
    method = find_method("virl")
    config = replace(method.learner, batch_size=8, critic=CriticConfig((16,)), **fields)
    return config.build(Policy(method.policy, data.features()).fit_statistics(data), 0, 10, data)


def test_rewards_change_with_a_new_round_and_own_episodes_of_early_rounds_are_others():
    shown = line(0, 0.1)
    learner = learner_of(Dataset([shown]), reward=SiameseReward(own_rounds=1))
    own = [line(0, 0.1 * k, expert=False, **{ROUND: k}) for k in range(2)]

    def rewards(*episodes):
        """Of the own episodes in the replay buffer, and how many are others."""
        batch = learner.batch_sampler(learner.annotate(Dataset([shown, *episodes]), None)).batch(8, 0)
        assert set(batch.others) == {"expert"}
        data = learner.reward.follow(Dataset([shown, *episodes]))
        return np.concatenate([data[i].steps[COLUMN] for i in range(len(data))]), len(learner.reward.own)
    first, n_others = rewards(own[0])
    assert n_others == 1
    for number in range(3):
        sampler = learner.batch_sampler(learner.annotate(Dataset([shown, own[0]]), None))
        learner.update(sampler.batch(8, number))
    assert np.array_equal(rewards(own[0])[0], first)  # within the round
    second, n_others = rewards(*own)
    assert n_others == 1 and not np.array_equal(second[10:20], first[10:]) and (second[:10] == 1).all()


def test_what_is_trained_tells_another_expert_from_a_stranger():
    shown = [line(0, 0.2, 20)]
    learner = learner_of(Dataset(shown), reward=SiameseReward(noise=0.2))
    data = Dataset([*shown, line(0, 0.0, 20, expert=False, **{ROUND: 0})])
    sampler = learner.batch_sampler(learner.annotate(data, None))
    for number in range(100):
        learner.update(sampler.batch(8, number))
    near, far = (Dataset([line(first, 0.2, 20, expert=False, **{ROUND: 1})]) for first in (0.1, 2.0))
    scores = [np.mean(learner.reward.follow(Dataset([*shown, *other]))[1].steps[COLUMN]) for other in (near, far)]
    assert scores[0] > scores[1] + 0.3


@pytest.mark.slow
def test_stopped_within_the_second_round_it_continues_bit_by_bit(tmp_path):
    demos = rollout(fork(4).expert(), fork(4), 1, recording_seed(0))
    method = find_method("virl", n_rounds=2, n_episodes=2)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((16,))), learner=replace(
        method.learner, batch_size=8, critic=CriticConfig((16,))))
    options = {"device": "cpu", "val_fraction": 0, "progress": False}
    train(method, demos, tmp_path / "whole", env=fork(), **options)
    with pytest.raises(KeyboardInterrupt):
        train(method, demos, tmp_path / "run", env=fork(), callbacks=[Stop(25)], **options)
    train(method, demos, tmp_path / "run", env=fork(), **options)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_other_rewards_and_other_learners_are_refused():
    data = Dataset([line(0, 0.1)])
    with pytest.raises(Unsupported, match=r"networks of a SiameseReward(.|\n)*another reward"):
        learner_of(data, reward=OptimalTransportReward())
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1)), data.features()).fit_statistics(data)
    with pytest.raises(ConfigError, match="SiameseReward has networks, and this learner does not train them"):
        TD3(reward=SiameseReward()).build(policy, 0, 1, data)
    assert isinstance(VIRL().reward, SiameseReward)
