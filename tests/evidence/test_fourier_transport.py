"""The toy of the claim fourier-transport, its demonstrations and its negative control."""

import numpy as np
import torch
from evidence.families.policy_heads.fourier_transport import (
    SlotTable,
    TurnedDemonstrations,
    Unrotated,
    expert_action,
    render_poses,
    rotate,
    wrap_angle,
)

from understudy.core import HeadSpec
from understudy.evaluate.rollout import rollout
from understudy.nets.transformer import Transformer
from understudy.testing import check_env


def test_the_toy_is_an_environment_whose_expert_always_succeeds():
    check_env(lambda rows: SlotTable(rows, 16))
    env = SlotTable(50, 16)
    assert all(e.metadata["success"] for e in rollout(env.expert(), env, 100, seed=0))


def test_demonstrations_are_the_same_scene_from_other_sides():
    data = TurnedDemonstrations(2, 5, 24).load(0)
    actions = np.stack([e.steps["action"][0] for e in data])
    assert len(data) == 10 and len(np.unique(actions[:5, 4].round(5))) == 1  # the turn of the object stays
    apart = np.linalg.norm(actions[:, :2] - actions[:, 2:4], axis=1)
    np.testing.assert_allclose(apart[:5], apart[0], atol=1e-5)
    assert np.abs(actions[:, :4]).max() < 1


def test_a_picture_turns_with_its_poses():
    poses = np.array([[0.4, 0.1, 0.3, -0.45, -0.1, 0.9]], np.float32)
    turned = poses.copy()
    for i in (0, 3):
        turned[:, i : i + 2] = rotate(poses[:, i : i + 2], np.array([np.pi / 2]))
        turned[:, i + 2] = wrap_angle(poses[:, i + 2] + 0.5)
    one, other = (render_poses(p, 24)[0].astype(int) for p in (poses, turned))
    assert np.abs(np.rot90(one) - other).max() <= 2
    np.testing.assert_allclose(expert_action(turned)[:, 4], expert_action(poses)[:, 4], atol=1e-6)


def test_copies_that_are_not_rotated_do_not_tell_the_angle():
    head = Unrotated(7, 8, 3, 24, hidden=(2,), features=2, kernel=3)
    net = head.build(Transformer(), 5, HeadSpec(1, 256, 3))
    scores = net.place_logits(torch.rand(2, 3, 16, 16), torch.tensor([100, 120]))
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores), atol=1e-5, rtol=0)
