from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...learn.method import Method, Stage
from ..needs import NUMBERS_OR_CLASSES, STEP_REWARDS
from ..offline_rl.iql import IQL
from ..registry import method
from .ppo import ppo


@method("Huang et al. 2025 (DVPO), arXiv 2502.16944, for language models, without the context of other answers",
        needs=(NUMBERS_OR_CLASSES, STEP_REWARDS, "an environment"),
        when="if recorded episodes have rewards and practice has none: one step of improvement of the policy in them.")
def dvpo(n_rounds: int = 50, n_steps: int = 2048, n_epochs: int = 10, features: Schema | None = None) -> Method:
    """PPO whose advantages are scores of a critic that learned the returns of the data, and then stays as it is.

    Args:
        n_epochs: How often the updates of a round read each of its steps.
    """
    online = ppo(n_rounds, n_steps, n_epochs, features=features)
    values = IQL(expectile=0.5, beta=0.0).method(features)  # the values of the behavior in the data
    return replace(online, learner=replace(online.learner, critic=FromStage("values", "critic")),
                   stages=(Stage("values", values),))
