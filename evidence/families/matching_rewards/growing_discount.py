"""Row 012: two places in order, without actions. Does a discount that grows with progress help rewards of matching?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.envs.episode_wrappers import FixedHorizonEnv
from understudy.envs.toys.particle import Particle, ParticleExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.improve.collection import CollectionRounds
from understudy.improve.updates import PerNewStep
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.transport_reward import OptimalTransportReward
from understudy.methods.reward_matching.ads import ADS
from understudy.nets.feed_forward import FeedForward

START, SPREAD, GOALS = (0.5, 0.2), 0.1, ((0.2, 0.75), (0.7, 0.3))
NOISE = 0.05  # of the actions of demonstrations
NEAR = 0.1  # of the second goal, after the last step
WAY, FINAL = "fraction of the way", "discount in the end"
CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


class Detour(Particle):
    """The first goal is far, and the second near the start. The reward is minus the length of what is left."""

    def initial_state(self, key):
        state = super().initial_state(key)
        state["at"] = (np.array(START) + SPREAD * (state["at"] - 0.5)).astype(np.float32)
        return state

    def advance(self, action):
        _, _, failure = super().advance(action)
        s, between = self.state, np.linalg.norm(np.subtract(*GOALS))
        to_first, to_second = (np.linalg.norm(s["at"] - s[k], axis=1) for k in ("first", "second"))
        success = s["visited"] & (to_second < NEAR) & (self.clock.numpy() >= self.limit)
        return -np.where(s["visited"], to_second, to_first + between), success, failure


class TwoGoals(FixedHorizonEnv):
    """All episodes have 50 steps. Success: near the second goal after the last one, and at the first goal before."""

    def __init__(self, rows: int = 1):
        super().__init__(Detour(rows, fully_observed=True, stay=True, goals=GOALS))


@dataclass(frozen=True)
class WithoutActions(DemonstrationSource):
    """Successful episodes of a noisy expert. In place of its actions they have uniformly random ones."""

    episodes: int = 10

    def load(self, seed):
        recorded = rollout(ParticleExpert(noise=NOISE), TwoGoals(self.episodes), self.episodes, recording_seed(seed))
        rng = np.random.default_rng(seed)
        successes = recorded.filter(lambda e: e.metadata["success"])
        return Dataset([e.replace({"action": rng.random(e.steps["action"].shape, np.float32)}) for e in successes],
                       recorded.metadata)


@dataclass(frozen=True)
class Practice:
    """How a policy practices in the environment."""

    learner: TD3
    n_rounds: int = 16

    @property
    def method(self):
        method = ADS().method(self.n_rounds, n_episodes=4, noise=0.3)
        assert isinstance(method.collection, CollectionRounds)
        learner = replace(self.learner, bc_weight=0.0, n_step=3, batch_size=128, optimizer=CONSTANT,
                          critic=CriticConfig((64, 64)))
        return replace(method, policy=replace(method.policy, trunk=FeedForward((64, 64))), learner=learner,
                       collection=replace(method.collection, updates=PerNewStep(0.5)))


def practiced(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int
              ) -> dict[str, list[float]]:
    """How far the policies after all rounds get from each start in the mean, and how often the later half succeed.

    How far is the fraction of the way over the first goal to the second that is behind them in the end, from 0 to 1.
    """
    env, test_env = (make(experiment.env, rows=rows, trust=TRUSTED) for rows in (4, episodes))
    successes, ways, ends = [], [], []

    def test(policy):
        rollouts = rollout(PolicyActor(FixedBatch(policy, episodes), method.executor), test_env, episodes, starts)
        successes.append([float(e.metadata["success"]) for e in rollouts])
        ways.append([1 - min(float(e.steps["next.reward"][-1] / e.steps["next.reward"][0]), 1) for e in rollouts])

    def watch(n_updates, learner, metrics):
        ends[:] = [metrics.get("discount", learner.config.discount)]
        if metrics.get("round"):
            test(learner.trained_policy)

    method = option.method
    test(fit_method(method, data, seed, env=env, callbacks=[watch]).policy)
    later = successes[option.n_rounds // 2:]
    return {"success": np.mean(later, 0).tolist(), WAY: np.mean(ways, 0).tolist(), FINAL: ends}


MATCHING = OptimalTransportReward()
TABLE = Experiment(
    WithoutActions(), env=f"{__name__}:TwoGoals", measure=practiced, first_seed=1900, episodes=100,
    levels={"discount 0.9": 0.3}, arms={
    "discount 0.99": Practice(TD3(discount=0.99, reward=MATCHING)),
    "discount 0.9": Practice(TD3(discount=0.9, reward=MATCHING)),
    "linear": Practice(ADS(threshold=0.0, max_growth=3)),
    "ADS": Practice(ADS()),
    "no threshold": Practice(ADS(threshold=0.0))})
