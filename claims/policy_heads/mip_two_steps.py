"""Row 264: are two regressions, with noise between them, as good as a flow? On a task of one mode that needs precision.
"""

from __future__ import annotations

from dataclasses import replace

from claims.worlds.peg import ENV, OUTLINES, TOLERANCE, PegDemonstrations
from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import closed_loop
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.denoising.flow import Flow
from understudy.heads.one_step.mip import MIP
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig


def success_on_new_and_training_starts(
    experiment, method: Method, data, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out twice.

    Returns:
        "success" of each new start. "training success" of each start of the demonstrations.
    """
    new = closed_loop(experiment, method, data, seed, episodes, starts)
    old = closed_loop(experiment, method, data, seed, len(data), recording_seed(seed))
    return {"success": new["success"], "training success": old["success"]}


def head_arm(name: str, head: Head) -> Arm:
    """The same network, window, updates and learning rate for every head, as in the authors' code."""
    policy = PolicyConfig(head, trunk=MLP(width=128, depth=1), window=Window(n_obs_steps=2, horizon=16))
    learner = BehaviorCloning(steps=1500, batch_size=128, optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (Method(policy, RecedingHorizon(8), learner),))


def without_noise(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(head_arm("two-step", MIP(noise_scale=0.0)))


# Loss balance, time of the second step and targets are those of the authors' code.
TWO_STEP = head_arm("two-step", MIP(second_time=0.9, loss_balance="code"))
PEG = Experiment(
    PegDemonstrations(50),
    ENV,
    (
        head_arm("regression", MIP(two_steps=False)),
        head_arm("no noise", MIP(noise_scale=0.0)),
        TWO_STEP,
        head_arm("flow", Flow(n_steps=9)),
    ),
    success_on_new_and_training_starts,
    env_options=(("tolerance", TOLERANCE), ("outlines", OUTLINES)),
    seeds=(310, 311, 312, 313, 314),
    episodes=500,
    measures=(("training success", RATE),),
    starts_seed=310,
    sanity=(("flow", "success", 0.5), ("regression", "success", 0.2), ("two-step", "training success", 0.75),
            ("no noise", "training success", 0.75)),
)
EQUAL_WEIGHTS = replace(PEG, arms=(TWO_STEP, head_arm("equal weights", MIP(loss_balance="equal"))), sanity=())
MATCHES = GreaterThan("success", "two-step", "flow", -0.1)
OVER_REGRESSION = GreaterThan("success", "two-step", "regression")
OVER_NO_NOISE = GreaterThan("success", "two-step", "no noise")

CLAIM = Claim(
    name="mip-two-steps",
    rows=("264",),
    parts=(
        ClaimPart("ablation", PEG, AllOf((OVER_REGRESSION, OVER_NO_NOISE, MATCHES))),
        ClaimPart("flow over regression", PEG, GreaterThan("success", "flow", "regression"), is_decisive=False),
        ClaimPart("equal weights", EQUAL_WEIGHTS, GreaterThan("success", "equal weights", "two-step"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(without_noise, "ablation", removes=(OVER_REGRESSION,)),
    mechanism_only="The two-step policy does not fit its demonstrations in so few updates, so its comparison with flow "
    "matching says nothing about the paper's policies.",
)
