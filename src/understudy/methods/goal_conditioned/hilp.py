from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from ...core import Above, AtLeast, AtMost, Batch, Below, ConfigError, Schema, part
from ...data.episode import Dataset
from ...data.window import Goal
from ...execute.planners import Unresolved
from ...learn.critics.goal_conditioned import (
    MAX_WEIGHT,
    GoalValues,
    GoalVector,
    ImplicitValueLearner,
    Representation,
    goal_vector_method,
)
from ...learn.method import Method
from ...learn.targets import expectile_loss
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method

DIRECTION = "observation.direction"  # a unit vector, which the policy reads


@part
class HILP(GoalValues):
    """Foundation policies with Hilbert representations.

    The value of reaching g from s is -||phi(s) - phi(g)||, so that distances of phi are numbers of steps. The policy
    learns to move in every direction z of this space, with the reward (phi(s') - phi(s)) . z, by implicit Q-learning.
    While acting, z is the direction of phi(g) - phi(s).

    phi reads the goal's column alone.

    Args:
        target_decay: Fraction of the target networks that each update keeps.
        expectile: Which expectile of the values of next states phi learns.
        skill_expectile: Which expectile of the critic's scores the value of directions learns.
        alpha: Inverse temperature of the weights of cloning.

    References:
        Park et al. (2024), Foundation Policies with Hilbert Representations, arXiv:2402.15567. New directions are
        drawn in each update. The published figures come from code that draws them once.
    """

    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    expectile: Annotated[float, Above(0), Below(1)] = 0.95
    skill_expectile: Annotated[float, Above(0), Below(1)] = 0.9
    alpha: Annotated[float, AtLeast(0)] = 10.0
    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.375

    validates = False

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> HILPLearner:
        return HILPLearner(self, policy, seed, steps)


class HILPLearner(ImplicitValueLearner):
    """Learner of `HILP`."""

    config: HILP

    def __init__(self, config: HILP, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        self.expectile, networks, goal = config.expectile, config.critic, self.goal
        if DIRECTION not in policy.inputs or goal.into in policy.inputs:
            raise ConfigError(f"the policy reads {', '.join(policy.inputs)}, but it must read {DIRECTION!r} in place "
                              f"of {goal.into!r}", where="PolicyConfig.inputs",
                              hint=f"name the observations and {DIRECTION!r}, as the method hilp does")
        self.drawn_goals = (goal, *self.drawn_goals)
        size = policy.features[DIRECTION].size
        phi = Representation.of(policy, networks, (goal.column,), size, n_networks=networks.n_critics)
        self.register("policy", policy, config.optimizer)
        self.critic = self.register("critic", networks.build(policy), config.optimizer)
        self.skill_value = self.register("value", replace(networks, n_critics=1).build(policy, action=False),
                                         config.optimizer)
        self.value = self.register("phi", phi, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.target_value = self.target_network("phi", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        assert batch.next is not None
        shape, rng = (len(batch), 1, self.policy.features[DIRECTION].size), self.generator(self.processes.rank)
        direction = {DIRECTION: normalize(torch.randn(shape, generator=rng, device=self.device), dim=-1)}
        batch = batch.replace(obs={**batch.obs, **direction}, next={**batch.next, **direction})
        self.minimize("policy", self.policy_loss, batch)
        self.minimize("critic", self.critic_loss, batch)
        self.minimize("value", self.skill_value_loss, batch)
        self.minimize("phi", self.value_loss, batch)
        return self.end_update()

    def values(self, network, obs, goal):
        apart = represent(network, obs, self.goal.column, self.goal.column) - represent(
            network, obs, self.goal.column, goal)
        return -apart.square().sum(-1).clamp(min=1e-6).sqrt()

    def reward(self, batch: Batch) -> Tensor:
        """How far a step leads in its direction, (B,)."""
        column = self.goal.column
        now, later = (represent(self.value, obs, column, column)[0] for obs in (batch.obs, batch.next))
        return ((later - now) * batch.obs[DIRECTION].squeeze(1)).sum(-1)

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error against the reward and the value that follows, summed over the networks, (B,)."""
        assert batch.next is not None
        with torch.no_grad():
            target = self.reward(batch) + self.config.discount * self.skill_value(batch.next, batch.action)
        scores = self.critic.scores(batch.obs, batch.action)
        self.log(score=scores.mT)
        return (scores - target).square().sum(0)

    def skill_value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the expectile loss against the lowest score of the stored action, (B,)."""
        with torch.no_grad():
            score = self.target_critic(batch.obs, batch.action)
        return expectile_loss(score - self.skill_value(batch.obs, batch.action), self.config.skill_expectile)

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the stored actions, (B, 1)."""
        with torch.no_grad():
            advantage = self.target_critic(batch.obs, batch.action) - self.skill_value(batch.obs, batch.action)
        weights = (self.config.alpha * advantage).exp().clamp(max=MAX_WEIGHT)
        return weights.unsqueeze(1) * self.policy.loss(batch, rng)


def represent(phi: Representation, obs, column: str, of: str) -> Tensor:
    """Representations of the values of the column `of`, (networks, B, D). `column` is what the networks read."""
    return phi({**obs, column: obs[of]})


@dataclass(frozen=True)
class GoalDirection(GoalVector):
    """Gives a policy the direction from the observation to the goal in the space of a representation.

    Args:
        phi: The representation.
    """

    phi: Representation | Unresolved = "phi"

    module_types = MappingProxyType({"phi": Representation})
    vector = DIRECTION

    def with_vector(self, obs):
        size = self.planner.features[DIRECTION].size
        blank = {**obs, DIRECTION: torch.zeros(*obs[self.goal].shape[:2], size, device=obs[self.goal].device)}
        here, there = (represent(self.phi, blank, self.column, of)[0] for of in (self.column, self.goal))
        return {**obs, DIRECTION: normalize(there - here, dim=-1).unsqueeze(1)}


@method("Park et al. 2024 (HILP), arXiv 2402.15567", rows=("306",), needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if one policy reaches goals and maximizes rewards that are named later, and data have no rewards.")
def hilp(column: str = "observation.state", latent_dim: int = 32, alpha: float = 10.0,
         features: Schema | None = None) -> Method:
    """Hilbert foundation policy: moves in any direction of a space whose distances are numbers of steps.

    Args:
        latent_dim: Number of dimensions of the space.
        alpha: Inverse temperature of the weights of cloning. 0 clones all steps equally.
    """
    planner = GoalDirection(column=column, goal=Goal(column).into)
    return goal_vector_method(HILP(alpha=alpha), column, features, DIRECTION, latent_dim, planner)
