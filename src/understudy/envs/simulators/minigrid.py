"""Adapter to MiniGrid and BabyAI (Chevalier-Boisvert et al. 2019, 2023): rooms of cells, and missions in words."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from minigrid import wrappers
from minigrid.utils.baby_ai_bot import BabyAIBot

from ...core import UserError, unknown_name
from .. import gymnasium_adapter
from ..gymnasium_adapter import RenderableGymVector
from .external import ExpertVector

MAX_MISSION_BYTES = 128  # bytes of a mission
CELL = (11, 6, 4)  # kinds of object, colors, and states of a door or directions of the agent
VIEWS = {"partial": lambda env: env, "full": wrappers.FullyObsWrapper, "pixels": wrappers.RGBImgPartialObsWrapper}


def make(
    name: str, rows: int = 1, view: Literal["partial", "full", "pixels"] = "partial", **options
) -> RenderableGymVector:
    """Makes an environment of MiniGrid or BabyAI. BabyAI has its bot as expert.

    Args:
        name: Gymnasium id, such as "BabyAI-GoToLocal-v0" or "MiniGrid-DoorKey-5x5-v0".
        view: "partial" shows the cells in front of the agent, "full" the whole room, and "pixels" an image of the
            partial view.
        **options: Arguments of `gymnasium.make`. `max_steps` is the time limit, which in BabyAI otherwise depends on
            the mission.
    """
    if name not in gymnasium.registry:
        ids = (i for i in gymnasium.registry if i.startswith(("MiniGrid-", "BabyAI-")))
        raise unknown_name("environment", name, ids, name, owner="MiniGrid")
    if view not in VIEWS:
        raise UserError(f"the view must be one of {', '.join(VIEWS)}, not {view!r}", where=f"{name}, view",
                        hint="such as view='partial'")
    bot = name.startswith("BabyAI-")
    vec = gymnasium_adapter.vectorize(
        lambda: (MiniGridMission if bot else MiniGridRoom)(VIEWS[view](gymnasium_adapter.build(name, **options))), rows
    )
    limit = options.get("max_steps") or (None if bot else vec.envs[0].unwrapped.max_steps)
    metadata = {
        **gymnasium_adapter.env_metadata(vec.envs[0], name),
        "limit": limit,
        "success": "the mission is done: a reward above 0",
    }
    return (ExpertVector if bot else RenderableGymVector)(vec, metadata)


class MiniGridRoom(gymnasium.Wrapper):
    """observation.view: kind, color and state of each cell, as choices (or observation.images.camera);
    observation.direction; observation.task: the mission, which is the same at all steps of an episode."""

    def __init__(self, env):
        super().__init__(env)
        image = env.observation_space["image"]
        self.pixels = isinstance(env, wrappers.RGBImgPartialObsWrapper)
        cells = spaces.MultiDiscrete(CELL * (image.shape[0] * image.shape[1]))
        self.observation_space = spaces.Dict({**({"camera": image} if self.pixels else {"view": cells}),
                                              "direction": spaces.Discrete(4), "task": spaces.Text(MAX_MISSION_BYTES)})

    def reset(self, *, seed=None, options=None):
        with redirect_stdout(io.StringIO()):  # BabyAI tells of every room that it draws and gives up
            obs, info = self.env.reset(seed=seed, options=options)
        return self._observation(obs), {**info, "success": False}

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observation(obs), reward, terminated, truncated, {**info, "success": reward > 0}

    def _observation(self, obs):
        image = obs["image"]
        return {**({"camera": image} if self.pixels else {"view": image.reshape(-1).astype(np.int64)}),
                "direction": int(obs["direction"]), "task": obs["mission"]}


class MiniGridMission(MiniGridRoom):
    """Adapter to a level of BabyAI, with its bot as the expert, which watches the actions and plans again."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        self.clock, self.asked, self.taken, self.bot = 0, -1, None, BabyAIBot(self.env)
        return obs, info

    def step(self, action):
        self.clock, self.taken = self.clock + 1, action
        return super().step(action)

    def expert_action(self):
        if self.asked != self.clock:
            if self.asked != self.clock - 1:  # somebody else acted in between: plan anew
                self.bot, self.taken = BabyAIBot(self.env), None
            try:
                self.advice = int(self.bot.replan(self.taken))
            except Exception:  # levels that it cannot solve, and states that only a policy gets into
                self.advice = int(self.unwrapped.actions.shift_action)
            self.asked = self.clock
        return self.advice
