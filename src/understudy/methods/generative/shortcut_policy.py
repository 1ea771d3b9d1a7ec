from dataclasses import replace

from ...heads.one_step.shortcut import Shortcut
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Frans et al. 2024, arXiv 2410.12557, whose smallest step is 1/128, with 800,000 updates",
        when="if a plan must take one network evaluation and several ways are needed without training a teacher.")
def shortcut_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that is asked for large steps: one network evaluation gives a chunk, and more give a better one.

    Args:
        n_steps: Number of steps from noise to a chunk: 1, 2, 4, 8 or 16.
    """
    head = Shortcut(n_steps, n_train_steps=16)  # each halving of the step is learned from the next smaller step
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    return replace(base, policy=replace(base.policy, head=head))
