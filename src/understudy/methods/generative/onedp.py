from dataclasses import replace

from ...checkpoint import FromStage
from ...heads.one_step.one_step import OneStepGenerator
from ...learn.cloning.distillation import OneStepDistillation
from ...learn.method import Method
from ..registry import method
from .consistency_policy import consistency_policy


@method("Wang et al. 2025 (OneDP-S), arXiv 2410.21257, with a learning rate of 1e-6 for the generator and of 2e-5 for "
        "its score, and larger networks", rows=("285",),
        when="if a trained diffusion policy is good and too slow; it lost 10 points on the toy fork, and most of the "
             "success where motions are precise.")
def onedp(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """OneDP: a diffusion policy is distilled into a generator whose plans have the distribution of the teacher's."""
    first = consistency_policy(1, n_obs_steps, horizon, n_action_steps)
    return replace(
        first,
        policy=replace(first.policy, head=OneStepGenerator()),
        learner=OneStepDistillation(FromStage("teacher")),
    )
