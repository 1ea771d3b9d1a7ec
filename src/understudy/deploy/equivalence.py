"""Equivalence checks for exported policies."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from ..core import Feature
from ..nets.encoders import num_classes_of
from ..policy import Planner, Policy


def plan_difference(policy: Policy, found: Planner) -> tuple[float, float]:
    """Largest errors of a planner's chunks and of the policy's own, compared with the policy in double precision.

    They are measured on batches of 1, 2 and 5 rows of random observations.

    Args:
        policy: The policy.
        found: The planner that should give the same plans.

    Returns:
        The error of the planner and the error of the policy, both relative to the largest action.
    """
    exact, head, worst = copy.deepcopy(policy.net).double(), policy.config.head, (0.0, 0.0)
    for rows in (1, 2, 5):
        obs, noise = random_observations(policy, rows, seed=rows), random_noise(policy, rows, seed=rows)
        with torch.no_grad():
            context = policy.context(obs)
            context = replace(context, tokens=context.tokens.double())
            wanted = policy.codec.decode(head.sample(exact, context, noise.double()), obs)
            size = wanted.abs().max().clamp(min=1e-6)
            off = [float((p.plan(obs, noise) - wanted).abs().max() / size) for p in (found, policy)]
            worst = (max(worst[0], off[0]), max(worst[1], off[1]))
    return worst


def random_noise(policy: Policy, rows: int, seed: int = 0) -> Tensor:
    """Standard normal noise for plans of a policy.

    Args:
        policy: The policy.
        rows: Batch size.
        seed: Seed of the noise.

    Returns:
        The noise, (rows, *policy.noise_shape).
    """
    return torch.randn(rows, *policy.noise_shape, generator=torch.Generator().manual_seed(seed))


def random_observations(policy: Policy, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Random observations with the statistics of the data: standard normal after coding.

    Args:
        policy: The policy.
        rows: Batch size.
        seed: Seed of the values.

    Returns:
        Observations by column, (rows, To, ...).
    """
    rng, obs = torch.Generator().manual_seed(seed), {}
    for name in policy.inputs:
        f = policy.features[name]
        shape = (rows, policy.window.n_obs_steps, *f.shape)
        if f.kind == "discrete":
            each = [torch.randint(n, shape[:2], generator=rng) for n in num_classes_of(f, name)]
            obs[name] = torch.stack(each, -1).reshape(shape)
        elif f.dtype in ("uint8", "bool"):
            obs[name] = torch.randint(256 if f.dtype == "uint8" else 2, shape, generator=rng)
        else:
            obs[name] = torch.randn(shape, generator=rng)
        if (values := policy.codec.known_values(name)) is not None:
            chosen = values[torch.randint(len(values), (rows,), generator=rng)]
            obs[name] = chosen.reshape(rows, 1, *f.shape).expand(shape)
        obs[name] = obs[name].to(_dtype(f))
    # The codec maps a number x to slope * x + start.
    free = [k for k in obs if policy.codec.known_values(k) is None]
    start, end = (policy.codec.encode_obs({**obs, **{k: torch.full_like(obs[k], n) for k in free}}) for n in (0, 1))
    for name, x in obs.items():
        if policy.features[name].kind == "vector" and x.is_floating_point():
            slope = end[name] - start[name]
            obs[name] = torch.where(slope == 0, 0.0, (x - start[name]) / slope).to(x.dtype)
    first = torch.randint(policy.window.n_obs_steps, (rows, 1), generator=rng)  # row at which the episode starts
    return obs | {mask: torch.arange(policy.window.n_obs_steps) >= first
                  for mask in policy.window.pad_masks(policy.inputs)}


def _dtype(feature: Feature) -> torch.dtype:
    """The dtype that actors use: double precision becomes single precision."""
    dtype = feature.torch_dtype
    return torch.float32 if dtype == torch.float64 else dtype
