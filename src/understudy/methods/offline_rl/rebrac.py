from ...core import Schema
from ...heads.likelihood.regression import Regression
from ...learn.critic import CriticConfig
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Tarasov et al. 2023 (ReBRAC), arXiv 2305.09836, with the score of the first critic network, as in TD3+BC",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, no environment is at hand, and both weights can be tuned.")
def rebrac(bc_weight: float = 0.4, critic_bc_weight: float = 0.1, features: Schema | None = None) -> Method:
    """TD3+BC with a deep, normalized critic, whose targets also stay close to the stored actions.

    Args:
        bc_weight: Weight of the policy's mean squared distance to stored actions, relative to a score of 1.
        critic_bc_weight: Weight of the distance of target actions to stored ones, in units of the return.
    """
    critic = CriticConfig((256, 256, 256), layer_norm=True)
    learner = TD3(critic=critic, bc_weight=bc_weight, critic_bc_weight=critic_bc_weight)
    return critic_method(Regression(), learner, features)
