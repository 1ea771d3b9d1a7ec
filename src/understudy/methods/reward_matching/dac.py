from dataclasses import replace

from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.rewards.discriminator_reward import DiscriminatorReward
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil


@method("Kostrikov et al. 2019, arXiv 1809.02925, with the one-sided penalty of Blondé et al. 2022, arXiv 2006.16785",
        rows=("058",), needs=(NUMBERS, ENDS, "an environment"),
        when="if there are a few demonstrations without rewards, and an environment to practice in.")
def dac(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, penalty: float = 10.0) -> Method:
    """Discriminator-actor-critic: TD3 with the reward of a discriminator of demonstrated and of own steps.

    Args:
        penalty: Weight of the gradient penalty of the discriminator.
    """
    reward = DiscriminatorReward(penalty=penalty, one_sided=True, absorbing=True)
    learner = TD3(reward=reward)
    return replace(pwil(n_rounds, n_episodes, noise), learner=learner)
