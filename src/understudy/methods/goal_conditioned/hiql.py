from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Below, ConfigError, Schema, part
from ...data.codec import Normalizer
from ...data.episode import Dataset
from ...data.window import Subgoal
from ...execute.planners import Hierarchical, PlannerWrapper, Unresolved
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import Net, loss
from ...learn.critics.goal_conditioned import (
    ImplicitValues,
    Observations,
    Representation,
    goal_of,
    goal_vector_method,
    on_sphere,
    toward,
)
from ...learn.method import Method
from ...policy import Planner, Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method

SUBGOAL = "observation.subgoal"  # a vector, which the low-level policy reads
NEAR_GOAL = "observation.near_goal"  # the observation that it stands for, in training


@method("Park et al. 2023 (HIQL), arXiv 2307.11949, with the networks of OGBench, arXiv 2410.20092",
        needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if a goal is given while acting, and goals are far.")
@part
class HIQL(ImplicitValues):
    """Hierarchical implicit Q-learning: a policy proposes subgoals on the way to a goal, and another one reaches them.

    One value function trains both: V(s, r(s, g)), where the vector r(s, g) is a learned representation of a goal. The
    high-level policy predicts the representation of the observation that follows in `subgoal_steps` steps. The
    low-level policy, which is the policy of the method, reads it in the column `SUBGOAL`.

    Args:
        low_alpha: Inverse temperature of the weights of the low-level policy.
        high_alpha: Inverse temperature of the weights of the high-level policy.
        subgoal_steps: Number of steps to a subgoal.

    References:
        Park et al. (2023), HIQL: Offline Goal-Conditioned RL with Latent States as Actions, arXiv:2307.11949.
    """

    expectile: Annotated[float, Above(0), Below(1)] = 0.7
    low_alpha: Annotated[float, AtLeast(0)] = 3.0
    high_alpha: Annotated[float, AtLeast(0)] = 3.0
    subgoal_steps: Annotated[int, AtLeast(1)] = 25

    def method(self, features: Schema | None = None, column: str = "observation.state", latent_dim: int = 10) -> Method:
        """Returns the method of this learner.

        Args:
            column: The column whose later values are goals.
            latent_dim: Number of components of a representation.
        """
        planner = Hierarchical(UnitSubgoals("high"), as_key=SUBGOAL)
        return goal_vector_method(self, column, features, SUBGOAL, latent_dim, planner)

    def later(self, policy: Policy) -> dict[str, str]:
        """Returns for each observation column the name of the column that has its values at the subgoal."""
        return {k: f"{k}.later" for k in policy.inputs if k != SUBGOAL}

    def drawn_goals(self, policy):
        goal, n_steps = goal_of(policy), self.subgoal_steps
        return (goal, *super().drawn_goals(policy), Subgoal(goal.column, NEAR_GOAL, n_steps),
                *(Subgoal(k, later, n_steps, goal.into) for k, later in self.later(policy).items()))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared, goal = super().networks(policy, data), goal_of(policy).into
        if SUBGOAL not in policy.inputs or goal in policy.inputs:
            raise ConfigError(f"the low-level policy reads {', '.join(policy.inputs)}, but it must read {SUBGOAL!r} in "
                              f"place of {goal!r}", where="PolicyConfig.inputs",
                              hint=f"name the observations and {SUBGOAL!r}, as the method hiql does")
        config = replace(policy.config, head=Gaussian(std=1.0), codec=Normalizer(target="identity"),
                         inputs=(*self.later(policy), goal), target=SUBGOAL)
        high = Policy(config, data.features()).fit_statistics(data)
        representation = Representation.of(high, self.critic, high.inputs, policy.features[SUBGOAL].size)
        value = self.critic.build(policy, action=False)
        return {"high": Net(high, self.optimizer), **declared,
                "value": Net(value, self.optimizer, target=self.target_decay),
                "representation": Net(representation, trained_with="value")}

    def represent(self, nets: Any, obs: Observations, goal: str) -> Tensor:
        """Returns representations of goals, (B, 1, D), of length sqrt(D)."""
        return on_sphere(nets.representation(toward(nets.policy, obs, goal))[0]).unsqueeze(1)

    def values(self, nets, network, obs, goal):
        return network.scores({**obs, SUBGOAL: self.represent(nets, obs, goal)})

    @loss("policy")
    def low_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the stored actions, given the observation that follows some steps later."""
        assert batch.next is not None
        weights = self.advantage_weights(nets, batch.obs, batch.next, NEAR_GOAL, self.low_alpha)
        subgoal = self.represent(nets, batch.obs, NEAR_GOAL).detach()
        return weights * nets.policy.loss(batch.replace(obs={**batch.obs, SUBGOAL: subgoal}), rng)

    @loss("high")
    def high_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the representation of what follows some steps later, on the way to the goal."""
        obs, goal, columns = batch.obs, goal_of(nets.policy), self.later(nets.policy)
        later = {k: obs[column] for k, column in columns.items()}
        weights = self.advantage_weights(nets, obs, later, goal.into, self.high_alpha)
        target = self.represent(nets, obs, columns[goal.column]).detach()
        return weights * nets.high.loss(batch.replace(action=target), rng)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.regression(nets, nets.value, nets.target.value, batch)


@dataclass(frozen=True)
class UnitSubgoals(PlannerWrapper):
    """Planner that scales planned subgoals to the length that representations of goals have."""

    planner: Planner | Unresolved = None

    def plan(self, obs, noise, guides=()):
        return on_sphere(self.planner.plan(obs, noise, guides))
