from __future__ import annotations

from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Generator, Tensor

from ...core import Above, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.likelihood.regression import Regression
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.off_policy_actor_critic import OffPolicyActorCritic, OffPolicyActorCriticLearner
from ...learn.method import Method
from ...learn.targets import mean_over_steps
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class NearestActions(OffPolicyActorCritic):
    """TD3 that stays close to the stored plan whose observation and plan together are nearest to its own.

    The first data are searched. Those that rounds collect are not.

    Args:
        obs_scale: Factor of observations in the search (beta), where all numbers are in coded units.

    References:
        Ran et al. (2023), Policy Regularization with Dataset Constraint for Offline Reinforcement Learning,
        arXiv:2306.06569.
    """

    obs_scale: Annotated[float, Above(0)] = 2.0

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> NearestActionsLearner:
        if other := [name for name in policy.inputs if policy.features[name].kind != "vector"]:
            raise Unsupported(f"distances are between numbers, and {other[0]!r} is of kind "
                              f"{policy.features[other[0]].kind!r}", where="NearestActions",
                              hint="let the policy read other columns (policy.inputs), or train td3-bc")
        return NearestActionsLearner(self, policy, seed, steps, data)


class NearestActionsLearner(OffPolicyActorCriticLearner):
    """Learner of `NearestActions`."""

    config: NearestActions

    def __init__(self, config: NearestActions, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps, data)
        self.data = data

    @cached_property
    def stored(self) -> tuple[cKDTree, Tensor, Tensor]:
        """What is searched, the coded plans, (N, H, A), and which of their steps are not padding, (N, H).

        The codec has its statistics only once training begins.
        """
        windows = self.policy.windows(self.data)
        batch = windows.gather(np.arange(len(windows))).to(self.device)
        plans = self.policy.encode_batch(batch)
        return cKDTree(self.search_key(batch, plans)), plans, batch.mask

    def search_key(self, batch: Batch, coded: Tensor) -> np.ndarray:
        """Returns what is searched for observations and coded plans, (B, D)."""
        obs = self.policy.codec.encode_obs(batch.obs)
        numbers = [self.config.obs_scale * obs[name].flatten(1) for name in self.policy.inputs]
        return torch.cat([*numbers, coded.flatten(1)], 1).detach().cpu().numpy()

    def distance(self, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        tree, plans, mask = self.stored
        nearest = torch.as_tensor(tree.query(self.search_key(batch, coded))[1], device=coded.device)
        return mean_over_steps((coded - plans[nearest]).square(), mask[nearest])


@method("Ran et al. 2023 (PRDC), arXiv 2306.06569", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and similar states have actions of different quality.")
def prdc(bc_weight: float = 0.4, obs_scale: float = 2.0, features: Schema | None = None) -> Method:
    """TD3 that stays close to the nearest stored pair of observation and action, of whatever step.

    Args:
        bc_weight: Weight of the squared distance to the stored plan. The mean absolute score has weight 1.
        obs_scale: Factor of observations in the search (beta). Large values are td3-bc.
    """
    return critic_method(Regression(), NearestActions(bc_weight=bc_weight, obs_scale=obs_scale), features)
