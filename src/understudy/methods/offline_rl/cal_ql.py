from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ...core import AtLeast, AtMost, Batch, ConfigError, DataError, part
from ...data.column_changes import ReturnToGo
from ...data.episode import Dataset, Episode
from ...learn.algorithm import Net
from ...learn.targets import TERMINATED
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method
from .cql import CQL

RETURN = "return_to_go"


@part
class CompleteReturns:
    """Adds a column with the discounted return from each step on.

    It is minus infinity where a cut-off lacks 1 % of it or more.
    """

    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99

    def __call__(self, episode: Episode) -> Episode:
        episode = ReturnToGo(self.discount, into=RETURN)(episode)
        is_cut = not np.any(episode.steps[TERMINATED][:len(episode)])
        following = is_cut * self.discount ** np.arange(len(episode), -1, -1, dtype=np.float32)[:, None]
        return episode.replace({RETURN: np.where(following >= 0.01, -np.inf, episode.steps[RETURN])})


@method("Nakamoto et al. 2023 (Cal-QL), arXiv 2303.05479, with a fixed weight", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, episodes end by themselves, and training continues with the policy's own.")
@part
class CalQL(CQL):
    """Calibrated Q-learning: conservative Q-learning that lowers no score of the policy below the stored return.

    It is CQL that counts scores of the policy's actions as no smaller than the stored return, where that is complete.

    References:
        Nakamoto et al. (2023), Cal-QL: Calibrated Offline RL Pre-Training, arXiv:2303.05479.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.reward is not None:
            raise ConfigError("the returns are those of the rewards in the data", where="CalQL.reward",
                              hint="leave it out, or train cql")

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        returns = data.map(CompleteReturns(self.discount))
        if len(data) and not any(np.isfinite(e.steps[RETURN][:len(e)]).any() for e in returns):
            raise DataError("no return is complete: no episode terminates, and what follows them still counts",
                            where=f"{data.metadata.get('path', 'data set')}, column {TERMINATED!r}",
                            hint="train cql, which needs no returns; or set it to True where episodes really ended")
        return super().networks(policy, data)

    def added_columns(self, policy):
        return {**super().added_columns(policy), RETURN: CompleteReturns(self.discount)}

    def conservative_scores(self, nets: Any, batch: Batch, plans: Tensor) -> Tensor:
        """Returns the scores of sampled plans, (n_critics, B, N). The policy's plans score at least the return."""
        scores, n_uniform = super().conservative_scores(nets, batch, plans), self.n_samples
        bound = batch.extra[RETURN].reshape(len(batch), -1)[:, :1]
        return torch.cat([scores[..., :-n_uniform].maximum(bound), scores[..., -n_uniform:]], -1)
