"""Bad demonstrations and weights are as they say."""

import numpy as np
import torch

from evidence.families.bad_demonstrations.spoiled_demonstrations import DetourExpert, sharpen, straight_flights
from understudy.envs.toys.fork import GOAL, GOAL_RADIUS, ForkExpert


def test_a_circle_ends_where_it_began():
    actor = DetourExpert(ForkExpert(side=1, noise=0.0))
    obs, key = {"observation.state": torch.zeros(5, 2)}, torch.arange(5)
    state, went, busy = actor.start(obs, key), [], []
    for _ in range(20):
        action, state = actor.act(obs, state)
        busy.append(state.pop("record")["extraneous"])
        went.append(torch.where(busy[-1].unsqueeze(1), action, 0.0))
    assert torch.stack(went).sum(0).abs().max() < 1e-5
    assert (torch.stack(busy).sum(0) == 8).all()


def test_a_flight_has_the_velocities_that_its_states_imply_and_crosses_the_pillar():
    for flight in straight_flights(5, np.random.default_rng(0)):
        states, actions = flight.steps["observation.state"], flight.steps["action"]
        np.testing.assert_allclose(actions, np.clip(np.diff(states, axis=0) * 10, -1, 1), atol=1e-5)
        assert np.linalg.norm(states[-1] - GOAL) <= GOAL_RADIUS and np.abs(states[:, 1]).max() < 0.25


def test_large_weights_are_far_above_the_others():
    weights = sharpen(np.array([0.1, 0.5, 0.6]))
    assert weights[0] == 0 and weights[2] == 1 and 0.3 < weights[1] < 0.4
