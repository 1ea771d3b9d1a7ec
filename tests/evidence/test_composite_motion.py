"""The world, the measure and the control about several objectives."""

import numpy as np
import pytest
import torch

from evidence.families.matching_rewards import composite_motion as table
from understudy.data.episode import Dataset, Episode
from understudy.learn.critics.ppo import ADVANTAGE
from understudy.policy import Policy
from understudy.testing import check_env


def test_the_world_and_its_clips():
    check_env(table.PointingArm)
    env = table.PointingArm(2)
    env.state["joints"][:] = 0
    env.state["target"][:] = [[0, 1], [1, 0]]
    np.testing.assert_allclose(env.observe()[table.AIM], [[0, 1], [1, 0]], atol=1e-6)
    result = env.step(torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, -1]]))
    bent = np.arctan2(0.2 * np.sin(0.15), 0.8 + 0.2 * np.cos(0.15))
    assert result.reward.tolist() == pytest.approx([np.sin(0.15), np.cos(bent)])
    assert result.obs[table.UPPER].tolist() == [[0] * 4] * 2
    assert result.obs[table.LOWER].tolist() == [[0] * 4, pytest.approx([0, -0.15, 0, -0.15])]
    first, second = table.Clips(episodes=2).load(3)
    assert min(*table.styles(first)[:2], *table.styles(second)[:2]) > 0.95
    assert np.abs(first.steps[table.UPPER][0] - second.steps[table.UPPER][0]).max() > 0.1
    lower = first.steps[table.LOWER]
    np.testing.assert_allclose(np.diff(lower[:, :2], axis=0), lower[1:, 2:], atol=1e-6)


def test_a_style_is_a_place_and_a_turn():
    def fractions(radius, turn, aim):
        joints = np.float32(radius) * table.at_phase(turn * np.arange(11)) / table.RADIUS
        motion = np.concatenate([joints, 0 * joints], 1).astype(np.float32)
        return table.styles(Episode({table.UPPER: motion, table.LOWER: motion, "action": np.zeros((10, 5), np.float32),
                                     table.AIM: np.full((11, 2), np.cos(aim), np.float32)}))
    assert fractions(0.5, 0.2, 0.1) == [1, 0, 1] and fractions(0.5, -0.2, 0.3) == [0, 1, 0]
    assert fractions(0.5, 0.0, 0.1) == fractions(0.9, 0.2, 0.1) == [0, 0, 1]
    assert fractions(0.6, 0.2, 0.1)[0] == 1


def test_what_combines_the_rewards():
    """One objective that is the mean, or three in the units of their rewards."""
    data = table.Clips(episodes=2).load(3).map(lambda e: e.replace({"next.reward": e.steps["next.reward"] + 1}))
    found = {}
    for combined in ("apart", "summed", "together"):
        method = table.Practice(combined, 100.0).method
        episodes = Dataset([change(e) for change in method.transforms for e in data])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = Policy(method.policy, episodes.features()).fit_statistics(episodes)
            learner = method.learner.build(policy, 0, 1, episodes)
        for parameter in (*learner.value.parameters(), *learner.reward.parameters()):
            parameter.data.zero_()
        annotated = learner.annotate(episodes, 0)
        found[combined] = torch.from_numpy(annotated[0].steps[ADVANTAGE]), learner
    apart, summed, together = (found[k][0] for k in ("apart", "summed", "together"))
    assert apart.shape == together.shape == (table.LIMIT, 3) and summed.shape == (table.LIMIT,)
    torch.testing.assert_close(together, apart * torch.tensor(found["apart"][1].reward_units))
    torch.testing.assert_close(together.mean(1), summed, rtol=1e-4, atol=1e-3)
    ratio = found["together"][1]._standardized(together).std(0) / together.std(0)
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(found["apart"][1]._standardized(apart).std(0), torch.ones(3))
