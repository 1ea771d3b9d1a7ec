from ...core import Schema
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.implicit_q_learning import IQL
from ...learn.method import Method
from ..needs import NUMBERS_OR_CLASSES, STEP_REWARDS
from ..registry import method


@method("Kostrikov et al. 2022 (IQL), arXiv 2110.06169", needs=(NUMBERS_OR_CLASSES, STEP_REWARDS),
        when="if there are rewards, some episodes are better than others, and no environment is at hand.")
def iql(expectile: float = 0.7, beta: float = 3.0, features: Schema | None = None) -> Method:
    """Implicit Q-learning: clones the stored actions that are better than others, by values learned from rewards.

    Args:
        expectile: 0.5 learns the value of the behavior in the data, and values towards 1 that of its best actions.
        beta: Inverse temperature of the weights, in units of 1 / return. 0 is cloning.
    """
    return critic_method(choose_head(features, Gaussian()), IQL(expectile=expectile, beta=beta), features)
