"""Off-policy actor-critic: TD3, TD3+BC, ReBRAC, SAC and CQL, for any policy head whose samples have gradients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, Batch, ConfigError, Unsupported, part
from ...data.episode import Dataset, Episode
from ...policy import Policy
from ..critic import Critic, mix_networks
from ..optimizer import OptimizerConfig
from ..rewards.reward_models import RewardedConfig, RewardedLearner, RewardModelConfig
from ..rewards.transport_reward import EpisodeRewardConfig
from ..targets import mean_over_steps, td_loss, td_terms
from .critic_learning import CriticLearningConfig, draw_plans

NEXT_ACTION = "next.action"  # column of the actions that follow a window


@part
class ActorCritic(RewardedConfig, CriticLearningConfig):
    """Base class of configs of learners with a critic of plans, and a policy that follows its scores.

    Batches need the columns `next.reward`, unless `reward` gives another, and `next.terminated`. A step that was cut
    off by a time limit is no end: the value of what would follow counts.

    Args:
        n_step: Number of steps whose rewards are in the target of the critic. 0 for those of the plan. Of the reward
            models, only those of whole episodes give rewards of later steps.
        policy_delay: Updates of the critic per update of the policy. Target networks follow after each update of the
            critic; those of TD3 follow together with the policy.
        reward: A reward model that is trained along with the policy, or that a stage trained. None: the rewards of the
            data.
        critic_warmup_updates: Number of first updates of the critic that train it alone, so that a policy which is good
            already does not follow a critic that knows nothing.
        policy_optimizer: Optimizer of the policy. None for that of the critic.
    """

    policy_delay: Annotated[int, AtLeast(1)] = 2
    reward: RewardModelConfig | FromStage | None = None
    n_step: Annotated[int, AtLeast(0)] = 0
    critic_warmup_updates: Annotated[int, AtLeast(0)] = 0
    policy_optimizer: OptimizerConfig | None = None

    def __post_init__(self):
        self.check_discount(self.discount)
        if self.n_step and self.reward is not None and not isinstance(self.reward, EpisodeRewardConfig):
            raise ConfigError("a reward model of steps gives the rewards of a plan's own steps",
                              where=f"{type(self).__name__}.n_step", hint="use 0, or a reward of whole episodes")

    @property
    def lookahead(self):
        return self.n_step


class ActorCriticLearner(RewardedLearner):
    """Base class of learners of an `ActorCritic`.

    Args:
        auxiliary: Modules that are trained with the policy.
        entropy: Largest entropy that is part of the return of a plan, in units of the reward.
    """

    config: ActorCritic
    cloning_updates = 0  # before the first update of the critic

    def __init__(self, config: ActorCritic, policy: Policy, seed: int, steps: int, data: Dataset,
                 auxiliary: Sequence[nn.Module] = (), entropy: float = 0.0):
        super().__init__(config, policy, seed, steps)
        if 0 < config.n_step < policy.window.horizon:
            raise Unsupported(f"the target has the rewards of {config.n_step} steps, but a plan has "
                              f"{policy.window.horizon}", where=f"{type(config).__name__}.n_step",
                              hint="use at least as many, or 0")
        self.critic = self.register("critic", self.build_critic(policy), config.optimizer)
        self.register("policy", policy, config.policy_optimizer or config.optimizer, auxiliary=list(auxiliary))
        self.register_reward(data)
        self.bound = self.score_bound(data, config.discount, entropy)
        self.target_critic = self.target_network("critic", config.target_decay)

    def build_critic(self, policy: Policy) -> Critic:
        """Builds the critic of the plans of a policy."""
        if policy.target.kind == "discrete" or policy.window.action_offset:
            raise Unsupported("the critic scores plans of numbers that begin at the current step",
                              where=type(self.config).__name__,
                              hint="use it for continuous actions and with action_offset=0")
        return self.config.critic.build(policy)

    @property
    def discount(self) -> float:
        """Discount per step, which batches are read with."""
        return self.config.discount

    def update(self, batch: Batch) -> dict[str, float]:
        batch = self.with_rewards(batch)
        self.minimize("critic", self.critic_loss, batch)
        n_critic_updates = self.n_updates - self.cloning_updates
        if n_critic_updates >= self.config.critic_warmup_updates and self.n_updates % self.config.policy_delay == 0:
            self.minimize("policy", self.policy_loss, batch)
        metrics = self.end_update()
        self.bound.check(metrics["critic/score"], batch, self.n_updates)
        return metrics

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the `td_loss` against `target_value`, summed over the critic networks, and a penalty, (B,)."""
        target = self.target_value(batch, rng)
        quantiles, levels = self.critic.training_quantiles(batch.obs, batch.action, rng)
        scores = quantiles.mean(1)
        self.log(score=scores.mean(0))
        return td_loss(quantiles, target, levels).sum(0) + self.score_penalty(scores, batch, rng)

    def score_penalty(self, scores: Tensor, batch: Batch, rng: Generator) -> Tensor | float:
        """Returns what is added to the loss of the critic, (B,), given the scores of stored plans, (n_critics, B)."""
        return 0.0

    @abstractmethod
    def target_value(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B)."""

    @torch.no_grad()
    def best_plan_target(self, policy: Policy, batch: Batch, rng: Generator, n: int, min_weight: float) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of the best of n plans, (n_quantiles, B).

        Args:
            min_weight: Weight of the smallest score among the critic networks. The largest has the remainder.
        """
        assert batch.next is not None
        plans = draw_plans(policy, batch.next, n, rng)
        values = mix_networks(self.target_critic.quantiles(batch.next, plans), min_weight)  # (n_quantiles, B, n)
        best = values.mean(0, keepdim=True).argmax(-1, keepdim=True)
        reward, bootstrap = td_terms(batch, self.discount, self.config.n_step)
        return reward + bootstrap * values.take_along_dim(best, -1)[..., 0]

    @abstractmethod
    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor | tuple[Tensor, ...]:
        """Returns the loss of the policy for each window, (B,) or (B, H), and further terms, (B,) each."""


@part
class OffPolicyActorCritic(ActorCritic):
    """TD3, with `bc_weight` TD3+BC, and with `temperature` SAC: off-policy reinforcement learning from stored episodes.

    A critic learns the discounted return of a plan, which is the sum of rewards over the plan's steps and the value of
    what follows. The policy maximizes the critic's score, and stays close to the stored actions. With a temperature it
    also maximizes its entropy; its head must then have a density, such as `SquashedGaussian`.

    Args:
        target_noise: Standard deviation of the noise on target actions, in coded units. For TD3.
        max_target_noise: Largest noise on target actions, in coded units. For TD3.
        bc_weight: Weight of the squared distance to the stored actions. It is relative to a score of mean absolute
            value 1, but to the score itself with a temperature. 0.4 is that of TD3+BC, 0 is TD3 or SAC.
        temperature: Weight of the entropy, in units of the reward: the first one, if there is a `target_entropy`. None
            for TD3.
        target_entropy: Entropy for each component of a plan, in coded units, to which the temperature is adjusted, such
            as -1. None keeps the temperature.
        critic_bc_weight: Weight, in units of the return, of the squared distance of target actions to the stored ones.
            Above 0 in ReBRAC, without a temperature.
        conservative_weight: Weight of the soft maximum of the scores over all actions, minus the score of the stored
            ones. Above 0 in CQL, with a temperature.
        n_conservative_samples: Number of actions from which the soft maximum is estimated, of each of three kinds: of
            the policy here, of the policy after the plan, and uniform in the range of the data.

    References:
        Fujimoto et al. (2018), Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477.
        Fujimoto and Gu (2021), A Minimalist Approach to Offline Reinforcement Learning, arXiv:2106.06860.
        Haarnoja et al. (2018), Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905.
        Tarasov et al. (2023), Revisiting the Minimalist Approach to Offline Reinforcement Learning, arXiv:2305.09836.
        Kumar et al. (2020), Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779.
        Chen et al. (2021), Randomized Ensembled Double Q-Learning, arXiv:2101.05982 (`target_subset_size` of the critic
        and a temperature).
    """

    target_noise: Annotated[float, AtLeast(0)] = 0.2
    max_target_noise: Annotated[float, AtLeast(0)] = 0.5
    bc_weight: Annotated[float, AtLeast(0)] = 0.4
    temperature: Annotated[float | None, Above(0)] = None
    target_entropy: float | None = None
    critic_bc_weight: Annotated[float, AtLeast(0)] = 0.0
    conservative_weight: Annotated[float, AtLeast(0)] = 0.0
    n_conservative_samples: Annotated[int, AtLeast(1)] = 10

    def __post_init__(self):
        super().__post_init__()
        if self.target_entropy is not None and self.temperature is None:
            raise ConfigError("there is no temperature to adjust", where="OffPolicyActorCritic.target_entropy",
                              hint="give the first one, such as temperature=1.0, or leave target_entropy out")
        if self.conservative_weight and self.temperature is None:
            raise ConfigError("conservative scores are of a policy with a density, as SAC has",
                              where="OffPolicyActorCritic.conservative_weight", hint="give a temperature, such as 1.0")

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> OffPolicyActorCriticLearner:
        return OffPolicyActorCriticLearner(self, policy, seed, steps, data)


class OffPolicyActorCriticLearner(ActorCriticLearner):
    """Learner of `OffPolicyActorCritic`."""

    config: OffPolicyActorCritic

    def __init__(self, config: OffPolicyActorCritic, policy: Policy, seed: int, steps: int, data: Dataset):
        self.temperature = None
        if config.temperature is not None:
            policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
            self.temperature = Temperature(config.temperature, config.target_entropy is not None).to(policy.device)
        entropy = math.prod(policy.noise_shape)  # about 1 for each component of a plan
        super().__init__(config, policy, seed, steps, data, auxiliary=[self.temperature] if self.temperature else [],
                         entropy=entropy * (config.temperature or 0.0))
        if config.conservative_weight and policy.codec.bound in (None, math.inf):
            raise Unsupported("conservative scores need a range of actions", where="OffPolicyActorCritic",
                              hint='use a codec that knows one, such as Normalizer(target="minmax")')
        if self.temperature is None:
            self.target_policy = self.target_network("policy", config.target_decay)

    def batch_sampler(self, data, sampling_weights=None):
        if self.config.critic_bc_weight:
            config = self.policy.config
            data = data.map(_FollowingActions(self.config.n_step or config.window.horizon, config.target))
        return super().batch_sampler(data, sampling_weights)

    @property
    def batch_columns(self):
        return (*super().batch_columns, *((NEXT_ACTION,) if self.config.critic_bc_weight else ()))

    def score_penalty(self, scores, batch, rng):
        if not self.config.conservative_weight:
            return 0.0
        return self.config.conservative_weight * self.conservative_loss(scores, batch, rng)

    def conservative_loss(self, scores: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the logarithm of the integral of exponential scores minus the score of stored plans, (B,).

        The integral is a mean over sampled plans, divided by their densities. It is summed over the critic networks.
        """
        n, bound, plans, densities = self.config.n_conservative_samples, self.policy.codec.bound, [], []
        assert batch.next is not None and bound is not None
        for obs in (batch.obs, batch.next):
            with torch.no_grad():
                coded, log_prob = self.policy.sample_log_prob(self.policy.context(obs).repeat(n), rng)
            plans.append(coded.unflatten(0, (-1, n)))
            densities.append(log_prob.sum(1).unflatten(0, (-1, n)))
        uniform = torch.rand(plans[0].shape, generator=rng, device=self.device)
        plans.append(bound * (2 * uniform - 1))
        densities.append(torch.full_like(densities[0], -math.log(2 * bound) * uniform[0, 0].numel()))
        decoded = self.policy.decode(torch.cat(plans, 1).flatten(1, 2), batch.obs).unflatten(1, (3 * n, -1))
        sampled = self.conservative_scores(batch, decoded)
        return ((sampled - torch.cat(densities, 1)).logsumexp(-1) - scores).sum(0)

    def conservative_scores(self, batch: Batch, plans: Tensor) -> Tensor:
        """Returns the scores of sampled plans, (n_critics, B, N). The last third is drawn uniformly."""
        return self.critic.scores(batch.obs, plans)

    @torch.no_grad()
    def target_value(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B).

        It is the discounted rewards of the steps plus the discounted value that follows them, which is 0 if the episode
        terminates within them.
        """
        assert batch.next is not None
        coded, bonus = self.next_plan(batch.next, rng)
        value = self.target_critic.target_score(batch.next, self.executed_plan(coded, batch.next), rng)
        if self.config.critic_bc_weight:
            value = value - self.config.critic_bc_weight * self._following_distance(coded, batch)
        reward, bootstrap = td_terms(batch, self.discount, self.config.n_step)
        return reward + bootstrap * (value + bonus)

    def executed_plan(self, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns what the critic scores of coded plans of the policy, (B, H, A)."""
        return self.policy.decode(coded, obs)

    @property
    def followed_critic(self) -> Critic:
        """The critic whose score of its plans a policy with a temperature maximizes."""
        return self.critic

    def next_plan(self, obs, rng: Generator) -> tuple[Tensor, Tensor | float]:
        """Returns the coded plans whose value is the target, (B, H, A), and what their entropy adds to it, (B,)."""
        config = self.config
        if self.temperature is not None:
            coded, log_prob = self.policy.sample_log_prob(self.policy.context(obs), rng)
            return coded, -self.temperature() * log_prob.sum(1)
        coded = self.sample(self.target_policy, obs, rng)
        noise = config.target_noise * torch.randn(coded.shape, generator=rng, device=coded.device)
        return self.policy.clip(coded + noise.clamp(-config.max_target_noise, config.max_target_noise)), 0.0

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor | tuple[Tensor, ...]:
        """Returns the loss of the policy of TD3 for each window, (B,).

        It is the negative score of the first critic network, divided by the mean absolute score of the batch, plus
        `bc_weight` times the squared distance to the stored actions, plus the squared distance to the range of actions
        in the data. Distances are in coded units. With a temperature it is `soft_policy_loss`.
        """
        if self.temperature is not None:
            return self.soft_policy_loss(batch, rng)
        coded = self.sample(self.policy, batch.obs, rng)
        inside = self.policy.clip(coded)
        score = self.critic.scores(batch.obs, self.policy.decode(inside, batch.obs), n_critics=1)[0]
        beyond = (coded - inside).square().mean((1, 2))
        distance = self.distance(coded, batch, rng)
        present = batch.mask[:, 0].float()
        size = (score.detach().abs() * present).sum() / present.sum().clamp(min=1)
        return self.config.bc_weight * distance + beyond - score / size.clamp(min=1e-6)

    def sample(self, policy: Policy, obs: Mapping[str, Tensor], rng: Generator) -> Tensor:
        """Returns the coded plans of a policy, (B, H, A)."""
        return policy.sample(policy.context(obs), rng)

    def soft_policy_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, ...]:
        """Returns the loss of the policy of SAC and that of the temperature for each window, (B,) each.

        The policy's is the weighted log-density of its plan minus the score, which is that of the smallest network, or
        the mean of all if targets are those of a subset. The temperature's is 0 where it is not adjusted.
        """
        assert self.temperature is not None
        coded, log_prob = self.policy.sample_log_prob(self.policy.context(batch.obs), rng)
        log_prob = log_prob.sum(1)
        scores = self.followed_critic.scores(batch.obs, self.policy.decode(coded, batch.obs))
        score = scores.amin(0) if self.config.critic.target_subset_size is None else scores.mean(0)
        temperature = self.temperature().detach()
        self.log(temperature=temperature, entropy=-log_prob)
        loss = temperature * log_prob - score + self.config.bc_weight * self.distance(coded, batch, rng)
        if self.config.target_entropy is None:
            return (loss,)
        target_entropy = self.config.target_entropy * coded[0].numel()
        return loss, -self.temperature.log * (log_prob.detach() + target_entropy)

    def distance(self, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the mean squared distance of coded plans, (B, H, A), to the stored actions, (B,)."""
        return mean_over_steps((coded - self.policy.encode_batch(batch)).square(), batch.mask)

    def _following_distance(self, coded: Tensor, batch: Batch) -> Tensor:
        """Mean squared distance of coded plans to the stored actions that follow a window, (B,). 0 without any."""
        assert batch.next is not None
        stored, exists = batch.extra[NEXT_ACTION][:, :coded.shape[1]].tensor_split((-1,), -1)
        difference = coded - self.policy.codec.encode(stored, batch.next)
        return mean_over_steps(difference.square(), exists.squeeze(-1) > 0)


@dataclass(frozen=True)
class _FollowingActions:
    """Adds the actions of a number of steps later, and a component that is 1 where there are any, and 0 otherwise."""

    steps: int
    target: str

    def __call__(self, episode: Episode) -> Episode:
        action = np.asarray(episode.steps[self.target][:len(episode)], np.float32).reshape(len(episode), -1)
        following = np.pad(action[self.steps:], ((0, 0), (0, 1)), constant_values=1)
        padding = ((0, len(action) - len(following)), (0, 0))
        return episode.replace({NEXT_ACTION: np.pad(following, padding)})


class Temperature(nn.Module):
    """The weight of the entropy, which stays positive."""

    def __init__(self, first: float, is_trained: bool):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(first).log(), requires_grad=is_trained)

    def forward(self) -> Tensor:
        return self.log.exp()
