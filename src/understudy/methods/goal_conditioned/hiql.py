from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Below, ConfigError, Schema, part
from ...data.codec import Normalizer
from ...data.episode import Dataset
from ...data.window import Subgoal
from ...execute.planners import Hierarchical, PlannerWrapper, Unresolved
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.goal_conditioned import (
    GoalValues,
    ImplicitValueLearner,
    Representation,
    goal_vector_method,
    on_sphere,
)
from ...learn.method import Method
from ...policy import Planner, Policy
from ..needs import GIVEN_GOAL, NUMBERS_OR_CLASSES
from ..registry import method

SUBGOAL = "observation.subgoal"  # a vector, which the low-level policy reads
NEAR_GOAL = "observation.near_goal"  # the observation that it stands for, in training


@part
class HIQL(GoalValues):
    """Hierarchical implicit Q-learning: one value function trains a policy of subgoals and a policy of actions.

    The value is V(s, r(s, g)), where the vector r(s, g) is a learned representation of a goal. The high-level policy
    predicts the representation of the observation that follows in `subgoal_steps` steps. The low-level policy, which is
    the policy of the method, reads it in the column `SUBGOAL`.

    Args:
        target_decay: Fraction of the target networks that each update keeps.
        expectile: Which expectile of the values of next states is learned.
        low_alpha: Inverse temperature of the weights of the low-level policy.
        high_alpha: Inverse temperature of the weights of the high-level policy.
        subgoal_steps: Number of steps to a subgoal.

    References:
        Park et al. (2023), HIQL: Offline Goal-Conditioned RL with Latent States as Actions, arXiv:2307.11949.
    """

    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    expectile: Annotated[float, Above(0), Below(1)] = 0.7
    low_alpha: Annotated[float, AtLeast(0)] = 3.0
    high_alpha: Annotated[float, AtLeast(0)] = 3.0
    subgoal_steps: Annotated[int, AtLeast(1)] = 25

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> HIQLLearner:
        return HIQLLearner(self, policy, seed, steps, data)


class HIQLLearner(ImplicitValueLearner):
    """Learner of `HIQL`."""

    config: HIQL

    def __init__(self, config: HIQL, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        self.expectile, goal = config.expectile, self.goal
        if SUBGOAL not in policy.inputs or goal.into in policy.inputs:
            raise ConfigError(f"the low-level policy reads {', '.join(policy.inputs)}, but it must read {SUBGOAL!r} in "
                              f"place of {goal.into!r}", where="PolicyConfig.inputs",
                              hint=f"name the observations and {SUBGOAL!r}, as the method hiql does")
        self.states = tuple(k for k in policy.inputs if k != SUBGOAL)
        self.later = {k: f"{k}.later" for k in self.states}  # columns of the observation at the high-level target
        self.drawn_goals = (goal, *self.drawn_goals, Subgoal(goal.column, NEAR_GOAL, config.subgoal_steps), *(
            Subgoal(k, later, config.subgoal_steps, goal.into) for k, later in self.later.items()))
        high = replace(policy.config, head=Gaussian(std=1.0), codec=Normalizer(target="identity"),
                       inputs=(*self.states, goal.into), target=SUBGOAL)
        self.high = self.register("high", Policy(high, data.features()).fit_statistics(data), config.optimizer)
        self.register("policy", policy, config.optimizer)
        size = policy.features[SUBGOAL].size
        self.representation = Representation.of(self.high, config.critic, self.high.inputs, size)
        self.value = self.register("value", config.critic.build(policy, action=False), config.optimizer,
                                   auxiliary=[self.representation])
        self.target_value = self.target_network("value", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.low_loss, batch)
        self.minimize("high", self.high_loss, batch)
        self.minimize("value", self.value_loss, batch)
        return self.end_update()

    def represent(self, obs, goal: str) -> Tensor:
        """Representations of goals, (B, 1, D), of length sqrt(D)."""
        return on_sphere(self.representation(self.toward(obs, goal))[0]).unsqueeze(1)

    def values(self, network, obs, goal):
        return network.scores({**obs, SUBGOAL: self.represent(obs, goal)})

    def low_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the stored actions, given the observation that follows some steps later."""
        assert batch.next is not None
        weights = self.advantage_weights(batch.obs, batch.next, NEAR_GOAL, self.config.low_alpha)
        subgoal = self.represent(batch.obs, NEAR_GOAL).detach()
        return weights * self.policy.loss(batch.replace(obs={**batch.obs, SUBGOAL: subgoal}), rng)

    def high_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted loss of the representation of what follows some steps later, on the way to the goal."""
        obs, goal = batch.obs, self.goal.into
        later = {k: obs[column] for k, column in self.later.items()}
        weights = self.advantage_weights(obs, later, goal, self.config.high_alpha)
        target = self.represent(obs, self.later[self.goal.column]).detach()
        return weights * self.high.loss(batch.replace(action=target), rng)


@dataclass(frozen=True)
class UnitSubgoals(PlannerWrapper):
    """Gives planned subgoals the length that representations of goals have."""

    planner: Planner | Unresolved = None

    def plan(self, obs, noise, guides=()):
        return on_sphere(self.planner.plan(obs, noise, guides))


@method("Park et al. 2023 (HIQL), arXiv 2307.11949, with the networks of OGBench, arXiv 2410.20092",
        needs=(NUMBERS_OR_CLASSES, GIVEN_GOAL),
        when="if a goal is given while acting, and goals are far.")
def hiql(column: str = "observation.state", subgoal_steps: int = 25, latent_dim: int = 10,
         features: Schema | None = None) -> Method:
    """Hierarchical implicit Q-learning: a policy proposes subgoals on the way to a goal, and another one reaches them.

    Args:
        subgoal_steps: Number of steps to a subgoal.
    """
    planner = Hierarchical(UnitSubgoals("high"), as_key=SUBGOAL)
    return goal_vector_method(HIQL(subgoal_steps=subgoal_steps), column, features, SUBGOAL, latent_dim, planner)
