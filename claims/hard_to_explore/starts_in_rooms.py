"""Row 146: practice of a way through a door, from its start and from demonstrated states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from understudy.claims.base import SCORE, TRUSTED, ExpertDemonstrations, Measure
from understudy.claims.kit import Row, ablation, experiment, family, higher
from understudy.data.episode import Dataset
from understudy.data.mixture import ROUND
from understudy.envs import make
from understudy.envs.toys.four_rooms import FourRooms
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.improve.collection import CollectionRounds, GaussianExploration
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.discriminator_reward import DiscriminatorReward
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.off_policy_actor_critic import OffPolicyActorCritic
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.reward_matching.filter import DemonstratedStarts, filter
from understudy.nets.feed_forward import FeedForward

N_ROUNDS, N_EPISODES, LIMIT, LATER = 20, 4, 60, 5
GOAL = (2.5, 6.5)  # m: in the room behind the door
AREA = "mean success over practice"
SLOW = OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


class NextRoom(FourRooms):
    """Episodes begin anywhere in the first room, and the goal, which is not observed, is in the one above it."""

    def __init__(self, rows: int = 1):
        super().__init__(rows, limit=LIMIT, goal=GOAL)

    def initial_state(self, key):
        drawn = super().initial_state(key)
        return {**drawn, "at": (0.5 + 3 * drawn["at"] / 8).astype(np.float32)}


@dataclass(frozen=True)
class OwnStarts(DemonstratedStarts):
    """The control: states of the policy's own episodes stand in for those of the demonstrations."""

    def states(self, training):
        return Dataset([e for e in training.stored if ROUND in e.metadata], training.data.metadata)

    def practice_env(self, training):
        return super().practice_env(training) if len(self.states(training)) else training.env


@dataclass(frozen=True)
class Practice:
    """How a policy practices with the reward of a discriminator."""

    starts: DemonstratedStarts
    n_rounds: int = N_ROUNDS
    probe_sizes = {"n_rounds": 1}

    @property
    def method(self):
        method = filter(self.n_rounds)
        assert isinstance(method.collection, CollectionRounds) and isinstance(method.learner, OffPolicyActorCritic)
        assert isinstance(method.learner.reward, DiscriminatorReward)
        learner = replace(method.learner, batch_size=128, optimizer=SLOW, critic=CriticConfig((64, 64)),
                          reward=replace(method.learner.reward, hidden=(64, 64), optimizer=SLOW))
        return replace(method, policy=replace(method.policy, trunk=FeedForward((64, 64))), learner=learner,
                       collection=replace(method.collection, collector=self.starts))


@dataclass(frozen=True)
class Cloning:
    """Clones the demonstrations with as many updates as practice has."""

    n_rounds: int = N_ROUNDS
    probe_sizes = {"n_rounds": 1}

    @property
    def method(self):
        updates = self.n_rounds * N_EPISODES * LIMIT
        policy = Practice(DemonstratedStarts(N_EPISODES)).method.policy
        return Method(policy, learner=BehaviorCloning(updates, 128, SLOW))


def practiced(experiment, option: Practice | Cloning, data: Dataset, seed: int, episodes: int, starts: int
              ) -> dict[str, list[float]]:
    """Success from each start of the policies after all rounds, in the mean, and of those after the last ones."""
    env, test_env = (make(experiment.env, rows=rows, trust=TRUSTED) for rows in (N_EPISODES, episodes))
    successes = []

    def test(policy):
        rollouts = rollout(PolicyActor(FixedBatch(policy, episodes), method.executor), test_env, episodes, starts)
        successes.append([float(e.metadata["success"]) for e in rollouts])

    def watch(n_updates, learner, metrics):
        if metrics.get("round"):
            test(learner.trained_policy)

    method = option.method
    test(fit_method(method, data, seed, env=env, callbacks=[watch]).policy)
    return {"success": np.mean(successes[-LATER:], 0).tolist(), AREA: np.mean(successes, 0).tolist()}


def starts(kind: type[DemonstratedStarts], fraction: float) -> Practice:
    return Practice(kind(N_EPISODES, GaussianExploration(0.5), fraction=fraction))


TABLE = experiment(
    ExpertDemonstrations(f"{__name__}:NextRoom", 10), env=f"{__name__}:NextRoom", measure=practiced, first_seed=2140,
    n_seeds=20, episodes=100, looks=((10, 0.02), (20, 0.03)), measures={
        "success": Measure("bounded", "rate"), AREA: SCORE}, sanity={"FILTER": 0.3}, arms={
    "matching": starts(DemonstratedStarts, 0.0), "FILTER": starts(DemonstratedStarts, 0.5), "cloning": Cloning(),
    "own states": ablation("FILTER", starts(OwnStarts, 0.5))})

CLAIMS = family(__file__, TABLE, {"146": Row(
    "starts-in-rooms", higher("FILTER", "matching", 0.0, AREA), control="own states", reported=("cloning",))})
