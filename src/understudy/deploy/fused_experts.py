"""A policy whose experts are fused into one dense layer for each time of its sampler."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..core import Unsupported
from ..nets.base import FusesTimes
from ..policy import Policy
from .equivalence import random_noise, random_observations


def fuse_experts(policy: Policy) -> Policy:
    """Fuses the experts that each time of the sampler chooses.

    One plan with random observations finds these times. The fused policy raises `Unsupported` if its sampler later
    reads another time, or times that differ from step to step (`StreamingExecutor`).

    Args:
        policy: A policy with ``Transformer(feed_forward=MoEFeedForward())`` or another trunk that `FusesTimes`.

    Returns:
        A copy on the CPU for planning, with the same plans up to rounding. It keeps the weights of this moment and
        cannot be trained: fuse again after training. The fused layers take `n_times * top_k / n_experts` times the
        memory of the experts.

    Raises:
        Unsupported: The policy has no experts, or its plans do not embed the time once per step of the sampler.

    References:
        Reuss et al. (2025), Efficient Diffusion Transformer Policies with Mixture of Expert Denoisers,
        arXiv:2412.12953 (expert caching).

    Example:
        >>> policy, batch = random_batch(PolicyConfig(EDM(), Transformer(feed_forward=MoEFeedForward())))
        >>> fused = fuse_experts(policy)
    """
    fused = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
    for name, times in _sampler_times(fused).items():
        net = fused.get_submodule(name)
        assert isinstance(net, FusesTimes)
        parent, _, child = name.rpartition(".")
        setattr(fused.get_submodule(parent), child, net.fuse(times))
    return fused


def _sampler_times(policy: Policy) -> dict[str, Tensor]:
    """Returns the times (S, K) that each trunk embeds in one plan, by the name of the module."""
    embedded: dict[str, list[Tensor]] = {n: [] for n, m in policy.named_modules() if isinstance(m, FusesTimes)}
    if not embedded:
        raise Unsupported("The policy has no experts that a time chooses.", where="fuse_experts",
                          hint="Use it for policies with Transformer(feed_forward=MoEFeedForward()), such as `mode`.")

    def recorded(embed, record):
        def embed_time(times):
            record.append(times)
            return embed(times)
        return embed_time
    for name, record in embedded.items():
        net = policy.get_submodule(name)
        net.embed_time = recorded(net.embed_time, record)  # of this module alone, until the end of the plan
    try:
        with torch.no_grad():
            policy.plan(random_observations(policy, 1), random_noise(policy, 1))
    finally:
        for name in embedded:
            del policy.get_submodule(name).embed_time
    if unknown := [name for name, record in embedded.items() if not record]:
        raise Unsupported(f"The head {type(policy.config.head).__name__} does not embed the times of its sampler "
                          "beforehand.", where=f"fuse_experts: {', '.join(unknown)}", hint="Use the policy as it is.")
    return {name: torch.cat(record).unique(dim=0) for name, record in embedded.items()}
