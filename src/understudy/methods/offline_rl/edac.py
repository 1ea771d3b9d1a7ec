from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import AtLeast, Batch, ConfigError, Schema, part
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...learn.critic import CriticConfig
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.sac import SAC
from ...learn.method import Method
from ...nets.feed_forward import FeedForward
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("An et al. 2021 (EDAC), arXiv 2110.01548", needs=(NUMBERS, STEP_REWARDS),
        when="if there are many episodes with rewards and no environment; 10 critics cost time.")
@part
class EDAC(SAC):
    """EDAC: soft actor-critic that doubts actions on which many critics differ, and keeps the critics apart.

    Args:
        critic: The smallest score of its networks counts.
        diversity_weight: Weight of the cosine similarity of the gradients of two critics with respect to the action,
            summed over all pairs of critics and divided by their number minus 1 (eta). 0 is SAC-N.

    References:
        An et al. (2021), Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble,
        arXiv:2110.01548.
    """

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(n_critics=10))
    diversity_weight: Annotated[float, AtLeast(0)] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.diversity_weight and self.critic.n_critics < 2:
            raise ConfigError("one critic has no other to differ from", where="EDAC.diversity_weight",
                              hint="use more critics, such as critic.n_critics=10, or 0")

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(SquashedGaussian(), self, features, FeedForward((256, 256)))

    def score_penalty(self, nets, scores, batch, rng):
        return self.diversity_weight * self.similarity(nets, batch) if self.diversity_weight else 0.0

    def similarity(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the cosine similarity of the gradients of all pairs of critics, over their number minus 1, (B,)."""
        coded = nets.policy.encode_batch(batch).detach().requires_grad_()
        networks = nets.critic.network_quantiles(batch.obs, nets.policy.decode(coded, batch.obs))
        gradients = [torch.autograd.grad(q.mean(0).sum(), coded, create_graph=True)[0] for q in networks]
        directions = F.normalize(torch.stack(gradients).flatten(2), dim=-1, eps=1e-10)
        of_pairs = directions.sum(0).square().sum(-1) - directions.square().sum((0, 2))
        return of_pairs / (len(networks) - 1)
