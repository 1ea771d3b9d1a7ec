from dataclasses import replace

from ...data.augment import ConditionDropout
from ...data.window import Goal, Window
from ...execute.planners import Guided
from ...heads.denoising.edm import EDM
from ...learn.method import Method
from ...policy import ClassifierFreeGuidance
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method
from .flow_policy import flow_policy


@method("Reuss et al. 2023, arXiv 2304.02532, with a causal transformer over the history", rows=("090",),
        needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting and several ways of reaching it count; regression (`gcbc`) "
             "succeeded as often here.")
def beso(column: str = "observation.state", scale: float = 2.0, n_steps: int = 3, n_obs_steps: int = 5) -> Method:
    """Goal-conditioned diffusion with classifier-free guidance towards a later observation of the episode.

    Args:
        scale: Guidance scale. 1 is the plain policy, 0 the policy without a goal.
        n_steps: Number of sampling steps of one action.
    """
    goal = "observation.goal"
    head = EDM(n_steps, sigma_min=0.005, sigma_max=1.0, log_sigma_mean=-0.69, log_sigma_std=0.9)
    window = Window(n_obs_steps, horizon=1, goals=(Goal(column, into=goal),))
    base, guided = flow_policy(n_action_steps=1), Guided(guides=(ClassifierFreeGuidance((goal,), scale),))
    policy = replace(base.policy, head=head, window=window, augmentations=(ConditionDropout(goal, 0.1),))
    return replace(base, policy=policy, inference=(guided,))
