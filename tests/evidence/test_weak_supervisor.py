"""Row 015: what the supervisor knows, the control, and which steps count."""

import numpy as np
import torch

from evidence.families.corrections.weak_supervisor import (
    KNOWS,
    STATE,
    Clumsy,
    MovedPenalty,
    Rooms,
    StepsToGo,
    without_first_steps,
)
from understudy.core import keys, uniform
from understudy.data.episode import Episode
from understudy.data.relabel import InterventionPenalty
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import NoisyActor
from understudy.improve.gates import GatedActor, ValueGate
from understudy.testing import check_env


def test_the_world_is_an_environment():
    check_env(Rooms)


def test_the_critic_counts_the_steps_of_the_expert():
    rows, env = torch.arange(40), Rooms(40)
    at, action = (uniform(keys(0, rows), torch.zeros_like(rows), (2,), stream) for stream in (0, 1))
    at, action = 0.2 + 7.6 * at, 4 * action - 2
    obs = env.restore(rows, {STATE: at})
    state, steps, n = KNOWS.start(obs, torch.zeros_like(rows)), torch.full((40,), 99), action
    for t in range(80):
        result = env.step(n)
        steps = torch.where(result.info["success"], steps.clamp(max=t + 1), steps)
        n, state = KNOWS.act(result.obs, state)
    error = (StepsToGo()({STATE: at[:, None]}, action[:, None]) + steps).abs()
    assert error.mean() < 0.5 and error.max() < 2  # interpolated between places that are 0.1 m apart


def test_a_supervisor_is_called_by_what_it_knows_and_acts_as_it_can():
    gate, idle = ValueGate(StepsToGo(), 0.5, slip=0.0), NoisyActor(None, 2, 0.0)
    acts = [e.steps["intervention"] for e in rollout(GatedActor(idle, Clumsy(idle), gate), Rooms(5), 5, 3)]
    assert np.mean(acts) == 0.8
    skilled = rollout(GatedActor(Clumsy(KNOWS), Clumsy(idle), gate), Rooms(5), 5, 3)
    assert all(e.metadata["success"] for e in skilled)


def episode() -> Episode:
    flags = np.array([0, 0, 1, 1, 0, 1, 1, 1, 0, 0], bool)
    return Episode({"intervention": flags, "action": np.zeros((10, 2), np.float32)}, {"number": 4})


def test_of_a_takeover_the_last_step_counts():
    assert without_first_steps(episode()).tolist() == [1, 1, 0, 1, 1, 0, 0, 1, 1, 1]
    demonstration = episode().replace({"intervention": np.ones(10, bool)})
    assert without_first_steps(demonstration).all()


def test_the_control_moves_penalties_within_an_episode():
    before, moved = (change(episode()).steps["next.reward"] for change in (InterventionPenalty(), MovedPenalty()))
    assert np.flatnonzero(before).tolist() == [1, 4] and moved.sum() == before.sum() == -2
    assert not np.array_equal(moved, before)
    assert np.array_equal(moved, MovedPenalty()(episode()).steps["next.reward"])
