from dataclasses import replace

from ...data.window import Window
from ...execute.streaming_flow import StreamingFlowExecutor
from ...heads.denoising.streaming_flow import StreamingFlow
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Jiang et al. 2025, arXiv 2505.21851, for actions that change little from step to step, such as positions; "
        "without its variant with latent variables",
        when="if actions are positions that change little from step to step, and must be sent while the plan is made.")
def streaming_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow in action space: each integration step from the last executed action gives the next action.

    Args:
        horizon: Number of actions in a plan.
    """
    base = flow_policy()
    window = Window(n_obs_steps, horizon + 1, action_offset=-1)  # step 0 is the last executed action
    policy = replace(base.policy, head=StreamingFlow(), window=window)
    return replace(base, policy=policy, executor=StreamingFlowExecutor(n_action_steps))
