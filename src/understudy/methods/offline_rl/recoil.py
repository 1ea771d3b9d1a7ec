from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Below, Schema, part
from ...data.batch_sampler import join_batches
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import MetricBound, prepare
from ...learn.critics.critic_learning import critic_method
from ...learn.method import Method
from ...learn.targets import REWARD, TERMINATED, MeanBound, td_terms
from ...policy import Policy
from ..needs import ENDS, NUMBERS, OTHER_EPISODES
from ..registry import method
from .iql import IQL

IS_EXPERT = "recoil.expert"


@method("Sikchi et al. 2024 (ReCOIL), arXiv 2302.08560", needs=(NUMBERS, ENDS, OTHER_EPISODES),
        when="if few demonstrations come with many other episodes, without rewards, and no environment is at hand.")
@part
class ReCOIL(IQL):
    """Clones the steps, demonstrated or not, that lead to where the demonstrations went, by values learned for that.

    It learns from demonstrations and other stored episodes, whose quality is unknown and which have no rewards.

    The critic scores each demonstrated step with ``2 / (1 - discount)``. Another step costs 2 and has the value of what
    follows, where an end costs 2 for ever. So a step scores more, the sooner it leads to where the demonstrations went.
    The value and the policy learn from all steps, as in `IQL`. A discriminator, in contrast, rewards no step where the
    demonstrations never were.

    Args:
        expectile: 0.5 learns the value of all stored steps, and values towards 1 that of the best ones.

    References:
        Sikchi et al. (2024), Dual RL: Unification and New Methods for Reinforcement and Imitation Learning,
        arXiv:2302.08560. The scores are computed as in the authors' code. The paper has a contrast instead.
    """

    expectile: Annotated[float, Above(0), Below(1)] = 0.8
    discount: Annotated[float, AtLeast(0), Below(1)] = 0.99

    extra = (TERMINATED,)
    compares = needs_others = True

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Gaussian(), self, features)

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic/score": MeanBound(self.largest)}

    @property
    def largest(self) -> float:
        """Score of a demonstrated step, and the cost of an end."""
        return 2 / (1 - self.discount)

    @prepare
    def scored(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        both = join_batches([
            rows.replace(extra={**rows.extra, IS_EXPERT: torch.full((len(rows),), is_expert, device=rows.mask.device)})
            for rows, is_expert in ((batch, False), (batch.others["expert"], True))])
        return super().scored(nets, both, rng)

    def target(self, nets: Any, batch: Batch) -> Tensor:
        costs = torch.full(batch.mask.shape, -2.0, device=batch.mask.device)
        reward, bootstrap = td_terms(batch.replace(extra={**batch.extra, REWARD: costs}), self.discount)
        end = self.discount ** batch.mask.sum(1) - bootstrap  # the factor of what follows an end, and 0 without one
        value = reward + bootstrap * nets.value(batch.next) - end * self.largest
        return torch.where(batch.extra[IS_EXPERT], self.largest, value)
