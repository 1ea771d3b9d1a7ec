from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...core import AtLeast, AtMost, Batch, part
from ...data.episode import Dataset
from ...learn.algorithm import MetricBound, Net, loss
from ...learn.critics.goal_conditioned import VALUE_GOAL, GoalValues, Representation, ScoreMaximizing, goal_of, toward
from ...learn.targets import MeanBound
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method

CERTAIN = 10.0  # logit at which the probability of an error is 5e-5


@method("Eysenbach et al. 2022 (contrastive RL), arXiv 2206.07568, with the losses of OGBench, arXiv 2410.20092",
        needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting, and episodes of the data go from where it starts to where it has to go.")
@part
class CRL(ScoreMaximizing, GoalValues):
    """Contrastive reinforcement learning: a critic tells where a step leads, and the policy maximizes it for a goal.

    The critic learns to tell the future of a step from the futures of other steps. Its score is phi(s, a) . psi(g) /
    sqrt(D). This estimates the logarithm of a ratio of two densities of g: as an observation that follows the step at a
    geometric distance, and as a goal of any step.

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

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared, networks, goal = super().networks(policy, data), self.critic, goal_of(policy).into
        networks.check_own_encoders()
        states = [k for k in policy.inputs if k != goal]
        phi = Representation.of(policy, networks, states, self.latent_dim, n_actions=policy.codec.width,
                                n_networks=networks.n_critics)
        psi = Representation.of(policy, networks, (goal,), self.latent_dim, n_networks=networks.n_critics)
        return {**declared, "critic": Net(nn.ModuleList([phi, psi]), self.optimizer)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic/logit": MeanBound(
            CERTAIN, name="the logits of the critic", reason="it is certain of a goal at",
            hint="lower --optimizer.lr, or normalize the networks (--critic.layer-norm True)")}

    def score(self, nets, obs, coded_action):
        phi, psi = nets.critic
        return (phi(obs, coded_action) * psi(obs)).sum(-1).amin(0) / math.sqrt(self.latent_dim)

    def logits(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the scores of each step for the goals of all steps of the batch, (networks, B, B)."""
        obs, (phi, psi) = toward(nets.policy, batch.obs, VALUE_GOAL), nets.critic
        return phi(obs, nets.policy.encode_batch(batch)) @ psi(obs).mT / math.sqrt(self.latent_dim)

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean cross-entropy of a step with the goals of all steps in the batch, (B,)."""
        logits = self.logits(nets, batch)
        own_goal = torch.eye(len(batch), device=logits.device).expand_as(logits)
        losses = binary_cross_entropy_with_logits(logits, own_goal, reduction="none")
        return losses.mean((0, 2)), {"logit": logits.abs().mean((0, 2))}
