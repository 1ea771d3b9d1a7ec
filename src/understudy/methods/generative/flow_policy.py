from typing import Literal

from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.flow import Flow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003", rows=("028",),
        when="if demonstrations act in several ways; with --prediction sample also if motions are precise.")
def flow_policy(
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["velocity", "sample"] = "velocity",
) -> Method:
    """A chunk of actions by flow matching: ten steps along the straight line from noise.

    Args:
        prediction: What the network predicts: the velocity, or the action itself. See `Flow`.
    """
    policy = PolicyConfig(Flow(prediction=prediction), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
