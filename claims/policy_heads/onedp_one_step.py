"""Row 285: does a one-step policy that is distilled from a diffusion policy succeed as often as its teacher?"""

from __future__ import annotations

from claims.worlds.fork import TEACHER, SampledMethod, after_teacher, chunk_method, success_and_sides
from understudy.checkpoint import FromStage
from understudy.claims.base import (
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.heads.base import Head
from understudy.heads.edm import EDM
from understudy.heads.one_step import OneStepGenerator
from understudy.learn.distillation import OneStepDistillation
from understudy.learn.optimizer import OptimizerConfig

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
    parts=(ClaimPart("fork", FORK, AllOf((OVER_ONE_STEP, AS_TEACHER))),),
    negative_control=NegativeControl(without_own_score, "fork", removes=(OVER_ONE_STEP,)),
)
