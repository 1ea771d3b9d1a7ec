from ...data.window import Window
from ...execute.streaming_flow import StreamingFlowExecutor
from ...heads.streaming_flow import StreamingFlow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Jiang et al. 2025, arXiv 2505.21851, for actions that change little from step to step, such as positions; "
        "without its variant with latent variables",
        when="if actions are positions that change little from step to step, and must be sent while the plan is made.")
def streaming_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow in action space: each integration step from the last executed action gives the next action.

    Args:
        horizon: Number of actions in a plan.
    """
    window = Window(n_obs_steps, horizon + 1, action_offset=-1)  # step 0 is the last executed action
    policy = PolicyConfig(StreamingFlow(), trunk=MLP(512, 3), window=window)
    return Method(
        policy,
        StreamingFlowExecutor(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
