"""Interface between a method and data collection, which adds episodes during training.

The loop itself is in `understudy.improve.collection`, above environments and rollouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.batch_sampler import BatchSampler
from ..data.episode import Dataset
from ..data.window import SamplingWeights
from ..execute.actor import Actor
from ..policy import Policy
from .devices import Processes
from .fit import Learner


class Training(ABC):
    """A training to which a `DataCollection` adds episodes. `train` and `fit_method` provide it.

    Attributes:
        data: The training episodes that are there before any is collected, after the method's transforms.
        stored: The episodes that stay in the replay buffer. A `DataCollection` sets it before it collects.
        env: The environment to collect in, an `understudy.envs.Env`. None if there is none.
        person: The actor through which a person acts. None if there is none.
        folder: Where collected episodes are stored. None to keep them in memory.
        processes: The processes that train together. Only the first of them collects.
        n_updates: Number of updates made, over all rounds.
    """

    data: Dataset
    stored: Dataset
    seed: int
    env: Any
    person: Actor | None
    folder: Path | None
    processes: Processes
    learner: Learner
    n_updates: int

    @abstractmethod
    def restore(self) -> None:
        """Gives the learner the state of the checkpoint that the training resumes from. Does nothing in a new one."""

    @abstractmethod
    def build_learner(self, data: Dataset) -> None:
        """Replaces the learner by a new one, whose policy has the statistics of `data` and new initial weights."""

    @abstractmethod
    def annotated(self, data: Dataset) -> Dataset:
        """Returns the first episodes with the columns that the learner adds, which are computed once and stored."""

    @abstractmethod
    def actor(self, policy: Policy | None = None) -> Actor:
        """Returns the actor that the method deploys.

        Args:
            policy: Acts in place of the learner's policy, which has the present weights.
        """

    def best_policy(self) -> Policy | None:
        """Returns the policy of the best checkpoint so far. None if no checkpoints are stored."""
        return None

    @abstractmethod
    def transform(self, episodes: Dataset) -> Dataset:
        """Applies the method's transforms to episodes."""

    @abstractmethod
    def update(self, sampler: BatchSampler, until: int, *, evaluate: bool = True,
               meanwhile: Callable[[], None] | None = None) -> None:
        """Makes updates until there are `until` of them, and stores a checkpoint.

        Args:
            sampler: Source of the batches. Batch number n is for update number n.
            until: Number of updates after this call, over all rounds.
            evaluate: Whether the checkpoint is evaluated, unless the training was told after how many updates it is to
                evaluate.
            meanwhile: Called while another process makes the updates. The learner stays as it is meanwhile, and no
                checkpoint is stored before the last update.
        """

    @abstractmethod
    def log(self, **metrics: float) -> None:
        """Stores metrics of the present number of updates, and passes them to the callbacks.

        Metrics that an interrupted training has already stored are not stored again.
        """


class DataCollection(ABC):
    """Config of how new episodes are collected while a policy trains. Subclasses are frozen dataclasses.

    Attributes:
        sampling_weights: Takes the place of the weights of a mixture. None if a mixture is refused.
        learns_first_data: Whether updates read the episodes that were there before the first round. If not, they may be
            a mixture for stages.
    """

    sampling_weights: SamplingWeights | None = None
    learns_first_data: bool = True

    @abstractmethod
    def check(self, env: Any, person: Actor | None) -> None:
        """Raises UserError if something that collecting needs is missing: see `Training.env` and `Training.person`."""

    def scaled(self, factor: float, updates: int) -> DataCollection:
        """Returns the collection of a training with a multiple of the updates. By default it is the same.

        Args:
            updates: Number of all updates, including the updates before the first round.
        """
        return self

    def describe(self) -> str:
        """Returns how many updates and rounds there are, in words."""
        return "collects episodes"

    @abstractmethod
    def initial_data(self, data: Dataset) -> Dataset:
        """Returns the training episodes that exist before any is collected."""

    @abstractmethod
    def run(self, training: Training) -> None:
        """Collects episodes and trains on them, from the beginning or from where the training resumes."""
