from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...learn.algorithm import Algorithm, MetricBound, Net, loss
from ...learn.critic import CriticConfig
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.reward_models import demonstrations_end, warn_of_ends
from ...learn.targets import TERMINATED, MeanBound
from ...policy import Policy
from ..needs import ENDS, NUMBERS
from ..registry import method
from .airl import airl


class ScoreBound(MeanBound):
    """Bound on scores that also warns once if only the policy's episodes end, and no demonstration."""

    def __init__(self, largest: float, data: Dataset):
        super().__init__(largest)
        self.warns_of_ends = not demonstrations_end(data)

    def check(self, value: float, batch: Batch, update: int) -> None:
        if self.warns_of_ends and bool(batch.extra[TERMINATED].any()):
            self.warns_of_ends = False
            warn_of_ends("IQLearn")
        super().check(value, batch, update)


@method("Garg et al. 2021, arXiv 2106.12142", needs=(NUMBERS, ENDS, "an environment"),
        when="if a critic alone is learned from demonstrations; with three of them on the fork it stayed below "
             "cloning in pilots, so try `dac` first.")
@part
class IQLearn(Algorithm):
    """Inverse soft Q-learning: a critic learns from demonstrations and own episodes, without a reward in between.

    With r = Q(s, a) - discount * V(s'), and V the value of the policy with its entropy, the critic raises r at
    demonstrated steps and lowers the value of the policy, while r^2 / (4 * divergence_weight) keeps r small.
    Demonstrations alone are enough, but it learns more if the policy collects episodes, too.

    Args:
        policy_optimizer: Optimizer of the policy.
        temperature: Weight of the entropy, in units of the reward.
        divergence_weight: Weight of the chi-square divergence between the visits of the policy and of the
            demonstrations: a large one allows large rewards.

    References:
        Garg et al. (2021), IQ-Learn: Inverse soft-Q Learning for Imitation, arXiv:2106.12142.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    policy_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-5, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=CriticConfig)
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    temperature: Annotated[float, Above(0)] = 0.01
    divergence_weight: Annotated[float, Above(0)] = 0.5

    extra = (TERMINATED,)
    next_obs = True
    compares = True

    def method(self, features: Schema | None = None, n_rounds: int = 50, n_episodes: int = 4) -> Method:
        return replace(airl(n_rounds, n_episodes), learner=self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if policy.target.kind == "discrete" or policy.window.horizon > 1 or policy.window.action_offset:
            raise Unsupported("the critic scores single actions that are numbers, of the current step", where="IQLearn",
                              hint="use a policy with horizon=1 and action_offset=0, for continuous actions")
        self.critic.check_no_quantiles()
        self.critic.check_no_subset()
        policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
        return {"critic": Net(self.critic.build(policy), self.optimizer), "policy": Net(policy, self.policy_optimizer)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        largest = 2 * self.divergence_weight + self.temperature * math.prod(policy.noise_shape)
        return {"critic/score": ScoreBound(largest / (1 - self.discount) if self.discount < 1 else 0.0, data)}

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of the critic for a row of the policy and one of a demonstration, (B,)."""
        (own_r, own_drop, own_score), (expert_r, expert_drop, expert_score) = (
            self.rewards(nets, part, rng) for part in (batch, batch.others["expert"]))
        divergence = (own_r.square() + expert_r.square()).mean(0) / 2 / (4 * self.divergence_weight)
        return (-expert_r.mean(0) + (own_drop + expert_drop) / 2 + divergence,
                {"score": torch.cat([own_score, expert_score]).mT})

    def rewards(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the reward of each critic network by the inverse Bellman operator, (C, B), V(s) - discount * V(s'),
        (B,), and the scores, (C, B)."""
        assert batch.next is not None
        goes_on = 1 - batch.extra[TERMINATED].reshape(batch.mask.shape)[:, 0].float()
        after = self.discount * goes_on * self.value(nets, batch.next, rng)
        scores = nets.critic.scores(batch.obs, batch.action)
        return scores - after, self.value(nets, batch.obs, rng) - after, scores

    def value(self, nets: Any, obs: Mapping[str, Tensor], rng: Generator) -> Tensor:
        """Returns the value of the policy, with its entropy, (B,)."""
        coded, log_prob = nets.policy.sample_log_prob(nets.policy.context(obs), rng)
        return nets.critic(obs, nets.policy.decode(coded, obs)) - self.temperature * log_prob.sum(1)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy, minus its value at an own and at a demonstrated observation, (B,)."""
        return -(self.value(nets, batch.obs, rng) + self.value(nets, batch.others["expert"].obs, rng)) / 2
