from ...core import Schema
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...improve.updates import PerNewStep
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS, REWARDS
from ..registry import method


@method("Fujimoto et al. 2018, arXiv 1802.09477", needs=(NUMBERS, REWARDS, "an environment"),
        when="if sac fits and one best action is wanted, not a distribution; its noise needs the scale of the actions.")
def td3(n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 1.0, noise: float = 0.1,
        features: Schema | None = None) -> Method:
    """TD3: a deterministic actor-critic with two critics, whose actions stay in the range of the first ones."""
    collector = RolloutCollector(n_steps=n_steps, exploration=GaussianExploration(noise))
    policy = PolicyConfig(SquashedGaussian("free"), FeedForward((256, 256)), simplest_encoder(features))
    return Method(policy, learner=TD3(),
                  collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))
