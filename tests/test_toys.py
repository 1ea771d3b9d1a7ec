"""The toys that stand for one difficulty each: several ways, memory, two hands, causes, words, new mazes.

That they keep the contract, and that their optimum is reached, is in test_envs.py, for all toys alike.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import envs
from understudy.core import UserError, keys
from understudy.envs import blocks, memory
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor

unit = st.floats(-1, 1, width=32)


def started(env, seed=0):
    return env.reset(torch.arange(env.rows), keys(seed, range(env.rows)))


# -- blocks -------------------------------------------------------------------------------------------------------


def test_each_way_of_bringing_the_blocks_is_shown_reached_and_told():
    env = envs.make("blocks", 50)
    assert len(env.facts["modes"]) == 4
    for way in range(4):
        ran = rollout(blocks.Expert(way, noise=0.0), env, 50, seed=1)
        assert all(e.meta["success"] and e.meta["mode"] == way for e in ran)
    told = Counter(e.meta["mode"] for e in rollout(env.expert(), env, 400, seed=2))
    assert set(told) == {0, 1, 2, 3} and min(told.values()) >= 65  # four standard deviations below 100
    with pytest.raises(UserError, match="from 0 to 3"):
        blocks.Expert(4)


def table(disc, left, right, targets=((0.3, 0.8), (0.7, 0.8)), first=-1.0):
    env = envs.make("blocks", 1)
    seen = np.float32([*disc, *left, *right, *targets[0], *targets[1]])[None]
    env.restore(torch.tensor([0]), {"observation.state": torch.from_numpy(seen),
                                    "simulator.state": torch.tensor([[first]])})
    return env


def test_a_push_through_the_centre_moves_the_block_as_far_as_the_disc():
    env = table((0.3 - blocks.DISC - blocks.BLOCK, 0.5), (0.3, 0.5), (0.9, 0.1))
    env.step(torch.tensor([[0.4, 0.0]]))
    np.testing.assert_allclose(env.state["blocks"][0, 0], [0.34, 0.5], atol=1e-5)
    np.testing.assert_allclose(env.state["blocks"][0, 1], [0.9, 0.1], atol=1e-6)


def test_a_block_pushes_the_other_and_the_edge_holds_both():
    env = table((0.5, 0.5), (0.62, 0.5), (0.76, 0.5))
    for _ in range(10):
        env.step(torch.tensor([[0.4, 0.0]]))
    disc, (left, right) = env.state["disc"][0], env.state["blocks"][0]
    assert right[0] == pytest.approx(1 - blocks.BLOCK, abs=0.003)
    assert right[0] - left[0] >= 2 * blocks.BLOCK - 0.003 and left[0] - disc[0] >= blocks.BLOCK + blocks.DISC - 0.003


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), turn=st.tuples(unit, unit))
def test_blocks_stay_on_the_table_and_are_moved_by_touch_alone(seed, turn):
    env = envs.make("blocks", 32)
    started(env, seed)
    for n in range(30):
        s = env.state
        aim = torch.from_numpy(s["blocks"][:, n % 2] - s["disc"])
        before = {k: v.copy() for k, v in s.items()}
        env.step(0.4 * aim / aim.norm(dim=1, keepdim=True) + 0.1 * torch.tensor(turn))
        s = env.state
        assert (s["blocks"] >= blocks.BLOCK).all() and (s["blocks"] <= 1 - blocks.BLOCK).all()
        gap = np.linalg.norm(s["blocks"] - s["disc"][:, None], axis=2)
        assert gap.min() > blocks.DISC + blocks.BLOCK - 0.02
        far = np.linalg.norm(before["blocks"] - before["disc"][:, None], axis=2) > blocks.DISC + blocks.BLOCK + 0.06
        far &= np.linalg.norm(np.diff(before["blocks"], axis=1), axis=2) > 2 * blocks.BLOCK + 0.06
        assert far.any() and (s["blocks"][far] == before["blocks"][far]).all()


def test_both_blocks_on_one_target_is_no_success_and_a_block_that_left_was_not_first():
    near, env = 0.04, table((0.1, 0.1), (0.3 - 0.06, 0.8), (0.3 + 0.06, 0.8))
    assert not env.step(torch.zeros(1, 2)).info["success"]
    env = table((0.1, 0.1), (0.3 + near, 0.8), (0.7, 0.8 - near))
    out = env.step(torch.zeros(1, 2))
    assert out.info["success"] and out.terminated and out.reward == 1
    env = table((0.1, 0.1), (0.5, 0.5), (0.3, 0.8), first=0.0)  # the left one had been first, and is on no target now
    assert env.step(torch.zeros(1, 2)).info["mode"].item() == 2
    env = table((0.1, 0.1), (0.5, 0.5), (0.6, 0.5))
    assert env.step(torch.zeros(1, 2)).info["mode"].item() == -1


# -- memory -------------------------------------------------------------------------------------------------------


class Forgetful(Actor):
    """Knows nothing but the present observation: at the junction it turns left."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        x, _, light = obs["observation.state"].T
        return torch.stack([torch.ones_like(x), torch.where(light == 0, 1.0, light)], 1), state


def test_who_forgets_the_light_is_right_half_of_the_time():
    env = envs.make("memory", 200)
    ran = rollout(Forgetful(), env, 1000, seed=3)
    assert np.mean([e.meta["success"] for e in ran]) == pytest.approx(env.facts["memoryless"], abs=0.065)
    assert {e.steps["next.reward"][-1] for e in ran} == {1.0, -1.0}


def test_the_light_goes_out_and_the_corridor_does_not_tell_it():
    env = envs.make("memory", 60, shown=2)
    ran = rollout(memory.Expert(noise=0.3), env, 60, seed=0)
    for e in ran:
        x, y, light = e.steps["observation.state"].T
        assert (light[:2] == e.steps["simulator.state"][0, 0]).all() and not light[2:].any()
        assert not y[x < 1.8].any()
    with pytest.raises(UserError, match="length=0"):
        envs.make("memory", length=0)
