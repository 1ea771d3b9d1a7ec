"""Row 260: where people go both ways, the mean of what they did is a mistake."""

from ..data.window import Window
from ..execute.chunked import Receding
from ..heads.base import Head
from ..heads.diffusion import Diffusion
from ..heads.flow import Flow
from ..heads.gmm import GMM
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..policy import Recipe
from .base import Above, Arm, Claim, Every, Experiment, Part, Sabotage, Shown
from .measures import closed_loop


def arm(name: str, head: Head) -> Arm:
    """The same trunk, window, updates and two rates for every head."""
    recipe = Recipe(head, window=Window(obs=2, horizon=8))
    return Arm(name, tuple(Method(recipe, Receding(4), Cloning(steps=1500, optim=Optim(rate=rate)))
                           for rate in (1e-3, 3e-4)))


def left(episode) -> bool:
    return bool(episode.steps["observation.state"][:, 1].mean() > 0)


def one_way(experiment: Experiment) -> Experiment:
    from dataclasses import replace

    return replace(experiment, source=replace(experiment.source, keep=left))


FORK = Experiment(Shown("fork", 100), "fork", (
    arm("regression", Regression()), arm("diffusion", Diffusion()), arm("flow", Flow()), arm("mixture", GMM())),
    closed_loop)

CLAIM = Claim(
    name="diffusion-bc", rows=("260",),
    paper="Pearce et al. 2023, Imitating Human Behaviour with Diffusion Models, arXiv 2301.10677",
    statement="We then propose that diffusion models are an excellent fit for imitating human behaviour, since they "
              "learn an expressive distribution over the joint action space.",
    here="fork: 100 scripted demonstrations that pass a pillar left or right at even odds; an MLP of 256 x 2 blocks, "
         "1,500 updates for every head. Regression to the mean collides where diffusion and flow matching do not: "
         "their success is more than 0.3 higher, each. A Gaussian mixture stands beside them.",
    parts=(Part("fork", FORK, Every((Above("success", "diffusion", "regression", 0.3),
                                     Above("success", "flow", "regression", 0.3)))),),
    sabotage=Sabotage("only demonstrations that pass on the left", one_way, "fork"),
)
