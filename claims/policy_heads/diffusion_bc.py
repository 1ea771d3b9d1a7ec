"""Row 260: where people go both ways, the mean of what they did is a mistake."""

from dataclasses import replace

from claims.worlds.fork import passes_left
from understudy.claims.base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import closed_loop
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

N_DEMONSTRATIONS = 100  # demonstrations


def head_arm(name: str, head: Head) -> Arm:
    """The same trunk, window, updates and two rates for every head."""
    policy = PolicyConfig(head, trunk=MLP(width=64, depth=2), window=Window(n_obs_steps=2, horizon=8))
    return Arm(
        name,
        tuple(
            Method(policy, RecedingHorizon(4), BehaviorCloning(steps=1500, optimizer=OptimizerConfig(lr=rate)))
            for rate in (3e-3, 1e-3)
        ),
    )


def only_left(experiment: Experiment) -> Experiment:
    """Twice as many demonstrations are made, so that about as many pass on the left as there are otherwise in all."""
    return replace(experiment, source=ExpertDemonstrations("fork", 2 * N_DEMONSTRATIONS, passes_left))


FORK = Experiment(
    ExpertDemonstrations("fork", N_DEMONSTRATIONS),
    "fork",
    (
        head_arm("regression", Regression()),
        head_arm("diffusion", Diffusion()),
        head_arm("flow", Flow()),
        head_arm("mixture", GMM()),
    ),
    closed_loop,
    seeds=tuple(range(200, 210)),
    tuning_seeds=(910,),
    starts_seed=200,
    looks=((5, 0.02), (10, 0.03)),
    sanity=(("diffusion", "success", 0.5), ("flow", "success", 0.5)),
)

CLAIM = Claim(
    name="diffusion-bc",
    rows=("260",),
    parts=(ClaimPart("fork", FORK, AllOf((GreaterThan("success", "diffusion", "regression", 0.3),
                                          GreaterThan("success", "flow", "regression", 0.3)))),),
    negative_control=NegativeControl(
        only_left, "fork",
        removes=(GreaterThan("success", "diffusion", "regression", 0.3),
                 GreaterThan("success", "flow", "regression", 0.3)),
    ),
)
