"""Row 279: diffusion policies whose encoding must draw the present picture, the later one, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.experiment import Experiment
from evidence.families.representation.frozen_encoders import ROWS, NearPush, PushesToGoals, part, progress
from evidence.families.representation.rebuilt_pictures import diffusion
from evidence.measures import flags, train_once
from understudy.data.episode import Dataset
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.learn.method import Method
from understudy.methods.generative.dp4 import ScenePrediction


@dataclass(frozen=True)
class OtherScenes(ScenePrediction):
    """Draws the observations, now and later, of another window of the batch."""

    def loss(self, networks, policy, batch, rng, captured):
        obs, later = ({name: column.roll(1, 0) for name, column in columns.items()}
                      for columns in (batch.obs, batch.next))
        return super().loss(networks, policy, replace(batch, obs=obs, next=later), rng, captured)


def few(*losses: ScenePrediction) -> Method:
    return replace(diffusion(*losses), transforms=(part("task"),))


def pushed(experiment, arm: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" and "progress" of a policy from 25 pushes."""
    policy = train_once(experiment, arm, data, seed).policy
    rollouts = rollout(PolicyActor(FixedBatch(policy, min(ROWS, episodes)), arm.executor),
                       NearPush(min(ROWS, episodes)), episodes, seed=starts)
    return {"success": flags(rollouts)["success"], "progress": [sum(map(progress, rollouts)) / episodes]}


WEIGHT = 0.02
TABLE = Experiment(PushesToGoals(), env="push-images", first_seed=2790, episodes=100,
                   measure=pushed, looks=((3, 0.02), (5, 0.03)),
                   levels={"none": 0.3}, arms={
    "present and future": few(ScenePrediction(8, WEIGHT, WEIGHT)),
    "present": few(ScenePrediction(8, WEIGHT, 0.0)),
    "future": few(ScenePrediction(8, 0.0, WEIGHT)),
    "none": few(),
    "scenes of other windows": few(OtherScenes(8, WEIGHT, WEIGHT))})
