from dataclasses import replace

from ...execute.streaming import StreamingExecutor
from ...heads.base import RampTimes
from ...heads.denoising.diffusion import Diffusion
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Høeg et al. 2024, arXiv 2406.04806, with a U-Net that predicts the noise", rows=("038",),
        when="if a diffusion policy needs too many evaluations for each plan; a third of them was enough in a toy.")
def streaming_diffusion_policy(
    n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 4, n_denoising_steps: int = 4
) -> Method:
    """A buffer of actions, from nearly clean to noise, is denoised by a few steps whenever a part is executed.

    Args:
        horizon: Number of actions in the buffer.
        n_action_steps: Number of actions that are executed from each plan. Must divide the horizon.
        n_denoising_steps: Number of network evaluations of a plan.
    """
    n_steps = horizon // max(n_action_steps, 1) * n_denoising_steps  # of an action, in all its plans
    head = Diffusion(n_steps, prediction="sample", times=RampTimes(n_action_steps))
    base = flow_policy(n_obs_steps, horizon)
    return replace(base, policy=replace(base.policy, head=head),
                   executor=StreamingExecutor(n_action_steps, n_denoising_steps))
