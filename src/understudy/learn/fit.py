"""The training loop, and the interfaces of learners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor

from ..checkpoint import CheckpointModule
from ..core import Batch, DataError, UserError, replaceable
from ..data.batch_sampler import BatchSampler, SourcesSampler
from ..data.episode import Dataset
from ..data.mixture import expert_episodes
from ..data.window import SamplingWeights
from ..policy import Policy


class LearnerConfig(ABC):
    """Config of how a method learns. Subclasses are frozen dataclasses.

    Attributes:
        steps: Number of updates.
        batch_size: Number of windows in each batch.
        extra: Further columns that batches need in `Batch.extra`.
        next_obs: Whether batches need `Batch.next`, the observation window after the lookahead.
        lookahead: Number of rows that `extra` covers, and after which `next` is taken. 0 means the horizon.
        compares: Whether each batch of collected episodes comes with a batch of demonstrations,
            `Batch.others["expert"]` (see `mixture.expert_episodes`). While there are only demonstrations, both batches
            consist of demonstrations.
        needs_others: Whether a learner that compares needs episodes that are not demonstrations.
        validates: Whether the error on held-out episodes says how good the policy is. It does not if the policy reads a
            column that the episodes lack, such as a vector that names what to do.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # subclasses are dataclasses
    steps: int
    batch_size: int
    extra: tuple[str, ...] = ()
    next_obs: bool = False
    lookahead: int = 0
    compares: bool = False
    needs_others: bool = False
    validates: bool = True

    @abstractmethod
    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> Learner:
        """Builds the learner.

        Args:
            seed: Seed of noise and dropout.
            steps: Number of updates that will be made, for schedules.
            data: The training data. What the learner computes from them must depend on the data alone or be part of
                its state, because a resumed run builds the learner again before it restores it.
        """


class Learner(ABC):
    """Base class of learners, which train a policy.

    The randomness of an update is a function of the learner's seed and of the number of updates made. Its state
    therefore is only what it has learned.
    """

    config: LearnerConfig
    policy: Policy

    @property
    @abstractmethod
    def trained_policy(self) -> Policy:
        """The policy to act with: the one with averaged weights, if the learner keeps them."""

    @property
    def modules(self) -> dict[str, CheckpointModule]:
        """The modules that a checkpoint stores, by name. "policy" is the one that acts. Others, such as a critic, are
        stored with it, for planners and for later stages."""
        return {"policy": self.trained_policy}

    def initialize(self, name: str, source: CheckpointModule) -> None:
        """Gives one of the modules, other than the policy, the weights of a module that a stage trained.

        Args:
            name: Its name in `modules`.

        Raises:
            UserError: There is no such module, or the weights do not fit it.
        """
        raise UserError(f"the learner has no module {name!r} that takes weights over", where="InitializeFrom.into",
                        hint="leave this InitializeFrom out")

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, float]:
        """Makes one update.

        Args:
            batch: This process's part of the batch. With one process, all of it.

        Returns:
            Metrics to log. "loss" is shown by the progress bar.

        Raises:
            UserError: A loss or gradient is not finite. The message names the update.
        """

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns everything that an update depends on: tensors, and metadata as JSON."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restores a state of the learner. Later updates are bit-equal to those of the learner that returned it."""

    def batch_sampler(self, data: Dataset, sampling_weights: SamplingWeights | None = None) -> BatchSampler:
        """Returns the sampler of the batches that this learner needs: windows of the policy, by default.

        Args:
            sampling_weights: Relative rate at which each step starts a window. None draws all steps equally often.

        Raises:
            UserError: The learner compares with demonstrations, and there are none.
        """
        config = self.config

        def windows(episodes: Dataset) -> BatchSampler:
            return self.policy.training_windows(episodes, extra=self.batch_columns, next_obs=config.next_obs,
                                                lookahead=config.lookahead, sampling_weights=sampling_weights)
        if not config.compares:
            return windows(data)
        own, expert = own_and_expert(data)
        if not len(expert):
            raise no_demonstrations(data)
        return SourcesSampler(windows(own), {"expert": windows(expert)})

    def annotate(self, episodes: Dataset, round: int | None) -> Dataset:
        """Adds columns to episodes, such as rewards, advantages or old log-probabilities.

        It is called once for the first episodes, before any sampler of batches is built, and once for the episodes of
        each collection round. The result is stored, so that a resumed training does not call it again. Returns the
        episodes as they are, by default.

        Args:
            round: Number of the collection round, from 0. None for the episodes that are there before any is collected.
        """
        return episodes

    @property
    def batch_columns(self) -> tuple[str, ...]:
        """The columns that batches have in `Batch.extra`: those of the config, and those that `annotate` adds."""
        return self.config.extra

    @property
    def annotates(self) -> bool:
        """Whether the class has its own `annotate`."""
        return type(self).annotate is not Learner.annotate


def own_and_expert(data: Dataset) -> tuple[Dataset, Dataset]:
    """Splits episodes into other ones and demonstrations. Without others, both parts are the demonstrations."""
    expert = expert_episodes(data)
    own = sorted(set(range(len(data))) - set(expert)) or expert
    return data.select(own), data.select(expert)


def no_demonstrations(data: Dataset) -> DataError:
    """Builds the error about data without a demonstration, for a learner that compares with them."""
    return DataError(f"none of the {len(data)} episodes is a demonstration of an expert",
                     where=data.metadata.get("path") or "data set",
                     hint="give demonstrations as DATA and the other episodes as --prior, and label no demonstration "
                          "expert=false")


Callback = Callable[[int, Learner, dict[str, float]], None]  # called with (updates made, learner, metrics)


@replaceable
def fit(learner: Learner, batch: Callable[[int], Batch], steps: int, *, start: int = 0,
        callbacks: Iterable[Callback] = ()) -> None:
    """Runs the training loop: makes the updates from number `start` to `steps - 1`.

    Args:
        batch: `batch(n)` is batch number n. It is a function, so that a run resumes at any update.
        steps: Number of updates in all.
        start: Number of updates that the learner has made.

    Example:
        >>> sampler = learner.batch_sampler(data)
        >>> fit(learner, lambda n: sampler.batch(128, n, seed=0), steps=1000)
    """
    for step in range(start, steps):
        metrics = learner.update(batch(step))
        for callback in callbacks:
            callback(step + 1, learner, metrics)
