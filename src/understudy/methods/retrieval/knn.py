from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.memory.neighbors import Neighbors
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import ConcatEncoder
from ...policy import PolicyConfig
from ..registry import method


@method("Cover and Hart 1967; as a policy in Pari et al. 2021, arXiv 2112.01511", rows=("079",),
        needs=("observations and actions that are numbers or classes",),
        when="if there are very few demonstrations, or to see at once what they contain: nothing is trained.")
def knn(n_neighbors: int = 1, n_obs_steps: int = 1, horizon: int = 8, n_action_steps: int = 4) -> Method:
    """Nearest neighbors: the mean chunk of the most similar situations; with one neighbor, a replay of the nearest.

    Args:
        n_neighbors: Number of situations. With one, its chunk is replayed.
        n_obs_steps: Number of observations that are compared.
    """
    policy = PolicyConfig(
        Neighbors(n_neighbors, weights="equal"), encoder=ConcatEncoder(), window=Window(n_obs_steps, horizon)
    )
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(steps=1))
