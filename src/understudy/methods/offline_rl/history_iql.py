from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, AtMost, Batch, Context, Schema, part
from ...data.episode import Dataset
from ...data.window import Window
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...learn.behavior_cloning import AuxiliaryLoss, update_lagged
from ...learn.critic import EncodedObs
from ...learn.critics.critic_learning import check_plans_begin_now
from ...learn.critics.implicit_q_learning import IQL, IQLLearner
from ...learn.gradient_learner import GradientLearner
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


@part
class Bisimulation(AuxiliaryLoss):
    """Lets the distance of two encodings be how much the rewards and the encodings that follow them differ.

    Each window has the window before it in the batch as its partner. A model predicts the reward and the next encoding
    of both after the action of the first. The loss is the square of ``|z - z'| - |r - r'| - discount * |p - p'|`` with
    Euclidean norms of encodings z and of predictions p, which have no gradient. The error of the model is added, and
    trains the model alone.

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
    """The function of `Bisimulation`, with its model."""

    def __init__(self, config: Bisimulation, policy: Policy):
        super().__init__()
        self.config, size = config, encoding_size(policy)
        self.model = feed_forward_layers((size + policy.window.horizon * policy.codec.width, *config.hidden, size + 1))

    def predict(self, encoding: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Reward (B,) and encoding (B, D) after the coded actions of a chunk, (B, H * A)."""
        out = self.model(torch.cat([encoding, action], -1))
        return out[:, 0], out[:, 1:]

    def distances(self, encoding: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of each encoding from its partner, and what it should be, (B,) each."""
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


@part
class HistoryIQL(IQL):
    """Implicit Q-learning whose value and policy read the encoder of the critic, which its losses alone train.

    Args:
        auxiliary_losses: Further losses of the encoder, added to that of the critic. The encoder is the policy's, in
            place of that of `critic`.
    """

    auxiliary_losses: tuple[AuxiliaryLoss, ...] = (Bisimulation(),)

    @property
    def extra(self):
        return tuple(dict.fromkeys((REWARD, TERMINATED, *(c for loss in self.auxiliary_losses for c in loss.columns))))

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> HistoryIQLLearner:
        return HistoryIQLLearner(self, policy, seed, steps, data)


class HistoryIQLLearner(IQLLearner):
    """Learner of `HistoryIQL`."""

    config: HistoryIQL

    def __init__(self, config: HistoryIQL, policy: Policy, seed: int, steps: int, data: Dataset):
        GradientLearner.__init__(self, config, policy, seed, steps)
        check_plans_begin_now(policy, type(config).__name__)
        config.critic.check_no_subset()
        networks = replace(config.critic, encoder=policy.config.encoder, share_encoder=True)
        self.auxiliary_losses = tuple(loss.build(policy) for loss in config.auxiliary_losses)
        critic, value = networks.build(policy), replace(networks, n_critics=1).build(policy, action=False)
        for module in (critic, value):
            module.encoders = nn.ModuleList([policy.encoder])
        self.critic = self.register("critic", critic, config.optimizer, auxiliary=[
            loss for loss in self.auxiliary_losses if isinstance(loss, nn.Module)])
        self.value = self.register("value", value, config.optimizer)
        self.register("policy", policy, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.bound = self.score_bound(data, config.discount)

    def update(self, batch: Batch) -> dict[str, float]:
        metrics = super().update(batch)
        update_lagged(self.auxiliary_losses, self.policy)
        return metrics

    def encoded(self, batch: Batch, rng: Generator) -> Context:
        """The history, without gradient."""
        context = self.policy.training_context(batch.obs, rng)
        return replace(context, tokens=context.tokens.detach())

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        return self.policy.loss_given_context(self.encoded(batch, rng), batch, rng)

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        encoded = EncodedObs((self.encoded(batch, rng).flat(),), batch.obs)
        return expectile_loss(batch.extra["score"] - self.value(encoded), self.config.expectile)

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        with torch.no_grad():
            target = self.target(batch)
        context = self.policy.training_context(batch.obs, rng)
        scores = self.critic.scores(EncodedObs((context.flat(),), batch.obs), batch.action)
        self.log(score=scores.mean(0))
        captured = {"context": context.tokens, "context_mask": context.mask}
        return sum((loss(self.policy, batch, rng, captured) for loss in self.auxiliary_losses),
                   (scores - target).square().sum(0))


@method("Hong et al. 2024, arXiv 2310.20663, whose critic was CQL, with an encoder of the method's own", rows=("207",),
        needs=(NUMBERS_OR_CLASSES, STEP_REWARDS),
        when="if there are rewards, and an observation alone does not show the state; try `iql` with a longer window "
             "first.")
def history_iql(n_obs_steps: int = 10, weight: float = 1.0, features: Schema | None = None) -> Method:
    """Implicit Q-learning on histories, encoded so that their distance says how much what follows them differs.

    Args:
        n_obs_steps: Number of observations in a history.
        weight: Weight of the bisimulation loss. 0 is implicit Q-learning on histories.
    """
    policy = PolicyConfig(choose_head(features, Gaussian()), MLP(256, 2),
                          RecurrentEncoder(64, 1, simplest_encoder(features)), window=Window(n_obs_steps))
    return Method(policy, learner=HistoryIQL(auxiliary_losses=(Bisimulation(weight=weight),)))
