from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import AtLeast, Batch, Schema, part
from ...data.column_changes import ConstantColumn
from ...data.episode import Dataset
from ...data.window import Goal, Window
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...improve.updates import PerNewStep
from ...learn.algorithm import MetricBound, loss
from ...learn.method import Method
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method
from .crl import CRL


@method("Liu, Tang and Eysenbach 2024 (SGCRL), arXiv 2408.05804, with this library's networks and scale of scores",
        needs=(NUMBERS, GIVEN_GOAL, "an environment"),
        when="if there is one goal that is far away, no reward, no demonstration that reaches it, and an environment.")
@part
class SGCRL(CRL):
    """Single-goal contrastive reinforcement learning: practices for one hard goal until it is reached, without rewards.

    Each collected episode is commanded the same goal. The critic and the policy learn from goals that were reached: the
    critic from later states of the same episode, the policy half from such states and half from states of other
    episodes.

    Args:
        logsumexp_weight: Weight of the squared log of the sum of a step's exponential scores, which keeps them small.

    References:
        Liu et al. (2024), A Single Goal is All You Need: Skills and Exploration Emerge from Contrastive RL without
        Rewards, Demonstrations, or Subgoals, arXiv:2408.05804.
    """

    logsumexp_weight: Annotated[float, AtLeast(0)] = 0.01
    alpha: Annotated[float, AtLeast(0)] = 0.0

    def method(self, features: Schema | None = None, column: str = "observation.state", goal: tuple[float, ...] = (),
               n_rounds: int = 100, n_steps: int = 1000, updates_per_step: float = 1.0) -> Method:
        """Returns the method of this learner.

        Args:
            column: The column whose later values are goals.
            goal: The commanded goal, in the units of the column. Empty for the goal that the environment shows.
        """
        method = super().method(features, column)
        window = Window(goals=(drawn := Goal(column, p_randomgoal=0.5, discount=self.discount),))
        collector = RolloutCollector(n_steps=n_steps, exploration=TemperatureExploration())
        return replace(method, policy=replace(method.policy, head=SquashedGaussian(), window=window),
                       transforms=(ConstantColumn(drawn.into, goal),) if goal else (),
                       collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {}  # scores of goals that are not reached may be as low as they like

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns minus the normalized score of drawn actions, plus `alpha` times the loss of the stored ones, (B, 1).

        Nothing rewards the entropy of the density from which actions are drawn.
        """
        coded, _ = nets.policy.sample_log_prob(nets.policy.context(batch.obs), rng)
        score = self.score(nets, batch.obs, nets.policy.clip(coded))
        score = score / (score.detach().abs().mean() + 1e-6)
        return self.alpha * nets.policy.loss(batch, rng) - score.unsqueeze(1)

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the cross-entropy of which goal of the batch each step leads to, (B,)."""
        logits = self.logits(nets, batch)
        normalizer = logits.logsumexp(2)
        losses = normalizer - logits.diagonal(dim1=1, dim2=2) + self.logsumexp_weight * normalizer.square()
        return losses.mean(0), {"logit": logits.abs().mean((0, 2))}
