from dataclasses import replace

from ...checkpoint import FromStage
from ...heads.denoising.edm import EDM
from ...heads.one_step.consistency import Consistency
from ...learn.cloning.distillation import ConsistencyDistillation
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ..registry import method
from .flow_policy import flow_policy


@method("Prasad et al. 2024, arXiv 2405.07503, which jumps to any lower noise level and adds the loss of diffusion; "
        "here the jumps end at the action, as in Song et al. 2023, arXiv 2303.01469",
        when="if a trained diffusion policy is good and too slow; it lost 7 points on the toy fork, and most of the "
             "success where motions are precise.")
def consistency_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Consistency policy: a diffusion policy is distilled into a network that jumps from noise to action."""
    base = flow_policy(n_obs_steps, horizon, n_action_steps)
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=100)
    return replace(
        base,
        policy=replace(base.policy, head=Consistency(n_steps)),
        learner=ConsistencyDistillation(FromStage("teacher"), 4000, optimizer=optimizer),
        stages=(Stage("teacher", replace(base, policy=replace(base.policy, head=EDM()))),),
        initialize_from=(InitializeFrom(FromStage("teacher")),),
    )
