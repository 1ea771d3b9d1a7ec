from dataclasses import replace

from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.rewards.reward_models import ConstantReward
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil


@method("Reddy et al. 2020, arXiv 1905.11108, with TD3 in place of soft Q-learning",
        needs=(NUMBERS, ENDS, "an environment"),
        when="if there are demonstrations without rewards and an environment, and nothing besides the actor-critic "
             "is tuned; try `dac` first.")
def sqil(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1) -> Method:
    """An actor-critic for which each demonstrated step has the reward 1 and each own step 0, half of a batch each."""
    collector = RolloutCollector(n_episodes, GaussianExploration(noise))
    return replace(pwil(), learner=TD3(reward=ConstantReward()),
                   collection=CollectionRounds(n_rounds, collector, mixture_weights=(0.5, 0.5)))
