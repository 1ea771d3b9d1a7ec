from ...core import Schema
from ...heads.likelihood.squashed_gaussian import SquashedGaussian
from ...learn.critics.critic_learning import critic_method
from ...learn.critics.off_policy_actor_critic import OffPolicyActorCritic
from ...learn.method import Method
from ...nets.feed_forward import FeedForward
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Kumar et al. 2020 (CQL), arXiv 2006.04779, with a fixed weight", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and scores of actions that are not in the data must not be too high.")
def cql(conservative_weight: float = 5.0, n_samples: int = 10, features: Schema | None = None) -> Method:
    """Conservative Q-learning: soft actor-critic whose critic scores actions that are not in the data low.

    Args:
        conservative_weight: Weight of the difference between scores of other actions and of those in the data.
        n_samples: Number of actions of each kind from which the difference is estimated.
    """
    learner = OffPolicyActorCritic(bc_weight=0.0, policy_delay=1, temperature=1.0, target_entropy=-1.0,
                                   conservative_weight=conservative_weight, n_conservative_samples=n_samples)
    return critic_method(SquashedGaussian(), learner, features, FeedForward((256, 256)))
