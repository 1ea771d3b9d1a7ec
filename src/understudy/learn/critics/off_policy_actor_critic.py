"""Off-policy actor-critic: TD3, TD3+BC, ReBRAC, SAC and CQL, for any policy head whose samples have gradients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, Batch, ConfigError, Unsupported, part
from ...data.episode import Dataset, Episode
from ...policy import Policy
from ..algorithm import Algorithm, MetricBound, Net, loss
from ..critic import Critic, mix_networks
from ..optimizer import OptimizerConfig
from ..rewards.reward_models import RewardedConfig, RewardedEngine, RewardModelConfig
from ..rewards.transport_reward import EpisodeRewardConfig
from ..targets import ReturnBound, mean_over_steps, td_loss, td_terms
from .critic_learning import CriticLearningConfig, draw_plans

NEXT_ACTION = "next.action"  # column of the actions that follow a window


def critic_is_due(method: ActorCritic, n_updates: int, steps: int) -> bool:
    return n_updates >= method.cloning_updates(steps)


def policy_is_due(method: ActorCritic, n_updates: int, steps: int) -> bool:
    """Whether the policy follows the critic in an update."""
    n_critic_updates = n_updates - method.cloning_updates(steps)
    return n_critic_updates >= method.critic_warmup_updates and n_updates % method.policy_delay == 0


@part
class ActorCritic(RewardedConfig, CriticLearningConfig, Algorithm):
    """Base class of methods with a critic of plans, and a policy that follows its scores.

    Batches need the columns `next.reward`, unless `reward` gives another, and `next.terminated`. A step that was cut
    off by a time limit is no end: the value of what would follow counts.

    A subclass adds `target_value`, and the losses of the policy, which are due if `policy_is_due`.

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

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> RewardedEngine:
        return RewardedEngine(self, policy, seed, steps, data)

    def cloning_updates(self, steps: int) -> int:
        """Returns the number of updates before the first one of the critic, if there are `steps` in all."""
        return 0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if 0 < self.n_step < policy.window.horizon:
            raise Unsupported(f"the target has the rewards of {self.n_step} steps, but a plan has "
                              f"{policy.window.horizon}", where=f"{type(self).__name__}.n_step",
                              hint="use at least as many, or 0")
        return {"critic": Net(self.build_critic(policy), self.optimizer, target=self.target_decay),
                "policy": Net(policy, self.policy_optimizer or self.optimizer)}

    def build_critic(self, policy: Policy) -> Critic:
        """Builds the critic of the plans of a policy."""
        if policy.target.kind == "discrete" or policy.window.action_offset:
            raise Unsupported("the critic scores plans of numbers that begin at the current step",
                              where=type(self).__name__, hint="use it for continuous actions and with action_offset=0")
        return self.critic.build(policy)

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic/score": ReturnBound(data, self.discount)}

    def bootstrapped(self, nets: Any, batch: Batch, value: Tensor) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of what follows, (..., B)."""
        reward, bootstrap = td_terms(batch, self.discount, self.n_step)
        return reward + bootstrap * value

    @loss("critic", when=critic_is_due)
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the `td_loss` against `target_value`, summed over the critic networks, and a penalty, (B,)."""
        with torch.no_grad():
            target = self.target_value(nets, batch, rng)
        quantiles, levels = nets.critic.training_quantiles(batch.obs, batch.action, rng)
        scores = quantiles.mean(1)
        error = td_loss(quantiles, target, levels).sum(0)
        return error + self.score_penalty(nets, scores, batch, rng), {"score": scores.mean(0)}

    def score_penalty(self, nets: Any, scores: Tensor, batch: Batch, rng: Generator) -> Tensor | float:
        """Returns what is added to the loss of the critic, (B,), given the scores of stored plans, (n_critics, B)."""
        return 0.0

    @abstractmethod
    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B).

        It is called without gradients.
        """

    def best_plan_target(self, nets: Any, policy: Policy, batch: Batch, rng: Generator, n: int,
                         min_weight: float) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of the best of n plans, (n_quantiles, B).

        Args:
            min_weight: Weight of the smallest score among the critic networks. The largest has the remainder.
        """
        assert batch.next is not None
        plans = draw_plans(policy, batch.next, n, rng)
        values = mix_networks(nets.target.critic.quantiles(batch.next, plans), min_weight)  # (n_quantiles, B, n)
        best = values.mean(0, keepdim=True).argmax(-1, keepdim=True)
        return self.bootstrapped(nets, batch, values.take_along_dim(best, -1)[..., 0])


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

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if self.temperature is not None:
            policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
        nets = super().networks(policy, data)
        if self.conservative_weight and policy.codec.bound in (None, math.inf):
            raise Unsupported("conservative scores need a range of actions", where="OffPolicyActorCritic",
                              hint='use a codec that knows one, such as Normalizer(target="minmax")')
        if self.temperature is None:
            return {**nets, "policy": replace(nets["policy"], target=self.target_decay)}
        temperature = Temperature(self.temperature, self.target_entropy is not None)
        return {**nets, "temperature": Net(temperature, trained_with="policy")}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        entropy = math.prod(policy.noise_shape)  # about 1 for each component of a plan
        return {"critic/score": ReturnBound(data, self.discount, entropy * (self.temperature or 0.0))}

    def added_columns(self, policy):
        if not self.critic_bc_weight:
            return {}
        return {NEXT_ACTION: _FollowingActions(self.n_step or policy.window.horizon, policy.config.target)}

    def score_penalty(self, nets: Any, scores: Tensor, batch: Batch, rng: Generator) -> Tensor | float:
        if not self.conservative_weight:
            return 0.0
        return self.conservative_weight * self.conservative_loss(nets, scores, batch, rng)

    def conservative_loss(self, nets: Any, scores: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the logarithm of the integral of exponential scores minus the score of stored plans, (B,).

        The integral is a mean over sampled plans, divided by their densities. It is summed over the critic networks.
        """
        policy, n, plans, densities = nets.policy, self.n_conservative_samples, [], []
        bound = policy.codec.bound
        assert batch.next is not None
        for obs in (batch.obs, batch.next):
            with torch.no_grad():
                coded, log_prob = policy.sample_log_prob(policy.context(obs).repeat(n), rng)
            plans.append(coded.unflatten(0, (-1, n)))
            densities.append(log_prob.sum(1).unflatten(0, (-1, n)))
        uniform = torch.rand(plans[0].shape, generator=rng, device=plans[0].device)
        plans.append(bound * (2 * uniform - 1))
        densities.append(torch.full_like(densities[0], -math.log(2 * bound) * uniform[0, 0].numel()))
        decoded = policy.decode(torch.cat(plans, 1).flatten(1, 2), batch.obs).unflatten(1, (3 * n, -1))
        sampled = self.conservative_scores(nets, batch, decoded)
        return ((sampled - torch.cat(densities, 1)).logsumexp(-1) - scores).sum(0)

    def conservative_scores(self, nets: Any, batch: Batch, plans: Tensor) -> Tensor:
        """Returns the scores of sampled plans, (n_critics, B, N). The last third is drawn uniformly."""
        return nets.critic.scores(batch.obs, plans)

    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B).

        It is the discounted rewards of the steps plus the discounted value that follows them, which is 0 if the episode
        terminates within them.
        """
        assert batch.next is not None
        coded, bonus = self.next_plan(nets, batch.next, rng)
        value = nets.target.critic.target_score(batch.next, self.executed_plan(nets, coded, batch.next), rng)
        if self.critic_bc_weight:
            value = value - self.critic_bc_weight * self._following_distance(nets, coded, batch)
        return self.bootstrapped(nets, batch, value + bonus)

    def executed_plan(self, nets: Any, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns what the critic scores of coded plans of the policy, (B, H, A)."""
        return nets.policy.decode(coded, obs)

    def followed_critic(self, nets: Any) -> Critic:
        """Returns the critic whose score of its plans a policy with a temperature maximizes."""
        return nets.critic

    def next_plan(self, nets: Any, obs: Mapping[str, Tensor], rng: Generator) -> tuple[Tensor, Tensor | float]:
        """Returns the coded plans whose value is the target, (B, H, A), and what their entropy adds to it, (B,)."""
        policy = nets.policy
        if self.temperature is not None:
            coded, log_prob = policy.sample_log_prob(policy.context(obs), rng)
            return coded, -nets.temperature() * log_prob.sum(1)
        coded = self.sample(nets.target.policy, obs, rng)
        noise = self.target_noise * torch.randn(coded.shape, generator=rng, device=coded.device)
        return policy.clip(coded + noise.clamp(-self.max_target_noise, self.max_target_noise)), 0.0

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Any:
        """Returns the loss of the policy of TD3 for each window, (B,).

        It is the negative score of the first critic network, divided by the mean absolute score of the batch, plus
        `bc_weight` times the squared distance to the stored actions, plus the squared distance to the range of actions
        in the data. Distances are in coded units. With a temperature it is `soft_policy_loss`.
        """
        if self.temperature is not None:
            return self.soft_policy_loss(nets, batch, rng)
        coded = self.sample(nets.policy, batch.obs, rng)
        inside = nets.policy.clip(coded)
        score = nets.critic.scores(batch.obs, nets.policy.decode(inside, batch.obs), n_critics=1)[0]
        beyond = (coded - inside).square().mean((1, 2))
        distance = self.distance(nets, coded, batch, rng)
        present = batch.mask[:, 0].float()
        size = (score.detach().abs() * present).sum() / present.sum().clamp(min=1)
        return self.bc_weight * distance + beyond - score / size.clamp(min=1e-6)

    def sample(self, policy: Policy, obs: Mapping[str, Tensor], rng: Generator) -> Tensor:
        """Returns the coded plans of a policy, (B, H, A)."""
        return policy.sample(policy.context(obs), rng)

    def soft_policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Any, ...]:
        """Returns the loss of the policy of SAC and, if it is adjusted, that of the temperature for each window, (B,).

        The policy's is the weighted log-density of its plan minus the score, which is that of the smallest network, or
        the mean of all if targets are those of a subset.
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

    def distance(self, nets: Any, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the mean squared distance of coded plans, (B, H, A), to the stored actions, (B,)."""
        return mean_over_steps((coded - nets.policy.encode_batch(batch)).square(), batch.mask)

    def _following_distance(self, nets: Any, coded: Tensor, batch: Batch) -> Tensor:
        """Mean squared distance of coded plans to the stored actions that follow a window, (B,). 0 without any."""
        assert batch.next is not None
        stored, exists = batch.extra[NEXT_ACTION][:, :coded.shape[1]].tensor_split((-1,), -1)
        difference = coded - nets.policy.codec.encode(stored, batch.next)
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
