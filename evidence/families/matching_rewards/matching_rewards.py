"""Row 302: three demonstrations and an environment in which a policy practices with a reward that matches them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from evidence.measures import ROWS, flags, train_stages
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.episode_wrappers import FixedHorizonEnv
from understudy.envs.toys.fork import ForkExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.transport_reward import OptimalTransportReward
from understudy.methods.reward_matching.rot import ROT
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
N_EPISODES, N_ROUNDS = 4, 15  # episodes in each round, and rounds
TEST_EVERY, TEST_EPISODES = 160, 200  # a test follows each round of 160 steps, and as many updates
EXPERT = 0.69  # mean return of the expert


class WindyFork(FixedHorizonEnv):
    """The fork with starts that spread and gusts, whose episodes all have 40 steps."""

    def __init__(self, rows: int = 1):
        super().__init__(make("fork", rows, spread=0.25, gust=0.1))


@dataclass(frozen=True)
class Successes(DemonstrationSource):
    """The expert's first successful episodes."""

    episodes: int = 3

    def load(self, seed):
        recorded = rollout(ForkExpert(), WindyFork(4), 4 * self.episodes, recording_seed(seed))
        successes = [e for e in recorded if e.metadata["success"]]
        return Dataset(successes[:self.episodes], recorded.metadata)


@dataclass(frozen=True)
class Practice:
    """A method that practices in the environment."""

    method: Method


def steps_to(level: float, curve: list[float], every: int) -> int:
    """The number of steps after which a test first reached a level, at most that of all tests."""
    return every * next((i for i, value in enumerate(curve, 1) if value >= level), len(curve))


def practiced(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int
              ) -> dict[str, list[float]]:
    """Measures of a method that practices.

    Returns:
        "success" and "return" of each episode after practice, the return as a fraction of the expert's, and
        "log_steps", the logarithm of the number of steps in the environment after which a test first reached 0.9 of it,
        at most that of all steps.
    """
    curve = []
    env, practice_env = (make(experiment.env, rows=rows, trust=TRUSTED) for rows in (ROWS, N_EPISODES))

    def returns(policy, count, first):
        rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), env, count, seed=first)
        return rollouts, [float(e.steps["next.reward"].sum()) / EXPERT for e in rollouts]

    def watch(n_updates, learner, metrics):
        if "reward/mean" in metrics and n_updates % TEST_EVERY == 0:
            curve.append(float(np.mean(returns(learner.trained_policy, TEST_EPISODES, starts + 1)[1])))

    stages = train_stages(experiment, option.method, data, seed)
    result = fit_method(option.method, data, seed, stages=stages, env=practice_env, callbacks=[watch])
    rollouts, scores = returns(result.policy, episodes, starts)
    return {**flags(rollouts), "return": scores,
            "log_steps": [float(np.log(steps_to(0.9, curve, TEST_EVERY)))]}


def practice(learner: ROT, is_cloned: bool = True) -> Practice:
    """ROT with networks of two layers of 64, rates of 1e-3, and rounds of four episodes.

    Args:
        is_cloned: Whether practice begins with the clone.
    """
    policy = PolicyConfig(Regression(), FeedForward((64, 64)), window=Window(1, 1))
    learner = replace(learner, batch_size=128, optimizer=CONSTANT, critic=CriticConfig((64, 64)), discount=0.97)
    rounds = CollectionRounds(N_ROUNDS, RolloutCollector(N_EPISODES, GaussianExploration(0.2)))
    cloning = Stage("clone", Method(policy, learner=BehaviorCloning(2000, 128, CONSTANT)))
    return Practice(Method(policy, RecedingHorizon(), learner, stages=(cloning,) if is_cloned else (),
                           initialize_from=ROT().method().initialize_from if is_cloned else (), collection=rounds))


FILTERED = ROT(bc_weight=1.5, reward=OptimalTransportReward(), clone=FromStage("clone"))
UNWEIGHTED = ROT(bc_weight=1.5, reward=OptimalTransportReward(), clone=None, fixed_weight=0.0)
TABLE = Experiment(Successes(), env=f"{__name__}:WindyFork", measure=practiced, first_seed=760,
                   episodes=300, levels={"OT alone": 0.68}, arms={
    "ROT": practice(FILTERED),
    "OT alone": practice(UNWEIGHTED, is_cloned=False),
    "uniform plan": practice(replace(FILTERED, reward=OptimalTransportReward("uniform")))})
