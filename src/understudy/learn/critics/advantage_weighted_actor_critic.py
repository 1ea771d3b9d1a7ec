"""Advantage weighted actor-critic: a critic of the policy, which clones the stored actions that the critic prefers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, part
from ...data.episode import Dataset
from ...policy import Policy
from ..gradient_learner import GradientLearner
from ..targets import td_loss, td_terms
from .critic_learning import CriticLearningConfig, check_plans_begin_now


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
        check_plans_begin_now(policy, type(config).__name__)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.next_policy = policy  # whose actions the targets score
        self.bound = self.score_bound(data, config.discount)

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
        """Returns the `td_loss` against rewards and the policy's return, summed over the networks, (B,)."""
        assert batch.next is not None
        reward, bootstrap = td_terms(batch, self.config.discount)
        with torch.no_grad():
            plan = draw_plans(self.next_policy, batch.next, 1, rng).squeeze(1)
            target = reward + bootstrap * self.target_critic.target_score(batch.next, plan, rng)
        quantiles, levels = self.critic.training_quantiles(batch.obs, batch.action, rng)
        self.log(score=quantiles.mean((0, 1)))
        return td_loss(quantiles, target, levels).sum(0)

    def weights(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weights of the windows, (B,), whose mean over the batches of all processes is 1."""
        score, sampled = self.compared_scores(batch, rng)
        logits, P = (score - sampled.mean(1)) / self.config.temperature, self.processes
        n, totals = logits.new_tensor(len(batch)), logits.new_zeros(P.count)
        totals[P.rank] = logits.logsumexp(0)
        P.all_reduce([n, totals])
        return logits.softmax(0) * totals.softmax(0)[P.rank] * n

    def compared_scores(self, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the scores of the stored actions, (B,), and those of actions of the policy, (B, n_samples)."""
        plans = draw_plans(self.policy, batch.obs, self.config.n_samples, rng)
        obs = self.critic.encode(batch.obs)
        return self.critic(obs, batch.action), self.critic.score_plans(obs, plans)


def draw_plans(policy: Policy, obs: Mapping[str, Tensor], n: int, rng: Generator) -> Tensor:
    """Draws n plans of a policy for each observation, within the range and in the units of the data, (B, n, H, A)."""
    coded = policy.sample(policy.context(obs).repeat(n), rng, temperature=1.0).unflatten(0, (-1, n))
    return policy.decode(policy.clip(coded).flatten(1, 2), obs).unflatten(1, (n, -1))
