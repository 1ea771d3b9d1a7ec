from ...data.window import Window
from ...heads.likelihood.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("the BC-Transformer of robomimic (Mandlekar et al. 2021, arXiv 2108.03298), with half of its "
        "width, and fewer layers",
        when="if what to do depends on the last ten observations, as with bc-rnn-gmm.")
def bc_transformer_gmm(n_obs_steps: int = 10, width: int = 256) -> Method:
    """Behavior cloning with a transformer over the last observations, then a mixture of Gaussians.

    Args:
        n_obs_steps: Number of observations that the transformer reads.
        width: Width of the transformer. A multiple of 8.
    """
    trunk = Transformer(width, 4, 8, "joint", dropout=0.1)
    return Method(PolicyConfig(GMM(), trunk, window=Window(n_obs_steps)), learner=BehaviorCloning(batch_size=100))
