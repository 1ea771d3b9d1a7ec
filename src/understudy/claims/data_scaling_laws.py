"""Row 077: does failure in new mazes fall as a power of the number of mazes seen?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import linregress

from ..data.episode import Dataset
from ..data.window import Window
from ..execute.chunked import Receding
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.encoders import Flat
from ..nets.mlp import MLP
from ..policy import Recipe
from .base import Above, Arm, Below, Claim, Every, Experiment, Part, Sabotage
from .generalization_gap import Mazes, Of, inside_and_out, rates

SIZES, EACH = (8, 32, 128, 512), 4  # mazes; demonstrations for each of them


def law(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """A line through log failure rate in new mazes over log number of mazes: its slope, "exponent", and Pearson's "r".
    success: of the largest number. Half a failure stands for none."""
    sizes = [mazes for _, mazes, _ in SETS]
    won = [np.mean(rates(experiment, Of(method, str(n)), data, seed, episodes, starts)[0]) for n in sizes]
    line = linregress(np.log(sizes), np.log(np.maximum(1 - np.array(won), 0.5 / episodes)))
    return {"success": [float(won[-1])], "exponent": [float(line.slope)], "r": [float(line.rvalue)]}


def the_same_mazes(experiment: Experiment) -> Experiment:
    return replace(experiment, source=Mazes(tuple((name, SIZES[0], count) for name, _, count in SETS)))


BASE = Method(Recipe(Regression(), trunk=MLP(128, 2), encoder=Flat(), window=Window()), Receding(1),
              Cloning(steps=2000, optim=Optim(rate=1e-3)))
SETS = tuple((str(n), n, EACH * n) for n in SIZES)
SEEDS = {"seeds": (110, 111, 112, 113, 114), "episodes": 200}
LAW = Experiment(Mazes(SETS), "maze", (Arm("mazes", (BASE,)),), law, **SEEDS)
ALIKE = (("8 mazes", 8, 512), ("128 mazes", 128, 512))  # as many demonstrations
SPREAD = Experiment(Mazes(ALIKE), "maze", tuple(Arm(name, (Of(BASE, name),)) for name, _, _ in ALIKE), inside_and_out,
                    **SEEDS)

CLAIM = Claim(
    name="data-scaling-laws", rows=("077",),
    paper="Lin, Hu et al. 2024, Data Scaling Laws in Imitation Learning for Robotic Manipulation, arXiv 2410.18647",
    statement="The generalization performance of the policy follows a roughly power-law relationship with the number "
              "of environments and objects.",
    here="mazes of 3 x 3 cells as environments: 8, 32, 128 or 512 of them with 4 scripted demonstrations each on "
         "average; an MLP of 128 x 2 blocks sees the walls, 2,000 updates; nothing is tuned. The rate of failure in "
         "1,000 new mazes falls as a power of the number of mazes: over the four numbers, log against log, Pearson's r "
         "is below -0.9 and the slope below -0.1. With 512 demonstrations, 128 mazes teach more than 8.",
    parts=(Part("power law", LAW, Every((Below("r", "mazes", -0.9), Below("exponent", "mazes", -0.1)))),
           Part("diversity", SPREAD, Above("success", "128 mazes", "8 mazes"))),
    sabotage=Sabotage("as many demonstrations more, of the same 8 mazes", the_same_mazes, "power law"),
)
