from dataclasses import replace

from ...heads.one_step.consistency import Consistency
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Song and Dhariwal 2023, arXiv 2310.14189, with 80 equally likely noise levels, as in Consistency Policy, and "
        "a larger constant in its distance",
        when="if a plan must take one network evaluation without a teacher, and motions need little precision; several "
             "evaluations help.")
def consistency_training(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A network that jumps from any noise level to the action in one step, trained on the demonstrations alone."""
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    return replace(base, policy=replace(base.policy, head=Consistency(n_steps)))
