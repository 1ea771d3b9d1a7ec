from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Annotated

from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Unsupported, part
from ...data.episode import Dataset
from ...learn.critic import CriticConfig
from ...learn.fit import LearnerConfig
from ...learn.gradient_learner import GradientLearner
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.reward_models import demonstrations_end, warn_of_ends
from ...learn.targets import TERMINATED, check_bounded
from ...policy import Policy
from ..needs import ENDS, NUMBERS
from ..registry import method
from .airl import airl


@part
class IQLearn(LearnerConfig):
    """Inverse soft Q-learning: maximum-entropy imitation in which the critic stands for the reward.

    With r = Q(s, a) - discount * V(s'), and V the value of the policy with its entropy, the critic raises r at
    demonstrated steps and lowers the value of the policy, while r^2 / (4 * divergence_weight) keeps r small. It needs
    no other episodes, and learns more from those that the policy collects.

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

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> IQLearner:
        return IQLearner(self, policy, seed, steps, data)


class IQLearner(GradientLearner):
    """Learner of `IQLearn`."""

    config: IQLearn

    def __init__(self, config: IQLearn, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        if policy.target.kind == "discrete" or policy.window.horizon > 1 or policy.window.action_offset:
            raise Unsupported("the critic scores single actions that are numbers, of the current step", where="IQLearn",
                              hint="use a policy with horizon=1 and action_offset=0, for continuous actions")
        config.critic.check_no_quantiles()
        config.critic.check_no_subset()
        policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.policy_optimizer)
        self.warns_of_ends = not demonstrations_end(data)  # once

    def update(self, batch: Batch) -> dict[str, float]:
        if self.warns_of_ends and bool(batch.extra[TERMINATED].any()):
            self.warns_of_ends = False
            warn_of_ends("IQLearn")
        self.minimize("critic", self.critic_loss, batch)
        self.minimize("policy", self.policy_loss, batch)
        metrics = self.end_update()
        if self.config.discount < 1:
            largest = 2 * self.config.divergence_weight + self.config.temperature * math.prod(self.policy.noise_shape)
            check_bounded(metrics["critic/score"], largest / (1 - self.config.discount), self.n_updates)
        return metrics

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the critic for a row of the policy and one of a demonstration, (B,)."""
        expert = batch.others["expert"]
        (own_r, own_drop), (expert_r, expert_drop) = (self.rewards(part, rng) for part in (batch, expert))
        divergence = (own_r.square() + expert_r.square()).mean(0) / 2 / (4 * self.config.divergence_weight)
        return -expert_r.mean(0) + (own_drop + expert_drop) / 2 + divergence

    def rewards(self, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the reward of each critic network by the inverse Bellman operator, (C, B), and V(s) - discount *
        V(s'), (B,)."""
        assert batch.next is not None
        goes_on = 1 - batch.extra[TERMINATED].reshape(batch.mask.shape)[:, 0].float()
        after = self.config.discount * goes_on * self.value(batch.next, rng)
        scores = self.critic.scores(batch.obs, batch.action)
        self.log(score=scores.mT)
        return scores - after, self.value(batch.obs, rng) - after

    def value(self, obs, rng: Generator) -> Tensor:
        """Returns the value of the policy, with its entropy, (B,)."""
        score, log_prob = self._score(obs, rng)
        return score - self.config.temperature * log_prob

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy, minus its value at an own and at a demonstrated observation, (B,)."""
        return -(self.value(batch.obs, rng) + self.value(batch.others["expert"].obs, rng)) / 2

    def _score(self, obs, rng: Generator) -> tuple[Tensor, Tensor]:
        coded, log_prob = self.policy.sample_log_prob(self.policy.context(obs), rng)
        return self.critic(obs, self.policy.decode(coded, obs)), log_prob.sum(1)


@method("Garg et al. 2021, arXiv 2106.12142", needs=(NUMBERS, ENDS, "an environment"),
        when="if a critic alone is learned from demonstrations; with three of them on the fork it stayed below "
             "cloning in pilots, so try `dac` first.")
def iq_learn(n_rounds: int = 50, n_episodes: int = 4, temperature: float = 0.01) -> Method:
    """Inverse soft Q-learning: a critic learns from demonstrations and own episodes, without a reward in between."""
    return replace(airl(n_rounds, n_episodes), learner=IQLearn(temperature=temperature))
