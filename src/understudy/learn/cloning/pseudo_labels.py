"""Pseudo-labels: a trained policy predicts the actions of episodes that were recorded without them."""

from __future__ import annotations

import numpy as np
import torch

from ...checkpoint import FromStage, check_trained
from ...core import Unsupported, part
from ...data.episode import Dataset, Episode
from ...data.missing_actions import has_action, lacks_next_observation, with_actions
from ...data.mixture import DATASET_NAME
from ...data.operations import Operation
from ...policy import Policy, check_features


@part
class PseudoLabel(Operation):
    """Predicts the actions of episodes that were recorded without them. Such episodes may lack the column "action".

    The label of a step depends on the observations of its episode alone. If a labeler reads the next observation, a
    last step without one is left out.

    Args:
        labeler: The policy that predicts actions, or the stage that trained it. With ``Window(2, obs_offset=1)`` it is
            an inverse dynamics model, which also reads the next observation. It plans one action, without noise.
        part: Name of the part of a mixture whose actions are predicted, as in `Stage.dataset`. None for all episodes.
        only_missing: Keep the actions that were recorded, and predict actions that are NaN or absent. Otherwise all
            actions are predicted, whatever was recorded.
        offset: Each step gets the label of the step that is this many later, of the same episode. With -1 the labels
            are one step late.

    References:
        Baker et al. (2022), Video PreTraining (VPT), arXiv:2206.11795.
        Zheng et al. (2023), Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories,
        arXiv:2210.06518.
    """

    labeler: FromStage | Policy
    part: str | None = "prior"
    only_missing: bool = False
    offset: int = 0

    def apply(self, data: Dataset) -> Dataset:
        labeler, unlabeled = self.labeler, [self._is_unlabeled(episode) for episode in data]
        if not any(steps.any() for steps in unlabeled):
            return data
        labeler = check_trained(labeler, Policy, "PseudoLabel.labeler", "policy")
        check_features(labeler, data.features(), str(data.metadata.get("path", "data set")), columns=labeler.inputs,
                       hint="train the inverse dynamics model on these columns; without --stage, the method trains one "
                            "itself")
        if not 0 <= -labeler.window.action_offset < labeler.window.horizon:
            raise Unsupported(f"the labeler plans no action of the current step: its window is {labeler.window}",
                              where="PseudoLabel.labeler", hint="train it with Window(2, obs_offset=1)")
        no_end = lacks_next_observation(data, labeler.inputs) & (labeler.window.obs_offset > 0)
        actions = []
        for i, labels in enumerate(np.split(self._labels(labeler, data), np.cumsum(data.lengths)[:-1])):
            if not unlabeled[i].any():
                actions.append(None)
                continue
            labels = labels[np.clip(np.arange(len(labels)) + self.offset, 0, len(labels) - 1)]
            if not unlabeled[i].all():
                labels[~unlabeled[i]] = np.asarray(data[i].steps["action"])[:len(labels)][~unlabeled[i]]
            actions.append(labels[:-1] if no_end[i] and unlabeled[i][-1] else labels)
        return with_actions(data, actions, labeler.target)

    def _is_unlabeled(self, episode: Episode) -> np.ndarray:
        """Returns whether each step gets a predicted action, (T,)."""
        chosen = self.part is None or episode.metadata.get(DATASET_NAME) == self.part
        return chosen & ~has_action(episode) if self.only_missing else np.full(len(episode), chosen)

    @torch.no_grad()
    def _labels(self, policy: Policy, data: Dataset) -> np.ndarray:
        """Returns the predicted action of each step, of all episodes end to end, (T, ...)."""
        plans = []
        for batch in policy.window.windows(data, policy.inputs).scan():
            batch = batch.to(policy.device)
            noise = torch.zeros(len(batch), *policy.noise_shape, device=policy.device)
            plans.append(policy.plan(batch.obs, noise)[:, -policy.window.action_offset].cpu())
        return torch.cat(plans).numpy().reshape(-1, *policy.target.shape).astype(policy.target.dtype)
