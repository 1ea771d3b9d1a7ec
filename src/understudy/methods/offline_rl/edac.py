from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import AtLeast, Batch, ConfigError, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...learn.critic import CriticConfig
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.off_policy_actor_critic import OffPolicyActorCritic, OffPolicyActorCriticLearner
from ...learn.method import Method
from ...nets.feed_forward import FeedForward
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class DiverseCritics(OffPolicyActorCritic):
    """`OffPolicyActorCritic` with several critics, whose gradients with respect to the action are kept apart.

    Args:
        diversity_weight: Weight of the cosine similarity of the gradients of two critics, summed over all pairs of
            critics and divided by their number minus 1 (eta). 0 is SAC-N.

    References:
        An et al. (2021), Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble,
        arXiv:2110.01548.
    """

    diversity_weight: Annotated[float, AtLeast(0)] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.diversity_weight and self.critic.n_critics < 2:
            raise ConfigError("one critic has no other to differ from", where="DiverseCritics.diversity_weight",
                              hint="use more critics, such as critic.n_critics=10, or 0")

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> DiverseCriticsLearner:
        return DiverseCriticsLearner(self, policy, seed, steps, data)


class DiverseCriticsLearner(OffPolicyActorCriticLearner):
    """Learner of `DiverseCritics`."""

    config: DiverseCritics

    def score_penalty(self, scores, batch, rng):
        weight, penalty = self.config.diversity_weight, super().score_penalty(scores, batch, rng)
        return penalty + weight * self.similarity(batch) if weight else penalty

    def similarity(self, batch: Batch) -> Tensor:
        """Returns the cosine similarity of the gradients of all pairs of critics, over their number minus 1, (B,)."""
        coded = self.policy.encode_batch(batch).detach().requires_grad_()
        networks = self.critic.network_quantiles(batch.obs, self.policy.decode(coded, batch.obs))
        gradients = [torch.autograd.grad(q.mean(0).sum(), coded, create_graph=True)[0] for q in networks]
        directions = F.normalize(torch.stack(gradients).flatten(2), dim=-1, eps=1e-10)
        of_pairs = directions.sum(0).square().sum(-1) - directions.square().sum((0, 2))
        return of_pairs / (len(networks) - 1)


@method("An et al. 2021 (EDAC), arXiv 2110.01548", needs=(NUMBERS, STEP_REWARDS),
        when="if there are many episodes with rewards and no environment; 10 critics cost time.")
def edac(n_critics: int = 10, diversity_weight: float = 1.0, features: Schema | None = None) -> Method:
    """EDAC: soft actor-critic that doubts actions on which many critics differ, and keeps the critics apart.

    Args:
        n_critics: Number of critics. The smallest score counts.
        diversity_weight: Weight of the similarity of the critics' gradients (eta). 0 is SAC-N, with more critics.
    """
    learner = DiverseCritics(critic=CriticConfig(n_critics=n_critics), bc_weight=0.0, policy_delay=1, temperature=1.0,
                             target_entropy=-1.0, diversity_weight=diversity_weight)
    return critic_method(SquashedGaussian(), learner, features, FeedForward((256, 256)))
