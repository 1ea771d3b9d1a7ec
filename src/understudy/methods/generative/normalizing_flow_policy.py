from dataclasses import replace

from ...heads.likelihood.normalizing_flow import NormalizingFlow
from ...learn.method import Method
from ...nets.mlp import MLP
from ..registry import method
from .flow_policy import flow_policy


@method("Dinh et al. 2017, arXiv 1605.08803; as a policy in Ghugare and Eysenbach 2025, arXiv 2505.23527",
        when="if demonstrations act in several ways and the likelihood of an action must be known exactly.")
def normalizing_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """An invertible network between noise and a chunk: exact likelihoods, and a plan in one pass."""
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    return replace(base, policy=replace(base.policy, head=NormalizingFlow(), trunk=MLP(256, 2)))
