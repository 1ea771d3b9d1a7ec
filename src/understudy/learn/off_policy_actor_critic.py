"""Off-policy actor-critic: TD3, TD3+BC and SAC, for any policy head whose samples have gradients."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ..checkpoint import FromStage
from ..core import Above, AtLeast, AtMost, Batch, ConfigError, Unsupported, part
from ..data.episode import Dataset
from ..policy import Policy
from .critic import CriticConfig
from .optimizer import OptimizerConfig
from .reward_models import RewardedConfig, RewardedLearner, RewardModelConfig
from .targets import td_terms


@part
class OffPolicyActorCritic(RewardedConfig):
    """TD3, with `bc_weight` TD3+BC, and with `temperature` SAC: off-policy reinforcement learning from stored episodes.

    A critic learns the discounted return of a plan, which is the sum of rewards over the plan's steps and the value of
    what follows. The policy maximizes the critic's score, and stays close to the stored actions. With a temperature it
    also maximizes its entropy; its head must then have a density, such as `SquashedGaussian`.

    Batches need the columns `next.reward`, unless `reward` gives another, and `next.terminated`. A step that was cut
    off by a time limit is no end: the value of what would follow counts.

    Args:
        steps: Number of updates, for schedules.
        batch_size: Number of windows in each batch.
        optimizer: Optimizer of the policy and of the critic.
        discount: Discount per step.
        n_step: Number of steps whose rewards are in the target of the critic. 0 for those of the plan.
        target_decay: Fraction of the target networks that each update keeps.
        policy_delay: Updates of the critic per update of the policy.
        target_noise: Standard deviation of the noise on target actions, in coded units. For TD3.
        max_target_noise: Largest noise on target actions, in coded units. For TD3.
        bc_weight: Weight of the squared distance to the stored actions. It is relative to a score of mean absolute
            value 1, but to the score itself with a temperature. 0.4 is that of TD3+BC, 0 is TD3 or SAC.
        reward: A reward model that is trained beside the policy, or that a stage trained. None: the rewards of the
            data.
        temperature: Weight of the entropy, in units of the reward: the first one, if there is a `target_entropy`. None
            for TD3.
        target_entropy: Entropy for each component of a plan, in coded units, to which the temperature is adjusted, such
            as -1. None keeps the temperature.

    References:
        Fujimoto et al. (2018), Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477.
        Fujimoto and Gu (2021), A Minimalist Approach to Offline Reinforcement Learning, arXiv:2106.06860.
        Haarnoja et al. (2018), Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905.
        Chen et al. (2021), Randomized Ensembled Double Q-Learning, arXiv:2101.05982 (`target_subset_size` of the critic
        and a temperature).
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=CriticConfig)
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    policy_delay: Annotated[int, AtLeast(1)] = 2
    target_noise: Annotated[float, AtLeast(0)] = 0.2
    max_target_noise: Annotated[float, AtLeast(0)] = 0.5
    bc_weight: Annotated[float, AtLeast(0)] = 0.4
    reward: RewardModelConfig | FromStage | None = None
    temperature: Annotated[float | None, Above(0)] = None
    target_entropy: float | None = None
    n_step: Annotated[int, AtLeast(0)] = 0

    next_obs = True

    def __post_init__(self):
        if self.target_entropy is not None and self.temperature is None:
            raise ConfigError("there is no temperature to adjust", where="OffPolicyActorCritic.target_entropy",
                              hint="give the first one, such as temperature=1.0, or leave target_entropy out")

    @property
    def lookahead(self):
        return self.n_step

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> OffPolicyActorCriticLearner:
        return OffPolicyActorCriticLearner(self, policy, seed, steps, data)


class OffPolicyActorCriticLearner(RewardedLearner):
    """Learner of `OffPolicyActorCritic`."""

    config: OffPolicyActorCritic

    def __init__(self, config: OffPolicyActorCritic, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        if policy.target.kind == "discrete" or policy.window.action_offset:
            raise Unsupported("the critic scores plans of numbers that begin at the current step",
                              where="OffPolicyActorCritic",
                              hint="use it for continuous actions and with action_offset=0")
        if 0 < config.n_step < policy.window.horizon:
            raise Unsupported(f"the target has the rewards of {config.n_step} steps, but a plan has "
                              f"{policy.window.horizon}", where="OffPolicyActorCritic.n_step",
                              hint="use at least as many, or 0")
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.temperature = None
        if config.temperature is not None:
            policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
            self.temperature = _Temperature(config.temperature, config.target_entropy is not None).to(policy.device)
        self.register("policy", policy, config.optimizer, auxiliary=[self.temperature] if self.temperature else [])
        self.register_reward(data)
        if config.n_step and self.reward is not None:
            raise Unsupported("a reward model gives the rewards of a plan's own steps",
                              where="OffPolicyActorCritic.n_step", hint="use 0")
        self.target_critic = self.target_network("critic", config.target_decay)
        if self.temperature is None:
            self.target_policy = self.target_network("policy", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = self.with_rewards(batch)
        self.minimize("critic", self.critic_loss, batch)
        if self.n_updates % self.config.policy_delay == 0:
            self.minimize("policy", self.policy_loss if self.temperature is None else self.soft_policy_loss, batch)
        return self.end_update()

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against `target_value`, summed over the critic networks, (B,)."""
        target = self.target_value(batch, rng)
        return (self.critic.scores(batch.obs, batch.action) - target).square().sum(0)

    @torch.no_grad()
    def target_value(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,).

        It is the discounted rewards of the steps plus the discounted value that follows them, which is 0 if the episode
        terminates within them.
        """
        assert batch.next is not None
        coded, bonus = self.next_plan(batch.next, rng)
        value = self.target_critic.target_score(batch.next, self.policy.decode(coded, batch.next), rng)
        reward, bootstrap = td_terms(batch, self.config.discount, self.config.n_step)
        return reward + bootstrap * (value + bonus)

    def next_plan(self, obs, rng: Generator) -> tuple[Tensor, Tensor | float]:
        """Returns the coded plans whose value is the target, (B, H, A), and what their entropy adds to it, (B,)."""
        config = self.config
        if self.temperature is not None:
            coded, log_prob = self.policy.sample_log_prob(self.policy.context(obs), rng)
            return coded, -self.temperature() * log_prob.sum(1)
        coded = self.target_policy.sample(self.target_policy.context(obs), rng)
        noise = config.target_noise * torch.randn(coded.shape, generator=rng, device=coded.device)
        return self._clipped(coded + noise.clamp(-config.max_target_noise, config.max_target_noise)), 0.0

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy of TD3 for each window, (B,).

        It is the negative score of the first critic network, divided by the mean absolute score of the batch, plus
        `bc_weight` times the squared distance to the stored actions, plus the squared distance to the range of actions
        in the data. Distances are in coded units.
        """
        coded = self.policy.sample(self.policy.context(batch.obs), rng)
        inside = self._clipped(coded)
        score = self.critic.scores(batch.obs, self.policy.decode(inside, batch.obs))[0]
        beyond = (coded - inside).square().mean((1, 2))
        distance = self._distance(coded, batch)
        return self.config.bc_weight * distance + beyond - score / score.detach().abs().mean().clamp(min=1e-6)

    def soft_policy_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, ...]:
        """Returns the loss of the policy of SAC and that of the temperature for each window, (B,) each.

        The policy's is the weighted log-density of its plan minus the score, which is that of the smallest network, or
        the mean of all if targets are those of a subset. The temperature's is 0 where it is not adjusted.
        """
        assert self.temperature is not None
        coded, log_prob = self.policy.sample_log_prob(self.policy.context(batch.obs), rng)
        log_prob = log_prob.sum(1)
        scores = self.critic.scores(batch.obs, self.policy.decode(coded, batch.obs))
        score = scores.amin(0) if self.config.critic.target_subset_size is None else scores.mean(0)
        temperature = self.temperature().detach()
        self.log(temperature=temperature, entropy=-log_prob)
        loss = temperature * log_prob - score + self.config.bc_weight * self._distance(coded, batch)
        if self.config.target_entropy is None:
            return (loss,)
        target_entropy = self.config.target_entropy * coded[0].numel()
        return loss, -self.temperature.log * (log_prob.detach() + target_entropy)

    def _distance(self, coded: Tensor, batch: Batch) -> Tensor:
        """Mean squared distance of coded plans to the stored actions, (B,)."""
        return ((coded - self.policy.encode_batch(batch)) * batch.mask.unsqueeze(-1)).square().mean((1, 2))

    def _clipped(self, coded: Tensor) -> Tensor:
        """Within the range of the actions in the data, where the codec knows one."""
        bound = self.policy.codec.bound
        return coded if bound is None else coded.clamp(-bound, bound)


class _Temperature(nn.Module):
    """The weight of the entropy, which stays positive."""

    def __init__(self, first: float, is_trained: bool):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(first).log(), requires_grad=is_trained)

    def forward(self) -> Tensor:
        return self.log.exp()
