from ...core import Schema
from ...data.running_normalizer import RunningNormalizer
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...improve.retention import LastRounds
from ...improve.updates import Epochs
from ...learn.critics.ppo import PPO
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, REWARDS
from ..registry import method


@method("Schulman et al. 2017, arXiv 1707.06347", needs=(NUMBERS_OR_CLASSES, REWARDS, "an environment"),
        when="if there are rewards and a fast environment; it needs more steps than sac, and also learns classes.")
def ppo(n_rounds: int = 50, n_steps: int = 2048, n_epochs: int = 10, entropy_weight: float = 0.0,
        cloning_weight: float = 0.0, features: Schema | None = None) -> Method:
    """Proximal policy optimization, on the newest episodes alone. Observations are scaled by all steps so far.

    Args:
        n_epochs: How often the updates of a round read each of its steps.
        cloning_weight: Weight of the loss of behavior cloning, on as many steps of demonstrations as of the policy.
    """
    head = choose_head(features, SquashedGaussian("free"))
    collector = RolloutCollector(n_steps=n_steps, exploration=TemperatureExploration())
    policy = PolicyConfig(head, FeedForward((64, 64), "tanh"), simplest_encoder(features), RunningNormalizer())
    return Method(policy, learner=PPO(entropy_weight=entropy_weight, cloning_weight=cloning_weight),
                  collection=CollectionRounds(n_rounds, collector, retention=LastRounds(1), updates=Epochs(n_epochs)))
