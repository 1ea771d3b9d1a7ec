"""Rows 146, 012 and 186: steps of matching in locks against their expectation, and the world of two goals."""

from dataclasses import dataclass

import numpy as np
import torch

from evidence.families.matching_rewards.expert_starts import Matching, right_actions
from evidence.families.matching_rewards.growing_discount import (
    GOALS,
    NOISE,
    SPREAD,
    START,
    TABLE,
    TwoGoals,
    WithoutActions,
)
from evidence.families.matching_rewards.one_demonstration import TABLE as ARMS
from evidence.families.matching_rewards.one_demonstration import (
    OneWithoutActions,
    SquaredDistance,
    TimedGoals,
    tracking_errors,
)
from understudy.data.episode import Dataset
from understudy.envs.toys.mdp import combination_lock
from understudy.envs.toys.particle import ParticleExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.policy import Policy


def test_the_right_actions_are_those_of_the_best_policy_of_the_lock():
    right = right_actions(3, 6, 4)
    for i in range(4):
        best = combination_lock(6, 2, resets=False, seed=3000 + i).best_policy(6)
        assert [best[5 - k, k].argmax() for k in range(6)] == right[i].tolist()
    assert not (right == right[0]).all()


def test_matching_takes_as_many_steps_as_guesses_take_in_the_mean():
    """Opened from the start with chance 2^-H, after 2 - 2^(1 - H) steps in the mean: 2^(H + 1) - 2 steps.

    With two positions, all starts demonstrated: an episode has 1.25 steps in the mean. With chance 1/8 it opens the
    lock from the start, with chance 1/4 from the second position, after which an episode opens it with chance 1/4.
    """
    def mean(length, *options):
        right = right_actions(5, length, 1).repeat(4000, 0)
        return Matching(*options, limit=1000).steps(right, np.random.default_rng(0)).mean()
    np.testing.assert_allclose([mean(1), mean(2), mean(4)], [2, 6, 30], rtol=0.05)
    np.testing.assert_allclose(mean(2, "expert", 1.0), (1.25 + 0.25 * 5) / (1 - 0.625), rtol=0.05)
    assert mean(6, "own", 0.5) < 0.8 * mean(6)  # deeper states are starts as well


def test_the_detour_is_made_by_the_expert_and_not_by_the_short_way():
    env = TwoGoals(20)
    episodes = rollout(ParticleExpert(), env, 20, seed=0)
    assert all(e.metadata["success"] and len(e) == 50 and not np.any(e.steps["next.terminated"]) for e in episodes)
    state = np.asarray(episodes[0].steps["observation.state"])
    assert np.linalg.norm(state[0, :2] - START) <= SPREAD and np.allclose(state[:, 4:8], np.ravel(GOALS))
    visited, ways = state[1:, 8] > 0, [np.linalg.norm(state[1:, :2] - goal, axis=1) for goal in GOALS]
    left = np.where(visited, ways[1], ways[0] + np.linalg.norm(np.subtract(*GOALS)))
    np.testing.assert_allclose(episodes[0].steps["next.reward"], -left, rtol=1e-4)

    @dataclass(frozen=True)
    class ShortWay(Actor):
        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return torch.tensor(GOALS[1]).expand(len(obs["observation.state"]), 2), state
    assert not any(e.metadata["success"] for e in rollout(ShortWay(), env, 20, seed=0))


def test_demonstrations_show_no_actions_and_arms_differ_in_their_discount_alone():
    shown = WithoutActions(4).load(0)
    recorded = rollout(ParticleExpert(noise=NOISE), TwoGoals(4), 4, recording_seed(0))
    expert = recorded.filter(lambda e: e.metadata["success"])
    assert len(shown) == len(expert) > 0
    assert np.array_equal(shown[0].steps["observation.state"], expert[0].steps["observation.state"])
    assert abs(np.corrcoef(shown[0].steps["action"][:, 0], expert[0].steps["action"][:, 0])[0, 1]) < 0.5
    methods = {name: option.method for name, option in TABLE.arms.items()}
    assert methods["ADS"].learner.n_step == 3 and methods["linear"].learner.threshold == 0
    for method in methods.values():
        assert method.collection == methods["ADS"].collection
        assert method.policy == methods["ADS"].policy and method.learner.n_step == 3


def moved(episode, places):
    state = np.array(episode.steps["observation.state"])
    state[:, :2] = places
    return episode.replace({"observation.state": state})


def test_tracking_errors_warp_time_and_standing_still_has_one():
    data = OneWithoutActions().load(0)
    state = np.asarray(data[0].steps["observation.state"])
    assert len(data) == 1 and data[0].metadata["success"]
    np.testing.assert_allclose(state[:, 8], np.arange(51) / 50, rtol=1e-6)
    late, still = np.maximum(np.arange(51) - 5, 0), np.zeros(51, int)
    rollouts = Dataset([data[0], *(moved(data[0], state[rows, :2]) for rows in (late, still))])
    errors = tracking_errors(rollouts, data[0])
    assert errors[0] == 0 and 0 < errors[1] < 0.25 and errors[2] == 1


def test_the_squared_distance_is_that_of_steps_with_the_same_number():
    data = OneWithoutActions().load(0)
    policy = Policy(ARMS.arms["squared distance"].method.policy, data.features()).fit_statistics(data)
    model, own = SquaredDistance().build(policy, data), rollout(ParticleExpert(noise=0.3), TimedGoals(1), 1, seed=3)
    codec = policy.codec.encode_obs
    coded = [codec({"observation.state": torch.as_tensor(np.array(e.steps["observation.state"]))[:, None]})
             for e in (own[0], data[0])]
    own_steps, shown = (c["observation.state"][1:, 0] for c in coded)
    torch.testing.assert_close(model.rewards(model.read(own[0])), (-(own_steps - shown).square().mean(1)).exp())


def test_arms_of_one_demonstration_differ_in_their_reward_alone():
    methods = {name: option.method for name, option in ARMS.arms.items()}
    first = methods["squared distance"]
    for name, method in methods.items():
        assert (method.collection, method.policy) == (first.collection, first.policy)
        learner = {f: getattr(method.learner, f) for f in type(first.learner).__dataclass_fields__ if f != "reward"}
        assert learner == {f: getattr(first.learner, f) for f in learner}, name
    rewards = {name: method.learner.reward for name, method in methods.items()}
    weights = [(rewards[n].frame_weight, rewards[n].sequence_weight) for n in ("frame + sequence", "frame", "sequence")]
    assert weights == [(1, 1), (1, 0), (0, 1)] and rewards["GAIfO"].inputs == "next"
