"""The Adroit hand opens a door (Rajeswaran et al. 2018), as Gymnasium-Robotics has it, with its quirks fixed."""

from __future__ import annotations

import gymnasium
import gymnasium_robotics  # noqa: F401  (names the environment)
import mujoco
import numpy as np

from .. import gymnasium_adapter
from ..mujoco import MujocoVector

OPEN_ANGLE = 1.0  # rad, of the hinge: what all people of the recorded demonstrations pass
RANDOM, EXPERT = -56.512833, 2880.5693087298737  # returns that D4RL (Fu et al. 2020) counts as 0 and 100
JOINTS, LATCH, HINGE = slice(0, 27), 27, 28  # of an observation; joints are qpos[1:28]
PALM, HANDLE, PALM_TO_HANDLE = slice(29, 32), slice(32, 35), slice(35, 38)


def make(name: str, rows: int = 1, limit: int = 300, **options) -> Door:
    """Makes AdroitHandDoor with a corrected reward.

    Args:
        limit: Number of steps of an episode. The 200 steps of the original environment end most human demonstrations
            before the door is open.
        **options: Arguments of `gymnasium.make`.
    """
    def build():
        return CorrectedReward(gymnasium_adapter.build(name, max_episode_steps=limit, **options))
    env = build()
    metadata = {**gymnasium_adapter.env_metadata(env, name), "limit": limit,
             "success": f"hinge at 1.35 rad or more at any step (info \"opened\": above {OPEN_ANGLE} rad at any step)"}
    return Door(gymnasium_adapter.vectorize(build, rows), metadata, lift=("opened",))


def score(rewards: np.ndarray, steps: int = 200) -> float:
    """Returns D4RL's normalized score of an episode: 0 is the random policy, 100 its expert.

    Args:
        rewards: Rewards of the episode, (T,).
        steps: Only the first `steps` rewards count.
    """
    return 100 * (float(np.asarray(rewards)[:steps].sum()) - RANDOM) / (EXPERT - RANDOM)


def reward(obs: np.ndarray, speed: np.ndarray) -> float:
    """Computes the reward of a step as in the recorded demonstrations.

    Gymnasium-Robotics 1.4.2 has the wrong sign for the distance between palm and handle.

    Args:
        obs: Observation after the step, (39,).
        speed: Joint velocities after the step, (30,).
    """
    hinge = obs[HINGE]
    bonus = 2.0 * (hinge > 0.2) + 8.0 * (hinge > 1.0) + 10.0 * (hinge > 1.35)
    cost = 0.1 * np.linalg.norm(obs[PALM_TO_HANDLE]) + 0.1 * (hinge - 1.57) ** 2 + 1e-5 * np.square(speed).sum()
    return float(bonus - cost)


class CorrectedReward(gymnasium.Wrapper):
    """Wraps AdroitHandDoor to correct the signs of costs in the reward, and to report whether the door opened."""

    def reset(self, **options):
        self.opened = False
        return self.env.reset(**options)

    def step(self, action):
        obs, _, terminated, truncated, info = self.env.step(action)
        self.opened = self.opened or bool(obs[HINGE] > OPEN_ANGLE)
        return (obs, reward(obs, self.unwrapped.data.qvel), terminated, truncated,
                {**info, "success": bool(info["success"]), "opened": self.opened})


class Door(MujocoVector):
    """AdroitHandDoor whose recorded states can be restored.

    simulator.state is the state of MuJoCo, followed by the position of the door (3), m. Without this column, rows are
    restored from observation.state at rest, because velocities are not observed. The slide of the arm follows from the
    position of the palm. The position of the door is the episode's metadata init_door_body_pos if present, and else
    follows from the position of the handle.
    """

    def _get_state(self, row):
        env = self.vec.envs[row].unwrapped
        return np.concatenate([super()._get_state(row), env.model.body_pos[env.door_body_id]])

    def _set_state(self, row, state):
        env = self.vec.envs[row].unwrapped
        env.model.body_pos[env.door_body_id] = state[-3:]
        super()._set_state(row, state[:-3])

    def _restore_from_obs(self, row, steps, i):
        state = self._recorded_column(steps, i, "observation.state", 39)
        has_door_position = "init_door_body_pos" in steps
        env, (model, data) = self.vec.envs[row].unwrapped, self.models[row]
        data.qpos[:] = [0.0, *state[JOINTS], state[HINGE], state[LATCH]]
        data.qvel[:] = 0
        mujoco.mj_forward(model, data)
        data.qpos[0] = (state[PALM] - data.site_xpos[env.grasp_site_id]) @ data.xaxis[0]  # the slide's axis
        door = model.body_pos[env.door_body_id]
        door[:] = (self._recorded_column(steps, i, "init_door_body_pos", 3) if has_door_position
                   else door + state[HANDLE] - data.site_xpos[env.handle_site_id])
        mujoco.mj_forward(model, data)
