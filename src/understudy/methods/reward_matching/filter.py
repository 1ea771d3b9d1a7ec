from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ...core import AtLeast, Below, Unsupported, part
from ...data.episode import Dataset, Episode
from ...data.mixture import expert_episodes
from ...envs.base import Env, Restorable
from ...envs.episode_wrappers import DEMONSTRATED_START, DemoStateReset
from ...heads.likelihood.regression import Regression
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.rewards.discriminator_reward import Discriminator, DiscriminatorReward
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import ENDS, NUMBERS
from ..registry import method

OWN_START = "own_start"  # column


@part
class DemonstratedStarts(RolloutCollector):
    """Collector that begins some episodes at states of demonstrations, if the simulator can be set to them.

    Args:
        fraction: Fraction of the episodes.
    """

    fraction: Annotated[float, AtLeast(0), Below(1)] = 0.5

    def check(self, env, person):
        super().check(env, person)
        if not isinstance(env, Restorable):
            raise Unsupported(f"{env.metadata['env']} cannot be put into a demonstrated state", where="filter",
                              hint="use dac, which begins where the environment does, or an environment that can, such "
                                   "as the toys and those of MuJoCo")

    def practice_env(self, training) -> Env:
        return DemoStateReset(training.env, self.states(training), self.fraction)

    def states(self, training) -> Dataset:
        """Returns the episodes at whose states other episodes may begin, by default the demonstrations."""
        return training.data.select(expert_episodes(training.data))


@part
class OwnStartReward(DiscriminatorReward):
    """Reward model config: a discriminator of demonstrations and of episodes with the environment's own start.

    It is not trained on episodes that begin at demonstrated states, because they look like demonstrations whatever the
    policy does.
    """

    def build(self, policy, data):
        built = super().build(policy, data)
        return OwnStartDiscriminator(built.about, built.features, built.codec).to(policy.device)


class OwnStartDiscriminator(Discriminator):
    """The reward model that `OwnStartReward` configures."""

    annotations = (OWN_START,)

    def annotate(self, episodes):
        return episodes.map(_mark_start)

    def loss(self, own, expert, rng) -> Tensor:
        rows = own.extra[OWN_START].reshape(own.mask.shape)[:, 0].bool().nonzero().flatten()
        if not len(rows):
            return 0 * self.logit(expert)
        chosen = rows[torch.arange(len(own), device=rows.device) % len(rows)]
        return super().loss(own.map(lambda column: column[chosen]), expert, rng)


def _mark_start(episode: Episode) -> Episode:
    is_own = not episode.metadata.get(DEMONSTRATED_START, False)
    return episode.replace({OWN_START: np.full((len(episode), 1), is_own)})


@method("Swamy et al. 2023 (FILTER), arXiv 2303.14623, with TD3 in place of SAC",
        rows=("146",), needs=(NUMBERS, ENDS, "an environment that can be put into demonstrated states"),
        when="if practice from the start hardly ever comes near to what demonstrations reach, and the simulator can be "
             "put into their states.")
def filter(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, fraction: float = 0.5) -> Method:
    """Discriminator-actor-critic, half of whose practice begins at states of the demonstrations.

    Args:
        fraction: Fraction of the episodes that do.
    """
    reward = OwnStartReward(penalty=10.0, one_sided=True, absorbing=True)
    collector = DemonstratedStarts(n_episodes, GaussianExploration(noise), fraction=fraction)
    return Method(
        PolicyConfig(Regression(), FeedForward()),
        learner=TD3(reward=reward),
        collection=CollectionRounds(n_rounds, collector),
    )
