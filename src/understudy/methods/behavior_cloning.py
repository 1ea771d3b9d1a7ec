"""Likelihood and regression: one network answers at once."""

from __future__ import annotations

from ..core import Schema
from ..data.window import Goal, Window
from ..execute.chunking import RecedingHorizon
from ..heads.categorical import Categorical
from ..heads.gmm import GMM
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..nets.ema import ConstantDecay
from ..nets.encoders import ConcatEncoder
from ..nets.feed_forward import FeedForward
from ..nets.recurrent import RecurrentEncoder
from ..policy import PolicyConfig


def bc(horizon: int = 1, features: Schema | None = None) -> Method:
    """Behavior cloning: regression to the mean of what was shown, or a distribution over choices.

    Paper: Pomerleau 1988 (ALVINN); as the baseline of Mandlekar et al. 2021, arXiv 2108.03298
    Rows: 047
    Needs: actions that are numbers or choices
    """
    choices = features is not None and features["action"].kind == "discrete"
    head = Categorical() if choices else Regression()
    return Method(PolicyConfig(head, window=Window(1, horizon)), RecedingHorizon(horizon), BehaviorCloning(steps=5000))


def bc_gmm(horizon: int = 8, n_obs_steps: int = 2, n_action_steps: int = 4) -> Method:
    """Behavior cloning by a mixture of Gaussians over a chunk, so that two good ways are not averaged.

    Paper: Mandlekar et al. 2021, arXiv 2108.03298, whose chunks are one step long: horizon=1, execute=1
    Rows: 047
    Needs: actions that are numbers
    """
    return Method(
        PolicyConfig(GMM(), window=Window(n_obs_steps, horizon)),
        RecedingHorizon(n_action_steps),
        BehaviorCloning(steps=5000),
    )


def bc_rnn_gmm(n_obs_steps: int = 10, width: int = 400) -> Method:
    """Behavior cloning with a memory: an LSTM over the last observations, then a mixture of Gaussians.

    Paper: Mandlekar et al. 2021, arXiv 2108.03298; history slides here, there it starts anew every 10 steps
    Rows: 047
    Needs: actions that are numbers
    """
    return Method(
        PolicyConfig(GMM(), encoder=RecurrentEncoder(width), window=Window(n_obs_steps, 1)),
        RecedingHorizon(),
        BehaviorCloning(batch_size=100),
    )


def gcbc(column: str = "observation.state") -> Method:
    """Goal-conditioned behavior cloning: the goal of each step is what its episode showed at some later one.

    Paper: Lynch et al. 2019 (Play-GCBC), arXiv 1903.01973; as the baseline of Park et al. 2025, arXiv 2410.20092
    Rows: 114
    Needs: actions that are numbers; no observation.goal of its own, which an environment shows
    """
    recipe = PolicyConfig(Regression(), trunk=FeedForward((512, 512, 512), "gelu"), encoder=ConcatEncoder(),
                    window=Window(goals=(Goal(column),)))
    return Method(
        recipe,
        learner=BehaviorCloning(
            steps=20_000,
            batch_size=1024,
            ema=ConstantDecay(0.0),
            optimizer=OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None),
        ),
    )
