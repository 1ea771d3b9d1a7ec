from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from ...core import Above, AtLeast, AtMost, Batch, Below, ConfigError, Schema, part
from ...data.episode import Dataset
from ...data.window import Goal
from ...execute.planners import Unresolved
from ...learn.algorithm import MetricBound, Net, loss, prepare
from ...learn.critics.goal_conditioned import (
    MAX_WEIGHT,
    GoalVector,
    ImplicitValues,
    Observations,
    Representation,
    goal_of,
    goal_vector_method,
)
from ...learn.method import Method
from ...learn.targets import expectile_loss
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method

DIRECTION = "observation.direction"  # a unit vector, which the policy reads


@method("Park et al. 2024 (HILP), arXiv 2402.15567", rows=("306",), needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if one policy reaches goals and maximizes rewards that are named later, and data have no rewards.")
@part
class HILP(ImplicitValues):
    """Hilbert foundation policy: moves in any direction of a space whose distances are numbers of steps.

    The value of reaching g from s is -||phi(s) - phi(g)||, so that distances of phi are numbers of steps. The policy
    learns to move in every direction z of this space, with the reward (phi(s') - phi(s)) . z, by implicit Q-learning.
    While acting, z is the direction of phi(g) - phi(s).

    phi reads the goal's column alone.

    Args:
        expectile: Which expectile of the values of next states phi learns.
        skill_expectile: Which expectile of the critic's scores the value of directions learns.
        alpha: Inverse temperature of the weights of cloning. 0 clones all steps equally.

    References:
        Park et al. (2024), Foundation Policies with Hilbert Representations, arXiv:2402.15567. New directions are
        drawn in each update. The published figures come from code that draws them once.
    """

    expectile: Annotated[float, Above(0), Below(1)] = 0.95
    skill_expectile: Annotated[float, Above(0), Below(1)] = 0.9
    alpha: Annotated[float, AtLeast(0)] = 10.0
    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.0
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.375

    validates = False

    def method(self, features: Schema | None = None, column: str = "observation.state", latent_dim: int = 32) -> Method:
        """Returns the method of this learner.

        Args:
            column: The column whose later values are goals.
            latent_dim: Number of dimensions of the space.
        """
        planner = GoalDirection(column=column, goal=Goal(column).into)
        return goal_vector_method(self, column, features, DIRECTION, latent_dim, planner)

    def drawn_goals(self, policy):
        return (goal_of(policy), *super().drawn_goals(policy))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared, goal = super().networks(policy, data), goal_of(policy)
        if DIRECTION not in policy.inputs or goal.into in policy.inputs:
            raise ConfigError(f"the policy reads {', '.join(policy.inputs)}, but it must read {DIRECTION!r} in place "
                              f"of {goal.into!r}", where="PolicyConfig.inputs",
                              hint=f"name the observations and {DIRECTION!r}, as the method hilp does")
        phi = Representation.of(policy, self.critic, (goal.column,), policy.features[DIRECTION].size,
                                n_networks=self.critic.n_critics)
        critic, value = self.critic.build(policy), replace(self.critic, n_critics=1).build(policy, action=False)
        return {**declared, "critic": Net(critic, self.optimizer, target=self.target_decay),
                "value": Net(value, self.optimizer), "phi": Net(phi, self.optimizer, target=self.target_decay)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic/score": self.value_bound(), "phi/score": self.value_bound()}

    def values(self, nets, network, obs, goal):
        column = goal_of(nets.policy).column
        apart = represent(network, obs, column, column) - represent(network, obs, column, goal)
        return -apart.square().sum(-1).clamp(min=1e-6).sqrt()

    def reward(self, nets: Any, batch: Batch) -> Tensor:
        """Returns how far each step leads in its direction, (B,), the reward."""
        assert batch.next is not None
        column = goal_of(nets.policy).column
        now, later = (represent(nets.phi, obs, column, column)[0] for obs in (batch.obs, batch.next))
        return ((later - now) * batch.obs[DIRECTION].squeeze(1)).sum(-1)

    @prepare
    def directed(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Gives each row a random direction, with its observation and its next one."""
        assert batch.next is not None
        shape = len(batch), 1, nets.policy.features[DIRECTION].size
        drawn = {DIRECTION: normalize(torch.randn(shape, generator=rng, device=batch.mask.device), dim=-1)}
        return batch.replace(obs={**batch.obs, **drawn}, next={**batch.next, **drawn})

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        with torch.no_grad():
            advantage = nets.target.critic(batch.obs, batch.action) - nets.value(batch.obs, batch.action)
        weights = (self.alpha * advantage).exp().clamp(max=MAX_WEIGHT)
        return weights.unsqueeze(1) * nets.policy.loss(batch, rng)

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the squared error against the reward and the value that follows, summed over the networks, (B,)."""
        assert batch.next is not None
        with torch.no_grad():
            target = self.reward(nets, batch) + self.discount * nets.value(batch.next, batch.action)
        scores = nets.critic.scores(batch.obs, batch.action)
        return (scores - target).square().sum(0), {"score": scores.mT}

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the expectile loss against the lowest score of the stored action, (B,)."""
        with torch.no_grad():
            score = nets.target.critic(batch.obs, batch.action)
        return expectile_loss(score - nets.value(batch.obs, batch.action), self.skill_expectile)

    @loss("phi")
    def phi_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.regression(nets, nets.phi, nets.target.phi, batch)


def represent(phi: Representation, obs: Observations, column: str, of: str) -> Tensor:
    """Returns representations of the values of the column `of`, (networks, B, D).

    `column` is the one that the networks read.
    """
    return phi({**obs, column: obs[of]})


@dataclass(frozen=True)
class GoalDirection(GoalVector):
    """Planner that gives a policy the direction from observation to goal in the space of a representation.

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
