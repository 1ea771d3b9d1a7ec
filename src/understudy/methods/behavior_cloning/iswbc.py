from __future__ import annotations

from dataclasses import field
from typing import Annotated

from ...core import AtLeast, Batch, ConfigError, part
from ...data.batch_sampler import join_batches
from ...data.episode import Dataset
from ...heads.likelihood.gaussian import Gaussian
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.discriminator_reward import DiscriminatorReward
from ...learn.rewards.reward_models import RewardedConfig, RewardedLearner, RewardModel
from ...nets.mlp import MLP
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, OTHER_EPISODES
from ..registry import method


@part
class DiscriminatorWeightedCloning(RewardedConfig):
    """Clones demonstrations and other steps, each weighted by the ratio of the demonstrations' density to that of both.

    A batch is half demonstrations. With the logit of the discriminator, the ratio is ``2 * sigmoid(logit)``.

    Args:
        reward: The discriminator.

    References:
        Li et al. (2023), Imitation Learning from Imperfection: Theoretical Justifications and Algorithms, NeurIPS.
    """

    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    reward: DiscriminatorReward = field(default_factory=DiscriminatorReward)

    extra = ()

    def __post_init__(self):
        if self.reward.form != "logit" or self.reward.inputs == "next" or self.reward.absorbing:
            raise ConfigError("the weight of a step is the logit of the step alone",
                              where="DiscriminatorWeightedCloning.reward",
                              hint='use form="logit", inputs="action" or "state", and absorbing=False')

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> DiscriminatorWeightedCloningLearner:
        return DiscriminatorWeightedCloningLearner(self, policy, seed, steps, data)


class DiscriminatorWeightedCloningLearner(RewardedLearner):
    """Learner of `DiscriminatorWeightedCloning`."""

    reward: RewardModel
    config: DiscriminatorWeightedCloning

    def __init__(self, config: DiscriminatorWeightedCloning, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        self.register("policy", policy, config.optimizer)
        self.register_reward(data)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        self.minimize("reward", self.reward_loss, batch)
        both = join_batches([batch, batch.others["expert"]])
        with self.evaluation():
            weights = 2 * self.reward.reward(both, self.policy)[:, 0].sigmoid()
        self.minimize("policy", self.policy.loss, both, weights)
        return self.end_update(weight=weights[:len(batch)].mean().item())


@method("Li et al. 2023 (ISW-BC), NeurIPS", needs=(NUMBERS, OTHER_EPISODES),
        when="if few demonstrations come with many other episodes, some steps of which are like demonstrated ones.")
def iswbc(penalty: float = 10.0) -> Method:
    """Clones all steps, weighted by a discriminator that tells demonstrations from the others.

    Args:
        penalty: Weight of the gradient penalty of the discriminator. Large values weigh all steps alike.
    """
    learner = DiscriminatorWeightedCloning(reward=DiscriminatorReward(penalty=penalty))
    return Method(PolicyConfig(Gaussian(), MLP(256, 2)), learner=learner)
