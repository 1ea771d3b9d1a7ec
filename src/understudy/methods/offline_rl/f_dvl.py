from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, Batch, Below, Schema, part
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import loss
from ...learn.critics.critic_learning import critic_method
from ...learn.method import Method
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method
from .iql import IQL


@method("Sikchi et al. 2024 (f-DVL, total variation), arXiv 2302.08560", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and a few scores are far too high: the value is a quantile.")
@part
class FDVL(IQL):
    """Dual value learning: clones the stored actions that are better than others, by quantiles of their scores.

    It is like `IQL`, but the value network learns a quantile of the scores in place of an expectile. This is the
    dual of reinforcement learning with a penalty on the total variation between the visits of the policy and of the
    data. `expectile` is the level of the quantile. The chi-square form of the paper is left out, because its value
    is above the score also where there is one action.

    Args:
        expectile: 0.5 learns the median of the scores of the stored actions, and values towards 1 that of the best.

    References:
        Sikchi et al. (2024), Dual RL: Unification and New Methods for Reinforcement and Imitation Learning,
        arXiv:2302.08560.
    """

    expectile: Annotated[float, Above(0), Below(1)] = 0.75

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Gaussian(), self, features)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the quantile loss of the value of each observation, (B,)."""
        error, quantile = self.advantage(nets, batch), self.expectile
        return torch.maximum(quantile * error, (quantile - 1) * error)
