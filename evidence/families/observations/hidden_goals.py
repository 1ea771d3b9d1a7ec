"""Row 019: an encoder learns from walks to many goals, and a policy on it from two walks to a goal that is not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import flags, train_policy
from evidence.worlds.layered_encoder import LayeredEncoder
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import NoiseColumns, ObservationTransform, RandomFeatureObs
from understudy.envs.toys.four_rooms import FourRooms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.reconstruction_objectives import Reconstruction
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import ForwardDynamics, InverseDynamics, TimeContrastive
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, NOISE, POSITION = "observation.state", "observation.noise", "observation.position"
ROWS = 25
FAST = OptimizerConfig(lr=1e-3)


class _WithPosition(ObservationTransform):
    """The position stays visible beside what is made of it."""

    def transform_features(self, features):
        return {**features, POSITION: features[STATE]}

    def transform_obs(self, obs):
        return {**obs, POSITION: obs[STATE]}


def rooms(**options) -> Env:
    """Four rooms, observed through a fixed random network with 64 outputs, and beside 16 columns of noise."""
    return NoiseColumns(RandomFeatureObs(_WithPosition(FourRooms(ROWS, **options)), 64, STATE))


@dataclass(frozen=True)
class _SeesPosition(Actor):
    """The expert of the bare rooms, which reads the position."""

    expert: Actor

    def start(self, obs, key):
        return self.expert.start({**obs, STATE: obs[POSITION]}, key)

    def act(self, obs, state):
        return self.expert.act({**obs, STATE: obs[POSITION]}, state)


def goal_of(seed: int) -> tuple[float, float]:
    """The hidden goal of a training seed: the middle of a cell."""
    x, y = np.random.default_rng(seed).integers(8, size=2).tolist()
    return x + 0.5, y + 0.5


@dataclass(frozen=True)
class WalksAndGoal(DemonstrationSource):
    """Walks between random places (part "prior"), and walks to one hidden goal: the part "task", and more of them.

    Args:
        episodes: Number of walks between random places.
        n_task: Number of walks to the goal in the part "task".
        n_more: Number of further walks to it, in the part "more".
    """

    episodes: int = 100
    n_task: int = 2
    n_more: int = 8

    def load(self, seed):
        walks = self._record(rooms(style="play"), self.episodes, seed, 0)
        to_goal = self._record(rooms(goal=goal_of(seed)), self.n_task + self.n_more, seed, 100_000)
        parts = ["prior"] * len(walks) + ["task"] * self.n_task + ["more"] * self.n_more
        return Dataset([replace(e, metadata={**e.metadata, DATASET_NAME: part})
                        for e, part in zip([*walks, *to_goal], parts, strict=True)], walks.metadata)

    def _record(self, env, episodes, seed, first):
        expert = _SeesPosition(expert_of(env.env.env.env))
        return rollout(expert, env, episodes, recording_seed(seed), first=first)


def policy_config(*inputs: str) -> PolicyConfig:
    return PolicyConfig(Regression(), FeedForward((64, 64)), LayeredEncoder(), inputs=inputs or (STATE, NOISE))


def cloning(*parts: str, inputs=(), stages=(), initialize_from=()) -> Method:
    chosen = Filter(DATASET_NAME, equals=parts or ("task",))
    return Method(policy_config(*inputs), RecedingHorizon(), BehaviorCloning(1000, 128, FAST), (chosen,), stages,
                  initialize_from)


def pretrained(learner, *changes) -> Method:
    stage = Stage("encoder", Method(policy_config(), learner=learner, transforms=changes), dataset="prior")
    frozen = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=())
    return cloning(stages=(stage,), initialize_from=(frozen,))


def objective(*objectives) -> RepresentationLearning:
    return RepresentationLearning(objectives, 1500, 128, optimizer=FAST)


def permute_actions(episode: Episode) -> Episode:
    """The actions of a walk in a random order."""
    order = np.random.default_rng(len(episode)).permutation(len(episode))
    return episode.replace({"action": np.asarray(episode.steps["action"])[order]})


def hidden_goal(experiment, method: Method, data: Dataset, seed, episodes, starts):
    """Trains, and walks to the goal of the seed."""
    policy = train_policy(experiment, method, data, seed)
    env = rooms(goal=goal_of(seed))
    return flags(rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), env, episodes, seed=starts))


TABLE = Experiment(WalksAndGoal(), env="four_rooms", first_seed=790, n_seeds=10, episodes=300,
                   measure=hidden_goal, levels={"position, 10 walks": 0.7}, arms={
    "inverse dynamics": pretrained(objective(InverseDynamics())),
    "cloning first": pretrained(BehaviorCloning(1500, 128, FAST)),
    "forward": pretrained(objective(ForwardDynamics())),
    "contrastive": pretrained(objective(TimeContrastive())),
    "end to end": cloning(),
    "autoencoder": pretrained(objective(Reconstruction())),
    "position, 10 walks": cloning("task", "more", inputs=(POSITION,)),
    "permuted actions": pretrained(objective(InverseDynamics()), permute_actions)})
