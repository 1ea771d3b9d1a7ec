"""A control of median of means: which block of a batch trains has nothing to do with its loss."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.methods.behavior_cloning.robust_bc import MedianOfMeans, MedianOfMeansLearner


@dataclass(frozen=True)
class AnyBlock(MedianOfMeans):
    """`MedianOfMeans` in which the first block trains, which is as good as drawn by lot."""

    def build(self, policy, seed, steps, data):
        return AnyBlockLearner(self, policy, seed, steps)


class AnyBlockLearner(MedianOfMeansLearner):
    """Learner of `AnyBlock`."""

    def choose_block(self, differences):
        return 0
