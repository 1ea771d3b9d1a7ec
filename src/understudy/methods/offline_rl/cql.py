from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...learn.algorithm import Net
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.sac import SAC
from ...learn.method import Method
from ...nets.feed_forward import FeedForward
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Kumar et al. 2020 (CQL), arXiv 2006.04779, with a fixed weight", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and scores of actions that are not in the data must not be too high.")
@part
class CQL(SAC):
    """Conservative Q-learning: soft actor-critic whose critic scores actions that are not in the data low.

    Args:
        conservative_weight: Weight of the soft maximum of the scores over all actions, minus the score of the stored
            ones.
        n_samples: Number of actions from which the soft maximum is estimated, of each of three kinds: of the policy
            here, of the policy after the plan, and uniform in the range of the data.

    References:
        Kumar et al. (2020), Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779.
    """

    conservative_weight: Annotated[float, Above(0)] = 5.0
    n_samples: Annotated[int, AtLeast(1)] = 10

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(SquashedGaussian(), self, features, FeedForward((256, 256)))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        nets = super().networks(policy, data)
        if policy.codec.bound in (None, math.inf):
            raise Unsupported("conservative scores need a range of actions", where=type(self).__name__,
                              hint='use a codec that knows one, such as Normalizer(target="minmax")')
        return nets

    def score_penalty(self, nets: Any, scores: Tensor, batch: Batch, rng: Generator) -> Tensor:
        return self.conservative_weight * self.conservative_loss(nets, scores, batch, rng)

    def conservative_loss(self, nets: Any, scores: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the logarithm of the integral of exponential scores minus the score of stored plans, (B,).

        The integral is a mean over sampled plans, divided by their densities. It is summed over the critic networks.
        """
        policy, n, plans, densities = nets.policy, self.n_samples, [], []
        bound = policy.codec.bound
        assert batch.next is not None
        for obs in (batch.obs, batch.next):
            with torch.no_grad():
                coded, log_prob = policy.sample_log_prob(policy.context(obs).repeat(n), rng)
            plans.append(coded.unflatten(0, (-1, n)))
            densities.append(log_prob.sum(1).unflatten(0, (-1, n)))
        uniform = torch.rand(plans[0].shape, generator=rng, device=plans[0].device)
        plans.append(bound * (2 * uniform - 1))
        densities.append(torch.full_like(densities[0], -math.log(2 * bound) * uniform[0, 0].numel()))
        decoded = policy.decode(torch.cat(plans, 1).flatten(1, 2), batch.obs).unflatten(1, (3 * n, -1))
        sampled = self.conservative_scores(nets, batch, decoded)
        return ((sampled - torch.cat(densities, 1)).logsumexp(-1) - scores).sum(0)

    def conservative_scores(self, nets: Any, batch: Batch, plans: Tensor) -> Tensor:
        """Returns the scores of sampled plans, (n_critics, B, N). The last third is drawn uniformly."""
        return nets.critic.scores(batch.obs, plans)
