"""Objectives of MCR that train an encoder with ordered frames of videos, or by predicting the action."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ...core import AtLeast, Batch, Context, part
from ...nets.encoders import check_inputs
from ...nets.feed_forward import feed_forward_layers
from .ordered_frames import N_FRAMES, video_rows
from .representation_objectives import NetworkObjective, encoding_size, flat_encoding


def _of_windows(batch: Batch, rows: Tensor, loss: Tensor) -> Tensor:
    """Spreads the loss of each video, (V,), over all of its windows, (B,)."""
    return loss.new_zeros(len(batch)).scatter(0, rows.flatten(), loss.repeat_interleave(N_FRAMES))


@part
class OrderedContrastive(NetworkObjective):
    """Objective with ordered frames s0, s1, s2: the encoding of s1 is nearer to both than they are to each other.

    Logits are negative distances. The negatives of a frame are also the same frames of `n_negatives` other videos.

    References:
        Nair et al. (2022), R3M: A Universal Visual Representation for Robot Manipulation, arXiv:2203.12601.
    """

    n_negatives: Annotated[int, AtLeast(1)] = 3
    weight: float = 1.0

    ordered_frames = True

    def networks(self, policy):
        return {}

    def loss(self, networks, policy, batch, rng, captured):
        rows = video_rows(batch)
        n, device = len(rows), rows.device
        s0, s1, s2 = flat_encoding(captured)[rows[:, 2:]].unbind(1)
        total = s0.new_zeros(n)
        for frame, opposite in ((s0, s2), (s2, s0)):
            shift = torch.randint(1, max(n, 2), (n, self.n_negatives), generator=rng, device=device)
            others = frame[(torch.arange(n, device=device).unsqueeze(1) + shift) % max(n, 1)]
            distances = (torch.cat([torch.stack([s1, opposite], 1), others], 1) - frame.unsqueeze(1)).norm(dim=-1)
            total = total - (-distances).log_softmax(1)[:, 0] / 2
        return self.weight * _of_windows(batch, rows, total)


@part
class DynamicsAlignment(NetworkObjective):
    """Objective that aligns the encodings of two frames with the states and actions around them.

    A network encodes the motion around each frame: the states at the steps of the window's target, and the actions
    between these. The encoding of a frame must be nearer to the motion around this frame than to the motion around the
    second frame. ``Window(horizon=3, action_offset=-1)`` gives three states and two actions.

    Args:
        column: The states: an input of the policy, which `ConditionDropout` should hide from the encoder.

    References:
        Jiang et al. (2025), Robots Pre-train Robots: Manipulation-Centric Robotic Representation from Large-Scale
        Robot Datasets, arXiv:2410.22325.
    """

    column: str = "observation.state"
    hidden: Annotated[int, AtLeast(1)] = 1024
    weight: float = 1.0

    reads_actions = ordered_frames = True

    @property
    def columns(self):
        return (self.column,)

    def networks(self, policy):
        check_inputs(policy.inputs, self.columns, "DynamicsAlignment.column")
        horizon = policy.window.horizon
        size = horizon * policy.features[self.column].size + (horizon - 1) * policy.codec.width
        return {"projector": feed_forward_layers((size, self.hidden, encoding_size(policy)))}

    def dynamics(self, policy, batch: Batch) -> Tensor:
        """Returns the coded states and actions around each observation, (B, D)."""
        states = policy.codec.encode_obs({**batch.obs, self.column: batch.extra[self.column]})[self.column]
        return torch.cat([states.flatten(1), policy.encode_batch(batch)[:, :-1].flatten(1)], 1)

    def loss(self, networks, policy, batch, rng, captured):
        tokens = networks.projector(self.dynamics(policy, batch)).view_as(captured["context"])
        rows = video_rows(batch)
        frames, dynamics = (x[rows[:, [2, 4]]] for x in (
            flat_encoding(captured), Context(tokens, captured["context_mask"]).flat()))
        choice = (-torch.cdist(frames, dynamics)).log_softmax(-1).diagonal(dim1=1, dim2=2)
        return self.weight * _of_windows(batch, rows, -choice.mean(1))


@part
class ActionPrediction(NetworkObjective):
    """Objective that predicts the action of the current step from the encoding, with the head of the policy.

    References:
        Jiang et al. (2025), Robots Pre-train Robots: Manipulation-Centric Robotic Representation from Large-Scale
        Robot Datasets, arXiv:2410.22325.
    """

    weight: float = 1.0

    reads_actions = True

    def networks(self, policy):
        return {}

    def loss(self, networks, policy, batch, rng, captured):
        context, step = Context(captured["context"], captured["context_mask"]), -policy.window.action_offset
        return self.weight * policy.loss_given_context(context, batch, rng)[:, step]
