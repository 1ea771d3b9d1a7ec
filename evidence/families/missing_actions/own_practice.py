"""Row 182: demonstrations without actions, and which of the policy's own practice tells them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment, expert_of
from evidence.measures import flags, rollout_policy
from evidence.worlds.one_goal_rooms import OneGoalRooms
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.envs import make
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.retention import AllEpisodes, RetentionRule
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.cloning_from_observation import BehaviorCloningFromObservation
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.observation_only.cilo import SignatureGate
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE = "observation.state"
N_FEATURES, CURVATURE = 32, 2.5  # of the fixed random network through which states are observed
FAST = OptimizerConfig(lr=1e-3, lr_schedule="constant")
ALL = AllEpisodes()
POLICY = PolicyConfig(Regression(), FeedForward((128, 128)), inputs=(STATE,))
N_ROUNDS, FIRST, PER_ROUND = 10, 2000, 300  # rounds of practice; updates before and after each


class HiddenRooms(RandomFeatureObs):
    """Four rooms with one goal, seen through a fixed random network. Episodes begin in the first room."""

    def __init__(self, rows: int):
        super().__init__(OneGoalRooms(rows, first_room=True), N_FEATURES, STATE, CURVATURE)


@dataclass(frozen=True)
class ObservedAndPractice(DemonstrationSource):
    """Demonstrations, the part "task", and episodes of random actions, the part "prior".

    Args:
        env: A `RandomFeatureObs`, through whose features both are seen.
    """

    env: str
    episodes: int = 5
    n_practice: int = 20

    def load(self, seed):
        env = make(self.env, 10, TRUSTED)
        assert isinstance(env, RandomFeatureObs)
        demonstrations = rollout(expert_of(env.env), env.env, self.episodes, recording_seed(seed))
        practice = rollout(UniformRandomActor(env.env), env.env, self.n_practice, recording_seed(seed), first=100_000)
        return Dataset([replace(changed := env.transform_episode(e), metadata={**changed.metadata, DATASET_NAME: part})
                        for part, data in (("task", demonstrations), ("prior", practice)) for e in data])


@dataclass(frozen=True)
class Practice:
    """A method that practices in the environment, or not."""

    method: Method


def from_observation(retention: RetentionRule = ALL, label_noise: float = 0.0) -> Practice:
    """BCO with a rule for the practice that stays."""
    learner = BehaviorCloningFromObservation(FIRST + N_ROUNDS * PER_ROUND, 128, FAST, label_noise=label_noise)
    rounds = CollectionRounds(N_ROUNDS, RolloutCollector(10), retention=retention, initial_updates=FIRST,
                              updates=PerRound(PER_ROUND))
    return Practice(Method(POLICY, RecedingHorizon(), learner, collection=rounds))


WITH_ACTIONS = Practice(Method(POLICY, RecedingHorizon(), BehaviorCloning(FIRST + N_ROUNDS * PER_ROUND, 128, FAST),
                               (Filter(DATASET_NAME, equals=("task",)),)))


def practiced(experiment, option, data, seed, episodes, starts):
    """Trains with practice in the environment, and measures the success of the policy."""
    method = option.method
    policy = fit_method(method, data, seed, env=make(experiment.env, 10, TRUSTED) if method.collection else None).policy
    return flags(rollout_policy(experiment, policy, method, episodes, starts))


TABLE = Experiment(ObservedAndPractice(f"{__name__}:HiddenRooms"), measure=practiced, first_seed=860,
                   episodes=300, levels={"with actions": 0.5}, arms={
    "CILO": from_observation(SignatureGate(), 1.0),
    "BCO": from_observation(),
    "with actions": WITH_ACTIONS,
    "without noise": from_observation(SignatureGate()),
    "without gate": from_observation(label_noise=1.0)})
