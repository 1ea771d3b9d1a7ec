"""Pairs noise with actions in a batch (optimal transport), which straightens flows."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def optimal_transport(action: Tensor, noise: Tensor, mask: Tensor, condition: Tensor,
                      condition_weight: float) -> Tensor:
    """Pairs each action of a batch with a noise so that the sum of their costs is smallest.

    The cost of a pair is the squared distance of noise and action over the steps that are not padding, plus
    `condition_weight` times the squared distance between the condition of the action and the condition that the noise
    was drawn with. Both are divided by their means over the batch.

    Noise may only be exchanged between similar conditions. Otherwise the noise of a condition is no longer standard
    normal, and a policy samples from noise that it was not trained with.

    Args:
        action: Coded actions, (B, H, A).
        noise: Standard normal noise, (B, H, A).
        mask: False at padded steps, (B, H).
        condition: What the actions depend on, (B, D).
        condition_weight: 0 ignores the conditions. Large values keep the noise of each row.

    Returns:
        For each action the row of its noise, (B,), a permutation.

    References:
        Pooladian et al. (2023), Multisample Flow Matching, arXiv:2304.14772.
        Cheng and Schwing (2025), The Curse of Conditions, arXiv:2503.10636.
    """
    from scipy.optimize import linear_sum_assignment

    present = mask.unsqueeze(-1).expand_as(action).flatten(1).double()
    a, n = action.flatten(1).double() * present, noise.flatten(1).double()
    cost = a.square().sum(1, keepdim=True) - 2 * a @ n.T + present @ n.T.square()
    between = torch.cdist(condition.double(), condition.double()).square()
    cost = cost / cost.mean().clamp(min=1e-12) + condition_weight * between / between.mean().clamp(min=1e-12)
    _, rows = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(rows).to(action.device)
