from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...core import Batch, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.implicit_q_learning import IQL, IQLLearner
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class FDVL(IQL):
    """`IQL` whose value is the quantile `expectile` of the scores, in place of their expectile.

    It is the dual of reinforcement learning whose visits stay near those of the data by total variation. The chi-square
    form of the paper is left out: its value is above the score also where there is one action.

    References:
        Sikchi et al. (2024), Dual RL: Unification and New Methods for Reinforcement and Imitation Learning,
        arXiv:2302.08560.
    """

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> FDVLLearner:
        return FDVLLearner(self, policy, seed, steps, data)


class FDVLLearner(IQLLearner):
    """Learner of `FDVL`."""

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the quantile loss of the value of each observation, (B,)."""
        error, quantile = self.advantage(batch), self.config.expectile
        return torch.maximum(quantile * error, (quantile - 1) * error)


@method("Sikchi et al. 2024 (f-DVL, total variation), arXiv 2302.08560", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and a few scores are far too high: the value is a quantile.")
def f_dvl(quantile: float = 0.75, beta: float = 3.0, features: Schema | None = None) -> Method:
    """Dual value learning: clones the stored actions that are better than others, by quantiles of their scores.

    Args:
        quantile: 0.5 learns the median of the scores of the stored actions, and values towards 1 that of the best.
        beta: Inverse temperature of the weights, in units of 1 / return. 0 is cloning.
    """
    return critic_method(Gaussian(), FDVL(expectile=quantile, beta=beta), features)
