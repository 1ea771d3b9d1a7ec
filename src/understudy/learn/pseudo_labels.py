"""Actions of episodes that were recorded without them, as a trained policy tells them from what was observed."""

from __future__ import annotations

import numpy as np
import torch

from ..checkpoint import FromStage
from ..core import UserError, part
from ..data.episode import Dataset, LabeledEpisodes
from ..data.mixture import DATASET_NAME
from ..data.operations import Operation
from ..policy import Policy


@part
class PseudoLabel(Operation):
    """Replaces the actions of one part of a mixture, which was recorded without them.

    Args:
        labeler: The policy that tells actions, or the stage that trained it. With ``Window(2, obs_offset=1)`` it is an
            inverse dynamics model, which also reads the next observation. It plans one action, without noise.
        part: Name of the part, as in `Stage.dataset`. Its column "action" may hold anything.

    References:
        Zheng et al. (2023), Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories,
        arXiv:2210.06518.
    """

    labeler: FromStage | Policy
    part: str = "prior"

    def apply(self, data: Dataset) -> Dataset:
        if not isinstance(self.labeler, Policy):
            raise UserError(f"{self.labeler} is not a trained policy", where="PseudoLabel.labeler",
                            hint="train a method that has this stage, or give the policy itself")
        actions = np.split(self._actions(self.labeler, data), np.cumsum(data.lengths)[:-1])
        missing = [episode.metadata.get(DATASET_NAME) == self.part for episode in data]
        labeled = LabeledEpisodes(data, {"action": data.features()["action"]}, lambda i: {
            "action": actions[i] if missing[i] else data[i].steps["action"]})
        return Dataset(labeled, data.metadata)

    @torch.no_grad()
    def _actions(self, policy: Policy, data: Dataset) -> np.ndarray:
        none = torch.zeros(1, dtype=torch.int64, device=policy.device)
        plans = []
        for batch in policy.windows(data).scan():
            batch = batch.to(policy.device)
            plans.append(policy.plan(batch.obs, policy.noise(none, none).expand(len(batch), -1, -1) * 0)[:, 0].cpu())
        return torch.cat(plans).numpy()
