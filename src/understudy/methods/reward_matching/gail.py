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


@method("Ho and Ermon 2016, arXiv 1606.03476, with TD3 in place of trust regions",
        needs=(NUMBERS, ENDS, "an environment"),
        when="if good episodes of the task last long; otherwise `dac`, whose reward has both signs.")
def gail(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, penalty: float = 10.0) -> Method:
    """Generative adversarial imitation: an actor-critic with the positive reward -log(1 - D) of a discriminator D.

    Args:
        n_rounds: Number of collection rounds.
        n_episodes: Number of episodes in each round.
        noise: Standard deviation of the noise on the actions while collecting, in the units of the action.
        penalty: Weight of the gradient penalty of the discriminator.
    """
    return Method(
        PolicyConfig(Regression(), FeedForward(), window=Window(1, 1)),
        RecedingHorizon(),
        OffPolicyActorCritic(bc_weight=0.0, reward=DiscriminatorReward("gail", penalty=penalty)),
        collection=CollectionRounds(n_rounds, RolloutCollector(n_episodes, GaussianExploration(noise))),
    )
