"""Auxiliary losses for policies whose goals are given in several ways: alignment of the goals, and foresight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..core import Batch, Context, UserError, check_range
from ..nets.feed_forward import feed_forward_layers
from ..policy import Policy
from .behavior_cloning import AuxiliaryLoss


@dataclass(frozen=True)
class ContrastiveAlignment(AuxiliaryLoss):
    """Aligns two goals of the same window (contrastive latent alignment, CLA).

    The window is encoded twice, with one goal each, and each context is pooled by attention. A symmetric InfoNCE loss
    with a learned temperature finds the two pooled contexts of a window among those of the batch. Windows that do not
    have both goals get no loss and are no negatives. Two windows with the same `second` goal, such as the same
    sentence, are no negatives of each other.

    Args:
        first: Column of one goal, such as a later observation.
        second: Column of the other goal, such as a sentence. Only some windows need to have it: ``"<second>?"``.
        weight: Weight of the loss.

    References:
        Reuss et al. (2024), Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals,
        arXiv:2407.05996 (weight 1; the same sentences are negatives).
        Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
    """

    first: str = "observation.goal"
    second: str = "observation.task"
    weight: float = 1.0

    def __post_init__(self):
        check_range(self, "weight")

    def build(self, policy: Policy) -> nn.Module:
        """Returns the module that computes the loss of each window, (B,)."""
        for name in (self.first, self.second):
            if name not in policy.inputs:
                raise UserError(f"The policy does not read a column {name!r}. It reads {', '.join(policy.inputs)}.",
                                where="ContrastiveAlignment", hint="Name two goals that the policy reads.")
        return _ContrastiveAlignmentLoss(self, policy)


class _ContrastiveAlignmentLoss(nn.Module):
    def __init__(self, config: ContrastiveAlignment, policy: Policy):
        super().__init__()
        self.config = config
        width = policy.encoder.width
        self.attention, self.projector = nn.Linear(width, 1), feed_forward_layers((width, width, width), "gelu")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        first, second = self.config.first, self.config.second
        obs = policy.augment(batch.obs, rng)
        shown = {name: batch.obs.get(name + "?", torch.ones(obs[name].shape[:2], dtype=torch.bool,
                                                            device=obs[name].device)) for name in (first, second)}
        hidden = {name + "?": torch.zeros_like(shown[first]) for name in (first, second)}
        one, other = (F.normalize(self._pool(policy.context({**obs, **hidden, name + "?": shown[name]},
                                                            rng if policy.training else None)), dim=-1)
                      for name in (first, second))
        logits = (self.log_scale.exp() * one @ other.T).masked_fill(~self._pairs(batch.obs[second], shown), -torch.inf)
        rows = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, rows, reduction="none") + F.cross_entropy(logits.T, rows, reduction="none")
        return self.config.weight * loss / 2

    def _pairs(self, second: Tensor, shown: Mapping[str, Tensor]) -> Tensor:
        """(B, B): the pairs that are compared. A window without both goals is compared with itself alone."""
        one, other = shown.values()
        both = (one & other)[:, -1]
        goals = second[:, -1].flatten(1) if second.ndim > 2 else second[:, -1:]
        same = (goals.unsqueeze(1) == goals).all(-1)
        return torch.eye(len(both), dtype=torch.bool, device=both.device) | (both[:, None] & both & ~same)

    def _pool(self, context: Context) -> Tensor:
        score = self.attention(context.tokens).squeeze(-1).masked_fill(~context.mask, -1e9)
        return self.projector((score.softmax(-1).unsqueeze(-1) * context.tokens).sum(1))


@dataclass(frozen=True)
class Foresight(AuxiliaryLoss):
    """Predicts the observation after the chunk from the encoded observation and goal (generative foresight).

    The encoding of a goal must then say where the goal leads. The loss is the squared error of the coded column.

    Args:
        column: What is predicted: an observed column of numbers.
        hidden: Widths of the hidden layers of the predictor.
        weight: Weight of the loss.

    References:
        Reuss et al. (2024), Multimodal Diffusion Transformer: Learning Versatile Behavior from Multimodal Goals,
        arXiv:2407.05996, which predicts the masked patches of an image three steps ahead (weight 1).
    """

    column: str = "observation.state"
    hidden: tuple[int, ...] = (128,)
    weight: float = 1.0
    captures = ("context", "context_mask")
    next_obs = True

    def __post_init__(self):
        check_range(self, "weight")
        check_range(self, "hidden", at_least=1)

    def build(self, policy: Policy) -> nn.Module:
        """Returns the module that computes the loss of each window, (B,)."""
        if self.column not in policy.inputs or policy.features[self.column].kind != "vector":
            raise UserError(f"The policy does not read numbers from a column {self.column!r}. It reads "
                            f"{', '.join(policy.inputs)}.", where="Foresight.column",
                            hint="Name an observed column of numbers.")
        return _ForesightLoss(self, policy)


class _ForesightLoss(nn.Module):
    def __init__(self, config: Foresight, policy: Policy):
        super().__init__()
        self.config = config
        sizes = policy.encoder.tokens * policy.encoder.width, *config.hidden, policy.features[config.column].size
        self.predictor = feed_forward_layers(sizes)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        assert batch.next is not None
        target = policy.codec.encode_obs(batch.next)[self.config.column][:, -1].flatten(1)
        prediction = self.predictor(Context(captured["context"], captured["context_mask"]).flat())
        return self.config.weight * (prediction - target).square().mean(-1)
