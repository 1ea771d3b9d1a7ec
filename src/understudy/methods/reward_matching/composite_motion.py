from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import Annotated, cast

import torch
from torch import nn

from ...core import AtLeast, Below, ConfigError, Schema, Unsupported, part
from ...data.missing_actions import PlaceholderActions
from ...learn.critics.ppo import PPO
from ...learn.method import Method
from ...learn.rewards.discriminator_reward import Discriminator, DiscriminatorReward
from ...learn.rewards.reward_models import RewardModel, RewardModelConfig, RewardSpec
from ...learn.targets import REWARD, TERMINATED
from ...nets.encoders import simplest_encoder
from ..needs import SOME_ACTIONS, STEP_REWARDS
from ..registry import method
from .gail import gail


@part
class CompositeReward(RewardModelConfig):
    """Reward model config: one discriminator for each of some columns, such as of arm and legs, and the task's reward.

    Each discriminator reads only one column. The columns of a demonstration therefore need not fit together: they may
    be clips of different motions, side by side in one episode. `PPO` keeps these objectives apart. For other learners
    the reward is their weighted sum.

    Args:
        columns: The observations that are compared. Empty: all inputs of the policy, each by itself.
        task_weight: Weight of the environment's reward. The discriminators share the remainder in equal parts.

    References:
        Xu et al. (2023), Composite Motion Learning with Task Control, arXiv:2305.03286.
    """

    columns: tuple[str, ...] = ()
    task_weight: Annotated[float, AtLeast(0), Below(1)] = 0.5
    discriminator: DiscriminatorReward = field(default_factory=lambda: DiscriminatorReward("gail", "next"))
    extra = (REWARD, TERMINATED)

    @property
    def optimizer(self):
        return self.discriminator.optimizer

    @property
    def reads_density(self):
        return self.discriminator.reads_density

    @property
    def learner_discount(self):
        return self.discriminator.learner_discount

    @property
    def is_biased_by_ends(self):
        return self.discriminator.is_biased_by_ends

    def objective_weights(self, inputs):
        n = len(self.columns or tuple(inputs))
        return (*[(1 - self.task_weight) / n] * n, *[self.task_weight] * (self.task_weight > 0))

    def check(self, inputs: Iterable[str], features: Schema):
        if missing := sorted(set(self.columns) - set(inputs)):
            raise ConfigError(f"the policy does not read {', '.join(missing)}", where="CompositeReward.columns",
                              hint=f"name some of {', '.join(inputs)}")

    def build(self, policy, data):
        self.check(policy.inputs, policy.features)
        return CompositeModel(RewardSpec.of(self, policy), policy.features, policy.codec).to(policy.device)


class CompositeModel(RewardModel):
    """The reward model that `CompositeReward` configures."""

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        self.config: CompositeReward = about.config
        models = nn.ModuleList(
            Discriminator(replace(about, config=self.config.discriminator, inputs=(name,)), features,
                          copy.deepcopy(self.codec)) for name in self.config.columns or about.inputs)
        self.discriminators = cast(Sequence[Discriminator], models)

    def loss(self, own, expert, rng):
        return torch.stack([model.loss(own, expert, rng) for model in self.discriminators]).sum(0)

    def objectives(self, batch, policy):
        rewards = [model.reward(batch, policy) for model in self.discriminators]
        if self.config.task_weight:
            rewards.append(batch.extra[REWARD].reshape(batch.mask.shape)[:, :1].float())
        return torch.cat(rewards, 1)

    def reward(self, batch, policy):
        objectives = self.objectives(batch, policy)
        return objectives @ objectives.new_tensor(self.config.objective_weights(self.inputs))[:, None]

    def forward(self, obs, plan):
        raise Unsupported("a composite reward reads what the environment says of a step", where="CompositeReward",
                          hint="score plans with a DiscriminatorReward, which dac and gail learn")


@method("Xu et al. 2023 (Composite Motion Learning), arXiv 2305.03286", rows=("080",),
        needs=(SOME_ACTIONS, STEP_REWARDS, "an environment"),
        when="if parts of a body should move as in different recordings, and a task has a reward in other units.")
def composite_motion(n_rounds: int = 50, n_steps: int = 1024, n_epochs: int = 10, compared: tuple[str, ...] = (),
                     task_weight: float = 0.5, features: Schema | None = None) -> Method:
    """PPO with a discriminator for each part of a body and the reward of a task, whose advantages stay apart.

    The authors' discriminators see several frames, have hinge losses, and rewards between -1 and 1. Here the
    discriminators are the same as in `gail`, and compare pairs of observations.

    Args:
        n_epochs: Passes through the steps of a round.
        compared: The observations that discriminators compare, one each. Empty: all.
        task_weight: Weight of the environment's reward. The discriminators share the remainder.
    """
    base = gail(n_rounds, n_steps, n_epochs, features=features)
    discriminator = DiscriminatorReward("gail", "next", encoder=simplest_encoder(features))
    return replace(base, transforms=(PlaceholderActions(),),
                   learner=PPO(reward=CompositeReward(compared, task_weight, discriminator)))
