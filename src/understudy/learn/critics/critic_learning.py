"""Base classes of learners with a critic: the fields of their configs, and their networks and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.base import Head
from ...heads.likelihood.cvae import CVAE, squared_error_loss
from ...nets.base import Trunk
from ...nets.encoders import simplest_encoder
from ...nets.mlp import MLP
from ...policy import Policy, PolicyConfig
from ..algorithm import Algorithm, MetricBound, Net
from ..critic import CriticConfig
from ..fit import LearnerConfig
from ..method import Method
from ..optimizer import OptimizerConfig
from ..targets import REWARD, TERMINATED, ReturnBound, td_terms


@part
class CriticLearningConfig(LearnerConfig):
    """Base class of configs of learners with a critic of the discounted return of plans.

    Args:
        optimizer: Optimizer of the policy and of the critic.
        discount: Discount per step.
        target_decay: Fraction of the target networks that each update keeps.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=CriticConfig)
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995

    extra = (REWARD, TERMINATED)
    next_obs = True


class CriticLearning(CriticLearningConfig, Algorithm):
    """Base class of methods with a critic of the discounted return of plans."""

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        check_plans_begin_now(policy, type(self).__name__)
        return {"critic": Net(self.critic.build(policy), self.optimizer, target=self.target_decay),
                "policy": Net(policy, self.optimizer)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic/score": ReturnBound(data, self.discount)}

    def bootstrapped(self, batch: Batch, value: Tensor) -> Tensor:
        """Returns the rewards of the steps of a plan plus the discounted value of what follows, (..., B)."""
        reward, factor = td_terms(batch, self.discount)
        return reward + factor * value


def check_plans_begin_now(policy: Policy, where: str) -> None:
    """Raises Unsupported if plans begin before or after the step whose rewards are the first that a critic counts."""
    if policy.window.action_offset:
        raise Unsupported(f"the critic scores plans that begin at the current step, and these begin "
                          f"{policy.window.action_offset:+d} steps from it", where=where, hint="use action_offset=0")


def critic_method(head: Head, learner: CriticLearningConfig, features: Schema | None, trunk: Trunk | None = None,
                  **others: Any) -> Method:
    """Builds a method whose policy and critic have encoders that suit the columns of the data.

    Args:
        features: The columns of the data, if they are known.
        trunk: Trunk of the policy. None for ``MLP(256, 2)``.
        **others: Further fields of the method.
    """
    encoder = simplest_encoder(features)
    policy = PolicyConfig(head, trunk or MLP(256, 2), encoder)
    return Method(policy, learner=replace(learner, critic=replace(learner.critic, encoder=encoder)), **others)


def plan_autoencoder(policy: Policy) -> Policy:
    """Returns an autoencoder of plans, with the encoder, the trunk and the codec of a policy."""
    head = CVAE(2 * policy.window.horizon * policy.codec.width)
    autoencoder = Policy(replace(policy.config, head=head), policy.features)
    autoencoder.codec = policy.codec
    return autoencoder


def autoencoder_loss(autoencoder: Policy, batch: Batch, rng: Generator, beta: float) -> Tensor:
    """Returns the negative evidence lower bound of stored plans, (B, H), whose KL divergence has the weight `beta`."""
    context, coded = autoencoder.training_context(batch.obs, rng), autoencoder.encode_batch(batch)
    return squared_error_loss(autoencoder.net, context, coded, batch.mask, rng, beta)


def draw_plans(policy: Policy, obs: Mapping[str, Tensor], n: int, rng: Generator) -> Tensor:
    """Draws n plans of a policy for each observation, within the range and in the units of the data, (B, n, H, A)."""
    coded = policy.sample(policy.context(obs).repeat(n), rng, temperature=1.0).unflatten(0, (-1, n))
    return policy.decode(policy.clip(coded).flatten(1, 2), obs).unflatten(1, (n, -1))
