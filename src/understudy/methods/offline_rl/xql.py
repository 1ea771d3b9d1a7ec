from __future__ import annotations

from typing import Annotated

from torch import Generator, Tensor

from ...core import Above, Batch, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.implicit_q_learning import IQL, IQLLearner
from ...learn.method import Method
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class XQL(IQL):
    """`IQL` whose value is ``temperature * log(mean(exp(score / temperature)))`` of the stored actions.

    Args:
        temperature: Of the soft maximum, in units of return. Small values are closer to the maximum.
        max_exponent: Upper bound of (score - value) / temperature in the loss, which is exponential.

    References:
        Garg et al. (2023), Extreme Q-Learning: MaxEnt RL without Entropy, arXiv:2301.02328.
    """

    temperature: Annotated[float, Above(0)] = 1.0
    max_exponent: Annotated[float, Above(0)] = 7.0

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> XQLLearner:
        return XQLLearner(self, policy, seed, steps, data)


class XQLLearner(IQLLearner):
    """Learner of `XQL`."""

    config: XQL

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the Gumbel loss of the value of each observation, (B,), scaled by the largest exponent."""
        exponent = (self.advantage(batch) / self.config.temperature).clamp(max=self.config.max_exponent)
        largest = exponent.detach().max().clamp(min=-1)
        return (exponent - largest).exp() - (exponent + 1) * (-largest).exp()


@method("Garg et al. 2023 (XQL), arXiv 2301.02328", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and `iql` is too careful: its value is a soft maximum.")
def xql(temperature: float = 1.0, beta: float = 3.0, features: Schema | None = None) -> Method:
    """Extreme Q-learning: clones the stored actions that are better than others, by soft maxima of their scores.

    Args:
        beta: Inverse temperature of the weights, in units of 1 / return. 0 is cloning.
    """
    return critic_method(Gaussian(), XQL(temperature=temperature, beta=beta), features)
