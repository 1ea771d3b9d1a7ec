from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.likelihood.regression import Regression
from ...learn.algorithm import Net
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.targets import mean_over_steps
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


class StoredPlans(nn.Module):
    """The stored plans of the data, in which the nearest one to an observation and a plan is searched.

    They are coded when they are first searched, because the codec has its statistics only once training begins.

    Args:
        obs_scale: Factor of observations, where all numbers are in coded units.
    """

    def __init__(self, data: Dataset, obs_scale: float):
        super().__init__()
        self.data, self.obs_scale = data, obs_scale
        self.searched: tuple[cKDTree, Tensor, Tensor] | None = None

    def nearest(self, policy: Policy, obs: Mapping[str, Tensor], coded: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the nearest coded plans, (B, H, A), and which of their steps are not padding, (B, H)."""
        if self.searched is None:
            windows = policy.windows(self.data)
            batch = windows.gather(np.arange(len(windows))).to(policy.device)
            stored = policy.encode_batch(batch)
            self.searched = cKDTree(self.search_key(policy, batch.obs, stored)), stored, batch.mask
        tree, plans, mask = self.searched
        rows = torch.as_tensor(tree.query(self.search_key(policy, obs, coded))[1], device=coded.device)
        return plans[rows], mask[rows]

    def search_key(self, policy: Policy, obs: Mapping[str, Tensor], coded: Tensor) -> np.ndarray:
        """Returns the points for the search, (B, D), from observations and coded plans."""
        coded_obs = policy.codec.encode_obs(obs)
        numbers = [self.obs_scale * coded_obs[name].flatten(1) for name in policy.inputs]
        return torch.cat([*numbers, coded.flatten(1)], 1).detach().cpu().numpy()


@method("Ran et al. 2023 (PRDC), arXiv 2306.06569", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and similar states have actions of different quality.")
@part
class PRDC(TD3):
    """TD3 that stays close to the nearest stored pair of observation and action, of whatever step.

    Only the first data are searched, not the episodes that rounds collect.

    Args:
        obs_scale: Factor of observations in the search (beta), where all numbers are in coded units. Large values are
            td3-bc.

    References:
        Ran et al. (2023), Policy Regularization with Dataset Constraint for Offline Reinforcement Learning,
        arXiv:2306.06569.
    """

    bc_weight: Annotated[float, AtLeast(0)] = 0.4
    obs_scale: Annotated[float, Above(0)] = 2.0

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Regression(), self, features)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if other := [name for name in policy.inputs if policy.features[name].kind != "vector"]:
            raise Unsupported(f"distances are between numbers, and {other[0]!r} is of kind "
                              f"{policy.features[other[0]].kind!r}", where="PRDC",
                              hint="let the policy read other columns (policy.inputs), or train td3-bc")
        return {**super().networks(policy, data), "stored": Net(StoredPlans(data, self.obs_scale))}

    def distance(self, nets: Any, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the mean squared distance of coded plans, (B, H, A), to the nearest stored ones, (B,)."""
        plans, mask = nets.stored.nearest(nets.policy, batch.obs, coded)
        return mean_over_steps((coded - plans).square(), mask)
