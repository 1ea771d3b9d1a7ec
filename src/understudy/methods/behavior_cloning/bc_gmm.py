from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...policy import PolicyConfig
from ..registry import method


@method("Mandlekar et al. 2021, arXiv 2108.03298, whose chunks are one step long: horizon=1, n_action_steps=1",
        rows=("047",),
        when="if demonstrations act in several ways and a plan must take one network evaluation; precise motions take "
             "it many updates.")
def bc_gmm(horizon: int = 8, n_obs_steps: int = 2, n_action_steps: int = 4) -> Method:
    """Behavior cloning with a mixture of Gaussians over a chunk, so that two good ways are not averaged."""
    return Method(
        PolicyConfig(GMM(), window=Window(n_obs_steps, horizon)),
        RecedingHorizon(n_action_steps),
        BehaviorCloning(steps=5000),
    )
