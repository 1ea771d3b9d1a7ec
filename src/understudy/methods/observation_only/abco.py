from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ...core import Schema, UserError, part
from ...data.episode import Dataset, Episode
from ...data.mixture import ROUND
from ...heads.likelihood.categorical import Categorical
from ...improve.collection import CollectionRounds
from ...improve.retention import LastRounds
from ...learn.cloning.cloning_from_observation import BehaviorCloningFromObservation, action_classes
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ..needs import PRACTICE, SOME_ACTIONS
from ..registry import method
from .bco import bco


@method("Monteiro et al. 2020 (ABCO), arXiv 2004.13529, without attention, which is a linear layer for one vector",
        rows=("204",), needs=(SOME_ACTIONS, PRACTICE, "an environment that tells success"),
        when="if demonstrations have no actions, and the environment says whether an episode succeeded.")
@part
class ABCO(BehaviorCloningFromObservation):
    """BCO whose inverse dynamics model learns from successful practice, with all classes of actions equally often.

    It also learns from the first practice. The fraction of each batch that collected episodes are is their success
    rate. With `balance_classes` this is so for each class of actions, where collected episodes have it, and all classes
    are drawn equally often.

    Args:
        balance_classes: Draw all classes of actions equally often. Actions that are numbers are not balanced.

    References:
        Monteiro et al. (2020), Augmented Behavioral Cloning from Observation, arXiv:2004.13529, where classes are as
        frequent as in successful episodes.
    """

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, lr_schedule="constant"))
    balance_classes: bool = True

    def method(self, features: Schema | None = None, n_rounds: int = 10, n_episodes: int = 10) -> Method:
        """Returns the method of this learner.

        Args:
            n_rounds: Number of rounds in which the policy collects further practice.
        """
        method = bco(n_rounds, n_episodes, features)
        assert isinstance(method.collection, CollectionRounds)
        balances = self.balance_classes and isinstance(method.policy.head, Categorical)
        return replace(method, learner=replace(self, balance_classes=balances),
                       collection=replace(method.collection, retention=LastRounds(1, keep_initial=True)))

    def practice_weights(self, practice: Dataset) -> SuccessWeights:
        by_class = self.balance_classes
        rate = np.mean([_succeeded(e) for e in practice if ROUND in e.metadata] or [0.0])
        return SuccessWeights(Counter(kind for e in practice for kind in _kinds(e, by_class)), float(rate), by_class)


@dataclass(frozen=True)
class SuccessWeights:
    """Sampling weights of practice steps, which balance the classes of actions and leave out failures.

    Args:
        counts: Number of steps of each kind: whether they were collected, and their action if there are classes.
        rate: Success rate of collected episodes.
    """

    counts: Mapping[tuple[int, ...], int]
    rate: float
    by_class: bool

    def __call__(self, episode: Episode) -> np.ndarray:
        kinds = _kinds(episode, self.by_class)
        return np.array([self._weight(*kind) for kind in kinds]) if kinds else np.zeros(len(episode))

    def _weight(self, collected: int, *action: int) -> float:
        fraction = self.rate if collected else 1 - self.rate
        return (fraction if (1 - collected, *action) in self.counts else 1.0) / self.counts[collected, *action]


def _kinds(episode: Episode, by_class: bool) -> list[tuple[int, ...]]:
    """Returns whether each step was collected, and its action if there are classes. Empty for a collected failure."""
    collected = ROUND in episode.metadata
    if collected and not _succeeded(episode):
        return []
    classes = action_classes(episode).tolist() if by_class else [()] * len(episode)
    return [(int(collected), *c) for c in classes]


def _succeeded(episode: Episode) -> bool:
    if "success" not in episode.metadata:
        raise UserError("the episode does not say whether it succeeded", where="abco",
                        hint="collect in an environment that defines success, or use bco")
    return bool(episode.metadata["success"])
