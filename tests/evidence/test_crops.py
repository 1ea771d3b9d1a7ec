"""The table with handles: what is told, what is seen, and what counts as a grasp."""

import numpy as np
import torch

from evidence.families.pictures import crops as world
from understudy.core import keys
from understudy.data.episode import Episode
from understudy.policy import Policy
from understudy.testing import check_env


def test_the_world():
    check_env(world.HandleTable)
    env = world.HandleTable(200)
    obs = env.reset(torch.arange(200), keys(3, range(200)))
    places = env.state["places"]
    reach = np.hypot(*(places[:, 3:6] - places[:, :3]).transpose(2, 0, 1))
    np.testing.assert_allclose(reach, world.REACH, atol=1e-6)
    for column, block in ((world.FOCUS, 0), (world.OTHER, 1)):
        error = (obs[column].numpy() + 1) / 2 - places[:, block]
        assert 0.008 < error.std() < 0.012 and abs(error.mean()) < 0.002
    seen = obs[world.PICTURE].numpy()
    column, row = (120 * places[:, 3]).astype(int).T
    assert (np.abs(seen[np.arange(200), 119 - row, column] - np.array(world.COLORS["red"])) < 2).all(1).mean() > 0.95
    near = torch.from_numpy(places[:, 3]) + torch.tensor([0.019, 0.0])
    assert env.step(2 * near - 1).info["success"].all()
    env.reset(torch.arange(200), keys(3, range(200)))
    assert not env.step(2 * near - 1 + torch.tensor([0.004, 0.0])).info["success"].any()


def test_near_is_measured_in_meters():
    def episode(x):
        handle = np.zeros((2, 16), np.float32)
        handle[:, 6:8] = 0.5
        return Episode({"simulator.state": handle, "action": np.array([[x, 0.0]], np.float32)})
    assert world.is_near(episode(0.158)) and not world.is_near(episode(0.162))


def test_arms_see_what_their_names_say():
    policies = {name: Policy(method.policy, world.HandleTable().features) for name, method in world.TABLE.arms.items()}
    inputs = {name: set(policy.config.inputs) for name, policy in policies.items()}
    assert inputs["full"] == inputs["full, 40 x 40"] == {world.PICTURE} and inputs["center only"] == {world.FOCUS}
    assert inputs["crop"] == inputs["full + center"] == {world.PICTURE, world.FOCUS}
    assert inputs["another block"] == {world.PICTURE, world.OTHER}
    for name, policy in policies.items():
        assert policy.config.head.square == (1.0 if name.startswith("full") else 0.3)
        assert policy.encoder.tokens in (policy.config.head.n_clusters, 1)  # a cell is a token
