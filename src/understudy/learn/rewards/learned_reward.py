"""Replaces the rewards of the data by those of a reward model that another run has trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...checkpoint import FromStage
from ...core import UserError, part
from ...data.episode import Dataset
from ...data.operations import Operation
from ..targets import REWARD
from .reward_models import RewardModel


@part
class LearnedReward(Operation):
    """Gives each step of the episodes, also of collected ones, the reward of a trained reward model.

    Args:
        model: The reward model, or the stage that has trained it.
    """

    model: FromStage | RewardModel

    def apply(self, data: Dataset) -> Dataset:
        model, path = self.model, str(data.metadata.get("path", "data set"))
        if not isinstance(model, RewardModel):
            raise UserError(f"{model} is not a reward model", where="LearnedReward.model",
                            hint="name a run that trains one, such as one of dac, gail or airl")
        model.check_columns(data.features(), path)
        window = replace(model.about.window, horizon=1, action_offset=0)
        annotated = model.annotate(data)
        windows = window.windows(annotated, model.inputs, model.about.target, next_obs=True,
                                 extra=(*model.about.config.extra, *model.annotations))
        device = next((tensor.device for tensor in model.state_dict().values()), "cpu")
        with torch.no_grad():
            rewards = torch.cat([model.reward(batch.to(device), None)[:, 0].float().cpu() for batch in
                                 windows.scan(max(1024 // window.n_obs_steps, 1))])
        parts = np.split(rewards.numpy(), np.cumsum(data.lengths)[:-1])
        return Dataset([e.replace({REWARD: reward}) for e, reward in zip(data, parts, strict=True)], data.metadata)
