from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.mean_flow import MeanFlow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Geng et al. 2025, arXiv 2505.13447, which generates images",
        when="if a plan must take one network evaluation without a teacher, and motions need little precision.")
def mean_flow_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that learns the average velocity from noise to action: one network evaluation gives a chunk.

    Args:
        n_steps: Number of steps from noise to a chunk.
    """
    policy = PolicyConfig(MeanFlow(n_steps), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
