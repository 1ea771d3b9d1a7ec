from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...core import AtLeast, AtMost, Batch, Schema, part
from ...data.episode import Dataset
from ...learn.critics.goal_conditioned import (
    VALUE_GOAL,
    GoalValues,
    Representation,
    ScoreMaximizingLearner,
    goal_conditioned_method,
)
from ...learn.method import Method
from ...learn.targets import check_bounded
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method

CERTAIN = 10.0  # logit at which the probability of an error is 5e-5


@part
class CRL(GoalValues):
    """Contrastive reinforcement learning: a critic that tells the future of a step from that of other steps.

    The critic is phi(s, a) . psi(g) / sqrt(D). It learns the log ratio of the density of a future observation, at a
    geometric distance, to that of a goal in general.

    Args:
        latent_dim: Number of components of phi and psi, D.
        alpha: Weight of the loss of the stored actions, relative to a score of mean absolute value 1.

    References:
        Eysenbach et al. (2022), Contrastive Learning as Goal-Conditioned Reinforcement Learning, arXiv:2206.07568.
    """

    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    latent_dim: Annotated[int, AtLeast(1)] = 64
    alpha: Annotated[float, AtLeast(0)] = 0.1

    next_obs = False

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> CRLLearner:
        return CRLLearner(self, policy, seed, steps)


class CRLLearner(ScoreMaximizingLearner):
    """Learner of `CRL`."""

    config: CRL

    def __init__(self, config: CRL, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        config.critic.check_own_encoders()
        self.alpha, goal, networks = config.alpha, self.goal.into, config.critic
        size, n_networks = config.latent_dim, networks.n_critics
        states = [k for k in policy.inputs if k != goal]
        self.phi = Representation.of(policy, networks, states, size, n_actions=policy.codec.width,
                                     n_networks=n_networks)
        self.psi = Representation.of(policy, networks, (goal,), size, n_networks=n_networks)
        self.register("policy", policy, config.optimizer)
        self.register("critic", nn.ModuleList([self.phi, self.psi]), config.optimizer)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.policy_loss, batch)
        self.minimize("critic", self.critic_loss, batch)
        metrics = self.end_update()
        check_bounded(metrics["critic/logit"], CERTAIN, self.n_updates, name="the logits of the critic",
                      reason="it is certain of a goal at", hint="lower --learner.optimizer.lr, or normalize the "
                      "networks (--learner.critic.layer-norm True)")
        return metrics

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the mean cross-entropy of a step with the goals of all steps in the batch, (B,)."""
        obs = self.toward(batch.obs, VALUE_GOAL)
        phi, psi = self.phi(obs, self.policy.encode_batch(batch)), self.psi(obs)
        logits = phi @ psi.mT / math.sqrt(self.config.latent_dim)  # (networks, steps, goals)
        self.log(logit=logits.abs().mean((0, 2)))
        own_goal = torch.eye(len(batch), device=self.device).expand_as(logits)
        return binary_cross_entropy_with_logits(logits, own_goal, reduction="none").mean((0, 2))

    def score(self, obs, coded_action):
        return (self.phi(obs, coded_action) * self.psi(obs)).sum(-1).amin(0) / math.sqrt(self.config.latent_dim)


@method("Eysenbach et al. 2022 (contrastive RL), arXiv 2206.07568, with the losses of OGBench, arXiv 2410.20092",
        needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, and episodes of the data go from where it starts to where it has to go.")
def crl(column: str = "observation.state", alpha: float = 0.1, features: Schema | None = None) -> Method:
    """Contrastive reinforcement learning: a critic tells where a step leads, and the policy maximizes it for a goal."""
    return goal_conditioned_method(CRL(alpha=alpha), column, features)
