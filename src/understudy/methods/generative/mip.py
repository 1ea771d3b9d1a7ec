from dataclasses import replace

from ...heads.one_step.mip import MIP
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Pan et al. 2025, arXiv 2512.01809", rows=("264",),
        when="if there is one way to act and motions are precise; no gain over regression is known here.")
def mip(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Minimal iterative policy: a regression, and a second one that reads the first answer. No randomness."""
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    return replace(base, policy=replace(base.policy, head=MIP()))
