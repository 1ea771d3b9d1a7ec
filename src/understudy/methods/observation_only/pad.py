from dataclasses import replace

from ...core import Schema
from ...execute.joint_plans import JointPlanner
from ...learn.method import Method
from ..needs import NUMERIC_STATES, SOME_NUMBERS
from ..registry import method
from .uwm import uwm


@method("Guo et al. 2024 (PAD), arXiv 2411.18179, with images and depth behind a frozen autoencoder, a pretrained "
        "transformer that masks unknown actions, and DDPM with learned variances", rows=("338",),
        needs=(SOME_NUMBERS, NUMERIC_STATES),
        when="if you compare it with `uwm`; where few episodes have actions, `vpt` succeeded more often.")
def pad(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8, column: str = "observation.state",
        ahead: int = 1, features: Schema | None = None) -> Method:
    """Prediction with action: each plan is actions and the states that they lead to, denoised together.

    Args:
        column: The column of states that are predicted with the actions.
        ahead: Each action is predicted with the state this many steps later.
    """
    base = uwm(n_obs_steps, horizon, n_action_steps, column, ahead, features)
    policy = replace(base.policy, head=replace(base.policy.head, times="shared"))
    return replace(base, policy=policy, inference=(JointPlanner(mode="joint"),))
