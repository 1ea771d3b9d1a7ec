"""Advantage weighted actor-critic: an actor-critic whose policy clones the stored actions that its critic prefers."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Schema, part
from ...data.episode import Dataset
from ...execute.chunking import RecedingHorizon
from ...heads.gaussian import Gaussian
from ...learn.critic import CriticConfig
from ...learn.critic_learning import CriticLearningConfig
from ...learn.gradient_learner import GradientLearner
from ...learn.method import Method
from ...learn.targets import ReturnBound, td_terms
from ...nets.encoders import simplest_encoder
from ...nets.mlp import MLP
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class AWAC(CriticLearningConfig):
    """Advantage weighted actor-critic, from stored episodes and then from its own.

    The critic learns the return of the policy, whose head has a temperature. The policy clones actions, weighted by the
    softmax over the batch of their advantages.

    Args:
        temperature: Temperature of the softmax, in units of return. Large values are cloning.
        n_samples: Number of actions of the policy whose mean score is the value of an observation.

    References:
        Nair et al. (2020), AWAC: Accelerating Online Reinforcement Learning with Offline Datasets, arXiv:2006.09359.
    """

    temperature: Annotated[float, Above(0)] = 1.0
    n_samples: Annotated[int, AtLeast(1)] = 1

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> AWACLearner:
        return AWACLearner(self, policy, seed, steps, data)


class AWACLearner(GradientLearner):
    """Learner of `AWAC`."""

    config: AWAC

    def __init__(self, config: AWAC, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.bound = ReturnBound(data, config.discount)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        self.minimize("critic", self.critic_loss, batch)
        with self.evaluation():
            weights = self.weights(batch, self.generator())
        self.minimize("policy", self.policy.loss, batch, weights, normalize="rows")
        metrics = self.end_update(largest_weight=weights.max().item())
        self.bound.check(metrics["critic/score"], batch, self.n_updates)
        return metrics

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against rewards and the policy's return, summed over the networks, (B,)."""
        reward, bootstrap = td_terms(batch, self.config.discount)
        with torch.no_grad():
            plan = self.sample(batch.next, 1, rng).squeeze(1)
            target = reward + bootstrap * self.target_critic.target_score(batch.next, plan, rng)
        scores = self.critic.scores(batch.obs, batch.action)
        self.log(score=scores.mean(0))
        return (scores - target).square().sum(0)

    def weights(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weights of the windows, (B,), whose mean is 1."""
        plans = self.sample(batch.obs, self.config.n_samples, rng)
        obs = self.critic.encode(batch.obs)
        advantage = self.critic(obs, batch.action) - self.critic.score_plans(obs, plans).mean(1)
        return (advantage / self.config.temperature).softmax(0) * len(batch)

    def sample(self, obs, n: int, rng: Generator) -> Tensor:
        """Draws n plans of the policy for each observation, in the units of the data, (B, n, H, A)."""
        coded = self.policy.sample(self.policy.context(obs).repeat(n), rng, temperature=1.0).unflatten(0, (-1, n))
        bound = self.policy.codec.bound
        coded = coded if bound is None else coded.clamp(-bound, bound)
        return self.policy.decode(coded.flatten(1, 2), obs).unflatten(1, (n, -1))


@method("Nair et al. 2020 (AWAC), arXiv 2006.09359", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and training goes on with episodes of the policy's own.")
def awac(temperature: float = 1.0, n_samples: int = 1, features: Schema | None = None) -> Method:
    """Advantage weighted actor-critic: clones the stored actions that are better than the policy's own.

    Args:
        temperature: Temperature of the weights, in units of return. Large values are cloning.
        n_samples: Number of actions of the policy that each stored action is compared with.
    """
    encoder = simplest_encoder(features)
    return Method(
        PolicyConfig(Gaussian(), MLP(256, 2), encoder),
        RecedingHorizon(),
        AWAC(temperature=temperature, n_samples=n_samples, critic=CriticConfig(encoder=encoder)),
    )
