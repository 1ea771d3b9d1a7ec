"""Likelihood and regression: one network answers at once."""

from __future__ import annotations

from ..core import Schema
from ..data.window import Goal, Window
from ..execute.chunked import Receding
from ..heads.categorical import Categorical
from ..heads.gmm import GMM
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.ema import Constant
from ..nets.encoders import Flat
from ..nets.plain import Plain
from ..nets.recurrent import Recurrent
from ..policy import Recipe


def bc(horizon: int = 1, features: Schema | None = None) -> Method:
    """Behaviour cloning: regression to the mean of what was shown, or a distribution over choices.

    Paper: Pomerleau 1988 (ALVINN); as the baseline of Mandlekar et al. 2021, arXiv 2108.03298
    Rows: 047
    Needs: actions that are numbers or choices
    """
    choices = features is not None and features["action"].kind == "choice"
    head = Categorical() if choices else Regression()
    return Method(Recipe(head, window=Window(1, horizon)), Receding(horizon), Cloning(steps=5000))


def bc_gmm(horizon: int = 8, obs: int = 2, execute: int = 4) -> Method:
    """Behaviour cloning by a mixture of Gaussians over a chunk, so that two good ways are not averaged.

    Paper: Mandlekar et al. 2021, arXiv 2108.03298, whose chunks are one step long: horizon=1, execute=1
    Rows: 047
    Needs: actions that are numbers
    """
    return Method(Recipe(GMM(), window=Window(obs, horizon)), Receding(execute), Cloning(steps=5000))


def bc_rnn_gmm(obs: int = 10, width: int = 400) -> Method:
    """Behaviour cloning with a memory: an LSTM over the last observations, then a mixture of Gaussians.

    Paper: Mandlekar et al. 2021, arXiv 2108.03298; history slides here, there it starts anew every 10 steps
    Rows: 047
    Needs: actions that are numbers
    """
    return Method(Recipe(GMM(), encoder=Recurrent(width), window=Window(obs, 1)), Receding(), Cloning(batch=100))


def gcbc(of: str = "observation.state") -> Method:
    """Goal-conditioned behaviour cloning: the goal of each step is what its episode showed at some later one.

    Paper: Lynch et al. 2019 (Play-GCBC), arXiv 1903.01973; as the baseline of Park et al. 2025, arXiv 2410.20092
    Rows: 114
    Needs: actions that are numbers; no observation.goal of its own, which an environment shows
    """
    recipe = Recipe(Regression(), trunk=Plain((512, 512, 512), "gelu"), encoder=Flat(),
                    window=Window(goals=(Goal(of),)))
    return Method(recipe, learn=Cloning(steps=20_000, batch=1024, ema=Constant(0.0),
                                        optim=Optim(rate=3e-4, decay=0.0, schedule="constant", clip=None)))
