"""Retention rules: which episodes stay in the replay buffer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..core import AtLeast, UserError, part
from ..data.episode import Dataset, Episode
from ..data.mixture import ROUND


class RetentionRule(ABC):
    """Rule that chooses which episodes stay in the replay buffer to train on. Subclasses are frozen dataclasses."""

    @abstractmethod
    def keep(self, data: Dataset) -> Dataset:
        """Returns the episodes that stay. It is called after each round. Episodes that it leaves out do not come back.

        Args:
            data: The episodes that stayed so far, in order, then the episodes of the new round. Collected episodes have
                the number of their round in their metadata, under `ROUND`.
        """


@dataclass(frozen=True)
class AllEpisodes(RetentionRule):
    """Retention rule by which all episodes stay."""

    def keep(self, data):
        return data


@part
class LastRounds(RetentionRule):
    """Retention rule by which only the episodes of the newest collection rounds stay, as on-policy learners need.

    Args:
        keep_initial: Whether the episodes that were there before the first round stay as well.
    """

    n_rounds: Annotated[int, AtLeast(1)] = 1
    keep_initial: bool = False

    def keep(self, data):
        rounds = [episode.metadata.get(ROUND) for episode in data]
        oldest = max((r for r in rounds if r is not None), default=0) - self.n_rounds + 1
        return data.select(i for i, r in enumerate(rounds) if (self.keep_initial if r is None else r >= oldest))


@part
class TopReturns(RetentionRule):
    """Retention rule by which the episodes with the highest returns stay. Of equal returns the newer stays.

    References:
        Srivastava et al. (2019), Training Agents using Upside-Down Reinforcement Learning, arXiv:1912.02877.
        Oh et al. (2018), Self-Imitation Learning, arXiv:1806.05635.
    """

    n_episodes: Annotated[int, AtLeast(1)]
    column: str = "next.reward"

    def keep(self, data):
        returns = np.array([self._return(number, episode) for number, episode in enumerate(data)])
        order = np.lexsort((np.arange(len(returns)), returns))
        return data.select(sorted(order[-self.n_episodes:].tolist()))

    def _return(self, number: int, episode: Episode) -> float:
        if self.column not in episode.steps:
            raise UserError(f"there is no column {self.column!r}; there are {', '.join(sorted(episode.steps))}",
                            where=f"TopReturns, episode {number}", hint="give the episodes rewards, or use AllEpisodes")
        return float(np.asarray(episode.steps[self.column], np.float64)[:len(episode)].sum())


@dataclass(frozen=True)
class SuccessfulEpisodes(RetentionRule):
    """Retention rule by which collected episodes stay if they succeeded. Earlier episodes always stay."""

    def keep(self, data):
        return data.select(i for i, episode in enumerate(data)
                           if episode.metadata.get(ROUND) is None or episode.metadata.get("success", False))
