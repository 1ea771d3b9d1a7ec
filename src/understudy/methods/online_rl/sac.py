from ...core import Schema
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from ...improve.updates import PerNewStep
from ...learn.critics.sac import SAC
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS, REWARDS
from ..registry import method


@method("Haarnoja et al. 2018, arXiv 1812.05905", needs=(NUMBERS, REWARDS, "an environment"),
        when="if there are rewards and an environment in which steps are cheap; demonstrations help, but need not be.")
def sac(n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 1.0,
        features: Schema | None = None) -> Method:
    """Soft actor-critic: maximizes rewards and the entropy of actions, which stay in the range of the first ones."""
    collector = RolloutCollector(n_steps=n_steps, exploration=TemperatureExploration())
    policy = PolicyConfig(SquashedGaussian(), FeedForward((256, 256)), simplest_encoder(features))
    return Method(policy, learner=SAC(),
                  collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))
