from dataclasses import replace

from ...execute.adaptive import AdaptiveChunking, CosineAgreement
from ...execute.self_guidance import SelfGuided
from ...learn.method import Method
from ..registry import method
from .diffusion_policy import diffusion_policy


@method("So et al. 2025, arXiv 2510.12392, whose guidance scale is tuned for each task; 1 here", rows=("258",),
        when="if a diffusion policy must react sooner than at the end of its chunk; its gain is undecided here.")
def sgac(n_action_steps: int = 1, scale: float = 1.0, threshold: float = 0.97) -> Method:
    """Diffusion policy with self-guidance by the last observation, and chunks that are kept while new ones agree.

    Args:
        n_action_steps: Number of steps between two plans.
        scale: Scale of the guidance away from the prediction for the last observation.
        threshold: Cosine of two next actions from which on the old chunk is kept.
    """
    base = diffusion_policy()
    executor = AdaptiveChunking(n_action_steps, skip=1, agreement=CosineAgreement(threshold))
    policy = replace(base.policy, head=replace(base.policy.head, n_steps=30))
    return replace(base, policy=policy, executor=executor, inference=(SelfGuided(scale=scale),))
