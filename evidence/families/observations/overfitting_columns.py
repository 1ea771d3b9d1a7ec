"""Row 240: a state that says nearly all, and a sensor of many channels on which a network overfits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, train_once
from understudy.data.augment import ConditionDropout
from understudy.data.episode import Dataset
from understudy.envs.toys.particle import Particle, ParticleExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import LearnerConfig
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.g_blend import ColumnEncoder, ColumnLosses, GradientBlend
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, SENSOR = "observation.state", "observation.sensor"
CHANNELS, GAIN, BLUR = 200, 0.2, 0.1
FAST = OptimizerConfig(lr=1e-3)
PROJECTION = np.random.default_rng(0).normal(size=(2, CHANNELS))


def flights(episodes: int, seed: int) -> Dataset:
    """The state shows the second goal blurred. The sensor shows it weakly, in 200 channels with noise of 1."""
    data = rollout(ParticleExpert(), Particle(ROWS), episodes, recording_seed(seed))
    rng = np.random.default_rng(seed)
    changed = []
    for episode in data:
        state = np.array(episode.steps[STATE])
        sensor = GAIN * state[:, 6:8] @ PROJECTION + rng.normal(size=(len(state), CHANNELS))
        state[:, 6:8] += BLUR * rng.normal(size=(len(state), 2))
        changed.append(episode.replace({STATE: state, SENSOR: sensor.astype(np.float32)}))
    return Dataset(changed, data.metadata)


@dataclass(frozen=True)
class FlightsWithSensor(DemonstrationSource):
    episodes: int = 30

    def load(self, seed):
        return flights(self.episodes, seed)


def method(learner: LearnerConfig, *inputs: str, augmentations=()) -> Method:
    policy = PolicyConfig(Regression(), FeedForward((64, 64)), ColumnEncoder(32, (32,)),
                          inputs=inputs or (STATE, SENSOR), augmentations=augmentations)
    return Method(policy, RecedingHorizon(), learner)


def cloning(*weights: float) -> BehaviorCloning:
    losses = (ColumnLosses(weights),) if weights else ()
    return BehaviorCloning(1200, 128, FAST, auxiliary_losses=losses)


def action_error(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """Squared error of actions on new flights, as a fraction of the variance, and its logarithm."""
    policy = train_once(experiment, method, data, seed).policy
    windows = policy.windows(flights(episodes, starts + seed))
    batch = windows.gather(np.arange(len(windows)))
    squares = (policy.plan(batch.obs, torch.zeros(len(batch), 1, 0)) - batch.action).square().mean()
    error = (squares / batch.action.var(0).mean()).item()
    return {"error": [error], "log error": [float(np.log(error))]}


TABLE = Experiment(FlightsWithSensor(), env="particle", first_seed=1600, episodes=100, measure=action_error, arms={
    "state alone": method(cloning(), STATE),
    "sensor alone": method(cloning(), SENSOR),
    "fused": method(cloning()),
    "dropout of the sensor": method(cloning(), augmentations=(ConditionDropout(SENSOR, 0.5),)),
    "even blend": method(cloning(1.0, 1.0)),
    "G-Blend": method(GradientBlend(1200, 128, FAST, 300))})
