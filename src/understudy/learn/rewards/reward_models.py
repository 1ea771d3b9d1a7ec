"""Base classes of reward models, learned or computed from demonstrations, and of learners that use them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from ...checkpoint import BuiltModule, FromStage, Scorer
from ...core import Batch, ConfigError, DataWarning, Schema, UserError, part
from ...data.codec import Codec, CodecModule
from ...data.episode import Dataset
from ...data.mixture import expert_episodes
from ...data.window import Window
from ...policy import Policy
from ..algorithm import Engine
from ..fit import LearnerConfig
from ..gradient_learner import GradientLearner
from ..optimizer import OptimizerConfig
from ..targets import REWARD, TERMINATED

METRICS_EVERY = 100  # updates: what is only logged may take as long as the rest of the update


class RewardModelConfig(ABC):
    """Config of how a reward model is built and trained. Subclasses are frozen dataclasses.

    Attributes:
        optimizer: Optimizer of the model. None: it is not trained.
        extra: Further columns that batches need.
        compares: Whether it needs demonstrations beside each batch: see `LearnerConfig`.
        reads_density: Whether its loss reads `extra["log_prob"]`, the log-density of the policy at each action, (B, H).
        learner_discount: The discount that a learner must have. None for any.
        is_biased_by_ends: Whether its sign says how long to live, where the environment ends episodes.
    """

    optimizer: OptimizerConfig | None = None
    extra: tuple[str, ...] = (TERMINATED,)
    compares: ClassVar[bool] = True
    reads_density: bool = False
    learner_discount: float | None = None
    is_biased_by_ends: bool = False

    @abstractmethod
    def build(self, policy: Policy, data: Dataset) -> RewardModel:
        """Builds the model for what a policy reads.

        Args:
            data: The training data before any are collected.
        """

    def objective_weights(self, inputs: Iterable[str]) -> tuple[float, ...]:
        """Returns the weight of each objective of the model, for a policy with these inputs: see `RewardModel`."""
        return (1.0,)

    def check(self, inputs: Iterable[str], features: Schema) -> None:
        """Raises UserError if a policy with these inputs cannot have the reward. It is called before stages train."""


@dataclass(frozen=True)
class RewardSpec:
    """Settings and columns that determine a reward model, without its weights. `target` is the action column."""

    config: RewardModelConfig
    codec: Codec
    window: Window
    inputs: tuple[str, ...]
    target: str

    @staticmethod
    def of(config: RewardModelConfig, policy: Policy) -> RewardSpec:
        """Builds the spec of a reward model that reads what a policy reads."""
        return RewardSpec(config, policy.config.codec, policy.window, policy.inputs, policy.config.target)


class RewardModel(BuiltModule, Scorer):
    """A reward model, which replaces `next.reward`. As a scorer it gives the reward of a plan's first step.

    Attributes:
        annotations: Columns that `annotate` adds to episodes, and that batches then have.

    Args:
        features: The columns that it reads, and the target.
        codec: Codec module to share with a policy. None builds a new one without statistics.
    """

    kind, description = "reward", RewardSpec
    annotations: tuple[str, ...] = ()

    def __init__(self, about: RewardSpec, features: Schema, codec: CodecModule | None = None):
        super().__init__(about, features)
        self.inputs = about.inputs
        self.codec = about.codec.build(features, about.inputs, about.target) if codec is None else codec

    def loss(self, own: Batch, expert: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the reward model for each row, (B,). Only a model with an optimizer needs it.

        Args:
            own: What the policy did.
            expert: As many rows of demonstrations.
        """
        raise NotImplementedError

    @abstractmethod
    def reward(self, batch: Batch, policy: Policy | None) -> Tensor:
        """Returns the reward of each step, (B, H).

        Args:
            policy: The policy that learns, for a reward that depends on it. None where nothing learns.
        """

    def objectives(self, batch: Batch, policy: Policy | None) -> Tensor:
        """Returns the reward of the first step for each objective, (B, K), for learners that keep them apart."""
        return self.reward(batch, policy)[:, :1]

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Returns metrics of the rewards of a batch, besides their mean, for every hundredth update."""
        return {}

    def check_columns(self, features: Schema, where: str) -> None:
        """Raises UserError if the columns of data or of an environment are not those that the model reads."""
        for name in (*self.inputs, self.about.target):
            own, other = self.features[name], features.get(name)
            place = f"{where}, column {name!r}"
            if other is None or own.shape != other.shape:
                raise UserError(f"the reward model reads a column of shape {own.shape}, but " + (
                                "there is none" if other is None else f"this one has {other.shape}"),
                                where=place, hint="name a reward model of the same columns")
            if own.kind != other.kind:
                raise UserError(f"the reward model reads a column of kind {own.kind!r}, but this one is of kind "
                                f"{other.kind!r}", where=place, hint="name a reward model of the same columns")
            if (problem := own.disagreement(other)) is not None:
                raise UserError(f"the reward model was trained with {problem}", where=place,
                                hint="bring the components into one order and unit")

    def annotate(self, episodes: Dataset) -> Dataset:
        """Adds the columns `annotations` to episodes, for a reward that depends on whole episodes."""
        return episodes


@part
class ConstantReward(RewardModelConfig):
    """Reward model with one reward for all steps of demonstrations, and another for all other steps (SQIL).

    `CollectionRounds.mixture_weights` decides how many rows of each batch are of demonstrations.

    References:
        Reddy et al. (2020), SQIL: Imitation Learning via Reinforcement Learning with Sparse Rewards, arXiv:1905.11108.
    """

    expert: float = 1.0
    own: float = 0.0
    compares = False

    def build(self, policy, data):
        return _ConstantReward(RewardSpec.of(self, policy), policy.features, policy.codec)


class _ConstantReward(RewardModel):
    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        self.config: ConstantReward = about.config

    def reward(self, batch, policy):
        config = self.config
        is_own = batch.extra["dataset_index"] > 0 if "dataset_index" in batch.extra else torch.zeros_like(batch.mask)
        return torch.where(is_own, config.own, config.expert).expand(batch.mask.shape)

    def check_columns(self, features, where):
        """Raises an error: in data of a run or an environment it is not known which steps are demonstrated."""
        raise UserError("this reward says whose a step is, not how good it is", where=f"{where}, reward model",
                        hint="name a run that trains one, such as one of dac, gail or airl")

    def forward(self, obs, plan):
        return plan.new_full((len(plan),), self.config.own)


class RewardedConfig(LearnerConfig):
    """Base class of configs with a field `reward`, a reward model."""

    reward: RewardModelConfig | FromStage | None
    needs_others = True

    def check_discount(self, discount: float) -> None:
        """Raises ConfigError if the reward model sums later rewards with another discount than the learner."""
        if isinstance(self.reward, RewardModelConfig) and self.reward.learner_discount not in (None, discount):
            raise ConfigError(f"it is {discount:g}, but the reward sums what follows an end with "
                              f"{self.reward.learner_discount:g}", where=f"{type(self).__name__}.discount",
                              hint=f"set both: --discount {discount:g} --reward.discount {discount:g}")

    def objective_weights(self, inputs: Iterable[str]) -> tuple[float, ...]:
        """Returns the weight of each objective of the reward, for a policy with these inputs."""
        config = self.reward.about.config if isinstance(self.reward, RewardModel) else self.reward
        return config.objective_weights(inputs) if isinstance(config, RewardModelConfig) else (1.0,)

    @property
    def extra(self):
        return self.reward.extra if isinstance(self.reward, RewardModelConfig) else (REWARD, TERMINATED)

    @property
    def compares(self):
        return isinstance(self.reward, RewardModelConfig) and self.reward.compares


class RewardedLearner(GradientLearner):
    """Base class of learners whose config has a field `reward`, a reward model."""

    config: RewardedConfig
    reward: RewardModel | None = None
    warns_of_ends = False  # once, if the environment ends episodes of the policy

    def register_reward(self, data: Dataset) -> None:
        """Builds the reward model of the config, if there is one. A model from a stage is used as it is."""
        config = self.config.reward
        if isinstance(config, RewardModelConfig):
            self.reward = self.register("reward", config.build(self.policy, data), config.optimizer)
            self.warns_of_ends = config.is_biased_by_ends and not demonstrations_end(data)
            if config.optimizer is None and any(p.requires_grad for p in self.reward.parameters()):
                raise ConfigError(f"{type(config).__name__} has networks, and this learner does not train them",
                                  where="learner.reward",
                                  hint="train it first, and name its run: --reward RUN")
        elif isinstance(config, RewardModel):
            self.reward = self.register("reward", config)

    def with_rewards(self, batch: Batch) -> Batch:
        """Trains the reward model, and returns the batch with its rewards as `next.reward`."""
        if self.reward is None:
            return batch
        batch = batch.to(self.device)
        config = self.reward.about.config
        if "reward" in self.optimizers:
            if config.reads_density:
                batch = self._with_density(batch).replace(others={
                    name: self._with_density(other) for name, other in batch.others.items()})
            self.minimize("reward", self.reward_loss, batch)
        with self.evaluation():
            reward = self.reward.reward(batch, self.policy)
            self._record("reward", mean=float(reward.mean()))
            if (self.n_updates + 1) % METRICS_EVERY == 0:
                self._warn_of_ends(batch)
                with torch.enable_grad():
                    self._record("reward", **self.reward.metrics(batch))
        return batch.replace(extra={**batch.extra, REWARD: reward})

    def _warn_of_ends(self, batch: Batch) -> None:
        assert self.reward is not None
        if self.warns_of_ends and bool(batch.extra[TERMINATED].any()):
            self.warns_of_ends = False
            warn_of_ends(type(self.reward.about.config).__name__)

    def reward_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the reward model, (B,)."""
        assert self.reward is not None
        return self.reward.loss(batch, batch.others["expert"], rng)

    def annotate(self, episodes, round):
        return episodes if self.reward is None else self.reward.annotate(episodes)

    @property
    def annotates(self):
        return self.reward is not None and bool(self.reward.annotations)

    @property
    def batch_columns(self):
        return (*super().batch_columns, *(self.reward.annotations if self.reward is not None else ()))

    def _with_density(self, batch: Batch) -> Batch:
        with self.evaluation():
            coded = self.policy.encode_batch(batch)
            density = self.policy.log_prob(self.policy.context(batch.obs), coded, batch.mask)
        return batch.replace(extra={**batch.extra, "log_prob": density})


class RewardedEngine(Engine, RewardedLearner):
    """Learner of an `Algorithm` whose field `reward` may have a reward model. Losses read it as `nets.reward`."""

    def register_networks(self, data: Dataset) -> None:
        super().register_networks(data)
        self.register_reward(data)

    def update(self, batch: Batch) -> dict[str, float]:
        return super().update(self.with_rewards(batch))


def demonstrations_end(data: Dataset) -> bool:
    """Returns whether the environment ended one of the demonstrations."""
    return any(np.any(data[i].steps[TERMINATED]) for i in expert_episodes(data) if TERMINATED in data[i].steps)


def warn_of_ends(name: str) -> None:
    """Warns that only the policy's episodes end, not demonstrations, and that a learned reward ignores it."""
    warnings.warn(
        "the environment ends episodes of the policy (next.terminated), and no demonstration ends. What follows an end "
        f"has no reward of {name}, so that the policy may learn to end early, or to live long, however it moves. dac "
        "has no such bias, nor has an environment whose episodes all last until the limit (FixedHorizonEnv).",
        DataWarning, stacklevel=3)
