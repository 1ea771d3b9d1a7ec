"""Every toy keeps the contract and reaches its best possible success."""

import numpy as np
import pytest

from understudy import envs
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env

TOYS = (*envs.names(), "particle:8")


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_keeps_the_contract(name):
    check_env(lambda rows: envs.make(name, rows, limit=25))


@pytest.mark.parametrize("name", TOYS)
def test_the_best_possible_success_is_reached(name):
    env = envs.make(name, 200)
    expert = env.expert()
    steady = type(expert)(**{**vars(expert), "noise": 0.0})
    episodes = rollout(steady, env, 200, seed=4)
    assert np.mean([e.metadata["success"] for e in episodes]) == env.metadata["optimum"] == 1.0


@pytest.mark.parametrize("name", TOYS)
def test_recorded_experts_succeed_and_differ(name):
    env = envs.make(name, 100)
    episodes = rollout(env.expert(), env, 100, seed=5)
    assert np.mean([e.metadata["success"] for e in episodes]) >= 0.98
    assert len({len(e) for e in episodes}) > 3
    for e in episodes:
        ended = e.steps["next.terminated"] | e.steps["next.truncated"]
        assert ended[-1] and not ended[:-1].any() and len(e) <= env.metadata["limit"]
