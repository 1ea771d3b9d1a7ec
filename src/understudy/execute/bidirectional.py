"""Bidirectional decoding: chooses a plan that agrees with the last chunk and is typical of the policy."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated

import torch
from torch import Tensor

from ..core import AtLeast, Unsupported, UserError, part
from ..policy import LastChunk, Planner
from .base import check_numeric_actions, check_samples, sample_noise, sample_plans
from .planners import PlannerWrapper, Unresolved


@part
class BidirectionalDecoding(PlannerWrapper):
    """Executor that draws `n` plans, and takes one that continues the last chunk and is typical of the policy.

    Backward coherence is the distance of a plan from the rest of the last chunk. The `n_kept` plans with the smallest
    distance stay candidates. Forward contrast is a difference of two mean distances of a candidate: from the nearest
    half of the other candidates, minus from the nearest half of the weak policy's plans. Of the weak policy's plans,
    too, only the most coherent are used. The plan with the smallest sum of coherence and contrast is taken.

    Without a last chunk, all plans are candidates. Distances are in units of `action_scale`, and steps of a chunk that
    lie in the past do not count. The executor must tell what it was executing, as `ChunkedExecutor` does.

    Args:
        planner: The strong policy, which draws the plans.
        weak: A weaker policy, such as an early checkpoint of the same run. None to leave its part out.
        n_kept: Number of plans that stay candidates, from 2 to `n`.
        decay: Factor by which the weight of coherence decreases from each step to the next.

    References:
        Liu et al. (2024), Bidirectional Decoding: Improving Action Chunking via Closed-Loop Resampling,
        arXiv:2408.17355.
    """

    planner: Planner | Unresolved = None
    weak: Planner | Unresolved | None = None
    n: Annotated[int, AtLeast(2)] = 15
    n_kept: int = 5
    decay: Annotated[float, AtLeast(0)] = 0.5

    module_types = MappingProxyType({"weak": Planner})

    def __post_init__(self):
        if not 2 <= self.n_kept <= self.n:
            raise UserError(f"n_kept is {self.n_kept}, but must be from 2 to n, which is {self.n}",
                            where="BidirectionalDecoding.n_kept", hint="keep a third of the plans, as in the paper")
        super().__post_init__()

    def check_modules(self):
        check_numeric_actions(self.planner, "BidirectionalDecoding", "measures how far plans are apart")
        check_samples(self.planner, "BidirectionalDecoding")
        if self.weak is None:
            return
        strong_sizes, weak_sizes = (((w := p.window).n_obs_steps, w.horizon, w.action_offset, p.action_dim)
                                    for p in (self.planner, self.weak))
        if strong_sizes != weak_sizes:
            raise UserError(f"(n_obs_steps, horizon, action_offset, action components) are {strong_sizes}, but those "
                            f"of the weak policy are {weak_sizes}", where="BidirectionalDecoding.weak",
                            hint="take an early checkpoint of the same run, or train both with the same window")

    @property
    def inputs(self):
        return tuple(dict.fromkeys(name for p in self._policies for name in p.inputs))

    @property
    def features(self):
        return {name: f for p in reversed(self._policies) for name, f in p.features.items()}

    @property
    def _policies(self) -> tuple[Planner, ...]:
        return (self.planner,) if self.weak is None else (self.planner, self.weak)

    def noise(self, key, count):
        # Keys that differ, so that equal policies draw independently.
        return {str(i): sample_noise(p, key + i, count, self.n) for i, p in enumerate(self._policies)}

    def plan(self, obs, noise, guides=()):
        last = next((g for g in guides if isinstance(g, LastChunk)), None)
        if last is None:
            raise Unsupported("this executor does not tell what it was executing", where="BidirectionalDecoding",
                              hint="use RecedingHorizon or RealTimeChunking")
        plans = [sample_plans(p, obs, noise[str(i)], self.n, guides) for i, p in enumerate(self._policies)]
        cost = self.cost(plans[0], plans[1] if self.weak is not None else None, self.action_scale, last)
        return plans[0][torch.arange(len(cost), device=cost.device), cost.argmin(1)]

    def cost(self, strong: Tensor, weak: Tensor | None, scale: Tensor, last: LastChunk) -> Tensor:
        """Returns the cost of each plan, (B, n), the sum of coherence and contrast. It is infinite for excluded plans.

        Args:
            strong: The plans of the strong policy in world units, (B, n, H, A).
            scale: Scale of each action component, (A,).
        """
        now = -self.window.action_offset
        old, exists = (x[:, now:] for x in last.aligned())
        strong = strong[:, :, now:] / scale
        coherence, kept = self._coherence(strong, old / scale, exists)
        itself = torch.eye(self.n, dtype=torch.bool, device=strong.device)
        cost = coherence + _nearest_half(strong, strong, kept, itself)
        if weak is not None:
            weak = weak[:, :, now:] / scale
            weak_kept = self._coherence(weak, old / scale, exists)[1]
            cost = cost - _nearest_half(strong, weak, weak_kept, torch.zeros_like(itself))
        return cost.masked_fill(~kept, torch.inf)

    def _coherence(self, plans: Tensor, old: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the distance of each plan from the last chunk, (B, n), and which plans stay candidates, (B, n)."""
        weight = exists * self.decay ** torch.arange(old.shape[1], device=old.device)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
        distance = ((plans - old.unsqueeze(1)).norm(dim=-1) * weight.unsqueeze(1)).sum(-1)
        rank = distance.argsort(dim=1, stable=True).argsort(1)
        return distance, (rank < self.n_kept) | ~exists.any(1, keepdim=True)


def _nearest_half(plans: Tensor, others: Tensor, kept: Tensor, excluded: Tensor) -> Tensor:
    """Returns the mean distances (B, n) of plans to the nearest half of other plans (B, n, H, A) that are kept."""
    distance = (plans.unsqueeze(2) - others.unsqueeze(1)).norm(dim=-1).mean(-1)
    ranked = distance.masked_fill(~kept.unsqueeze(1) | excluded, torch.inf).sort(-1).values
    half = (kept.sum(1) // 2)[:, None, None]
    is_nearest = torch.arange(ranked.shape[-1], device=ranked.device) < half
    return torch.where(is_nearest, ranked, 0.0).sum(-1) / half[..., 0]
