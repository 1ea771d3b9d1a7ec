"""The toys that stand for one difficulty each: several ways, memory, two hands, causes, words, new mazes.

That they keep the contract, and that their optimum is reached, is in test_envs.py, for all toys alike.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra

from understudy import envs
from understudy.core import UserError, keys
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.envs import grid
from understudy.envs.toys import blocks, maze, memory, words
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import record_episodes
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

unit = st.floats(-1, 1, width=32)


def started(env, seed=0):
    return env.reset(torch.arange(env.rows), keys(seed, range(env.rows)))


# -- blocks -------------------------------------------------------------------------------------------------------


def test_each_way_of_bringing_the_blocks_is_shown_reached_and_told():
    env = envs.make("blocks", 50)
    assert len(env.metadata["modes"]) == 4
    for way in range(4):
        episodes = rollout(blocks.BlocksExpert(way, noise=0.0), env, 50, seed=1)
        assert all(e.metadata["success"] and e.metadata["mode"] == way for e in episodes)
    mode_counts = Counter(e.metadata["mode"] for e in rollout(env.expert(), env, 400, seed=2))
    assert set(mode_counts) == {0, 1, 2, 3} and min(mode_counts.values()) >= 65  # four standard deviations below 100
    with pytest.raises(UserError, match="from 0 to 3"):
        blocks.BlocksExpert(4)


def table(disc, left, right, targets=((0.3, 0.8), (0.7, 0.8)), first=-1.0):
    env = envs.make("blocks", 1)
    state_vector = np.float32([*disc, *left, *right, *targets[0], *targets[1]])[None]
    env.restore(torch.tensor([0]), {"observation.state": torch.from_numpy(state_vector),
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
    disc, (left_block, right) = env.state["disc"][0], env.state["blocks"][0]
    assert right[0] == pytest.approx(1 - blocks.BLOCK, abs=0.003)
    assert right[0] - left_block[0] >= 2 * blocks.BLOCK - 0.003
    assert left_block[0] - disc[0] >= blocks.BLOCK + blocks.DISC - 0.003


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
        is_away = np.linalg.norm(before["blocks"] - before["disc"][:, None], axis=2) > blocks.DISC + blocks.BLOCK + 0.06
        is_away &= np.linalg.norm(np.diff(before["blocks"], axis=1), axis=2) > 2 * blocks.BLOCK + 0.06
        assert is_away.any() and (s["blocks"][is_away] == before["blocks"][is_away]).all()


def test_both_blocks_on_one_target_is_no_success_and_a_block_that_left_was_not_first():
    offset, env = 0.04, table((0.1, 0.1), (0.3 - 0.06, 0.8), (0.3 + 0.06, 0.8))
    assert not env.step(torch.zeros(1, 2)).info["success"]
    env = table((0.1, 0.1), (0.3 + offset, 0.8), (0.7, 0.8 - offset))
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
    episodes = rollout(Forgetful(), env, 1000, seed=3)
    assert np.mean([e.metadata["success"] for e in episodes]) == pytest.approx(env.metadata["memoryless"], abs=0.065)
    assert {e.steps["next.reward"][-1] for e in episodes} == {1.0, -1.0}


def test_the_light_goes_out_and_the_corridor_does_not_tell_it():
    env = envs.make("memory", 60, shown=2)
    episodes = rollout(memory.MemoryExpert(noise=0.3), env, 60, seed=0)
    for e in episodes:
        x, y, light = e.steps["observation.state"].T
        assert (light[:2] == e.steps["simulator.state"][0, 0]).all() and not light[2:].any()
        assert not y[x < 1.8].any()
    with pytest.raises(UserError, match="length=0"):
        envs.make("memory", length=0)


# -- maze ---------------------------------------------------------------------------------------------------------


def reached(shut):
    """(cells, cells) bool: which cells a flood from the first one fills, by plain search."""
    cells, done, waiting = shut.shape[1], set(), [(0, 0)]
    while waiting:
        i, j = waiting.pop()
        if (i, j) in done:
            continue
        done.add((i, j))
        waiting += [(i + a, j + b) for k, (a, b) in enumerate(grid.MOVES.tolist()) if not shut[k, i, j]]
    return len(done) == cells**2


@pytest.mark.parametrize("cells", [2, 3, 4, 5])
def test_every_cell_of_every_maze_is_reached_and_most_mazes_have_several_ways(cells):
    walls = maze.layout(keys(0, range(100)), cells)
    assert all(reached(shut) for shut in maze.closed(walls))
    assert (walls.sum(1) <= (cells - 1)**2).all()  # a spanning tree takes cells^2 - 1 of 2 cells (cells - 1) walls
    if cells > 2:
        assert (walls.sum(1) < (cells - 1)**2).mean() > 0.6
        assert len({w.tobytes() for w in walls}) > 60


def test_numbered_mazes_are_the_same_again_and_others_are_others():
    def seen(**options):
        env = envs.make("maze", 200, **options)
        obs = started(env)
        out = env.step(torch.zeros(200, 2))
        return out.info["level"].tolist(), [w.tobytes() for w in obs["observation.environment_state"].numpy()]
    level, walls = seen(levels=5, first=7)
    assert set(level) == {7, 8, 9, 10, 11} and len(set(walls)) == 5
    assert len(set(zip(level, walls, strict=True))) == 5  # a number is one maze
    assert not set(walls) & set(seen(levels=5, first=12)[1])
    assert set(seen()[0]) == {-1} and len(set(seen()[1])) > 190
    assert (env := envs.make("maze:5")).levels == 5 and env.metadata["env"] == "maze:5"
    for invalid_options in ({"levels": -1}, {"first": -2}, {"cells": 1}):
        with pytest.raises(UserError, match=f"{next(iter(invalid_options))}="):
            envs.make("maze", **invalid_options)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.tuples(unit, unit), second=st.tuples(unit, unit))
def test_nobody_walks_through_walls(seed, first, second):
    env = envs.make("maze", 32)
    started(env, seed)
    shut = maze.closed(env.state["walls"])
    for n in range(20):
        before = np.floor(env.state["at"]).astype(int)
        env.step(2 * torch.tensor(first if n % 3 else second).expand(32, 2))
        after = np.floor(env.state["at"]).astype(int)
        assert ((after >= 0) & (after < 4)).all()
        for row, (a, b) in enumerate(zip(before, after, strict=True)):
            step = (b - a).tolist()
            if step in grid.MOVES.tolist():
                assert not shut[row, grid.MOVES.tolist().index(step), *a]
            elif step != [0, 0]:  # over a corner: first along x, then along y
                assert not shut[row, grid.MOVES.tolist().index([step[0], 0]), *a]
                assert not shut[row, grid.MOVES.tolist().index([0, step[1]]), b[0], a[1]]


def test_ways_over_a_grid_are_the_shortest():
    rng = np.random.default_rng(0)
    cost = np.where(rng.random((6, 4, 3, 4)) < 0.3, np.inf, rng.random((6, 4, 3, 4)) + 0.1).astype(np.float32)
    goal = rng.integers(0, 3, (6, 2))
    distances = grid.cost_to_go(cost, goal)
    for row in range(6):
        edges = np.zeros((12, 12))
        for k, (a, b) in enumerate(grid.MOVES):
            for i, j in np.ndindex(3, 4):
                if 0 <= i + a < 3 and 0 <= j + b < 4 and np.isfinite(cost[row, k, i, j]):
                    edges[4 * (i + a) + j + b, 4 * i + j] = cost[row, k, i, j]  # backwards, from the goal
        expected = dijkstra(edges, indices=4 * goal[row, 0] + goal[row, 1])
        np.testing.assert_allclose(distances[row].ravel(), expected, rtol=1e-5)


# -- arms ---------------------------------------------------------------------------------------------------------


def carrying(left=1.0, right=1.0):
    env = envs.make("arms", 1)
    state_vector = np.float32([[0.7, 0.3, 1.3, 0.3, 1.0, 0.3, 1.0, 0.0, left, right, 1.0, 0.9]])
    env.restore(torch.tensor([0]), {"observation.state": torch.from_numpy(state_vector)})
    return env


def test_both_hands_lift_the_bar_and_one_does_not():
    up = torch.tensor([[0.0, 0.5, 0.0, 0.5]])
    env = carrying()
    env.step(up)
    np.testing.assert_allclose(env.state["bar"], [[1.0, 0.35]], atol=1e-6)
    np.testing.assert_allclose(env.state["hands"][0], [[0.7, 0.35], [1.3, 0.35]], atol=1e-6)
    env = carrying(right=0.0)
    env.step(up)
    np.testing.assert_allclose(env.state["bar"], [[1.0, 0.3]], atol=1e-6)
    np.testing.assert_allclose(env.state["hands"][0], [[0.7, 0.3], [1.3, 0.35]], atol=1e-6)


@pytest.mark.parametrize(("action", "drops"), [
    ([0.0, 0.0, 0.4, 0.0], True), ([0.0, 0.0, 0.2, 0.0], False), ([0.4, 0.0, 0.4, 0.0], False),
    ([0.0, 0.3, 0.0, -0.3], False)])
def test_hands_that_do_not_keep_pace_drop_the_bar(action, drops):
    out = carrying().step(torch.tensor([action]))
    assert out.terminated.item() == drops and out.reward.item() == -drops


def test_a_bar_that_is_tilted_too_far_slides_off():
    env, turn = carrying(), torch.tensor([[0.0, 0.5, 0.0, -0.5]])
    steps = 0
    while not (out := env.step(turn)).terminated and steps < 10:
        steps += 1
    assert out.reward == -1 and steps == 2  # 0.1 m a step over 0.6 m: sines of about 0.16, 0.32 and 0.46


# -- drive --------------------------------------------------------------------------------------------------------


def test_the_car_brakes_as_physics_has_it():
    env = envs.make("drive", 1)
    hidden = np.float32([[40, 10, 0, -1, 10, 0, 5, 0]])
    env.restore(torch.tensor([0]), {"observation.state": torch.zeros(1, 17),
                                    "simulator.state": torch.from_numpy(hidden)})
    for _ in range(20):
        env.step(torch.tensor([[-1.0]]))
    assert env.state["hidden"][0, 0] == pytest.approx(40 - 10**2 / (2 * 5), abs=1e-4)
    assert env.state["hidden"][0, 1] == 0 and env.state["brake"][0] == 1


def test_the_person_is_the_only_bright_pixel_and_the_dashboard_can_be_hidden():
    env = envs.make("drive", 40, dashboard=False)
    assert env.features["observation.state"].shape == (16,)
    for e in rollout(env.expert(), env, 40, seed=0):
        bright = (e.steps["observation.state"] > 1).sum(1)
        np.testing.assert_array_equal(bright, e.steps["simulator.state"][:, 2])


def cloned(name, episodes, window=None, seed=0, **options):
    env = envs.make(name, 50, **options)
    data = rollout(env.expert(), env, episodes, recording_seed(seed))
    torch.manual_seed(seed)
    recipe = PolicyConfig(Regression(), trunk=MLP(64, 1), encoder=ConcatEncoder(), window=window or Window())
    policy = Policy(recipe, data.features()).fit_statistics(data)
    learner, windows = (
        BehaviorCloning(optimizer=OptimizerConfig(lr=3e-3)).build(policy, seed, 600, data),
        policy.windows(data),
    )
    fit(learner, lambda n: windows.batch(128, n, seed), 600)
    rollouts = rollout(PolicyActor(learner.trained_policy.eval(), RecedingHorizon(1)), env, 200, seed=0)
    return np.mean([e.metadata["success"] for e in rollouts])


@pytest.mark.slow
def test_who_sees_the_brake_light_learns_it_in_place_of_the_person():
    assert cloned("drive", 100, dashboard=False) > cloned("drive", 100) + 0.15


@pytest.mark.slow
def test_who_remembers_learns_the_way_and_who_does_not_guesses():
    assert cloned("memory", 50, Window(n_obs_steps=24)) > 0.9
    assert cloned("memory", 50) == pytest.approx(0.5, abs=0.15)


# -- words --------------------------------------------------------------------------------------------------------


def test_missions_are_read_as_they_are_written():
    env = envs.make("words", 300)
    obs = started(env)
    missions = {bytes(row).rstrip(b"\0").decode() for row in obs["observation.task"].numpy()}
    assert {"go to the red ball", "find the yellow key"} <= missions and len(missions) == 36
    np.testing.assert_array_equal(words.parse_missions(obs["observation.task"].numpy()), env.state["meant"])
    for text in ("go home", "the red ball or the blue key"):
        with pytest.raises(UserError, match=text):
            words.parse_missions(np.stack([TaskText(words.LENGTH).encode(text)]))


def test_steps_are_choices_and_have_no_limits():
    env = envs.make("words", 2)
    assert env.features["action"].num_classes == (4,) and not {"low", "high"} & set(env.metadata)


def test_only_the_thing_that_is_named_is_right():
    env = envs.make("words", 1)
    started(env)
    s = env.state
    for thing in range(words.THINGS):
        for move, (a, b) in enumerate(grid.MOVES):
            s["at"][0] = s["things"][0, thing] - [a, b]
            if (s["things"][0] == s["at"]).all(1).any():
                continue
            out = env.step(torch.tensor([[move]]))
            right = bool(s["looks"][0, thing] == s["meant"][0])
            assert out.info["success"].item() == right and out.terminated.item()
            assert out.reward.item() == (1 if right else -1)


def test_a_recording_of_missions_holds_them_as_tasks(tmp_path):
    env = envs.make("words", 4)
    data = record_episodes(env, env.expert(), 4, tmp_path / "d", seed=-2, actor_name="scripted")
    for e in data:
        assert e.metadata["task"] == bytes(e.steps["observation.task"][0]).rstrip(b"\0").decode()


@dataclass(frozen=True)
class Misled(Actor):
    """The expert, told the same mission everywhere."""

    def start(self, obs, key):
        mission = torch.from_numpy(TaskText(words.LENGTH).encode("go to the red ball").copy())
        return words.WordsExpert(0.0).start({**obs, "observation.task": mission.expand(len(key), -1)}, key)

    def act(self, obs, state):
        return words.WordsExpert(0.0).act(obs, state)


def test_words_are_needed():
    env = envs.make("words", 50)
    right, misled_rate = (np.mean([e.metadata["success"] for e in rollout(actor, env, 200, seed=0)])
                          for actor in (words.WordsExpert(0.0), Misled()))
    assert right == 1.0 and misled_rate < 0.4  # one thing of four is meant
