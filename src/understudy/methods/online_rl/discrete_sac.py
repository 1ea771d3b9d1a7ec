from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.categorical import Categorical
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...improve.updates import PerNewStep
from ...learn.critic import mix_networks
from ...learn.critics.action_values import check_classes, class_logits, scored_classes
from ...learn.critics.critic_learning import CriticLearningConfig, critic_method
from ...learn.critics.off_policy_actor_critic import Temperature
from ...learn.gradient_learner import GradientLearner
from ...learn.method import Method
from ...learn.targets import td_loss, td_terms
from ...nets.feed_forward import FeedForward
from ...policy import Policy
from ..needs import CLASSES, STEP_REWARDS
from ..registry import method


@part
class DiscreteSAC(CriticLearningConfig):
    """Soft actor-critic whose critic scores each class.

    Args:
        temperature: First weight of the entropy, in units of the reward.
        target_entropy: Entropy to which the temperature is adjusted, as a fraction of that of equally likely classes.

    References:
        Christodoulou (2019), Soft Actor-Critic for Discrete Action Settings, arXiv:1910.07207.
    """

    temperature: Annotated[float, Above(0)] = 1.0
    target_entropy: Annotated[float, AtLeast(0), AtMost(1)] = 0.98

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> DiscreteSACLearner:
        return DiscreteSACLearner(self, policy, seed, steps)


class DiscreteSACLearner(GradientLearner):
    """Learner of `DiscreteSAC`."""

    config: DiscreteSAC

    def __init__(self, config: DiscreteSAC, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        config.critic.check_no_subset()
        self.target_entropy = config.target_entropy * math.log(check_classes(policy, "DiscreteSAC"))
        self.temperature = Temperature(config.temperature, is_trained=True).to(policy.device)
        self.critic = self.register("critic", config.critic.build(policy), config.optimizer)
        self.register("policy", policy, config.optimizer, auxiliary=[self.temperature])
        self.target_critic = self.target_network("critic", config.target_decay)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        self.minimize("critic", self.critic_loss, batch)
        self.minimize("policy", self.policy_loss, batch)
        return self.end_update()

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the Huber loss of the score of the stored class, summed over the networks, (B,)."""
        quantiles, levels = self.critic.training_quantiles(batch.obs, batch.action, rng)
        self.log(score=quantiles.mean((0, 1)))
        return td_loss(quantiles, self.target_value(batch), levels, huber=True).sum(0)

    @torch.no_grad()
    def target_value(self, batch: Batch) -> Tensor:
        """Returns the reward plus the discounted score and entropy that the policy expects next, (n_quantiles, B)."""
        assert batch.next is not None
        log_prob = class_logits(self.policy, batch.next).log_softmax(1)
        quantiles = mix_networks(scored_classes(self.target_critic, batch.next))
        value = (log_prob.exp() * (quantiles - self.temperature() * log_prob)).sum(-1)
        reward, bootstrap = td_terms(batch, self.config.discount)
        return reward + bootstrap * value

    def policy_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the loss of the policy and that of the temperature, (B,) each.

        The policy's is the expected weighted log-probability minus the expected score.
        """
        log_prob = class_logits(self.policy, batch.obs).log_softmax(1)
        with torch.no_grad():
            scores = scored_classes(self.critic, batch.obs).mean(1).amin(0)
        entropy = -(log_prob.exp() * log_prob).sum(1)
        temperature = self.temperature().detach()
        self.log(temperature=temperature.expand_as(entropy), entropy=entropy)
        loss = -temperature * entropy - (log_prob.exp() * scores).sum(1)
        return loss, self.temperature.log * (entropy.detach() - self.target_entropy)


@method("Christodoulou 2019, arXiv 1910.07207", needs=(CLASSES, STEP_REWARDS, "an environment"),
        when="if actions are classes, and several good ones stay likely; dqn is simpler and takes the best one.")
def discrete_sac(n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 1.0, target_entropy: float = 0.98,
                 features: Schema | None = None) -> Method:
    """Soft actor-critic for classes: maximizes rewards and the entropy of its actions.

    Args:
        target_entropy: Entropy of the actions, as a fraction of that of equally likely classes. Where rewards are rare,
            use less, and a small --learner.temperature.
    """
    collector = RolloutCollector(n_steps=n_steps, exploration=TemperatureExploration())
    return critic_method(Categorical(), DiscreteSAC(target_entropy=target_entropy), features, FeedForward((256, 256)),
                         collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))
