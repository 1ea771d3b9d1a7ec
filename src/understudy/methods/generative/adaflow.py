from dataclasses import replace

from ...heads.denoising.adaflow import AdaFlow
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Hu et al. 2024, arXiv 2402.04292, which trains velocity and variance by one likelihood", rows=("267",),
        when="if a flow policy is too slow and most states have one right action; it saved steps, but less than "
             "promised.")
def adaflow(n_steps: int = 5, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that chooses its steps: one where the action is certain, and more where demonstrations differ.

    Args:
        n_steps: Largest number of network evaluations of a plan.
    """
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    return replace(base, policy=replace(base.policy, head=AdaFlow(n_steps)))
