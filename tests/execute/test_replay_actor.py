"""ReplayActor: the nearest start is chosen by hand-worked distances, and recordings are replayed as they are."""

import numpy as np
import pytest
import torch

from understudy.core import DataError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.retargeting import MotionRetargeting
from understudy.envs import make
from understudy.envs.toys.planar_arms import ARMS, SPEED
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.replay_actor import ReplayActor


def episode(state, actions):
    return Episode({"observation.state": np.tile(np.array(state, np.float32), (len(actions), 1)),
                    "action": np.array(actions, np.float32)[:, None]})


def replayed(actor, first, steps):
    obs = {"observation.state": torch.tensor([first], dtype=torch.float32)}
    state, actions = actor.start(obs, keys(0, range(1))), []
    for _ in range(steps):
        action, state = actor.act(obs, state)
        actions.append(action.item())
    return actions, state["record"]["demonstration"].item()


def test_distances_are_in_standard_deviations_of_the_starts():
    # Deviations 1, 100 and 0. From (0.9, 120), 0 is (0.9, 1.2) away: 1.5. 1 is (1.1, 0.8) away: 1.36.
    data = Dataset([episode((0, 0, 5), [1, 2]), episode((2, 200, 5), [3, 4])])
    assert replayed(ReplayActor(data), (0.9, 120, 5), 1) == ([3], 1)
    assert replayed(ReplayActor(data), (0.9, 100, 5), 1) == ([1], 0)
    assert replayed(ReplayActor(data), (0.9, 100, 700), 1) == ([1], 0), "the third component does not vary"


@pytest.mark.parametrize(("end", "last"), [("repeat", 2), ("zero", 0)])
def test_after_the_last_action(end, last):
    data = Dataset([episode((0,), [1, 2])])
    assert replayed(ReplayActor(data, end), (0,), 4)[0] == [1, 2, last, last]


def test_demonstrations_that_begin_alike_are_replayed_exactly():
    env = make("planar_arms:reach-short", rows=2)
    shown = rollout(env.expert(), env, 3, recording_seed(3))
    copied = rollout(ReplayActor(shown), env, 3, recording_seed(3))
    for a, b in zip(shown, copied, strict=True):
        np.testing.assert_array_equal(a.steps["action"], b.steps["action"])
        np.testing.assert_array_equal(a.steps["observation.state"], b.steps["observation.state"])


def test_demonstrations_of_another_body_are_refused():
    env = make("planar_arms:reach-two", rows=1)
    human = make("planar_arms:reach-human", rows=1)
    shown = rollout(human.expert(), human, 2, recording_seed(3))
    with pytest.raises(DataError, match=r"6 numbers, and one of the demonstrations 7[\s\S]*MotionRetargeting"):
        rollout(ReplayActor(shown), env, 1, 0)
    rollout(ReplayActor(MotionRetargeting(ARMS["two"], turn=SPEED).apply(shown), "zero"), env, 1, 0)
    with pytest.raises(DataError, match="there is no demonstration"):
        rollout(ReplayActor(shown.select([])), human, 1, 0)


def test_pictures_alone_are_refused():
    pictures = np.zeros((1, 4, 4, 3), np.uint8)
    data = Dataset([Episode({"observation.image": pictures, "action": np.zeros((1, 1), np.float32)})])
    with pytest.raises(DataError, match="no observations that are vectors"):
        ReplayActor(data).start({"observation.image": torch.from_numpy(pictures)}, keys(0, range(1)))
