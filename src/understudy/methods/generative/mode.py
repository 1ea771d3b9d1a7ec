from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...core import part
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.edm import EDM
from ...learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.mixture_of_experts import MoEFeedForward
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@part
class LoadBalancing(AuxiliaryLoss):
    """Auxiliary loss that keeps the router of ``Transformer(feed_forward=MoEFeedForward())`` from using few experts.

    The loss of a layer is ``E * sum_e(probability_e * fraction_e)``. The fraction is the number of times in the batch
    for which expert e was chosen, divided by the number of all choices. No gradient reaches it. The loss is 1 if all
    experts are used equally and at most E. It is averaged over the layers.

    References:
        Fedus et al. (2021), Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient
        Sparsity, arXiv:2101.03961.
        Reuss et al. (2025), Efficient Diffusion Transformer Policies with Mixture of Expert Denoisers,
        arXiv:2412.12953 (weight 0.01).
    """

    weight: float = 0.01
    captures = ("routing",)

    def build(self, policy):
        def loss(policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
            probabilities, weights = captured["routing"].unbind(3)  # (rows, H, layers, E)
            chosen = (weights.detach() > 0).to(probabilities.dtype)
            fraction = chosen.mean((0, 1)) / chosen.sum(-1).mean((0, 1)).unsqueeze(-1)  # (layers, E)
            balance = probabilities.shape[-1] * (probabilities.mean(1) * fraction).sum(-1)
            return self.weight * balance.mean(1).unflatten(0, (len(batch), -1)).mean(1)  # over draws of noise
        return loss


@method("Reuss et al. 2025, arXiv 2412.12953, with a network eight times as wide, language goals and log-logistic "
        "noise levels", rows=("307",),
        when="if a diffusion transformer has to grow without slower plans: its experts can be fused before it acts.")
def mode(
    n_experts: int = 4, top_k: int = 2, n_obs_steps: int = 2, horizon: int = 10, n_action_steps: int = 5
) -> Method:
    """Mixture of expert denoisers: diffusion by a transformer whose experts are chosen by the noise level.

    Args:
        n_experts: Number of experts in each layer.
        top_k: Number of experts that are used at a noise level.
    """
    trunk = Transformer(128, 4, 4, "joint", causal=True, feed_forward=MoEFeedForward(n_experts, top_k))
    policy = PolicyConfig(EDM(10, sigma_min=0.001), trunk, TokenEncoder(128), window=Window(n_obs_steps, horizon))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    learner = BehaviorCloning(4000, optimizer=optimizer, auxiliary_losses=(LoadBalancing(0.01),))
    return Method(policy, RecedingHorizon(n_action_steps), learner)
