from ...data.window import Window
from ...heads.likelihood.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.recurrent import RecurrentEncoder
from ...policy import PolicyConfig
from ..registry import method


@method("Mandlekar et al. 2021, arXiv 2108.03298; the history slides here, and starts again every 10 steps there",
        rows=("047",),
        when="if what to do depends on the last ten observations.")
def bc_rnn_gmm(n_obs_steps: int = 10, width: int = 400) -> Method:
    """Behavior cloning with a memory: an LSTM over the last observations, then a mixture of Gaussians.

    Args:
        n_obs_steps: Number of observations that the LSTM reads.
    """
    return Method(
        PolicyConfig(GMM(), encoder=RecurrentEncoder(width), window=Window(n_obs_steps)),
        learner=BehaviorCloning(batch_size=100),
    )
