from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from ...core import Above, part
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.rewards.transport_reward import EpisodeReward, EpisodeRewardConfig
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil


@part
class DensityReward(EpisodeRewardConfig):
    """Reward: the logarithm of a kernel density estimate of demonstrated steps.

    It has a Gaussian kernel in coded units. The reward is negative far from demonstrations. Use it only where a policy
    cannot avoid negative rewards by ending the episode. Far from demonstrations the reward is about -10 per step, and a
    critic learns such large sums slowly: if the policy goes where no demonstration is, lower `scale`.

    Args:
        bandwidth: Standard deviation of the kernel, in coded units.
        inputs: "next" compares the observations that steps lead to, and "action" observations and actions.
        scale: Factor of the logarithm, which is 1 in imitation.

    References:
        Gleave et al. (2022), imitation: Clean Imitation Learning Implementations, arXiv:2211.11972.
    """

    bandwidth: Annotated[float, Above(0)] = 0.5
    inputs: Literal["next", "action"] = "action"
    scale: Annotated[float, Above(0)] = 1.0
    compares, is_biased_by_ends = False, True

    def build(self, policy, data):
        return _Density.of(self, policy, data)


class _Density(EpisodeReward):
    config: DensityReward

    def rewards(self, steps):
        return self.score(steps)

    @torch.no_grad()
    def score(self, steps: Tensor) -> Tensor:
        """Returns the scaled log-density of steps, (T, D), per step, (T,)."""
        variance, (n, size) = self.config.bandwidth**2, self.points.shape
        exponents = -torch.cdist(steps, self.points).square() / (2 * variance)
        log_density = exponents.logsumexp(1) - math.log(n) - size / 2 * math.log(2 * math.pi * variance)
        return self.config.scale * log_density


@method("Gleave et al. 2022 (DensityAlgorithm of imitation), arXiv 2211.11972, with TD3, and rewards a tenth as large",
        needs=(NUMBERS, ENDS, "an environment"),
        when="if there are demonstrations without rewards and an environment, as the simplest reward to compare with.")
def density_reward(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, bandwidth: float = 0.5) -> Method:
    """TD3 with a tenth of the log-density of each step among those of demonstrations as its reward."""
    learner = TD3(reward=DensityReward(bandwidth, scale=0.1))
    return replace(pwil(n_rounds, n_episodes, noise), learner=learner)
