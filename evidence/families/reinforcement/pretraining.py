"""Row 174: what demonstrations without actions can give to exploration. Features, a reward for progress, or both?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from evidence.families.reinforcement.few_demonstrations import CONSTANT, LIMIT, N_EPISODES, ROWS, VIEW, Egocentric
from evidence.measures import flags
from evidence.worlds.layered_encoder import LayeredEncoder
from understudy.checkpoint import FromStage
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.envs.observation_wrappers import ObservationTransform, RandomFeatureObs
from understudy.envs.toys.gridworld_tasks import STAGES, GridworldTasks, GridworldTasksExpert
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
from understudy.learn.critics.ppo import PPO
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import TimeContrastive
from understudy.learn.targets import REWARD
from understudy.methods.reward_matching.ele import ProgressLearning, ProgressReward
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

DURING, STAGE = "success in training", "simulator.subgoal"
LOOKAHEAD, SPAN = 4, 8  # steps to the positive of the encoder, and of the progress


class Unfamiliar(ObservationTransform):
    """`Egocentric` through a fixed random network with 64 outputs. The stage is not observed."""

    def __init__(self, rows: int = 1):
        self.view = Egocentric(rows)
        self.network = RandomFeatureObs(self.view, 64, VIEW)
        super().__init__(self.view.env)

    def transform_features(self, features):
        return {**self.network.features, STAGE: features[STAGE]}

    def transform_obs(self, obs):
        return {**self.network.transform_obs(self.view.transform_obs(obs)), STAGE: obs[STAGE]}


@dataclass(frozen=True)
class StageReward:
    """A change of episodes: each of the four stages earns a quarter in the step that does it."""

    def __call__(self, episode: Episode) -> Episode:
        stage, success = (np.asarray(episode.steps[k]).reshape(-1) for k in (STAGE, "next.success"))
        is_done = (stage[1:] != stage[:-1]) | success[:len(stage) - 1]
        return episode.replace({REWARD: (is_done / len(STAGES)).astype(np.float32)})


@dataclass(frozen=True)
class Missions(DemonstrationSource):
    """Successful episodes by shortest ways, each in another layout."""

    episodes: int = 50

    def load(self, seed):
        env, view = GridworldTasks(self.episodes, LIMIT, missions=(0, 1)), Unfamiliar()
        recorded = rollout(GridworldTasksExpert(0.0), env, self.episodes, recording_seed(seed))
        return Dataset([view.transform_episode(e) for e in recorded])


def shuffle_observations(seed: int, episode: Episode) -> Episode:
    """The episode with its observations in another order, so that nothing tells how far it has come."""
    order = np.random.default_rng(seed).permutation(len(episode) + 1)
    return episode.replace({k: np.asarray(v)[order] for k, v in episode.steps.items() if k.startswith("observation.")})


@dataclass(frozen=True)
class Pretrained:
    """PPO with an encoder and a reward that demonstrations have trained, which give it no actions.

    Args:
        encoder: "new" for PPO alone, "contrastive" for one that PPO trains further, "random" for one that stays as it
            is, or "cloned" for cloning in place of PPO, with the actions.
        span: 0 for no reward for progress.
        is_shuffled: Whether the progress is that of demonstrations whose observations are in another order.
    """

    encoder: str = "new"
    span: int = 0
    is_shuffled: bool = False
    is_paid_by_stage: bool = False
    n_rounds: int = 15
    n_pretraining: int = 1000

    @property
    def method(self) -> Method:
        policy = PolicyConfig(Categorical(temperature=1.0), FeedForward((64, 64), "tanh"), LayeredEncoder(),
                              codec=Normalizer(obs="identity"))
        reward = StageReward() if self.is_paid_by_stage else SuccessReward()
        alone = Method(policy, RecedingHorizon(), transforms=(reward,))
        if self.encoder == "cloned":
            return replace(alone, learner=BehaviorCloning(self.n_pretraining, 64, CONSTANT))
        contrast = RepresentationLearning((TimeContrastive(),), self.n_pretraining * (self.encoder != "random"),
                                          lookahead=LOOKAHEAD)
        learners = {"encoder": contrast, "progress": ProgressLearning(ProgressReward(self.span or 1),
                                                                      self.n_pretraining)}
        used = [name for name, is_used in (("encoder", self.encoder != "new"), ("progress", self.span)) if is_used]
        start = InitializeFrom(FromStage("encoder"), ("encoder",),
                               ("net",) if self.encoder == "random" else InitializeFrom.train)
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(N_EPISODES, TemperatureExploration()),
                                  retention=LastRounds(1), updates=Epochs(4))
        learner = PPO(batch_size=256, optimizer=CONSTANT, entropy_weight=0.01,
                      reward=FromStage("progress", "reward") if self.span else None)
        return replace(alone, learner=learner, collection=rounds,
                       initialize_from=(start,) if "encoder" in used else (),
                       stages=tuple(Stage(name, replace(alone, learner=learners[name])) for name in used))


def practiced(experiment, option: Pretrained, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains, and measures the policy, which draws its actions, after every third round.

    Returns:
        For each start "success" of the last policy, and the mean over all measured ones, "success in training".
    """
    checks = []

    def success(policy) -> list[float]:
        return flags(rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), Unfamiliar(ROWS), episodes,
                             seed=starts))["success"]

    def check(n_updates, learner, metrics):
        if metrics.get("round", 0) and metrics["round"] % 3 == 0:  # before the updates of this round
            checks.append(success(learner.trained_policy))
    method, env = option.method, Unfamiliar(N_EPISODES)
    stages: dict[str, FitResult] = {}
    for stage in method.stages:
        shuffled = data.map(partial(shuffle_observations, seed)) if option.is_shuffled else data
        stages[stage.name] = fit_method(stage.method, shuffled if stage.name == "progress" else data, seed)
    last = success(fit_method(method, data, seed, stages=stages, env=env if method.collection else None,
                              callbacks=[check]).policy)
    return {"success": last, DURING: np.mean([*checks, last], 0).tolist()}


TABLE = Experiment(Missions(), env=f"{__name__}:Unfamiliar", measure=practiced, first_seed=1740, episodes=300,
                   levels={"cloned": 0.5}, arms={
    "cloned": Pretrained("cloned"),
    "PPO": Pretrained(),
    "encoder": Pretrained("contrastive"),
    "random encoder": Pretrained("random"),
    "progress": Pretrained(span=SPAN),
    "both": Pretrained("contrastive", SPAN),
    "PPO, paid by stage": Pretrained(is_paid_by_stage=True),
    "encoder, paid by stage": Pretrained("contrastive", is_paid_by_stage=True),
    "progress, paid by stage": Pretrained(span=SPAN, is_paid_by_stage=True),
    "progress, shuffled": Pretrained(span=SPAN, is_shuffled=True)})
