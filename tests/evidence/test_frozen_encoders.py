"""What the experiment with frozen encoders of pictures records and measures, on cases with known answers."""

from collections import Counter

import numpy as np
import torch

from evidence.families.pictures import frozen_encoders as world
from understudy.data.episode import Episode
from understudy.policy import Policy


def test_parts_have_their_goals_and_the_block_starts_near_its_place():
    data = world.PushesToGoals(12, 2, 3).load(5)
    starts = np.array([np.asarray(e.steps[world.STATE])[0] for e in data])
    numbers = [int(np.abs(np.array(world.GOALS) - start[6:]).sum(1).argmin()) for start in starts]
    assert Counter(zip(numbers, (e.metadata["dataset"] for e in data), strict=True)) == {
        (0, "task"): 2, (0, "prior"): 2, (0, "more"): 3, (1, "prior"): 4, (2, "prior"): 4}
    assert np.abs(starts[:, 2:4] - world.BLOCK).max() <= 0.1 and np.abs(starts[:, :2] - world.DISC).max() <= 0.06
    assert all(e.metadata["success"] for e in data)


def test_features_of_episodes_are_those_of_the_environment_and_of_the_picture_alone():
    data = world.PushesToGoals(3, 1, 0).load(5)
    policy = Policy(world.TABLE.arms["random"].encoder.policy, data.features()).fit_statistics(data).eval()
    env = world.EncodedPictures(world.NearPush(4), policy)
    obs = env.reset(torch.arange(4), torch.arange(4))
    features = obs[world.FEATURES]
    steps = {name: obs[name].numpy() for name in (world.PICTURE, world.OWN, world.STATE)}
    encoded = env.transform_episode(Episode({**steps, "action": np.zeros((4, 2), np.float32)}, schema=data.features()))
    np.testing.assert_allclose(encoded.steps[world.FEATURES], features, atol=1e-6)
    assert features.shape == (4, world.WIDTH) and features.std(0).max() > 1e-4
    moved = env.transform_obs({**obs, world.OWN: obs[world.OWN] + 1})
    torch.testing.assert_close(moved[world.FEATURES], features)


def test_progress_is_the_part_of_the_way_that_is_done():
    def episode(end, success=False):
        state = np.zeros((3, 8), np.float32)
        state[:, 2] = 0.1, 0.9, end
        return Episode({world.STATE: state, "action": np.zeros((3, 2), np.float32)}, {"success": success})
    np.testing.assert_allclose([world.progress(episode(e)) for e in (0.1, 0.05, 0.3)], [0, 0.5, 0], atol=1e-6)
    assert world.progress(episode(0.05, True)) == 1
