"""A script that tries again when a grasp fails. Do its demonstrations teach to try again?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, Rollouts, StackedSeeds
from evidence.worlds.curation import cached_load
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.tabletop import TabletopExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.retry import ATTEMPT, RetryActor
from understudy.heads.denoising.flow import Flow
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE, BLOCKS, SIMULATOR = "observation.state", "observation.environment_state", "simulator.state"
CLICK, AFTER_A_MISS = "observation.click", "success after a miss"
OPTIONS: tuple[tuple[str, Any], ...] = (("slip", 0.5), ("blocks", 1), ("instruction", "click"))


@dataclass(frozen=True)
class OneAttempt(Actor):
    """The expert, which looks at the block until it closes the hand, and from then on believes that it holds the block.
    """

    actor: Actor = TabletopExpert("velocity")

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "closed": torch.zeros_like(key, dtype=torch.bool)}

    def act(self, obs, state):
        mission, held_block = obs[SIMULATOR].T
        believed = torch.stack([mission, torch.where(state["closed"], 0.0, held_block)], 1)
        action, inner = self.actor.act({**obs, SIMULATOR: believed}, state["inner"])
        return action, {"inner": inner, "closed": state["closed"] | (action[:, 2] > 0)}


def is_empty(obs) -> torch.Tensor:
    """Whether the hand is closed and holds nothing, (B,)."""
    return (obs[STATE][:, 2] > 0.5) & (obs[SIMULATOR][:, 1] < 0)


@dataclass(frozen=True)
class Attempts(DemonstrationSource):
    """Episodes of a script that tries up to three times, also those that fail."""

    episodes: int = 500

    @cached_load
    def load(self, seed):
        actor = RetryActor(OneAttempt(), is_empty, max_attempts=3)
        return rollout(actor, make("tabletop", ROWS, **dict(OPTIONS)), self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class Collect(Operation):
    """The first episodes of a kind that together have a number of steps. The last one is cut.

    Args:
        kind: "one-shot": successes of the first attempt. "retries": all successes. "winning": successes without failed
            attempts, which end when the empty hand is open again. "all": failures too.
    """

    kind: Literal["one-shot", "retries", "winning", "all"]
    n_steps: int

    def apply(self, data):
        episodes, remaining = [], self.n_steps
        for e in data:
            attempt, is_open = e.steps[ATTEMPT][:, 0], e.steps[STATE][:-1, 2] < 0.5
            if not remaining or self.kind != "all" and not e.metadata["success"]:
                continue
            if self.kind == "one-shot" and attempt[-1] > 1:
                continue
            first = int(np.argmax((attempt == attempt[-1]) & is_open)) if self.kind == "winning" else 0
            end = min(len(e), first + remaining)
            episodes.append(Episode({k: v[first:end + len(v) - len(e)] for k, v in e.steps.items()}, e.metadata))
            remaining -= end - first
        return Dataset(episodes, data.metadata)


def first_grasp_misses(episode: Episode) -> bool:
    """Whether the block is moved for the first time by a hand that does not hold it."""
    moves = np.flatnonzero((np.diff(episode.steps[BLOCKS], axis=0) != 0).any(1))
    return len(moves) > 0 and bool(episode.steps[SIMULATOR][moves[0] + 1, 1] < 0)


def success_after_a_miss(policy, rollouts: Dataset) -> float:
    """Success among the episodes whose first grasp misses. 0 if there are none."""
    successes = [e.metadata["success"] for e in rollouts if first_grasp_misses(e)]
    return float(np.mean(successes)) if successes else 0.0


def clone(kind: Literal["one-shot", "retries", "winning", "all"]) -> Method:
    policy = PolicyConfig(Flow(), MLP(128, 1), ConcatEncoder(), window=Window(1, 4), inputs=(STATE, CLICK))
    learner = BehaviorCloning(2000, 128, OptimizerConfig(lr=3e-3))
    return Method(policy, RecedingHorizon(), learner, transforms=(Collect(kind, 3000),))


MEASURE = StackedSeeds(Rollouts(per_run=((AFTER_A_MISS, success_after_a_miss),)))
TABLE = Experiment(Attempts(), env="tabletop", env_options=OPTIONS, measure=MEASURE, first_seed=760, episodes=300,
                   levels={"one-shot": 0.4, "retries": 0.7}, arms={
    "retries": clone("retries"),
    "one-shot": clone("one-shot"),
    "all episodes": clone("all"),
    "winning segments": clone("winning")})
