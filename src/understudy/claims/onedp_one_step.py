"""Row 285: does a one-step policy that is distilled from a diffusion policy succeed as often as its teacher?"""

from __future__ import annotations

from ..checkpoint import FromStage
from ..heads.base import Head
from ..heads.edm import EDM
from ..heads.one_step import OneStepGenerator
from ..learn.distillation import OneStepDistillation
from ..learn.optimizer import OptimizerConfig
from .base import SCORE, AllOf, Arm, Claim, ClaimPart, Experiment, ExpertDemonstrations, GreaterThan, NegativeControl
from .few_steps import TEACHER, SampledMethod, after_teacher, chunk_method, success_and_sides

HORIZON = 4
UPDATES, DISTILLATION = 1500, 800  # of the teacher, of the student
N_STEPS = 10  # of the teacher's sampler
SIGMA, SIGMA_MAX = 2.5, 5.0  # noise level of the student; highest level of the teacher
ONE_STEP = OneStepGenerator(SIGMA, sigma_max=SIGMA_MAX)
TEACHER_METHOD = chunk_method(EDM(N_STEPS, sigma_max=SIGMA_MAX), UPDATES, HORIZON)


def teacher_arm(name: str, head: Head) -> Arm:
    """The weights of the teacher, with a given sampler."""
    return Arm(name, (SampledMethod(TEACHER_METHOD, head),))


def student_arm(name: str, n_score_updates: int = 2) -> Arm:
    learner = OneStepDistillation(
        FromStage(TEACHER), DISTILLATION, 128, optimizer=OptimizerConfig(lr=1e-3),
        score_optimizer=OptimizerConfig(lr=3e-3), n_score_updates=n_score_updates)
    return Arm(name, (SampledMethod(after_teacher(TEACHER_METHOD, ONE_STEP, learner), ONE_STEP),))


def without_own_score(experiment: Experiment) -> Experiment:
    """Without updates, the estimates of the second network are those of the teacher, and their difference is 0."""
    return experiment.replace_arms(student_arm("onedp", n_score_updates=0))


FORK = Experiment(
    ExpertDemonstrations("fork", 100),
    "fork",
    (
        student_arm("onedp"),
        teacher_arm("teacher, 1 step", ONE_STEP),
        teacher_arm("teacher, 10 steps", EDM(N_STEPS, sigma_max=SIGMA_MAX)),
        teacher_arm("teacher, 3 steps", EDM(3, sigma_max=SIGMA_MAX)),
    ),
    success_and_sides,
    seeds=(430, 431, 432, 433, 434),
    episodes=500,
    measures=(("entropy", SCORE),),
    starts_seed=430,
    sanity=(("teacher, 10 steps", "success", 0.7), ("teacher, 1 step", "success", 0.1)),
)
OVER_ONE_STEP = GreaterThan("success", "onedp", "teacher, 1 step")
AS_TEACHER = GreaterThan("success", "onedp", "teacher, 10 steps", -0.1)

CLAIM = Claim(
    name="onedp-one-step",
    rows=("285",),
    paper="Wang et al. 2025, One-Step Diffusion Policy: Fast Visuomotor Policies via Diffusion Distillation, "
    "arXiv 2410.21257",
    statement="We ensure the distilled generator closely aligns with the original policy distribution by minimizing "
    "the Kullback-Leibler (KL) divergence along the diffusion chain, requiring only 2%-10% additional pre-training "
    "cost for convergence. We evaluated OneDP on 6 challenging simulation tasks as well as 4 self-designed real-world "
    "tasks using the Franka robot. The results demonstrate that OneDP not only achieves state-of-the-art success rates "
    "but also delivers an order-of-magnitude improvement in inference speed, boosting action prediction frequency from "
    "1.5 Hz to 62 Hz, establishing its potential for dynamic and computationally constrained robotic applications.",
    setup="Fork: a pillar is passed on the left or on the right, at even odds. The teacher is a diffusion policy (EDM) "
    "with 10 network evaluations per plan. It learns from 100 scripted demonstrations in 1,500 updates, plans 4 steps "
    "of 0.1 s and executes them. The student is the stochastic OneDP-S: it starts from the weights of the teacher, has "
    "one evaluation per plan, from noise of the level 2.5, and makes 800 updates, each after two updates of the "
    "network that estimates its own score. All networks are MLPs of 128 x 1 blocks, and batches have 128 windows. Two "
    "rules decide. The student succeeds at most 0.1 less often than its teacher, which has 10 times as many "
    "evaluations. It succeeds more often than one step of the teacher from the same noise, which is the student before "
    "distillation. The margin of 0.1 is this claim's own. In the paper the loss is 0.05 on PushT, and there is none on "
    "average over its tasks. Success and entropy of the side are those of 10 rollouts from each of 50 starts. Entropy, "
    "and the teacher with 3 steps, are reported. The half of the statement about the cost is not tested: 800 updates "
    "are more than a tenth of the teacher's. Speed is not measured, only evaluations are counted. Pilots on the seeds "
    "20 to 22 had plans of 8 steps. After 800 updates of distillation, the student succeeded in 0.79 of the rollouts, "
    "with an entropy of 0.83. Before, it had 0.43, and the teacher 0.95 and 0.91. With learning rates of a third, the "
    "student had 0.76. With 300 updates of smaller networks and noise levels up to 80, it had 0.56. Shorter plans were "
    "chosen without a pilot of distillation on them. Differences from the paper: a toy with states, small networks, "
    "EDM with 10 steps in place of DDPM with 100, and the learning rates.",
    parts=(ClaimPart("fork", FORK, AllOf((OVER_ONE_STEP, AS_TEACHER))),),
    negative_control=NegativeControl(
        "the network that estimates the student's own score is not updated and stays that of the teacher, so that the "
        "gradient of the divergence is 0", without_own_score, "fork", removes=(OVER_ONE_STEP,),
    ),
)
