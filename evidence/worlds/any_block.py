"""A control of median of means: which block of a batch trains has nothing to do with its loss."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.methods.behavior_cloning.robust_bc import RobustBC


@dataclass(frozen=True)
class AnyBlock(RobustBC):
    """`RobustBC` in which the first block trains, which is as good as drawn by lot."""

    def choose_block(self, differences):
        return 0
