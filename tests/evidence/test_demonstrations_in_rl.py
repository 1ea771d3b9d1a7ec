"""Row 289: the swing-up that is cloned, and what tells the arms apart."""

from dataclasses import replace

import numpy as np
import pytest

from evidence.families.reinforcement.policy_only import (
    EXPERT,
    LOWEST,
    RANDOM,
    SCORE,
    TABLE,
    PolicyOnly,
    SwingUp,
    SwingUps,
    normalized,
    practised,
)
from understudy.data.episode import Episode
from understudy.envs import make
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout

ARMS = TABLE.arms


def test_the_expert_swings_the_pendulum_up():
    env = make("Pendulum-v1", 25, max_episode_steps=100)
    episodes = rollout(SwingUp(), env, 100, 5)
    assert all(e.steps["observation.state"][-1, 0] > 0.99 for e in episodes)
    assert np.mean([e.steps["next.reward"].sum() for e in episodes]) == pytest.approx(EXPERT, abs=20)
    episodes = rollout(UniformRandomActor(env), env, 100, 5)
    assert np.mean([e.steps["next.reward"].sum() for e in episodes]) == pytest.approx(RANDOM, abs=30)


@pytest.mark.parametrize(("mean", "score"), [(RANDOM, 0.0), (EXPERT, 1.0), ((RANDOM + EXPERT) / 2, 0.5)])
def test_a_score_is_0_for_random_torques_and_1_for_the_expert(mean, score):
    episode = Episode({"observation.state": np.zeros((3, 3), "f"), "action": np.zeros((2, 1), "f"),
                       "next.reward": np.full(2, mean / 2)})
    assert normalized(episode) == pytest.approx(score)


def test_arms_differ_in_the_critic_alone():
    data = SwingUps(2).load(0)
    own, at_once, offline = (ARMS[name].method(data) for name in ("PORL", "at once", "IQL"))
    assert own.learner.critic_warmup_updates == 800
    assert at_once == replace(own, learner=replace(own.learner, critic_warmup_updates=0))
    assert offline == replace(at_once, stages=offline.stages, initialize_from=offline.initialize_from)
    iql = offline.stages[-1].method.learner
    critic = replace(own.learner.critic, target_subset_size=None)  # IQL has no subset
    assert iql.steps == 800 and (iql.critic, iql.optimizer, iql.discount) == (
        critic, own.learner.optimizer, own.learner.discount)


def test_the_lowest_score_is_that_of_a_policy_within_the_training():
    small = replace(PolicyOnly("at once"), n_rounds=2, n_updates=4, cloned=5)
    values = practised(TABLE, small, SwingUps(2).load(0), 0, 4, 7)
    assert np.mean(values[LOWEST]) <= np.mean(values[SCORE]) and len(values[LOWEST]) == 4
    cloned = practised(TABLE, replace(small, n_rounds=0), SwingUps(2).load(0), 0, 4, 7)
    assert cloned[LOWEST] == cloned[SCORE]
