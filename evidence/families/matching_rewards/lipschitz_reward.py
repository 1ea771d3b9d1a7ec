"""Row 058: a discriminator's reward with and without a gradient penalty, at three learning rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evidence.experiment import TRUSTED, Experiment
from evidence.families.matching_rewards.matching_rewards import CONSTANT, EXPERT, N_EPISODES, Practice, Successes
from evidence.measures import ROWS, flags
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

RATES = (1e-4, 5e-4, 2e-3)  # of the discriminator
N_ROUNDS = 35  # of four episodes of 40 steps


def matched(rate: float, penalty: float) -> Practice:
    """DAC with networks of two layers of 64, from new weights."""
    reward = DiscriminatorReward(penalty=penalty, one_sided=True, hidden=(64, 64), optimizer=replace(CONSTANT, lr=rate))
    learner = TD3(batch_size=128, optimizer=CONSTANT, critic=CriticConfig((64, 64)), discount=0.97, reward=reward)
    rounds = CollectionRounds(N_ROUNDS, RolloutCollector(N_EPISODES, GaussianExploration(0.2)))
    policy = PolicyConfig(Regression(), FeedForward((64, 64)), window=Window(1, 1))
    return Practice(Method(policy, RecedingHorizon(), learner, collection=rounds))


def practiced(experiment, option: Practice, data, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """The return of each episode after practice as a fraction of the expert's, and the logarithm of the 95th percentile
    of the length of the reward's gradient, the mean over the practice."""
    slopes = []

    def watch(n_updates, learner, metrics):
        slopes.extend([np.log(metrics["reward/slope"])] if "reward/slope" in metrics else [])

    env, practice_env = (make(experiment.env, rows=rows, trust=TRUSTED) for rows in (ROWS, N_EPISODES))
    policy = fit_method(option.method, data, seed, env=practice_env, callbacks=[watch]).policy
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), env, episodes, seed=starts)
    return {**flags(rollouts), "return": [float(e.steps["next.reward"].sum()) / EXPERT for e in rollouts],
            "slope": [float(np.mean(slopes))]}


PENALTIES = {"none": 0.0, "penalty": 10.0}
ARMS = {f"{name}, {rate:g}": matched(rate, weight) for rate in RATES for name, weight in PENALTIES.items()}
TABLE = Experiment(Successes(), env="evidence.families.matching_rewards.matching_rewards:WindyFork", measure=practiced,
                   first_seed=880, episodes=300, levels={"penalty, 0.0005": 0.68},
                   arms={**ARMS, "in name only": matched(5e-4, 1e-6)})
