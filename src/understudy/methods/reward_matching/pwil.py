from ...heads.likelihood.regression import Regression
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.rewards.transport_reward import PWILReward
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import ENDS, NUMBERS
from ..registry import method


@method("Dadashi et al. 2021, arXiv 2006.04678, with TD3 in place of D4PG",
        needs=(NUMBERS, ENDS, "an environment"),
        when="if there are demonstrations without rewards and an environment, and no second network is trained.")
def pwil(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1) -> Method:
    """TD3 with the reward of a greedy transport of each episode onto the demonstrations."""
    return Method(
        PolicyConfig(Regression(), FeedForward()),
        learner=TD3(reward=PWILReward()),
        collection=CollectionRounds(n_rounds, RolloutCollector(n_episodes, GaussianExploration(noise))),
    )
