from dataclasses import replace

from ...heads.one_step.mean_flow import MeanFlow
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Geng et al. 2025, arXiv 2505.13447, which generates images",
        when="if a plan must take one network evaluation without a teacher, and motions need little precision.")
def mean_flow_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that learns the average velocity from noise to action: one network evaluation gives a chunk.

    Args:
        n_steps: Number of steps from noise to a chunk.
    """
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    return replace(base, policy=replace(base.policy, head=MeanFlow(n_steps)))
