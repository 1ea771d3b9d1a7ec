"""What configs of learners with a critic share."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from ..core import AtLeast, AtMost, part
from .critic import CriticConfig
from .fit import LearnerConfig
from .optimizer import OptimizerConfig
from .targets import REWARD, TERMINATED


@part
class CriticLearningConfig(LearnerConfig):
    """Base class of configs whose learner has a critic, which learns the discounted return of plans.

    Args:
        optimizer: Optimizer of the policy and of the critic.
        discount: Discount per step.
        target_decay: Fraction of the target networks that each update keeps.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=CriticConfig)
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995

    extra = (REWARD, TERMINATED)
    next_obs = True
