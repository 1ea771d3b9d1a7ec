from ...core import Schema
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...improve.retention import LastRounds
from ...improve.updates import Epochs
from ...learn.critics.ppo import PPO
from ...learn.method import Method
from ...learn.rewards.discriminator_reward import DiscriminatorReward
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import ENDS, NUMBERS_OR_CLASSES
from ..registry import method


@method("Ho and Ermon 2016, arXiv 1606.03476, with proximal policy optimization in place of trust regions",
        needs=(NUMBERS_OR_CLASSES, ENDS, "an environment"),
        when="if steps in the environment are cheap, or actions are classes; otherwise `dac`, which needs fewer steps.")
def gail(n_rounds: int = 50, n_steps: int = 1024, n_epochs: int = 10, penalty: float = 10.0,
         features: Schema | None = None) -> Method:
    """Generative adversarial imitation: PPO with the positive reward -log(1 - D) of a discriminator D.

    Args:
        n_epochs: How often the updates of a round read each of its steps.
        penalty: Weight of the gradient penalty of the discriminator.
    """
    head, encoder = choose_head(features, SquashedGaussian("free")), simplest_encoder(features)
    collector = RolloutCollector(n_steps=n_steps, exploration=TemperatureExploration())
    learner = PPO(reward=DiscriminatorReward("gail", penalty=penalty, encoder=encoder), reward_every=4)
    return Method(PolicyConfig(head, FeedForward((64, 64), "tanh"), encoder), learner=learner,
                  collection=CollectionRounds(n_rounds, collector, retention=LastRounds(1), updates=Epochs(n_epochs)))
