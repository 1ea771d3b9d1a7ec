"""Adapters to simulators that are not in the extra sim: the contract, what their experts reach, and how they begin."""

import importlib.util
import json
import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from understudy import envs
from understudy.cli import main
from understudy.core import UserError, keys
from understudy.data.formats import open_dataset
from understudy.data.tasks import task_texts
from understudy.data.text_columns import TaskText
from understudy.evaluate.recording import record_episodes
from understudy.evaluate.rollout import rollout
from understudy.evaluate.simulator_versions import version_warning
from understudy.learn.train import recorded_simulators
from understudy.testing import check_env

pytestmark = pytest.mark.filterwarnings("ignore")


def needs(*packages):
    """Skips what a simulator that is not installed would be needed for."""
    missing = any(importlib.util.find_spec(p) is None for p in packages)
    return pytest.mark.skipif(missing, reason="simulator not installed")


BLOCKS = [needs("pybullet"), pytest.mark.skipif("UNDERSTUDY_DIFFUSION_POLICY" not in os.environ,
                                                reason="simulator not installed")]
ADAPTERS = [
    pytest.param("block_pushing/multimodal", {"limit": 12}, marks=BLOCKS),
    pytest.param("ogbench/pointmaze-medium-v0", {"max_episode_steps": 12}, marks=needs("ogbench")),
    pytest.param("ogbench/cube-single-v0", {"max_episode_steps": 5}, marks=[needs("ogbench"), pytest.mark.slow]),
    pytest.param("BabyAI-GoToLocal-v0", {"max_steps": 12}, marks=needs("minigrid")),
    pytest.param("MiniGrid-DoorKey-5x5-v0", {"view": "full", "max_steps": 12}, marks=needs("minigrid")),
    pytest.param("dm_control/cartpole-swingup", {"limit": 12}, marks=needs("dm_control")),
    pytest.param("highway-fast-v0", {"config": {"vehicles_count": 4, "duration": 4}}, marks=needs("highway_env")),
    pytest.param("gym_pusht/PushT-v0", {"limit": 12}, marks=needs("gym_pusht")),
    pytest.param("FetchReach-v4", {"max_episode_steps": 8}, marks=needs("gymnasium_robotics")),
    pytest.param("PointMaze_UMaze-v3", {"max_episode_steps": 8}, marks=needs("gymnasium_robotics")),
    pytest.param("FrankaKitchen-v1", {"max_episode_steps": 4}, marks=[needs("gymnasium_robotics"), pytest.mark.slow]),
    pytest.param("AdroitHandPen-v1", {"max_episode_steps": 4}, marks=[needs("gymnasium_robotics"), pytest.mark.slow]),
    pytest.param("robosuite/Lift", {"limit": 4}, marks=[needs("robosuite"), pytest.mark.slow]),
]


@pytest.mark.parametrize(("name", "options"), ADAPTERS)
def test_every_adapter_keeps_the_contract(name, options):
    check_env(lambda rows: envs.make(name, rows, **options), episodes=2)


@pytest.mark.parametrize("name", [p.values[0] for p in ADAPTERS])
def test_a_name_leads_to_its_module(name):
    """Claims follow it; no simulator has to be installed for that."""
    module, factory = envs.registry.entry_point(name)
    assert factory == "make" and importlib.util.find_spec(module) is not None


@pytest.mark.parametrize(("name", "near"), [
    pytest.param("ogbench/pointmaze-medum-v0", "pointmaze-medium-v0", marks=needs("ogbench")),
    pytest.param("ogbench/pointmaze-medium-v0:6", "task must be from 1 to 5", marks=needs("ogbench")),
    pytest.param("BabyAI-GoToLocl-v0", "BabyAI-GoToLocal-v0", marks=needs("minigrid")),
    pytest.param("dm_control/cartpole-swingdown", "cartpole-swingup", marks=needs("dm_control")),
    pytest.param("highway-fst-v0", "highway-fast-v0", marks=needs("highway_env")),
    pytest.param("block_pushing/horizontal", "block_pushing/multimodal", marks=needs("pybullet")),
    pytest.param("gym_pusht/PushT-v9", "PushT-v0", marks=needs("gym_pusht")),
    pytest.param("FetchReech-v4", "FetchReach-v4", marks=needs("gymnasium_robotics"))])
def test_a_misspelt_name_is_told_the_nearest(name, near):
    with pytest.raises(UserError, match=near):
        envs.make(name)


# -- OGBench --------------------------------------------------------------------------------------------------------


@needs("ogbench")
def test_tasks_of_the_maze_are_the_published_ones():
    """Start and goal of each task lie within a quarter of a cell of where the paper's tables have them, and the
    success of the shortest way is certain."""
    places = [((1, 1), (6, 6)), ((6, 1), (1, 6)), ((5, 3), (4, 2)), ((6, 5), (6, 1)), ((2, 6), (1, 1))]
    for number, cells in enumerate(places, start=1):
        env = envs.make(f"ogbench/pointmaze-medium-v0:{number}", 2)
        episodes = rollout(env.expert(), env, 2, seed=4)
        for episode in episodes:
            assert episode.metadata["task_id"] == number and episode.metadata["success"] and len(episode) < 200
            for column, (i, j) in zip(("observation.state", "observation.goal"), cells, strict=True):
                assert np.abs(episode.steps[column][0] - [4 * j - 4, 4 * i - 4]).max() <= 1
    env = envs.make("ogbench/pointmaze-medium-v0", 20)
    env.reset(torch.arange(20), keys(0, range(20)))
    assert {single.number for single in env.vec.envs} == {1, 2, 3, 4, 5}


@needs("ogbench")
def test_the_maze_is_put_where_the_recorded_point_was(shared):
    """Of OGBench's own data: every step is repeated, as far as float32 says where it began."""
    episode = open_dataset(shared / "data/ogbench/pointmaze-medium-navigate-v0-val.npz")[3]
    env = envs.make("ogbench/pointmaze-medium-v0", 1)
    place = torch.from_numpy(np.array(episode.steps["observation.state"][:1]))
    env.restore(torch.tensor([0]), {"observation.state": place})
    for t in range(300):
        out = env.step(torch.from_numpy(np.array(episode.steps["action"][t:t + 1])))
        recorded = episode.steps["observation.state"][t + 1]
        np.testing.assert_allclose(out.obs["observation.state"][0], recorded, atol=1e-4)
        if out.terminated[0]:
            break
    assert t > 5


@needs("ogbench")
@pytest.mark.slow
def test_the_oracle_puts_the_cube_in_its_place():
    env = envs.make("ogbench/cube-single-v0", 2)
    episodes = rollout(env.expert(), env, 4, seed=4)
    assert all(e.metadata["success"] for e in episodes)


# -- block pushing --------------------------------------------------------------------------------------------------


@BLOCKS[0]
@BLOCKS[1]
def test_the_expert_of_block_pushing_does_it_in_each_order(capfd):
    """The reward says which stage an episode is at: 0.49 for each block that first reaches a square, 0.51 for both."""
    env = envs.make("block_pushing/multimodal", 4)
    episodes = rollout(env.expert(), env, 16, seed=4)
    assert all(e.metadata["success"] and e.metadata["one"] for e in episodes)
    orders = set()
    for e in episodes:
        rewards = e.steps["next.reward"]
        assert sorted(set(rewards.astype(float).round(2).tolist())) == [0.0, 0.49, 0.51] and rewards[-1] > 0.5
        first = int(np.flatnonzero(rewards > 0.4)[0]) + 1
        blocks, squares = e.steps["observation.state"][first][[[0, 1], [3, 4]]], (
            e.steps["observation.state"][first][[[10, 11], [13, 14]]])
        is_inside = np.linalg.norm(blocks[:, None] - squares[None], axis=-1) < 0.05
        assert is_inside.sum() == 1
        orders.add(tuple(np.argwhere(is_inside)[0].tolist()))
        assert np.abs(e.steps["action"]).max() <= 0.035 + 1e-6  # m: 0.35 m/s
    names = env.features["observation.state"].names
    assert [names.index(n) for n in ("block.x", "block2.y", "target.x", "target2.y")] == [0, 4, 10, 14]
    assert orders == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert env.frame(0).shape == (240, 320, 3) and "argv" not in capfd.readouterr().out


@needs("pybullet")
def test_block_pushing_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.delenv("UNDERSTUDY_DIFFUSION_POLICY", raising=False)
    with pytest.raises(UserError, match="UNDERSTUDY_DIFFUSION_POLICY is not set"):
        envs.make("block_pushing/multimodal")
    with pytest.raises(UserError, match="no diffusion_policy/env/block_pushing in it"):
        envs.make("block_pushing/multimodal", source=str(tmp_path))


# -- words ----------------------------------------------------------------------------------------------------------


@needs("minigrid")
def test_the_bot_does_what_the_mission_says_and_the_mission_is_the_task(tmp_path):
    """Words that the environment shows, the task of what is recorded, and what --language says are the same bytes."""
    env = envs.make("BabyAI-GoToLocal-v0", 4)
    data = record_episodes(env, env.expert(), 6, tmp_path / "d", -2, actor_name="scripted")
    assert all(e.metadata["success"] for e in data)
    missions = {str(task_texts(e)[0]) for e in data}
    assert len(missions) > 1 and all(s.startswith("go to ") for s in missions)
    for e in data:
        mission = e.steps["observation.task"]
        assert bytes(mission[0]).rstrip(b"\0").decode() == str(task_texts(e)[0])
        np.testing.assert_array_equal(TaskText(128)(e).steps["observation.task"][0], mission[0])
        assert e.metadata["simulator"].startswith("minigrid ")


@needs("minigrid")
def test_who_does_nothing_has_no_success():
    env = envs.make("MiniGrid-Empty-5x5-v0", 2, max_steps=6)

    class Turns(type(envs.make("BabyAI-GoToLocal-v0").expert())):
        def act(self, obs, state):
            return torch.zeros(2, 1), state
    episodes = rollout(Turns(env), env, 2, seed=4)
    assert [(len(e), e.metadata["success"], float(e.steps["next.reward"].sum()))
            for e in episodes] == [(6, False, 0.0)] * 2


@needs("minigrid")
def test_the_bot_answers_whoever_acted_and_says_it_twice():
    env = envs.make("BabyAI-GoToLocal-v0", 2)
    obs = env.reset(torch.arange(2), keys(0, [0, 1]))
    expert = env.expert()
    first, state = expert.act(obs, {})
    assert torch.equal(expert.act(obs, state)[0], first)
    for _ in range(3):  # nobody asks; it turns on the spot
        obs = env.step(torch.zeros(2, 1)).obs
    done = torch.zeros(2, dtype=torch.bool)
    for _ in range(60):
        action, state = expert.act(obs, state)
        out = env.step(action)
        obs, done = out.obs, done | out.info["success"]
    assert done.all()
    with pytest.raises(UserError, match="all 2 rows"):
        expert.act({k: v[:1] for k, v in obs.items()}, {})


@needs("highway_env")
def test_the_driver_model_does_not_crash_where_a_constant_choice_does():
    options = {"config": {"vehicles_count": 12, "duration": 12, "vehicles_density": 2}}
    env = envs.make("highway-fast-v0", 4, **options)
    episodes = rollout(env.expert(), env, 4, seed=4)
    assert all(e.metadata["success"] and len(e) == 12 for e in episodes)

    class Faster(type(env.expert())):
        def act(self, obs, state):
            return torch.full((4, 1), 3), state
    crashed = rollout(Faster(env), env, 4, seed=4)
    assert any(not e.metadata["success"] and len(e) < 12 for e in crashed)


# -- which simulator ------------------------------------------------------------------------------------------------


def test_another_version_or_physics_is_told_with_both():
    env = envs.make("fork")
    assert env.metadata["simulator"] == "fork of version 1"
    assert version_warning({"fork": ["fork of version 1"]}, env, "it was in") is None
    assert version_warning({"push": ["push of version 9"]}, env, "it was in") is None
    warning = version_warning({"fork": ["fork of version 0"]}, env, "it was in")
    assert "version 0" in warning and "version 1" in warning
    assert "version 0" in version_warning(
        {"particle:3": ["particle of version 0"]}, envs.make("particle:8"), "it was in"
    )


def test_what_was_trained_elsewhere_is_warned_of(tmp_path, capsys, monkeypatch):
    """From recording over checkpoint to evaluation, and from recording to replay."""
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["record", "fork", "--out", str(data), "--episodes", "6"]) == 0
    assert recorded_simulators(open_dataset(data)) == {"fork": ["fork of version 1"]}
    assert main(["train", "bc", str(data), "--out", str(run), "--steps", "2"]) == 0
    judge, again = ["eval", str(run), "fork", "--episodes", "2"], ["replay", str(data), "fork"]
    capsys.readouterr()
    assert main(judge) == main(again) == 0
    assert "warning" not in capsys.readouterr().err
    from understudy.envs.toys.fork import Fork

    plain = Fork.__init__

    def newer(self, *args, **options):
        plain(self, *args, **options)
        self.metadata = {**self.metadata, "version": 2}
    monkeypatch.setattr(Fork, "__init__", newer)
    for command in (judge, again):
        assert main([*command, "--json"]) == 0
        out, err = capsys.readouterr()
        json.loads(out)
        assert "warning" in err and "version 1" in err and "version 2" in err


def test_physics_decides_the_digest():
    pytest.importorskip("mujoco", reason="simulator not installed")
    from understudy.envs.physics import simulator_version

    env = envs.make("Hopper-v4")
    digest = env.metadata["simulator"]
    assert "gymnasium " in digest and "mujoco " in digest
    model = env.vec.envs[0].unwrapped.model
    model.opt.gravity[2] *= 1 + 1e-12  # compilers differ by so much
    assert simulator_version(env) == digest
    model.opt.gravity[2] = -9.8
    assert simulator_version(env) != digest
    model.opt.gravity[2] = -9.81
    assert simulator_version(env) == digest
    model.geom_friction[1, 0] *= 1.01
    assert simulator_version(env) != digest


# -- experts of single environments -----------------------------------------------------------------------------------


def test_an_expert_of_single_environments_acts_in_all_rows():
    from understudy.envs import gymnasium_adapter
    from understudy.envs.simulators.external import ExpertVector

    class Balanced(gymnasium.Wrapper):
        """Pushes towards the side that the pole falls to."""

        def expert_action(self):
            return int(self.unwrapped.state[2] + 0.3 * self.unwrapped.state[3] > 0)
    vec = gymnasium_adapter.vectorize(lambda: Balanced(gymnasium_adapter.build("CartPole-v1")), 3)
    env = ExpertVector(vec, gymnasium_adapter.env_metadata(vec.envs[0], "CartPole-v1"))
    lengths = [len(e) for e in rollout(env.expert(), env, 3)]
    assert min(lengths) > 100  # random actions last for about 20 steps


def test_environments_with_an_expert_say_what_it_does():
    """Simulators that are not installed here cannot be asked."""
    root = Path(envs.__file__).parent / "simulators"
    users = [path for path in root.glob("*.py") if "ExpertVector" in path.read_text() and path.stem != "external"]
    assert {path.stem for path in users} >= {"ogbench", "minigrid", "highway"}
    for path in users:
        assert "def expert_action(self)" in path.read_text(), f"{path.name} has no expert_action"
        assert "def advice" not in path.read_text()
