"""Attention supervision: trains a policy to attend to the object, or the earlier step, that matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import AtLeast, UserError, part
from ...nets.transformer import Transformer
from ..behavior_cloning import AuxiliaryLoss

UNKNOWN = -1


@part
class AttentionSupervision(AuxiliaryLoss):
    """Trains the attention of a `nets.object_attention.ObjectAttentionEncoder` to find the labeled object.

    The loss is the cross-entropy between the attention at the newest observation step and the label of that step. If
    the policy predicts only later steps, it is the label of the first of these.

    Args:
        column: Column with the number of the object, which is its row in the encoder's column of objects. -1 where it
            is not known, which gives no loss.

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
            if label.min() < UNKNOWN or label.max() >= logits.shape[1]:
                raise UserError(f"the labels go from {label.min()} to {label.max()}, but the {logits.shape[1]} objects "
                                f"are numbered from 0, and {UNKNOWN} is none of them",
                                where=f"column {self.column!r}", hint="name the column with the number of the object")
            return self.weight * F.cross_entropy(logits, label, reduction="none", ignore_index=UNKNOWN)
        return loss


def steps_since_recalled(pairs: Iterable[tuple[int, int]], length: int) -> np.ndarray:
    """Returns how many steps before each step the events happened that it recalls, a column for `MemorySupervision`.

    Args:
        pairs: Memory dependency pairs (p, q) of an episode: what happened at step p is recalled at step q.
        length: Number of steps of the episode.

    Returns:
        For each step q its distances ``q - p``, (length, m) int64. m is the largest number of events that a step
        recalls, and at least 1. Steps that recall fewer events have -1 in the remaining places.
    """
    distances: list[list[int]] = [[] for _ in range(length)]
    for recalled, step in pairs:
        if not 0 <= recalled <= step < length:
            raise UserError(f"Step {step} cannot recall step {recalled} in an episode of {length} steps.",
                            where="steps_since_recalled", hint="A pair is (recalled step, step that recalls it).")
        distances[step].append(step - recalled)
    most = max(1, *map(len, distances)) if length else 1
    return np.array([d + [UNKNOWN] * (most - len(d)) for d in distances], np.int64).reshape(length, most)


@part
class MemorySupervision(AuxiliaryLoss):
    """Trains one attention head of a transformer to look at the earlier steps that the expert recalled.

    The data say which steps these are, as memory dependency pairs (p, q): what happened at step p is recalled at step
    q. The loss is the binary cross-entropy between the attention of step q to each step of the window and a target: 1
    for the recalled steps, 0 for all other steps. It is averaged over the steps of the window and over the steps q with
    a pair. A window without a pair has no loss.

    The trunk must be a `nets.transformer.Transformer` with layers over the observations (`encoder_depth`), the encoder
    must give tokens for each observation step (`TokenEncoder`), and the window must predict the actions of the steps
    that recall: ``Window(n_obs_steps=K, horizon=K, action_offset=1 - K)`` for all of them. If a step has several
    tokens, its attention is the mean over its queries of the sum over the keys of the other step.

    Args:
        column: Column of the distances ``q - p``, -1 for none: see `steps_since_recalled`.
        layer: Layer over the observations, from 0.
        head: Attention head, from 0.

    References:
        Yue et al. (2024), Learning Memory Mechanisms for Decision Making through Demonstrations, arXiv:2411.07954
        (AttentionTuner; weight 10, the first head of the first layer). Its average also includes the steps without a
        pair, whose attention to each step is pushed towards 0.
    """

    column: str = "recalled"
    layer: Annotated[int, AtLeast(0)] = 0
    head: Annotated[int, AtLeast(0)] = 0
    weight: float = 10.0

    @property
    def captures(self):
        return (f"context_attention.{self.layer}",)

    @property
    def columns(self):
        return (self.column,)

    def build(self, policy):
        trunk, window = policy.config.trunk, policy.config.window
        if not isinstance(trunk, Transformer) or not (self.layer < trunk.encoder_depth and self.head < trunk.heads):
            raise UserError(f"The trunk has no attention head {self.head} in a layer {self.layer} over the "
                            "observations.", where="MemorySupervision",
                            hint=f"Use Transformer(heads={self.head + 1}, encoder_depth={self.layer + 1}) or more.")
        tokens = torch.tensor(policy.encoder.token_obs_steps)
        belongs = (torch.arange(window.n_obs_steps)[:, None] == tokens).float()  # (To, N): the tokens of each step
        if not belongs.any(1).all():
            raise UserError("The encoder does not give a token for each observation step.",
                            where="MemorySupervision", hint="Use TokenEncoder.")
        steps = window.action_start + torch.arange(window.horizon)  # the observation step of each target row
        rows = ((steps >= 0) & (steps < window.n_obs_steps)).nonzero()[:, 0]
        if not len(rows):
            raise UserError("No action of a window belongs to one of its observation steps.",
                            where="MemorySupervision", hint="Use Window(n_obs_steps=K), for example.")

        def loss(policy, batch, rng, captured: Mapping[str, Tensor]) -> Tensor:
            device = batch.mask.device
            of_step, row, query = belongs.to(device), rows.to(device), steps[rows].to(device)
            weights = captured[self.captures[0]].unflatten(0, (len(batch.mask), -1))[:, 0]  # of one draw of noise
            weights = weights[:, self.head, 1:, 1:].float()  # without the token that is always present
            attention = (of_step / of_step.sum(1, keepdim=True)) @ weights @ of_step.T
            attention = attention[:, query].clamp(1e-6, 1 - 1e-6)  # (B, queries, To)
            distance = batch.extra[self.column].reshape(*batch.mask.shape, -1)[:, row].long()
            recalled = query[:, None] - distance
            is_valid = (distance >= 0) & (recalled >= 0) & batch.mask[:, row, None]
            target = (F.one_hot(recalled.clamp(0, len(of_step) - 1), len(of_step)) * is_valid.unsqueeze(-1)).amax(2)
            each = -(target * attention.log() + (1 - target) * torch.log1p(-attention)).mean(-1)
            pair = is_valid.any(-1)
            return self.weight * (each * pair).sum(1) / pair.sum(1).clamp(min=1)
        return loss
