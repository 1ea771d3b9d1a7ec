"""Row 200: how far the values that a critic learns are from true ones, and which part of TD3 corrects them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS
from understudy.envs import make
from understudy.envs.base import EnvWrapper
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.improve.collection import random_episodes
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.online_rl.td3 import td3
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy

STATE, BIAS = "observation.state", "bias"
DISCOUNT, LATER = 0.95, 200  # steps of a true return; what follows has a weight below 0.0001
N_STATES, CHECK_EVERY = 200, 200  # states of a check, and updates between two checks
N_EPISODES, LENGTH = 4, 100  # episodes of each round, and their steps
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


@dataclass(frozen=True)
class RandomTorques(DemonstrationSource):
    """Episodes of uniformly random torques, with which each training begins."""

    steps: int = 1000

    def load(self, seed):
        return random_episodes(make("Pendulum-v1"), self.steps, seed)


@dataclass(frozen=True)
class ActorCritic:
    """TD3, or what is left of it.

    Args:
        n_critics: 2 for the minimum of two critics in the targets, 1 for none.
        policy_delay: Updates of the critic per update of the policy.
        target_noise: Of the target actions, in halves of their range. 0 for no smoothing.
        n_rounds: Rounds of four episodes of 100 steps, with as many updates.
    """

    n_critics: int = 2
    policy_delay: int = 2
    target_noise: float = 0.2
    n_rounds: int = 8

    @property
    def method(self) -> Method:
        base = td3(self.n_rounds, N_EPISODES * LENGTH, noise=0.2)
        learner = replace(base.learner, batch_size=64, optimizer=CONSTANT, discount=DISCOUNT, target_decay=0.95,
                          critic=CriticConfig((64, 64), n_critics=self.n_critics), policy_delay=self.policy_delay,
                          target_noise=self.target_noise)
        return replace(base, policy=replace(base.policy, trunk=FeedForward((64, 64))), learner=learner)


class VisitedStates(EnvWrapper):
    """The environment, which keeps the observations that followed each step."""

    def __init__(self, env):
        super().__init__(env)
        self.metadata, self.states = env.metadata, []

    def step(self, action):
        result = self.env.step(action)
        self.states.append(result.obs[STATE].clone())
        return result


def swing(obs: Tensor, torque: Tensor) -> tuple[Tensor, Tensor]:
    """The next observations and the rewards of Pendulum-v1, (N, 3) and (N,), from those before and the torques (N,)."""
    angle, speed, torque = obs[:, 1].atan2(obs[:, 0]), obs[:, 2], torque.clamp(-2, 2)
    reward = -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
    speed = (speed + 0.05 * (15 * angle.sin() + 3 * torque)).clamp(-8, 8)
    angle = angle + 0.05 * speed
    return torch.stack([angle.cos(), angle.sin(), speed], 1), reward


@torch.no_grad()
def true_values(policy: Policy, obs: Tensor, steps: int = LATER) -> Tensor:
    """The discounted returns of a policy without noise from some states on, (N,)."""
    total, noise = torch.zeros(len(obs)), torch.zeros(len(obs), *policy.noise_shape)
    for step in range(steps):
        obs, reward = swing(obs, policy.plan({STATE: obs[:, None]}, noise)[:, 0, 0])
        total += DISCOUNT**step * reward
    return total


@torch.no_grad()
def estimates(learner: Engine, obs: Tensor) -> Tensor:
    """What the first critic says of the same returns, (N,)."""
    windows = {STATE: obs[:, None]}
    plan = learner.policy.plan(windows, torch.zeros(len(obs), *learner.policy.noise_shape))
    return learner.nets.critic.scores(windows, plan, n_critics=1)[0]


def checked(experiment, option: ActorCritic, data, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """Trains, and compares values with true ones in the last quarter of the training.

    Returns:
        "bias", the mean of estimate minus true value in states of the replay buffer, as a fraction of the range of
        their true values; and of each episode after training "return", without discount, and "success", whether it ends
        upright.
    """
    env, method = VisitedStates(make(experiment.env, N_EPISODES, max_episode_steps=LENGTH)), option.method
    rng, biases, last_quarter = np.random.default_rng(seed), [], 0.75 * option.n_rounds * N_EPISODES * LENGTH

    def check(n_updates, learner, metrics):
        if "critic/loss" in metrics and n_updates % CHECK_EVERY == 0 and n_updates > last_quarter:
            states = torch.cat([*(torch.as_tensor(e.steps[STATE]) for e in data), *env.states])
            states = states[rng.choice(len(states), N_STATES, replace=False)]
            values = true_values(learner.policy, states)
            biases.append(float((estimates(learner, states) - values).mean() / (values.max() - values.min())))

    policy = fit_method(method, data, seed, env=env, callbacks=[check]).policy
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), make(experiment.env, ROWS), episodes,
                       seed=starts)
    return {BIAS: [float(np.mean(biases))], "return": [float(np.sum(e.steps["next.reward"])) for e in rollouts],
            "success": [float(e.steps[STATE][-1, 0] > 0.95) for e in rollouts]}


TABLE = Experiment(RandomTorques(), env="Pendulum-v1", first_seed=2000, episodes=100, measure=checked,
                   levels={"TD3": 0.8, "DDPG": 0.8}, arms={
    "TD3": ActorCritic(),
    "DDPG": ActorCritic(n_critics=1, policy_delay=1, target_noise=0.0),
    "no delay": ActorCritic(policy_delay=1),
    "no smoothing": ActorCritic(target_noise=0.0),
    "equal critics": ActorCritic(n_critics=1)})
