"""Row 388, second part: each place has a style, and a policy adapts to a new place from a few episodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from understudy.checkpoint import FromStage
from understudy.claims.base import DemonstrationSource
from understudy.claims.kit import Row, ablation, experiment, family, higher
from understudy.claims.measures import train_policy
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
from understudy.heads.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.style_bc import StyleContrast, StyleEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, PLACE = "observation.state", "place"
CLEARANCES, NEW, TOLERANCE = (0.05, 0.15, 0.35, 0.45), 0.25, 0.05  # m, of the places that are known, and of a new one
ROWS, SPREAD = 100, 0.2  # m, standard deviation of the start
SHOW = ShowDemonstration((STATE,))
ALL = ("codec", "encoder", "net")


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
        action = aim / length(aim).clamp(min=0.1) + 0.3 * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}


def clearance_of(episode: Episode) -> float:
    """The distance to the pillar of the path where it crosses the middle of the pillar, m. Negative on the right."""
    x, y = np.asarray(episode.steps[STATE], float).T
    return float(np.interp(PILLAR[0], np.maximum.accumulate(x), y) - PILLAR_RADIUS)


def passes(clearance: float, episodes: int, seed: int, place: int, part: str) -> list[Episode]:
    """Episodes of the expert at a clearance, which name their place in words and by a number."""
    expert, env = ClearanceExpert(clearance), Fork(ROWS, spread=SPREAD)
    data = rollout(expert, env, episodes, recording_seed(seed), first=1000 * place)
    return [replace(e.replace({PLACE: np.full((len(e), 1), place)}),
                    metadata={**e.metadata, "task": f"place {place}", DATASET_NAME: part}) for e in data]


@dataclass(frozen=True)
class Places(DemonstrationSource):
    """Episodes of four places (part "known"), and of a fifth: a few (part "new"), and as many as of the others.

    Args:
        n_new: Number of episodes in the part "new". The others of this place are the part "more".
    """

    episodes: int = 40
    n_new: int = 3
    probe_sizes = {"episodes": 5}

    def load(self, seed):
        known = [e for place, clearance in enumerate(CLEARANCES)
                 for e in passes(clearance, self.episodes, seed, place, "known")]
        new = passes(NEW, self.episodes, seed, len(CLEARANCES), "more")
        few = [replace(e, metadata={**e.metadata, DATASET_NAME: "new"}) for e in new[:self.n_new]]
        return Dataset([*known, *few, *new[self.n_new:]], {"env": "fork", "fps": 10})


def permute_places(episode: Episode) -> Episode:
    """The episode with the name and the number of a random known place."""
    place = int(np.random.default_rng(episode.metadata["number"]).integers(len(CLEARANCES)))
    changed = episode.replace({PLACE: np.full((len(episode), 1), place)})
    return replace(changed, metadata={**episode.metadata, "task": f"place {place}"})


def cloning(*parts: str, changes=(), stages=(), initialize_from=()) -> Method:
    policy = PolicyConfig(Regression(), FeedForward((64,)), StyleEncoder(), inputs=(STATE, *SHOW.into))
    learner = BehaviorCloning(1000, 128, OptimizerConfig(lr=1e-3), auxiliary_losses=(StyleContrast(PLACE),))
    chosen = Filter(DATASET_NAME, equals=parts)
    return Method(policy, RecedingHorizon(), learner, (chosen, *changes, SHOW), stages, initialize_from)


def adapted(*trained: str, changes=()) -> Method:
    """The policy of the known places, of which some parts are trained on the episodes of the new one."""
    begun = InitializeFrom(FromStage("known"), load=ALL, train=trained)
    return cloning("new", stages=(Stage("known", cloning("known", changes=changes), dataset="known"),),
                   initialize_from=(begun,))


def in_new_place(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """Acts from the episodes of the new place as demonstrations: success within the tolerance of its clearance."""
    shown = data.filter(lambda e: e.metadata[DATASET_NAME] == "new")
    policy = train_policy(experiment, method, data, seed)
    actor = DemonstratedActor(PolicyActor(FixedBatch(policy, ROWS), method.executor), shown, SHOW)
    rollouts = rollout(actor, Fork(ROWS, spread=SPREAD), episodes, seed=starts)
    return {"success": [float(e.metadata["success"] and abs(clearance_of(e) - NEW) <= TOLERANCE) for e in rollouts]}


ONLY_STYLE, FULL = "style alone", "everything"
TABLE = experiment(Places(), env="fork", first_seed=1980, n_seeds=10, looks=((5, 0.02), (10, 0.03)), episodes=300,
                   measure=in_new_place, sanity={"forty episodes": 0.8}, arms={
    ONLY_STYLE: adapted("encoder.style"),
    "style and blocks": adapted("encoder.style", "encoder.blocks"),
    FULL: adapted("encoder", "net"),
    "shown only": cloning("known"),
    "three episodes alone": cloning("new"),
    "forty episodes": cloning("new", "more"),
    "permuted places": ablation(ONLY_STYLE, adapted("encoder.style", changes=(permute_places,)))})
BETTER = higher(ONLY_STYLE, FULL)

CLAIMS = family(__file__, TABLE, {"388": Row(
    "style-of-a-new-place", BETTER, control="permuted places",
    reported=("style and blocks", "shown only", "three episodes alone", "forty episodes"))})
