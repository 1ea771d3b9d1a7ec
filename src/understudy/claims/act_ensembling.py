"""Row 158: does averaging what several chunks say of now make motion smoother, and at what price?

An earlier rule set ensembling against chunk after chunk only. Its twin held as well: planning anew at each step is
most of the gain, with or without an average. So the average must now show a gain over that too. What has been seen
is a pilot: the seeds that judge are new.
"""

from dataclasses import replace
from math import log

from ..data.window import Window
from ..execute.base import Executor
from ..execute.chunked import Receding
from ..execute.ensemble import Ensemble
from ..heads.cvae import CVAE
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.transformer import Transformer
from ..policy import Recipe
from .base import Above, Arm, Claim, Every, Experiment, Near, Part, Sabotage, Shown
from .measures import closed_loop

HORIZON = 8


def arm(name: str, run: Executor) -> Arm:
    """The same policy, run in three ways. With beta of 10, ACT's, or a tenth of it."""
    def option(beta):
        recipe = Recipe(CVAE(beta=beta), trunk=Transformer(width=64, depth=1, heads=4),
                        window=Window(obs=1, horizon=HORIZON))
        return Method(recipe, run, Cloning(steps=3000, batch=64, optim=Optim(rate=1e-3)))
    return Arm(name, (option(10.0), option(1.0)))


def newest(experiment: Experiment) -> Experiment:
    spoiled = Ensemble(decay=-20.0)
    return replace(experiment, arms=tuple(
        replace(a, options=tuple(replace(o, run=spoiled) for o in a.options)) if a.name == "ensemble" else a
        for a in experiment.arms))


PUSH = Experiment(Shown("push", 200), "push", (
    arm("chunks", Receding(HORIZON)), arm("each step", Receding(1)), arm("ensemble", Ensemble())), closed_loop,
    seeds=(200, 201, 202, 203, 204), tuning=(901,))
LESS = -log(0.8)  # by more than 20 %

CLAIM = Claim(
    name="act-ensembling", rows=("158",),
    paper="Zhao et al. 2023, Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, arXiv 2304.13705",
    statement="To improve smoothness and avoid discrete switching between executing and observing, we query the policy "
              "at every timestep.",
    here="push: 200 scripted demonstrations; ACT in the small (CVAE, transformer of width 64, chunks of 8), the same "
         "weights run chunk after chunk, planned anew at each step of which only the newest chunk counts, and with "
         "temporal ensembling (m = 0.01). Ensembling lowers the mean squared third difference of the actions by more "
         "than 20 %, against both. What it does to success is reported beside.",
    parts=(Part("smoother", PUSH, Every((Above("log_jerk", "chunks", "ensemble", LESS),
                                         Above("log_jerk", "each step", "ensemble", LESS)))),
           Part("as successful as chunks", PUSH, Near("success", "ensemble", "chunks", 0.05), decides=False),
           Part("as successful as each step", PUSH, Near("success", "ensemble", "each step", 0.05), decides=False)),
    sabotage=Sabotage("the ensemble's weights all on the newest chunk", newest, "smoother"),
)
