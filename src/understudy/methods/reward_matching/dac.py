from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.regression import Regression
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.discriminator_reward import DiscriminatorReward
from ...learn.method import Method
from ...learn.off_policy_actor_critic import OffPolicyActorCritic
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import ENDS, NUMBERS
from ..registry import method


@method("Kostrikov et al. 2019, arXiv 1809.02925, without absorbing states, and with the one-sided penalty of Blondé "
        "et al. 2022, arXiv 2006.16785",
        rows=("058",), needs=(NUMBERS, ENDS, "an environment"),
        when="if there are a few demonstrations without rewards, and an environment to practice in.")
def dac(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, penalty: float = 10.0) -> Method:
    """Discriminator-actor-critic: TD3 with the reward of a discriminator of demonstrated and of own steps.

    Args:
        n_rounds: Number of collection rounds.
        n_episodes: Number of episodes in each round.
        noise: Standard deviation of the noise on the actions while collecting, in the units of the action.
        penalty: Weight of the gradient penalty of the discriminator.
    """
    return Method(
        PolicyConfig(Regression(), FeedForward(), window=Window(1, 1)),
        RecedingHorizon(),
        OffPolicyActorCritic(bc_weight=0.0, reward=DiscriminatorReward(penalty=penalty, one_sided=True)),
        collection=CollectionRounds(n_rounds, RolloutCollector(n_episodes, GaussianExploration(noise))),
    )
