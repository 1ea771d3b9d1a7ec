"""OGBench (Park et al. 2025): goals to be reached in mazes and on tables, each environment with five tasks to be judged
on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (names the environments)
import torch

from ...core import UserError, unknown_name
from .. import gymnasium_adapter
from ..gymnasium_adapter import RenderableGymVector
from ..mujoco import MujocoVector
from .external import ExpertVector

TASKS = 5


def make(name: str, rows: int = 1, task: int | None = None, **options) -> GoalVector:
    """Makes a goal-conditioned environment of OGBench.

    Args:
        name: "ogbench/NAME", such as "ogbench/pointmaze-medium-v0". ":1" to ":5" after it selects a task, like `task`.
        task: Evaluation task, from 1 to 5. None draws one with the key of each episode. It is the metadata "task_id" of
            the episode.
        **options: Arguments of `gymnasium.make`.
    """
    gym_id, colon, number = name.removeprefix("ogbench/").partition(":")
    if gym_id not in gymnasium.registry or not _is_goal_env(gym_id):
        raise unknown_name("environment", gym_id, filter(_is_goal_env, gymnasium.registry), name, owner="OGBench")
    if colon:
        task = int(number) if number.isdecimal() else 0
    if task is not None and not 1 <= task <= TASKS:
        raise UserError(f"the task must be from 1 to {TASKS}, but is {number or task}", where=name,
                        hint=f"ogbench/{gym_id}:1 is the first of them, ogbench/{gym_id} draws one for each episode")
    if task is not None and not colon:
        name = f"ogbench/{gym_id}:{task}"
    kind = next((k for k in (PointMaze, Cube) if gym_id.startswith(k.column)), GoalEnv)
    vec = gymnasium_adapter.vectorize(lambda: kind(gymnasium_adapter.build(gym_id, **options), task), rows)
    metadata = {
        **gymnasium_adapter.env_metadata(vec.envs[0], name),
        "success": "the goal is reached (info['success']) at any step",
    }
    return (MazeVector if kind is PointMaze else ReachingVector if kind is Cube else GoalVector)(vec, metadata)


def _is_goal_env(gym_id: str) -> bool:
    spec = gymnasium.registry[gym_id]
    return str(spec.entry_point).startswith("ogbench.") and "reward_task_id" not in spec.kwargs


class GoalEnv(gymnasium.Wrapper):
    """Wraps an OGBench environment to show the goal's observation, and to draw the task from the seed.

    OGBench draws from NumPy's global generator. Here each environment has its own state of it, which depends on the
    seed of the episode alone. Its expert draws from another.
    """

    def __init__(self, env, task: int | None):
        super().__init__(env)
        self.task, self.goal, self.number = task, None, 0
        self.drawn: dict[str, tuple] = {}
        simulator, space = env.unwrapped, env.observation_space
        if isinstance(getattr(type(simulator), "action_space", None), property):
            # A new space at every look, which no seed reaches: the goal is settled by two actions drawn from it.
            kind = type(simulator)
            simulator.__class__ = type(kind.__name__, (kind,), {"action_space": simulator.action_space,
                                                                "__module__": kind.__module__})
        self.key = "camera" if space.dtype == np.uint8 and len(space.shape) == 3 else "state"
        self.observation_space = gymnasium.spaces.Dict({self.key: space, "goal": space})

    @contextmanager
    def own_random_state(self, who: str = "world") -> Iterator[None]:
        before = np.random.get_state()
        np.random.set_state(self.drawn.get(who, before))
        try:
            yield
        finally:
            self.drawn[who] = np.random.get_state()
            np.random.set_state(before)

    def reset(self, *, seed=None, options=None):
        if self.task is not None or seed is not None:
            self.number = self.task or 1 + int(np.random.default_rng([seed, 2]).integers(TASKS))
        if seed is not None:
            self.action_space.seed(seed)
            self.drawn = {who: np.random.RandomState([seed, stream]).get_state()
                          for stream, who in enumerate(("world", "expert"))}
        with self.own_random_state():
            obs, info = self.env.reset(seed=seed, options={"task_id": self.number})
        self.goal, self.info = info["goal"], info
        return self._observation(obs), info

    def step(self, action):
        with self.own_random_state():
            obs, reward, terminated, truncated, self.info = self.env.step(action)
        return self._observation(obs), reward, terminated, truncated, self.info

    def _observation(self, obs):
        return {self.key: obs, "goal": self.goal}


class PointMaze(GoalEnv):
    column = "pointmaze-"

    def set_goal(self, goal: np.ndarray) -> None:
        """Sets the goal position of the maze, (2,), in meters."""
        self.goal = goal
        self.unwrapped.set_goal(goal_xy=goal)

    def expert_action(self):
        """Straight to the next cell of a shortest way, as where OGBench's own data come from, without its noise; and
        in the goal's cell to the goal."""
        maze = self.unwrapped
        here, there = maze.get_xy(), np.asarray(maze.cur_goal_xy)
        if maze.xy_to_ij(here) != maze.xy_to_ij(there):
            there = maze.get_oracle_subgoal(here, there)[0]
        way = there - here
        return way / max(np.linalg.norm(way), 0.2)  # an action of 1 moves it by 0.2


class Cube(GoalEnv):
    """OGBench's cube environment with its scripted expert, which puts one cube where the goal has it."""

    column = "cube-single-"

    def __init__(self, env, task):
        super().__init__(env, task)
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        self.oracle = CubeMarkovOracle(env=env)

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        with self.own_random_state("expert"):
            self.oracle.reset(None, None)
        return obs, info

    def expert_action(self):
        from ogbench.manipspace.lie import SO3

        table = self.unwrapped
        target = table._cube_target_mocap_ids[0]
        info = {**table.compute_ob_info(), "privileged/target_block": 0,
                "privileged/target_block_pos": table._data.mocap_pos[target],
                "privileged/target_block_yaw": [SO3(wxyz=table._data.mocap_quat[target]).compute_yaw_radians()]}
        return self.oracle.select_action(None, info)


class GoalVector(RenderableGymVector):
    """An environment of OGBench with the columns observation.state and observation.goal, the observation at the goal.

    Visual environments have observation.images.camera and observation.images.goal.
    """

    def step(self, action):
        out = super().step(action)
        return type(out)(out.obs, out.reward, out.terminated, out.truncated,
                         {**out.info, "task_id": torch.tensor([single.number for single in self.vec.envs])})


class ReachingVector(GoalVector, ExpertVector):
    """A goal-conditioned environment of OGBench that has an expert."""


class MazeVector(ReachingVector, MujocoVector):
    """An OGBench maze in which a point walks to a goal.

    Without simulator.state, rows are restored from the recorded position in meters (qpos or observation.state), which
    determines everything that follows, and from observation.goal.
    """

    def _restore_from_obs(self, row, steps, i):
        self.vec.envs[row].unwrapped.set_xy(
            self._recorded_column(steps, i, "qpos" if "qpos" in steps else "observation.state", 2))

    def _observe_restored(self, row, steps, i):
        single = self.vec.envs[row]
        if "observation.goal" in steps:
            single.set_goal(self._recorded_column(steps, i, "observation.goal", 2))
        self.last_obs["observation.state"][row], self.last_obs["observation.goal"][row] = (
            single.unwrapped.get_xy(), single.goal)
