"""The grid, and the episodes from which practice that is told to have succeeded learns."""

import numpy as np

from evidence.families.missing_actions import told_success as world
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env


def test_the_grid_and_its_demonstrations():
    check_env(world.WindingGrid)
    data = world.TABLE.source.load(3)
    walks = data.filter(lambda e: e.metadata["dataset"] == "task")
    assert (len(data), len(walks)) == (25, 5) and all(e.metadata["success"] for e in walks)
    env = world.WindingGrid(20).env
    assert np.mean([e.metadata["success"] for e in rollout(env.expert(), env, 200, seed=4)]) > 0.97


def test_without_the_filter_all_collected_episodes_are_drawn():
    steps = {world.STATE: np.zeros((2, 1), np.float32), "action": np.zeros((1, 1), np.int64)}
    collected = [Episode(steps, {ROUND: 0, "success": s}) for s in (True, False, False)]

    def drawn(change):
        data = Dataset([Episode(steps), *map(change, collected)])
        weights = world.SUCCESS_BALANCED.practice_weights(data)
        return [float(weights(e)[0]) for e in data]
    assert np.allclose(drawn(lambda e: e), [2 / 3, 1 / 3, 0, 0])
    assert np.allclose(drawn(world.count_all), [0, 1 / 3, 1 / 3, 1 / 3])
