"""Base classes of goal-conditioned methods: goals, networks that read them, and losses."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from ...checkpoint import BuiltModule
from ...core import (
    Above,
    AtLeast,
    AtMost,
    Batch,
    Below,
    ConfigError,
    DataError,
    Schema,
    Unsupported,
    is_read_by_default,
    part,
    unknown_name,
)
from ...data.batch_sampler import BatchSampler
from ...data.codec import CodecModule, Normalizer
from ...data.column_changes import ConstantColumn
from ...data.episode import Dataset
from ...data.window import Goal, SamplingWeights, Subgoal, Window
from ...execute.planners import PlannerWrapper, Unresolved
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward, feed_forward_layers
from ...policy import Planner, Policy, PolicyConfig
from ..algorithm import Algorithm, MetricBound, Net, loss
from ..critic import CriticConfig, CriticSpec
from ..method import Method
from ..optimizer import OptimizerConfig
from ..targets import MeanBound

VALUE_GOAL = "observation.value_goal"
MAX_WEIGHT = 100.0  # of a step in weighted cloning

Observations = Mapping[str, Tensor]


@part
class GoalConditioned(Algorithm):
    """Base class of methods whose policy reads a goal, the only one of its window.

    Args:
        critic: The networks that learn besides the policy.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=lambda: CriticConfig((256, 256, 256), layer_norm=True))

    next_obs = True

    def method(self, features: Schema | None = None, column: str = "observation.state") -> Method:
        """Returns the method of this learner.

        Args:
            column: The column whose later values are goals.
        """
        return goal_conditioned_method(self, column, features)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        self.critic.check_no_subset()
        window, name = policy.window, type(self).__name__
        if len(window.goals) != 1 or not isinstance(window.goals[0], Goal):
            raise ConfigError(f"the policy has {len(window.goals)} goals, but this learner needs one", where=name,
                              hint='such as PolicyConfig(..., window=Window(goals=(Goal("observation.state"),)))')
        if (window.horizon, window.action_offset, window.obs_offset) != (1, 0, 0):
            raise Unsupported(f"values are those of single steps, but the window is {window}", where=name,
                              hint="use a horizon of 1 and no offsets")
        if window.n_obs_steps > 1 and goal_of(policy).into not in policy.inputs:
            raise Unsupported(f"the vector in place of the goal is that of one observation, but the window has "
                              f"{window.n_obs_steps}", where=name, hint="use n_obs_steps=1")
        return {"policy": Net(policy, self.optimizer)}

    def drawn_goals(self, policy: Policy) -> tuple[Goal | Subgoal, ...]:
        """Returns the goals that batches have, besides the goal of the policy's window."""
        return ()

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        return policy.training_windows(data, next_obs=self.next_obs, sampling_weights=weights,
                                       goals=self.drawn_goals(policy))


def goal_of(policy: Policy) -> Goal:
    """Returns the goal of a goal-conditioned policy."""
    return cast(Goal, policy.window.goals[0])


def toward(policy: Policy, obs: Observations, column: str) -> dict[str, Tensor]:
    """Returns the observations with the values of another column as the goal of the policy."""
    return {**obs, goal_of(policy).into: obs[column]}


def check_goals(data: Dataset) -> None:
    """Raises DataError if no step has a later step that could be its goal."""
    if all(len(episode) < 2 for episode in data):
        raise DataError("no episode has two steps, so that no step has a later one that could be its goal",
                        where=data.metadata.get("path", "data set"),
                        hint="train on longer episodes, or clone the actions: understudy train bc DATA --out RUN")


@part
class GoalValues(GoalConditioned):
    """Base class of methods with values V(s, g): the discounted sum of rewards -1 until a goal is reached.

    The values learn from other goals than the policy, of the same column: the current row, rows at a geometric
    distance, and rows of all episodes.

    Args:
        discount: Discount per step, also of the distance of the values' goals. 1 draws these distances uniformly.
        p_curgoal: Fraction of the values' goals that are the current row.
        p_randomgoal: Fraction of the values' goals that are any row of any episode.

    References:
        Park et al. (2025), OGBench: Benchmarking Offline Goal-Conditioned RL, arXiv:2410.20092. Its networks normalize
        hidden layers after the activation function, which is GELU. These are ReLU networks that normalize before it.
    """

    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.2
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.3

    def drawn_goals(self, policy):
        discount = self.discount if self.discount < 1 else None
        return (replace(goal_of(policy), into=VALUE_GOAL, discount=discount, p_curgoal=self.p_curgoal,
                        p_randomgoal=self.p_randomgoal, p_pastgoal=0.0, max_steps=None),)

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"value/score": self.value_bound()}

    def value_bound(self) -> MeanBound:
        """Returns the bound of mean values. With a discount of 1 there is none."""
        return MeanBound(1 / (1 - self.discount) if self.discount < 1 else 0.0)


def goal_conditioned_method(learner: GoalConditioned, column: str, features: Schema | None) -> Method:
    """Builds a method whose policy reads observations and a goal, which may be numbers, classes, images or text.

    Args:
        column: The column whose later values are goals.
        features: The columns of the data, if they are known. Classes as actions get a `Categorical` head.
    """
    head, encoder = choose_head(features, Gaussian(std=1.0)), simplest_encoder(features)
    policy = PolicyConfig(head, FeedForward((256, 256, 256), "gelu"), encoder, window=Window(goals=(Goal(column),)))
    return Method(policy, learner=replace(learner, critic=replace(learner.critic, encoder=encoder)))


def goal_vector_method(learner: GoalConditioned, column: str, features: Schema | None, vector: str, size: int,
                       planner: PlannerWrapper) -> Method:
    """Builds a method whose policy reads a vector in place of the goal, which a planner computes while acting.

    Args:
        column: The column whose later values are goals.
        vector: The column of the vector, and `size` its number of components.
    """
    if features is not None and column not in features:  # `vector` would be named as one of the columns otherwise
        raise unknown_name("column", column, sorted(features), "data set")
    method = goal_conditioned_method(learner, column, features)
    states = (name for name, feature in (features or {}).items()
              if is_read_by_default(name, feature) and name != Goal(column).into)
    inputs = (*(tuple(sorted(states)) or (column,)), vector)
    return replace(method, policy=replace(method.policy, codec=Normalizer(unscaled=(vector,)), inputs=inputs),
                   transforms=(ConstantColumn(vector, (0.0,) * size),), inference=(planner,))


def on_sphere(vectors: Tensor) -> Tensor:
    """Scales vectors (..., D) to the norm sqrt(D)."""
    return math.sqrt(vectors.shape[-1]) * normalize(vectors, dim=-1)


@part
class ImplicitValues(GoalValues):
    """Base class of methods whose values are learned without a critic, by expectile regression.

    Args:
        target_decay: Fraction of the target networks that each update keeps.
        expectile: Which expectile of the values of next states is learned. 0.5 is their mean.
    """

    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    expectile: Annotated[float, Above(0), Below(1)] = 0.9

    @abstractmethod
    def values(self, nets: Any, network: Any, obs: Observations, goal: str) -> Tensor:
        """Returns the values of reaching a goal by the value network or its target, (networks, B)."""

    def values_of_both(self, nets: Any, network: Any, obs: Observations, later: Observations, goal: str
                       ) -> tuple[Tensor, ...]:
        """Returns the values of two batches of observations, (networks, B) each, by one pass of the network."""
        both = {k: torch.cat([obs[k], later[k]]) for k in obs if k in later}
        return self.values(nets, network, both, goal).chunk(2, -1)

    def regression(self, nets: Any, network: Any, target_network: Any, batch: Batch
                   ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the expectile loss of the value networks, (B,), and the values.

        The errors are weighted by the sign of the advantage of a step, which the target networks estimate.
        """
        assert batch.next is not None
        reached = batch.extra[f"{VALUE_GOAL}.reached"].squeeze(1)
        reward, discount = reached.float() - 1, self.discount * ~reached
        with torch.no_grad():
            target, next_target = self.values_of_both(nets, target_network, batch.obs, batch.next, VALUE_GOAL)
        advantage = reward + discount * next_target.amin(0) - target.mean(0)
        score = self.values(nets, network, batch.obs, VALUE_GOAL)
        error = reward + discount * next_target - score
        weight = torch.where(advantage >= 0, self.expectile, 1 - self.expectile)
        return (weight * error.square()).sum(0), {"score": score.mT}

    @torch.no_grad()
    def advantage_weights(self, nets: Any, obs: Observations, later: Observations, goal: str, alpha: float) -> Tensor:
        """Returns the weight of each step in weighted cloning, exp(alpha * (V(later) - V(obs))), (B, 1)."""
        before, after = self.values_of_both(nets, nets.value, obs, {**later, goal: obs[goal]}, goal)
        advantage = (after - before).mean(0)
        return (alpha * advantage).exp().clamp(max=MAX_WEIGHT).unsqueeze(1)


class ScoreMaximizing(GoalConditioned):
    """Base class of methods whose policy maximizes a score of its actions, and stays close to the stored actions.

    Attributes:
        alpha: Weight of the loss of the stored actions, relative to a score of mean absolute value 1.
    """

    alpha: float

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared = super().networks(policy, data)
        if policy.target.kind == "discrete":
            raise Unsupported("the actions are classes, but the gradient of a score is that of numbers",
                              where=type(self).__name__, hint="train gcivl or hiql, which learn classes too")
        return declared

    @abstractmethod
    def score(self, nets: Any, obs: Observations, coded_action: Tensor) -> Tensor:
        """Returns scores of coded actions, (B, 1, A), for the goal of the policy, (B,)."""

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns minus the normalized score of the planned actions, plus `alpha` times the loss of the stored ones."""
        coded, loss = nets.policy.sample_and_loss(batch, rng)
        score = self.score(nets, batch.obs, nets.policy.clip(coded))
        score = score / (score.detach().abs().mean() + 1e-6)
        return self.alpha * loss - score.unsqueeze(1)


@dataclass(frozen=True)
class GoalVector(PlannerWrapper):
    """Base class of planners that give a policy a vector in place of the goal.

    Args:
        column: The column whose values are goals.

    Attributes:
        vector: The column of the vector.
    """

    planner: Planner | Unresolved = None
    column: str = "observation.state"
    goal: str = "observation.goal"

    vector: ClassVar[str]

    @property
    def inputs(self):
        return (*(name for name in self.planner.inputs if name != self.vector), self.goal)

    @property
    def features(self):
        return {**self.planner.features, self.goal: self.planner.features[self.column]}

    @abstractmethod
    def with_vector(self, obs: Observations) -> dict[str, Tensor]:
        """Returns the observations with the vector in place of the goal."""

    def plan(self, obs, noise, guides=()):
        return self.planner.plan(self.with_vector(obs), noise, guides)

    def context(self, obs):
        return self.planner.context(self.with_vector(obs))


@dataclass(frozen=True)
class RepresentationSpec:
    """Settings and columns that determine a `Representation`, without its weights.

    Args:
        critic: The networks, and the policy whose codec they share.
        columns: The columns that are read.
        sizes: Widths of the hidden layers and of the vectors.
        n_actions: Number of numbers of an action that is read too. 0 for none.
    """

    critic: CriticSpec
    columns: tuple[str, ...]
    sizes: tuple[int, ...]
    n_actions: int = 0
    n_networks: int = 1


class Representation(BuiltModule):
    """Networks that map columns that a policy reads, and possibly an action, to vectors."""

    kind, description = "representation", RepresentationSpec

    def __init__(self, about: RepresentationSpec, features: Schema, codec: CodecModule | None = None):
        super().__init__(about, features)
        spec = about.critic
        self.codec = spec.codec.build(features, spec.inputs, spec.target) if codec is None else codec
        read = {k: features[k] for k in about.columns}
        encoders = [spec.networks.encoder.build(read, spec.window.n_obs_steps) for _ in range(about.n_networks)]
        self.encoders, self.layers = nn.ModuleList(encoders), nn.ModuleList(
            feed_forward_layers((encoder.tokens * encoder.width + about.n_actions, *about.sizes),
                                layer_norm=spec.networks.layer_norm) for encoder in encoders)

    @staticmethod
    def of(policy: Policy, networks: CriticConfig, columns: Sequence[str], size: int, *, n_actions: int = 0,
           n_networks: int = 1) -> Representation:
        """Builds networks that share the codec of a policy."""
        networks.check_no_quantiles()
        config = policy.config
        spec = CriticSpec(networks, config.codec, config.window, policy.inputs, config.target)
        about = RepresentationSpec(spec, tuple(columns), (*networks.hidden, size), n_actions, n_networks)
        return Representation(about, policy.features, policy.codec)

    def forward(self, obs: Observations, coded_action: Tensor | None = None) -> Tensor:
        """Returns the vectors, (networks, B, size), for coded actions, (B, 1, A), if they are read."""
        coded = self.codec.encode_obs(obs)
        coded = {name: coded[name] for name in self.about.columns}
        action = [] if coded_action is None else [coded_action.flatten(1)]
        return torch.stack([layers(torch.cat([encoder(coded).flat(), *action], -1))
                            for encoder, layers in zip(self.encoders, self.layers, strict=True)])
