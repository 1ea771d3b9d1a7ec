"""Row 229: few noisy demonstrations and success as the only reward. Does a critic of action sequences learn more?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS
from understudy.core import part
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.energy.coarse_to_fine import CoarseToFineQ
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds
from understudy.learn.algorithm import loss
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.online_rl.cqn_as import CQNAS
from understudy.methods.online_rl.td3 import td3
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

NOISE = 0.5  # m/s: of the actions of noisy demonstrations
CLEAN, EFFECT = "success without noise", "success with noise - without"
NETWORK, RATE = FeedForward((64, 64)), OptimizerConfig(lr=1e-3, lr_schedule="constant", grad_clip_norm=None)
VALUES = CQNAS(batch_size=32, optimizer=replace(RATE, weight_decay=0.01))


@dataclass(frozen=True)
class NoisyAndClean(DemonstrationSource):
    """Demonstrations of the fork with noise, and then as many without."""

    episodes: int = 5
    env: str = "fork"

    def load(self, seed):
        parts = [rollout(ForkExpert(noise=noise), Fork(self.episodes), self.episodes, recording_seed(seed))
                 for noise in (NOISE, 0.0)]
        return Dataset([episode for data in parts for episode in data], parts[0].metadata)


@part
class CopiedSteps(CQNAS):
    """Learns chunks whose steps are all the recorded first one."""

    @loss("policy")
    def policy_loss(self, nets, batch, rng):
        batch, expert = (b.replace(action=b.action[:, :1].expand_as(b.action)) for b in (batch, batch.others["expert"]))
        return super().policy_loss(nets, batch.replace(others={"expert": expert}), rng)


@dataclass(frozen=True)
class Practice:
    """How a policy is learned from one half of the demonstrations, and from 20 rounds of at least 50 steps.

    Args:
        horizon: Number of actions of a chunk.
        learner: "cloning" has no rounds.
    """

    horizon: int = 8
    learner: CQNAS | Literal["TD3", "cloning"] = VALUES
    n_rounds: int = 20
    cloned: int = 2000

    @property
    def method(self) -> Method:
        if self.learner == "cloning":
            return Method(PolicyConfig(Regression(), NETWORK, window=Window(1, self.horizon)), TemporalEnsemble(),
                          BehaviorCloning(self.cloned, 64, OptimizerConfig(lr=1e-3)))
        if isinstance(self.learner, CQNAS):
            base = self.learner.method(n_rounds=self.n_rounds, n_steps=50, horizon=self.horizon, noise=0.1)
            head = CoarseToFineQ(n_atoms=11, low=-1.0, high=1.0)
            return replace(base, policy=replace(base.policy, head=head, trunk=NETWORK))
        base = td3(self.n_rounds, 50)
        assert isinstance(base.collection, CollectionRounds)
        learner = replace(base.learner, batch_size=64, critic=CriticConfig((64, 64)), optimizer=RATE)
        return replace(base, policy=replace(base.policy, trunk=NETWORK), learner=learner,
                       collection=replace(base.collection, mixture_weights=(0.5, 0.5)))


def practiced(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains with the noisy and with the clean demonstrations.

    Returns:
        For each start "success", and that of the second training, and the difference of their means.
    """
    half, successes, method = len(data) // 2, [], option.method
    for chosen in (range(half), range(half, len(data))):
        env = Fork(2) if method.collection else None
        policy = fit_method(method, data.select(list(chosen)), seed, env=env).policy
        rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), Fork(ROWS), episodes, seed=starts)
        successes.append([float(e.metadata["success"]) for e in rollouts])
    noisy, clean = successes
    return {"success": noisy, CLEAN: clean, EFFECT: [float(np.mean(noisy) - np.mean(clean))]}


TABLE = Experiment(NoisyAndClean(), measure=practiced, first_seed=2290, episodes=200, levels={"K = 1": 0.7}, arms={
    "K = 8": Practice(),
    "K = 1": Practice(1),
    "cloned chunks": Practice(learner="cloning"),
    "TD3 with demonstrations": Practice(1, "TD3"),
    "copied steps": Practice(learner=CopiedSteps(**vars(VALUES)))})
