from dataclasses import replace
from typing import Literal

from ...checkpoint import FromStage
from ...heads.denoising.flow import Flow
from ...learn.cloning.distillation import Reflow
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ..registry import method
from .flow_policy import flow_policy


@method("Liu et al. 2023, arXiv 2209.03003, which stores the pairs; here each update makes new ones", rows=("028",),
        when="if a flow policy is good and too slow; two steps with --method.prediction sample lost at most 3 points "
             "on two toys.")
def reflow_policy(
    n_steps: int = 1,
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    prediction: Literal["velocity", "sample"] = "velocity",
) -> Method:
    """A flow is trained again on pairs of noise and the chunk that it made from it, so that one step gives a chunk.

    Args:
        prediction: What both networks predict: the velocity, or the action itself. See `Flow`.
    """
    first = flow_policy(n_obs_steps, horizon, n_action_steps, prediction)
    return replace(
        first,
        policy=replace(first.policy, head=Flow(n_steps, prediction=prediction)),
        learner=Reflow(FromStage("flow"), steps=4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
        stages=(Stage("flow", first),),
        initialize_from=(InitializeFrom(FromStage("flow")),),
    )
