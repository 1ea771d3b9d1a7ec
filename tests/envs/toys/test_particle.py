"""The particle."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from understudy import envs
from understudy.core import UserError, keys
from understudy.envs.toys.particle import Particle
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor


@pytest.mark.parametrize("dim", [2, 5])
def test_the_particle_follows_its_controller(dim):
    """Ten explicit Euler steps of x'' = 10 (u - x) - 5 x' are a power of one matrix."""
    env = Particle(3, dim=dim)
    env.reset(torch.arange(3), keys(0, range(3)))
    env.step(torch.rand(3, dim, generator=torch.Generator().manual_seed(0)))
    at, speed = (env.state[k].astype(np.float64) for k in ("at", "speed"))
    target = np.linspace(0.1, 0.9, dim)
    env.step(torch.from_numpy(np.tile(target, (3, 1))))
    dt = 0.005
    power = np.linalg.matrix_power(np.array([[1, dt], [-10 * dt, 1 - 5 * dt]]), 10)
    offset, after = np.einsum("ij,jbd->ibd", power, np.stack([at - target, speed]))
    np.testing.assert_allclose(env.state["at"], target + offset, atol=1e-6)
    np.testing.assert_allclose(env.state["speed"], after, atol=1e-6)


def test_the_order_of_the_goals_counts():
    @dataclass(frozen=True)
    class Only(Actor):
        goal: int

        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return obs["observation.state"].chunk(4, 1)[self.goal], state
    for goal, visited in ((2, 1.0), (3, 0.0)):
        episodes = rollout(Only(goal), Particle(50), 50, seed=0)
        assert not any(e.metadata["success"] and len(e) < 5 for e in episodes)
        flags = [e.steps["simulator.state"][-1, 0] for e in episodes]
        assert np.mean(np.array(flags) == visited) > 0.9  # the other goal may lie on the way


def test_a_particle_that_must_stay_succeeds_at_the_end_only():
    @dataclass(frozen=True)
    class Passing(Actor):
        """Visits both goals and goes back to the first."""

        def start(self, obs, key):
            return {"step": 0}

        def act(self, obs, state):
            goals = obs["observation.state"].chunk(4, 1)[2:]
            return goals[state["step"] // 30 % 2], {"step": state["step"] + 1}
    for steps, succeeds in ((60, True), (90, False)):
        episodes = rollout(Passing(), Particle(20, steps, stay=True), 20, seed=0)
        assert {len(e) for e in episodes} == {steps}
        assert sum(e.metadata["success"] for e in episodes) >= 18 if succeeds else not any(
            e.metadata["success"] and np.linalg.norm(e.steps["observation.state"][0, 4:6]
                                                     - e.steps["observation.state"][0, 6:8]) > 0.1 for e in episodes)


def test_particles_in_many_dimensions_are_named():
    assert envs.make("particle:8").metadata["env"] == "particle:8"
    assert envs.make("particle").features["observation.state"].names[:3] == ("at.x", "at.y", "speed.x")
    with pytest.raises(UserError, match="at least 2 dimensions"):
        envs.make("particle:1")


def test_fixed_goals_are_those_of_every_episode():
    env = Particle(5, goals=((0.2, 0.8), (0.5, 0.25)))
    obs = env.reset(torch.arange(5), keys(0, range(5)))["observation.state"]
    np.testing.assert_allclose(obs[:, 4:], [[0.2, 0.8, 0.5, 0.25]] * 5, rtol=1e-6)
    assert torch.equal(obs[:, :4], Particle(5).reset(torch.arange(5), keys(0, range(5)))["observation.state"][:, :4])
    with pytest.raises(UserError, match=r"not two positions of 3 numbers(.|\n)*goals=\(\("):
        Particle(1, dim=3, goals=((0.2, 0.8), (0.5, 0.25)))
