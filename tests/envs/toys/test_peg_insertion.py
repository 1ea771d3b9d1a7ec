"""A peg and a hole."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.envs.toys import peg_insertion
from understudy.envs.toys.peg_insertion import PegInsertion
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor


def peg_at(env, u, v, turn, outline=0):
    hole = np.array([[0.1, -0.2, 0.7]], np.float32)
    pose = peg_insertion._to_world(np.array([[u, v, turn]], np.float32), hole, np.array([outline]))
    return env.restore(torch.tensor([0]), {"observation.state": torch.from_numpy(pose), "observation.environment_state":
                                           torch.from_numpy(np.concatenate([hole, peg_insertion.RADII[[outline]]], 1))})


def in_hole(env, u, v, turn=0.0):
    """The pose that the hole sees after one step of a velocity that it sees."""
    cos, sin = np.cos(0.7), np.sin(0.7)
    out = env.step(torch.tensor([[cos * u - sin * v, sin * u + cos * v, turn]], dtype=torch.float32))
    s = env.state
    return peg_insertion.to_hole(s["peg"], s["hole"], s["outline"])[0], out


def test_a_peg_slides_along_the_wall_and_goes_in_where_it_fits():
    env = PegInsertion(1, tolerance=0.01)
    for offset, turn, depth in ((0.02, 0.0, 0.0), (0.005, 0.0, -0.04), (0.005, 0.04, 0.0), (0.0, 0.04, -0.04)):
        peg_at(env, offset, 0.01, turn, 3)
        pose, out = in_hole(env, 0, -1)
        assert pose[:2] == pytest.approx([offset, depth], abs=1e-5) and not out.terminated[0]
    peg_at(env, 0.02, 0.0, 0.0)
    assert in_hole(env, 0.3, -0.7)[0][:2] == pytest.approx([0.035, 0.0], abs=1e-5)  # it slides
    peg_at(env, 0.0, -0.05, 0.0)
    pose, _ = in_hole(env, 1, 0, 1)  # inside, the hole keeps it in line
    assert abs(pose[0]) + 0.2 * abs(pose[2]) <= 0.01 + 1e-5
    peg_at(env, 0.0, -0.06, 0.0)
    pose, out = in_hole(env, 0, -1)
    assert pose[1] == pytest.approx(-0.1, abs=1e-5) and out.reward.tolist() == [1] and out.terminated[0]


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_the_expert_inserts_at_every_tolerance(tolerance):
    env = PegInsertion(200, tolerance=tolerance)
    assert all(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 200))


def test_the_outline_decides_how_the_peg_must_stand():
    """An expert that takes every outline for the first one only works with it."""
    @dataclass(frozen=True)
    class Blind(Actor):
        expert: Actor

        def start(self, obs, key):
            return self.expert.start(obs, key)

        def act(self, obs, state):
            around = obs["observation.environment_state"].clone()
            around[:, 3:] = torch.from_numpy(peg_insertion.RADII[2])
            return self.expert.act({**obs, "observation.environment_state": around}, state)
    for outline, works in ((2, True), (0, False)):
        env = PegInsertion(40, outlines=(outline,))
        episodes = rollout(Blind(replace(env.expert(), noise=0.0)), env, 40)
        assert {e.metadata["success"] for e in episodes} == {works}
        assert {e.metadata["outline"] for e in episodes} == {outline}
    assert peg_insertion.outline_of(peg_insertion.RADII).tolist() == [0, 1, 2, 3, 4]
