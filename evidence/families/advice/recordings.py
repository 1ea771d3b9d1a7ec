"""Recordings in which the robot slips, with what the demonstrator wanted as actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource
from evidence.measures import deployed_actor
from evidence.worlds.curation import cached_load
from understudy.core import normal, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, CountingActor
from understudy.improve.gates import SUPERVISOR_ACTION, GatedActor
from understudy.learn.method import Method

from .worlds import Options, expert, world

PART, SLIPPED = "part", "slipped"
COLUMNS = ("observation.state", "observation.environment_state", "action", "next.reward", "next.terminated",
           "next.truncated", "next.success")


def labeled(episode: Episode, part: str = "") -> Episode:
    """The episode with what the supervisor advised as actions, and without columns of the gate."""
    steps = {k: v for k, v in episode.steps.items() if k in COLUMNS}
    label = np.asarray(episode.steps[SUPERVISOR_ACTION], np.float32)
    return Episode({**steps, "action": label}, {**episode.metadata, PART: part})


def cut(episodes: list[Episode], n_steps: int) -> list[Episode]:
    """The first episodes, with this number of steps together. The last one is cut."""
    kept: list[Episode] = []
    for e in episodes:
        if (remaining := n_steps - sum(map(len, kept))) <= 0:
            break
        end = min(len(e), remaining)
        kept.append(Episode({k: v[:end + len(v) - len(e)] for k, v in e.steps.items()}, e.metadata))
    return kept


@dataclass(frozen=True)
class Slips(CountingActor):
    """An actor that slips in half of the episodes: for some steps it moves in a direction that is drawn.

    Args:
        n_steps: For how many steps.
        latest: The latest step at which it begins.
    """

    actor: Actor
    n_steps: int = 8
    latest: int = 20

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), **super().start(obs, key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        action, key, inner = action.clone().float(), state["key"], dict(inner)
        drawn = uniform(key, torch.zeros_like(key), (2,), stream=14).float()
        way = normal(key, torch.zeros_like(key), tuple(action[:, :3].shape[1:]), stream=15).float()
        since = state["count"] - (drawn[:, 1] * self.latest).long()
        slips = (drawn[:, 0] < 0.5) & (since >= 0) & (since < self.n_steps)
        action[:, :3] = torch.where(slips[:, None], way / way.norm(dim=1, keepdim=True), action[:, :3])
        record = {**inner.pop("record", {}), SLIPPED: slips}
        return action.clamp(-1, 1), {**state, "inner": inner, "count": state["count"] + 1, "record": record}


@dataclass(frozen=True)
class Slipped(DemonstrationSource):
    """Successes of an expert that slips in half of the episodes, with what it wanted to do as actions.

    The metadata "part" of an episode is "slipped" if it slipped, and "smooth" otherwise.
    """

    env: str
    episodes: int
    options: Options = ()

    @cached_load
    def load(self, seed):
        own = expert(self.env)
        episodes = rollout(GatedActor(Slips(own), own), world(self.env, self.options), self.episodes,
                           recording_seed(seed))
        return episodes.filter(lambda e: e.metadata["success"]).map(
            lambda e: labeled(e, SLIPPED if np.any(e.steps[SLIPPED]) else "smooth"))


@dataclass(frozen=True)
class FirstSteps(Operation):
    """The first episodes of some parts that have a number of steps together. The last one is cut."""

    n_steps: int
    parts: tuple[str, ...]

    def apply(self, data):
        return Dataset(cut([e for e in data if e.metadata[PART] in self.parts], self.n_steps), data.metadata)


@dataclass(frozen=True)
class Slipping:
    """Trains a method and rolls it out, while it slips in half of the episodes."""

    def __call__(self, experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
        actor = Slips(deployed_actor(experiment, method, data, seed))
        rollouts = rollout(actor, world(experiment.env, experiment.env_options), episodes, starts)
        return {"success": [float(e.metadata["success"]) for e in rollouts]}
