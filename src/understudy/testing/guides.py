"""Contract test of guidance: guides that change the plans of a head."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core import Batch, Schema, take
from ..policy import CostGuidance, NetworkGuidance, Policy, PolicyConfig
from .base import _rng, require, require_equal, require_finite
from .heads import _head_learns
from .random_data import random_batch

Guidance = NetworkGuidance | CostGuidance


@torch.no_grad()
def check_guide(guide: Guidance | Callable[[Policy, Batch], Guidance], policy_config: PolicyConfig,
                inputs: Schema | None = None) -> None:
    """Checks the contract of a guide, which steers the sampling of plans.

    It changes plans, and nothing else does: nothing is random, and rows do not depend on each other, also where
    `select_rows` repeats them. Costs are one finite number for each row.

    Args:
        guide: The guide. If it contains tensors with rows, a function that makes it for the rows of a batch.
        policy_config: Configuration of a policy whose head samples step by step.
        inputs: Features of the inputs. By default numbers.
    """
    policy, batch = random_batch(policy_config, inputs=inputs)
    with torch.enable_grad():
        policy = _head_learns(policy, batch).eval()  # layers that are initialized to zero cannot be guided
    if not isinstance(guide, (NetworkGuidance, CostGuidance)):
        guide = guide(policy, batch)
    obs, noise = batch.obs, torch.randn(len(batch), *policy.noise_shape, generator=_rng(0))
    state = torch.random.get_rng_state()
    plain, guided = policy.plan(obs, noise), policy.plan(obs, noise, (guide,))
    require_finite(guided, tuple(plain.shape), "a guided plan", "(B, H, A)")
    require(not torch.allclose(guided, plain), f"{type(guide).__name__} changes no plan")
    require_equal(policy.plan(obs, noise, (guide,)), guided, "the same arguments must give the same guided plan")
    require(torch.equal(torch.random.get_rng_state(), state), "a guide must not draw from torch's generator")
    rows = torch.tensor([2, 0, 2])
    some = policy.plan(take(obs, rows), noise[rows], (guide.select_rows(rows),))
    require_equal(some, guided[rows], "a row's guided plan must not depend on the other rows; if the guide contains "
                  "tensors with rows, select_rows must select from each", 1e-3)
    if isinstance(guide, CostGuidance):
        cost = guide.cost(policy.encode(plain, obs), lambda x: policy.encode(x, obs), lambda x: policy.decode(x, obs))
        require_finite(cost, (len(batch),), "a cost", "(B,)")
