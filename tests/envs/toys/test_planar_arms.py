"""Arms in the plane."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import UserError, keys
from understudy.envs.toys import planar_arms
from understudy.envs.toys.planar_arms import ARMS, TASKS, PlanarArms
from understudy.evaluate.rollout import rollout


def test_joints_turn_all_links_behind_them():
    lengths = np.array([0.5, 0.3, 0.2], np.float32)
    at = planar_arms.joint_positions(np.array([[np.pi / 2, -np.pi / 2, np.pi / 2]], np.float32), lengths)
    np.testing.assert_allclose(at[0], [[0, 0], [0, 0.5], [0.3, 0.5], [0.3, 0.7]], atol=1e-6)
    assert all(sum(arm) == pytest.approx(0.7 if name == "short" else 1) for name, arm in ARMS.items())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arm", ["two", "six", "human", "short"])
def test_inverse_kinematics_solves_every_task_with_every_arm(task, arm):
    env = PlanarArms(200, task=task, arm=arm)
    assert all(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 200))


def test_targets_lie_where_the_arm_can_be():
    """From 0.4 m to 0.1 m before the longest reach: 0.9 m for all arms, and 0.6 m for the short one."""
    for arm, farthest in (("three", 0.9), ("human", 0.9), ("short", 0.6)):
        env = PlanarArms(500, task=f"reach-{arm}")
        radius = np.linalg.norm(env.reset(torch.arange(500), keys(0, range(500)))[
            "observation.environment_state"].numpy(), axis=1)
        assert (radius.min(), radius.max()) == pytest.approx((0.4, farthest), abs=0.01)
        assert env.metadata["env"] == ("planar_arms" if arm == "three" else f"planar_arms:reach-{arm}")


def test_the_expert_moves_the_tip_where_it_wants():
    """Without damping, the tip of a bent arm moves straight at the target; joints turn as little as that takes."""
    env = PlanarArms(1, arm="four")
    joints, target = torch.tensor([[0.3, 0.5, -0.7, 0.9]]), torch.tensor([[0.55, 0.45]])
    tip = torch.from_numpy(planar_arms.joint_positions(joints.numpy(), env.lengths)[:, -1])
    obs = env.restore(torch.tensor([0]), {"observation.state": torch.cat([joints, tip], 1),
                                          "observation.environment_state": target})
    expert = replace(env.expert(), noise=0.0, damping=0.0)
    action, _ = expert.act(obs, expert.start(obs, keys(0, [0])))
    env.step(1e-3 * action)
    moved, ahead = torch.from_numpy(env.tip()) - tip, target - tip
    assert torch.nn.functional.cosine_similarity(moved, ahead).item() == pytest.approx(1, abs=1e-4)
    null = torch.linalg.svd(_jacobian(joints, env.lengths))[2][2:]  # motions of the joints that leave the tip in place
    assert (null @ action[0]).abs().max() < 1e-5


def _jacobian(joints, lengths):
    def tip(q):
        angle = q.cumsum(0)
        return torch.stack([(torch.from_numpy(lengths) * f(angle)).sum() for f in (torch.cos, torch.sin)])
    return torch.autograd.functional.jacobian(tip, joints[0])


def test_a_target_is_followed_only_while_it_is_near():
    env = PlanarArms(1, task="track")
    env.state |= {"center": env.tip() - np.float32([[0, 0.2]]), "target": env.tip(), "followed": np.array([13])}
    out = env.step(torch.zeros(1, 3))
    assert env.state["followed"].tolist() == [14] and not out.terminated[0]
    out = env.step(torch.zeros(1, 3))  # two steps of 0.06 rad are 24 mm: still near
    assert out.info["success"].tolist() == [True] and out.reward.tolist() == [1]
    env.state |= {"target": env.state["center"] - (env.tip() - env.state["center"]), "followed": np.array([13])}
    env.step(torch.zeros(1, 3))
    assert env.state["followed"].tolist() == [0]


def test_two_cameras_show_the_same_scene():
    env = PlanarArms(2, task="push", arm="human", camera_size=32)
    obs = env.reset(torch.arange(2), keys(0, [1, 2]))
    top, side = (obs[f"observation.images.{view}"] for view in ("top", "side"))
    assert top.shape == side.shape == (2, 32, 32, 3) and (top != side).any()
    again = env.restore(torch.tensor([1]), {k: obs[k][:1] for k in env.state_columns})
    assert torch.equal(again["observation.images.top"][1], top[0])
    with pytest.raises(UserError, match="there is no arm 'seven'"):
        PlanarArms(arm="seven")
