"""Base class of off-policy actor-critics, such as `TD3` and `SAC`, for heads whose samples have gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, Batch, ConfigError, Unsupported, part
from ...data.episode import Dataset
from ...policy import Policy
from ..algorithm import Algorithm, MetricBound, Net, loss
from ..critic import Critic, mix_networks
from ..optimizer import OptimizerConfig
from ..rewards.reward_models import RewardedConfig, RewardedEngine, RewardModelConfig
from ..rewards.transport_reward import EpisodeRewardConfig
from ..targets import ReturnBound, mean_over_steps, td_loss, td_terms
from .critic_learning import CriticLearningConfig, draw_plans


def critic_is_due(method: ActorCritic, n_updates: int, steps: int) -> bool:
    return n_updates >= method.cloning_updates(steps)


def policy_is_due(method: ActorCritic, n_updates: int, steps: int) -> bool:
    """Returns whether the policy is trained in this update, in which it follows the critic."""
    n_critic_updates = n_updates - method.cloning_updates(steps)
    return n_critic_updates >= method.critic_warmup_updates and n_updates % method.policy_delay == 0


@part
class ActorCritic(RewardedConfig, CriticLearningConfig, Algorithm):
    """Base class of methods with a critic of plans, and a policy that learns to maximize its scores.

    Batches need the columns `next.reward`, unless `reward` gives another, and `next.terminated`. A time limit does not
    count as an end: the value of what would follow the cut-off step is part of the target.

    A subclass adds `target_value`, and the losses of the policy, which are due if `policy_is_due`.

    Args:
        n_step: Number of steps whose rewards are in the target of the critic. 0 for the steps of the plan. Among reward
            models, only models of whole episodes give rewards of later steps.
        policy_delay: Updates of the critic per update of the policy. Target networks follow after each update of the
            critic. In TD3 they follow together with the policy.
        reward: A reward model that is trained along with the policy, or that a stage trained. None: the rewards of the
            data.
        critic_warmup_updates: Number of first updates of the critic that train it alone, so that a policy which is good
            already does not follow a critic that knows nothing.
        policy_optimizer: Optimizer of the policy. None for the optimizer of the critic.
    """

    policy_delay: Annotated[int, AtLeast(1)] = 2
    reward: RewardModelConfig | FromStage | None = None
    n_step: Annotated[int, AtLeast(0)] = 0
    critic_warmup_updates: Annotated[int, AtLeast(0)] = 0
    policy_optimizer: OptimizerConfig | None = None

    def __post_init__(self):
        self.check_discount(self.discount)
        if self.n_step and self.reward is not None and not isinstance(self.reward, EpisodeRewardConfig):
            raise ConfigError("a reward model of steps gives the rewards of a plan's own steps",
                              where=f"{type(self).__name__}.n_step", hint="use 0, or a reward of whole episodes")

    @property
    def lookahead(self):
        return self.n_step

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> RewardedEngine:
        return RewardedEngine(self, policy, seed, steps, data)

    def cloning_updates(self, steps: int) -> int:
        """Returns the number of updates of pure cloning before the critic is trained, out of `steps`."""
        return 0

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if 0 < self.n_step < policy.window.horizon:
            raise Unsupported(f"the target has the rewards of {self.n_step} steps, but a plan has "
                              f"{policy.window.horizon}", where=f"{type(self).__name__}.n_step",
                              hint="use at least as many, or 0")
        return {"critic": Net(self.build_critic(policy), self.optimizer, target=self.target_decay),
                "policy": Net(policy, self.policy_optimizer or self.optimizer)}

    def build_critic(self, policy: Policy) -> Critic:
        """Builds the critic of the plans of a policy."""
        if policy.target.kind == "discrete" or policy.window.action_offset:
            raise Unsupported("the critic scores plans of numbers that begin at the current step",
                              where=type(self).__name__, hint="use it for continuous actions and with action_offset=0")
        return self.critic.build(policy)

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic/score": ReturnBound(data, self.discount)}

    def bootstrapped(self, nets: Any, batch: Batch, value: Tensor) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of what follows, (..., B)."""
        reward, bootstrap = td_terms(batch, self.discount, self.n_step)
        return reward + bootstrap * value

    def distance(self, nets: Any, coded: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns the mean squared distance of coded plans, (B, H, A), to the stored actions, (B,)."""
        return mean_over_steps((coded - nets.policy.encode_batch(batch)).square(), batch.mask)

    @loss("critic", when=critic_is_due)
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the `td_loss` against `target_value`, summed over the critic networks, and a penalty, (B,)."""
        with torch.no_grad():
            target = self.target_value(nets, batch, rng)
        quantiles, levels = nets.critic.training_quantiles(batch.obs, batch.action, rng)
        scores = quantiles.mean(1)
        error = td_loss(quantiles, target, levels).sum(0)
        return error + self.score_penalty(nets, scores, batch, rng), {"score": scores.mean(0)}

    def score_penalty(self, nets: Any, scores: Tensor, batch: Batch, rng: Generator) -> Tensor | float:
        """Returns a penalty for the loss of the critic, (B,), given the scores of stored plans, (n_critics, B)."""
        return 0.0

    @abstractmethod
    def target_value(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the target of the critic for each window, (B,), or its quantiles, (n_quantiles, B).

        It is called without gradients.
        """

    def best_plan_target(self, nets: Any, policy: Policy, batch: Batch, rng: Generator, n: int,
                         min_weight: float) -> Tensor:
        """Returns the rewards of the steps plus the discounted value of the best of n plans, (n_quantiles, B).

        Args:
            min_weight: Weight of the smallest score among the critic networks. The largest has the remainder.
        """
        assert batch.next is not None
        plans = draw_plans(policy, batch.next, n, rng)
        values = mix_networks(nets.target.critic.quantiles(batch.next, plans), min_weight)  # (n_quantiles, B, n)
        best = values.mean(0, keepdim=True).argmax(-1, keepdim=True)
        return self.bootstrapped(nets, batch, values.take_along_dim(best, -1)[..., 0])
