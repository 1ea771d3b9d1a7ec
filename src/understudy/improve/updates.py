"""Rules for how many training updates follow a collection round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated

from ..core import Above, AtLeast, part


class UpdateRule(ABC):
    """Rule for how many training updates follow a collection round. Subclasses are frozen dataclasses."""

    @abstractmethod
    def number(self, collected: int, stored: int, batch_size: int) -> int:
        """Returns the number of updates after a collection round, at least 1.

        Args:
            stored: Steps of all episodes that stay in the replay buffer, including the episodes of the round.
        """

    @abstractmethod
    def describe(self) -> str:
        """Returns the rule in words."""


@part
class _Proportional(UpdateRule):
    """Base class of rules in which the number of updates is proportional to `count`."""

    count: Annotated[float, Above(0)] = 1.0


@part
class PerNewStep(_Proportional):
    """A number of updates for each step that the collection round added."""

    def number(self, collected, stored, batch_size):
        return max(int(self.count * collected), 1)

    def describe(self):
        return f"{self.count:g} updates per collected step"


@part
class PerStoredStep(_Proportional):
    """A number of updates for each stored step, for learners that start anew in each round (`reset_learner`)."""

    def number(self, collected, stored, batch_size):
        return max(int(self.count * stored), 1)

    def describe(self):
        return f"{self.count:g} updates per step of all episodes"


@part
class PerRound(UpdateRule):
    """The same number of updates after every collection round."""

    count: Annotated[int, AtLeast(1)] = 1000

    def number(self, collected, stored, batch_size):
        return self.count

    def describe(self):
        return f"{self.count:,} updates each"


@part
class Epochs(_Proportional):
    """As many updates as it takes to read each stored step a number of times."""

    def number(self, collected, stored, batch_size):
        return max(math.ceil(self.count * stored / batch_size), 1)

    def describe(self):
        return f"{self.count:g} passes over the stored steps"
