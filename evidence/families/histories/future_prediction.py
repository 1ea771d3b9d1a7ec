"""An encoder of histories learns to predict, from episodes that turn by lot, and a policy on it from few."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, train_policy
from understudy.checkpoint import FromStage
from understudy.core import uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.data.window import Window
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import NoiseColumns
from understudy.envs.toys.memory import MemoryCorridor, MemoryExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.reconstruction_objectives import ObservationPrediction
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.recurrent import RecurrentEncoder
from understudy.policy import PolicyConfig

LENGTH, N_NOISE, ROWS = 3.0, 4, 25
STATE, NOISE, CUE, REWARD = "observation.state", "observation.noise", "simulator.state", "next.reward"
HISTORY, HORIZON, FUTURE = 40, 8, 40
PREDICTIONS, UPDATES = 600, 400  # updates of encoders, and of policies
OPTIMIZER = OptimizerConfig(lr=3e-3)


@dataclass(frozen=True)
class TurnsByLot(MemoryExpert):
    """Walks as the expert does, and turns to a side that is drawn for each episode."""

    def start(self, obs, key):
        side = torch.where(uniform(key, torch.zeros_like(key), (1,), stream=6)[:, 0] < 0.5, 1.0, -1.0)
        return {**super().start(obs, key), "side": side}

    def act(self, obs, state):
        as_if_lit = torch.cat([obs[STATE][:, :2], state["side"][:, None]], 1)
        return super().act({**obs, STATE: as_if_lit}, state)


def corridor() -> Env:
    """A corridor of 3 m, and beside what the policy sees of it, columns of noise."""
    return NoiseColumns(MemoryCorridor(ROWS, length=LENGTH), N_NOISE)


@dataclass(frozen=True)
class LotAndExpert(DemonstrationSource):
    """Episodes that turn by lot (part "prior"), with their rewards, and episodes of the expert (part "task")."""

    episodes: int = 200
    n_task: int = 15

    def load(self, seed):
        by_lot = rollout(TurnsByLot(LENGTH), corridor(), self.episodes, recording_seed(seed))
        to_light = rollout(MemoryExpert(LENGTH), corridor(), self.n_task, recording_seed(seed), first=100_000)
        parts = ["prior"] * len(by_lot) + ["task"] * len(to_light)
        return Dataset([replace(e, metadata={**e.metadata, DATASET_NAME: part})
                        for e, part in zip([*by_lot, *to_light], parts, strict=True)], by_lot.metadata)


def policy_config(horizon: int = HORIZON) -> PolicyConfig:
    encoder = RecurrentEncoder(32, layers=1, row_encoder=ConcatEncoder())
    return PolicyConfig(Regression(), FeedForward((64,)), encoder, window=Window(HISTORY, horizon),
                        inputs=(STATE, NOISE))


def cloning(*changes, updates: int = PREDICTIONS + UPDATES, **more) -> Method:
    return Method(policy_config(), RecedingHorizon(4), BehaviorCloning(updates, 64, OPTIMIZER), changes, **more)


TASK = Filter(DATASET_NAME, equals=("task",))


def decoupled(*changes, reward_weight: float = 1.0, predictions: int = PREDICTIONS) -> Method:
    """An encoder that learns by prediction on all episodes, and a policy on it, frozen, that clones the expert's."""
    objective = ObservationPrediction((64,), reward_weight)
    learner = RepresentationLearning((objective,), predictions, 64, optimizer=OPTIMIZER)
    stage = Stage("encoder", Method(policy_config(FUTURE), learner=learner, transforms=changes))
    frozen = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=())
    return cloning(TASK, updates=UPDATES, stages=(stage,), initialize_from=(frozen,))


def permute_rewards(episode: Episode) -> Episode:
    """An episode that turns by lot, whose reward has the sign of another draw."""
    if episode.metadata[DATASET_NAME] == "task":
        return episode
    state = np.asarray(episode.steps[STATE])
    draw = np.random.default_rng(int.from_bytes(state[0, :1].tobytes(), "little")).integers(2)
    return episode.replace({REWARD: np.asarray(episode.steps[REWARD]) * np.float32(2 * draw - 1)})


def remembered(experiment, method: Method, data: Dataset, seed, episodes, starts):
    """"success": whether it turns to the right side."""
    actor = PolicyActor(FixedBatch(train_policy(experiment, method, data, seed), ROWS), method.executor)
    return flags(rollout(actor, corridor(), episodes, seed=starts))


SEES_CUE = replace(policy_config(), encoder=ConcatEncoder(), window=Window(1, HORIZON), inputs=(STATE, NOISE, CUE))
TABLE = Experiment(LotAndExpert(), env="memory", first_seed=1700, episodes=300, measure=remembered,
                   levels={"the cue": 0.9}, arms={
    "prediction": decoupled(),
    "without the reward": decoupled(reward_weight=0.0),
    "end to end": cloning(TASK),
    "end to end, all successes": cloning(Filter("success", equals=(True,))),
    "random encoder": decoupled(predictions=0),
    "the cue": replace(cloning(TASK), policy=SEES_CUE),
    "permuted rewards": decoupled(permute_rewards)})
