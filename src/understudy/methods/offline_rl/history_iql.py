from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, AtMost, Batch, Context, Schema, part
from ...data.episode import Dataset
from ...data.window import Window
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import Net, loss
from ...learn.behavior_cloning import AuxiliaryLoss, update_lagged
from ...learn.critic import EncodedObs
from ...learn.critics.critic_learning import check_plans_begin_now
from ...learn.method import Method
from ...learn.objectives.representation_objectives import encoding_size, flat_encoding
from ...learn.targets import REWARD, TERMINATED, expectile_loss
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import feed_forward_layers
from ...nets.mlp import MLP
from ...nets.recurrent import RecurrentEncoder
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, STEP_REWARDS
from ..registry import method
from .iql import IQL


@part
class Bisimulation(AuxiliaryLoss):
    """Auxiliary loss by which the distance of two encodings tells how much their rewards and successors differ.

    Each window is paired with the window before it in the batch. For both windows of a pair, a model predicts the
    reward and the next encoding after the action of the first window. The loss is the square of ``|z - z'| - |r - r'| -
    discount * |p - p'|`` with Euclidean norms of encodings z and of predictions p, which have no gradient. The error of
    the model is added, and trains the model alone.

    References:
        Hong, Dragan and Levine (2024), Offline RL with Observation Histories, arXiv:2310.20663.
        Zhang et al. (2021), Learning Invariant Representations for Reinforcement Learning without Reconstruction,
        arXiv:2006.10742.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (64,)
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    weight: Annotated[float, AtLeast(0)] = 1.0
    captures, columns = ("context", "context_mask"), (REWARD,)
    next_obs = reads_actions = True

    def build(self, policy: Policy) -> BisimulationLoss:
        return BisimulationLoss(self, policy)


class BisimulationLoss(nn.Module):
    """The loss function of `Bisimulation`, with its model."""

    def __init__(self, config: Bisimulation, policy: Policy):
        super().__init__()
        self.config, size = config, encoding_size(policy)
        self.model = feed_forward_layers((size + policy.window.horizon * policy.codec.width, *config.hidden, size + 1))

    def predict(self, encoding: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts reward (B,) and encoding (B, D) after the coded actions of a chunk, (B, H * A)."""
        out = self.model(torch.cat([encoding, action], -1))
        return out[:, 0], out[:, 1:]

    def distances(self, encoding: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the distance of each encoding from its partner, and the distance it should have, (B,) each."""
        partner = encoding.roll(1, 0)
        with torch.no_grad():
            (reward, later), (other_reward, other_later) = (self.predict(z, action) for z in (encoding, partner))
            goal = (reward - other_reward).abs() + self.config.discount * (later - other_later).norm(dim=-1)
        return (encoding - partner).norm(dim=-1), goal

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        assert batch.next is not None
        encoding, action = flat_encoding(captured), policy.encode_batch(batch).flatten(1)
        reward, later = self.predict(encoding.detach(), action)
        with torch.no_grad():
            next_encoding = policy.training_context(batch.next, rng).flat()
        received = (batch.extra[REWARD].reshape(batch.mask.shape) * batch.mask).sum(1)
        model_error = (reward - received).square() + (later - next_encoding).square().mean(-1)
        distance, goal = self.distances(encoding, action)
        return self.config.weight * (distance - goal).square() + model_error


@method("Hong et al. 2024, arXiv 2310.20663, whose critic was CQL, with an encoder of the method's own", rows=("207",),
        needs=(NUMBERS_OR_CLASSES, STEP_REWARDS),
        when="if there are rewards, and an observation alone does not show the state; try `iql` with a longer window "
             "first.")
@part
class HistoryIQL(IQL):
    """Implicit Q-learning on histories, with an encoder in which histories with similar outcomes are near.

    The value and the policy read the encoder of the critic, which the losses of the critic alone train.

    Args:
        auxiliary_losses: Further losses of the encoder, added to that of the critic. The encoder is the policy's, in
            place of that of `critic`.
    """

    auxiliary_losses: tuple[AuxiliaryLoss, ...] = (Bisimulation(),)

    def method(self, features: Schema | None = None, n_obs_steps: int = 10) -> Method:
        """Returns the method of this learner.

        Args:
            n_obs_steps: Number of observations in a history.
        """
        policy = PolicyConfig(choose_head(features, Gaussian()), MLP(256, 2),
                              RecurrentEncoder(64, 1, simplest_encoder(features)), window=Window(n_obs_steps))
        return Method(policy, learner=self)

    @property
    def extra(self):
        return tuple(dict.fromkeys((REWARD, TERMINATED, *(c for loss in self.auxiliary_losses for c in loss.columns))))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        check_plans_begin_now(policy, type(self).__name__)
        self.critic.check_no_subset()
        losses = tuple(loss.build_for(policy, data) for loss in self.auxiliary_losses)
        config = replace(self.critic, encoder=policy.config.encoder, share_encoder=True)
        critic, value = config.build(policy), replace(config, n_critics=1).build(policy, action=False)
        for module in (critic, value):
            module.encoders = nn.ModuleList([policy.encoder])
        return {"critic": Net(critic, self.optimizer, target=self.target_decay),
                "auxiliary_losses": Net(losses, trained_with="critic"), "value": Net(value, self.optimizer),
                "policy": Net(policy, self.optimizer)}

    def end_update(self, nets: Any) -> None:
        update_lagged(nets.auxiliary_losses, nets.policy)

    def encoded(self, nets: Any, batch: Batch, rng: Generator) -> Context:
        """Returns the encoded history, without gradient."""
        context = nets.policy.training_context(batch.obs, rng)
        return replace(context, tokens=context.tokens.detach())

    @loss("value")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        encoded = EncodedObs((self.encoded(nets, batch, rng).flat(),), batch.obs)
        return expectile_loss(batch.extra["score"] - nets.value(encoded), self.expectile)

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target = self.target(nets, batch)
        context = nets.policy.training_context(batch.obs, rng)
        scores = nets.critic.scores(EncodedObs((context.flat(),), batch.obs), batch.action)
        captured = {"context": context.tokens, "context_mask": context.mask}
        return (sum((loss(nets.policy, batch, rng, captured) for loss in nets.auxiliary_losses),
                    (scores - target).square().sum(0)), {"score": scores.mean(0)})

    @loss("policy", weights="weight", normalize="rows")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss_given_context(self.encoded(nets, batch, rng), batch, rng)
