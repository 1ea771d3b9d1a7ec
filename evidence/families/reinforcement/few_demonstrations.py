"""Row 060: few demonstrations before PPO or while it learns, with a reward only at the end of a long mission."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags
from understudy.checkpoint import FromStage
from understudy.core import Feature, part
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.toys.gridworld_tasks import WALL, GridworldTasks, GridworldTasksExpert
from understudy.evaluate.behavior.modes import RepeatedStartsEnv
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.categorical import Categorical
from understudy.improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from understudy.improve.practice import SuccessReward
from understudy.improve.retention import LastRounds
from understudy.improve.updates import Epochs
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critics.ppo import PPO, PPOLearner
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

VIEW, LIMIT, ROWS = "observation.view", 60, 100
N_EPISODES, DETOURS = 32, 0.33  # episodes of a round; fraction of random steps at 60 % quality
CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5)


class Egocentric(ObservationTransform):
    """Two missions, seen from the cell: in which directions the place of the present stage and the door lie, whether
    the stage is done there, and on which side of the wall the cell is."""

    def __init__(self, rows: int = 1):
        super().__init__(GridworldTasks(rows, LIMIT, missions=(0, 1)))

    def transform_features(self, features):
        return {VIEW: Feature("float32", (12,)), "action": features["action"]}

    def transform_obs(self, obs):
        at, things = obs["observation.state"][:, :2], obs["observation.environment_state"]
        before = torch.stack([torch.full_like(at[:, 0], WALL - 1), things[:, 6]], 1)
        key, ball, pad = things[:, :6].unflatten(1, (3, 2)).unbind(1)
        stage = obs["simulator.subgoal"][:, 0]
        offset = torch.stack([key, before, ball, pad], 1)[torch.arange(len(at)), stage] - at
        offsets, side = torch.cat([offset, before - at], 1), at[:, :1] - WALL
        here = (offset == 0).all(1, keepdim=True)
        return {VIEW: torch.cat([offsets > 0, offsets < 0, here, side < 0, side == 0, side > 0], 1).float()}


@dataclass(frozen=True)
class Layouts(DemonstrationSource):
    """Successful episodes: "two" by shortest ways in two layouts, "one layout" ten such ways in a third, and "diverse"
    in ten layouts with detours."""

    episodes: int = 10

    def load(self, seed):
        env, view = GridworldTasks(self.episodes, LIMIT, missions=(0, 1)), Egocentric()
        one = RepeatedStartsEnv(env, recording_seed(seed), 1, self.episodes)
        recorded = {
            "two": rollout(GridworldTasksExpert(0.0), env, 2, recording_seed(seed), first=1),
            "one layout": rollout(GridworldTasksExpert(0.0), one, self.episodes, recording_seed(seed)),
            "diverse": rollout(GridworldTasksExpert(DETOURS), env, 4 * self.episodes, recording_seed(seed), first=3)}
        return Dataset([replace(view.transform_episode(e), metadata={**e.metadata, DATASET_NAME: name})
                        for name, episodes in recorded.items()
                        for e in [e for e in episodes if e.metadata["success"]][:self.episodes]])


def shuffle_actions(seed: int, episode: Episode) -> Episode:
    """The episode with its actions in another order."""
    return episode.replace({"action": np.random.default_rng(seed).permutation(np.asarray(episode.steps["action"]))})


@part
class CloningPPO(PPO):
    """PPO that also clones demonstrations: one batch of them before each `cloning_every` updates."""

    cloning_every: int = 4
    compares = True

    def build(self, policy, seed, steps, data):
        return CloningPPOLearner(self, policy, seed, steps, data)


class CloningPPOLearner(PPOLearner):
    """Learner of `CloningPPO`."""

    config: CloningPPO

    def update(self, batch):
        if self.n_updates % self.config.cloning_every == 0:
            self.minimize("policy", self.policy.loss, batch.others["expert"])
        return super().update(batch)


@dataclass(frozen=True)
class Practice:
    """PPO with demonstrations.

    Args:
        demonstrations: The part of the data that it has.
        cloning: "before" PPO, "beside" it, "never", or "alone" without PPO.
        is_shuffled: Whether the actions of each demonstration are in another order.
    """

    demonstrations: str = "two"
    cloning: str = "before"
    is_shuffled: bool = False
    n_rounds: int = 15

    @property
    def method(self) -> Method:
        policy = PolicyConfig(Categorical(temperature=1.0), FeedForward((64, 64), "tanh"),
                              codec=Normalizer(obs="identity"))
        learner = CloningPPO if self.cloning == "beside" else PPO
        alone = Method(policy, RecedingHorizon(), BehaviorCloning(200, 64, CONSTANT))
        if self.cloning == "alone":
            return alone
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(N_EPISODES, TemperatureExploration()),
                                  retention=LastRounds(1), updates=Epochs(4))
        is_first = self.cloning == "before"
        return Method(policy, RecedingHorizon(), learner(batch_size=256, optimizer=CONSTANT, entropy_weight=0.01),
                      (SuccessReward(),), stages=(Stage("clone", alone),) if is_first else (), collection=rounds,
                      initialize_from=(InitializeFrom(FromStage("clone")),) if is_first else ())


def practiced(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int):
    """Whether each mission succeeds after practice. The policy draws its actions."""
    demonstrations = data.filter(lambda e: e.metadata[DATASET_NAME] == option.demonstrations)
    if option.is_shuffled:
        demonstrations = demonstrations.map(partial(shuffle_actions, seed))
    policy = fit_method(option.method, demonstrations, seed, env=Egocentric(N_EPISODES)).policy
    return flags(rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), Egocentric(ROWS), episodes,
                         seed=starts))


TABLE = Experiment(Layouts(), env=f"{__name__}:Egocentric", measure=practiced, first_seed=2100, episodes=300, arms={
    "PPO": Practice(cloning="never"),
    "cloned first, 2": Practice(),
    "cloned first, 10 layouts at 60 %": Practice("diverse"),
    "cloned first, 10 of one layout": Practice("one layout"),
    "cloned beside, 2": Practice(cloning="beside"),
    "cloned alone, 2": Practice(cloning="alone"),
    "2, shuffled": Practice(is_shuffled=True),
    "10 layouts, shuffled": Practice("diverse", is_shuffled=True)})
