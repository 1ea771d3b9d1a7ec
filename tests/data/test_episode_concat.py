"""Episodes joined to a curriculum: which, in which order, and that they are what several trials record."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.episode_concat import NEW_TRIAL, EpisodeConcat
from understudy.envs.episode_wrappers import MultiTrialEnv
from understudy.envs.toys.fork import Fork
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor


def numbered(levels) -> Dataset:
    """Episodes of 2, 3, ... steps, whose observation is the number of the episode, of these levels."""
    return Dataset([
        Episode({"observation.state": np.full((3 + i, 1), i, np.float32), "action": np.full((2 + i, 1), i, np.float32),
                 "next.success": np.eye(2 + i, dtype=bool)[-1]}, {"proficiency": level, "number": i})
        for i, level in enumerate(levels)])


def test_the_worst_come_first_and_each_group_gives_as_many_as_asked():
    data = numbered([2, 0, 1, 0, 2, 1, 0])
    for joined in EpisodeConcat(n_episodes=50, per_group=(1, 2)).apply(data):
        numbers = joined.metadata["joined"]
        levels = [data[i].metadata["proficiency"] for i in numbers]
        assert levels == sorted(levels) and len(set(numbers)) == len(numbers)
        assert all(1 <= levels.count(level) <= 2 for level in range(3))
        assert joined.metadata["number"] == numbers[-1]
        assert joined.steps["action"][:, 0].tolist() == [i for i in numbers for _ in range(2 + i)]
        assert joined.steps["observation.state"][:, 0].tolist() == [*(i for i in numbers for _ in range(2 + i)),
                                                                    numbers[-1]]
        starts = np.cumsum([0, *(2 + i for i in numbers[:-1])])
        assert np.flatnonzero(joined.steps[NEW_TRIAL]).tolist() == starts.tolist()
        assert joined.steps["next.success"].nonzero()[0].tolist() == [len(joined) - 1]


def test_other_orders_have_the_same_episodes():
    data = numbered([0, 1, 2, 0, 1, 2])
    rising, falling, shuffled = (
        [e.metadata["joined"] for e in EpisodeConcat(n_episodes=60, per_group=(2, 2), order=order).apply(data)]
        for order in ("rising", "falling", "shuffled"))
    assert all([i % 3 for i in some] == [0, 0, 1, 1, 2, 2] for some in rising)
    assert all([i % 3 for i in some] == [2, 2, 1, 1, 0, 0] for some in falling)
    assert all(sorted(some) == [0, 1, 2, 3, 4, 5] for some in shuffled)
    assert len({tuple(i % 3 for i in some) for some in shuffled}) > 30  # of 90 orders


def test_a_group_gives_no_more_than_it_has_and_groups_can_be_named():
    data = numbered(["novice", "expert", "novice", None])
    for e in EpisodeConcat(groups=("novice", "expert"), n_episodes=9, per_group=(4, 4)).apply(data):
        assert e.metadata["joined"] in ([0, 2, 1], [2, 0, 1])
    same = [EpisodeConcat(groups=("novice",), n_episodes=9, seed=seed).apply(data) for seed in (3, 3, 4)]
    first, again, other = ([e.metadata["joined"] for e in some] for some in same)
    assert first == again != other
    assert NEW_TRIAL not in EpisodeConcat(groups=("novice",), n_episodes=1, into="").apply(data)[0].steps


def test_joined_episodes_share_what_is_asked_for():
    goals = [1, 1, 2, 2, 1, 2, 1, 1, 3]
    data = Dataset([replace(e, metadata={**e.metadata, "goal": goal})
                    for e, goal in zip(numbered([0, 1, 0, 1, 1, 1, 0, 1, 1]), goals, strict=True)])
    joined = EpisodeConcat(n_episodes=60, per_group=(1, 2), same="goal").apply(data)
    drawn = [{goals[i] for i in e.metadata["joined"]} for e in joined]
    assert all(len(some) == 1 for some in drawn)
    assert set.union(*drawn) == {1, 2}, "nobody of group 0 went to goal 3"
    assert 15 < sum(some == {1} for some in drawn) < 45, "both are drawn equally often"
    for e in joined:
        levels = [data[i].metadata["proficiency"] for i in e.metadata["joined"]]
        assert levels == sorted(levels) and set(levels) == {0, 1}
    with pytest.raises(UserError, match="the groups have no number in common.*\n.*every group of proficiency needs"):
        EpisodeConcat(same="number").apply(data)


@pytest.mark.parametrize(("options", "said"), [
    ({"per_group": (2, 1)}, r"per_group: per_group is \(2, 1\)"), ({"n_episodes": 0}, "n_episodes is 0"),
    ({"field": "skill"}, "there is no field 'skill'"), ({}, "episode 2: the episode has no 'proficiency'"),
    ({"groups": (0, 5)}, "no episode has proficiency 5"), ({"order": "up"}, "order is 'up', but must")])
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        EpisodeConcat(**options).apply(numbered([0, 1, None]))


def test_a_joined_episode_is_what_several_trials_record():
    class Straight(Actor):
        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return torch.tensor([[0.1, 0.02]]).expand(len(obs["observation.state"]), 2), state
    single = rollout(Straight(), Fork(1, limit=5), 1, seed=1)
    trials = rollout(Straight(), MultiTrialEnv(Fork(1, limit=5), 3, redraw=False), 1, seed=1)[0]
    three = Dataset([replace(single[0], metadata={"proficiency": i}) for i in range(3)])
    joined = EpisodeConcat(n_episodes=1, per_group=(1, 1)).apply(three)[0]
    assert set(joined.steps) == set(trials.steps)
    for name, column in trials.steps.items():
        np.testing.assert_array_equal(joined.steps[name], column, err_msg=name)
