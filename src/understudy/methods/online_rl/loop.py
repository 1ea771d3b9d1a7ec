from __future__ import annotations

from typing import Annotated

from ...core import AtLeast, Schema, part
from ...envs.episode_wrappers import RepeatedStarts
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


@part
class RepeatedStartsCollector(RolloutCollector):
    """Collector that rolls the policy out several times from each start.

    Args:
        n_repeats: Number of consecutive episodes from each start.
    """

    n_repeats: Annotated[int, AtLeast(2)] = 2

    def practice_env(self, training):
        return RepeatedStarts(training.env, self.n_repeats)


@method("Chen et al. 2025 (LOOP), arXiv 2502.01600, for language agents; here with the clipped ratio of PPO",
        needs=(NUMBERS_OR_CLASSES, REWARDS, "an environment"),
        when="if success is known only at the end, a policy succeeds sometimes, and starts can be repeated; with "
             "--from RUN.")
def loop(n_rounds: int = 60, n_starts: int = 40, n_repeats: int = 6, n_epochs: int = 2,
         features: Schema | None = None) -> Method:
    """PPO without a value: an episode is compared with others from the same start (leave one out).

    Args:
        n_starts: Number of starts in each round.
        n_repeats: Number of episodes from each start.
        n_epochs: How often the updates of a round read each of its steps.
    """
    head = choose_head(features, SquashedGaussian("free"))
    collector = RepeatedStartsCollector(n_starts * n_repeats, TemperatureExploration(), n_repeats=n_repeats)
    policy = PolicyConfig(head, FeedForward((64, 64), "tanh"), simplest_encoder(features))
    return Method(policy, learner=PPO(group_size=n_repeats, discount=1.0, clip=0.1),
                  collection=CollectionRounds(n_rounds, collector, retention=LastRounds(1), updates=Epochs(n_epochs)))
