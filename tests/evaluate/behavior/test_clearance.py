"""Near misses: distances from the edge of a goal."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures.behaviors import episode

from understudy import make, rollout
from understudy.envs.toys.fork import Fork
from understudy.evaluate.behavior import clearance
from understudy.execute.actor import NoisyActor


def test_margins_are_distances_from_the_edge():
    env = Fork()
    past = replace(episode([[0, 0], [0.6, 0.5], [1.0, 0.3]]), metadata={"success": True})
    assert clearance.success_margin(past, env) == pytest.approx(math.hypot(0.2, 0.3) - 0.1, abs=1e-6)
    assert (
        clearance.obstacle_clearance(past, env) == pytest.approx(0.25, abs=1e-6) and clearance.distance_unit(env) == "m"
    )
    assert clearance.success_margin(past, None) is None
    assert clearance.success_margin(replace(past, metadata={"margin": 0.7}), None) == 0.7


def test_of_several_goals_none_is_the_one_that_was_missed():
    for name in ("blocks", "memory"):
        env = make(name, 2)
        still = rollout(NoisyActor(None, env.features["action"].size, 0.0), env, 2)
        assert {clearance.success_margin(e, env) for e in still} == {None}


def test_margins_where_the_goal_differs_by_episode():
    env = make("push", 3)
    for e in rollout(env.expert(), env, 3, seed=0):
        assert e.metadata["success"] and clearance.success_margin(e, env) == 0
    still = rollout(NoisyActor(None, 2, 0.0), env, 3, seed=0)
    for e in still:
        s = e.steps["observation.state"][0]
        assert clearance.success_margin(e, env) == pytest.approx(np.hypot(*(s[2:4] - s[6:8])) - 0.03, abs=1e-6)
        assert clearance.obstacle_clearance(e, env) is None
