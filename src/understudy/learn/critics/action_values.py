"""Values of actions that are classes, which a policy has as its logits: deep Q-learning, its conservative form, and
IQ-Learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, AtMost, Batch, Context, Unsupported, part
from ...data.episode import Dataset
from ...heads.likelihood.categorical import Categorical
from ...nets.quantile_layer import draw_levels
from ...policy import Policy
from ..algorithm import Algorithm, MetricBound, Net, loss
from ..critic import Critic
from ..optimizer import OptimizerConfig
from ..targets import REWARD, TERMINATED, ReturnBound, td_loss, td_terms


@part
class ActionValues(Algorithm):
    """Double Q-learning for discrete actions, with a network that has an output for each class.

    The logits of the policy are the discounted returns of the classes, so that its most likely class is the best one.
    The policy chooses the class after a step, and its slowly updated copy scores it. With `n_quantiles` of the head,
    the values are means of quantiles of the return (QR-DQN).

    Args:
        discount: Discount per step.
        target_decay: Fraction of the target network that each update keeps.
        double: Whether the policy chooses the class after a step. False: the copy does, as in plain Q-learning.
        conservative_weight: Weight of the cross-entropy of the stored classes, which keeps the values of others low.
            Above 0 in discrete CQL.

    References:
        Mnih et al. (2015), Human-Level Control through Deep Reinforcement Learning, Nature 518.
        Van Hasselt et al. (2016), Deep Reinforcement Learning with Double Q-Learning, arXiv:1509.06461.
        Kumar et al. (2020), Conservative Q-Learning for Offline Reinforcement Learning, arXiv:2006.04779.
        Dabney et al. (2018), Distributional Reinforcement Learning with Quantile Regression, arXiv:1710.10044.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    double: bool = True
    conservative_weight: Annotated[float, AtLeast(0)] = 0.0

    extra = (REWARD, TERMINATED)
    next_obs = True

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        check_classes(policy, type(self).__name__)
        return {"policy": Net(policy, self.optimizer, target=self.target_decay)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"value": ReturnBound(data, self.discount)}

    @loss("policy")
    def value_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the Huber loss of the value of the stored class, and its weighted cross-entropy, (B,)."""
        quantiles, levels = training_quantiles(nets.policy, batch.obs, rng)
        stored = (quantiles * nets.policy.encode_batch(batch)[:, 0]).sum(-1)
        value = stored.mean(0)
        conservative = self.conservative_weight * (quantiles.mean(0).logsumexp(1) - value)
        return td_loss(stored, self.target_value(nets, batch), levels, huber=True) + conservative, {"value": value}

    @torch.no_grad()
    def target_value(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the reward plus the discounted value of the best next class, (n_quantiles, B)."""
        assert batch.next is not None
        target = nets.target.policy
        best = class_logits(nets.policy if self.double else target, batch.next).argmax(1)[None, :, None]
        reward, bootstrap = td_terms(batch, self.discount)
        return reward + bootstrap * class_quantiles(target, batch.next).take_along_dim(best, -1)[..., 0]


@part
class InverseActionValues(Algorithm):
    """IQ-Learn for discrete actions: the policy's logits are soft values under which demonstrations are rewarded.

    With V(s) = temperature * logsumexp(Q(s, .) / temperature), the reward of a step is r = Q(s, a) - discount * V(s').
    Each demonstrated step raises r, lowers V(s) - discount * V(s'), and keeps r^2 / (4 * divergence_weight) small. It
    learns from stored steps alone.

    Args:
        discount: Discount per step.
        temperature: Weight of the entropy, in units of the reward.
        divergence_weight: Weight of the chi-square divergence: a large one allows large rewards.

    References:
        Garg et al. (2021), IQ-Learn: Inverse soft-Q Learning for Imitation, arXiv:2106.12142.
        Wulfmeier et al. (2024), Imitating Language via Scalable Inverse Reinforcement Learning, arXiv:2409.01369.
    """

    steps: Annotated[int, AtLeast(0)] = 3000
    batch_size: Annotated[int, AtLeast(1)] = 32
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    temperature: Annotated[float, Above(0)] = 0.001
    divergence_weight: Annotated[float, Above(0)] = 0.5

    extra = (TERMINATED,)
    next_obs = True

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        check_classes(policy, type(self).__name__)
        return {"policy": Net(policy, self.optimizer)}

    @loss("policy")
    def inverse_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of the values of a demonstrated step, (B,)."""
        assert batch.next is not None
        scores = class_logits(nets.policy, batch.obs)
        goes_on = 1 - batch.extra[TERMINATED].reshape(batch.mask.shape)[:, 0].float()
        after = self.discount * goes_on * self.value(class_logits(nets.policy, batch.next))
        reward = (scores * nets.policy.encode_batch(batch)[:, 0]).sum(-1) - after
        divergence = reward.square() / (4 * self.divergence_weight)
        return self.value(scores) - after - reward + divergence, {"reward": reward}

    def value(self, scores: Tensor) -> Tensor:
        """Returns the value of the softmax policy of scores, with its entropy, (B,)."""
        return self.temperature * (scores / self.temperature).logsumexp(-1)


def class_logits(policy: Policy, obs: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits that a policy gives to the classes of its first step, (B, classes)."""
    head = policy.config.head
    assert isinstance(head, Categorical)
    return head.logits(*of_first_step(policy, obs))[:, 0]


def class_quantiles(policy: Policy, obs: Mapping[str, Tensor], levels: Tensor | None = None) -> Tensor:
    """Returns the quantiles of the values that a policy gives to the classes, (n_quantiles, B, classes).

    Args:
        levels: Levels of the quantiles, (B, n_quantiles). None: equally spaced.
    """
    head = policy.config.head
    assert isinstance(head, Categorical)
    return head.quantiles(*of_first_step(policy, obs), levels)[:, :, 0]


def training_quantiles(policy: Policy, obs: Mapping[str, Tensor], rng: Generator) -> tuple[Tensor, Tensor | None]:
    """Returns the `class_quantiles` for the `td_loss`, and their levels, (n_quantiles, B): None if equally spaced."""
    head = policy.config.head
    assert isinstance(head, Categorical)
    if not head.draw_levels:
        return class_quantiles(policy, obs), None
    levels = draw_levels(len(next(iter(obs.values()))), head.n_quantiles, rng)
    return class_quantiles(policy, obs, levels), levels.T


def of_first_step(policy: Policy, obs: Mapping[str, Tensor]) -> tuple[nn.Module, Context, Tensor]:
    """Returns network, context and noise, as a `Categorical` head needs them for the first step."""
    context = policy.context(obs)
    return policy.net, context, context.tokens.new_zeros(len(context.tokens), 1, 0)


def scored_classes(critic: Critic, obs: Mapping[str, Tensor]) -> Tensor:
    """Returns the quantiles that the networks of a critic give to each class, (n_critics, n_quantiles, B, classes)."""
    n_classes, encoded = critic.features[critic.about.target].num_classes, critic.encode(obs)
    assert n_classes is not None
    first = encoded.features[0]
    plans = torch.arange(n_classes[0], device=first.device).reshape(1, -1, 1, 1)
    return critic.quantiles(encoded, plans.expand(len(first), -1, 1, 1))


def check_classes(policy: Policy, where: str) -> int:
    """Returns the number of classes. Raises an error unless a policy chooses one class in each step.

    Raises:
        Unsupported: The policy does something else.
    """
    head, window, n_classes = policy.config.head, policy.window, policy.target.num_classes or ()
    if not isinstance(head, Categorical) or head.autoregressive or len(n_classes) != 1:
        raise Unsupported("each class of one component is scored, by the logits of a Categorical head", where=where,
                          hint="use Categorical(), and actions that are one of several classes")
    if window.horizon > 1 or window.action_offset:
        raise Unsupported("the scores are of single steps", where=where,
                          hint="use Window(horizon=1, action_offset=0)")
    return n_classes[0]
