"""The moved camera, and the pictures that an encoder contrasts by where the disc goes."""

import numpy as np
import torch

from evidence.families.pictures import moved_camera as world
from understudy.policy import Policy


def middle(picture, color):
    """Where the pixels like a color are, (2,), from -1 to 1, to the right and up."""
    weights = np.exp(-np.abs(picture.astype(float) - color).sum(-1) / 20)
    axis = (np.arange(len(picture)) + 0.5) / len(picture) * 2 - 1
    return np.array([(weights.sum(0) * axis).sum(), -(weights.sum(1) * axis).sum()]) / weights.sum()


def test_the_camera_turns_and_zooms_about_the_middle_of_the_table():
    env, keys = world.MovedCamera(6), torch.arange(6)
    picture = env.reset(keys, keys)["observation.images.top"].numpy()
    cos, sin = env.state["camera"].T / (env.state["camera"]**2).sum(1)  # zoom times the cosine and the sine
    for row in range(6):
        goal = np.array([[cos[row], -sin[row]], [sin[row], cos[row]]]) @ (2 * np.array([0.7, 0.65]) - 1)
        np.testing.assert_allclose(middle(picture[row], (142, 201, 146)), goal, atol=0.06)
    zoom = np.hypot(cos, sin)
    assert 0.8 <= zoom.min() < zoom.max() <= 1.2 and np.ptp(np.arctan2(sin, cos)) > 0.3


def test_the_encoder_contrasts_pictures_by_where_the_disc_goes():
    data = world.PushesInViews(3).load(5)
    (stage,) = world.TABLE.arms["CLASS"].stages
    policy = Policy(stage.method.policy, data.features()).fit_statistics(data)
    batch = policy.windows(data).gather(np.arange(8))
    np.testing.assert_array_equal(batch.action, [np.asarray(data[0].steps[world.OWN])[i + 1:i + 17] for i in range(8)])
    assert policy.training_context(batch.obs, torch.Generator()).mask.tolist() == [[True, False]] * 8
