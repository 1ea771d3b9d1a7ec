"""The moved camera, the arms and the control of the claim about contrast of actions."""

import numpy as np
import torch
from claims.features_of_pictures import moved_camera as claim

from understudy.policy import Policy


def middle(picture, color):
    """Where the pixels like a color are, (2,), from -1 to 1, to the right and up."""
    weights = np.exp(-np.abs(picture.astype(float) - color).sum(-1) / 20)
    axis = (np.arange(len(picture)) + 0.5) / len(picture) * 2 - 1
    return np.array([(weights.sum(0) * axis).sum(), -(weights.sum(1) * axis).sum()]) / weights.sum()


def test_the_camera_turns_and_zooms_about_the_middle_of_the_table():
    env, keys = claim.MovedCamera(6), torch.arange(6)
    picture = env.reset(keys, keys)[claim.PICTURE].numpy()
    cos, sin = env.state["camera"].T / (env.state["camera"]**2).sum(1)  # zoom times the cosine and the sine
    for row in range(6):
        goal = np.array([[cos[row], -sin[row]], [sin[row], cos[row]]]) @ (2 * np.array([0.7, 0.65]) - 1)
        np.testing.assert_allclose(middle(picture[row], (142, 201, 146)), goal, atol=0.06)
    zoom = np.hypot(cos, sin)
    assert 0.8 <= zoom.min() < zoom.max() <= 1.2 and np.ptp(np.arctan2(sin, cos)) > 0.3


def test_both_cameras_show_the_same_pushes():
    data = claim.PushesInViews(3).load(5)
    fixed, moved = (claim.part(name).apply(data) for name in (claim.FIXED, claim.MOVED))
    for a, b in zip(fixed, moved, strict=True):
        np.testing.assert_array_equal(a.steps["action"], b.steps["action"])
        assert (np.asarray(a.steps[claim.PICTURE]) != np.asarray(b.steps[claim.PICTURE])).mean() > 0.02


def test_the_encoder_contrasts_pictures_by_where_the_disc_goes_and_the_control_permutes_it():
    data = claim.part(claim.MOVED).apply(claim.PushesInViews(3).load(5))
    (stage,) = claim.by_actions(claim.MOVED, claim.SoftInfoNCE()).method.stages
    policy = Policy(stage.method.policy, data.features()).fit_statistics(data)
    batch = policy.windows(data).gather(np.arange(8))
    np.testing.assert_array_equal(batch.action, [np.asarray(data[0].steps[claim.OWN])[i + 1:i + 17] for i in range(8)])
    context = policy.training_context(batch.obs, torch.Generator())
    assert context.mask.tolist() == [[True, False]] * 8
    weights, permuted = (objective.pair_weights(batch.action) for objective in (
        claim.SoftInfoNCE(0.2), claim.PermutedActions(0.2)))
    torch.testing.assert_close(permuted, weights.roll((1, 1), (0, 1)))


def test_features_are_those_of_the_picture_alone():
    data = claim.part(claim.MOVED).apply(claim.PushesInViews(2).load(5))
    policy = Policy(claim.end_to_end(claim.MOVED).method.policy, data.features()).fit_statistics(data).eval()
    env = claim.EncodedPictures(claim.MovedCamera(4), policy)
    obs = env.reset(torch.arange(4), torch.arange(4))
    other = env.transform_obs({**obs, claim.OWN: obs[claim.OWN] + 1})
    torch.testing.assert_close(other["observation.features"], obs["observation.features"])
    assert obs["observation.features"].std(0).max() > 1e-4
