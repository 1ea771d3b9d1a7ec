"""Row 047: may the validation loss choose the checkpoint?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    SCORE,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
    expert_of,
)
from understudy.claims.measures import ROWS
from understudy.claims.memo import Memo
from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed, validation_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

CHECKPOINTS = 10
HELD_OUT = 20  # demonstrations for the validation loss


@dataclass(frozen=True)
class ResampledDemonstrations(DemonstrationSource):
    """`episodes` demonstrations to learn from, drawn again for each training seed, after HELD_OUT others."""

    env: str
    episodes: int

    @cached_load
    def load(self, seed):
        env = make(self.env, rows=ROWS)
        return rollout(expert_of(env), env, HELD_OUT + self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class SelectedCheckpoint:
    """`method`, of whose checkpoints that one acts which is best `by`: "loss", of the held-out demonstrations, or
    "rollouts"."""

    method: Method
    criterion: str


def best_checkpoint(experiment, method: SelectedCheckpoint, data: Dataset, seed: int, episodes: int,
                    starts: int) -> dict[str, list[float]]:
    """success, of the checkpoint that was chosen. step: its number, from 0 to 1."""
    key = experiment.source, method.method, seed, episodes, starts
    scores = _runs.get(key, lambda: _train_and_score(experiment, method.method, data, seed, episodes, starts))
    chosen = int(np.argmin(scores["loss"])) if method.criterion == "loss" else int(np.argmax(scores["rollouts"]))
    return {"success": scores["success"][chosen], "step": [(chosen + 1) / CHECKPOINTS]}


_runs = Memo()  # what choosers look at is one training


def _train_and_score(experiment, method, data, seed, episodes, starts):
    validation_episodes, training_episodes = data.select(range(HELD_OUT)), data.select(range(HELD_OUT, len(data)))
    env = make(experiment.env, rows=ROWS)
    scores: dict[str, list] = {"loss": [], "rollouts": [], "success": []}

    def look(step, learner, _):
        if step % (method.learner.steps // CHECKPOINTS):
            return
        now, batches = learner.trained_policy, learner.policy.windows(validation_episodes).scan(512)
        with torch.no_grad():
            loss = [now.loss(b, torch.Generator().manual_seed(int(keys(seed, [i])[0]))) for i, b in enumerate(batches)]
        scores["loss"].append(float(torch.cat(loss).mean()))
        actor = PolicyActor(FixedBatch(now, ROWS), method.executor)
        scores["rollouts"].append(
            np.mean([e.metadata["success"] for e in rollout(actor, env, 50, validation_seed(seed))])
        )
        scores["success"].append([float(e.metadata["success"]) for e in rollout(actor, env, episodes, starts)])

    fit_method(method, training_episodes, seed, callbacks=(look,))
    return scores


def with_many_demonstrations(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, episodes=500))


BASE = Method(PolicyConfig(GMM(), trunk=MLP(64, 1), encoder=ConcatEncoder(), window=Window(1, 8)), RecedingHorizon(4),
              BehaviorCloning(steps=1000, ema=ConstantDecay(0.0), optimizer=OptimizerConfig(lr=3e-3)))
FORK = Experiment(
    ResampledDemonstrations("fork", 10),
    "fork",
    tuple(Arm(by, (SelectedCheckpoint(BASE, by),)) for by in ("rollouts", "loss")),
    best_checkpoint,
    seeds=tuple(range(100, 106)),
    measures=(("step", SCORE),),
)

CLAIM = Claim(
    name="checkpoint-selection",
    rows=("047",),
    parts=(ClaimPart("fork", FORK, GreaterThan("success", "rollouts", "loss", 0.1)),),
    negative_control=NegativeControl(with_many_demonstrations, "fork"),
)
