"""Observations with noise of their own."""

import numpy as np
import pytest

from understudy import make
from understudy.core import UserError
from understudy.envs.observation_wrappers import NoiseColumns
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env


def test_the_contract_of_environments():
    check_env(lambda rows: NoiseColumns(make("four_rooms", rows)))


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_noise_has_the_correlation_that_was_asked_for_and_the_task_stays(correlation):
    env = make("four_rooms:play", 20)
    noisy = rollout(env.expert(), NoiseColumns(env, 8, correlation), 20, seed=1)
    noise = [e.steps["observation.noise"] for e in noisy]
    now, later = (np.concatenate([n[rows] for n in noise]) for rows in (slice(None, -1), slice(1, None)))
    assert abs(now.std() - 1) < 0.1 and abs((now * later).mean() - correlation) < 0.05
    assert abs((noise[0] * noise[1]).mean()) < 0.3  # episodes do not share it
    bare = rollout(env.expert(), env, 20, seed=1)
    assert all((a.steps["observation.state"] == b.steps["observation.state"]).all()
               for a, b in zip(noisy, bare, strict=True))


def test_settings_that_make_no_sense_are_refused():
    env = make("four_rooms", 1)
    with pytest.raises(UserError, match="below 1"):
        NoiseColumns(env, correlation=1.0)
    with pytest.raises(UserError, match="choose another name"):
        NoiseColumns(env, into="observation.state")
