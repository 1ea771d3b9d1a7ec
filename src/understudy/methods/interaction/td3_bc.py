from ...heads.likelihood.regression import Regression
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..needs import AN_ENVIRONMENT_FOR_ROUNDS, NUMBERS, REWARDS
from ..registry import method


@method("Fujimoto and Gu 2021, arXiv 2106.06860; Fujimoto et al. 2018, arXiv 1802.09477", rows=("200",),
        needs=(NUMBERS, REWARDS, AN_ENVIRONMENT_FOR_ROUNDS),
        when="if there are rewards and an environment, and the policy has to become better than the demonstrations.")
def td3_bc(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, bc_weight: float = 0.4) -> Method:
    """TD3+BC: an actor-critic that stays close to stored actions, on demonstrations and then on its own episodes.

    Args:
        n_rounds: Number of collection rounds. 0 to learn from stored episodes alone.
        bc_weight: Weight of the distance to stored actions. 0 is TD3.
    """
    collector = RolloutCollector(n_episodes, GaussianExploration(noise))
    rounds = CollectionRounds(n_rounds, collector, initial_updates=5000) if n_rounds else None
    return Method(PolicyConfig(Regression(), MLP(256, 2)), learner=TD3(bc_weight=bc_weight),
                  collection=rounds)
