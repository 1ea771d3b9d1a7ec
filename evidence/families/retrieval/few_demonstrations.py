"""Few demonstrations, and which way to look them up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from evidence.measures import deployed_actor, flags
from understudy.checkpoint import FromStage
from understudy.core import Feature, normal, uniform
from understudy.data.codec import Normalizer
from understudy.data.column_changes import ConstantColumn
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME, mix
from understudy.data.operations import Crop, Filter
from understudy.data.relabel import FirstObservation, MotionToFirst
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.episode_wrappers import DemoStateReset
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.toys.peg_insertion import OUTLINES, STEP, PegInsertion
from understudy.envs.wrappers import WrappedEnv
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.following import FollowDemonstration
from understudy.execute.wrappers import SkillWrapper
from understudy.heads.base import Head
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.mcnn import MCNN
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.latent_labels import SKILL, LatentLabels
from understudy.learn.cloning.retrieval import SAMPLING_WEIGHT, Retrieve
from understudy.learn.cloning.skill_autoencoder import SkillAutoencoder
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.retrieval.behavior_retrieval import StateActionVAE
from understudy.methods.retrieval.retrieve_align_replay import AlignedReplay, PlanarFrame
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

PEG, HOLE = "observation.state", "observation.environment_state"
VIEW, OUTLINE = "observation.view", "observation.outline"
ROWS = 100  # environments side by side
TOLERANCE = 0.0015  # m, of the hole
LAST_STEPS = 6  # of a demonstration, which are repeated
EFFECTOR = PlanarFrame(PEG, ())
FAST = OptimizerConfig(lr=3e-3)
TASK, PRIOR, DEMONSTRATION = "task", "prior", "demonstration"


class WristView(ObservationTransform):
    """Adds the pose of the hole from the peg with the outline, scaled to a deviation of about 1, and the outline."""

    def transform_features(self, features):
        return {**features, VIEW: Feature("float32", (12,)), OUTLINE: Feature("float32", (8,))}

    def transform_obs(self, obs):
        hole = PlanarFrame(PEG, (HOLE,)).transform_obs(obs, {})[0][HOLE]
        angle, outline = hole[:, 2:3], (hole[:, 3:] - 0.08) / 0.014
        turn = math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], 1)
        return {**obs, VIEW: torch.cat([hole[:, :2] / 0.3, turn, outline], 1), OUTLINE: outline}


class PegFrame(WrappedEnv):
    """`PegInsertion` in the frame of the peg: it sees the hole, and moves, as seen from the peg."""

    def __init__(self, rows: int = 1):
        super().__init__(WristView(PegInsertion(rows, tolerance=TOLERANCE)), EFFECTOR)


@dataclass(frozen=True)
class RandomPoses(Actor):
    """Moves to random poses around the first one, a new one every 12 steps."""

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key), "first": obs[PEG].clone()}

    def act(self, obs, state):
        place = 2 * uniform(state["key"], state["count"] // 12, (3,), stream=5) - 1
        motion = (state["first"] + place * torch.tensor([0.7, 0.7, 1.0]) - obs[PEG]) / torch.from_numpy(STEP)
        motion = motion / motion.abs().amax(1, keepdim=True).clamp(min=1)
        motion = motion + 0.1 * normal(state["key"], state["count"], (3,), stream=6)
        return motion.float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class TaskAndLog(DemonstrationSource):
    """A demonstration of each outline (the part "task"), and a log of the robot that does not say what is in it.

    Args:
        n_hidden: Further demonstrations of each outline in the part "prior".
        play: Episodes of the part "prior" in which the robot moves away from where a demonstration ends.
    """

    n_hidden: int = 6
    play: int = 40

    def load(self, seed):
        task, hidden = [], []
        for outline in range(OUTLINES):
            env = PegInsertion(14, tolerance=TOLERANCE, outlines=(outline,))
            rollouts = rollout(env.expert(), WristView(env), 12, recording_seed(seed), first=10_000 * outline)
            successes = list(rollouts.filter(lambda e: e.metadata["success"]))
            task, hidden = task + successes[:1], hidden + successes[1:1 + self.n_hidden]
        starts = Crop(-LAST_STEPS, 1 - LAST_STEPS).apply(Dataset(task))
        env = WristView(DemoStateReset(PegInsertion(self.play, 60, TOLERANCE), starts))
        play = rollout(RandomPoses(), env, self.play, recording_seed(seed), first=100_000)
        data = mix(task=(Dataset(task), 1.0), prior=(Dataset(hidden) + play, 1.0))[0]
        return Dataset([replace(e, metadata={**e.metadata, DEMONSTRATION: i < OUTLINES * (1 + self.n_hidden)})
                        for i, e in enumerate(map(EFFECTOR.transform_episode, data))], data.metadata)


@dataclass(frozen=True)
class RandomRetrieval(AlignedReplay):
    """Chooses a demonstration at random."""

    def retrieve(self, obs, key):
        n = len(cast(Any, self.retriever).net.keys)
        return (uniform(key, torch.zeros_like(key), (1,), stream=7)[:, 0] * n).long().clamp(max=n - 1)


def success(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success", 0 or 1 per start."""
    actor = deployed_actor(experiment, method, data, seed, ROWS)
    return flags(rollout(actor, make(experiment.env, rows=ROWS, trust=TRUSTED), episodes, seed=starts))


def trained(head: Head, *parts: str, steps: int = 1000) -> Method:
    """Cloning of some parts of the data."""
    return Method(policy_of(head), RecedingHorizon(), BehaviorCloning(steps, 128, FAST),
                  (Filter(DATASET_NAME, equals=parts),))


def policy_of(head: Head, horizon: int = 1) -> PolicyConfig:
    return PolicyConfig(head, FeedForward((128, 128)), ConcatEncoder(), window=Window(1, horizon), inputs=(VIEW,))


def looked_up(n_neighbors: int, executor: Executor | None = None, horizon: int = 1) -> Method:
    """Nothing is trained: the demonstrations are the policy."""
    return replace(trained(Neighbors(n_neighbors), TASK, steps=1), policy=policy_of(Neighbors(n_neighbors), horizon),
                   executor=executor or RecedingHorizon())


def retrieved(key: FromStage, stage: Method, *transforms, **more) -> Method:
    """Cloning of the demonstrations, and as often of the tenth of the log that is nearest to them."""
    learner = BehaviorCloning(1000, 128, FAST, sampling_column=SAMPLING_WEIGHT)
    return Method(policy_of(Regression()), RecedingHorizon(), learner, (Retrieve(key, fraction=0.1), *transforms),
                  (Stage(key.stage, stage, PRIOR),), **more)


def behavior_retrieval() -> Method:
    learner = StateActionVAE(4, widths=(64, 64), steps=1000, batch_size=128)
    return retrieved(FromStage("embedding", "embedding"), Method(policy_of(Regression()), learner=learner))


def skills(period: int = 5) -> Method:
    """A policy that chooses skills of the log, from the demonstrations and the pieces of the log nearest to them."""
    prior = PolicyConfig(Gaussian(temperature=1.0), MLP(64, 1), codec=Normalizer(target="identity"), inputs=(VIEW,))
    low = PolicyConfig(Gaussian(), MLP(64, 1), codec=Normalizer(unscaled=(SKILL,)), inputs=(VIEW, SKILL))
    learner = SkillAutoencoder(period, prior=prior, posterior=MLP(64, 1), steps=1000)
    posterior = FromStage("skills", "posterior")
    return retrieved(posterior, Method(low, learner=learner, transforms=(ConstantColumn(SKILL, (0.0,) * 8),)),
                     LatentLabels(posterior), wrapper=SkillWrapper(FromStage("skills"), period))


def replay(executor: type[AlignedReplay] = AlignedReplay) -> Method:
    """Goes where the last steps of the demonstration of the nearest outline began, and repeats them."""
    task = (Filter(DATASET_NAME, equals=(TASK,)), Crop(-LAST_STEPS))
    nearest = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), inputs=(OUTLINE,), target=VIEW)
    memory = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), window=Window(1, 2), inputs=(OUTLINE, VIEW))
    aligner = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(), inputs=(VIEW, "observation.goal"))
    motion = MotionToFirst(PEG, tuple(float(x) for x in STEP))  # in the world, which the wrapper turns
    alignment = Method(aligner, learner=BehaviorCloning(2000, 256, FAST), wrapper=EFFECTOR,
                       transforms=(motion, Filter(DATASET_NAME, equals=(PRIOR,)), FirstObservation(VIEW)))
    return Method(memory, executor(FromStage("retrieval"), FromStage("alignment"), tolerance=0.02), BehaviorCloning(1),
                  task, stages=(Stage("retrieval", Method(nearest, learner=BehaviorCloning(1),
                                                          transforms=(*task, Crop(0, 1))), TASK),
                                Stage("alignment", alignment, PRIOR)))


TABLE = Experiment(TaskAndLog(), env=f"{__name__}:PegFrame", measure=success, first_seed=640, n_seeds=10, episodes=300,
                   levels={"cloning": 0.3, "cloning of seven each": 0.8}, arms={
    "cloning": trained(Regression(), TASK),
    "nearest neighbor": looked_up(1),
    "VINN": looked_up(5),
    "MCNN": trained(MCNN(decay=3.0), TASK),
    "search": looked_up(1, FollowDemonstration(), 2),
    "behavior retrieval": behavior_retrieval(),
    "SAILOR": skills(),
    "retrieve, align, replay": replay(),
    "cloning with the log": trained(Regression(), TASK, PRIOR),
    "cloning of seven each": Method(policy_of(Regression()), RecedingHorizon(), BehaviorCloning(1000, 128, FAST),
                                   (Filter(DEMONSTRATION, equals=(True,)),)),
    "random demonstration": replay(RandomRetrieval)})
