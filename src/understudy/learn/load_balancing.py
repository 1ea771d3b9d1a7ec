"""Load balancing of experts that a router chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import check_range
from .behavior_cloning import AuxiliaryLoss


@dataclass(frozen=True)
class LoadBalancing(AuxiliaryLoss):
    """Keeps the router of ``Transformer(feed_forward=MoEFeedForward())`` from using few experts only.

    The loss of a layer is ``E * sum_e(probability_e * fraction_e)``. The fraction is the number of times in the batch
    for which expert e was chosen, divided by the number of all choices. No gradient reaches it. The loss is 1 if all
    experts are used equally and at most E. It is averaged over the layers.

    Args:
        weight: Weight of the loss.

    References:
        Fedus et al. (2021), Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient
        Sparsity, arXiv:2101.03961.
        Reuss et al. (2025), Efficient Diffusion Transformer Policies with Mixture of Expert Denoisers,
        arXiv:2412.12953 (weight 0.01).
    """

    weight: float = 0.01
    captures = ("routing",)

    def __post_init__(self):
        check_range(self, "weight")

    def build(self, policy):
        def loss(policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
            probabilities, weights = captured["routing"].unbind(3)  # (B, H, layers, E)
            chosen = (weights.detach() > 0).to(probabilities.dtype)
            fraction = chosen.mean((0, 1)) / chosen.sum(-1).mean((0, 1)).unsqueeze(-1)  # (layers, E)
            balance = probabilities.shape[-1] * (probabilities.mean(1) * fraction).sum(-1)
            return self.weight * balance.mean(1)
        return loss
