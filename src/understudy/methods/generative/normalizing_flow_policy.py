from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.normalizing_flow import NormalizingFlow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Dinh et al. 2017, arXiv 1605.08803; as a policy in Ghugare and Eysenbach 2025, arXiv 2505.23527",
        when="if demonstrations act in several ways and the likelihood of an action must be known exactly.")
def normalizing_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """An invertible network between noise and a chunk: exact likelihoods, and a plan in one pass."""
    policy = PolicyConfig(NormalizingFlow(), trunk=MLP(256, 2), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
