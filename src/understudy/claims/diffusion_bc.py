"""Row 260: where people go both ways, the mean of what they did is a mistake."""

from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.base import Head
from ..heads.diffusion import Diffusion
from ..heads.flow import Flow
from ..heads.gmm import GMM
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..policy import PolicyConfig
from .base import AllOf, Arm, Claim, ClaimPart, Experiment, ExpertDemonstrations, GreaterThan, NegativeControl
from .measures import closed_loop


def make_arm(name: str, head: Head) -> Arm:
    """The same trunk, window, updates and two rates for every head."""
    policy = PolicyConfig(head, window=Window(n_obs_steps=2, horizon=8))
    return Arm(
        name,
        tuple(
            Method(policy, RecedingHorizon(4), BehaviorCloning(steps=1500, optimizer=OptimizerConfig(lr=rate)))
            for rate in (1e-3, 3e-4)
        ),
    )


def passes_left(episode) -> bool:
    return bool(episode.steps["observation.state"][:, 1].mean() > 0)


def only_left(experiment: Experiment) -> Experiment:
    from dataclasses import replace

    return replace(experiment, source=replace(experiment.source, filter=passes_left))


FORK = Experiment(
    ExpertDemonstrations("fork", 100, resample=False),
    "fork",
    (
        make_arm("regression", Regression()),
        make_arm("diffusion", Diffusion()),
        make_arm("flow", Flow()),
        make_arm("mixture", GMM()),
    ),
    closed_loop,
)

CLAIM = Claim(
    name="diffusion-bc", rows=("260",),
    paper="Pearce et al. 2023, Imitating Human Behaviour with Diffusion Models, arXiv 2301.10677",
    statement="We then propose that diffusion models are an excellent fit for imitating human behaviour, since they "
              "learn an expressive distribution over the joint action space.",
    setup="fork: 100 scripted demonstrations that pass a pillar left or right at even odds; an MLP of 256 x 2 blocks, "
    "1,500 updates for every head, and two learning rates to choose from. The claim holds if diffusion and flow "
    "matching each succeed more often than regression to the mean, by more than 0.3. A Gaussian mixture is reported "
    "and does not decide. It succeeds more often than diffusion (0.986 against 0.722), so what the task needs is a "
    "distribution of several modes, of which diffusion is one. Caveats: all training seeds learn from the same 100 "
    "demonstrations, so the interval lacks their variation. The negative control has only half of them, those that "
    "pass on the left. No arm has a level that it must reach.",
    parts=(ClaimPart("fork", FORK, AllOf((GreaterThan("success", "diffusion", "regression", 0.3),
                                          GreaterThan("success", "flow", "regression", 0.3)))),),
    negative_control=NegativeControl(
        "only demonstrations that pass on the left", only_left, "fork",
        removes=(GreaterThan("success", "diffusion", "regression", 0.3),
                 GreaterThan("success", "flow", "regression", 0.3)),
    ),
)
