from __future__ import annotations

from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import Above, Batch, Schema, part
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import loss
from ...learn.critics.critic_learning import critic_method
from ...learn.method import Method
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method
from .iql import IQL


@method("Garg et al. 2023 (XQL), arXiv 2301.02328", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and `iql` is too careful: its value is a soft maximum.")
@part
class XQL(IQL):
    """Extreme Q-learning: clones the stored actions that are better than others, by soft maxima of their scores.

    It is `IQL` whose value is ``temperature * log(mean(exp(score / temperature)))`` of the stored actions.

    Args:
        temperature: Of the soft maximum, in units of return. Small values are closer to the maximum.
        max_exponent: Upper bound of (score - value) / temperature in the loss, which is exponential.

    References:
        Garg et al. (2023), Extreme Q-Learning: MaxEnt RL without Entropy, arXiv:2301.02328.
    """

    temperature: Annotated[float, Above(0)] = 1.0
    max_exponent: Annotated[float, Above(0)] = 7.0

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Gaussian(), self, features)

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the Gumbel loss of the value of each observation, (B,), scaled by the largest exponent."""
        exponent = (self.advantage(nets, batch) / self.temperature).clamp(max=self.max_exponent)
        largest = exponent.detach().max().clamp(min=-1)
        return (exponent - largest).exp() - (exponent + 1) * (-largest).exp()
