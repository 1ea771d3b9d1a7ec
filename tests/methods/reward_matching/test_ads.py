"""ADS: its measure of progress, and the discount that follows from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from fixtures.collections import Stop, contents, fork
from fixtures.learning import call_step

from understudy.core import ConfigError, Unsupported
from understudy.data.episode import Dataset
from understudy.data.mixture import ROUND
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.critic import CriticConfig
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.reward_matching.ads import (
    ADS,
    SCORED,
    ProgressDiscount,
    count_followed_steps,
    longest_increasing_subsequence,
)
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy


@pytest.fixture(scope="module")
def demos() -> Dataset:
    return rollout(fork(4).expert(), fork(4), 4, recording_seed(0))


def line(*positions) -> torch.Tensor:
    return torch.tensor(positions, dtype=torch.float32)[:, None]


def build(demos, **fields):
    config = replace(find_method("ads").learner, batch_size=8, critic=CriticConfig((16,)), **fields)
    policy = Policy(find_method("ads").policy, demos.features()).fit_statistics(demos)
    return config.build(policy, 0, 10, demos)


def test_the_longest_increasing_subsequence_is_that_of_a_search_of_all():
    rng = np.random.default_rng(0)
    for length in range(9):
        for _ in range(20):
            numbers = rng.integers(0, 6, length).tolist()
            longest = max(n for n in range(length + 1) for chosen in combinations(numbers, n)
                          if all(a < b for a, b in zip(chosen, chosen[1:], strict=False)))
            assert longest_increasing_subsequence(numbers) == longest


def test_a_score_counts_the_steps_that_follow_the_first_k_in_order():
    """The nearest of the first four are 0, 2, 1, 3: of the demonstration 0, 1, 2, 3 three in order."""
    own, shown = line(0.1, 2.1, 0.9, 3.0, 9.0), line(0, 1, 2, 3, 4)
    assert count_followed_steps([(own, shown)], 4) == [3]
    assert count_followed_steps([(own, shown)], 2) == [2]  # of 0 and 1 the nearest: 0, 1
    assert count_followed_steps([(line(2, 2, 2, 2), shown)], 4) == [1]  # it does not move


def test_progress_grows_with_the_steps_that_are_followed():
    """The demonstration has ten steps, so that k begins at 2. The threshold asks for 0.9 k steps, rounded down."""
    shown = line(*range(10))
    stuck, follower = line(*[0, 1, 2, 3] + [3] * 6), shown + 0.1
    progress = ProgressDiscount(ADS(max_growth=5), [shown])
    assert progress() == pytest.approx(0.2**0.5)
    progress.update([stuck])
    assert progress.k == 6  # 4 steps are enough for k = 5, which asks for 4, but not for k = 6, which asks for 5
    progress.update([stuck])
    assert progress.k == 6
    progress.update([follower])
    assert progress.k == 10 and progress() == pytest.approx(0.2**0.1)  # at most the length
    slow = ProgressDiscount(ADS(max_growth=3, threshold=0.0), [shown])
    slow.update([line(*[5] * 10)])
    assert slow.k == 5
    assert ProgressDiscount(ADS(discount=0.3), [shown])() == 0.3


def test_demonstrations_that_differ_lower_what_is_asked_for():
    """Nearest steps of one in the other are 0, 1, 1, 1 and back 0, 1, 3, 3: 2 and 3 in order. The median is 2.5."""
    first, second = line(0, 1, 1.1, 1.2), line(0, 1, 5, 5.1)
    assert count_followed_steps([(first, second), (second, first)], 4) == [2, 3]
    progress = ProgressDiscount(ADS(first=1.0), [first, second, line(0, 1, 5, 5.1, 5.2)])
    assert progress.k == 5
    alone = ProgressDiscount(ADS(first=0.8), [line(0, 1, 2, 3, 4)])
    alone.update([first])
    both = ProgressDiscount(ADS(first=0.8), [first, second, line(*range(5))])
    both.update([second])
    assert alone.k == 4 and both.k == 5


def test_rewards_later_in_the_target_count_by_the_discount_of_now(demos, monkeypatch):
    learner = build(demos)
    learner.nets.critic = learner.nets.target.critic = None
    data = learner.annotate(demos, None)
    batch = learner.with_rewards(learner.batch_sampler(data).batch(8, 0, 0))
    mask, reward = batch.extra["lookahead_mask"].float(), batch.extra["next.reward"]
    assert reward.shape == mask.shape == (8, 3)
    plan = torch.zeros(8, 1, demos[0].steps["action"].shape[1])
    monkeypatch.setattr(ADS, "next_plan", lambda self, nets, obs, rng: plan)
    learner.nets.target.critic = type("Zero", (), {"target_score": lambda self, obs, plan, rng: torch.zeros(8)})()
    for k in (2, 40):
        learner.progress.k.fill_(k)
        gamma = 0.2**(1 / k)
        expected = (reward * mask * torch.tensor([1, gamma, gamma**2])).sum(1)
        torch.testing.assert_close(call_step(learner, "target_value", batch, torch.Generator()), expected)


def test_a_round_is_scored_once_and_by_its_episodes_without_exploration(demos):
    learner = build(demos, max_growth=1, first=0.5, threshold=1.0)
    data = learner.annotate(demos, None)

    def collected(number, source, **metadata):
        return replace(source, metadata={**source.metadata, "expert": False, ROUND: number, **metadata})
    still = data[0].replace({k: np.repeat(np.asarray(v)[:1], len(v), 0) for k, v in data[0].steps.items()})
    first = int(learner.progress.k)
    for episodes, k in (([], 0), ([collected(0, data[1])], 1), ([collected(0, data[1])], 1),
                        ([collected(0, data[1]), collected(1, still)], 1),
                        ([collected(2, still), collected(2, data[1], **{SCORED: True})], 2),
                        ([collected(3, data[1]), collected(3, still, **{SCORED: True})], 2)):
        learner.batch_sampler(Dataset([*data, *episodes], data.metadata))
        assert learner.progress.k == first + k


@pytest.mark.slow
def test_stopped_within_a_round_it_continues_bit_by_bit(demos, tmp_path):
    method = find_method("ads", n_rounds=2, n_episodes=2)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((16,))), learner=replace(
        method.learner, batch_size=8, critic=CriticConfig((16,)), threshold=0.0))
    options = {"device": "cpu", "val_fraction": 0, "progress": False}
    train(method, demos, tmp_path / "whole", env=fork(), **options)
    with pytest.raises(KeyboardInterrupt):
        train(method, demos, tmp_path / "run", env=fork(), callbacks=[Stop(5)], **options)
    train(method, demos, tmp_path / "run", env=fork(), **options)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_rewards_of_single_steps_are_refused(demos):
    with pytest.raises(Unsupported, match=r"rewards? of whole episodes(.|\n)*OptimalTransportReward"):
        build(demos, n_step=0, reward=DiscriminatorReward())
    with pytest.raises(ConfigError, match=r"a plan's own steps(.|\n)*use 0, or a reward of whole episodes"):
        build(demos, n_step=3, reward=DiscriminatorReward())
