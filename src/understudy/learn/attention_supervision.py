"""Attention supervision: tells an encoder which object each demonstration is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .behavior_cloning import AuxiliaryLoss

UNKNOWN = -1


@dataclass(frozen=True)
class AttentionSupervision(AuxiliaryLoss):
    """Trains the attention of a `nets.object_attention.ObjectAttentionEncoder` to find the labeled object.

    The loss is the cross-entropy between the attention at the newest observation step and the label of that step. If
    the policy predicts only later steps, it is the label of the first of these.

    Args:
        column: Column with the number of the object, which is its row in the encoder's column of objects. -1 where it
            is not known, which gives no loss.
        weight: Weight of the loss.

    References:
        Stepputtis et al. (2020), Language-Conditioned Imitation Learning for Robot Manipulation Tasks,
        arXiv:2010.12083.
    """

    column: str
    weight: float = 1.0
    captures = ("object_attention",)

    @property
    def columns(self):
        return (self.column,)

    def build(self, policy):
        window = policy.config.window
        step = min(max(window.obs_offset - window.action_offset, 0), window.horizon - 1)

        def loss(policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
            label = batch.extra[self.column].reshape(batch.mask.shape)[:, step].long()
            logits = captured["object_attention"][:, -1]  # (B, objects)
            return self.weight * F.cross_entropy(logits, label, reduction="none", ignore_index=UNKNOWN)
        return loss
