from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from torch import Generator, Tensor

from ...core import AtLeast, Batch, ConfigError, Schema, part
from ...data.batch_sampler import join_batches
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import Algorithm, Net, loss, prepare
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.discriminator_reward import DiscriminatorReward
from ...nets.mlp import MLP
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, OTHER_EPISODES
from ..registry import method


@method("Li et al. 2023 (ISW-BC), NeurIPS", needs=(NUMBERS, OTHER_EPISODES),
        when="if few demonstrations come with many other episodes, some steps of which are like demonstrated ones.")
@part
class ISWBC(Algorithm):
    """Clones all episodes, each step weighted by a discriminator of demonstrations and other episodes (ISW-BC).

    The weight of a step is its density among the demonstrations, divided by its density in a batch. Half of a batch are
    demonstrations, so that this ratio is ``2 * sigmoid(logit)`` with the logit of the discriminator.

    Args:
        reward: The discriminator. A large `penalty` of its gradient weighs all steps alike.

    References:
        Li et al. (2023), Imitation Learning from Imperfection: Theoretical Justifications and Algorithms, NeurIPS.
    """

    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reward: DiscriminatorReward = field(default_factory=DiscriminatorReward)

    compares = needs_others = True

    def __post_init__(self):
        if self.reward.form != "logit" or self.reward.inputs == "next" or self.reward.absorbing:
            raise ConfigError("the weight of a step is the logit of the step alone", where="ISWBC.reward",
                              hint='use form="logit", inputs="action" or "state", and absorbing=False')

    def method(self, features: Schema | None = None) -> Method:
        return Method(PolicyConfig(Gaussian(), MLP(256, 2)), learner=self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {"policy": Net(policy, self.optimizer),
                "reward": Net(self.reward.build(policy, data), self.reward.optimizer)}

    @loss("reward")
    def reward_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.reward.loss(batch, batch.others["expert"], rng)

    @prepare
    def joined(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Adds the demonstrations to the batch as further rows."""
        return join_batches([batch, batch.others["expert"]])

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weights of the rows, (B,). Those of the demonstrations are not logged."""
        weights = 2 * nets.reward.reward(batch, nets.policy)[:, 0].sigmoid()
        return weights, {"weight": weights[:len(batch) // 2]}

    @loss("policy", weights="weight")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)
