"""Likelihood and regression: one network answers at once."""

from __future__ import annotations

from ..core import Schema
from ..data.window import Window
from ..execute.chunked import Receding
from ..heads.categorical import Categorical
from ..heads.gmm import GMM
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.method import Method
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
