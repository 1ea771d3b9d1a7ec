"""Worlds in which advice is judged: demonstrators with human habits, in toys and in drawn tasks of Meta-World."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, expert_of
from evidence.measures import ROWS, deployed_actor
from evidence.worlds.curation import cached_load
from understudy.core import normal, uniform
from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.envs.base import Env
from understudy.evaluate.behavior.modes import rollout_repeated_starts
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, CountingActor

STATE = "observation.state"
Options = tuple[tuple[str, Any], ...]
LIMIT: Options = (("limit", 120),)  # of an episode of Meta-World: its experts need about 30 to 90 steps
# Tasks that Meta-World's own scripts solve within `LIMIT`, by moving the hand or an object.
TASKS = ("button-press-v3", "coffee-button-v3", "door-close-v3", "door-open-v3", "drawer-open-v3", "faucet-open-v3",
         "handle-press-side-v3", "plate-slide-v3", "push-v3", "reach-v3", "sweep-into-v3", "window-open-v3")


def drawn(pool: Sequence[str], seed: int) -> list[str]:
    """The pool in the order in which this seed draws it. The first one in which the plainest rival is between 0.3 and
    0.7 is taken.
    """
    return np.random.default_rng(seed).permutation(np.array(pool)).tolist()


@cache
def world(env: str, options: Options) -> Env:
    """An environment that all arms and seeds share, because those of Meta-World take seconds to build."""
    return make(env, rows=ROWS, **dict(options))


@cache
def expert(env: str) -> Actor:
    """The expert of an environment."""
    return expert_of(make(env, rows=1))


@dataclass(frozen=True)
class Demonstrator(Actor):
    """The expert of an environment with habits of people.

    Args:
        noise: Standard deviation of noise on what moves the hand.
        detour: What is added to its second component at first, to one side or the other at even odds.
        detour_steps: For how many steps.
        pause: Number of steps for which it stands still, from step 12 on.
        lost_share: Share of the episodes that go in some direction from step 10 on, instead of to the goal.
    """

    env: str
    noise: float = 0.0
    detour: float = 0.0
    detour_steps: int = 20
    pause: int = 0
    lost_share: float = 0.0

    def start(self, obs, key):
        return {"inner": expert(self.env).start(obs, key), "key": key, "count": torch.zeros_like(key),
                "drawn": uniform(key, torch.zeros_like(key), (3,), stream=11).float()}

    def act(self, obs, state):
        action, inner = expert(self.env).act(obs, state["inner"])
        action, count, drawn_numbers = action.clone().float(), state["count"], state["drawn"]
        move = action[:, :3]  # the gripper of Meta-World goes on
        move[:, 1] += self.detour * torch.where(drawn_numbers[:, 0] < 0.5, 1.0, -1.0) * (count < self.detour_steps)
        angle = 2 * np.pi * drawn_numbers[:, 2:]
        is_lost = (drawn_numbers[:, 1] < self.lost_share) & (count >= 10)
        move[:, :2] = torch.where(is_lost[:, None], torch.cat([angle.cos(), angle.sin()], 1), move[:, :2])
        move += self.noise * normal(state["key"], count, tuple(move.shape[1:]), stream=12).float()
        since = count - 12
        move[(since >= 0) & (since < self.pause)] = 0.0
        return action.clamp(-1, 1), {**state, "inner": inner, "count": count + 1}


@dataclass(frozen=True)
class WrongActions:
    """Replaces a share of the recorded actions by the upper limit of every component, by lot."""

    share: float

    def __call__(self, episode: Episode) -> Episode:
        rng = np.random.default_rng(abs(int(1e6 * float(np.abs(episode.steps[STATE]).sum()))))
        action = np.where(rng.random((len(episode), 1)) < self.share, np.float32(1), episode.steps["action"])
        return episode.replace({"action": action.astype(np.float32)})


@dataclass(frozen=True)
class Demonstrations(DemonstrationSource):
    """Episodes of a demonstrator, new ones for each training seed. The successful ones, unless some are lost.

    Args:
        starts: From how many starts. By default each episode has its own.
        failures: Whether episodes that fail are kept.
        wrong_share: Share of the recorded actions that `WrongActions` replaces.
    """

    env: str
    episodes: int
    by: Demonstrator
    options: Options = ()
    starts: int = 0
    failures: bool = False
    wrong_share: float = 0.0

    @cached_load
    def load(self, seed):
        env, number = world(self.env, self.options), recording_seed(seed)
        episodes = (rollout_repeated_starts(self.by, env, self.starts, self.episodes // self.starts, seed=number)
                    if self.starts else rollout(self.by, env, self.episodes, number))
        episodes = episodes if self.failures else episodes.filter(lambda e: e.metadata["success"])
        return episodes.map(WrongActions(self.wrong_share)) if self.wrong_share else episodes


@dataclass(frozen=True)
class Pushed(CountingActor):
    """An actor whose movements are changed by noise of this standard deviation, which stays for 5 steps."""

    actor: Actor
    push: float

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), **super().start(obs, key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        action = action.clone()
        action[:, :3] += self.push * normal(state["key"], state["count"] // 5, tuple(action[:, :3].shape[1:]),
                                            stream=13).float()
        return action.clamp(-1, 1), {**state, "inner": inner, "count": state["count"] + 1}


@dataclass(frozen=True)
class ClosedLoop:
    """Trains a method and rolls it out in an environment that all arms share.

    Args:
        push: What `Pushed` adds to the actions.
    """

    push: float = 0.0

    def __call__(self, experiment, method, data: Dataset, seed: int, episodes: int, starts: int
                 ) -> dict[str, list[float]]:
        actor = deployed_actor(experiment, method, data, seed)
        actor = Pushed(actor, self.push) if self.push else actor
        rollouts = rollout(actor, world(experiment.env, experiment.env_options), episodes, starts)
        return {"success": [float(e.metadata["success"]) for e in rollouts]}


@dataclass(frozen=True)
class Parts(DemonstrationSource):
    """Demonstrations of several sources. The metadata "part" of each episode is the name of its source.

    Args:
        parts: (name, source) each.
    """

    env: str
    parts: tuple[tuple[str, Demonstrations], ...]

    @cached_load
    def load(self, seed):
        parts = [(name, source.load(seed)) for name, source in self.parts]
        return Dataset([Episode(e.steps, {**e.metadata, "part": name}) for name, episodes in parts for e in episodes],
                       parts[0][1].metadata)
