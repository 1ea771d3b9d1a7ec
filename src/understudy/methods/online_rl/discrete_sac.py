from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, AtMost, Batch, Schema, part
from ...data.episode import Dataset
from ...heads.likelihood.categorical import Categorical
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...improve.updates import PerNewStep
from ...learn.algorithm import MetricBound, Net, loss
from ...learn.critic import mix_networks
from ...learn.critics.action_values import check_classes, class_logits, scored_classes
from ...learn.critics.critic_learning import CriticLearning, critic_method
from ...learn.critics.sac import Temperature
from ...learn.method import Method
from ...learn.targets import td_loss
from ...nets.feed_forward import FeedForward
from ...policy import Policy
from ..needs import CLASSES, STEP_REWARDS
from ..registry import method


@method("Christodoulou 2019, arXiv 1910.07207", needs=(CLASSES, STEP_REWARDS, "an environment"),
        when="if actions are classes, and several good ones stay likely; dqn is simpler and takes the best one.")
@part
class DiscreteSAC(CriticLearning):
    """Soft actor-critic for classes: maximizes rewards and the entropy of its actions.

    The critic scores each class.

    Args:
        temperature: First weight of the entropy, in units of the reward.
        target_entropy: Entropy to which the temperature is adjusted, as a fraction of that of equally likely classes.
            Where rewards are rare, use less, and a small `temperature`.

    References:
        Christodoulou (2019), Soft Actor-Critic for Discrete Action Settings, arXiv:1910.07207.
    """

    temperature: Annotated[float, Above(0)] = 1.0
    target_entropy: Annotated[float, AtLeast(0), AtMost(1)] = 0.98

    def method(self, features: Schema | None = None, n_rounds: int = 100, n_steps: int = 200,
               updates_per_step: float = 1.0) -> Method:
        collector = RolloutCollector(n_steps=n_steps, exploration=TemperatureExploration())
        return critic_method(Categorical(), self, features, FeedForward((256, 256)),
                             collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        self.critic.check_no_subset()
        check_classes(policy, "DiscreteSAC")
        temperature = Temperature(self.temperature, is_trained=True)
        return {**super().networks(policy, data), "temperature": Net(temperature, trained_with="policy")}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {}  # scores have the weighted entropy

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the Huber loss of the score of the stored class, summed over the networks, (B,)."""
        quantiles, levels = nets.critic.training_quantiles(batch.obs, batch.action, rng)
        losses = td_loss(quantiles, self.target_value(nets, batch), levels, huber=True)
        return losses.sum(0), {"score": quantiles.mean((0, 1))}

    @torch.no_grad()
    def target_value(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the reward plus the discounted score and entropy that the policy expects next, (n_quantiles, B)."""
        assert batch.next is not None
        log_prob = class_logits(nets.policy, batch.next).log_softmax(1)
        quantiles = mix_networks(scored_classes(nets.target.critic, batch.next))
        return self.bootstrapped(batch, (log_prob.exp() * (quantiles - nets.temperature() * log_prob)).sum(-1))

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the loss of the policy and the loss of the temperature, (B,) each.

        The loss of the policy is the expected weighted log-probability minus the expected score.
        """
        log_prob = class_logits(nets.policy, batch.obs).log_softmax(1)
        with torch.no_grad():
            scores = scored_classes(nets.critic, batch.obs).mean(1).amin(0)
        entropy = -(log_prob.exp() * log_prob).sum(1)
        temperature = nets.temperature().detach()
        target_entropy = self.target_entropy * math.log(log_prob.shape[1])
        return (-temperature * entropy - (log_prob.exp() * scores).sum(1),
                nets.temperature.log * (entropy.detach() - target_entropy),
                {"temperature": temperature.expand_as(entropy), "entropy": entropy})
