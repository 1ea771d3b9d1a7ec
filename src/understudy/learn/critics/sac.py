"""SAC: an actor-critic whose policy also maximizes its entropy, for heads with a density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, Batch, part
from ...data.episode import Dataset
from ...policy import Policy
from ..algorithm import MetricBound, Net, loss
from ..critic import Critic
from ..targets import ReturnBound
from .off_policy_actor_critic import ActorCritic, policy_is_due


@part
class SAC(ActorCritic):
    """Soft actor-critic: a policy that maximizes the score of its critic, and its own entropy.

    A critic learns the discounted return of a plan, which is the sum of rewards over the plan's steps, the value of
    what follows, and its entropy. The head of the policy must have a density, as `SquashedGaussian` has.

    Args:
        temperature: Weight of the entropy, in units of the reward: the first one, if there is a `target_entropy`.
        target_entropy: Entropy for each component of a plan, in coded units, to which the temperature is adjusted. None
            keeps the temperature.
        bc_weight: Weight of the squared distance to the stored actions, in units of the score.

    References:
        Haarnoja et al. (2018), Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905.
        Chen et al. (2021), Randomized Ensembled Double Q-Learning, arXiv:2101.05982 (`target_subset_size` of the
        critic).
    """

    policy_delay: Annotated[int, AtLeast(1)] = 1
    temperature: Annotated[float, Above(0)] = 1.0
    target_entropy: float | None = -1.0
    bc_weight: Annotated[float, AtLeast(0)] = 0.0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
        temperature = Temperature(self.temperature, self.target_entropy is not None)
        return {**super().networks(policy, data), "temperature": Net(temperature, trained_with="policy")}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        entropy = math.prod(policy.noise_shape)  # about 1 for each component of a plan
        return {"critic/score": ReturnBound(data, self.discount, entropy * self.temperature)}

    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B).

        The target is the sum of the discounted rewards of the steps and the discounted value after them. The value
        includes the entropy of the policy. It is 0 if the episode terminates within the steps.
        """
        assert batch.next is not None
        coded, log_prob = nets.policy.sample_log_prob(nets.policy.context(batch.next), rng)
        value = nets.target.critic.target_score(batch.next, self.executed_plan(nets, coded, batch.next), rng)
        return self.bootstrapped(nets, batch, value - nets.temperature() * log_prob.sum(1))

    def executed_plan(self, nets: Any, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Decodes coded plans of the policy, (B, H, A), to what the critic scores."""
        return nets.policy.decode(coded, obs)

    def followed_critic(self, nets: Any) -> Critic:
        """Returns the critic whose score of its plans the policy maximizes."""
        return nets.critic

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Any, ...]:
        """Returns the loss of the policy of SAC and, if it is adjusted, that of the temperature for each window, (B,).

        The loss of the policy is the weighted log-density of its plan minus the score. The score is the smallest of the
        networks' scores, or their mean if targets use a subset of the networks.
        """
        coded, log_prob = nets.policy.sample_log_prob(nets.policy.context(batch.obs), rng)
        log_prob = log_prob.sum(1)
        scores = self.followed_critic(nets).scores(batch.obs, nets.policy.decode(coded, batch.obs))
        score = scores.amin(0) if self.critic.target_subset_size is None else scores.mean(0)
        temperature = nets.temperature().detach()
        terms = (temperature * log_prob - score + self.bc_weight * self.distance(nets, coded, batch, rng),)
        if self.target_entropy is not None:
            target_entropy = self.target_entropy * coded[0].numel()
            terms = (*terms, -nets.temperature.log * (log_prob.detach() + target_entropy))
        return (*terms, {"temperature": temperature, "entropy": -log_prob})


class Temperature(nn.Module):
    """The weight of the entropy in SAC, which stays positive."""

    def __init__(self, first: float, is_trained: bool):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(first).log(), requires_grad=is_trained)

    def forward(self) -> Tensor:
        return self.log.exp()
