from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from ...core import AtLeast, Batch, ConfigError, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.denoising.flow import Flow
from ...learn.critics.critic_learning import CriticLearningConfig, check_plans_begin_now, critic_method
from ...learn.gradient_learner import GradientLearner
from ...learn.method import Method
from ...learn.targets import td_loss, td_terms
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class FQL(CriticLearningConfig):
    """Flow Q-learning: offline reinforcement learning with a policy of several modes.

    A flow clones the data. The policy makes an action from noise in one step. It maximizes the critic's score, and
    stays close to what the flow makes from the same noise.

    Args:
        distance_weight: Weight of the mean squared distance to the flow, in coded units, relative to a score of mean
            absolute value 1.
        n_steps: Number of integration steps of the flow.

    References:
        Park et al. (2025), Flow Q-Learning, arXiv:2502.02538, with the normalization of scores that its code offers.
    """

    distance_weight: Annotated[float, AtLeast(0)] = 10.0
    n_steps: Annotated[int, AtLeast(1)] = 10

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> FQLLearner:
        return FQLLearner(self, policy, seed, steps, data)


class FQLLearner(GradientLearner):
    """Learner of `FQL`."""

    config: FQL

    def __init__(self, config: FQL, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        check_plans_begin_now(policy, type(config).__name__)
        config.critic.check_no_subset()
        if not isinstance(policy.config.head, Flow):
            raise Unsupported(f"the head is {type(policy.config.head).__name__}, but noise must have the shape of an "
                              "action", where="FQL", hint='use Flow(1, prediction="sample")')
        flow = Flow(config.n_steps)
        if (ignored := next((name for name in ("time_distribution", "times", "coupling", "condition_weight")
                             if getattr(policy.config.head, name) != getattr(flow, name)), None)) is not None:
            raise ConfigError("no loss of the head trains the policy, and the flow that clones has the default",
                              where=f"Flow.{ignored}", hint='leave it out, as Flow(1, prediction="sample") does')
        self.flow = Policy(replace(policy.config, head=flow), policy.features)
        self.flow.codec = policy.codec
        self.register("flow", self.flow, config.optimizer)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.bound = self.score_bound(data, config.discount)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("critic", self.critic_loss, batch)
        self.minimize("flow", self.flow.loss, batch)
        self.minimize("policy", self.policy_loss, batch)
        metrics = self.end_update()
        self.bound.check(metrics["critic/score"], batch, self.n_updates)
        return metrics

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the `td_loss` against rewards and the policy's return, summed over the networks, (B,)."""
        assert batch.next is not None
        reward, bootstrap = td_terms(batch, self.config.discount)
        with torch.no_grad():
            coded = self.policy.clip(self.policy.sample(self.policy.context(batch.next), rng))
            value = self.target_critic.quantiles(batch.next, self.policy.decode(coded, batch.next)).mean(0)
        quantiles, levels = self.critic.training_quantiles(batch.obs, batch.action, rng)
        self.log(score=quantiles.mean((0, 1)))
        return td_loss(quantiles, reward + bootstrap * value, levels).sum(0)

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted distance to the flow minus the score, relative to its size, (B,)."""
        noise = torch.randn(len(batch), *self.policy.noise_shape, generator=rng, device=self.device)
        coded = self._from_noise(self.policy, batch, noise)
        with torch.no_grad():
            cloned = self.policy.clip(self._from_noise(self.flow, batch, noise))
        distance = (coded - cloned).square().mean((1, 2))
        plan = self.policy.decode(self.policy.clip(coded), batch.obs)
        score = self.critic.scores(batch.obs, plan).mean(0)
        return self.config.distance_weight * distance - score / score.detach().abs().mean().clamp(min=1e-6)

    def _from_noise(self, policy: Policy, batch: Batch, noise: Tensor) -> Tensor:
        return policy.config.head.sample(policy.net, policy.context(batch.obs), noise)


@method("Park et al. 2025 (FQL), arXiv 2502.02538", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, the demonstrators act in several ways, and plans must be fast.")
def fql(distance_weight: float = 10.0, features: Schema | None = None) -> Method:
    """Flow Q-learning: a one-step policy that maximizes scores and stays close to a flow that clones the data."""
    return critic_method(Flow(1, prediction="sample"), FQL(distance_weight=distance_weight), features)
