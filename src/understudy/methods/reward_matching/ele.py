from __future__ import annotations

from dataclasses import field, replace
from math import log1p
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, Batch, Schema, part
from ...data.episode import Dataset
from ...data.missing_actions import PlaceholderActions
from ...learn.algorithm import Algorithm, Net, loss
from ...learn.critics.ppo import PPO
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.transport_reward import EpisodeReward, EpisodeRewardConfig
from ...learn.targets import REWARD, TERMINATED
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy
from ..needs import SOME_ACTIONS, STEP_REWARDS
from ..registry import method
from .gail import gail


@part
class ProgressReward(EpisodeRewardConfig):
    """Reward model config: the environment's reward plus progress, as learned from demonstrations.

    The progress from one observation of a demonstration to another is ``sign(n) * log(1 + |n|)`` if the other is n
    steps later. A network learns it (`ProgressLearning`). It is antisymmetric: going back costs what going there
    earned. Because of the logarithm a slow way earns more in all than a fast one, so that a large `scale` teaches to be
    slow. The first steps of an episode have no progress.

    Args:
        span: Number of steps whose progress is the reward of the last of them.
        scale: What a whole demonstration of mean length earns by its progress.

    References:
        Bruce et al. (2023), Learning about Progress from Experts, ICLR.
    """

    span: Annotated[int, AtLeast(1)] = 8
    scale: Annotated[float, AtLeast(0)] = 1.0
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (64, 64)
    inputs = "next"
    extra = (REWARD, TERMINATED)
    compares = False

    def build(self, policy, data):
        return ProgressModel.of(self, policy, data)


class ProgressModel(EpisodeReward):
    """The reward model that `ProgressReward` configures."""

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        size = sum(self.features[name].size for name in self.inputs)
        self.layers = feed_forward_layers((2 * size, *self.config.hidden, 1), "relu")

    def progress(self, before: Tensor, after: Tensor) -> Tensor:
        """Returns the progress from coded observations, (B, D), to others, (B,)."""
        ways = (torch.cat(pair, 1) for pair in ((before, after), (after, before)))
        there, back = (self.layers(way).squeeze(1) for way in ways)
        return (there - back) / 2

    def pair_loss(self, count: int, rng: Generator) -> Tensor:
        """Returns the squared error of the progress between two steps of one demonstration, of random pairs, (B,)."""
        lengths, shares = self.lengths, torch.rand(2, count, generator=rng, device=self.points.device)
        of_step = torch.repeat_interleave(lengths)  # the demonstration of each step
        first = (shares[0] * len(self.points)).long()
        length, start = lengths[of_step[first]], (lengths.cumsum(0) - lengths)[of_step[first]]
        second = start + (shares[1] * length).long()
        n = (second - first).float()
        return (self.progress(self.points[first], self.points[second]) - n.sign() * n.abs().log1p()).square()

    @torch.no_grad()
    def rewards(self, steps):
        span = self.config.span
        unit = log1p(span) * (self.lengths - span).clamp(min=1).float().mean()
        early = steps.new_zeros(min(span, len(steps)))
        return torch.cat([early, self.config.scale / unit * self.progress(steps[:-span], steps[span:])])

    def reward(self, batch, policy):
        progress = super().reward(batch, policy)
        return progress + batch.extra[REWARD].reshape(progress.shape)


@part
class ProgressLearning(Algorithm):
    """Learns progress from demonstrations, for other learners (`ProgressReward`). It does not train the policy.

    Args:
        batch_size: Number of pairs of steps in each batch.
    """

    reward: ProgressReward = field(default_factory=ProgressReward)
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    validates = False

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {"policy": Net(policy), "reward": Net(self.reward.build(policy, data), self.optimizer)}

    @loss("reward")
    def progress_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of as many random pairs as the batch has rows, (B,)."""
        return nets.reward.pair_loss(len(batch), rng)


@method("Bruce et al. 2023 (ELE), ICLR, with proximal policy optimization in place of Muesli", rows=("174",),
        needs=(SOME_ACTIONS, STEP_REWARDS, "an environment"),
        when="if a reward comes only at the end and demonstrations have no actions.")
def ele(n_rounds: int = 50, n_steps: int = 1024, n_epochs: int = 10, span: int = 8, scale: float = 1.0,
        features: Schema | None = None) -> Method:
    """PPO with a reward for progress, which a network has learned from demonstrations without their actions.

    Args:
        n_epochs: How often the updates of a round read each of its steps.
    """
    base = replace(gail(n_rounds, n_steps, n_epochs, features=features), transforms=(PlaceholderActions(),))
    learning = replace(base, learner=ProgressLearning(ProgressReward(span, scale)), collection=None)
    return replace(base, learner=PPO(reward=FromStage("progress", "reward")), stages=(Stage("progress", learning),))
