"""Row 178: does a policy learn more from the prior data that are like its task?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from claims.worlds.curation import (
    CuratedMethod,
    cached_load,
    cloning_method,
    curated_arms,
    train_curated,
    with_keep_columns,
)
from claims.worlds.one_goal_rooms import ROWS, STATE, one_goal_demonstrations, one_goal_rollouts
from understudy.claims.base import (
    SCORE,
    AllOf,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.data.episode import Dataset
from understudy.data.mixture import mix
from understudy.envs.toys.four_rooms import FourRooms, FourRoomsExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.cloning.latent_labels import LatentEncoder
from understudy.learn.cloning.retrieval import SAMPLING_WEIGHT, Retrieve
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods.retrieval.behavior_retrieval import StateActionVAE
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

EMBEDDING = Method(
    PolicyConfig(Regression(), trunk=MLP(64, 1), encoder=ConcatEncoder(), inputs=(STATE,)),
    learner=StateActionVAE(4, widths=(64, 64), steps=400, batch_size=64),
)


@dataclass(frozen=True)
class RandomRetrieve(Retrieve):
    """Retrieves as many windows, at random."""

    seed: int = 0

    def distances(self, data, is_task):
        return np.random.default_rng(self.seed).random(int((~is_task).sum()))


@dataclass(frozen=True)
class TaskAndPrior(DemonstrationSource):
    """Few demonstrations of a task, and prior data whose episodes do not say what they are.

    Args:
        n_task: Number of demonstrations of the task.
        n_same: Number of prior episodes that do the task.
        n_other: Number of prior episodes that go to other goals, or walk at random (half of them).
        fraction: Fraction of the prior windows to retrieve.
    """

    n_task: int
    n_same: int
    n_other: int
    fraction: float

    @cached_load
    def load(self, seed):
        task = one_goal_demonstrations(self.n_task, seed, first_room=True)
        same = one_goal_demonstrations(self.n_same, seed, first_room=True, split=1)
        other = rollout(FourRoomsExpert(aimless=0.5), FourRooms(min(ROWS, self.n_other), limit=100), self.n_other,
                        recording_seed(seed), first=200_000)
        data, _ = mix(task=(task, 0.5), prior=(same + other, 0.5))
        encoder = fit_method(EMBEDDING, data.select(range(self.n_task, len(data))), seed).modules["embedding"]
        assert isinstance(encoder, LatentEncoder)
        ways = {
            "task": Retrieve(encoder, task_fraction=1.0),
            "all": Retrieve(encoder, fraction=1.0),
            "nearest": Retrieve(encoder, fraction=self.fraction),
            "random": RandomRetrieve(encoder, fraction=self.fraction, seed=seed),
        }
        weights = {name: [e.steps[SAMPLING_WEIGHT][:, 0] for e in way.apply(data)] for name, way in ways.items()}
        prior = range(self.n_task, len(data))
        same_task = range(self.n_task, self.n_task + self.n_same)
        figures = {f"precision.{name}": sum(w[i].sum() for i in same_task) / max(sum(w[i].sum() for i in prior), 1e-9)
                   for name, w in weights.items()}
        return with_keep_columns(data, weights, {**data.metadata, "figures": figures})


def success_and_precision(
    experiment, method: CuratedMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains on the steps of an arm and rolls out.

    Returns:
        "success", 0 or 1 per start. "precision", one per run: the fraction of the prior windows of the arm's batches
        that are of episodes that do the task. It is 0 where an arm has none.
    """
    policy = train_curated(method, data, seed)
    rollouts = one_goal_rollouts(policy, method.method.executor, episodes, starts, first_room=True)
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "precision": [float(data.metadata["figures"][f"precision.{method.curation}"])]}


def with_random_selection(experiment: Experiment) -> Experiment:
    return experiment.change_options(lambda o: replace(o, curation="random"), "nearest")


ROOMS = Experiment(
    TaskAndPrior(n_task=2, n_same=20, n_other=60, fraction=0.1),
    "four_rooms",
    curated_arms("task", "all", "nearest", options=(cloning_method(3e-3, steps=400),)),
    success_and_precision,
    seeds=tuple(range(100, 110)),
    looks=((5, 0.02), (10, 0.03)),
    measures=(("precision", SCORE),),
    sanity=(("task", "success", 0.2), ("all", "success", 0.2)),
)
OVER_TASK, OVER_ALL = GreaterThan("success", "nearest", "task"), GreaterThan("success", "nearest", "all")

CLAIM = Claim(
    name="retrieved-prior-data",
    rows=("178",),
    parts=(ClaimPart("rooms", ROOMS, AllOf((OVER_TASK, OVER_ALL))),),
    negative_control=NegativeControl(with_random_selection, "rooms", removes=(OVER_ALL,)),
    mechanism_only="Actions are cloned from retrieved steps, as in Behavior Retrieval, where the paper learns skills.",
)
