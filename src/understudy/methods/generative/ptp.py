from dataclasses import replace

from ...execute.past_verification import PastVerification
from ...learn.method import Method
from ..registry import method
from .diffusion_policy import diffusion_policy


@method("Torne et al. 2025, arXiv 2505.09561, which trains the encoder of images first, with two observations, and "
        "then freezes it", rows=("344",),
        when="if what to do depends on a long history; no gain over `diffusion-policy` with a history was found here.")
def ptp(n_obs_steps: int = 16, horizon: int = 32, n_action_steps: int = 1, n_samples: int = 10) -> Method:
    """Past-token prediction: a policy with a long history predicts its past actions too, and plans are chosen by them.

    Args:
        horizon: Number of actions in a chunk. The first n_obs_steps - 1 of them lie in the past.
        n_samples: Number of plans that are drawn. The one that recalls the executed actions best is executed.
    """
    base = diffusion_policy("transformer", n_obs_steps, horizon, n_action_steps)
    return replace(base, executor=PastVerification(n_action_steps, n_obs_steps - 1, n_samples))
