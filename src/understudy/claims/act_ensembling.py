"""Row 158: does averaging the actions of overlapping chunks make motion smoother, and at what price?"""

from dataclasses import replace
from math import log

from ..data.window import Window
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.temporal_ensemble import TemporalEnsemble
from ..heads.cvae import CVAE
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..nets.transformer import Transformer
from ..policy import PolicyConfig
from .base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    EquivalentTo,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from .measures import closed_loop

HORIZON = 8


def make_arm(name: str, executor: Executor) -> Arm:
    """The same policy, run in three ways. With beta of 10, ACT's, or a tenth of it."""
    def option(beta):
        recipe = PolicyConfig(CVAE(beta=beta), trunk=Transformer(width=64, depth=1, heads=4),
                        window=Window(n_obs_steps=1, horizon=HORIZON))
        return Method(recipe, executor, BehaviorCloning(steps=3000, batch_size=64, optimizer=OptimizerConfig(lr=1e-3)))
    return Arm(name, (option(10.0), option(1.0)))


def newest_chunk_only(experiment: Experiment) -> Experiment:
    spoiled = TemporalEnsemble(decay=-20.0)
    return replace(experiment, arms=tuple(
        replace(a, options=tuple(replace(o, executor=spoiled) for o in a.options)) if a.name == "ensemble" else a
        for a in experiment.arms))


PUSH = Experiment(
    ExpertDemonstrations("push", 200, resample=False),
    "push",
    (
        make_arm("chunks", RecedingHorizon(HORIZON)),
        make_arm("each step", RecedingHorizon(1)),
        make_arm("ensemble", TemporalEnsemble()),
    ),
    closed_loop,
    seeds=(200, 201, 202, 203, 204),
    tuning_seeds=(901,),
)
MIN_REDUCTION = -log(0.8)  # by more than 20 %

CLAIM = Claim(
    name="act-ensembling",
    rows=("158",),
    paper="Zhao et al. 2023, Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv 2304.13705",
    statement="To improve smoothness and avoid discrete switching between executing and observing, we query the policy "
    "at every timestep.",
    setup="push: 200 scripted demonstrations; ACT in the small (CVAE, transformer of width 64, chunks of 8), the same "
    "weights are run in three ways: chunk after chunk, planned again at each step with only the newest chunk "
    "used, and with temporal ensembling (m = 0.01). Ensembling lowers the mean squared third difference of the "
    "actions by more than 20 %, against both. Success is reported too.",
    parts=(
        ClaimPart(
            "smoother",
            PUSH,
            AllOf(
                (
                    GreaterThan("log_jerk", "chunks", "ensemble", MIN_REDUCTION),
                    GreaterThan("log_jerk", "each step", "ensemble", MIN_REDUCTION),
                )
            ),
        ),
        ClaimPart(
            "as successful as chunks", PUSH, EquivalentTo("success", "ensemble", "chunks", 0.05), is_decisive=False
        ),
        ClaimPart(
            "as successful as each step",
            PUSH,
            EquivalentTo("success", "ensemble", "each step", 0.05),
            is_decisive=False,
        ),
    ),
    negative_control=NegativeControl(
        "the ensemble's weights all on the newest chunk", newest_chunk_only, "smoother",
        removes=(GreaterThan("log_jerk", "each step", "ensemble", MIN_REDUCTION),),
    ),
)
