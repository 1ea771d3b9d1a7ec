"""Row 388, second part: each place has a style, and a policy adapts to a new place from a few episodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import train_policy
from understudy.checkpoint import FromStage
from understudy.core import normal
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.data.shown_demonstration import ShowDemonstration
from understudy.envs.toy import length
from understudy.envs.toys.fork import GOAL, PILLAR, PILLAR_RADIUS, Fork
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.demonstrated import DemonstratedActor
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.style_bc import NumberTasks, StyleContrast, StyleEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE = "observation.state"
KNOWN, NEW, TOLERANCE = (0.05, 0.15, 0.25, 0.35, 0.45), (0.1, 0.2, 0.3, 0.4), 0.05  # clearances of places, m
ROWS, SPREAD = 100, 0.2  # m, standard deviation of the start
SHOW = ShowDemonstration((STATE,))


@dataclass(frozen=True)
class ClearanceExpert(Actor):
    """Passes the pillar on the left at a clearance, in m, and goes to the goal."""

    clearance: float

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key)}

    def act(self, obs, state):
        at = obs[STATE]
        beside = torch.tensor((PILLAR[0], PILLAR_RADIUS + self.clearance))
        aim = torch.where(at[:, :1] < PILLAR[0] - 0.02, beside, torch.tensor(GOAL)) - at
        action = aim / length(aim).clamp(min=0.1) + 0.2 * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}


def clearance_of(episode: Episode) -> float:
    """The distance to the pillar of the path where it crosses the middle of the pillar, m. Negative on the right."""
    x, y = np.asarray(episode.steps[STATE], float).T
    return float(np.interp(PILLAR[0], np.maximum.accumulate(x), y) - PILLAR_RADIUS)


def passes(clearance: float, episodes: int, seed: int, part: str) -> list[Episode]:
    """Episodes of the expert at a clearance, whose task names it."""
    expert, env = ClearanceExpert(clearance), Fork(ROWS, spread=SPREAD)
    data = rollout(expert, env, episodes, recording_seed(seed), first=round(100_000 * clearance))
    return [replace(e, metadata={**e.metadata, "task": f"{clearance} m", DATASET_NAME: part}) for e in data]


@dataclass(frozen=True)
class Places(DemonstrationSource):
    """Episodes of known places (part "known"), and of each new one a few and as many as of the others."""

    episodes: int = 40
    n_few: int = 3
    n_new: int = len(NEW)

    def load(self, seed):
        episodes = [e for clearance in KNOWN for e in passes(clearance, self.episodes, seed, "known")]
        for clearance in NEW[:self.n_new]:
            episodes += passes(clearance, self.episodes, seed, f"many {clearance}")[self.n_few:]
            episodes += passes(clearance, self.n_few, seed, f"few {clearance}")
        return Dataset(episodes, {"env": "fork", "fps": 10})


def cloning(*parts: str, stages=(), initialize_from=()) -> Method:
    policy = PolicyConfig(Regression(), FeedForward((64,)), StyleEncoder(), inputs=(STATE, *SHOW.into))
    learner = BehaviorCloning(1000, 128, OptimizerConfig(lr=1e-3), auxiliary_losses=(StyleContrast(),))
    chosen = Filter(DATASET_NAME, equals=parts)
    return Method(policy, RecedingHorizon(), learner, (chosen, SHOW, NumberTasks()), stages, initialize_from)


@dataclass(frozen=True)
class Adaptation:
    """Training parts of the policy of the known places on a few episodes of a new one."""

    trained: tuple[str, ...]

    def method(self, clearance: float) -> Method:
        stage = Stage("known", cloning("known"), dataset="known")
        begun = InitializeFrom(FromStage("known"), train=self.trained)
        return cloning(f"few {clearance}", stages=(stage,), initialize_from=(begun,))


@dataclass(frozen=True)
class Cloning:
    """Cloning of the episodes of the parts with these names."""

    parts: tuple[str, ...]

    def method(self, clearance: float) -> Method:
        return cloning(*(part.format(clearance) for part in self.parts))


def in_new_places(experiment, arm: Adaptation | Cloning, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """Success in each new place, shown its few episodes: the goal, and the clearance of the place within 0.05 m."""
    success, places = [], NEW[:experiment.source.n_new]
    for clearance in places:
        method, few = arm.method(clearance), Filter(DATASET_NAME, equals=(f"few {clearance}",)).apply(data)
        actor = PolicyActor(FixedBatch(train_policy(experiment, method, data, seed), ROWS), method.executor)
        rollouts = rollout(DemonstratedActor(actor, few, SHOW), Fork(ROWS, spread=SPREAD),
                           max(episodes // len(places), 1), seed=starts)
        success += [float(e.metadata["success"] and abs(clearance_of(e) - clearance) <= TOLERANCE) for e in rollouts]
    return {"success": success}


TABLE = Experiment(Places(), env="fork", first_seed=1980, n_seeds=10, episodes=400, measure=in_new_places,
                   levels={"forty episodes": 0.8}, arms={
    "style alone": Adaptation(("encoder.style",)),
    "style and blocks": Adaptation(("encoder.style", "encoder.blocks")),
    "everything": Adaptation(("encoder", "net")),
    "shown only": Cloning(("known",)),
    "three episodes alone": Cloning(("few {}",)),
    "forty episodes": Cloning(("few {}", "many {}"))})
