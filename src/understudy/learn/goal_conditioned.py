"""What goal-conditioned learners share: the goals of values, networks that read goals, and losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ..core import AtLeast, AtMost, Batch, ConfigError, DataError, Schema, Unsupported, part
from ..data.episode import Dataset
from ..data.window import Goal, SamplingWeights, Subgoal, Window
from ..heads.categorical import Categorical
from ..heads.gaussian import Gaussian
from ..nets.encoders import simplest_encoder
from ..nets.feed_forward import FeedForward, feed_forward_layers
from ..policy import Policy, PolicyConfig
from .critic import CriticConfig
from .fit import LearnerConfig
from .gradient_learner import GradientLearner
from .method import Method
from .optimizer import OptimizerConfig

VALUE_GOAL = "observation.value_goal"
MAX_WEIGHT = 100.0  # of a step in weighted cloning

Observations = Mapping[str, Tensor]


@part
class GoalConditioned(LearnerConfig):
    """Settings of a learner of values V(s, g): the discounted sum of rewards -1 until a goal is reached.

    The policy's window has one goal, which is what the policy learns to reach. The values learn from other goals of the
    same column: the current row, rows at a geometric distance, and rows of all episodes.

    Args:
        discount: Discount per step, also of the distance of the values' goals.
        p_curgoal: Fraction of the values' goals that are the current row.
        p_randomgoal: Fraction of the values' goals that are any row of any episode.
        critic: The networks of values and critics.

    References:
        Park et al. (2025), OGBench: Benchmarking Offline Goal-Conditioned RL, arXiv:2410.20092. Its networks normalize
        hidden layers after the activation function, which is GELU. These are ReLU networks that normalize before it.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=lambda: CriticConfig((256, 256, 256), layer_norm=True))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    p_curgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.2
    p_randomgoal: Annotated[float, AtLeast(0), AtMost(1)] = 0.3

    next_obs = True


def goal_conditioned_method(learner: GoalConditioned, column: str, features: Schema | None) -> Method:
    """A method whose policy reads observations and a goal, which may be numbers, classes, images or text.

    Args:
        column: The column whose later values are goals.
        features: The columns of the data, if they are known. Classes as actions get a `Categorical` head.
    """
    action, encoder = (features or {}).get("action"), simplest_encoder(features)
    head = Categorical() if action is not None and action.kind == "discrete" else Gaussian(std=1.0)
    policy = PolicyConfig(head, FeedForward((256, 256, 256), "gelu"), encoder, window=Window(goals=(Goal(column),)))
    return Method(policy, learner=replace(learner, critic=replace(learner.critic, encoder=encoder)))


class GoalConditionedLearner(GradientLearner):
    """Base class of goal-conditioned learners.

    Attributes:
        goal: The goal of the policy.
        drawn_goals: The goals that batches have, besides the goal of the policy's window.
    """

    config: GoalConditioned

    def __init__(self, config: GoalConditioned, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        window, name = policy.window, type(config).__name__
        if len(window.goals) != 1 or not isinstance(window.goals[0], Goal):
            raise ConfigError(f"the policy has {len(window.goals)} goals, but this learner needs one", where=name,
                              hint='such as PolicyConfig(..., window=Window(goals=(Goal("observation.state"),)))')
        if (window.horizon, window.action_offset, window.obs_offset) != (1, 0, 0):
            raise Unsupported(f"values are those of single steps, but the window is {window}", where=name,
                              hint="use a horizon of 1 and no offsets")
        self.goal: Goal = window.goals[0]
        self.drawn_goals: tuple[Goal | Subgoal, ...] = (
            replace(self.goal, into=VALUE_GOAL, discount=config.discount or None, p_curgoal=config.p_curgoal,
                    p_randomgoal=config.p_randomgoal, p_pastgoal=0.0, max_steps=None),)

    def batch_sampler(self, data: Dataset, sampling_weights: SamplingWeights | None = None):
        if all(len(episode) < 2 for episode in data):
            raise DataError("no episode has two steps, so that no step has a later one that could be its goal",
                            where=data.metadata.get("path", "data set"),
                            hint="train on longer episodes, or clone the actions: understudy train bc DATA --out RUN")
        return self.policy.training_windows(data, next_obs=self.config.next_obs, sampling_weights=sampling_weights,
                                            goals=self.drawn_goals)

    def toward(self, obs: Observations, column: str) -> dict[str, Tensor]:
        """The observations, with the values of another column as the goal."""
        return {**obs, self.goal.into: obs[column]}


class ImplicitValueLearner(GoalConditionedLearner):
    """Base class of learners with a value function that is learned without a critic, by expectile regression.

    A subclass registers the networks "value", with a target network.
    """

    value: Any
    target_value: Any
    expectile: float

    @abstractmethod
    def values(self, network: Any, obs: Observations, goal: str) -> Tensor:
        """Values of reaching a goal, (networks, B).

        Args:
            network: `value` or `target_value`.
            goal: The column of the goal.
        """

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the expectile loss of the value networks, (B,).

        The errors are weighted by the sign of the advantage of a step, which the target networks estimate.
        """
        assert batch.next is not None
        reached = batch.extra[f"{VALUE_GOAL}.reached"].squeeze(1)
        reward, discount = reached.float() - 1, self.config.discount * ~reached
        with torch.no_grad():
            target = self.values(self.target_value, batch.obs, VALUE_GOAL)
            next_target = self.values(self.target_value, batch.next, VALUE_GOAL)
        advantage = reward + discount * next_target.amin(0) - target.mean(0)
        error = reward + discount * next_target - self.values(self.value, batch.obs, VALUE_GOAL)
        weight = torch.where(advantage >= 0, self.expectile, 1 - self.expectile)
        return (weight * error.square()).sum(0)

    @torch.no_grad()
    def advantage_weights(self, obs: Observations, later: Observations, goal: str, alpha: float) -> Tensor:
        """Returns the weight of each step in weighted cloning, exp(alpha * (V(later) - V(obs))), (B, 1)."""
        later = {**later, goal: obs[goal]}
        advantage = (self.values(self.value, later, goal) - self.values(self.value, obs, goal)).mean(0)
        return (alpha * advantage).exp().clamp(max=MAX_WEIGHT).unsqueeze(1)


class ScoreMaximizingLearner(GoalConditionedLearner):
    """Base class of learners whose policy maximizes a score of its actions, and stays close to the stored actions.

    Attributes:
        alpha: Weight of the loss of the stored actions, relative to a score of mean absolute value 1.
    """

    alpha: float

    def __init__(self, config: GoalConditioned, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        if policy.target.kind == "discrete":
            raise Unsupported("the actions are classes, but the gradient of a score is that of numbers",
                              where=type(config).__name__, hint="train gcivl or hiql, which learn classes too")

    @abstractmethod
    def score(self, obs: Observations, coded_action: Tensor) -> Tensor:
        """Scores of actions for the goal of the policy, (B,).

        Args:
            coded_action: Coded actions, (B, 1, A).
        """

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns minus the normalized score of the planned actions, plus `alpha` times the loss of the stored ones."""
        policy, context = self.policy, self.policy.context(batch.obs)
        noise = torch.randn(len(batch), *policy.noise_shape, generator=rng, device=self.device)
        coded, bound = policy.config.head.sample(policy.net, context, noise), policy.codec.bound
        score = self.score(batch.obs, coded if bound is None else coded.clamp(-bound, bound))
        score = score / (score.detach().abs().mean() + 1e-6)
        return self.alpha * policy.loss(batch, rng) - score.unsqueeze(1)


class Representation(nn.Module):
    """Networks from columns that a policy reads, and possibly an action, to vectors.

    Args:
        policy: Its codec is shared.
        columns: The columns that are read.
        sizes: Widths of the hidden layers and of the vectors.
        n_actions: Number of numbers of an action that is read too. 0 for none.
        n_networks: Number of networks.
    """

    def __init__(self, policy: Policy, critic: CriticConfig, columns: Sequence[str], sizes: Sequence[int],
                 n_actions: int = 0, n_networks: int = 1):
        super().__init__()
        self.codec, self.columns = policy.codec, tuple(columns)
        features = {k: policy.features[k] for k in columns}
        encoders = [critic.encoder.build(features, policy.window.n_obs_steps) for _ in range(n_networks)]
        self.encoders, self.layers = nn.ModuleList(encoders), nn.ModuleList(
            feed_forward_layers((encoder.tokens * encoder.width + n_actions, *sizes), layer_norm=critic.layer_norm)
            for encoder in encoders)

    def forward(self, obs: Observations, coded_action: Tensor | None = None) -> Tensor:
        """Returns the vectors, (networks, B, width).

        Args:
            coded_action: Coded actions, (B, 1, A).
        """
        coded = self.codec.encode_obs(obs)
        coded = {name: coded[name] for name in self.columns}
        action = [] if coded_action is None else [coded_action.flatten(1)]
        return torch.stack([layers(torch.cat([encoder(coded).flat(), *action], -1))
                            for encoder, layers in zip(self.encoders, self.layers, strict=True)])
