"""Off-policy actor-critic: TD3 and TD3+BC, for any policy head whose samples have gradients."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Generator, Tensor

from ..checkpoint import FromStage
from ..core import AtLeast, AtMost, Batch, Unsupported, part
from ..data.episode import Dataset
from ..policy import Policy
from .critic import CriticConfig
from .optimizer import OptimizerConfig
from .reward_models import RewardedConfig, RewardedLearner, RewardModelConfig
from .targets import td_terms


@part
class OffPolicyActorCritic(RewardedConfig):
    """TD3, and with `bc_weight` TD3+BC: off-policy reinforcement learning from stored episodes.

    A critic learns the discounted return of a plan, which is the sum of rewards over the plan's steps and the value of
    what follows. The policy maximizes the critic's score, and stays close to the stored actions.

    Batches need the columns `next.reward`, unless `reward` gives another, and `next.terminated`. A step that was cut
    off by a time limit is no end: the value of what would follow counts.

    Args:
        steps: Number of updates, for schedules.
        batch_size: Number of windows in each batch.
        optimizer: Optimizer of the policy and of the critic.
        discount: Discount per step.
        target_decay: Fraction of the target networks that each update keeps.
        policy_delay: Updates of the critic per update of the policy.
        target_noise: Standard deviation of the noise on target actions, in coded units.
        max_target_noise: Largest noise on target actions, in coded units.
        bc_weight: Weight of the squared distance to the stored actions, relative to a score of mean absolute value 1.
            0.4 is that of TD3+BC, 0 is TD3.
        reward: A reward model that is trained beside the policy, or that a stage trained. None: the rewards of the
            data.

    References:
        Fujimoto et al. (2018), Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477.
        Fujimoto and Gu (2021), A Minimalist Approach to Offline Reinforcement Learning, arXiv:2106.06860.
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

    next_obs = True

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
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.optimizer)
        self.register_reward(data)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.target_policy = self.target_network("policy", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = self.with_rewards(batch)
        self.minimize("critic", self.critic_loss, batch)
        if self.n_updates % self.config.policy_delay == 0:
            self.minimize("policy", self.policy_loss, batch)
        return self.end_update()

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against `target_value`, summed over the critic networks, (B,)."""
        target = self.target_value(batch, rng)
        return (self.critic.scores(batch.obs, batch.action) - target).square().sum(0)

    @torch.no_grad()
    def target_value(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,).

        It is the discounted rewards of the chunk plus the discounted value that follows it, which is 0 if the episode
        terminates within the chunk.
        """
        config = self.config
        coded = self._coded_plan(self.target_policy, batch.next, rng)
        noise = config.target_noise * torch.randn(coded.shape, generator=rng, device=coded.device)
        coded = self._clipped(coded + noise.clamp(-config.max_target_noise, config.max_target_noise))
        value = self.target_critic.target_score(batch.next, self.policy.decode(coded, batch.next), rng)
        reward, bootstrap = td_terms(batch, config.discount)
        return reward + bootstrap * value

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy for each window, (B,).

        It is the negative score of the first critic network, divided by the mean absolute score of the batch, plus
        `bc_weight` times the squared distance to the stored actions, plus the squared distance to the range of actions
        in the data. Distances are in coded units.
        """
        coded = self._coded_plan(self.policy, batch.obs, rng)
        inside = self._clipped(coded)
        score = self.critic.scores(batch.obs, self.policy.decode(inside, batch.obs))[0]
        stored = self.policy.encode_batch(batch)
        distance = ((coded - stored) * batch.mask.unsqueeze(-1)).square().mean((1, 2))
        beyond = (coded - inside).square().mean((1, 2))
        return self.config.bc_weight * distance + beyond - score / score.detach().abs().mean().clamp(min=1e-6)

    def _coded_plan(self, policy: Policy, obs, rng: Generator) -> Tensor:
        return policy.sample(policy.context(obs), rng)

    def _clipped(self, coded: Tensor) -> Tensor:
        """Within the range of the actions in the data, where the codec knows one."""
        bound = self.policy.codec.bound
        return coded if bound is None else coded.clamp(-bound, bound)
