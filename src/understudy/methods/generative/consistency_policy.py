from dataclasses import replace

from ...checkpoint import FromStage
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.consistency import Consistency
from ...heads.edm import EDM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.distillation import ConsistencyDistillation
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Prasad et al. 2024, arXiv 2405.07503, which jumps to any lower noise level and adds the loss of diffusion; "
        "here the jumps end at the action, as in Song et al. 2023, arXiv 2303.01469",
        when="if a trained diffusion policy is good and too slow; it lost 7 points on the toy fork, and most of the "
             "success where motions are precise.")
def consistency_policy(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Consistency policy: a diffusion policy is distilled into a network that jumps from noise to action."""
    teacher = PolicyConfig(EDM(), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    optimizer, executor = OptimizerConfig(lr=1e-3, warmup_steps=100), RecedingHorizon(n_action_steps)
    return Method(
        replace(teacher, head=Consistency(n_steps)),
        executor,
        ConsistencyDistillation(FromStage("teacher"), 4000, optimizer=optimizer),
        stages=(Stage("teacher", Method(teacher, executor, BehaviorCloning(4000, optimizer=optimizer))),),
        initialize_from=(InitializeFrom(FromStage("teacher")),),
    )
