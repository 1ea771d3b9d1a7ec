from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...learn.critics.sac import SAC
from ...learn.method import Method
from ...learn.rewards.discriminator_reward import DiscriminatorReward
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import ENDS, NUMBERS
from ..registry import method


@method("Fu et al. 2018, arXiv 1710.11248, with soft actor-critic in place of trust regions",
        needs=(NUMBERS, ENDS, "an environment"),
        when="if the learned reward is used elsewhere: it is saved as the module reward; otherwise `dac`.")
def airl(n_rounds: int = 50, n_episodes: int = 4, temperature: float = 1.0, penalty: float = 10.0) -> Method:
    """Adversarial inverse reinforcement learning: soft actor-critic with a reward that shaping does not change.

    Args:
        temperature: Weight of the entropy, in units of the reward. With 1 the reward is that of the paper.
        penalty: Weight of the gradient penalty of the reward.
    """
    learner = SAC(temperature=temperature, target_entropy=None, reward=DiscriminatorReward("airl", penalty=penalty))
    return Method(PolicyConfig(SquashedGaussian(), FeedForward()), learner=learner,
                  collection=CollectionRounds(n_rounds, RolloutCollector(n_episodes, TemperatureExploration())))
