"""Objectives that train an encoder: inverse and forward dynamics, hidden actions, BYOL, and contrastive losses.

Each is an `AuxiliaryLoss`. `RepresentationLearning` trains an encoder on them alone, and `BehaviorCloning` adds them to
the loss of the policy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...core import Above, AtLeast, AtMost, Batch, Context, HeadSpec, part
from ...heads.base import Head
from ...heads.likelihood.regression import Regression
from ...nets.base import Trunk
from ...nets.ema import EMA, ConstantDecay
from ...nets.feed_forward import FeedForward, feed_forward_layers
from ...policy import Policy
from ..behavior_cloning import AuxiliaryLoss, LaggedAuxiliaryLoss


class RepresentationObjective(AuxiliaryLoss):
    """An objective for the encoder of a policy. Subclasses are frozen dataclasses."""

    captures = ("context", "context_mask")
    weight: float

    @abstractmethod
    def build(self, policy: Policy) -> nn.Module:
        """Builds the module that computes the loss of each window, (B,), and holds the networks of the objective."""


class NetworkObjective(RepresentationObjective):
    """Base class of objectives with networks that only their loss reads."""

    @abstractmethod
    def networks(self, policy: Policy) -> dict[str, nn.Module]:
        """Builds new networks, by name."""

    @abstractmethod
    def loss(self, networks: Any, policy: Policy, batch: Batch, rng: Generator,
             captured: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss of each window, (B,). The networks are attributes of `networks`."""

    def build(self, policy):
        return _NetworkObjectiveFunction(self, policy)


class _NetworkObjectiveFunction(nn.Module):
    def __init__(self, objective: NetworkObjective, policy: Policy):
        super().__init__()
        self.objective = objective
        for name, network in objective.networks(policy).items():
            self.add_module(name, network)

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        return self.objective.loss(self, policy, batch, rng, captured)


def projector_layers(*sizes: int) -> nn.Sequential:
    """Builds layers with these widths and LayerNorm."""
    return feed_forward_layers(sizes, layer_norm=True)


def flat_encoding(captured: Mapping[str, Tensor]) -> Tensor:
    """Returns the encoded observation of this forward pass, (B, N * D)."""
    return Context(captured["context"], captured["context_mask"]).flat()


def encoding_size(policy: Policy) -> int:
    """Returns the width of `flat_encoding`."""
    return policy.encoder.tokens * policy.encoder.width


def _pair_spec(policy: Policy) -> HeadSpec:
    """Returns the input and output sizes of a network that predicts a chunk from the encodings before and after it."""
    encoder, codec, window = policy.encoder, policy.codec, policy.window
    return HeadSpec(window.horizon, 2 * encoder.tokens, encoder.width, codec.num_classes, codec.bound,
                    2 * encoder.token_obs_steps, window.action_start)


def _pair(policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Context:
    """Returns the encodings before and after a chunk, each of its observation alone."""
    assert batch.next is not None
    after = policy.training_context(batch.next, rng)
    return Context(torch.cat([captured["context"], after.tokens], 1),
                   torch.cat([captured["context_mask"], after.mask], 1))


def _cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the squared distance of two vectors at unit length, (B,): from 0 to 4."""
    return 2 - 2 * F.cosine_similarity(prediction, target, dim=-1)


class TargetEncoder(nn.Module):
    """A slowly updated copy of a policy's encoder. It is in evaluation mode, and no gradient passes through it."""

    def __init__(self, policy: Policy, decay: float):
        super().__init__()
        self.average = EMA(policy.encoder, ConstantDecay(decay))
        self.encoder = self.average.module

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, policy: Policy, obs: Mapping[str, Tensor], rng: Generator) -> Tensor:
        """Returns the flat encoding of another view of the observation, (B, N * D)."""
        coded = policy.codec.encode_obs(policy.augment(obs, rng))
        return self.encoder(coded, rng if policy.training else None).flat()

    def update(self, policy: Policy) -> None:
        self.average.update(policy.encoder)


@part
class InverseDynamics(NetworkObjective):
    """Objective that predicts the actions of a chunk from the encodings before and after it.

    Both observations are encoded alone, by the same encoder, and gradients pass through both. What the encoder keeps is
    what actions change. Windows from which a `lookahead` beyond the chunk leads out of the episode have no loss.

    Args:
        head: What is predicted. Discrete actions need `Categorical()`.
        trunk: The network that reads both encodings.

    References:
        Brandfonbrener et al. (2023), Inverse Dynamics Pretraining Learns Good Representations for Multitask Imitation,
        arXiv:2305.16985.
    """

    head: Head = field(default_factory=Regression)
    trunk: Trunk = field(default_factory=FeedForward)
    weight: float = 1.0

    next_obs = reads_actions = True

    def networks(self, policy):
        return {"net": self.head.build(self.trunk, policy.codec.width, _pair_spec(policy))}

    def loss(self, networks, policy, batch, rng, captured):
        contexts = _pair(policy, batch, rng, captured)
        loss = self.head.loss(networks.net, contexts, policy.encode_batch(batch), batch.mask, rng) * batch.mask
        exists = batch.extra.get("lookahead_mask", batch.mask)
        reached = exists[:, -1] | (exists.shape[1] <= policy.window.horizon)
        return self.weight * reached * loss.sum(1) / batch.mask.sum(1).clamp(min=1)


@part
class ForwardDynamics(RepresentationObjective):
    """Objective that predicts the encoding after a chunk from the encoding before it and the chunk's actions.

    The target is made by a slowly updated copy of the encoder, without gradient. With the encoder itself as its target,
    encodings would shrink to a constant.

    Args:
        target_decay: Fraction of the target encoder that each update keeps.
        weight: Factor of the loss: the squared distance of the two encodings at unit length.
        two_way: Whether a second network predicts backward, too: the encoding before a chunk from the encoding after
            it and the actions. The two losses are added.

    References:
        Schwarzer et al. (2021), Data-Efficient Reinforcement Learning with Self-Predictive Representations,
        arXiv:2007.05929.
        Tang et al. (2023), Understanding Self-Predictive Learning for Reinforcement Learning, arXiv:2212.03319, for the
        two ways.
        Wei et al. (2023), Is Imitation All You Need? Generalized Decision-Making with Dual-Phase Training,
        arXiv:2307.07909, whose code uses the encoder itself as the target.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256,)
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    weight: float = 1.0
    two_way: bool = False

    next_obs = reads_actions = True

    def build(self, policy):
        return _ForwardDynamicsLoss(self, policy)


class _ForwardDynamicsLoss(LaggedAuxiliaryLoss):
    def __init__(self, config: ForwardDynamics, policy: Policy):
        super().__init__()
        size = encoding_size(policy)
        sizes = size + policy.window.horizon * policy.codec.width, *config.hidden, size
        self.config, self.target = config, TargetEncoder(policy, config.target_decay)
        self.predictor = projector_layers(*sizes)
        self.backward_predictor = projector_layers(*sizes) if config.two_way else None

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        assert batch.next is not None
        actions = policy.encode_batch(batch).flatten(1)
        prediction = self.predictor(torch.cat([flat_encoding(captured), actions], -1))
        loss = _cosine_loss(prediction, self.target(policy, batch.next, rng))
        if self.backward_predictor is not None:
            after = policy.training_context(batch.next, rng).flat()
            earlier = self.backward_predictor(torch.cat([after, actions], -1))
            loss = loss + _cosine_loss(earlier, self.target(policy, batch.obs, rng))
        return self.config.weight * loss

    def after_update(self, policy):
        self.target.update(policy)


@part
class MaskedPrediction(NetworkObjective):
    """Objective that predicts hidden actions of a chunk from the other actions and the encodings around it.

    For each window a fraction is drawn uniformly from 0 to 1, and each action is hidden with this probability. With all
    actions hidden, this is `InverseDynamics`.

    Args:
        trunk: The network that reads the visible actions and both encodings.
        weight: Factor of the loss: the squared error, or the cross-entropy of discrete actions, over hidden actions.

    References:
        Wei et al. (2023), Is Imitation All You Need? Generalized Decision-Making with Dual-Phase Training,
        arXiv:2307.07909, which hides more and more actions as training proceeds.
    """

    trunk: Trunk = field(default_factory=FeedForward)
    weight: float = 1.0

    next_obs = reads_actions = True

    def networks(self, policy):
        return {"net": self.trunk.build(policy.codec.width + 1, policy.codec.width, 0, _pair_spec(policy))}

    def loss(self, networks, policy, batch, rng, captured):
        action, contexts = policy.encode_batch(batch), _pair(policy, batch, rng, captured)
        rows, device = batch.mask.shape, batch.mask.device
        fraction = torch.rand(rows[0], 1, generator=rng, device=device)
        hidden = torch.rand(rows, generator=rng, device=device) < fraction
        visible = (~hidden & batch.mask).unsqueeze(-1).to(action.dtype)
        prediction = networks.net(torch.cat([action * visible, visible], -1), action[..., :0], contexts)
        counted = hidden & batch.mask
        if num_classes := policy.codec.num_classes:
            log_probs = torch.cat([part.log_softmax(-1) for part in prediction.split(num_classes, -1)], -1)
            error = -(log_probs * action).sum(-1)
        else:
            error = (prediction - action).square().mean(-1)
        return self.weight * (error * counted).sum(1) / counted.sum(1).clamp(min=1)


@part
class BYOL(RepresentationObjective):
    """Objective BYOL: predicts, from one view of an observation, how a slow copy encodes another view.

    Views are made by the policy's augmentations and by the random crops of its encoder. Without either, both views are
    the same and little is learned. No actions are read.

    It differs from the paper in three ways. Networks have LayerNorm in place of BatchNorm, so that a window's loss does
    not depend on the other windows. The decay is constant. Each window contributes one order of its two views, and not
    both.

    Args:
        hidden: Width of the hidden layer of projector and predictor.
        size: Width of the projection.
        target_decay: Fraction of the target network that each update keeps.
        weight: Factor of the loss: the squared distance of the two projections at unit length.

    References:
        Grill et al. (2020), Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, arXiv:2006.07733.
    """

    hidden: Annotated[int, AtLeast(1)] = 256
    size: Annotated[int, AtLeast(1)] = 64
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    weight: float = 1.0

    def build(self, policy):
        return _BYOLLoss(self, policy)


class _BYOLLoss(LaggedAuxiliaryLoss):
    def __init__(self, config: BYOL, policy: Policy):
        super().__init__()
        self.config, self.target = config, TargetEncoder(policy, config.target_decay)
        self.projector: nn.Module = projector_layers(encoding_size(policy), config.hidden, config.size)
        self.predictor: nn.Module = projector_layers(config.size, config.hidden, config.size)
        self.average = EMA(self.projector, ConstantDecay(config.target_decay))
        self.target_projector = self.average.module

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        prediction = self.predictor(self.projector(flat_encoding(captured)))
        with torch.no_grad():
            target = self.target_projector(self.target(policy, batch.obs, rng))
        return self.config.weight * _cosine_loss(prediction, target)

    def after_update(self, policy):
        self.target.update(policy)
        self.average.update(self.projector)


@part
class TimeContrastive(NetworkObjective):
    """Objective that finds the observation after a chunk among those of all windows in the batch (InfoNCE).

    The other windows of the batch are the negatives. With gradient accumulation or several processes, each part of the
    batch has its own negatives.

    Args:
        size: Width of the projection.

    References:
        Sermanet et al. (2018), Time-Contrastive Networks: Self-Supervised Learning from Video, arXiv:1704.06888.
        van den Oord et al. (2018), Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.
    """

    hidden: Annotated[int, AtLeast(1)] = 256
    size: Annotated[int, AtLeast(1)] = 64
    temperature: Annotated[float, Above(0)] = 0.1
    weight: float = 1.0

    next_obs = True

    def networks(self, policy):
        return {"projector": projector_layers(encoding_size(policy), self.hidden, self.size)}

    def loss(self, networks, policy, batch, rng, captured):
        assert batch.next is not None
        views = (flat_encoding(captured), policy.training_context(batch.next, rng).flat())
        before, after = (F.normalize(networks.projector(view), dim=-1) for view in views)
        similarity = before @ after.T / self.temperature
        return self.weight * F.cross_entropy(similarity, torch.arange(len(before), device=before.device),
                                             reduction="none")


@part
class SoftInfoNCE(NetworkObjective):
    """Objective that pulls together encodings of windows followed by similar actions (InfoNCE with soft labels).

    Similar are the pairs of windows in the batch with the smallest `warping_distances` of their coded chunks. Their
    weights fall with the rank, from 1 to 0. Actions should be positions: velocities are similar almost everywhere.
    Hide what the encoding should not hold, such as the state of the robot, with `ConditionDropout`. With gradient
    accumulation or several processes, pairs are formed within each part of the batch.

    The paper ranks the pairs of all data once, instead of the pairs of each batch.

    Args:
        quantile: Fraction of the pairs that are similar. Batches should have at least 64 windows.

    References:
        Lee et al. (2025), CLASS: Contrastive Learning via Action Sequence Supervision for Robot Manipulation,
        arXiv:2508.01600.
    """

    quantile: Annotated[float, Above(0), AtMost(1)] = 0.025
    temperature: Annotated[float, Above(0)] = 0.05
    weight: float = 1.0

    reads_actions = True

    def networks(self, policy):
        return {}

    def pair_weights(self, chunks: Tensor) -> Tensor:
        """Returns how similar the chunks (B, H, A) are to each other, (B, B): symmetric, from 0 to 1."""
        n = len(chunks)
        first, second = torch.triu_indices(n, n, 1, device=chunks.device)
        similar = min(max(int(self.quantile * len(first)), 1), len(first))
        nearest = warping_distances(chunks[first], chunks[second]).topk(similar, largest=False).indices
        weights = chunks.new_zeros(n, n)
        weights[first[nearest], second[nearest]] = torch.linspace(1, 0, similar, device=chunks.device)
        return weights + weights.T

    def loss(self, networks, policy, batch, rng, captured):
        step = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        first = batch.mask.int().argmax(1, keepdim=True)  # actions outside the episode repeat its first or its last
        steps = step.clamp(first, (step * batch.mask).amax(1, keepdim=True))
        weights = self.pair_weights(policy.encode_batch(batch).take_along_dim(steps.unsqueeze(-1), 1))
        encodings = F.normalize(flat_encoding(captured), dim=-1)
        similarity = encodings @ encodings.T / self.temperature
        diagonal = torch.eye(len(encodings), dtype=torch.bool, device=encodings.device)
        log_probs = similarity.masked_fill(diagonal, -torch.inf).log_softmax(1).masked_fill(diagonal, 0)
        total = weights.sum(1)
        counted = total > 1e-6  # a window without a similar one has no target
        loss = -(weights * log_probs).sum(1) / total.clamp(min=1e-6) * counted
        return self.weight * loss * len(loss) / counted.sum().clamp(min=1)


def warping_distances(first: Tensor, second: Tensor) -> Tensor:
    """Computes the dynamic time warping distance of pairs of sequences, (P,).

    An alignment goes from the first steps of both to the last of both, and advances in one or both at a time.

    Args:
        first: (P, H, A).
        second: (P, K, A).
    """
    costs = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").square().permute(1, 2, 0)
    infinite = torch.full_like(costs[0, 0], torch.inf)
    totals = [torch.zeros_like(infinite)] + [infinite] * len(costs[0])
    for row in costs.contiguous():
        above, totals = totals, [infinite]
        for column, cost in enumerate(row):
            totals.append(cost + above[column].minimum(above[column + 1]).minimum(totals[-1]))
    return totals[-1]
