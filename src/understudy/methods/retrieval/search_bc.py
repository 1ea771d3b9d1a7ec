from ...data.window import Window
from ...execute.following import FollowDemonstration
from ...heads.memory.neighbors import Neighbors
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import ConcatEncoder
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Malato et al. 2023, arXiv 2306.09082, and 2024, arXiv 2401.16398 (ZIP), which compare the states of a "
        "pretrained video model", rows=("262",), needs=(NUMBERS, "no cameras"),
        when="if there are few demonstrations, and the behavior changes with them without training.")
def search_bc(max_steps: int = 128, ratio: float | None = 2.0, n_obs_steps: int = 1) -> Method:
    """Search: follow the most similar demonstration, and search again when the situations differ.

    Args:
        max_steps: Largest number of steps until the next search.
        ratio: Largest distance of the situations while one is followed, relative to that at the search. None: any.
        n_obs_steps: Number of observations that are compared.
    """
    policy = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), window=Window(n_obs_steps, horizon=2))
    return Method(policy, FollowDemonstration(max_steps, ratio), BehaviorCloning(steps=1))
