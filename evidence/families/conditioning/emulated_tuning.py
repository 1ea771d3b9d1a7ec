"""Row 088: a small policy is fine-tuned, and the difference that makes is added to a large one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import train_policy
from understudy.checkpoint import FromStage
from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.execute.steering import ComposedPolicies
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

ENTITY, ASKED, BASE = "observation.entity", "observation.asked", "base"
N_ENTITIES, N_ANSWERS = 128, 16  # each entity has one of 16 places, and one of 16 years
N_TUNED = N_ENTITIES // 2  # entities that fine-tuning asks about
N_DRAWS = 20  # answers to each question about the other entities
FEATURES = {name: Feature("int64", (1,), "discrete", num_classes=(n,))
            for name, n in ((ENTITY, N_ENTITIES), (ASKED, 2), ("action", 2 * N_ANSWERS))}


def facts(seed: int) -> np.ndarray:
    """The place of each entity, and its year, as answers, (N_ENTITIES, 2)."""
    return np.random.default_rng(seed).integers(N_ANSWERS, size=(N_ENTITIES, 2)) + np.array([0, N_ANSWERS])


@dataclass(frozen=True)
class Quiz(DemonstrationSource):
    """Right answers to questions. Each step is a question of its own.

    The part "prior" has questions about all entities. Half of its answers are about the entity, but tell its year where
    its place is asked, or its place where its year is. The part "task" has questions about half of the entities, and
    answers what is asked.
    """

    env: str = "quiz"
    n_prior: int = 8192
    n_task: int = 2048

    def load(self, seed):
        rng = np.random.default_rng([seed, 1])
        return Dataset([self.part(rng, facts(seed), "prior", N_ENTITIES, self.n_prior, 0.5),
                        self.part(rng, facts(seed), "task", N_TUNED, self.n_task, 0.0)])

    def part(self, rng, right: np.ndarray, name: str, n_entities: int, n_steps: int, p_other: float) -> Episode:
        entity, asked = rng.integers(n_entities, size=n_steps), rng.integers(2, size=n_steps)
        answered = np.where(rng.random(n_steps) < p_other, 1 - asked, asked)
        columns = {ENTITY: entity, ASKED: asked, "action": right[entity, answered]}
        return Episode({k: v[:, None] for k, v in columns.items()}, {DATASET_NAME: name}, schema=FEATURES)


def cloned(embedding: int, width: int, tuned: bool) -> Method:
    """A policy of both parts one after the other, or of the first part alone."""
    policy = PolicyConfig(Categorical(temperature=1.0), FeedForward((width,)), TokenEncoder(embedding))
    base = Method(policy, learner=BehaviorCloning(2000, 256, OptimizerConfig(lr=3e-3)),
                  transforms=(Filter(DATASET_NAME, equals=("prior",)),))
    if not tuned:
        return base
    return Method(policy, learner=BehaviorCloning(1000, 256, OptimizerConfig(lr=3e-3)),
                  transforms=(Filter(DATASET_NAME, equals=("task",)),), stages=(Stage(BASE, base),),
                  initialize_from=(InitializeFrom(FromStage(BASE)),))


LARGE, SMALL = (64, 256), (2, 16)  # widths of the embedding of an entity and of the layer after it
LARGE_BASE, LARGE_TUNED, SMALL_BASE, SMALL_TUNED = (
    cloned(*widths, tuned) for widths in (LARGE, SMALL) for tuned in (False, True))


@dataclass(frozen=True)
class Together:
    """Policies whose logits are added with weights."""

    methods: tuple[Method, ...]
    weights: tuple[float, ...] = (1.0,)


def answers(experiment, option: Together, data: Dataset, seed: int, episodes: int, starts: int
            ) -> dict[str, list[float]]:
    """Trains the policies, and asks about the entities that fine-tuning left out.

    Returns:
        For each answer "success", whether it is right, and "asked", whether it is a place where a place is asked and a
        year where a year is.
    """
    first, *others = (train_policy(experiment, method, data, seed) for method in option.methods)
    planner = ComposedPolicies(first, tuple(others), option.weights) if others else first
    entity, asked = (a.ravel().repeat(N_DRAWS) for a in np.mgrid[N_TUNED:N_ENTITIES, :2])
    keys = torch.arange(len(entity)) + len(entity) * starts
    with torch.no_grad():
        plans = planner.plan({ENTITY: torch.from_numpy(entity)[:, None, None],
                              ASKED: torch.from_numpy(asked)[:, None, None]},
                             planner.noise(keys, torch.zeros_like(keys)))
    answered = plans[:, 0, 0].numpy()
    return {"success": list((answered == facts(seed)[entity, asked]).astype(float)),
            "asked": list((answered // N_ANSWERS == asked).astype(float))}


TABLE = Experiment(Quiz(), measure=answers, first_seed=5660, n_seeds=10, levels={"large, tuned": 0.7}, arms={
    "large": Together((LARGE_BASE,)),
    "small, tuned": Together((SMALL_TUNED,)),
    "average of both": Together((LARGE_BASE, SMALL_TUNED), (0.5, 0.5)),
    "emulated": Together((LARGE_BASE, SMALL_TUNED, SMALL_BASE), (1.0, 1.0, -1.0)),
    "large, tuned": Together((LARGE_TUNED,))})
