from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...core import AtLeast, Batch, Below, Schema, part
from ...data.batch_sampler import join_batches
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.implicit_q_learning import IQL, IQLLearner
from ...learn.method import Method
from ...learn.targets import REWARD, TERMINATED, check_bounded, td_terms
from ...policy import Policy
from ..needs import ENDS, NUMBERS, OTHER_EPISODES
from ..registry import method

IS_EXPERT = "recoil.expert"


@part
class ReCOIL(IQL):
    """Imitation from demonstrations and other stored episodes, whose quality is unknown and which have no rewards.

    The critic scores each demonstrated step with ``2 / (1 - discount)``. Another step costs 2 and has the value of what
    follows, where an end costs 2 for ever. So a step scores more, the sooner it leads to where the demonstrations went.
    The value and the policy learn from all steps, as in `IQL`. A discriminator, in contrast, rewards no step where the
    demonstrations never were.

    References:
        Sikchi et al. (2024), Dual RL: Unification and New Methods for Reinforcement and Imitation Learning,
        arXiv:2302.08560. The scores are those of the authors' code, in place of the contrast of their paper.
    """

    discount: Annotated[float, AtLeast(0), Below(1)] = 0.99

    extra = (TERMINATED,)
    compares = needs_others = True

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ReCOILLearner:
        return ReCOILLearner(self, policy, seed, steps, data)

    @property
    def largest(self) -> float:
        """The score of a demonstrated step, and the cost of an end."""
        return 2 / (1 - self.discount)


class ReCOILLearner(IQLLearner):
    """Learner of `ReCOIL`."""

    config: ReCOIL

    def update(self, batch: Batch) -> dict[str, float]:
        return super().update(join_batches([
            rows.replace(extra={**rows.extra, IS_EXPERT: torch.full((len(rows),), is_expert)})
            for rows, is_expert in ((batch, False), (batch.others["expert"], True))]))

    def target(self, batch: Batch) -> Tensor:
        discount, costs = self.config.discount, torch.full(batch.mask.shape, -2.0, device=self.device)
        reward, bootstrap = td_terms(batch.replace(extra={**batch.extra, REWARD: costs}), discount)
        end = discount ** batch.mask.sum(1) - bootstrap  # the factor of what follows an end, and 0 without one
        value = reward + bootstrap * self.value(batch.next) - end * self.config.largest
        return torch.where(batch.extra[IS_EXPERT], self.config.largest, value)

    def check(self, score: float, batch: Batch) -> None:
        check_bounded(score, self.config.largest, self.n_updates)


@method("Sikchi et al. 2024 (ReCOIL), arXiv 2302.08560", needs=(NUMBERS, ENDS, OTHER_EPISODES),
        when="if few demonstrations come with many other episodes, without rewards, and no environment is at hand.")
def recoil(expectile: float = 0.8, beta: float = 3.0, features: Schema | None = None) -> Method:
    """Clones the steps, demonstrated or not, that lead to where the demonstrations went, by values learned for that.

    Args:
        expectile: 0.5 learns the value of all stored steps, and values towards 1 that of the best ones.
        beta: Inverse temperature of the weights, where a step costs 2. 0 is cloning.
    """
    return critic_method(Gaussian(), ReCOIL(expectile=expectile, beta=beta), features)
