"""TD3, TD3+BC and ReBRAC: actor-critics whose policy follows the gradient of the score of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor

from ...core import AtLeast, Batch, part
from ...data.episode import Dataset, Episode
from ...policy import Policy
from ..algorithm import Net, loss
from ..targets import mean_over_steps
from .off_policy_actor_critic import ActorCritic, policy_is_due

NEXT_ACTION = "next.action"  # column of the actions that follow a window


@part
class TD3(ActorCritic):
    """TD3, and with `bc_weight` TD3+BC: a deterministic policy that maximizes the score of its critic.

    A critic learns the discounted return of a plan, which is the sum of rewards over the plan's steps and the value of
    what follows. The policy maximizes the critic's score, and stays close to the stored actions.

    Args:
        target_noise: Standard deviation of the noise on target actions, in coded units.
        max_target_noise: Largest noise on target actions, in coded units.
        bc_weight: Weight of the squared distance to the stored actions, relative to a score of mean absolute value 1.
            TD3+BC uses 0.4.
        critic_bc_weight: Weight, in units of the return, of the squared distance of target actions to the stored
            actions. Above 0 in ReBRAC.

    References:
        Fujimoto et al. (2018), Addressing Function Approximation Error in Actor-Critic Methods, arXiv:1802.09477.
        Fujimoto and Gu (2021), A Minimalist Approach to Offline Reinforcement Learning, arXiv:2106.06860.
        Tarasov et al. (2023), Revisiting the Minimalist Approach to Offline Reinforcement Learning, arXiv:2305.09836.
    """

    target_noise: Annotated[float, AtLeast(0)] = 0.2
    max_target_noise: Annotated[float, AtLeast(0)] = 0.5
    bc_weight: Annotated[float, AtLeast(0)] = 0.0
    critic_bc_weight: Annotated[float, AtLeast(0)] = 0.0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets = super().networks(policy, data)
        return {**nets, "policy": replace(nets["policy"], target=self.target_decay)}

    def added_columns(self, policy):
        if not self.critic_bc_weight:
            return {}
        return {NEXT_ACTION: _FollowingActions(self.n_step or policy.window.horizon, policy.config.target)}

    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B).

        It is the discounted rewards of the steps plus the discounted value that follows them, which is 0 if the episode
        terminates within them.
        """
        assert batch.next is not None
        coded = self.next_plan(nets, batch.next, rng)
        value = nets.target.critic.target_score(batch.next, nets.policy.decode(coded, batch.next), rng)
        if self.critic_bc_weight:
            value = value - self.critic_bc_weight * self._following_distance(nets, coded, batch)
        return self.bootstrapped(nets, batch, value)

    def next_plan(self, nets: Any, obs: Mapping[str, Tensor], rng: Generator) -> Tensor:
        """Returns the coded plans for the next observation, whose value is the target, (B, H, A)."""
        coded = self.sample(nets.target.policy, obs, rng)
        noise = self.target_noise * torch.randn(coded.shape, generator=rng, device=coded.device)
        return nets.policy.clip(coded + noise.clamp(-self.max_target_noise, self.max_target_noise))

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy for each window, (B,).

        It is the negative score of the first critic network, divided by the mean absolute score of the batch, plus
        `bc_weight` times the squared distance to the stored actions, plus the squared distance to the range of actions
        in the data. Distances are in coded units.
        """
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

    def _following_distance(self, nets: Any, coded: Tensor, batch: Batch) -> Tensor:
        """Returns the mean squared distance of coded plans to the stored next actions, (B,). 0 without any."""
        assert batch.next is not None
        stored, exists = batch.extra[NEXT_ACTION][:, :coded.shape[1]].tensor_split((-1,), -1)
        difference = coded - nets.policy.codec.encode(stored, batch.next)
        return mean_over_steps(difference.square(), exists.squeeze(-1) > 0)


@dataclass(frozen=True)
class _FollowingActions:
    """Adds the actions of a number of steps later as a column, with a last component that marks known ones."""

    steps: int
    target: str

    def __call__(self, episode: Episode) -> Episode:
        action = np.asarray(episode.steps[self.target][:len(episode)], np.float32).reshape(len(episode), -1)
        following = np.pad(action[self.steps:], ((0, 0), (0, 1)), constant_values=1)
        padding = ((0, len(action) - len(following)), (0, 0))
        return episode.replace({NEXT_ACTION: np.pad(following, padding)})
