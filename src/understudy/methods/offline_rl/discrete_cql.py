from ...core import Schema
from ...heads.likelihood.categorical import Categorical
from ...learn.critics.action_values import ActionValues
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import CLASSES, STEP_REWARDS
from ..registry import method


@method("Kumar et al. 2020 (CQL), arXiv 2006.04779, with double Q-learning and a fixed weight",
        needs=(CLASSES, STEP_REWARDS),
        when="if actions are classes, there are rewards, and no environment is at hand.")
def discrete_cql(conservative_weight: float = 1.0, features: Schema | None = None) -> Method:
    """Conservative Q-learning for classes: Q-learning that keeps the values of classes that are not stored low.

    Args:
        conservative_weight: Weight of the cross-entropy of the stored classes. 0 is double Q-learning.
    """
    policy = PolicyConfig(Categorical(), FeedForward((256, 256)), simplest_encoder(features))
    return Method(policy, learner=ActionValues(conservative_weight=conservative_weight))
